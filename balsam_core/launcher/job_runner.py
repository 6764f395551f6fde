"""The running jobs: each takes its slots, has at most one process, and is led through its lifecycle.

Knows processes and lifecycles, not the database: two callbacks tell what happened to a job.
"""

from __future__ import annotations

import logging
from collections.abc import Generator  # noqa: TC003
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.launcher.job.claimed_job import ClaimedJob, ProcessResult, ProcessSpec
from balsam_core.launcher.job.failures import DiskFullError, is_disk_full
from balsam_core.launcher.options import KILL_GRACE
from balsam_core.launcher.processes import Processes, ShortageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.launcher.counters import Counters
    from balsam_core.launcher.processes import Process

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class RunningJob:
    """A job between its start and its end in this launcher.

    Attributes:
        claimed: The job.
        slots: How many it takes.
        lifecycle: Its steps; sent how each process ended.
        process: Its process now; None while this machine can't start it.
        spec: The process that this machine could not start; None where the job didn't get as far as that.
        stop_reason: Why the launcher asked it to end; empty where it didn't.
        over_limit: Whether that was because its time limit was over.
        dropped: Whether its result doesn't count: the user killed it, or it isn't ours any more.
    """

    claimed: ClaimedJob
    slots: int
    lifecycle: Generator[ProcessSpec, ProcessResult, None]
    process: Process[RunningJob] | None = None
    spec: ProcessSpec | None = None
    stop_reason: str = ""
    over_limit: bool = False
    dropped: bool = False


class JobRunner:
    """Runs jobs in a number of slots.

    Attributes:
        jobs: The running jobs by id.
        processes: Their processes.
        stopping: Whether nothing is started any more.
        fault: Why no job can be started any more; empty while all is well.
        blocked: Running jobs that this machine could not go on with; they wait for :meth:`retry_blocked`.

    Args:
        slots: How many jobs of one slot run at the same time.
        counters: Counts where the time goes.
        on_change: Called when a job reached a state that others should see soon.
        on_done: Called when a job doesn't run any more.
    """

    def __init__(
        self,
        slots: int,
        counters: Counters,
        *,
        on_change: Callable[[ClaimedJob], None],
        on_done: Callable[[RunningJob], None],
    ) -> None:
        self.jobs: dict[int, RunningJob] = {}
        self.processes: Processes[RunningJob] = Processes()
        self.stopping = False
        self.fault = ""
        self.blocked: list[RunningJob] = []
        self._slots = slots
        self._used_slots = 0
        self._limits: dict[RunningJob, float] = {}  # when processes with a time limit are to be ended
        self._counters = counters
        self._on_change = on_change
        self._on_done = on_done

    @property
    def free_slots(self) -> int:
        """Slots without a job; none while this machine can't start what the running jobs need."""
        return 0 if self.stopping or self.fault or self.blocked else self._slots - self._used_slots

    def fits(self, claimed: ClaimedJob) -> bool:
        """Whether the job's slots are free; one that wants more than there are takes them all."""
        return min(claimed.slots, self._slots) <= self.free_slots

    def start(self, claimed: ClaimedJob) -> None:
        """Start a job."""
        running = RunningJob(claimed, min(claimed.slots, self._slots), claimed.lifecycle())
        self.jobs[claimed.id] = running
        self._used_slots += running.slots
        self._advance_job(running, None)

    def retry_blocked(self) -> None:
        """Try again to start what this machine could not start."""
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
        """Wait at most ``timeout`` seconds for processes to end, and go on with their jobs."""
        with self._counters.timed("wait"):
            ended = list(self.processes.wait(timeout))
        for running, exit_code in ended:
            running.process = None
            self._limits.pop(running, None)
            if running.dropped:
                self._remove_job(running)
            else:
                self._advance_job(running, ProcessResult(exit_code, running.stop_reason, running.over_limit))

    def stop(self, reason: str, *, grace: float) -> None:
        """Start nothing more, and ask all processes to end; kill them after ``grace`` seconds."""
        self.collect(0.0)  # a process that has ended already was not stopped by us
        self.stopping = True
        for running in list(self.jobs.values()):
            if running.process is None:
                self._give_back(running)
            else:
                running.stop_reason = running.stop_reason or reason
                self.processes.terminate(running.process, grace=grace)

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
                        self.processes.terminate(running.process, grace=KILL_GRACE)
        return min(self._limits.values(), default=None)

    def drop(self, running: RunningJob, *, grace: float) -> None:
        """End a job's process without using its result."""
        running.dropped = True
        if running.process is None:
            self._remove_job(running)
        else:
            self.processes.terminate(running.process, grace=grace)

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
            self.blocked.append(running)
        else:
            if self.stopping:
                self._give_back(running)
            else:
                self._start_process(running, spec)

    def _start_process(self, running: RunningJob, spec: ProcessSpec) -> None:
        claimed = running.claimed
        running.spec = None
        try:
            with self._counters.timed("spawn"):
                running.process = self.processes.start(
                    spec.argv,
                    cwd=claimed.workdir,
                    env=spec.env,
                    stdout=spec.stdout,
                    stderr=spec.stderr,
                    owner=running,
                )
        except ShortageError as err:
            logger.debug("job %s: this machine can't start its process now: %s", claimed.id, err)
            running.spec = spec
            self.blocked.append(running)
        except (OSError, ValueError) as err:
            if is_disk_full(err) and not claimed.job.user_workdir:
                self._stop_on_full_disk(running, err)
            else:  # the job's own fault, which fails it
                try:
                    running.lifecycle.throw(err)
                except StopIteration:
                    self._remove_job(running)
        else:
            if spec.time_limit is not None:
                self._limits[running] = monotonic() + spec.time_limit
            if spec.started_state is not None:
                claimed.reach(spec.started_state)
                self._on_change(claimed)

    def _stop_on_full_disk(self, running: RunningJob, err: Exception) -> None:
        self.fault = self.fault or str(err)
        self._give_back(running)

    def _give_back(self, running: RunningJob) -> None:
        """Release a job in the state that it has reached."""
        running.claimed.released = True
        self._remove_job(running)

    def _remove_job(self, running: RunningJob) -> None:
        running.lifecycle.close()
        if running in self.blocked:
            self.blocked.remove(running)
        del self.jobs[running.claimed.id]
        self._used_slots -= running.slots
        self._on_done(running)
