"""The one child that a watchdog watches: started by a plan, listened to, signalled, and never left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from balsam_core.files import reason
from balsam_core.identity import cpu_seconds, open_process, start_of
from balsam_core.watchdog import child

if TYPE_CHECKING:
    from balsam_core.dbdir import DBDir
    from balsam_core.plugin_types import ServerPlan

__all__ = ["ServerProcess"]

logger = logging.getLogger(__name__)

_KEPT_LINES = 20  # of the output, for error messages
_LONGEST_LINE = 2000  # characters; the rest of a line is not logged
_CHUNK = 64 * 1024  # bytes read from the output in one turn


class ServerProcess:
    """A running server.

    It has a session of its own, so that Ctrl-C reaches the watchdog alone, and it gets its stop signal from the system
    when the watchdog dies. Its output goes to the log.

    Args:
        db: The DB directory.
        plan: How to run it.

    Attributes:
        pid: Its process id, which stays its own until :meth:`ended` said so.
        start: When it started; see :func:`balsam_core.identity.start_of`.
        output: Descriptor that becomes readable when it wrote something; None once it is closed.
        ending: Descriptor that becomes readable when it ended; None where the system has none.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self, db: DBDir, plan: ServerPlan) -> None:
        watchdog = os.getpid()
        user = plan.user or "" if os.geteuid() == 0 else ""
        first = plan.stop[0][0] if plan.stop else signal.SIGTERM
        self._process = subprocess.Popen(
            # -I -S: nothing of the user's Python settings, and nothing that takes time.
            [sys.executable, "-I", "-S", child.__file__, str(watchdog), str(int(first)), user, *map(str, plan.argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=plan.cwd or db.path,
            env={**os.environ, **plan.env},
            start_new_session=True,
            umask=0o077,
        )
        assert self._process.stdout is not None  # noqa: S101  (for mypy)
        self._pipe = self._process.stdout
        self.pid = self._process.pid
        self.output: int | None = self._pipe.fileno()
        os.set_blocking(self.output, False)
        self.ending = open_process(self.pid)
        self.start = start_of(self.pid) or 0.0
        self._begun = time.monotonic()
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._rest = b""
        self._status: int | None = None

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._begun

    @property
    def last_lines(self) -> list[str]:
        """The last lines of its output."""
        return list(self._lines)

    def ended(self) -> bool:
        """Say whether it has ended. The first time, what is left of its process group is killed."""
        if self._status is None and self._exited():
            if self._process.returncode is None:
                # Before it is reaped: until then nobody else can have this number.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            self._status = self._process.wait()
            self.read()
            self._take_line(self._rest)
            self._close()
        return self._status is not None

    def describe_end(self) -> str:
        """Return how it ended, in words."""
        status = self._status or 0
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
            return f"was ended by signal {-status}"
        return f"ended with exit code {status}"

    def signal(self, number: int) -> None:
        """Send a signal to it; nothing happens once it has ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)  # our child and not reaped: the number is its own
                os.kill(self.pid, signal.SIGCONT)  # a stopped process takes no other signal

    def kill(self) -> None:
        """Kill it and its process group."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)

    def cpu_seconds(self) -> float:
        """Return the CPU time that it and its descendants have used."""
        return cpu_seconds(self.pid)

    def read(self) -> None:
        """Log what it has written."""
        if self.output is None:
            return
        try:
            data = os.read(self.output, _CHUNK)
        except BlockingIOError:
            return
        except OSError as err:
            logger.debug("the output of the server can't be read: %s", reason(err))
            data = b""
        if not data:
            self._close_output()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take_line(line)
        if len(self._rest) > _LONGEST_LINE:
            self._take_line(self._rest)
            self._rest = b""

    def _exited(self) -> bool:
        """Say whether it has ended, and leave its zombie where the system has a call for that."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _take_line(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").rstrip()
        if text:
            self._lines.append(text[:_LONGEST_LINE])
            logger.info("server pid=%d: %s", self.pid, text[:_LONGEST_LINE])

    def _close_output(self) -> None:
        self.output = None
        self._pipe.close()

    def _close(self) -> None:
        self._close_output()
        if self.ending is not None:
            os.close(self.ending)
            self.ending = None
