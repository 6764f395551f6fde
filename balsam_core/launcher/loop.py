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

from balsam_core.dbdir import launcher_file
from balsam_core.dbdir.launcher_journal import Journal, OwnJournal
from balsam_core.errors import BalsamError, NoResources, TimedOut, Unavailable
from balsam_core.launcher import options as constants
from balsam_core.launcher import presence
from balsam_core.launcher.claim_queue import ClaimQueue
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.display import Display
from balsam_core.launcher.event_dispatcher import open_dispatcher
from balsam_core.launcher.job.claimed_job import LauncherContext
from balsam_core.launcher.job.commands import base_environment
from balsam_core.launcher.job_runner import JobRunner
from balsam_core.launcher.membership import Membership, log_closed
from balsam_core.launcher.options import LauncherResult
from balsam_core.launcher.placement import Node
from balsam_core.launcher.process_events import ShortageError
from balsam_core.launcher.progress import Progress
from balsam_core.launcher.reporter import Reporter
from balsam_core.launcher.retrying_client import OUTAGES, REFUSALS, RetryingClient
from balsam_core.model.calls import (
    GetKilledJobs,
    Prune,
    Resources,
)
from balsam_core.model.states import State
from balsam_core.system.files import reason
from balsam_core.system.processes import this_machine
from balsam_core.system.signals import StopRequests

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.client.database import Database
    from balsam_core.launcher.job.claimed_job import ClaimedJob
    from balsam_core.launcher.job_runner import RunningJob
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.model.calls import Unfit

logger = logging.getLogger(__name__)

_COUNTED_AS = {State.JOB_FINISHED: "finished", State.FAILED: "failed"}  # else "again"


class Launcher:
    """Runs jobs of a database on this machine until none is left."""

    def __init__(
        self,
        db: Database,
        options: LauncherOptions,
        progress: Progress | None = None,
        on_registered: Callable[[int], None] | None = None,
    ) -> None:
        self.counters = Counters()
        self._db = db
        self._options = options
        self._on_registered = on_registered or (lambda _launcher: None)
        self._client = RetryingClient(db, self.counters)
        self._display = Display(progress or Progress(), self._client.run, options)
        self._started_at = monotonic()
        self._time_limit_at = inf if options.time_limit is None else self._started_at + options.time_limit
        self._counts = dict.fromkeys(("finished", "failed", "killed", "again"), 0)
        self._unrecorded: dict[int, ClaimedJob] = {}  # done, but the database doesn't know yet
        self._changed_parents: list[int] = []
        self._unreleased: dict[int, ClaimedJob] = {}  # dropped, but the database may still name us as their holder
        self._claim_in_doubt = False  # a claim got no answer: the database may have given us jobs that we don't know of
        self._refusal: BalsamError | None = None  # why the database will not take our calls again
        self._end_reason = ""
        self._stop_requested_at = inf
        self._last_write_at = inf  # how long the last changes may be written
        self._signals_seen = 0
        self._over = False
        self._waits = False  # nothing was left to do at the last look
        self._gave_up = False
        self._ask_killed_at = self._promote_at = self._check_end_at = 0.0

    # ---- the run as a whole

    def run(self) -> LauncherResult:
        """Run until nothing is left, a signal comes, or time is over. For the main thread.

        Raises:
            BalsamError: The database refused us, or could not take the last changes. What ran was ended as at any end.
        """
        with StopRequests() as self._stop_requests, open_dispatcher(self._db) as self._dispatcher:
            self._register_launcher()
            runner = self._runner
            failed = False
            try:
                runner.processes.watch(self._stop_requests.descriptor, self._stop_requests.drain)
                self._start_guardian()
                while not self._over:
                    self.run_once(constants.LONGEST_POLL)
                return self._sign_off()
            except BaseException as err:
                traceback = None if isinstance(err, BalsamError) else err
                what = "launcher %s ends all its processes because of an error: %s"
                logger.log(logging.ERROR, what, self._launcher_id, err, exc_info=traceback)
                failed = True
                raise
            finally:
                self._display.close()
                if runner.processes.close(grace=constants.KILL_GRACE):
                    if failed and not self._client.outage:
                        self._membership.try_to_close()
                    if self._membership.is_closed:
                        Journal(self._db.directory, self._launcher_id).remove()
                launcher_file.remove(self._db.directory, self._launcher_id)
                logger.info("launcher %s ended; seconds by kind of work: %s", self._launcher_id, self.counters)

    def _register_launcher(self) -> None:
        self._membership = Membership(self._db, self._client, self._options.workflow)
        self._launcher_id = self._membership.launcher_id
        try:
            self._on_registered(self._launcher_id)
        except BaseException:
            self._membership.try_to_close()
            raise
        logger.info("launcher %s: %s", self._launcher_id, self._options)
        log_closed(self._membership.closed)
        presence.announce(self._db.directory, self._launcher_id, self._options, self._resources())
        context = LauncherContext(
            directory=self._db.directory,
            environment=base_environment(self._db.directory, self._launcher_id),
            counters=self.counters,
            mpi=self._options.mpi,
        )
        on_recorded = self._dispatcher.add if self._dispatcher else None
        self._reporter = Reporter(self._client.run, self._launcher_id, on_recorded, this_machine().node)
        options = self._options
        node = Node(options.cores, slots=options.slots, gpus=options.gpus, most_jobs=options.most_jobs)
        self._queue = ClaimQueue(self._client.run, self._launcher_id, options, context, self._resources, node)
        self._runner = JobRunner(
            node,
            self.counters,
            on_change=self._reporter.add,
            on_done=self._on_job_done,
            journal=OwnJournal(self._db.directory, self._launcher_id),
            environment=context.environment,
        )
        self._runner.processes.lease.extend(self._membership.safe_until())
        try:
            self._client.run(Prune())
        except (*OUTAGES, *REFUSALS) as err:
            logger.warning("pruning is left to other launchers: %s", err)

    def _start_guardian(self) -> None:
        """Start it before the first claim: without it nothing would prove this launcher's death."""
        try:
            self._runner.processes.start_guardian()
        except (OSError, ShortageError) as err:
            raise NoResources(f"the launcher's guardian can't be started: {reason(err)}") from err

    def _resources(self) -> Resources:
        options = self._options
        return Resources(
            ranks_per_node=options.slots if options.mpi else 1,
            gpus_per_node=len(options.gpus),
            minutes_left=None if self._time_limit_at == inf else max(0.0, self._time_limit_at - monotonic()) / 60,
        )

    def _sign_off(self) -> LauncherResult:
        self._show_progress(last=True)
        if self._refusal is not None:
            left = "all that its jobs did is recorded"
            if self._reporter.jobs:
                left = f"the last changes of {len(self._reporter.jobs)} jobs could not be written, so these run again"
            when = "now" if self._membership.try_to_close() else "when its lease is over"
            what = f"launcher {self._launcher_id} has ended: {left}; others may take its jobs {when}"
            raise type(self._refusal)(f"{self._refusal}; {what}") from self._refusal
        if self._runner.jobs:
            ids = ", ".join(map(str, sorted(self._runner.jobs)))
            raise TimedOut(
                f"launcher {self._launcher_id} has ended, but processes of these jobs can't be ended: {ids}; other "
                f"launchers get these jobs when the processes are gone"
            )
        if self._reporter.jobs:
            raise Unavailable(
                f"the last changes of {len(self._reporter.jobs)} jobs could not be written "
                f"({self._client.outage or 'time was over'}); they run again when this launcher's lease is over"
            )
        unfit: list[Unfit] = []
        try:
            if not self._end_reason:
                unfit = self._queue.unfit()
            self._membership.close()
        except OUTAGES:
            logger.warning("the launcher could not sign off; its lease ends by itself")
        return LauncherResult(
            **self._counts,
            seconds=monotonic() - self._started_at,
            unfit=unfit,
            resources=self._resources(),
            changed_parents=tuple(self._changed_parents),
            fault=bool(self._runner.fault),
            reason=self._end_reason,
            signal=self._stop_requests.number,
            held_by_others=self._membership.describe_holders(),
            gave_up=self._gave_up,
            spent=self.counters.seconds,
        )

    # ---- one turn

    def run_once(self, longest_wait: float) -> None:
        """Do what is due, then wait for an event, at most ``longest_wait`` seconds."""
        self._check_for_stop()
        self._start_claimed()
        if self._client.may_call:
            try:
                with suppress(*OUTAGES):  # the client remembers the outage, and nothing is lost
                    self._make_due_calls()
            except REFUSALS as err:
                self._end_refused(err)
        if self._end_reason:
            self._check_last_writes()
        self._show_progress()
        if not self._over:
            self._runner.collect(self._seconds_until_due(longest_wait))

    def _seconds_until_due(self, longest_wait: float) -> float:
        times = [monotonic() + longest_wait, self._display.due]
        overdue = (self._runner.held_until(), self._runner.stop_overdue())
        times += [time for time in overdue if time is not None]
        if not self._end_reason:
            times.append(self._time_limit_at)
        if self._runner.blocked:
            times.append(monotonic() + constants.FIRST_POLL)
        if not self._client.may_call:
            times.append(self._client.retry_at)
        elif not self._client.outage and self._refusal is None:
            if (due := self._reporter.due()) is not None:
                times.append(due)
            if self._runner.jobs and self._stop_requested_at == inf:
                times.append(self._ask_killed_at)
            if self._queue.dry and self._runner.free_slots > len(self._queue.jobs):
                times.append(self._queue.poll_at)
        return min(times) - monotonic()

    def _start_claimed(self) -> None:
        queued, runner = self._queue.jobs, self._runner
        self._queue.resume(self._reporter.jobs)
        if runner.blocked:
            runner.retry_blocked()
        while queued and runner.start(queued[0]):
            queued.popleft()
        if queued and queued[0].need.slots <= runner.free_slots:  # it waits for GPUs, or for others of its kind
            self._start_behind_first()

    def _start_behind_first(self) -> None:
        """Start claimed jobs behind one that waits for what only some jobs need; of these none may pass it."""
        for claimed in list(self._queue.jobs):
            if not claimed.need.is_special:
                if not self._runner.start(claimed):
                    return
                self._queue.jobs.remove(claimed)

    def _on_job_done(self, running: RunningJob) -> None:
        claimed = running.claimed
        if running.dropped:
            self._keep_until_released(claimed)
            return
        self._reporter.add(claimed)
        if claimed.changed_parents:
            self._changed_parents.append(claimed.id)
            claimed.changed_parents = False
        if claimed.paused and not self._end_reason:
            self._queue.paused[claimed.id] = claimed
            return
        claimed.released = claimed.released or claimed.paused
        self._unrecorded[claimed.id] = claimed
        if claimed.state is State.FAILED:
            logger.info("job %s (%.80s) failed: %s", claimed.id, claimed.job.name, claimed.message)

    # ---- the database

    def _make_due_calls(self) -> None:
        """Make the calls that are due; after one of :data:`OUTAGES` the others are for later."""
        if self._stop_requested_at < inf:
            if self._refusal is None or not self._runner.jobs:  # after a refusal once, when all is known
                self._write_changes()
            return
        now = monotonic()
        if now >= self._membership.renew_at:
            self._renew_lease()
        if self._claim_in_doubt:
            self._give_back_unknown()
        self._claim_jobs()
        due = self._reporter.due()
        now = monotonic()
        idle = self._runner.free_slots > 0 and not self._queue.jobs
        if due is not None and (due <= now or idle):
            if self._write_changes():
                self._queue.poll_soon()
                self._claim_jobs()
            self._start_claimed()
        if now >= self._membership.look_at and self._membership.end_dead():
            self._queue.poll_soon()
        if now >= self._ask_killed_at and (self._runner.jobs or self._queue.jobs or self._unreleased):
            self._ask_killed_at = now + constants.ASK_KILLED_EVERY
            self._end_killed(self._client.run(GetKilledJobs(launcher=self._launcher_id)))
        if not self._end_reason:
            if now >= self._promote_at:
                self._promote_at = now + self._queue.promote()
            self._display.count_if_due(self._counts)
            self._check_for_end()

    def _renew_lease(self) -> None:
        killed = self._membership.renew()
        self._runner.processes.lease.extend(self._membership.safe_until())
        self._end_killed(killed)

    def _claim_jobs(self) -> int:
        """Claim jobs where some are wanted, and start them; returns how many came."""
        may_claim = not self._end_reason and not self._reporter.in_doubt
        wanted = self._queue.wanted(self._runner.free_slots) if may_claim else 0
        if not wanted:
            return 0
        try:
            got = self._queue.claim(wanted)
        except OUTAGES:
            self._claim_in_doubt = True
            raise
        self._start_claimed()
        return got

    def _give_back_unknown(self) -> None:
        """Give back the jobs of a claim whose answer was lost."""
        known = {claimed.id for claimed in self._queue.jobs}
        known |= self._runner.jobs.keys() | self._reporter.jobs.keys() | self._unreleased.keys()
        self._queue.give_back_unknown(known)
        self._claim_in_doubt = False

    def _write_changes(self) -> bool:
        """Write what changed; returns whether jobs ended, which may have made others ready."""
        if not self._reporter.jobs:
            return False
        for claimed, why in self._reporter.flush():
            logger.warning("job %s: the database refused its changes: %s", claimed.id, why)
            running = self._runner.jobs.get(claimed.id)
            if running is None:
                self._unrecorded.pop(claimed.id, None)
                self._queue.paused.pop(claimed.id, None)
                self._keep_until_released(claimed)
            elif not running.dropped:
                self._runner.drop(running, grace=constants.KILL_GRACE)
        ended = bool(self._unrecorded)
        for claimed in self._unrecorded.values():
            self._counts[_COUNTED_AS.get(claimed.state, "again")] += 1
        self._unrecorded.clear()
        return ended

    def _keep_until_released(self, claimed: ClaimedJob) -> None:
        """Keep a dropped job until the database says whether we still hold it."""
        self._reporter.forget(claimed)
        self._unreleased[claimed.id] = claimed
        self._ask_killed_at = 0.0

    def _end_killed(self, ids: list[int]) -> None:
        """End jobs that the user killed; each is given back when its processes are gone."""
        for job_id in ids:
            running = self._runner.jobs.get(job_id)
            if running is not None:
                if not running.dropped:
                    self._runner.drop(running, grace=constants.KILL_GRACE)
                continue
            claimed = self._unreleased.pop(job_id, None) or self._queue.withdraw(job_id)
            if claimed is not None:
                logger.info("job %s (%.80s) was killed by the user", claimed.id, claimed.job.name)
                self._counts["killed"] += 1
                claimed.give_back()
                self._reporter.add(claimed)

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
        self._waits = not self._claim_jobs()
        more_may_come = self._queue.more_may_come() or self._membership.has_doubtful_holders()
        self._over = self._waits and not more_may_come
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
        elif self._end_reason:
            return
        elif monotonic() >= self._time_limit_at:
            self._gave_up = self._is_waiting() and bool(self._membership.holders())
            self._stop_jobs("the time limit was reached", self._time_limit_at, grace=constants.TERM_GRACE)
        elif self._runner.fault:
            self._end_early(self._runner.fault)  # running jobs may end well

    def _stop_jobs(self, reason: str, since: float, *, grace: float) -> None:
        """Start nothing more and ask all processes to end."""
        self._end_early(reason)
        self._stop_requested_at = min(self._stop_requested_at, since)
        self._client.timeout = constants.LAST_CALL_TIMEOUT
        self._client.retry_at = 0.0
        self._runner.stop(f"{self._end_reason} (launcher {self._launcher_id})", grace=grace)

    def _end_refused(self, err: BalsamError) -> None:
        """End as after a signal, because the database will refuse this call again; it may take the last changes."""
        if self._refusal is None:
            logger.error("the database refuses to go on: %s", err)
            self._refusal = err
            self._stop_jobs("the database refuses to go on", monotonic(), grace=constants.TERM_GRACE)
        elif not self._runner.jobs:
            self._last_write_at = 0.0  # nor does it take the last changes

    def _end_early(self, reason: str) -> None:
        """Start no more jobs: give back those that were not started."""
        if not self._end_reason:
            self._end_reason = reason
            logger.info("launcher %s ends: %s", self._launcher_id, reason)
        while self._queue.jobs:
            claimed = self._queue.jobs.pop()
            claimed.give_back()
            self._reporter.add(claimed)
        for claimed in self._queue.paused.values():
            claimed.released = True
        self._unrecorded |= self._queue.paused
        self._queue.paused.clear()

    def _check_last_writes(self) -> None:
        """See whether all changes are written, or there is no more time to write them."""
        now = monotonic()
        give_up_at = self._stop_requested_at + constants.STOP_TIMEOUT
        if self._runner.jobs:
            self._last_write_at = now + constants.LAST_WRITES_TIMEOUT
            self._over = now > give_up_at
        else:
            self._over = not self._reporter.jobs or now > min(self._last_write_at, give_up_at)

    # ---- progress

    def _show_progress(self, *, last: bool = False) -> None:
        if not last and monotonic() < self._display.due:
            return
        remark = self._end_reason
        if self._client.outage:
            remark = f"the database can't be reached, {len(self._reporter.jobs)} changes are kept"
        elif self._runner.blocked:
            remark = "this machine can't start more processes"
        elif self._is_waiting() and (holders := self._membership.describe_holders()):
            remark = remark or f"waiting for {holders}"
        elif not self._runner.jobs and not self._end_reason:
            remark = self._queue.waits_for
        running, queued = len(self._runner.jobs), len(self._queue.jobs)
        self._display.show(self._counts, running=running, queued=queued, remark=remark, last=last)
