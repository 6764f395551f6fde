"""``postgres/``: the data directory of the DB's own server, made before anything listens.

The superuser has no password and no line in pg_hba.conf, so nobody can log in as it; Balsam's role owns the database
and nothing else. Its password is made here, and PostgreSQL gets to know only what proves it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from balsam_core.plugin import Corrupt, DBDirError, force_to_disk, private_file, shown, write_private
from balsam_postgres.programs import find_server

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir
    from balsam_postgres.accounts import Account
    from balsam_postgres.programs import Programs

__all__ = [
    "DATABASE",
    "ROLE",
    "check_data",
    "data_directory",
    "find_own_server",
    "make_data",
    "password_file",
    "scram_verifier",
    "stored_password",
]

ROLE = "balsam"
DATABASE = "balsam"
_SUPERUSER = "balsam_admin"
_ROUNDS = 4096  # of PBKDF2, as PostgreSQL's own; the password is random, so more would only make logins slow
_TEMPORARY = "postgres.tmp-"
_REMEDY = "restore the DB directory from a backup"


def data_directory(db: DBDir) -> Path:
    """Return the path of the server's data."""
    return db.path / "postgres"


def password_file(db: DBDir) -> Path:
    """Return the path of the file with the password of Balsam's role."""
    return db.keys / "postgres_password"


def stored_password(db: DBDir) -> str:
    """Return the password of Balsam's role.

    Raises:
        DBDirError: There is none, or others could have read it.
    """
    try:
        return private_file(password_file(db)).decode("ascii").strip()
    except UnicodeDecodeError:
        raise DBDirError(f"{shown(password_file(db))} is damaged: {_REMEDY}") from None


def check_data(db: DBDir) -> int:
    """Return the major version of the PostgreSQL that made the data.

    Raises:
        Corrupt: It is missing or damaged.
        DBDirError: It or the password can't be read.
    """
    data = data_directory(db)
    file = data / "PG_VERSION"
    if not data.is_dir():
        raise Corrupt(f"{shown(data)} is missing: {_REMEDY}")
    try:
        text = file.read_bytes()[:20].decode("ascii", "replace").strip()
    except FileNotFoundError:
        raise Corrupt(f"{shown(file)} is missing: {_REMEDY}") from None
    except OSError as err:
        raise DBDirError(f"{shown(file)} can't be read: {(err.strerror or str(err)).lower()}") from None
    if not text.isdigit():
        raise Corrupt(f"{shown(file)} is damaged: {_REMEDY}")
    if not (data / "global" / "pg_control").is_file():
        raise Corrupt(f"{shown(data / 'global' / 'pg_control')} is missing: {_REMEDY}")
    stored_password(db)
    return int(text)


def make_data(db: DBDir, programs: Programs, account: Account) -> None:
    """Make the data with an empty database: built under another name, then given its own.

    Raises:
        DBDirError: It can't be made.
    """
    for leftover in [one for one in db.path.iterdir() if one.name.startswith(_TEMPORARY)]:
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = db.path / f"{_TEMPORARY}{secrets.token_hex(4)}"
    password = secrets.token_urlsafe(32)
    write_private(password_file(db), password.encode() + b"\n")
    try:
        temporary.mkdir(mode=0o700)
        account.give(temporary)
        _initialise(temporary, password, programs, account)
        os.rename(temporary, data_directory(db))  # noqa: PTH104  (never over a file, unlike replace)
        force_to_disk(db.path)
    except OSError as err:
        raise DBDirError(f"{shown(data_directory(db))} can't be made: {(err.strerror or str(err)).lower()}") from err
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def _initialise(data: Path, password: str, programs: Programs, account: Account) -> None:
    """Make the data, with one database besides the templates: the one that initdb calls ``postgres``."""
    initdb, place = programs.path("initdb"), str(data)
    # What comes next needs this, and initdb takes longer than the imports.
    Thread(target=_import_all, args=("balsam_postgres.engine", "cryptography.x509"), daemon=True).start()
    # --auth=reject: no password is asked for, and the pg_hba.conf that is made lets nobody in.
    locale = ["--encoding=UTF8", "--locale=C"]
    _run(
        [initdb, "-D", place, f"--username={_SUPERUSER}", "--auth=reject", *locale, "-k", "--no-instructions"],
        account,
    )
    statements = (
        f"CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
        f"PASSWORD '{scram_verifier(password)}'\n"
        f"ALTER DATABASE postgres RENAME TO {DATABASE}\n"
        f"ALTER DATABASE {DATABASE} OWNER TO {ROLE}\n"
    )
    settings = {"exit_on_error": "on", "log_min_error_statement": "panic", "log_min_messages": "error"}
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    _run([programs.path("postgres"), "--single", "-D", place, *flags, "template1"], account, statements.encode())


def _import_all(*names: str) -> None:
    for name in names:
        with contextlib.suppress(Exception):  # whoever needs it says so
            import_module(name)


def _run(argv: list[str], account: Account, stdin: bytes = b"") -> None:
    done = account.run(argv, stdin=stdin)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with exit code {done.returncode}"
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        wrong = [line for line in lines if any(word in line.lower() for word in ("error", "fatal", "could not"))]
        text = "; ".join((wrong or lines)[:3])
        raise DBDirError(f"PostgreSQL's {argv[0].rpartition('/')[2]} can't make the data of the DB: {text[:500]}")


def scram_verifier(password: str, salt: bytes = b"", rounds: int = _ROUNDS) -> str:
    """Return what PostgreSQL keeps of a password, which doesn't reveal it: RFC 5803.

    Args:
        password: Of ASCII, which needs no normalisation.
        salt: Random if empty.
        rounds: Of the key derivation.
    """
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, rounds)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    coded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${rounds}:{coded[0]}${coded[1]}:{coded[2]}"


def find_own_server(db: DBDir) -> Programs:
    """Return the programs that can open the data; see :func:`balsam_postgres.programs.find_server`."""
    return find_server(db.settings.get("bindir", ""), major=check_data(db))
