"""How a launcher ends: why, how long its last changes may take, and what it must say of what it could not do."""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.errors import BalsamError, TimedOut, Unavailable
from balsam_core.launcher.options import LAST_WRITES_TIMEOUT, STOP_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Ending:
    """The end of a launcher, from the moment when it starts no more jobs.

    Attributes:
        reason: Why it ends though something may be left to do; empty while it doesn't.
        stop_at: When its jobs were asked to stop, by the monotonic clock; infinite while they were not.
        refusal: Why the database will not take its calls again; None while it does.
        gave_up: Whether it had nothing to do but to wait for jobs of others, and time was over.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.stop_at = inf
        self.refusal: BalsamError | None = None
        self.gave_up = False
        self._write_until = inf

    @property
    def is_stop(self) -> bool:
        """Whether its jobs were asked to stop."""
        return self.stop_at < inf

    def write_no_more(self) -> None:
        """Note that the database does not take the last changes either."""
        self._write_until = 0.0

    def is_over(self, *, running: bool, unwritten: bool) -> bool:
        """Say whether all changes are written, or there is no more time to write them.

        Args:
            running: Whether jobs still run.
            unwritten: Whether some of the changes are not written.
        """
        now = monotonic()
        give_up_at = self.stop_at + STOP_TIMEOUT
        if running:
            self._write_until = now + LAST_WRITES_TIMEOUT
            return now > give_up_at
        return not unwritten or now > min(self._write_until, give_up_at)

    def raise_for_what_is_left(
        self,
        launcher: int,
        *,
        running: Iterable[int],
        unwritten: int,
        outage: str,
        close: Callable[[], bool],
    ) -> None:
        """Raise the error that says what the launcher could not do; return where there is nothing of that kind.

        Args:
            launcher: Its id.
            running: Ids of the jobs whose processes can't be ended.
            unwritten: How many jobs have changes that are not written.
            outage: Why the database can't be reached; empty where it can.
            close: Gives its jobs to others, and returns whether the database took that.

        Raises:
            BalsamError: Of the class of the refusal, where the database refused.
            TimedOut: Processes can't be ended.
            Unavailable: Changes could not be written.
        """
        takers = "others take its jobs over within seconds on this machine, elsewhere when its lease is over"
        ids = ", ".join(map(str, sorted(running)))
        if self.refusal is not None:
            left = "all that its jobs did is recorded"
            if unwritten:
                left = f"the last changes of {unwritten} jobs could not be written, so these may run again"
            when = f"processes of these jobs can't be ended: {ids}" if ids else takers
            if not ids and close():
                when = "others may take its jobs now"
            what = f"launcher {launcher} has ended: {left}; {when}"
            raise type(self.refusal)(f"{self.refusal}; {what}") from self.refusal
        if ids:
            raise TimedOut(
                f"launcher {launcher} has ended, but processes of these jobs can't be ended: {ids}; other launchers "
                f"get these jobs when the processes are gone"
            )
        if unwritten:
            raise Unavailable(
                f"the last changes of {unwritten} jobs could not be written ({outage or 'time was over'}); {takers}, "
                f"and runs that had ended are not repeated"
            )
