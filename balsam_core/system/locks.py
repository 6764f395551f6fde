"""A lock between programs that share a directory, for file systems that may have no working locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from balsam_core.system.files import give_to_owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POLL = 0.01  # seconds between two attempts
_TIMEOUT = 2.0  # seconds until the body runs without the lock


@contextlib.contextmanager
def best_effort_lock(path: Path) -> Iterator[None]:
    """Hold a lock while the body runs, if possible; without it the body runs as well.

    So the body must be correct without the lock: locks may be missing or not work, and a holder that hangs is not
    waited for.

    Args:
        path: The lock's file, made where it is missing and never removed; its directory exists.

    Raises:
        FileNotFoundError: The directory is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise
    except OSError:  # a full disk, a planted link
        yield
        return
    deadline = time.monotonic() + _TIMEOUT
    try:
        with contextlib.suppress(OSError):
            give_to_owner(descriptor, path.parent)
        while True:
            try:
                # Not flock(): many network file systems have only the POSIX kind.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as err:
                if err.errno in {errno.EAGAIN, errno.EACCES} and time.monotonic() < deadline:
                    time.sleep(_POLL)
                    continue
            break
        yield
    finally:
        os.close(descriptor)
