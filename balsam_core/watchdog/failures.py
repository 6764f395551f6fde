"""Why a server failed, and when starting it again makes no sense any more.

A watchdog must outlast whatever may pass: a full disk, a memory shortage, a taken port, a file system that is away. So
only a failure that says of itself that it is permanent counts soon; any other must repeat itself for a minute, in the
same words, and must not speak of such a shortage.
"""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.errors import BackendError, BalsamError, Conflict, DBDirError, SchemaMismatch, Unavailable

if TYPE_CHECKING:
    from balsam_core.watchdog.server_process import ServerProcess

PERMANENT_FAILURES = 3  # in a row that say that they are permanent, until the server is given up
PERMANENT_SECONDS = 3.0  # between the first and the last of them: a package that is being upgraded is back by then
REPEATED_FAILURES = 5  # in a row of any other kind, in the same words
REPEATED_SECONDS = 60.0  # between the first and the last of them
WORKS_AFTER = 10.0  # seconds of service, after which earlier failures don't count
LONGEST_REASON = 500  # characters

# What the write server's exit codes mean; another server's are not likely to be these, and to stay so.
_PERMANENT = {kind.exit_code: kind for kind in (Conflict, DBDirError, SchemaMismatch, BackendError)}
_PASSING = {0, Unavailable.exit_code}
_FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV}  # else somebody ended it
_SHORTAGES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EIO, errno.ESTALE),
    *(errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EROFS, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH),
)
_PASSING_WORDS = tuple(
    text.lower()
    for text in (
        *(os.strerror(number) for number in _SHORTAGES),
        *("disk full", "disk is full", "disk i/o error", "out of memory", "not enough memory", "insufficient memory"),
        *("shared memory", "already in use", "too many connections", "lock file", "unable to lock"),
        "unable to open database file",  # SQLite's, also for want of descriptors
    )
)


class Failure(NamedTuple):
    """Why a server failed.

    Attributes:
        reason: In words, on one line.
        kind: The error that it says it has; None for one that is not known to be permanent.
        passes: Whether it may pass by itself, so that it never counts.
    """

    reason: str
    kind: type[BalsamError] | None = None
    passes: bool = False

    @property
    def error_class(self) -> type[BalsamError]:
        """The class of the error that tells it."""
        return self.kind or Unavailable


def explain_error(error: Exception) -> Failure:
    """Return the failure to start or to ask a server."""
    reason = one_line(f"failed: {error}")
    kind = next((kind for kind in _PERMANENT.values() if isinstance(error, kind)), None)
    return Failure(reason, kind, passes=kind is None or _speaks_of_shortage(reason))


def explain_end(server: ServerProcess) -> Failure:
    """Return the failure of a server that has ended."""
    status = server.status or 0
    passes = -status not in _FAULTS if status < 0 else status in _PASSING
    line = "" if passes and status < 0 else server.main_line().removeprefix("Error: ")
    reason = one_line(f"{server.describe_end()} after {server.age:.1f} s" + (f": {line}" if line else ""))
    passes = passes or any(_speaks_of_shortage(said) for said in server.last_lines)
    return Failure(reason, _PERMANENT.get(status), passes)


def _speaks_of_shortage(text: str) -> bool:
    lower = text.lower()
    return any(words in lower for words in _PASSING_WORDS)


def one_line(text: str) -> str:
    """Return a text that may stand in a file and in messages."""
    return "".join(char if char.isprintable() else " " for char in text)[:LONGEST_REASON].strip()


class RepeatedFailures:
    """Failures in a row with the same reason, whatever numbers it holds, such as times and process ids."""

    def __init__(self) -> None:
        self.count = 0
        self._words = ""
        self._since = math.inf

    def forget(self) -> None:
        """Begin anew: the server works."""
        self.count = 0

    def add(self, failure: Failure) -> bool:
        """Count one; say whether to give the server up."""
        words = re.sub(r"\d+", "#", failure.reason)
        now = monotonic()
        if failure.passes:
            self.count = 0
            return False
        if not self.count or words != self._words:
            self.count, self._words, self._since = 0, words, now
        self.count += 1
        least, seconds = REPEATED_FAILURES, REPEATED_SECONDS
        if failure.kind is not None:
            least, seconds = PERMANENT_FAILURES, PERMANENT_SECONDS
        return self.count >= least and now - self._since >= seconds
