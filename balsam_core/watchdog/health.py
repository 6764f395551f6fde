"""Whether a running server still answers, and when it counts as stalled."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.errors import BalsamError
from balsam_core.system.processes import cpu_seconds

if TYPE_CHECKING:
    from balsam_core.watchdog.server_process import ServerProcess

logger = logging.getLogger(__name__)

PERIOD = 5.0  # seconds between two probes of a server that answers
PROBE_TIMEOUT = 2.0  # seconds that an answer may take
SILENT_PERIOD = 0.5  # the same for a server that doesn't answer, so that the end of its silence is noticed soon
SILENT_PROBE_TIMEOUT = 1.0
MAX_SILENCE = 10.0  # seconds without an answer, after which a server that is also idle has stalled
MAX_IDLE = 5.0  # seconds without any CPU time, after which a server counts as idle
MAX_BUSY_SILENCE = 300.0  # seconds without an answer, after which even a busy server has stalled


class Health:
    """Probes a server, once it is ready, from time to time.

    A server that is busy with one long task, or that recovers, may be silent for long and must not be killed for it.
    One that is suspended or deadlocked uses no CPU time either.

    Attributes:
        due: When the next probe is due, by the monotonic clock.
    """

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._last_answer = monotonic()
        self._last_work = self._last_answer
        self._cpu = cpu_seconds(server.pid)
        self._is_silent = False
        self.due = self._last_answer + PERIOD

    def check(self) -> str | None:
        """Probe the server; return in words why it has stalled, None when it hasn't."""
        pid = self._server.pid
        try:
            answered = self._server.plan.is_ready(SILENT_PROBE_TIMEOUT if self._is_silent else PROBE_TIMEOUT)
        except BalsamError as err:
            logger.warning("server pid=%d can't be asked whether it works: %s", pid, err)
            answered = False
        now = monotonic()
        cpu = cpu_seconds(pid)
        if cpu != self._cpu:
            self._cpu, self._last_work = cpu, now
        if answered:
            if self._is_silent:
                logger.info("server pid=%d answers again", pid)
            self._last_answer, self._is_silent, self.due = now, False, now + PERIOD
            return None
        self.due = now + SILENT_PERIOD
        silent, idle = now - self._last_answer, now - self._last_work
        if not self._is_silent:
            logger.warning("server pid=%d has not answered for %.0f s", pid, silent)
            self._is_silent = True
        if (silent >= MAX_SILENCE and idle >= MAX_IDLE) or silent >= MAX_BUSY_SILENCE:
            return f"has stalled: no answer for {silent:.0f} s, no work for {idle:.0f} s"
        return None
