"""Filling a new data directory, before anything listens.

The superuser has no password and no line in pg_hba.conf, so nobody can log in as it. Balsam's role owns the database
and nothing else. PostgreSQL gets only the verifier of its password.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

from balsam_core.plugin import DBDirError, failure_reason
from balsam_postgres.configuration import DATABASE, ROLE

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import ServerAccount
    from balsam_postgres.programs import Programs

_SUPERUSER = "balsam_admin"
_ROUNDS = 4096  # of PBKDF2, as PostgreSQL's own; the password is random, so more would only make logins slow


def make_data(programs: Programs, data: Path, account: ServerAccount, password: str) -> None:
    """Fill the empty folder ``data``, with one database besides the templates: the one that initdb calls ``postgres``.

    Raises:
        BackendError: A program can't be run.
        DBDirError: A program fails.
    """
    # --auth=reject: initdb asks for no password, and the pg_hba.conf that it makes lets nobody in.
    words = ["--auth=reject", "--encoding=UTF8", "--locale=C", "-k", "--no-instructions"]
    _run_program([programs.path("initdb"), "-D", str(data), f"--username={_SUPERUSER}", *words], account)
    statements = (
        f"CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
        f"PASSWORD '{scram_verifier(password)}'\n"
        f"ALTER DATABASE postgres RENAME TO {DATABASE}\n"
        f"ALTER DATABASE {DATABASE} OWNER TO {ROLE}\n"
    )
    settings = {"exit_on_error": "on", "log_min_error_statement": "panic", "log_min_messages": "error"}
    flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    single_user = [programs.path("postgres"), "--single", "-D", str(data), *flags, "template1"]
    _run_program(single_user, account, statements.encode())


def _run_program(argv: list[str], account: ServerAccount, stdin: bytes = b"") -> None:
    done = account.run(argv, stdin=stdin, unset=("PG",))
    if done.returncode != 0:
        name = argv[0].rpartition("/")[2]
        raise DBDirError(f"PostgreSQL's {name} can't make the data of the DB: {failure_reason(done.stderr)}")


def scram_verifier(password: str, salt: bytes = b"") -> str:
    """Return what PostgreSQL stores of a password, which doesn't reveal it: RFC 5803.

    The password must be ASCII, which needs no normalisation. An empty salt stands for a random one.
    """
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ROUNDS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    coded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ROUNDS}:{coded[0]}${coded[1]}:{coded[2]}"
