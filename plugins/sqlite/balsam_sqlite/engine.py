"""The SQLAlchemy engine on ``db.sqlite3``.

The driver never begins a transaction; this module does. Writers use BEGIN IMMEDIATE: a deferred transaction that reads
and then writes fails without waiting when another one wrote in between (10 to 30 % of writes under load). Readers use
BEGIN, which gives them one snapshot and never waits.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, event
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.pool import QueuePool

from balsam_core.plugin import ServerNotRunning, filesystem_type, is_network, shown
from balsam_sqlite.errors import is_retryable, refuse_without_descriptors, translate
from balsam_sqlite.init_files import check_file, check_locks, database_file, file_identity

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from balsam_core.plugin import DBDir, EngineRole

# Seconds that SQLite itself waits for another writer. It ignores signals meanwhile.
BUSY_TIMEOUT = 1.0  # the transport repeats
SERVER_BUSY_TIMEOUT = 0.05  # the server has others to answer meanwhile
OWNER_BUSY_TIMEOUT = 60.0  # nothing repeats what `balsam init` does
CACHE_SIZE = 16 * 1024  # KiB per connection
WAL_SIZE_LIMIT = 64 * 1024 * 1024  # bytes that the log keeps after a big write


def _is_frozen(db: DBDir) -> bool:
    """Say whether the file is on a read-only file system, and no log goes with it."""
    try:
        has_log = os.stat(f"{database_file(db)}-wal").st_size > 0  # noqa: PTH116  (before each connection)
    except OSError:
        has_log = False
    return not has_log and bool(os.statvfs(db.path).f_flag & os.ST_RDONLY)


class _FileConnection(sqlite3.Connection):
    """A connection that knows which file it has opened."""

    opened: tuple[int, int] | None = None
    is_frozen = False


def make_engine(db: DBDir, role: EngineRole) -> Engine:
    """Return an engine on the database file; the file is checked now and before each new connection.

    A connection to a file that was replaced meanwhile is not used again.

    On a read-only file system, SQLite can't make the files that go with its log. Without a log, the file is opened as
    one that doesn't change, for each transaction anew, since another host or mount may write to it.

    ``owner`` (``balsam init``) and ``server`` may open the file on a network file system: as the only process, with
    exclusive locks, without shared memory. The other roles share the file, so it must be on a local one.

    Raises:
        ServerNotRunning: The file is on a network file system.
        Corrupt: The file is damaged or another program's; it was not opened.
        Conflict: It belongs to another DB directory.
        DBDirError: The file system has no locks.
        SchemaMismatch: A newer balsam-sqlite made it.
    """
    remote = is_network(db.path)
    if remote and role not in {"owner", "server"}:
        raise ServerNotRunning(
            f"{shown(db.path)} is on {filesystem_type(db.path)}, a network file system, where programs must not open "
            f"an SQLite file directly: run balsam dbserver on one host, or put the DB on a local disk"
        )
    check_locks(db)
    check_file(db)
    pragmas = [
        # Before anything that reads the file: then no shared memory is ever made.
        *(["locking_mode=EXCLUSIVE"] if remote else []),
        "synchronous=NORMAL" if db.settings.get("durability") == "relaxed" else "synchronous=FULL",
        "foreign_keys=ON",
        "temp_store=MEMORY",
        f"cache_size=-{CACHE_SIZE}",
        f"journal_size_limit={WAL_SIZE_LIMIT}",
        *(["query_only=ON"] if role == "reader" else []),
    ]

    file = str(database_file(db))

    def connect() -> _FileConnection:
        is_frozen = _is_frozen(db)
        opened = file_identity(file)
        check_file(db)  # SQLite would also make a missing file anew
        # A plain path, since it may hold ? and %, which a URI quotes.
        try:
            connection = sqlite3.connect(
                f"{database_file(db).as_uri()}?mode=ro&immutable=1" if is_frozen else file,
                uri=is_frozen,
                timeout={"owner": OWNER_BUSY_TIMEOUT, "server": SERVER_BUSY_TIMEOUT}.get(role, BUSY_TIMEOUT),
                isolation_level=None,
                check_same_thread=False,
                factory=_FileConnection,
            )
        except sqlite3.Error as err:
            refuse_without_descriptors(err)
            raise
        connection.opened, connection.is_frozen = opened, is_frozen
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")
            if not is_frozen and connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode=WAL")
        except BaseException as err:
            connection.close()
            refuse_without_descriptors(err)
            # Unlike a server that doesn't answer, a file that can't be opened won't open by repeating.
            if isinstance(err, sqlite3.Error) and not is_retryable(err) and (fault := translate(err)):
                raise fault from err
            raise
        return connection

    # With exclusive locks a second connection of the same process would wait for the first one.
    pool = {"pool_size": 1, "max_overflow": 0} if remote else {"pool_size": 5, "max_overflow": 20}
    engine = create_engine("sqlite+pysqlite://", creator=connect, poolclass=QueuePool, **pool)

    def begin(conn: Connection) -> None:
        reads = role == "reader" or conn.get_execution_options().get("balsam_reads", False)
        conn.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    def refuse_replaced(connection: _FileConnection, *_: object) -> None:
        if connection.opened != file_identity(file):
            raise InvalidatePoolError
        if connection.is_frozen:
            connection.opened = None  # the next time

    event.listen(engine, "checkout", refuse_replaced)
    if role != "server":  # the write server begins its transactions by itself
        event.listen(engine, "begin", begin)
    return engine
