"""Claimed jobs that wait for a free slot.

Short jobs are claimed by the hundred, so that the loop never waits for the database. Long jobs are claimed one by one
as slots become free, so that no job waits in this launcher while another launcher is idle.
"""

from __future__ import annotations

from collections import deque
from time import localtime, monotonic, strftime, time
from typing import TYPE_CHECKING

from msgspec.structs import replace

from balsam_core.launcher.job.claimed_job import ClaimedJob, LauncherContext
from balsam_core.launcher.options import FIRST_POLL, LARGEST_CLAIM, LONGEST_POLL, PROMOTE_EVERY, QUEUE_SECONDS
from balsam_core.launcher.placement import Need
from balsam_core.model.calls import (
    MOST_JOBS,
    ClaimJobs,
    CountHeldByOthers,
    CountJobs,
    GetDelay,
    GetRows,
    GetUnfit,
    HasClaimable,
    PromoteDelayed,
    PromoteStagedInsert,
    Update,
    UpdateJobs,
)
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from balsam_core.launcher.job_runner import JobRunner
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.placement import Node
    from balsam_core.launcher.retrying_client import RunCall
    from balsam_core.model.calls import Resources, Unfit

_PLAIN = Need()


class ClaimQueue:
    """The claimed jobs of a launcher, and the claiming of more.

    Attributes:
        jobs: Claimed jobs in the order of starting.
        paused: Started jobs that go on when what happened to them is on record, by id. They take no slot meanwhile.
        dry: Whether the last claim gave fewer jobs than wanted.
        poll_at: When to claim again while it is dry, by the monotonic clock.
        next_need: What a job needs that isn't claimed since other launchers have all processors, or all GPUs, as far as
            that is known; None for no such job.
        waits_for: What an idle launcher waits for, for people; empty where that isn't known.
    """

    def __init__(
        self,
        run: RunCall,
        launcher_id: int,
        options: LauncherOptions,
        context: LauncherContext,
        resources: Callable[[], Resources],
        node: Node,
    ) -> None:
        self.jobs: deque[ClaimedJob] = deque()
        self.paused: dict[int, ClaimedJob] = {}
        self.dry = False
        self.poll_at = 0.0
        self.next_need: Need | None = None
        self.waits_for = ""
        self._next_retry_at = 0.0
        self._run = run
        self._launcher_id = launcher_id
        self._options = options
        self._context = context
        self._resources = resources
        self._node = node
        self._poll_interval = FIRST_POLL
        self._ahead = 0  # jobs to hold beyond the free slots
        self._rate = 0.0  # jobs per second that the loop takes
        self._last_claim = 0  # jobs
        self._last_claim_at = 0.0
        self._all_plain = True  # whether all jobs so far take one slot and nothing else: then their number says all
        only = options.only
        self._slices = [list(only[at : at + MOST_JOBS]) for at in range(0, len(only), MOST_JOBS)] if only else [None]

    def wanted(self, free_slots: int) -> int:
        """Return for how many slots to claim jobs now, 0 for none."""
        if self._ahead and monotonic() - self._last_claim_at > 4 * QUEUE_SECONDS:
            self._ahead, self._rate = 0, 0.0  # the jobs have become long
        queued = len(self.jobs) if self._all_plain else self._count_slots()
        if self._options.most_jobs is not None:
            free_slots = min(free_slots, self._node.free_jobs)
        if queued >= free_slots and (queued > self._ahead // 4 or not self._ahead):
            return 0
        has_gpus_now = self.next_need is not None and self._node.free_gpus
        if self.dry and monotonic() < self.poll_at and not has_gpus_now:
            return 0
        return min(free_slots + self._ahead - queued, LARGEST_CLAIM)

    def _count_slots(self) -> int:
        """Return for how many slots the jobs wait that wait for nothing else."""
        return sum(claimed.need.slots for claimed in self.jobs if not claimed.need.is_special)

    def claim(self, count: int) -> int:
        """Claim jobs for up to ``count`` slots into the queue; returns for how many some came.

        Raises:
            BalsamError: The call failed; nothing changed here.
        """
        got = 0
        self.next_need = None
        free_gpus = self._node.free_gpus
        resources, packed = self._claimable(free_gpus)
        for ids in self._slices:
            claim = self._run(
                ClaimJobs(
                    launcher=self._launcher_id,
                    limit=count - got,
                    resources=resources,
                    workflow=self._options.workflow,
                    only=ids,
                    free_gpus=free_gpus,
                    packed=packed,
                )
            )
            for job in claim.jobs:
                parents = [claim.parents[parent] for parent in job.parents if parent in claim.parents]
                claimed = ClaimedJob(job, claim.apps.get(job.app), parents, self._context)
                self.jobs.append(claimed)
                self._all_plain = self._all_plain and claimed.need == _PLAIN
                got += min(claimed.need.slots, self._node.size)
            if got >= count:
                break
        self._adapt_claim_size(got, complete=got >= count)
        if got < count and not free_gpus and self._node.own_free_gpus and self._has_claimable():
            self.next_need = Need(gpus_per_rank=1.0)
        return got

    def look(self) -> None:
        """Find out whether there are jobs to claim, while other launchers have all processors.

        Raises:
            BalsamError: The call failed; nothing changed here.
        """
        if monotonic() >= self.poll_at:
            self.next_need = Need() if self._has_claimable() else None
            self.dry = self.next_need is None
            self._poll_later()

    def _has_claimable(self) -> bool:
        """Say whether there are jobs that could be claimed if other launchers used nothing of the node."""
        resources, packed = self._claimable(self._node.own_free_gpus)
        launcher, workflow = self._launcher_id, self._options.workflow
        return any(
            self._run(HasClaimable(launcher=launcher, resources=resources, workflow=workflow, only=ids, packed=packed))
            for ids in self._slices
        )

    def _claimable(self, free_gpus: float) -> tuple[Resources, bool]:
        """Return what jobs that may be claimed must fit, and whether they may have a packing count."""
        resources = self._resources()
        if not free_gpus or any(claimed.need.gpus_per_rank for claimed in self.jobs):
            resources = replace(resources, gpus_per_node=0)  # none is free, or one waits for them already
        return resources, self._node.has_room_for_packed and not any(claimed.need.packing for claimed in self.jobs)

    def _poll_later(self) -> None:
        self.poll_at = monotonic() + self._poll_interval
        self._poll_interval = min(self._poll_interval * 1.5, LONGEST_POLL)

    def _adapt_claim_size(self, got: int, *, complete: bool) -> None:
        """Fit the size of claims to how fast the jobs of the last one were used up."""
        now = monotonic()
        self.dry = not complete
        if complete:
            slots = self._options.slots
            self._rate = (self._rate + self._last_claim / max(now - self._last_claim_at, 0.001)) / 2
            wanted = int(self._rate * QUEUE_SECONDS)
            # Fewer than the slots: a job lasts longer than QUEUE_SECONDS, and none should wait behind it.
            self._ahead = 0 if wanted < slots else min(wanted, 2 * max(self._ahead, slots), LARGEST_CLAIM)
        if got:
            self._last_claim = got
            self._last_claim_at = now
            self._poll_interval = FIRST_POLL
        self._poll_later()

    def resume(self, unrecorded: Container[int]) -> None:
        """Let the paused jobs go on that are not among the ``unrecorded``, before those that have not begun."""
        for job_id in [job_id for job_id in self.paused if job_id not in unrecorded]:
            claimed = self.paused.pop(job_id)
            claimed.paused = False
            self.jobs.appendleft(claimed)

    def start_on(self, runner: JobRunner) -> None:
        """Start the jobs in order, as far as there are places for them.

        Behind one that waits for what only some jobs need, others that need nothing of the kind are started.
        """
        while self.jobs and runner.start(self.jobs[0]):
            self.jobs.popleft()
        if self.jobs and self.jobs[0].need.slots <= runner.free_slots:  # it waits for GPUs, or for others of its kind
            for claimed in [claimed for claimed in self.jobs if not claimed.need.is_special]:
                if not runner.start(claimed):
                    return
                self.jobs.remove(claimed)

    def withdraw(self, job_id: int) -> ClaimedJob | None:
        """Take a job out of the queue, None where it isn't there."""
        for claimed in self.jobs:
            if claimed.id == job_id:
                self.jobs.remove(claimed)
                return claimed
        return None

    def give_back_unknown(self, known: set[int]) -> None:
        """Give back all jobs that the database says we hold, except the known ones."""
        held = Compare("launcher_id", "eq", self._launcher_id)
        rows = self._run(GetRows(fields=["id", "attempt"], where=held))
        updates = [Update(job=job, attempt=attempt, release=True) for job, attempt in rows if job not in known]
        if updates:
            self._run(UpdateJobs(launcher=self._launcher_id, updates=updates))

    def poll_soon(self) -> None:
        """Claim at the next opportunity: jobs may have become ready."""
        self.poll_at = 0.0
        self._poll_interval = FIRST_POLL

    def promote(self) -> float:
        """Make jobs claimable that a client published but did not promote before it ended, and retries that are due.

        Returns:
            Seconds until there may be more.
        """
        while self._run(PromoteStagedInsert()):
            pass
        delay = self._run(GetDelay())
        if delay == 0.0:
            while self._run(PromoteDelayed()):
                pass
            self.poll_soon()
        return PROMOTE_EVERY if delay is None else min(max(delay, FIRST_POLL), PROMOTE_EVERY)

    def unfit(self) -> list[Unfit]:
        """Return which of the jobs for us need more than we have."""
        resources, workflow = self._resources(), self._options.workflow
        calls = [GetUnfit(resources=resources, workflow=workflow, only=ids) for ids in self._slices]
        return [unfit for call in calls for unfit in self._run(call)]

    def count_waiting(self) -> int:
        """Return how many of the jobs for us wait for parents."""
        workflow = self._options.workflow
        parts = [Compare("state", "eq", State.AWAITING_PARENTS)]
        parts += [Compare("workflow", "eq", workflow)] if workflow else []
        wheres = [AllOf([*parts, *([] if ids is None else [Compare("id", "in", ids)])]) for ids in self._slices]
        return sum(self._run(CountJobs(where=where)) for where in wheres)

    def more_may_come(self) -> bool:
        """Say whether jobs for us may become claimable: delayed retries, or others hold them or their parents."""
        delays = [self._run(GetDelay(workflow=self._options.workflow, only=ids)) for ids in self._slices]
        if waits := [delay for delay in delays if delay is not None]:
            at = time() + min(waits)
            if abs(at - self._next_retry_at) > 1:  # else the same one, seen a moment later
                self._next_retry_at = at
            self.waits_for = f"waiting for a retry at {strftime('%H:%M:%S', localtime(self._next_retry_at))}"
            return True
        self.waits_for = ""
        me, workflow = self._launcher_id, self._options.workflow
        return any(self._run(CountHeldByOthers(launcher=me, workflow=workflow, only=ids)) for ids in self._slices)
