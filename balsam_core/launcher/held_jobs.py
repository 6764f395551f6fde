"""The jobs that a launcher holds, from their claim until the database knows that it holds them no more."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.launcher.options import ASK_KILLED_EVERY, KILL_GRACE
from balsam_core.model.calls import GetKilledJobs
from balsam_core.model.states import State

if TYPE_CHECKING:
    from balsam_core.launcher.claim_queue import ClaimQueue
    from balsam_core.launcher.ending import Ending
    from balsam_core.launcher.job.claimed_job import ClaimedJob
    from balsam_core.launcher.job_runner import JobRunner, RunningJob
    from balsam_core.launcher.reporter import Reporter
    from balsam_core.launcher.retrying_client import RunCall

logger = logging.getLogger(__name__)


class HeldJobs:
    """Moves jobs between the queue, the runner and the reporter, as processes, users and the database demand.

    Attributes:
        runner: The running ones; set by the launcher.
        claim_in_doubt: Whether a claim got no answer: the database may have given us jobs that we don't know of.
        changed_parents: Ids of jobs that have links to files of their parents that changed while they ran.
        ask_killed_at: When to ask for jobs that the user killed, by the monotonic clock.
    """

    runner: JobRunner

    def __init__(self, run: RunCall, launcher_id: int, queue: ClaimQueue, reporter: Reporter, ending: Ending) -> None:
        self.claim_in_doubt = False
        self.changed_parents: list[int] = []
        self.ask_killed_at = 0.0
        self._run = run
        self._launcher_id = launcher_id
        self._queue = queue
        self._reporter = reporter
        self._ending = ending
        self._unreleased: dict[int, ClaimedJob] = {}  # dropped, but the database may still name us as their holder

    def note_done(self, running: RunningJob) -> None:
        """Take a job that doesn't run any more."""
        claimed = running.claimed
        if running.dropped:
            self._keep_until_released(claimed)
            return
        self._reporter.add(claimed)
        if claimed.changed_parents:
            self.changed_parents.append(claimed.id)
            claimed.changed_parents = False
        if claimed.paused and not self._ending.reason:
            self._queue.paused[claimed.id] = claimed
            return
        claimed.released = claimed.released or claimed.paused
        self._reporter.count_when_written(claimed)
        if claimed.state is State.FAILED:
            logger.info("job %s (%.80s) failed: %s", claimed.id, claimed.job.name, claimed.message)

    def write_changes(self) -> bool:
        """Write what changed; returns whether jobs ended, which may have made others ready.

        Raises:
            BalsamError: Not all could be written; the rest is kept.
        """
        if not self._reporter.jobs:
            return False
        for claimed, why in self._reporter.flush():
            logger.warning("job %s: the database refused its changes: %s", claimed.id, why)
            running = self.runner.jobs.get(claimed.id)
            if running is None:
                self._queue.paused.pop(claimed.id, None)
                self._keep_until_released(claimed)
            elif not running.dropped:
                self.runner.drop(running, grace=KILL_GRACE)
        return self._reporter.jobs_ended

    def _keep_until_released(self, claimed: ClaimedJob) -> None:
        """Keep a dropped job until the database says whether we still hold it."""
        self._reporter.forget(claimed)
        self._unreleased[claimed.id] = claimed
        self.ask_killed_at = 0.0

    def ask_killed(self) -> None:
        """Ask from time to time which jobs the user killed, and end them.

        Raises:
            BalsamError: The call failed.
        """
        now = monotonic()
        if now >= self.ask_killed_at and (self.runner.jobs or self._queue.jobs or self._unreleased):
            self.ask_killed_at = now + ASK_KILLED_EVERY
            self.end_killed(self._run(GetKilledJobs(launcher=self._launcher_id)))

    def end_killed(self, ids: list[int]) -> None:
        """End jobs that the user killed; each is given back when its processes are gone."""
        for job_id in ids:
            running = self.runner.jobs.get(job_id)
            if running is not None:
                if not running.dropped:
                    self.runner.drop(running, grace=KILL_GRACE)
                continue
            claimed = self._unreleased.pop(job_id, None) or self._queue.withdraw(job_id)
            if claimed is not None:
                logger.info("job %s (%.80s) was killed by the user", claimed.id, claimed.job.name)
                self._reporter.counts["killed"] += 1
                claimed.give_back()
                self._reporter.add(claimed)

    def give_back_unknown(self) -> None:
        """Give back the jobs of a claim whose answer was lost.

        Raises:
            BalsamError: The call failed.
        """
        if self.claim_in_doubt:
            known = {claimed.id for claimed in self._queue.jobs}
            known |= self.runner.jobs.keys() | self._reporter.jobs.keys() | self._unreleased.keys()
            self._queue.give_back_unknown(known)
            self.claim_in_doubt = False

    def give_back_waiting(self) -> None:
        """Give back the jobs that don't run: those that were not started, and those that pause."""
        while self._queue.jobs:
            claimed = self._queue.jobs.pop()
            claimed.give_back()
            self._reporter.add(claimed)
        for claimed in self._queue.paused.values():
            claimed.released = True
            self._reporter.count_when_written(claimed)
        self._queue.paused.clear()
