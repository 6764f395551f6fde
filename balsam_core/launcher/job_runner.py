"""The running jobs: each takes its place on the node, has at most one process, and is led through its lifecycle.

Knows processes and lifecycles, not the database: two callbacks tell what happened to a job.

A batch system, and a terminal that is closed, send their signal to the launcher and to the processes of its jobs alike,
in any order. So an end by such a signal is held for a moment: if the launcher is asked to stop meanwhile, the job was
stopped and has not failed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator  # noqa: TC003
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.errors import DBDirError
from balsam_core.launcher.job.failures import DiskFullError, describe_error, is_disk_full
from balsam_core.launcher.job.process import ProcessResult, ProcessSpec
from balsam_core.launcher.options import FIRST_POLL, KILL_GRACE
from balsam_core.launcher.process_events import Command, Ended, Refused, ShortageError, Started
from balsam_core.launcher.processes import Processes
from balsam_core.model.states import State
from balsam_core.system.signals import BATCH_EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from balsam_core.dbdir.launcher_journal import OwnJournal
    from balsam_core.launcher.counters import Counters
    from balsam_core.launcher.job.claimed_job import ClaimedJob
    from balsam_core.launcher.placement import Need, Node, Place
    from balsam_core.launcher.process_events import Process

logger = logging.getLogger(__name__)

MEMORY_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, in what the system says of ended processes
HOLD = 2.0  # seconds that an end by a signal of batch systems and terminals is held
_LOST = {
    "lease": "its launcher could not renew its lease in time",
    "guardian": "its launcher's guardian was lost",
    "keeper": "its keeper was lost",
}


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job between its start and its end in this launcher.

    Attributes:
        claimed: The job.
        place: Its processors and GPUs.
        lifecycle: Its steps; sent how each process ended.
        process: Its process now; None while this machine can't start it, and after its end.
        spec: The process that it needs now; None where the job didn't get as far as that.
        held: How its process ended, while that is held; None for no such process.
        held_until: When it counts, by the monotonic clock.
        stop_reason: Why the launcher asked it to end; empty where it didn't.
        over_limit: Whether that was because its time limit was over.
        dropped: Whether its result doesn't count: the user killed it, or it isn't ours any more.
    """

    claimed: ClaimedJob
    place: Place
    lifecycle: Generator[ProcessSpec, ProcessResult, None]
    process: Process[RunningJob] | None = None
    spec: ProcessSpec | None = None
    held: ProcessResult | None = None
    held_until: float = 0.0
    stop_reason: str = ""
    over_limit: bool = False
    dropped: bool = False


class JobRunner:
    """Runs jobs on a node.

    Attributes:
        jobs: The running jobs by id.
        processes: Their processes.
        stopping: Whether nothing is started any more.
        fault: Why no job can be started any more; empty while all is well.
        blocked: Running jobs that this machine could not go on with; they wait for :meth:`retry_blocked`.

    Args:
        node: Where they run.
        counters: Counts where the time goes.
        on_change: Called when a job has something that others should see soon.
        on_done: Called when a job doesn't run any more.
        journal: File for the ends of runs; None for none.
        locks: Descriptors that the guardian keeps open until all has ended.
        environment: Environment variables of all processes.
    """

    def __init__(
        self,
        node: Node,
        counters: Counters,
        *,
        on_change: Callable[[ClaimedJob], None],
        on_done: Callable[[RunningJob], None],
        journal: OwnJournal | None = None,
        locks: Sequence[int] = (),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.jobs: dict[int, RunningJob] = {}
        self.processes: Processes[RunningJob] = Processes(journal, environment, locks)
        self.stopping = False
        self.fault = ""
        self.blocked: list[RunningJob] = []
        self._node = node
        self._limits: dict[RunningJob, float] = {}  # when processes with a time limit are to be ended
        self._held: list[RunningJob] = []
        self._stop_reason = ""
        self._retry_at = 0.0
        self._counters = counters
        self._on_change = on_change
        self._on_done = on_done

    @property
    def free_slots(self) -> int:
        """Slots without a job; none while this machine can't start what the running jobs need."""
        return self._node.free_slots if self._may_start else 0

    @property
    def is_crowded_out(self) -> bool:
        """Whether only other launchers' jobs are the reason that no slot is free."""
        return self._may_start and self._node.is_crowded_out

    @property
    def _may_start(self) -> bool:
        return not (self.stopping or self.fault or self.blocked)

    def look_around(self, wanted: Need | None) -> None:
        """Learn what other launchers have of the node, and tell them whether the first job waits for some of it."""
        self._node.look_around(wanted if self._may_start else None)

    def start(self, claimed: ClaimedJob) -> bool:
        """Start a job if there is a place for it now; returns whether there was."""
        place = self._node.take(claimed.need) if self.free_slots else None
        if place is None:
            return False
        claimed.place = place
        running = RunningJob(claimed, place, claimed.lifecycle())
        self.jobs[claimed.id] = running
        self._advance_job(running, None)
        return True

    def retry_blocked(self) -> None:
        """Try again to start what this machine could not start, some time after the last try."""
        if monotonic() < self._retry_at:
            return
        waiting, self.blocked = self.blocked, []
        while waiting:
            running = waiting.pop(0)
            if running.spec is None:
                self._advance_job(running, None)
            else:
                self._start_process(running, running.spec)
            if self.blocked:
                self.blocked += waiting
                return

    def collect(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for news of processes, and go on with their jobs."""
        with self._counters.timed("wait"):
            events = list(self.processes.wait(timeout))
        for event in events:
            running = event.owner
            if isinstance(event, Ended):
                self._note_end(running, event)
            elif isinstance(event, Refused):
                self._note_refusal(running, event.error)
            elif isinstance(event, Started):
                self._note_start(running, event.at)
            else:
                self._note_stuck(running, event.pids)
        now = monotonic()
        while self._held and self._held[0].held_until <= now:
            self._let_go(self._held[0])

    def held_until(self) -> float | None:
        """Return when the next held end counts, by the monotonic clock; None where none is held."""
        return self._held[0].held_until if self._held else None

    def stop(self, reason: str, *, grace: float) -> None:
        """Start nothing more, and ask all processes to end; kill them after ``grace`` seconds."""
        self.collect(0.0)  # a process that has ended already was not stopped by us
        self.stopping = True
        self._stop_reason = self._stop_reason or reason
        for running in list(self.jobs.values()):
            if running.held is not None:
                self._let_go(running)
            elif running.process is None:
                self._give_back(running)
            else:
                running.stop_reason = running.stop_reason or reason
                self.processes.end(running.process, grace=grace)

    def stop_overdue(self) -> float | None:
        """Ask processes to end whose time limit is over; returns when the next one's is."""
        if self._limits and min(self._limits.values()) <= monotonic():
            self.collect(0.0)  # a process that has ended already was not stopped by us
            for running, limit_at in list(self._limits.items()):
                if limit_at <= monotonic() and running.process is not None:
                    del self._limits[running]
                    if not running.stop_reason and not running.dropped:
                        minutes = running.claimed.job.time_limit_minutes
                        running.stop_reason = f"its time limit of {minutes:g} minutes was over"
                        running.over_limit = True
                        self.processes.end(running.process, grace=KILL_GRACE)
        return min(self._limits.values(), default=None)

    def drop(self, running: RunningJob, *, grace: float) -> None:
        """End a job's process without using its result."""
        running.dropped = True
        if running.process is None:
            self._remove_job(running)
        else:
            self.processes.end(running.process, grace=grace)

    # ---- news of processes

    def _note_start(self, running: RunningJob, at: float) -> None:
        spec = running.spec
        if spec is not None and spec.time_limit is not None:
            self._limits[running] = at + spec.time_limit
        if spec is not None and spec.started_state is not None and not running.dropped:
            running.claimed.reach(spec.started_state, at=at)
            self._on_change(running.claimed)

    def _note_stuck(self, running: RunningJob, pids: list[int]) -> None:
        names = ", ".join(map(str, pids))
        logger.error("job %s: processes that can't be ended: %s", running.claimed.id, names)
        if running.dropped:
            running.claimed.transitions.clear()  # they don't count
        running.claimed.remark(f"it can't be given back, since these of its processes can't be ended: {names}")
        self._on_change(running.claimed)

    def _note_end(self, running: RunningJob, event: Ended[RunningJob]) -> None:
        running.process = None
        self._limits.pop(running, None)
        if running.dropped:
            self._remove_job(running)
            return
        reason = (running.stop_reason or _LOST.get(event.why, "")) if event.why else ""
        result = ProcessResult(
            event.exit_code,
            reason,
            is_lost=event.is_lost and not running.stop_reason,
            ended_at=event.ended_at,
            left_behind=event.left_behind,
            over_limit=running.over_limit and event.why == "asked",
            cpu_seconds=event.cpu,
            max_memory=event.memory * MEMORY_UNIT,
        )
        if event.why or event.exit_code not in BATCH_EXIT_CODES:
            self._advance_job(running, result)
            return
        running.held, running.held_until = result, monotonic() + HOLD
        self._held.append(running)
        if self.stopping:
            self._let_go(running)

    def _let_go(self, running: RunningJob) -> None:
        """Let the held end of a process count: as a stop where the launcher was asked to stop."""
        self._held.remove(running)
        result, running.held = running.held, None
        if result is not None:
            self._advance_job(running, result._replace(stop_reason=self._stop_reason))

    def _note_refusal(self, running: RunningJob, err: Exception) -> None:
        claimed = running.claimed
        running.process = None
        if running.dropped:
            self._remove_job(running)
        elif isinstance(err, ShortageError):
            if self.stopping:
                self._give_back(running)
                return
            logger.debug("job %s: this machine can't start its process now: %s", claimed.id, err)
            self._block(running)
        elif is_disk_full(err) and not claimed.job.user_workdir:
            self._stop_on_full_disk(running, err)
        else:  # the job's own fault, which fails it
            try:
                running.lifecycle.throw(err)
            except StopIteration:
                self._remove_job(running)

    # ---- one job

    def _advance_job(self, running: RunningJob, result: ProcessResult | None) -> None:
        """Let a job go on until it needs a process, or is done."""
        try:
            spec = next(running.lifecycle) if result is None else running.lifecycle.send(result)
        except StopIteration:
            self._remove_job(running)
        except DiskFullError as err:
            self._stop_on_full_disk(running, err)
        except ShortageError as err:
            if self.stopping:
                self._give_back(running)
                return
            logger.debug("job %s: this machine can't go on with it now: %s", running.claimed.id, err)
            running.lifecycle = running.claimed.lifecycle()  # goes on from the job's state
            running.spec = None
            self._block(running)
        else:
            if self.stopping:
                self._give_back(running)
            else:
                self._start_process(running, spec)

    def _start_process(self, running: RunningJob, spec: ProcessSpec) -> None:
        claimed = running.claimed
        running.spec = spec
        is_run = spec.started_state is State.RUNNING
        label = f"{claimed.id} {claimed.attempt}" if is_run else ""
        command = Command(spec.argv, claimed.workdir, spec.env, spec.stdout, spec.stderr, label, spec.cores)
        try:
            with self._counters.timed("spawn"):
                running.process = self.processes.start(command, running)
        except (OSError, ValueError, ShortageError) as err:
            self._note_refusal(running, err)
        except DBDirError as err:  # no journal, and without one no guardian
            self.fault = self.fault or str(err)
            self._give_back(running)

    def _block(self, running: RunningJob) -> None:
        self.blocked.append(running)
        self._retry_at = monotonic() + FIRST_POLL

    def _stop_on_full_disk(self, running: RunningJob, err: Exception) -> None:
        self.fault = self.fault or describe_error(err)
        self._give_back(running)

    def _give_back(self, running: RunningJob) -> None:
        """Release a job in the state that it has reached."""
        running.claimed.released = True
        self._remove_job(running)

    def _remove_job(self, running: RunningJob) -> None:
        running.lifecycle.close()
        if running in self.blocked:
            self.blocked.remove(running)
        if running in self._held:
            self._held.remove(running)
        del self.jobs[running.claimed.id]
        self._node.give_back(running.place)
        self._on_done(running)
