"""Why a job failed, as text for its history."""

from __future__ import annotations

import errno
import os
import signal
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_LAST_LINE = 300  # characters of a program's error output that go into the history


class DiskFullError(Exception):
    """The file system of the DB directory is full: no job's fault, and no job can run."""


def is_disk_full(err: BaseException | None) -> bool:
    """Whether an error means that the file system or the user's quota is full."""
    return isinstance(err, OSError) and err.errno in {errno.ENOSPC, errno.EDQUOT}


def describe_exit(code: int) -> str:
    """Return an exit code, negative for a signal, as text."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def describe_error(err: Exception) -> str:
    """Return an error as printable text, with the file that it is about."""
    if isinstance(err, DBDirError):
        return err.message
    text = (isinstance(err, OSError) and err.strerror) or str(err) or type(err).__name__
    if isinstance(err, OSError) and isinstance(err.filename, (str, bytes)):
        text = f"{os.fsdecode(err.filename)!r}: {text}"
    return _make_printable(text.encode(errors="backslashreplace").decode())


def last_line(path: Path) -> str:
    """Return the last line of a file that isn't blank, shortened; empty where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, 4096, max(0, size - 4096))
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    lines = tail.decode(errors="replace").rstrip().splitlines()
    return _make_printable(lines[-1].strip())[:LONGEST_LAST_LINE] if lines else ""


def _make_printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
