"""Files that this user may not use: whose they are, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError
from balsam_core.system.files import reason, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

REFUSALS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Numbers of the system's errors for what a user, or nobody, may do."""


def is_refusal(err: BaseException) -> bool:
    """Say whether the system has refused something to this user."""
    return isinstance(err, OSError) and err.errno in REFUSALS


def who_may(path: Path) -> str:
    """Return whose a path is, or the nearest folder above it that can be looked at, and what to do.

    It follows a clause of a message that names the path.
    """
    for one in (path, *path.parents):
        try:
            status = one.stat()
        except OSError:
            continue
        name = "it" if one == path else shown(one)
        if status.st_uid == os.geteuid():
            return f"{name} is yours: change its permissions, {stat.filemode(status.st_mode)}"
        return f"{name} belongs to {_user(status.st_uid)}, who can give access; or name a DB of your own"
    return "check its permissions"


def permission_error(err: BaseException, path: Path | None = None) -> DBDirError | None:
    """Return the error for what the system refuses to this user, or to all; None for any other error.

    Args:
        err: The system's.
        path: What it is about; None for the file that the error names.
    """
    if not isinstance(err, OSError) or not (is_refusal(err) or isinstance(err, IsADirectoryError)):
        return None
    if path is None:
        if not isinstance(err.filename, str) or not os.path.isabs(err.filename):  # noqa: PTH117  (a text of the system's)
            return None
        path = Path(err.filename)
    if isinstance(err, IsADirectoryError):
        return DBDirError(f"{shown(path)} can't be written: it is a directory; move it away")
    if err.errno == errno.EROFS:
        return DBDirError(f"{shown(path)} can't be used: it is on a read-only file system")
    return DBDirError(f"{shown(path)} can't be used: {reason(err)}; {who_may(path)}")


@contextlib.contextmanager
def told_as_db_dir_errors() -> Iterator[None]:
    """Turn what the system refuses to this user, inside the block, into a DBDirError: for files of a DB directory."""
    try:
        yield
    except OSError as err:
        raise permission_error(err) or err from None


def _user(uid: int) -> str:
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user with the number {uid}"
