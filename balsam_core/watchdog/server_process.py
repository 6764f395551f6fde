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

from balsam_core.system import tether
from balsam_core.system.files import reason
from balsam_core.system.processes import children_of, cpu_seconds, descendants, open_process, send_signal, start_of

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.plugin_types import ServerPlan

__all__ = ["ServerProcess", "adopt_orphans"]

logger = logging.getLogger(__name__)

_KEPT_LINES = 20  # of the output, for error messages
_LONGEST_LINE = 2000  # characters; the rest of a line is not logged
_CHUNK = 64 * 1024  # bytes read from the output in one turn
_ORPHANS = 5.0  # seconds that what a dead server has left may take to go, once it is killed

_adopting = False  # whether all children of this process are servers, or what dead ones have left behind


def adopt_orphans() -> None:
    """Let the children of a server that dies become this process's, which ends them then.

    A frozen process of a dead server, or one that has not noticed, would keep the next one out: they share memory. Only
    for a process that has no children but the server.
    """
    global _adopting  # noqa: PLW0603
    _adopting = tether.become_subreaper()


class ServerProcess:
    """A running server.

    It has a session of its own, so that Ctrl-C reaches the watchdog alone, and it gets its stop signal from the system
    when the watchdog dies. Its output goes to the log.

    Args:
        db: The DB directory.
        plan: How to run it.

    Attributes:
        pid: Its process id, which stays its own until :meth:`ended` said so.
        start: When it started; see :func:`balsam_core.system.processes.start_of`.
        output: Descriptor that becomes readable when it wrote something; None once it is closed.
        ending: Descriptor that becomes readable when it ended; None where the system has none.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self, db: DBDir, plan: ServerPlan) -> None:
        watchdog = os.getpid()
        user = plan.user or "" if os.geteuid() == 0 else ""
        last = plan.orphaned or (plan.stop[0][0] if plan.stop else signal.SIGTERM)
        self._process = subprocess.Popen(
            # -I -S: nothing of the user's Python settings, and nothing that takes time.
            [sys.executable, "-I", "-S", tether.__file__, str(watchdog), str(int(last)), user, *map(str, plan.argv)],
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
            if _adopting:
                _end_orphans()
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
                for pid, start in descendants(self.pid):  # for which it would wait
                    send_signal(pid, start, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, its process group and its children."""
        if self._status is None:
            children = descendants(self.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
            for pid, start in children:
                send_signal(pid, start, signal.SIGKILL)

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


def _end_orphans() -> None:
    """Kill and reap all children of this process, after its server was reaped."""
    deadline = time.monotonic() + _ORPHANS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            for pid in children_of(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)  # our child and not reaped: the number is its own
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(_ORPHANS / 1000)
