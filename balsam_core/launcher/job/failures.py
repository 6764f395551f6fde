"""Why a job failed, as text for its history."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path

from balsam_core.errors import DBDirError

MOST_LINES = 3  # of a program's output that go into the history
LONGEST_WORDS = 300  # characters of them
TAIL = 4096  # bytes at the end of an output that are looked at


class DiskFullError(Exception):
    """The DB directory's file system is full or can't be written any more: no job's fault, and no job can run."""


_DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})


def is_disk_full(err: BaseException | None) -> bool:
    """Whether an error means that a file system is full, over quota, read-only or broken."""
    return isinstance(err, OSError) and err.errno in _DISK_FAULTS


def is_data_unusable(err: BaseException | None) -> bool:
    """Whether an error means that no directory can be made in ``data/``, by whatever job."""
    return is_disk_full(err) or (isinstance(err, OSError) and err.errno in {errno.EACCES, errno.EPERM})


def is_about(err: Exception, directory: Path) -> bool:
    """Whether an error of the system names a file in a directory."""
    names = (getattr(err, "filename", None), getattr(err, "filename2", None))
    return any(isinstance(name, (str, os.PathLike)) and Path(name).is_relative_to(directory) for name in names)


def is_no_space_left(directory: Path) -> bool:
    """Whether nothing more can be written to the file system of a directory."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    # Some file systems don't know their size, or have no limit of files.
    return (found.f_blocks > 0 and not found.f_bavail) or (found.f_files > 0 and not found.f_favail)


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


def last_words(*outputs: Path) -> str:
    """Return the last lines of what a program has said, as one line: of the first output that says anything.

    What an MPI launcher adds about an abort hides what the program said itself, so it comes only where that is nothing.
    """
    said = [_sorted_lines(_last_lines(path)) for path in outputs]
    for kind in range(3):
        for lines in said:
            if lines[kind]:
                return " | ".join(lines[kind][-MOST_LINES:])[-LONGEST_WORDS:]
    return ""


def _sorted_lines(lines: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the lines of the program itself, those with which an MPI launcher says which rank, and its others."""
    own: list[str] = []
    ranks: list[str] = []
    others: list[str] = []
    block: list[str] = []
    for line in [*lines, _RULE_LINE]:
        if not _RULE.fullmatch(line):
            (others if _MPI_LINE.match(line) else block).append(line)
        elif any(_MPI_BANNER.search(one) for one in block):
            found = [one for one in block if _MPI_RANK.search(one)]
            ranks += found
            others += [] if found else block[:1]
            block = []
        else:
            own += block
            block = []
    return own, ranks, others


_RULE_LINE = "-" * 10
_RULE = re.compile(r"[-=]{10,}")
_MPI_BANNER = re.compile(
    r"MPI_ABORT was invoked|BAD TERMINATION|^(Primary job|\S*(mpirun|mpiexec|prterun) (detected|noticed))"
)
_MPI_RANK = re.compile(r"\brank \d|errorcode|exit code:|exit status|process name:|exited on signal", re.IGNORECASE)
_MPI_LINE = re.compile(
    r"\[[^]]+:\d+\] (\d+ more process|Set MCA parameter)|(srun|slurmstepd): error: |application called MPI_Abort"
    r"|YOUR APPLICATION TERMINATED WITH|NOTE: invoking MPI_ABORT"
)


def _last_lines(path: Path) -> list[str]:
    """Return the lines at the end of a file that aren't blank."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, TAIL, max(0, size - TAIL))
        finally:
            os.close(descriptor)
    except OSError:
        return []
    lines = [_make_printable(line).strip() for line in tail.decode(errors="replace").splitlines()]
    return [line for line in lines if line]


def _make_printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
