"""Backups: SQL that the server's own programs write and read."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from balsam_core.plugin import BackendError, Corrupt, DBDirError, ServerNotRunning, Unavailable, shown
from balsam_mysql import keys
from balsam_mysql.accounts import owner_of
from balsam_mysql.configuration import ACCOUNT, DATABASE
from balsam_mysql.connecting import connect
from balsam_mysql.init_files import data_home, server_programs
from balsam_mysql.programs import client
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.plugin import Address, DBDir
    from balsam_mysql.accounts import Owner

__all__ = ["backup", "restore"]

_DUMP = {"mariadb": ("mariadb-dump", "mysqldump"), "mysql": ("mysqldump",)}
_CLIENT = {"mariadb": ("mariadb", "mysql"), "mysql": ("mysql",)}
_PACKAGE = {"mariadb": "mariadb-client", "mysql": "mysql-client"}
_DUMP_OPTIONS = ("--single-transaction", "--quick", "--skip-lock-tables", "--no-tablespaces", "--hex-blob")
_END = b"-- Dump completed"
_TAIL = 4096  # bytes in which it must stand


def backup(db: DBDir, address: Address | None, target: Path) -> None:
    """Write the database into a file, as it was at one moment, while others use it.

    Raises:
        BackendError: The program is not installed.
        ServerNotRunning: No server is published.
        Unavailable: The program failed.
    """
    variant = db.settings["variant"]
    program = _program(db, _DUMP, variant)
    more = ["--set-gtid-purged=OFF"] if variant == "mysql" else []
    try:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _run(db, address, program, [*_DUMP_OPTIONS, *more, _database(db)], to=file)
        if not _is_whole(target):
            raise Unavailable(f"{Path(program).name} wrote only a part of the backup: check the disk, and repeat")
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def restore(db: DBDir, address: Address | None, source: Path) -> None:
    """Fill the empty database from a file that :func:`backup` wrote.

    Raises:
        BackendError: The program is not installed.
        Corrupt: The file is cut short, or no backup.
        Unavailable: The program failed.
    """
    variant = db.settings["variant"]
    program = _program(db, _CLIENT, variant)
    if not _is_whole(source):
        raise Corrupt(f"{shown(source)} is cut short, or no backup of a MySQL or MariaDB database")
    with source.open("rb") as file:
        _skip_mark(file, variant)
        # The commands of an interactive client, which could start programs, are off in this mode.
        _run(db, address, program, ["--binary-mode", "--batch", _database(db)], source=file)


def _program(db: DBDir, names: dict[str, tuple[str, ...]], variant: str) -> str:
    programs = None
    if "url" not in db.settings:
        with contextlib.suppress(BackendError):  # the client's may be here without the server's
            programs = server_programs(db)
    return client(names[variant], programs, _PACKAGE[variant])


def _database(db: DBDir) -> str:
    return Target.parse(db.settings["url"]).database if "url" in db.settings else DATABASE


def _is_whole(file: Path) -> bool:
    with file.open("rb") as dump:
        dump.seek(max(0, file.stat().st_size - _TAIL))
        return _END in dump.read()


def _skip_mark(file: BinaryIO, variant: str) -> None:
    """Pass over the first line of MariaDB's dumps where MySQL's client would stumble over it."""
    first = file.readline(256)
    if variant == "mariadb" or not first.startswith(b"/*M!999999"):
        file.seek(0)
    # The program reads from the descriptor, which is ahead of what was read here.
    os.lseek(file.fileno(), file.tell(), os.SEEK_SET)


def _run(
    db: DBDir,
    address: Address | None,
    program: str,
    options: Sequence[str],
    *,
    source: BinaryIO | int = subprocess.DEVNULL,
    to: BinaryIO | int = subprocess.DEVNULL,
) -> None:
    # The program may be one that the data's owner has named, so root doesn't run it.
    owner = None if "url" in db.settings else owner_of(data_home(db))
    with _login(db, address, owner) as login:
        try:
            done = subprocess.run(
                [program, *login, "--default-character-set=utf8mb4", *options],
                stdin=source,
                stdout=to,
                stderr=subprocess.PIPE,
                check=False,
                cwd="/",
                umask=0o077,
                **(owner.process if owner else {}),
                env={name: value for name, value in os.environ.items() if not name.startswith(("MYSQL", "MARIADB"))},
            )
        except OSError as err:
            raise BackendError(f"{shown(program)} can't be run: {err.strerror}") from err
    if done.returncode:
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        why = " ".join((said[-1] if said else "it said nothing").split())[:300]
        raise Unavailable(f"{Path(program).name} failed: {why}")


@contextlib.contextmanager
def _login(db: DBDir, address: Address | None, owner: Owner | None) -> Iterator[list[str]]:
    """Give the arguments with which a client program logs in; the password is in a private file for the time."""
    variant = db.settings["variant"]
    lines = ["[client]", f"password={_quoted(keys.read_password(db))}"]
    if "url" in db.settings:
        words = Target.parse(db.settings["url"]).arguments(variant)
    elif address is None:
        raise ServerNotRunning(
            f"the server of {shown(db.path)} is not running: start it with balsam dbserver --path={shown(db.path)}"
        )
    else:
        words = [f"--host={address.host}", f"--port={address.port}", f"--user={ACCOUNT}", "--protocol=tcp"]
        # Older programs of MariaDB know no fingerprint, and go on without TLS where a server says that it has none. So
        # the driver looks first whether the server is ours; and without plugins none gets the password itself.
        _look(db, address)
        words += ["--ssl-mode=VERIFY_CA"] if variant == "mysql" else ["--ssl"]
        lines += [f"loose-{line}" for line in _pin(db)]
    folder = Path(tempfile.mkdtemp(prefix="balsam-"))
    try:
        file = folder / "login.cnf"
        file.touch(mode=0o600)
        file.write_text("\n".join([*lines, ""]))
        if owner:
            certificate, plugins = folder / "certificate.pem", folder / "plugins"
            plugins.mkdir(mode=0o700)
            # A copy, since the owner of the data may have no way into `keys`.
            certificate.write_bytes(keys.certificate_file(db).read_bytes())
            words += [f"--ssl-ca={certificate}", f"--plugin-dir={plugins}"]
            for path in (folder, file, certificate, plugins):
                owner.give(path)
        yield [f"--defaults-file={file}", *words]
    except OSError as err:
        raise DBDirError(f"{shown(folder)} can't be used: {err.strerror}") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(db: DBDir, address: Address) -> None:
    import MySQLdb

    try:
        connect(db, address).close()
    except MySQLdb.Error as err:
        raise Unavailable(f"the database server at {address.host}:{address.port} can't be reached: {err}") from err


def _pin(db: DBDir) -> list[str]:
    if db.settings["variant"] != "mariadb":
        return []
    return [line for line in keys.pin_file(db).read_text().splitlines() if line.startswith("ssl-fp=")][-1:]


def _quoted(password: str) -> str:
    """Return a value for a file of options, which reads the escapes of C."""
    for plain, escaped in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        password = password.replace(plain, escaped)
    return f'"{password}"'
