"""The engine: here SQLite, in a file of its own name; yours has another driver and SQLAlchemy dialect."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import Corrupt, SingleWriter, Unavailable, atomic_write, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from balsam_core.plugin import BalsamError, DBDir, EngineRole

NAME = "tiny.db"


def make_file(db: DBDir) -> None:
    """Make the file once. It must hold no absolute path, since the directory is renamed."""
    if not (db.path / NAME).exists():
        if db.settings:
            raise Corrupt(f"{shown(db.path / NAME)} is gone: restore it from a backup")
        atomic_write(db.path / NAME, b"")  # an empty file is a database without tables


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine whose transactions hold from their start the lock they need, and commit to the disk."""

    def connect() -> sqlite3.Connection:
        uri = f"{(db.path / NAME).as_uri()}?mode=rw"  # a missing file is an error and no new database
        connection = sqlite3.connect(uri, uri=True, timeout=1.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")  # readers see one state and keep nobody waiting
        connection.execute("PRAGMA synchronous=FULL")  # what is acknowledged is on the disk
        connection.execute(f"PRAGMA cache_size=-{db.settings.get('cache', '1000')}")
        if role == "reader":
            connection.execute("PRAGMA query_only=ON")
        return connection

    def begin(conn: Connection) -> None:
        reads = role == "reader" or conn.get_execution_options().get("balsam_reads")
        conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    # Threads share an engine, so name the pool: the default of some dialects is not for threads.
    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=QueuePool)
    if role != "server":  # the write server begins its transactions by itself
        event.listen(engine, "begin", begin)
    return engine


def single_writer(db: DBDir) -> SingleWriter:
    """Return what the core's write server and its clients need to know; the server is given this function's name."""
    return SingleWriter(
        open_engine=lambda role: make_engine(db, role),
        begin="BEGIN IMMEDIATE",
        is_retryable=is_retryable,
        translate=translate,
        version="PRAGMA data_version",  # changes when another connection has written
    )


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated: another process held a lock."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of the driver's, None where its own text is best."""
    full = _code(error) == sqlite3.SQLITE_FULL
    return Unavailable("the disk is full: nothing was written; make room and repeat") if full else None


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
