"""The launcher's way to the database: calls that don't hold up the loop for long, and pauses while it is away."""

from __future__ import annotations

import logging
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, TypeVar

from balsam_core.errors import OutcomeUnknown, Unavailable
from balsam_core.launcher.options import CALL_TIMEOUT, FIRST_BACK_OFF, LONGEST_BACK_OFF

if TYPE_CHECKING:
    from balsam_core.client.database import Database
    from balsam_core.launcher.counters import Counters
    from balsam_core.model.calls import Call

__all__ = ["OUTAGES", "RetryingClient"]

logger = logging.getLogger(__name__)

R = TypeVar("R")

OUTAGES = (Unavailable, OutcomeUnknown)
"""Errors that pass: the call is repeated later, and running jobs go on."""


class RetryingClient:
    """Runs calls and remembers whether the database can be reached.

    Attributes:
        trouble: Why it can't be reached; empty while it can.
        retry_at: When to try again, by the monotonic clock.
        timeout: Seconds that a call may take.
    """

    def __init__(self, db: Database, counters: Counters) -> None:
        self.trouble = ""
        self.retry_at = 0.0
        self.timeout = CALL_TIMEOUT
        self._db = db
        self._counters = counters
        self._pause = FIRST_BACK_OFF

    def run(self, call: Call[R], /) -> R:
        """Run a call.

        Raises:
            BalsamError: What the database says; after one of :data:`OUTAGES`, wait until :attr:`retry_at`.
        """
        begin = perf_counter()
        try:
            answer = self._db.run(call, timeout=self.timeout)
        except OUTAGES as err:
            self._lost(err)
            raise
        finally:
            self._counters.add(type(call).__name__, perf_counter() - begin)
        if self.trouble:
            logger.info("the database answers again")
            self.trouble = ""
            self._pause = FIRST_BACK_OFF
        return answer

    def _lost(self, err: Exception) -> None:
        if not self.trouble:
            logger.warning("the database can't be reached; running jobs go on, changes are kept: %s", err)
        self.trouble = str(err)
        self.retry_at = monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_BACK_OFF)

    @property
    def up(self) -> bool:
        """Whether a call is worth trying now."""
        return not self.trouble or monotonic() >= self.retry_at
