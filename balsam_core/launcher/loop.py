"""The loop: starts what jobs need, collects what ended, and keeps the database informed.

Everything happens in one thread. A turn waits in one place only, for processes, signals and the clock together; calls
to the database are few (claims and changes go in batches) and bounded in time. The database may go away at any time:
then changes are kept, claimed jobs are started, running ones run on, and all is written when it is back.
"""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.errors import BalsamError, Unavailable
from balsam_core.launcher import options as constants
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.crew import JobRunner
from balsam_core.launcher.events import telling
from balsam_core.launcher.feed import ClaimQueue
from balsam_core.launcher.job.task import LauncherContext
from balsam_core.launcher.job.words import base_environment
from balsam_core.launcher.link import OUTAGES, RetryingClient
from balsam_core.launcher.progress import NoProgress, Snapshot
from balsam_core.launcher.reporter import Reporter
from balsam_core.model.calls import (
    CloseLauncher,
    CountWaiting,
    GetKilledJobs,
    Prune,
    RegisterLauncher,
    RenewLease,
    Resources,
)
from balsam_core.model.states import State
from balsam_core.system.processes import this_process
from balsam_core.system.signals import StopRequests

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.client.database import Database
    from balsam_core.launcher.crew import DoneJob
    from balsam_core.launcher.job.task import Task
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.progress import Progress

__all__ = ["Launcher", "LauncherResult"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LauncherResult:
    """What a launcher did.

    Attributes:
        finished: Jobs that finished.
        failed: Jobs that failed.
        killed: Jobs that the user killed while they were ours.
        again: Jobs given back, to be run again after an error or because the launcher stopped.
        seconds: How long it took.
        unfit: Waiting jobs that need more than this launcher has; counted up to a limit.
        reason: Why it ended though something was left; empty where nothing was.
        signal: The signal that asked it to stop; None where none did.
        spent: Seconds by kind of work.
    """

    finished: int = 0
    failed: int = 0
    killed: int = 0
    again: int = 0
    seconds: float = 0.0
    unfit: int = 0
    reason: str = ""
    signal: int | None = None
    spent: Mapping[str, float] = field(default_factory=dict)


class Launcher:
    """Runs jobs of a database on this machine until none is left.

    Args:
        db: The database.
        options: What to run.
        progress: Shows how it stands.
    """

    def __init__(self, db: Database, options: LauncherOptions, progress: Progress | None = None) -> None:
        self.counters = Counters()
        self._db = db
        self._options = options
        self._progress: Progress = progress or NoProgress()
        self._link = RetryingClient(db, self.counters)
        self._began = monotonic()
        self._end_at = None if options.time_limit is None else self._began + options.time_limit
        self._counts = dict.fromkeys(("finished", "failed", "killed", "again"), 0)
        self._held: dict[int, Task] = {}  # done with, but the database may still name us their holder
        self._ended: dict[int, Task] = {}  # done with, but the database doesn't know yet
        self._orphans = False  # whether a claim without an answer may have given us jobs that we don't know of
        self._reason = ""
        self._stop_at = inf  # when it was asked to stop
        self._last_at = inf  # until when the last changes may be written
        self._stops_seen = 0
        self._over = False
        self._renew_at = self._began + constants.RENEW_EVERY
        self._killed_at = self._promote_at = self._show_at = self._end_look_at = 0.0

    # ---- the run as a whole

    def run(self) -> LauncherResult:
        """Run until nothing is left, a signal comes, or time is over. For the main thread.

        Raises:
            BalsamError: The database refused us, or could not take the last changes.
        """
        with StopRequests() as self._stops, telling(self._db) as self._teller:
            self._register()
            crew = self._crew
            crew.processes.watch(self._stops.descriptor, self._stops.drain)
            failed = False
            try:
                while not self._over:
                    self.run_once(constants.LONGEST_IDLE)
                return self._goodbye()
            except BaseException:
                logger.exception("launcher %s ends all its processes because of an error", self._number)
                failed = True
                raise
            finally:
                with suppress(OSError, ValueError):  # the terminal is gone
                    self._progress.close()
                if crew.abandon(grace=constants.KILL_GRACE) and failed:
                    self._resign()
                logger.info("launcher %s ended; seconds by kind of work: %s", self._number, self.counters)

    def _resign(self) -> None:
        """After an error: let others have our jobs now, not only when our lease is over."""
        if not self._link.trouble:
            with suppress(BalsamError):
                self._link.run(CloseLauncher(launcher=self._number))

    def _register(self) -> None:
        me = this_process()
        self._number = self._db.run(
            RegisterLauncher(
                host=me.host,
                pid=me.pid,
                boot_id=me.boot_id,
                process_start=me.start,
                lease_seconds=constants.LEASE,
                workflow=self._options.workflow,
            )
        )
        logger.info("launcher %s: %s", self._number, self._options)
        around = LauncherContext(
            directory=self._db.directory,
            environment=base_environment(self._db.directory, self._number),
            counters=self.counters,
        )
        self._reporter = Reporter(self._link.run, self._number, self._teller.tell if self._teller else None)
        self._feed = ClaimQueue(self._link.run, self._number, self._options, around, self._resources)
        self._crew = JobRunner(self._options.slots, self.counters, changed=self._reporter.note, left=self._leave)
        try:
            self._link.run(Prune())
        except OUTAGES:
            logger.debug("pruning is left to others", exc_info=True)

    def _resources(self) -> Resources:
        left = None if self._end_at is None else max(0.0, self._end_at - monotonic()) / 60
        return Resources(minutes_left=left)

    def _goodbye(self) -> LauncherResult:
        self._show(now=True)
        if self._reporter.tasks:
            raise Unavailable(
                f"the last changes of {len(self._reporter.tasks)} jobs could not be written "
                f"({self._link.trouble or 'time was over'}); they run again when this launcher's lease is over"
            )
        unfit = 0
        try:
            if not self._reason and self._options.only is None:
                waiting = CountWaiting(resources=self._resources(), workflow=self._options.workflow)
                unfit = self._link.run(waiting)["does not fit"]
            self._link.run(CloseLauncher(launcher=self._number))
        except OUTAGES:
            logger.warning("the launcher could not say goodbye; its lease ends by itself")
        return LauncherResult(
            **self._counts,
            seconds=monotonic() - self._began,
            unfit=unfit,
            reason=self._reason,
            signal=self._stops.number,
            spent=self.counters.seconds,
        )

    # ---- one turn

    def run_once(self, longest: float) -> None:
        """Do what is due, then wait for an event, at most ``longest`` seconds."""
        self._look_for_stop()
        self._start_claimed()
        if self._link.up:
            with suppress(*OUTAGES):  # the link remembers, and nothing is lost
                self._talk()
        if self._reason:
            self._look_for_last()
        self._show()
        if not self._over:
            self._crew.collect(self._patience(longest))

    def _patience(self, longest: float) -> float:
        """Return how long nothing will be due."""
        times = [monotonic() + longest, self._show_at]
        if (overdue := self._crew.processes.kill_overdue()) is not None:
            times.append(overdue)
        if self._end_at is not None and not self._reason:
            times.append(self._end_at)
        if self._crew.short:
            times.append(monotonic() + constants.FIRST_IDLE)
        if not self._link.up:
            times.append(self._link.retry_at)
        elif not self._link.trouble:
            if (due := self._reporter.due()) is not None:
                times.append(due)
            if self._crew.live and self._stop_at == inf:
                times.append(self._killed_at)
            if self._feed.dry and self._crew.free > len(self._feed.queue):
                times.append(self._feed.ask_at)
        return min(times) - monotonic()

    def _start_claimed(self) -> None:
        queue, crew = self._feed.queue, self._crew
        if crew.short:
            crew.retry()
        while queue and crew.fits(queue[0]):
            crew.begin(queue.popleft())

    def _leave(self, left: DoneJob) -> None:
        """Deal with a job that is no more in work."""
        task = left.task
        if left.dropped:
            self._hold(task)
            return
        self._reporter.note(task)
        self._ended[task.id] = task
        if task.state is State.FAILED:
            logger.info("job %s (%.80s) failed: %s", task.id, task.job.name, task.message)

    # ---- the database

    def _talk(self) -> None:
        """Make the calls that are due.

        Raises:
            Unavailable: The rest is for later.
            OutcomeUnknown: The same.
        """
        if self._stop_at < inf:
            self._flush()
            return
        if self._orphans:
            self._give_back_unknown()
        self._claim()
        due = self._reporter.due()
        now = monotonic()
        if due is not None and (due <= now or (self._crew.free > 0 and not self._feed.queue)) and self._flush():
            self._feed.nudge()
            self._claim()
        if now >= self._renew_at:
            answer = self._link.run(RenewLease(launcher=self._number, lease_seconds=constants.LEASE))
            self._renew_at = now + constants.RENEW_EVERY
            self._end_killed(answer.killed)
        if now >= self._killed_at and (self._crew.live or self._feed.queue or self._held):
            self._killed_at = now + constants.KILLED_EVERY
            self._end_killed(self._link.run(GetKilledJobs(launcher=self._number)))
        if not self._reason:
            if now >= self._promote_at:
                self._promote_at = now + constants.PROMOTE_EVERY
                self._feed.promote()
            self._look_for_end()

    def _claim(self) -> int:
        """Claim jobs where some are wanted, and start them; returns how many came."""
        wanted = 0 if self._reason or self._reporter.doubtful else self._feed.wanted(self._crew.free)
        if not wanted:
            return 0
        try:
            got = self._feed.claim(wanted)
        except OUTAGES:
            self._orphans = True
            raise
        self._start_claimed()
        return got

    def _give_back_unknown(self) -> None:
        """Give back jobs of a claim without an answer, which we don't know."""
        known = {task.id for task in self._feed.queue}
        known |= self._crew.live.keys() | self._reporter.tasks.keys() | self._held.keys()
        self._feed.give_back_unknown(known)
        self._orphans = False

    def _flush(self) -> bool:
        """Write what changed; returns whether jobs ended, which may have freed others."""
        if not self._reporter.tasks:
            return False
        for task, why in self._reporter.flush():
            logger.warning("job %s: the database refused what happened to it: %s", task.id, why)
            live = self._crew.live.get(task.id)
            if live is None:
                self._ended.pop(task.id, None)
                self._hold(task)
            elif not live.dropped:
                self._crew.drop(live, grace=constants.KILL_GRACE)
        ended = bool(self._ended)
        for task in self._ended.values():
            self._counts[_fate(task)] += 1
        self._ended.clear()
        return ended

    def _hold(self, task: Task) -> None:
        """Keep a job that we are done with until the database says whether we still hold it."""
        self._reporter.forget(task)
        self._held[task.id] = task
        self._killed_at = 0.0

    def _end_killed(self, ids: list[int]) -> None:
        """End jobs that the user killed; each is given back when its processes are gone."""
        for number in ids:
            live = self._crew.live.get(number)
            if live is not None:
                if not live.dropped:
                    self._crew.drop(live, grace=constants.KILL_GRACE)
                continue
            task = self._held.pop(number, None) or self._feed.withdraw(number)
            if task is not None:
                logger.info("job %s (%.80s) was killed by the user", task.id, task.job.name)
                self._counts["killed"] += 1
                task.give_back()
                self._reporter.note(task)

    # ---- the end

    def _look_for_end(self) -> None:
        """Find out whether anything is left to do, now or soon."""
        if self._crew.live or self._feed.queue or self._reporter.tasks or not self._feed.dry:
            return
        if monotonic() < self._end_look_at:
            return
        self._feed.promote()
        self._feed.ask_at = 0.0
        self._over = not self._claim() and not self._feed.may_come()
        self._end_look_at = monotonic() + constants.LONGEST_IDLE

    def _look_for_stop(self) -> None:
        """See whether a signal came, time is over, or nothing can be started any more."""
        stops = self._stops
        if stops.count > self._stops_seen:
            self._stops_seen = stops.count
            name = signal.Signals(stops.number or signal.SIGINT).name
            self._stop(f"stopped by {name}", stops.at, grace=constants.TERM_GRACE if stops.count == 1 else 0.0)
        elif self._reason:
            return
        elif self._end_at is not None and monotonic() >= self._end_at:
            self._stop("the time limit was reached", self._end_at, grace=constants.TERM_GRACE)
        elif self._crew.fault:
            self._give_back_claimed(self._crew.fault)  # what runs may end well

    def _stop(self, why: str, since: float, *, grace: float) -> None:
        """Start nothing more and ask everything to end."""
        self._give_back_claimed(why)
        self._stop_at = min(self._stop_at, since)
        self._link.timeout = constants.LAST_CALL_TIMEOUT
        self._link.retry_at = 0.0
        self._crew.close(f"{self._reason} (launcher {self._number})", grace=grace)

    def _give_back_claimed(self, why: str) -> None:
        if not self._reason:
            self._reason = why
            logger.info("launcher %s ends: %s", self._number, why)
        while self._feed.queue:
            task = self._feed.queue.pop()
            task.give_back()
            self._reporter.note(task)

    def _look_for_last(self) -> None:
        """See whether all is said, or there is no more time to say it."""
        now = monotonic()
        if self._crew.live:
            self._last_at = now + constants.LAST_WORDS
            self._over = now > self._stop_at + constants.DEADLINE
        else:
            self._over = not self._reporter.tasks or now > min(self._last_at, self._stop_at + constants.DEADLINE)

    # ---- showing

    def _show(self, *, now: bool = False) -> None:
        if not now and monotonic() < self._show_at:
            return
        self._show_at = monotonic() + self._progress.every
        remark = self._reason
        if self._link.trouble:
            remark = f"the database can't be reached, {len(self._reporter.tasks)} changes are kept"
        elif self._crew.short:
            remark = "this machine can't start more processes"
        snapshot = Snapshot(
            seconds=monotonic() - self._began,
            running=len(self._crew.live),
            queued=len(self._feed.queue),
            remark=remark,
            finished=self._counts["finished"],
            failed=self._counts["failed"],
            killed=self._counts["killed"],
        )
        try:
            self._progress.show(snapshot)
        except (OSError, ValueError):  # the terminal or pipe is gone: no reason to end anybody's simulation
            logger.info("nobody reads the progress any more", exc_info=True)
            self._progress = NoProgress()


def _fate(task: Task) -> str:
    """Return what an ended job counts as."""
    return {State.JOB_FINISHED: "finished", State.FAILED: "failed"}.get(task.state, "again")
