"""How many jobs are left for a launcher, and for those beside it, and how long they will take at the present rate."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.model.calls import MOST_JOBS, CountJobs
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import ACTIVE

if TYPE_CHECKING:
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.retrying_client import RunCall
    from balsam_core.model.filters import Condition

COUNTED = 100_000  # jobs; counting more would take too long for the loop
LONGEST_LIST = 20_000  # jobs of a job file that are counted
EVERY = 5.0  # seconds between two counts at the least
SHARE = 50  # a count is repeated after this many times the time that it took
SAMPLES = 12  # counts that decide the rate


class Forecast:
    """Counts the jobs that are left, now and then.

    Attributes:
        due: When to count next, by the monotonic clock.
    """

    def __init__(self, run: RunCall, options: LauncherOptions) -> None:
        self.due = 0.0
        self._run = run
        self._conditions = _conditions(options)
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES)  # moment, jobs left
        self._ended = 0  # jobs that this launcher had ended at the last count

    def count(self, ended: int) -> None:
        """Count the jobs that are left; this launcher has ended so many.

        Raises:
            BalsamError: The call failed.
        """
        if not self._conditions:
            return
        start = monotonic()
        left = 0
        for where in self._conditions:
            left += self._run(CountJobs(where=where, limit=COUNTED))
        now = monotonic()
        if left >= COUNTED:
            self._samples.clear()  # their difference would say nothing
        self._samples.append((now, left))
        self._ended = ended
        self.due = now + max(EVERY, SHARE * (now - start))

    def left(self, ended: int) -> int | None:
        """Return how many jobs are left, when this launcher has ended so many; None where that isn't known.

        It is at least :data:`COUNTED` where there are more.
        """
        if not self._samples:
            return None
        counted = self._samples[-1][1]
        return counted if counted >= COUNTED else max(0, counted - (ended - self._ended))

    def seconds(self, ended: int, own_rate: float) -> float | None:
        """Return how long the rest will take; None where that can't be said.

        Args:
            ended: Jobs that this launcher has ended.
            own_rate: Jobs per second that it has ended so far.
        """
        left = self.left(ended)
        if left is None or left >= COUNTED:
            return None
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        rate = (first - last) / (last_at - first_at) if last_at > first_at else own_rate
        return left / rate if rate > 0 else None


def _conditions(options: LauncherOptions) -> list[Condition]:
    """Return conditions that together are met by the jobs that a launcher is to run and that have not ended."""
    unended = Compare("state", "in", sorted(ACTIVE))
    if options.only is not None:
        if len(options.only) > LONGEST_LIST:
            return []
        slices = [list(options.only[at : at + MOST_JOBS]) for at in range(0, len(options.only), MOST_JOBS)]
        return [AllOf([Compare("id", "in", ids), unended]) for ids in slices]
    return [AllOf([Compare("workflow", "eq", options.workflow), unended] if options.workflow else [unended])]
