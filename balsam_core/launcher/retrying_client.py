"""The launcher's database calls: each bounded in time, with growing pauses while the database can't be reached.

A call that has much to do, such as the end of a job with a million children, may need longer than others. It gets twice
the time when it is repeated, as long as the database answers other calls meanwhile.
"""

from __future__ import annotations

import logging
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from balsam_core.errors import BackendError, DBDirError, OutcomeUnknown, SchemaMismatch, Unavailable
from balsam_core.launcher.options import CALL_TIMEOUT, FIRST_BACK_OFF, LONGEST_BACK_OFF, LONGEST_CALL

if TYPE_CHECKING:
    from balsam_core.client.database import Database
    from balsam_core.launcher.counters import Counters
    from balsam_core.model.calls import Call

logger = logging.getLogger(__name__)

R = TypeVar("R")

OUTAGES = (Unavailable, OutcomeUnknown)
"""Errors that pass: the call is repeated later, and running jobs go on."""

REFUSALS = (BackendError, DBDirError, SchemaMismatch)
"""Errors that no repetition mends: the launcher ends."""


class RunCall(Protocol):
    """Runs a call on the database; raises :class:`~balsam_core.errors.BalsamError`."""

    def __call__(self, call: Call[R], /) -> R:
        """Return the answer."""


class RetryingClient:
    """Runs calls and remembers whether the database can be reached.

    Attributes:
        outage: Why it can't be reached; empty while it can.
        retry_at: When to try again, by the monotonic clock.
        timeout: Seconds that a call may take at the most, however much it has to do.
    """

    def __init__(self, db: Database, counters: Counters) -> None:
        self.outage = ""
        self.retry_at = 0.0
        self.timeout = LONGEST_CALL
        self._db = db
        self._timeouts: dict[type[Call[Any]], float] = {}  # of calls that took longer than they might
        self._has_answered = True  # since a call took longer than it might
        self._counters = counters
        self._back_off = FIRST_BACK_OFF

    def run(self, call: Call[R], /) -> R:
        """Run a call.

        Raises:
            BalsamError: The database's answer; after one of :data:`OUTAGES`, wait until :attr:`retry_at`.
        """
        start = perf_counter()
        timeout = self._timeouts.get(type(call), CALL_TIMEOUT)
        try:
            answer = self._db.run(call, timeout=min(timeout, self.timeout))
        except OUTAGES as err:
            if self._has_answered and perf_counter() - start >= timeout:
                self._timeouts[type(call)] = 2 * timeout
                self._has_answered = False
            if not self.outage:
                logger.warning("the database can't be reached; running jobs go on, changes are kept: %s", err)
            self.outage = str(err)
            self.retry_at = monotonic() + self._back_off
            self._back_off = min(self._back_off * 2, LONGEST_BACK_OFF)
            raise
        finally:
            self._counters.add(type(call).__name__, perf_counter() - start)
        self._has_answered = True
        self._timeouts.pop(type(call), None)
        if self.outage:
            logger.info("the database answers again")
            self.outage = ""
            self._back_off = FIRST_BACK_OFF
        return answer

    @property
    def may_call(self) -> bool:
        """Whether the database answers, or it is time to try again."""
        return not self.outage or monotonic() >= self.retry_at
