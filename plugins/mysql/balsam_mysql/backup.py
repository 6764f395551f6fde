"""Backups: SQL that the server's own programs write and read."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from balsam_core.plugin import (
    BackendError,
    Corrupt,
    DBDirError,
    ServerAccount,
    Unavailable,
    failure_reason,
    read_password,
    reason,
    server_not_running,
    shown,
)
from balsam_mysql.configuration import ACCOUNT, DATABASE, FOREIGN_VARIABLES
from balsam_mysql.connecting import ALL_ROWS, connect, open_adopted
from balsam_mysql.init_files import server_home, server_programs
from balsam_mysql.keys import certificate_file, pin_file
from balsam_mysql.programs import find_client
from balsam_mysql.url import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from balsam_core.plugin import Address, DBDir

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
    program = _find_program(db, _DUMP)
    more = ["--set-gtid-purged=OFF"] if variant == "mysql" else []
    try:
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _run_program(db, address, program, [*_DUMP_OPTIONS, *more, _database(db)], stdout=file)
        if not _is_complete(target):
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
    program = _find_program(db, _CLIENT)
    if not _is_complete(source):
        raise Corrupt(f"{shown(source)} is cut short, or no backup of a MySQL or MariaDB database")
    with source.open("rb") as file:
        _skip_sandbox_line(file, db.settings["variant"])
        # Binary mode turns off the commands of an interactive client, which could start programs.
        _run_program(db, address, program, ["--binary-mode", "--batch", _database(db)], stdin=file)


def _find_program(db: DBDir, names: dict[str, tuple[str, ...]]) -> str:
    variant = db.settings["variant"]
    programs = None
    if "url" not in db.settings:
        with contextlib.suppress(BackendError):  # the client's programs may be here without the server's
            programs = server_programs(db)
    return find_client(names[variant], programs, _PACKAGE[variant])


def _database(db: DBDir) -> str:
    return Target.parse(db.settings["url"]).database if "url" in db.settings else DATABASE


def _is_complete(file: Path) -> bool:
    with file.open("rb") as dump:
        dump.seek(max(0, file.stat().st_size - _TAIL))
        return _END in dump.read()


def _skip_sandbox_line(file: BinaryIO, variant: str) -> None:
    """Skip the first line of MariaDB's dumps, which switches to sandbox mode and is an error for MySQL's client."""
    first = file.readline(256)
    if variant == "mariadb" or not first.startswith(b"/*M!999999"):
        file.seek(0)
    # The program reads from the descriptor, whose position is behind the buffer that was read here.
    os.lseek(file.fileno(), file.tell(), os.SEEK_SET)


def _run_program(
    db: DBDir,
    address: Address | None,
    program: str,
    options: Sequence[str],
    *,
    stdin: bytes | BinaryIO = b"",
    stdout: BinaryIO | None = None,
) -> None:
    # The data's owner may have named the program, so root runs it as that account.
    account = ServerAccount() if "url" in db.settings else ServerAccount.owner_of(server_home(db))
    with _login_arguments(db, address, account) as login:
        argv = [program, *login, "--default-character-set=utf8mb4", *options]
        # An option file can't hold every password.
        password = {"MYSQL_PWD": (read_password(db) or "").encode()}
        done = account.run(argv, stdin=stdin, stdout=stdout, env=password, unset=FOREIGN_VARIABLES)
    if done.returncode:
        raise Unavailable(f"{Path(program).name} failed: {failure_reason(done.stderr)}")


@contextlib.contextmanager
def _login_arguments(db: DBDir, address: Address | None, account: ServerAccount) -> Iterator[list[str]]:
    """Give the arguments with which a client program logs in, but for the password."""
    variant = db.settings["variant"]
    lines = ["[client]"]
    is_own = "url" not in db.settings
    if not is_own:
        words = _adopted_server(db).arguments(variant)
    elif address is None:
        raise server_not_running(db)
    else:
        words = [f"--host={address.host}", f"--port={address.port}", f"--user={ACCOUNT}", "--protocol=tcp"]
        # MariaDB's older programs know no fingerprint, and go on without TLS where a server says that it has none. So
        # the driver checks first that the server is ours; and a program without plugins can't send the password itself.
        _check_server(db, address)
        words += ["--ssl-mode=VERIFY_CA"] if variant == "mysql" else ["--ssl"]
        lines += [f"loose-{line}" for line in _fingerprint_lines(db)]
    folder = Path(tempfile.mkdtemp(prefix="balsam-"))
    try:
        file = folder / "login.cnf"
        file.touch(mode=0o600)
        file.write_text("\n".join([*lines, ""]))
        if is_own:
            certificate, plugins = folder / "certificate.pem", folder / "plugins"
            plugins.mkdir(mode=0o700)
            # A copy, since the account may be unable to enter `keys`.
            certificate.write_bytes(certificate_file(db).read_bytes())
            words += [f"--ssl-ca={certificate}", f"--plugin-dir={plugins}"]
            for path in (folder, file, certificate, plugins):
                account.give(path)
        yield [f"--defaults-file={file}", *words]
    except OSError as err:
        raise DBDirError(f"{shown(folder)} can't be used: {reason(err)}") from err
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _adopted_server(db: DBDir) -> Target:
    """Return which of the servers of the URL takes writes."""
    import MySQLdb

    from balsam_mysql.errors import translate

    target = Target.parse(db.settings["url"])
    try:
        connection, found = open_adopted(db, target)
    except MySQLdb.Error as err:
        raise translate(err) or Unavailable(f"the server at {target.endpoint} can't be reached: {err}") from err
    with contextlib.closing(connection), contextlib.closing(connection.cursor()) as cursor:
        # The programs set neither for themselves.
        cursor.execute("SELECT @@global.init_connect, @@global.sql_select_limit")
        commands, limit = cursor.fetchone()
    if "select_limit" in str(commands).lower() or int(limit) < ALL_ROWS:
        raise Unavailable(
            f"the server at {found.endpoint} limits the rows of an answer (sql_select_limit, perhaps by init_connect), "
            f"which would cut a backup: ask who runs it"
        )
    return found


def _check_server(db: DBDir, address: Address) -> None:
    import MySQLdb

    try:
        connect(db, address).close()
    except MySQLdb.Error as err:
        raise Unavailable(f"the database server at {address.endpoint} can't be reached: {err}") from err


def _fingerprint_lines(db: DBDir) -> list[str]:
    if db.settings["variant"] != "mariadb":
        return []
    return [line for line in pin_file(db).read_text().splitlines() if line.startswith("ssl-fp=")][-1:]
