"""The loop: starts what jobs need, collects what ended, and keeps the database up to date.

Everything happens in one thread. A turn waits in one place only, for processes, signals and the clock together. Calls
to the database are few (claims and changes go in batches) and bounded in time. While the database can't be reached,
changes are kept, claimed jobs are started and running jobs go on; all is written when it is back.
"""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.dbdir.launcher_journal import OwnJournal
from balsam_core.errors import BalsamError, NoResources
from balsam_core.launcher import options as constants
from balsam_core.launcher.claim_queue import ClaimQueue
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.display import Display
from balsam_core.launcher.ending import Ending
from balsam_core.launcher.event_dispatcher import open_dispatcher
from balsam_core.launcher.held_jobs import HeldJobs
from balsam_core.launcher.job.claimed_job import LauncherContext
from balsam_core.launcher.job.commands import base_environment
from balsam_core.launcher.job_runner import JobRunner
from balsam_core.launcher.membership import Membership, log_closed
from balsam_core.launcher.options import LauncherResult, make_offer
from balsam_core.launcher.placement import Node
from balsam_core.launcher.process_events import ShortageError
from balsam_core.launcher.progress import Progress
from balsam_core.launcher.reporter import Reporter
from balsam_core.launcher.retrying_client import OUTAGES, REFUSALS, RetryingClient
from balsam_core.launcher.sharing import LOOK_EVERY
from balsam_core.model.calls import Prune, Resources
from balsam_core.system.files import reason
from balsam_core.system.processes import this_machine
from balsam_core.system.signals import StopRequests

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.client.database import Database
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.model.calls import Unfit

logger = logging.getLogger(__name__)


class Launcher:
    """Runs jobs of a database on this machine until none is left."""

    def __init__(
        self,
        db: Database,
        options: LauncherOptions,
        progress: Progress | None = None,
        on_started: Callable[[int], None] | None = None,
    ) -> None:
        self.counters = Counters()
        self._db = db
        self._options = options
        self._on_started = on_started or (lambda _launcher: None)
        self._client = RetryingClient(db, self.counters)
        self._display = Display(progress or Progress(), self._client.run, options)
        self._started_at = monotonic()
        self._time_limit_at = inf if options.time_limit is None else self._started_at + options.time_limit
        self._ending = Ending()
        self._signals_seen = 0
        self._over = False
        self._waits = False  # nothing was left to do at the last look
        self._promote_at = self._check_end_at = 0.0

    # ---- the run as a whole

    def run(self) -> LauncherResult:
        """Run until nothing is left, a signal comes, or time is over. For the main thread.

        Raises:
            BalsamError: The database refused us, or could not take the last changes. What ran was ended as at any end.
        """
        with StopRequests() as self._stop_requests, open_dispatcher(self._db) as self._dispatcher:
            self._register_launcher()
            failed = True
            try:
                self._start()
                result = self._drain()
                failed = False
                return result
            finally:
                self._display.close()
                if self._runner.processes.close(grace=constants.KILL_GRACE):
                    if failed and not self._client.outage:
                        self._membership.try_to_close("ended because of an error")
                    self._membership.forget()
                self._node.close()
                logger.info("launcher %s ended; seconds by kind of work: %s", self._launcher_id, self.counters)

    def _register_launcher(self) -> None:
        options = self._options
        self._membership = Membership(self._db, self._client, options.workflow)
        self._launcher_id = self._membership.launcher_id
        context = LauncherContext(
            directory=self._db.directory,
            environment=base_environment(self._db.directory, self._launcher_id),
            counters=self.counters,
            mpi=options.mpi,
        )
        on_recorded = self._dispatcher.add if self._dispatcher else None
        self._reporter = Reporter(self._client.run, self._launcher_id, on_recorded, this_machine().node)
        self._node = node = Node.of(options, f"launcher {self._launcher_id} of {self._db.directory.path}")
        self._queue = ClaimQueue(self._client.run, self._launcher_id, options, context, self._resources, node)
        self._held = HeldJobs(self._client.run, self._launcher_id, self._queue, self._reporter, self._ending)
        self._held.runner = self._runner = JobRunner(
            node,
            self.counters,
            on_change=self._reporter.add,
            on_done=self._held.note_done,
            journal=OwnJournal(self._db.directory, self._launcher_id, make_offer(options, self._resources())),
            locks=node.descriptors,
            environment=context.environment,
        )
        self._runner.processes.lease.extend(self._membership.safe_until())

    def _start(self) -> None:
        """Start the guardian, before the first claim: without it nothing would prove this launcher's death."""
        processes = self._runner.processes
        processes.watch(self._stop_requests.descriptor, self._stop_requests.drain)
        try:
            processes.start_guardian()
        except (OSError, ShortageError) as err:
            raise NoResources(f"the launcher's guardian can't be started: {reason(err)}") from err
        self._on_started(self._launcher_id)

    def _drain(self) -> LauncherResult:
        """Run jobs to the end."""
        try:
            logger.info("launcher %s: %s", self._launcher_id, self._options)
            log_closed(self._membership.closed)
            try:
                self._client.run(Prune())
                self._membership.tidy()
            except (*OUTAGES, *REFUSALS, OSError) as err:
                logger.warning("pruning is left to other launchers: %s", err)
            while not self._over:
                self.run_once(constants.LONGEST_POLL)
            return self._sign_off()
        except BaseException as err:
            traceback = None if isinstance(err, BalsamError) else err
            what = "launcher %s ends all its processes because of an error: %s"
            logger.log(logging.ERROR, what, self._launcher_id, err, exc_info=traceback)
            raise

    def _resources(self) -> Resources:
        options = self._options
        return Resources(
            ranks_per_node=options.slots if options.mpi else 1,
            gpus_per_node=len(options.gpus),
            minutes_left=None if self._time_limit_at == inf else max(0.0, self._time_limit_at - monotonic()) / 60,
        )

    def _sign_off(self) -> LauncherResult:
        self._show_progress(last=True)
        self._ending.raise_for_what_is_left(
            self._launcher_id,
            running=self._runner.jobs,
            unwritten=len(self._reporter.jobs),
            outage=self._client.outage,
            close=self._membership.try_to_close,
        )
        unfit: list[Unfit] = []
        waiting = 0
        try:
            if not self._ending.reason:
                unfit, waiting = self._queue.unfit(), self._queue.count_waiting()
            self._membership.close()
        except OUTAGES:
            logger.warning("the launcher could not sign off; others will notice its end")
        return LauncherResult(
            **self._reporter.counts,
            seconds=monotonic() - self._started_at,
            unfit=unfit,
            waiting=waiting,
            resources=self._resources(),
            changed_parents=tuple(self._held.changed_parents),
            fault=bool(self._runner.fault),
            reason=self._ending.reason,
            signal=self._stop_requests.number,
            held_by_others=self._membership.describe_holders() if self._ending.reason else "",
            gave_up=self._ending.gave_up,
            spent=self.counters.seconds,
        )

    # ---- one turn

    def run_once(self, longest_wait: float) -> None:
        """Do what is due, then wait for an event, at most ``longest_wait`` seconds."""
        self._check_for_stop()
        self._runner.look_around(self._queue.jobs[0].need if self._queue.jobs else self._queue.next_need)
        self._start_claimed()
        if self._client.may_call:
            try:
                with suppress(*OUTAGES):  # the client remembers the outage, and nothing is lost
                    self._make_due_calls()
            except REFUSALS as err:
                self._end_refused(err)
        if self._ending.reason:
            self._over = self._ending.is_over(running=bool(self._runner.jobs), unwritten=bool(self._reporter.jobs))
        self._show_progress()
        if not self._over:
            self._runner.collect(self._seconds_until_due(longest_wait))

    def _seconds_until_due(self, longest_wait: float) -> float:
        times = [monotonic() + longest_wait, self._display.due]
        overdue = (self._runner.held_until(), self._runner.stop_overdue())
        times += [time for time in overdue if time is not None]
        if not self._ending.is_stop:
            times.append(self._time_limit_at)
        if self._runner.blocked:
            times.append(monotonic() + constants.FIRST_POLL)
        if self._node.waits or self._runner.is_crowded_out:
            times.append(monotonic() + LOOK_EVERY)
        if not self._client.may_call:
            times.append(self._client.retry_at)
        elif not self._client.outage and self._ending.refusal is None:
            if (due := self._reporter.due()) is not None:
                times.append(due)
            if self._runner.jobs and not self._ending.is_stop:
                times.append(self._held.ask_killed_at)
            if self._queue.dry and self._runner.free_slots > len(self._queue.jobs):
                times.append(self._queue.poll_at)
        return min(times) - monotonic()

    def _start_claimed(self) -> None:
        self._queue.resume(self._reporter.jobs)
        if self._runner.blocked:
            self._runner.retry_blocked()
        self._queue.start_on(self._runner)

    # ---- the database

    def _make_due_calls(self) -> None:
        """Make the calls that are due; after one of :data:`OUTAGES` the others are for later."""
        if self._ending.is_stop:
            if self._ending.refusal is None or not self._runner.jobs:  # after a refusal once, when all is known
                self._held.write_changes()
            return
        now = monotonic()
        if now >= self._membership.renew_at:
            self._renew_lease()
        self._held.give_back_unknown()
        self._claim_jobs()
        due = self._reporter.due()
        now = monotonic()
        idle = self._runner.free_slots > 0 and not self._queue.jobs
        if due is not None and (due <= now or idle):
            if self._held.write_changes():
                self._queue.poll_soon()
                self._claim_jobs()
            self._start_claimed()
        if now >= self._membership.look_at and self._membership.end_dead():
            self._queue.poll_soon()
        self._held.ask_killed()
        if not self._ending.reason:
            if now >= self._promote_at:
                self._promote_at = now + self._queue.promote()
            self._display.count_if_due(self._reporter.counts)
            self._check_for_end()

    def _renew_lease(self) -> None:
        killed = self._membership.renew()
        self._runner.processes.lease.extend(self._membership.safe_until())
        self._held.end_killed(killed)

    def _claim_jobs(self) -> int:
        """Claim jobs where some are wanted, and start them; returns how many came."""
        may_claim = not self._ending.reason and not self._reporter.in_doubt
        if may_claim and self._runner.is_crowded_out and not self._queue.jobs:
            self._queue.look()
            return 0
        wanted = self._queue.wanted(self._runner.free_slots) if may_claim else 0
        if not wanted:
            return 0
        try:
            got = self._queue.claim(wanted)
        except OUTAGES:
            self._held.claim_in_doubt = True
            raise
        self._start_claimed()
        return got

    # ---- the end

    def _check_for_end(self) -> None:
        """Find out whether anything is left to do, now or soon."""
        if self._runner.jobs or self._queue.jobs or self._reporter.jobs or not self._queue.dry:
            return
        if monotonic() < self._check_end_at:
            return
        self._queue.promote()
        self._membership.end_dead()
        self._queue.poll_at = 0.0
        self._waits = not self._claim_jobs() and self._queue.next_need is None
        self._over = self._waits and not self._queue.more_may_come()
        self._check_end_at = monotonic() + constants.LONGEST_POLL

    def _is_waiting(self) -> bool:
        """Say whether this launcher only waits for jobs that others hold."""
        return self._waits and not self._over and not self._runner.jobs and not self._queue.jobs

    def _check_for_stop(self) -> None:
        """See whether a signal came, time is over, or no job can be started any more."""
        requests = self._stop_requests
        if requests.count > self._signals_seen:
            self._signals_seen = requests.count
            name = signal.Signals(requests.number or signal.SIGINT).name
            self._stop_jobs(
                f"stopped by {name}", requests.at, grace=constants.TERM_GRACE if requests.count == 1 else 0.0
            )
        elif not self._ending.is_stop and monotonic() >= self._time_limit_at:
            kept_out = self._node.waits and not self._runner.jobs
            self._ending.gave_up = kept_out or (self._is_waiting() and bool(self._membership.holders()))
            self._stop_jobs("the time limit was reached", self._time_limit_at, grace=constants.TERM_GRACE)
        elif self._runner.fault and not self._ending.reason:
            self._end_early(self._runner.fault)  # running jobs may end well

    def _stop_jobs(self, reason: str, since: float, *, grace: float) -> None:
        """Start nothing more and ask all processes to end."""
        self._end_early(reason)
        self._ending.stop_at = min(self._ending.stop_at, since)
        self._client.timeout = constants.LAST_CALL_TIMEOUT
        self._client.retry_at = 0.0
        self._runner.stop(f"{self._ending.reason} (launcher {self._launcher_id})", grace=grace)

    def _end_refused(self, err: BalsamError) -> None:
        """End as after a signal, because the database will refuse this call again; it may take the last changes."""
        if self._ending.refusal is None:
            logger.error("the database refuses to go on: %s", err)
            self._ending.refusal = err
            self._stop_jobs("the database refuses to go on", monotonic(), grace=constants.TERM_GRACE)
        elif not self._runner.jobs:
            self._ending.write_no_more()

    def _end_early(self, reason: str) -> None:
        """Start no more jobs: give back those that were not started."""
        if not self._ending.reason:
            self._ending.reason = reason
            logger.info("launcher %s ends: %s", self._launcher_id, reason)
        self._held.give_back_waiting()

    # ---- progress

    def _show_progress(self, *, last: bool = False) -> None:
        if not last and monotonic() < self._display.due:
            return
        remark = self._ending.reason
        if self._client.outage:
            remark = f"the database can't be reached, {len(self._reporter.jobs)} changes are kept"
        elif self._runner.blocked:
            remark = "this machine can't start more processes"
        elif self._is_waiting() and (holders := self._membership.describe_holders()):
            remark = remark or f"waiting for {holders}"
        elif not self._runner.jobs and not self._ending.reason:
            remark = self._node.waits_for or self._queue.waits_for
        running, queued = len(self._runner.jobs), len(self._queue.jobs)
        self._display.show(self._reporter.counts, running=running, queued=queued, remark=remark, last=last)
