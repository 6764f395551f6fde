"""A copy of the database file while others write to it, and a database from such a copy."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from balsam_core.plugin import Corrupt, Unavailable, filesystem_type, is_network, shown
from balsam_sqlite.engine import make_engine
from balsam_sqlite.errors import translate
from balsam_sqlite.init_files import APPLICATION_ID, check_file, database_file

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.plugin import DBDir

PAGES = 2000  # copied at a time; signals such as Ctrl-C are handled in between


def backup(db: DBDir, target: Path) -> None:
    """Write the database, as it is at one moment, into a new file. Neither readers nor writers wait for it.

    Raises:
        Corrupt: The database is damaged.
        Unavailable: The file is on a network file system, where only one process may open it; or a disk is full.
    """
    if is_network(db.path):
        raise Unavailable(
            f"{shown(db.path)} is on {filesystem_type(db.path)}, a network file system, where only the server may open "
            f"the SQLite file: stop the server (balsam dbserver --stop), copy the whole directory, and start it again"
        )
    engine = make_engine(db, "reader")
    try:
        with contextlib.closing(engine.raw_connection()) as pooled, contextlib.closing(_new_file(target)) as copy:
            source = pooled.driver_connection
            assert isinstance(source, sqlite3.Connection)  # noqa: S101  (for mypy)
            try:
                _copy(source, copy)
            except sqlite3.Error as err:
                raise translate(err) or err from None  # before the files are closed: it looks for room
    finally:
        engine.dispose()


def _copy(source: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    # A read transaction holds one snapshot; without it SQLite starts again whenever somebody has written.
    source.execute("BEGIN")
    source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    # Python handles signals only when it runs Python code, so a function is called after each part.
    source.backup(copy, pages=PAGES, progress=lambda *_: None)
    source.execute("ROLLBACK")


def restore(db: DBDir, source: Path) -> None:
    """Fill the empty database of a new DB directory from a file of :func:`backup`.

    Raises:
        Corrupt: The file is damaged or no database of Balsam's.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro&immutable=1", uri=True)) as saved,
            contextlib.closing(sqlite3.connect(database_file(db), isolation_level=None)) as target,
        ):
            if saved.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise Corrupt("the backup holds an SQLite database of another program")
            found = saved.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise Corrupt(f"the database in the backup is damaged ({' '.join(found.split())}): use another backup")
            target.execute("PRAGMA synchronous=FULL")
            saved.backup(target, pages=PAGES, progress=lambda *_: None)
            # The directory is renamed later, without this connection's log.
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as err:
        if (known := translate(err)) and not isinstance(known, Corrupt):  # a full disk says nothing of the backup
            raise known from None
        raise Corrupt(f"the database in the backup is damaged ({err}): use another backup") from None
    check_file(db)


def _new_file(target: Path) -> sqlite3.Connection:
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(target, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")  # the core forces the backup to disk
    return connection
