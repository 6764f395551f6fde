"""The SQLAlchemy engine on ``db.sqlite3``, and what SQLite's error codes mean.

Transactions are begun by us and never by the driver: a writer with BEGIN IMMEDIATE, since a deferred transaction that
reads and then writes fails without waiting when another wrote in between (10 to 30 % of writes under load); a reader
with BEGIN, which gives it one snapshot and never waits.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import Corrupt, ServerNotRunning, Unavailable, filesystem_type, is_network, shown
from balsam_sqlite.files import check_file, database_file

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

    from balsam_core.plugin import BalsamError, DBDir, EngineRole

__all__ = ["is_retryable", "make_engine", "translate"]

BUSY_TIMEOUT = 1.0  # seconds that SQLite itself waits for another writer, deaf to signals; the transport repeats
OWNER_BUSY_TIMEOUT = 60.0  # the same for init, where nobody repeats
CACHE_SIZE = 16 * 1024  # KiB per connection
WAL_SIZE_LIMIT = 64 * 1024 * 1024  # bytes that a log keeps after a big write
_SYNCHRONOUS = {"full": "FULL", "relaxed": "NORMAL"}
_PRIMARY = 0xFF  # the low byte of an extended result code


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the database file; the file is checked now and before each new connection.

    Args:
        db: The DB directory.
        role: ``owner`` may open the file on a network file system: with exclusive locks, without shared memory, for
            ``balsam init`` alone. The others share the file, so it must be on a local one.

    Raises:
        ServerNotRunning: The file is on a network file system.
        Corrupt: The file is damaged or foreign; it was not opened.
        SchemaMismatch: A newer balsam-sqlite made it.
    """
    remote = is_network(db.path)
    if remote and role != "owner":
        raise ServerNotRunning(
            f"{shown(db.path)} is on {filesystem_type(db.path)}, a network file system, where programs must not open "
            f"an SQLite file directly: run balsam dbserver on one host, or put the DB on a local disk"
        )
    check_file(db)
    pragmas = [
        # Before anything that reads the file: then no shared memory is ever made.
        *(["locking_mode=EXCLUSIVE"] if remote else []),
        f"synchronous={_SYNCHRONOUS.get(db.settings.get('durability', 'full'), 'FULL')}",
        "foreign_keys=ON",
        "temp_store=MEMORY",
        f"cache_size=-{CACHE_SIZE}",
        f"journal_size_limit={WAL_SIZE_LIMIT}",
        *(["query_only=ON"] if role == "reader" else []),
    ]

    def connect() -> sqlite3.Connection:
        check_file(db)  # also: SQLite would make a missing file anew
        # A plain path, never a URI: it may hold ? and %.
        connection = sqlite3.connect(
            database_file(db),
            timeout=OWNER_BUSY_TIMEOUT if role == "owner" else BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
        except BaseException:
            connection.close()
            raise
        return connection

    # With exclusive locks a second connection would wait for the first one, in the same process.
    room = {"pool_size": 1, "max_overflow": 0} if remote else {"pool_size": 5, "max_overflow": 20}
    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=QueuePool, **room)
    event.listen(engine, "begin", _begin_reading if role == "reader" else _begin)
    event.listen(engine, "connect", _note_process)
    event.listen(engine, "checkout", _refuse_other_process)
    return engine


def _begin(conn: Connection) -> None:
    reads = conn.get_execution_options().get("balsam_reads", False)
    conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _begin_reading(conn: Connection) -> None:
    conn.exec_driver_sql("BEGIN")


def _note_process(_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    entry.info["pid"] = os.getpid()


def _refuse_other_process(
    _connection: DBAPIConnection, entry: ConnectionPoolEntry, proxy: PoolProxiedConnection
) -> None:
    """Let a forked child make connections of its own: SQLite's must not be carried over a fork."""
    if entry.info["pid"] != os.getpid():
        entry.dbapi_connection = proxy.dbapi_connection = None  # type: ignore[misc]
        raise DisconnectionError("the connection belongs to the parent process")


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated: another process held a lock."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of SQLite's, None where its own text says it best."""
    text = " ".join(str(error).split())
    match _code(error):
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(f"the database file is damaged ({text}): restore it from a backup")
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"the disk is full ({text}): nothing was written; make room and repeat")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return Unavailable(f"the database file can't be written ({text}): check the directory's permissions")
        case sqlite3.SQLITE_IOERR:
            return Unavailable(f"the disk reports an error ({text}): check it and repeat")
    return None


def _code(error: BaseException) -> int | None:
    """Return SQLite's primary result code; an error that wraps the driver's is looked into."""
    driver = getattr(error, "orig", None) or error
    code = getattr(driver, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else None
