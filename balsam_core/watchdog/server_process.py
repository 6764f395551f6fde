"""A server from its start to its end: one child process, run as a backend's ``ServerPlan`` says.

The supervisor of a published server and the private server of ``balsam init`` both use it. They differ in how they
wait: the supervisor has a lease to keep, and reacts to requests to stop.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import subprocess
import time
from collections import deque
from typing import TYPE_CHECKING

from balsam_core.dbdir.address import Address
from balsam_core.errors import Unavailable
from balsam_core.system import tether
from balsam_core.system.files import reason, shown
from balsam_core.system.processes import children_of, descendants, open_process, send_signal, start_of, this_machine
from balsam_core.system.server_accounts import environment_without

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.plugin_types import ServerPlan

logger = logging.getLogger(__name__)

READY_POLL = 0.02  # seconds between two probes of a server that is starting
STOP_POLL = 0.5  # seconds between two checks of a server that is stopping, where the system reports its end
KILL_TIMEOUT = 10.0  # seconds that a killed server may take to end; longer means that the kernel holds it
_KEPT_LINES = 20  # of the output, for error messages
_MAX_LINE = 2000  # characters; the rest of a line is not logged
_CHUNK = 64 * 1024  # bytes read from the output at a time
_ORPHANS_TIMEOUT = 5.0  # seconds that the killed children of a dead server may take to end
_ERROR_WORDS = ("ERROR", "FATAL", "PANIC")  # mark the line of the output that tells most; the first of them

_adopting = False  # whether all children of this process are servers, or descendants of dead ones


def adopt_orphans() -> None:
    """Let the children of a server that dies become this process's, which then kills them.

    A suspended process of a dead server, or one that has not noticed its death, would keep the next server out, because
    they share memory. Only for a process that has no children but the server.
    """
    global _adopting  # noqa: PLW0603
    _adopting = tether.become_subreaper()


class ServerProcess:
    """A running server.

    It has a session of its own, so that Ctrl-C reaches the watchdog alone, and the system sends it a signal when this
    process dies. Its output goes to the log.

    Attributes:
        plan: How it is run.
        pid: Its process id, which no other process can get until :meth:`ended` has returned True.
        start: When it started; see :func:`balsam_core.system.processes.start_of`.
        output: Descriptor that becomes readable when it wrote something; None once it is closed.
        ending: Descriptor that becomes readable when it ended; None where the system has none.
        last_lines: The last lines of its output.
        status: How it ended: the exit code, or a negative signal; None until :meth:`ended` has returned True.

    Raises:
        OSError: It can't be started.
    """

    def __init__(self, db: DBDir, plan: ServerPlan) -> None:
        self.plan = plan
        self._db = db
        self._process = subprocess.Popen(
            tether.command_line(
                list(map(str, plan.argv)),
                death_signal=plan.orphaned or (plan.stop[0][0] if plan.stop else signal.SIGTERM),
                user=plan.user or "" if os.geteuid() == 0 else "",
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=plan.cwd or db.path,
            env={**environment_without(plan.unset), **plan.env},
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
        self.last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._started_at = time.monotonic()
        self._incomplete_line = b""
        self.status: int | None = None

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_at

    def check_ready(self, seconds: float) -> bool:
        """Say whether clients can connect; the answer may take so long.

        Raises:
            Unavailable: The time is over in which it must become ready.
            BalsamError: The backend fails to ask it.
        """
        if self.plan.is_ready(seconds) and not self.ended():
            return True
        if self.age > self.plan.ready_timeout:
            raise Unavailable(self.describe_failure(f"was not ready after {self.plan.ready_timeout:g} s"))
        return False

    def address(self) -> Address:
        """Return where it is and which process it is; the directory and the generation are left to the publisher."""
        return Address(
            state="running",
            host=self.plan.host,
            port=self.plan.port,
            protocol=self.plan.protocol,
            **this_machine()._asdict(),
            pid=self.pid,
            start_time=self.start,
            details=dict(self.plan.details),
        )

    # ---- waiting

    def wait(self, seconds: float, *descriptors: int) -> None:
        """Wait for its output, its end or one of other descriptors, at most so long; log the output."""
        poll = select.poll()
        for descriptor in (self.output, self.ending, *descriptors):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        if any(descriptor == self.output for descriptor, _ in poll.poll(seconds * 1000)):
            self.read_output()

    def read_output(self) -> None:
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
        *lines, self._incomplete_line = (self._incomplete_line + data).split(b"\n")
        for line in lines:
            self._log_line(line)
        if len(self._incomplete_line) > _MAX_LINE:
            self._log_line(self._incomplete_line)
            self._incomplete_line = b""

    def _log_line(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace").rstrip()
        if text:
            self.last_lines.append(text[:_MAX_LINE])
            logger.info("server pid=%d: %s", self.pid, text[:_MAX_LINE])

    def _close_output(self) -> None:
        self.output = None
        self._pipe.close()

    # ---- the end

    def ended(self) -> bool:
        """Say whether it has ended. The first time, what is left of its process group is killed."""
        if self.status is None and self._has_exited():
            if self._process.returncode is None:
                # Before it is reaped: until then no other process can have this id.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            self.status = self._process.wait()
            if _adopting:
                _kill_children()
            self.read_output()
            self._log_line(self._incomplete_line)
            self._close_output()
            if self.ending is not None:
                os.close(self.ending)
                self.ending = None
        return self.status is not None

    def _has_exited(self) -> bool:
        """Say whether it has exited, and leave the zombie where the system can."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def describe_end(self) -> str:
        """Return how it ended, in words."""
        status = self.status or 0
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"was ended by {signal.Signals(-status).name}"
            return f"was ended by signal {-status}"
        return f"ended with exit code {status}"

    def describe_failure(self, why: str) -> str:
        """Return an error message: the DB, why it failed, and the line of the output that tells most."""
        line = self.main_line()
        return f"the server of {shown(self._db.path)} {why}" + (f": {line}" if line else "")

    def main_line(self) -> str:
        """Return the line of the output that tells most, empty for none."""
        lines = list(self.last_lines)
        error_lines = [line for line in lines if any(word in line for word in _ERROR_WORDS)] or lines[-1:]
        return error_lines[0] if error_lines else ""

    def stop(
        self,
        wait: Callable[[float], None] | None = None,
        *,
        max_seconds: float = math.inf,
        is_urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Stop it by the signals of its plan, then by SIGKILL, and wait until it has ended.

        Args:
            wait: What waits for an event, at most so many seconds; None for :meth:`wait`.
            max_seconds: Longest wait after a signal, where the plan allows more.
            is_urgent: Asked again and again; once it is true, no signal but SIGKILL is waited for.
        """
        wait = wait or self.wait
        for number, seconds in self.plan.stop:
            if self.ended() or is_urgent():
                break
            self.signal(number)
            self._wait_for_end(min(seconds, max_seconds), wait, is_urgent)
        while not self.ended():
            logger.warning("server pid=%d: killed, since it did not stop", self.pid)
            self.kill()
            self._wait_for_end(KILL_TIMEOUT, wait, lambda: False)

    def _wait_for_end(self, seconds: float, wait: Callable[[float], None], is_urgent: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        interval = READY_POLL if self.ending is None else STOP_POLL
        while not self.ended() and not is_urgent() and (left := deadline - time.monotonic()) > 0:
            wait(min(left, interval))

    def signal(self, number: int) -> None:
        """Send a signal to it; nothing happens once it has ended."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)  # our child and not reaped: no other process can have this id
                os.kill(self.pid, signal.SIGCONT)  # a suspended process takes no other signal
                for pid, start in descendants(self.pid):  # it would wait for suspended ones
                    send_signal(pid, start, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, its process group and its children."""
        if self.status is None:
            children = descendants(self.pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
            for pid, start in children:
                send_signal(pid, start, signal.SIGKILL)


def _kill_children() -> None:
    """Kill and reap all children of this process, after its server was reaped."""
    deadline = time.monotonic() + _ORPHANS_TIMEOUT
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            for pid in children_of(os.getpid()):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)  # our child and not reaped: no other process can have this id
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(_ORPHANS_TIMEOUT / 1000)
