"""The jobs in work: each in its slots, with its process, led through its walk.

Knows processes and walks, not the database: what happened to a job is told by two callbacks.
"""

from __future__ import annotations

import logging
from collections.abc import Generator  # noqa: TC003
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.launcher.job.task import DiskFullError, Ended, ProcessSpec, Task, is_disk_full
from balsam_core.launcher.processes import Processes, ShortageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.launcher.counters import Counters
    from balsam_core.launcher.processes import Process

__all__ = ["DoneJob", "JobRunner", "RunningJob"]

logger = logging.getLogger(__name__)


class RunningJob:
    """A job in work.

    Attributes:
        task: The job.
        walk: Where it is on its way.
        process: Its process now; None while this machine can't start it.
        command: What to start when this machine can; None where it couldn't even get so far.
        stopped: Why the launcher asked it to end; empty where it didn't.
        dropped: Whether what it leaves behind is of no interest: it was killed, or it isn't ours.
        slots: How many it takes.
    """

    __slots__ = ("command", "dropped", "process", "slots", "stopped", "task", "walk")

    def __init__(self, task: Task, slots: int) -> None:
        self.task = task
        self.walk: Generator[ProcessSpec, Ended, None] = task.walk()
        self.process: Process[RunningJob] | None = None
        self.command: ProcessSpec | None = None
        self.stopped = ""
        self.dropped = False
        self.slots = slots


class DoneJob(NamedTuple):
    """A job that is no more in work.

    Attributes:
        task: The job.
        dropped: Whether it was dropped; then its own account of itself counts for nothing.
    """

    task: Task
    dropped: bool


class JobRunner:
    """The jobs in work.

    Attributes:
        live: By id.
        processes: Their processes.
        closed: Whether nothing is started any more.
        fault: Why nothing can be started any more, for no job's own reason; empty while all is well.

    Args:
        slots: How many jobs of one slot run at the same time.
        counters: Where the time goes.
        changed: Called when a job came to a state that others should see soon.
        left: Called when a job is no more in work.
    """

    def __init__(
        self, slots: int, counters: Counters, *, changed: Callable[[Task], None], left: Callable[[DoneJob], None]
    ) -> None:
        self.live: dict[int, RunningJob] = {}
        self.processes: Processes[RunningJob] = Processes()
        self.closed = False
        self.fault = ""
        self._slots = slots
        self._used = 0
        self._short: list[RunningJob] = []
        self._counters = counters
        self._changed = changed
        self._left = left

    @property
    def free(self) -> int:
        """Slots without a job; none while this machine can't start what the jobs in work need."""
        return 0 if self.closed or self.fault or self._short else self._slots - self._used

    @property
    def short(self) -> bool:
        """Whether this machine could not start a process."""
        return bool(self._short)

    def fits(self, task: Task) -> bool:
        """Whether the job's slots are free; one that wants more than there are takes them all."""
        return min(task.slots, self._slots) <= self.free

    def begin(self, task: Task) -> None:
        """Take a job into work."""
        live = RunningJob(task, min(task.slots, self._slots))
        self.live[task.id] = live
        self._used += live.slots
        self._advance(live, None)

    def retry(self) -> None:
        """Try again to start what this machine could not start."""
        waiting, self._short = self._short, []
        while waiting:
            live = waiting.pop(0)
            if live.command is None:
                self._advance(live, None)
            else:
                self._start(live, live.command)
            if self._short:
                self._short += waiting
                return

    def collect(self, timeout: float) -> None:
        """Wait for a process to end, at most so long, and go on with the jobs whose process did."""
        with self._counters.timed("wait"):
            ended = list(self.processes.wait(timeout))
        for live, code in ended:
            live.process = None
            if live.dropped:
                self._remove(live)
            else:
                self._advance(live, Ended(code, live.stopped))

    def close(self, why: str, *, grace: float) -> None:
        """Start nothing more, and ask all processes to end; kill them after ``grace`` seconds."""
        self.collect(0.0)  # what ended by itself was not stopped
        self.closed = True
        for live in list(self.live.values()):
            if live.process is None:
                self._hand_back(live)
            else:
                live.stopped = live.stopped or why
                self.processes.terminate(live.process, grace=grace)

    def drop(self, live: RunningJob, *, grace: float) -> None:
        """End a job's process without interest in what it leaves behind."""
        live.dropped = True
        if live.process is None:
            self._remove(live)
        else:
            self.processes.terminate(live.process, grace=grace)

    # ---- one job

    def _advance(self, live: RunningJob, ended: Ended | None) -> None:
        """Let a job go on until it needs a process, or is done."""
        try:
            command = next(live.walk) if ended is None else live.walk.send(ended)
        except StopIteration:
            self._remove(live)
        except DiskFullError as err:
            self._disk_full(live, err)
        except ShortageError as err:
            if self.closed:
                self._hand_back(live)
                return
            logger.debug("job %s: this machine can't go on with it now: %s", live.task.id, err)
            live.walk = live.task.walk()  # from the state that it has come to
            self._short.append(live)
        else:
            if self.closed:
                self._hand_back(live)
            else:
                self._start(live, command)

    def _start(self, live: RunningJob, command: ProcessSpec) -> None:
        task = live.task
        live.command = None
        try:
            with self._counters.timed("spawn"):
                live.process = self.processes.start(
                    command.argv,
                    cwd=task.place,
                    env=command.env,
                    stdout=command.stdout,
                    stderr=command.stderr,
                    owner=live,
                )
        except ShortageError as err:
            logger.debug("job %s: this machine can't start its process now: %s", task.id, err)
            live.command = command
            self._short.append(live)
        except (OSError, ValueError) as err:
            if is_disk_full(err) and not task.job.user_workdir:
                self._disk_full(live, err)
            else:
                self._refuse(live, err)
        else:
            if command.begins is not None:
                task.reach(command.begins)
                self._changed(task)

    def _refuse(self, live: RunningJob, err: Exception) -> None:
        """Tell a job that its process could not be started, which is the job's own fault."""
        try:
            live.walk.throw(err)
        except StopIteration:
            self._remove(live)

    def _disk_full(self, live: RunningJob, err: Exception) -> None:
        self.fault = self.fault or f"the disk is full: {err}"
        self._hand_back(live)

    def _hand_back(self, live: RunningJob) -> None:
        """Give a job back where it stands."""
        live.task.released = True
        self._remove(live)

    def _remove(self, live: RunningJob) -> None:
        live.walk.close()
        if live in self._short:
            self._short.remove(live)
        del self.live[live.task.id]
        self._used -= live.slots
        self._left(DoneJob(live.task, live.dropped))

    def abandon(self, *, grace: float) -> bool:
        """End all processes, whatever becomes of the jobs, and release everything; returns whether all did end."""
        for process in list(self.processes.running.values()):
            self.processes.terminate(process, grace=grace)
        deadline = monotonic() + grace + 1.0
        while self.processes.running and monotonic() < deadline:
            self.processes.kill_overdue()
            for _ in self.processes.wait(0.1):
                pass
        gone = not self.processes.running
        self.processes.close()
        return gone
