"""Jobs for the loop: claimed in batches, ahead of need.

Short jobs are claimed by the hundred, so that the loop never waits for the database; jobs that take long are claimed
one by one as slots come free, so that none lies with a launcher while another one is idle.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.launcher.job.task import LauncherContext, Task
from balsam_core.launcher.options import FIRST_IDLE, LARGEST_CLAIM, LONGEST_IDLE, QUEUE_SECONDS
from balsam_core.model.calls import (
    MOST_JOBS,
    ClaimJobs,
    CountHeldByOthers,
    CountJobs,
    GetRows,
    PromoteStagedInsert,
    Update,
    UpdateJobs,
)
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.reporter import RunCall
    from balsam_core.model.calls import Claim, Resources

__all__ = ["ClaimQueue"]


class ClaimQueue:
    """Where the loop takes its jobs from.

    Attributes:
        queue: Claimed jobs in the order of starting.
        dry: Whether the last claim gave fewer jobs than wanted.
        ask_at: When to claim again while it is dry, by the monotonic clock.
    """

    def __init__(
        self,
        run: RunCall,
        launcher: int,
        options: LauncherOptions,
        context: LauncherContext,
        resources: Callable[[], Resources],
    ) -> None:
        self.queue: deque[Task] = deque()
        self.dry = False
        self.ask_at = 0.0
        self._run = run
        self._launcher = launcher
        self._options = options
        self._around = context
        self._resources = resources
        self._idle = FIRST_IDLE
        self._ahead = 0  # jobs to hold beyond the free slots
        self._pace = 0.0  # jobs per second that the loop takes
        self._claimed = 0  # jobs of the last claim
        self._claimed_at = 0.0
        only = options.only
        self._slices = [list(only[at : at + MOST_JOBS]) for at in range(0, len(only), MOST_JOBS)] if only else [None]

    def wanted(self, free: int) -> int:
        """Return how many jobs to claim now, 0 for none.

        Args:
            free: Slots without a job.
        """
        if self._ahead and monotonic() - self._claimed_at > 4 * QUEUE_SECONDS:
            self._ahead, self._pace = 0, 0.0  # the jobs have become long
        ahead = self._ahead
        queued = len(self.queue)
        if queued >= free and (queued > ahead // 4 or not ahead):
            return 0
        if self.dry and monotonic() < self.ask_at:
            return 0
        return min(free + ahead - queued, LARGEST_CLAIM)

    def claim(self, count: int) -> int:
        """Claim up to ``count`` jobs into the queue; returns how many came.

        Raises:
            BalsamError: The database can't be asked; nothing changed here.
        """
        got = 0
        resources = self._resources()
        for some in self._slices:
            call = ClaimJobs(
                launcher=self._launcher,
                limit=count - got,
                resources=resources,
                workflow=self._options.workflow,
                only=some,
            )
            got += self._take(self._run(call))
            if got >= count:
                break
        self._adapt(got, complete=got >= count)
        return got

    def _take(self, claim: Claim) -> int:
        for job in claim.jobs:
            parents = [claim.parents[number] for number in job.parents if number in claim.parents]
            self.queue.append(Task(job, claim.apps.get(job.app), parents, self._around))
        return len(claim.jobs)

    def _adapt(self, got: int, *, complete: bool) -> None:
        """Fit the size of claims to how fast the jobs of the last one were used up."""
        now = monotonic()
        self.dry = not complete
        if complete:
            slots = self._options.slots
            self._pace = (self._pace + self._claimed / max(now - self._claimed_at, 0.001)) / 2
            wanted = int(self._pace * QUEUE_SECONDS)
            # Fewer than the slots: a job lasts longer than the queue should, and none is to wait behind it.
            self._ahead = 0 if wanted < slots else min(wanted, 2 * max(self._ahead, slots), LARGEST_CLAIM)
        if got:
            self._claimed = got
            self._claimed_at = now
            self._idle = FIRST_IDLE
        self.ask_at = now + self._idle
        self._idle = min(self._idle * 1.5, LONGEST_IDLE)

    def withdraw(self, number: int) -> Task | None:
        """Take a job out of the queue, None where it isn't there."""
        for task in self.queue:
            if task.id == number:
                self.queue.remove(task)
                return task
        return None

    def give_back_unknown(self, known: set[int]) -> None:
        """Give back jobs that the database says we hold, but for the known ones."""
        held = Compare("launcher_id", "eq", self._launcher)
        rows = self._run(GetRows(fields=["id", "attempt"], where=held))
        updates = [Update(job=job, attempt=attempt, release=True) for job, attempt in rows if job not in known]
        if updates:
            self._run(UpdateJobs(launcher=self._launcher, updates=updates))

    def nudge(self) -> None:
        """Claim at the next occasion: jobs may have become ready."""
        self.ask_at = 0.0
        self._idle = FIRST_IDLE

    def promote(self) -> None:
        """Make jobs claimable whose adding was cut short after they were published."""
        while self._run(PromoteStagedInsert()):
            pass

    def may_come(self) -> bool:
        """Whether jobs for us may become claimable though nothing is left for us now: others hold their parents."""
        if self._options.only is not None and not self._some_wait():
            return False
        return self._run(CountHeldByOthers(launcher=self._launcher, workflow=self._options.workflow)) > 0

    def _some_wait(self) -> bool:
        waits = Compare("state", "in", [State.CREATED, State.AWAITING_PARENTS])
        return any(self._run(CountJobs(where=AllOf([Compare("id", "in", some), waits]))) for some in self._slices)
