"""Backup and restore with ``pg_dump`` and ``pg_restore``, which carry a database from one major version to the next."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

from balsam_core.plugin import (
    Corrupt,
    ServerAccount,
    Unavailable,
    failure_reason,
    read_password,
    server_not_running,
    shown,
)
from balsam_postgres.connecting import adopted_parameters, connect_adopted, own_parameters
from balsam_postgres.init_files import server_programs
from balsam_postgres.programs import find_client

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import Address, DBDir
    from balsam_postgres.connecting import Connection
    from balsam_postgres.programs import Programs

_MAGIC = b"PGDMP"
_COMMON_OPTIONS = ["--no-owner", "--no-privileges", "--no-password"]
_DAMAGE = ("archive", "file header", "end of file", "compress")  # words of pg_restore


def backup(db: DBDir, address: Address | None, target: Path) -> None:
    """Write the database into a file, as it was at one moment, while others use it.

    Raises:
        BackendError: The program is not installed.
        ServerNotRunning: No server is published.
        Unavailable: The database can't be reached, or the file can't be written.
    """
    try:
        _run_program(db, address, "pg_dump", ["--format=custom", *_COMMON_OPTIONS, f"--file={target}"])
    except BaseException:
        with contextlib.suppress(OSError):
            target.unlink()
        raise


def restore(db: DBDir, address: Address | None, source: Path) -> None:
    """Fill the empty database from a file that :func:`backup` wrote.

    Raises:
        BackendError: The program is not installed.
        Corrupt: The file is no backup of a PostgreSQL database, or is damaged.
        Unavailable: The database can't be reached.
    """
    with source.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise Corrupt(f"{shown(source)} is no backup of a PostgreSQL database")
    _run_program(db, address, "pg_restore", ["--single-transaction", "--exit-on-error", *_COMMON_OPTIONS], str(source))


def _run_program(db: DBDir, address: Address | None, name: str, options: list[str], *files: str) -> None:
    programs, parameters = _adopted_login(db) if "url" in db.settings else _own_login(db, address, name)
    password = read_password(db)
    parameters["options"] = "-c default_transaction_read_only=off"  # and no time limit for locks
    done = ServerAccount().run(
        [programs.path(name), *options, f"--dbname={make_conninfo(**parameters)}", *files],
        env={} if password is None else {"PGPASSWORD": password.encode()},
        unset=("PG",),
    )
    if done.returncode == 0:
        return
    why = failure_reason(done.stderr)
    if name == "pg_restore" and any(word in why for word in _DAMAGE):
        raise Corrupt(f"the backup can't be read, it is damaged or of a newer PostgreSQL ({why})")
    raise Unavailable(f"{name} failed: {why}")


def _adopted_login(db: DBDir) -> tuple[Programs, dict[str, str]]:
    """Return the client programs for an adopted server, and what they must know of it."""
    try:
        with connect_adopted(db) as connection:
            major = connection.info.server_version // 10000
            if connection.setting_statement:
                _refuse_shared_sessions(db, connection)
    except psycopg.Error as err:
        raise Unavailable(f"the database can't be reached: {' '.join(str(err).split())}") from err
    programs = find_client(db.settings.get("bindir", ""), major=major)
    return programs, adopted_parameters(db.settings, programs.major * 10000)


def _refuse_shared_sessions(db: DBDir, connection: Connection) -> None:
    """Refuse a pooler that has given two connections one of the server's: what a program sets would reach others.

    Raises:
        Unavailable: It has.
    """
    with connect_adopted(db) as other:
        sessions = set()
        for one in (connection, other):
            one.autocommit = True
            sessions.add(one.execute("SELECT pg_backend_pid()").fetchone())
    if len(sessions) == 1:
        raise Unavailable(
            "a connection pooler in transaction mode is in between, and PostgreSQL's programs need a session of their "
            "own: name the server itself, or a pooler in session mode, with balsam init PATH --url URL"
        )


def _own_login(db: DBDir, address: Address | None, name: str) -> tuple[Programs, dict[str, str]]:
    """Return the same for the DB's own server; its programs may come without the clients'."""
    if address is None:
        raise server_not_running(db)
    programs = server_programs(db)
    if not os.access(programs.path(name), os.X_OK):
        programs = find_client(db.settings.get("bindir", ""), major=programs.major)
    return programs, own_parameters(db, address, programs.major * 10000)
