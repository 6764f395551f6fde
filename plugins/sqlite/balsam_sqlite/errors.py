"""What SQLite's error codes mean: https://sqlite.org/rescode.html.

Every command loads this module, so sqlite3 is imported only when there is an error.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, Corrupt, Unavailable

if TYPE_CHECKING:
    from balsam_core.plugin import BalsamError

_VERSION_TABLE = "schema_version"  # the core knows what it means where that is missing
_PRIMARY = 0xFF  # the low byte of an extended result code


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated: another process held a lock."""
    import sqlite3

    return _primary_code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_fatal(error: BaseException) -> bool:
    """Say whether it is unknown what the file now holds.

    After a failed write or fsync, a transaction that SQLite reports as failed may still reach the disk, and be found
    when the log is read again. A full disk is no such case: the record that commits the transaction was not written.
    Damage is none either: it is found while reading, and a server that ended would be ended again by the repeated call.
    """
    import sqlite3

    return _primary_code(error) in {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    }


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of SQLite's, None where its own text is best."""
    import sqlite3

    text = " ".join(str(error).split())
    match _primary_code(error):
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(f"the database file is damaged ({text}): restore it from a backup")
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"the disk is full ({text}): nothing was written; make room and repeat")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return Unavailable(
                f"the database file can't be written ({text}): check the directory's permissions, and whether "
                f"it is on a read-only file system"
            )
        case sqlite3.SQLITE_IOERR:
            return Unavailable(f"the disk reports an error ({text}): check it and repeat")
    # Not its extended codes, which mean that the same statement may succeed.
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR and _VERSION_TABLE not in text:
        return BackendError(
            f"the database refuses a statement of Balsam's ({text}): a table or a column is missing, or this SQLite "
            f"doesn't fit; repeating won't help"
        )
    return None


def refuse_without_descriptors(error: BaseException) -> None:
    """Raise the system's OSError where a file could not be opened for want of descriptors, which SQLite doesn't tell.

    A database and its log need three, so a few may be free.
    """
    import sqlite3

    if _primary_code(error) not in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}:
        return
    taken: list[int] = []
    try:
        for _ in range(3):
            taken.append(os.open("/", os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401  (those before an error)
    except OSError as err:
        if err.errno in {errno.EMFILE, errno.ENFILE}:
            err.filename = None
            raise
    finally:
        for descriptor in taken:
            os.close(descriptor)


def _primary_code(error: BaseException) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return code & _PRIMARY if isinstance(code, int) else None
