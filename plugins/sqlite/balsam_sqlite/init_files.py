"""``db.sqlite3`` as a file: making it, and checking it before it is opened for work.

SQLite takes a zero-length file for a new database and applies a stray journal to another program's file. So each file
is checked first, in a way that writes nothing and makes no companion files.

The file must never be opened here with ``open``: closing it would drop the POSIX locks that this process's own SQLite
connections hold on it (https://sqlite.org/howtocorrupt.html, section 2.2). Instead it is read through an SQLite
connection with ``immutable``: that takes no locks and ignores journals, and SQLite knows when it may close the
descriptor.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from balsam_core.plugin import (
    BalsamError,
    Conflict,
    Corrupt,
    DBDirError,
    SchemaMismatch,
    Unavailable,
    filesystem_type,
    option_choice,
    reason,
    shown,
    who_may,
)
from balsam_sqlite.errors import refuse_without_descriptors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from balsam_core.plugin import DBDir

APPLICATION_ID = 0x42414C53
"""``BALS``, in the header of each of our files: a database of another program is never opened."""

FILE_FORMAT = 1
"""The header's ``user_version``: our layout of the file apart from the tables, which have a version of their own."""

LONGEST_PATH = 500  # bytes; SQLite's usual limit is 512 with the suffixes of its companion files

_LEAST_PAGE = 512  # bytes
_REMEDY = "restore it from a backup"
_CHUNK = 1024 * 1024  # bytes
_MOST_CHECKS = 5  # of a file that others write to meanwhile


def database_file(db: DBDir) -> Path:
    """Return the path of the database file."""
    return db.path / "db.sqlite3"


def init_files(db: DBDir, options: Mapping[str, str]) -> dict[str, str]:
    """Make the file if the directory is new, else check it; return the settings to store.

    Raises:
        InvalidInput: An option has a wrong value.
        DBDirError: The file can't be made, is damaged or another program's; see :func:`check_file`.
        Conflict: It belongs to another DB directory.
    """
    durability = option_choice(db, options, "durability", ("full", "relaxed"))
    check_locks(db)
    if db.settings or os.path.lexists(database_file(db)):
        check_file(db)
    else:
        _make_file(db)
    return {"durability": durability}


def check_file(db: DBDir) -> None:
    """Check the file; nothing is written and no companion file is made.

    Raises:
        Corrupt: It is missing, empty, cut short, damaged or no database of Balsam's.
        Conflict: It belongs to another DB directory.
        DBDirError: It can't be read.
        SchemaMismatch: A newer balsam-sqlite made it.
    """
    file = database_file(db)
    for attempt in range(1, _MOST_CHECKS + 1):
        before = _file_state(file)
        try:
            _check_once(file, db.id, *before)
        except BalsamError:
            # A fault counts only if nobody wrote meanwhile.
            if attempt == _MOST_CHECKS or _file_state(file) == before:
                raise
        else:
            return


def force_log_to_disk(db: DBDir) -> None:
    """Write the log's content once more and force it to disk; nobody else may write to the database meanwhile.

    After a failed fsync the kernel keeps the pages, marks them clean, and reports the next fsync as a success. SQLite
    finds the transactions in them when it opens the database again, and what is built on them would be lost with them
    when the power fails. https://wiki.postgresql.org/wiki/Fsync_Errors

    Raises:
        Unavailable: The disk reports an error.
    """
    log = database_file(db).with_name("db.sqlite3-wal")
    try:
        # Unlike the database file, the log has no locks that closing it would drop.
        with open(log, "r+b", buffering=0) as file:  # noqa: PTH123  (no text layer)
            while chunk := file.read(_CHUNK):
                file.seek(-len(chunk), os.SEEK_CUR)
                while chunk:
                    chunk = chunk[file.write(chunk) :]
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    except OSError as err:
        raise Unavailable(f"{shown(log)} can't be forced to disk ({reason(err)}): check the disk") from err


def _file_state(file: Path) -> tuple[os.stat_result | None, int]:
    """Return what differs between two states of the database: the file's status and the size of its log, bytes."""
    try:
        log_size = file.with_name(file.name + "-wal").stat().st_size
    except OSError:
        log_size = 0
    try:
        return file.stat(), log_size
    except OSError:
        return None, log_size


def file_identity(file: str) -> tuple[int, int] | None:
    """Return what differs between a file and one that is put in its place; None where there is none."""
    try:
        status = os.stat(file)  # noqa: PTH116  (it is called in each transaction)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check_once(file: Path, db_id: str, status: os.stat_result | None, log_size: int) -> None:
    name = shown(file)
    if status is None:
        raise Corrupt(f"{name} is missing: {_REMEDY}")
    if not stat.S_ISREG(status.st_mode):
        raise Corrupt(f"{name} is no regular file: {_REMEDY}")
    if not status.st_size:
        raise Corrupt(f"{name} is empty, though it once held a database: {_REMEDY}")
    if status.st_size < _LEAST_PAGE:
        raise Corrupt(f"{name} has only {status.st_size} bytes and is no SQLite database: {_REMEDY}")
    found = _read_header(file, has_log=log_size > 0)
    if found is None:
        return
    header, owner = found
    if header["application_id"] != APPLICATION_ID:
        raise Corrupt(f"{name} is an SQLite database of another program: move it away and {_REMEDY}")
    if header["user_version"] > FILE_FORMAT:
        raise SchemaMismatch(f"{name} was made by a newer balsam-sqlite: upgrade with pip install -U balsam-sqlite")
    if owner is not None and owner != db_id:
        raise Conflict(
            f"{name} belongs to another DB directory (id {owner}, not {db_id}): move it back there, and restore this "
            f"one from a backup"
        )
    expected = header["page_count"] * header["page_size"]
    if status.st_size < expected and not log_size:
        raise Corrupt(f"{name} is cut short, {status.st_size} of {expected} bytes are left: {_REMEDY}")


def _read_header(file: Path, *, has_log: bool) -> tuple[dict[str, int], str | None] | None:
    """Return the header's numbers, after reading the list of tables, and the id of the DB directory, if there is one.

    The id is never changed, so it is that of the file, whatever a log holds that perhaps belongs to another file. With
    a log, which may hold what the file lacks, damage gives None: SQLite itself will find it.
    """
    import sqlite3

    name = shown(file)
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
            wanted = ("application_id", "user_version", "page_count", "page_size")
            header = {one: int(connection.execute(f"PRAGMA {one}").fetchone()[0]) for one in wanted}
            tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
            query = "SELECT value FROM meta WHERE name = 'db_id'"
            owner = connection.execute(query).fetchone() if ("meta",) in tables else None
            return header, owner and owner[0]
    except (sqlite3.Error, UnicodeDecodeError) as err:
        # The driver fails to decode a message of SQLite's that quotes damaged text.
        is_garbled = isinstance(err, UnicodeDecodeError)
        code = sqlite3.SQLITE_CORRUPT if is_garbled else getattr(err, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_CORRUPT and has_log:
            return None
        if code == sqlite3.SQLITE_NOTADB:
            raise Corrupt(f"{name} is no SQLite database: {_REMEDY}") from None
        if code == sqlite3.SQLITE_CORRUPT:
            raise Corrupt(f"{name} is damaged or cut short ({err}): {_REMEDY}") from None
        refuse_without_descriptors(err)
        # Not by opening it: closing it again would drop the locks of this process.
        if not os.access(file, os.R_OK, effective_ids=True):
            raise DBDirError(f"{name} can't be read: permission denied; {who_may(file)}") from None
        raise DBDirError(f"{name} can't be read ({err}): check its disk") from None


def _make_file(db: DBDir) -> None:
    """Make an empty database of ours."""
    import sqlite3

    file = database_file(db)
    if len(os.fsencode(file)) > LONGEST_PATH:
        raise DBDirError(
            f"{shown(file)} is longer than the {LONGEST_PATH} bytes that SQLite allows: use a shorter path"
        )
    try:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FILE_FORMAT}")
            # Last, so that nothing of the header is in a log.
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    except (OSError, sqlite3.Error) as err:
        raise DBDirError(f"{shown(file)} can't be made: {err}") from err
    if mode != "wal":
        raise DBDirError(f"{shown(db.path)}: SQLite can't keep a write-ahead log there; use a local disk")


def check_locks(db: DBDir) -> None:
    """Refuse a file system without working locks; whether locks reach other hosts can't be seen from here.

    SQLite itself would report such a database as locked by others.

    Raises:
        DBDirError: There are no locks.
    """
    import fcntl

    # A shared lock on a file that nobody else locks; while a DB is made there is none yet.
    probe = None if db.config_file.exists() else db.path / f".locks.{os.getpid()}.{os.urandom(4).hex()}"
    flags = os.O_RDONLY if probe is None else os.O_RDWR | os.O_CREAT | os.O_EXCL
    try:
        descriptor = os.open(probe or db.config_file, flags | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # the next step says why
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as err:
        # The path is not named: while it is made, a DB has another one.
        raise DBDirError(
            f"the file system of this DB, {filesystem_type(db.path)}, has no working file locks ({err.strerror}), "
            f"which SQLite needs: put the DB on another one, e.g. a local disk"
        ) from None
    finally:
        os.close(descriptor)
        if probe is not None:
            with contextlib.suppress(OSError):
                probe.unlink()
