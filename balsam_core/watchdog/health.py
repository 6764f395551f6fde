"""Whether a running server still answers; when it has stalled."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.watchdog.server_process import ServerProcess

__all__ = ["Health"]

logger = logging.getLogger(__name__)

PERIOD = 5.0  # seconds between two questions to a server that answers
PROBE = 2.0  # seconds that an answer may take
AGAIN = 0.5  # the same for a server that doesn't answer, which shall be found out soon
PROBE_AGAIN = 1.0
SILENCE = 10.0  # seconds without an answer, after which a server that also does nothing has stalled
IDLE = 5.0  # seconds without any CPU time that mean doing nothing
HOPELESS = 300.0  # seconds without an answer, after which even a busy server has stalled


class Health:
    """Asks a server now and then.

    A server that is busy with one long task, or that recovers, may be silent for long and must not be killed for it;
    one that is frozen or deadlocked uses no CPU time either.

    Args:
        server: The server, ready.
        is_ready: Asks it, within some seconds.

    Attributes:
        due: When to ask next, by the monotonic clock.
    """

    def __init__(self, server: ServerProcess, is_ready: Callable[[float], bool]) -> None:
        self._server = server
        self._is_ready = is_ready
        self._answered = monotonic()
        self._worked = self._answered
        self._cpu = server.cpu_seconds()
        self._warned = False
        self.due = self._answered + PERIOD

    def check(self) -> str | None:
        """Ask if it is time; return in words why the server has stalled, None when it hasn't."""
        if monotonic() < self.due:
            return None
        try:
            answered = self._is_ready(PROBE_AGAIN if self._warned else PROBE)
        except Exception as err:  # noqa: BLE001  (a plugin's)
            logger.warning("server pid=%d can't be asked whether it works: %s", self._server.pid, err)
            answered = False
        now = monotonic()
        cpu = self._server.cpu_seconds()
        if cpu != self._cpu:
            self._cpu, self._worked = cpu, now
        if answered:
            if self._warned:
                logger.info("server pid=%d answers again", self._server.pid)
            self._answered, self._warned, self.due = now, False, now + PERIOD
            return None
        self.due = now + AGAIN
        silent, idle = now - self._answered, now - self._worked
        if not self._warned:
            logger.warning("server pid=%d has not answered for %.0f s", self._server.pid, silent)
            self._warned = True
        if (silent >= SILENCE and idle >= IDLE) or silent >= HOPELESS:
            return f"has stalled: no answer for {silent:.0f} s, no work for {idle:.0f} s"
        return None
