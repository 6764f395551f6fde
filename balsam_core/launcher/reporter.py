"""What the database doesn't know yet: changes of all jobs, written together once a tick.

A change stays here until the database has answered. Where an answer got lost, the next write first looks which changes
were made. Knows nothing about processes.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from balsam_core.errors import OutcomeUnknown
from balsam_core.launcher.options import FLUSH_AFTER, FLUSH_AT, FLUSH_SHARE
from balsam_core.model.calls import MOST_JOBS, GetRows, Update, UpdateJobs
from balsam_core.model.filters import Compare
from balsam_core.model.states import END, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.launcher.job.task import Task
    from balsam_core.model.calls import Call

__all__ = ["Reporter", "RunCall"]

logger = logging.getLogger(__name__)

R = TypeVar("R")
LONGEST_MESSAGE = 2000  # characters
LONGEST_WAIT = 1.0  # seconds that a change waits, however slow the database is


class RunCall(Protocol):
    """Runs a call on the database; raises :class:`~balsam_core.errors.BalsamError`."""

    def __call__(self, call: Call[R], /) -> R:
        """Return the answer."""


class Reporter:
    """The changes that one launcher has to tell.

    Args:
        run: Runs a call.
        launcher: The launcher's number.
        recorded: Told what the database has taken, each change once; None for nobody.

    Attributes:
        tasks: Jobs with something to tell, by id.
    """

    def __init__(self, run: RunCall, launcher: int, recorded: Callable[[Sequence[Update]], None] | None = None) -> None:
        self.tasks: dict[int, Task] = {}
        self._run = run
        self._launcher = launcher
        self._recorded = recorded
        self._since = 0.0
        self._pause = FLUSH_AFTER
        self._doubtful: dict[int, tuple[int, str]] = {}  # job -> transitions and message in the write without an answer

    def note(self, task: Task) -> None:
        """Remember that a job has something to tell."""
        if not self.tasks:
            self._since = monotonic()
        self.tasks[task.id] = task

    def forget(self, task: Task) -> None:
        """Let go of what there was to tell about a job."""
        self.tasks.pop(task.id, None)
        self._doubtful.pop(task.id, None)

    @property
    def doubtful(self) -> bool:
        """Whether it isn't known if the last write was made."""
        return bool(self._doubtful)

    def due(self) -> float | None:
        """Return when the changes are to be written at the latest, None where there are none."""
        if not self.tasks:
            return None
        return self._since if len(self.tasks) >= FLUSH_AT else self._since + self._pause

    def flush(self) -> list[tuple[Task, str]]:
        """Write all changes.

        Returns:
            The jobs whose change the database refused, with its reason. They are forgotten here.

        Raises:
            BalsamError: Not all could be written; the others are kept.
        """
        begin = monotonic()
        if self._doubtful:
            self._look()
        refused: list[tuple[Task, str]] = []
        ids = list(self.tasks)
        for start in range(0, len(ids), MOST_JOBS):
            some = [self.tasks[job] for job in ids[start : start + MOST_JOBS]]
            now = monotonic()
            call = UpdateJobs(launcher=self._launcher, updates=[_update(task, now) for task in some])
            try:
                answer = self._run(call)
            except OutcomeUnknown:
                self._doubtful = {task.id: (len(task.transitions), task.message) for task in some}
                raise
            if self._recorded is not None:
                self._recorded([update for update in call.updates if update.job not in answer])
            refused += [(self.tasks[job], why) for job, why in answer.items()]
            for task in some:
                self._told(task, len(task.transitions), task.message)
        self._pause = min(max(FLUSH_AFTER, FLUSH_SHARE * (monotonic() - begin)), LONGEST_WAIT)
        return refused

    def _told(self, task: Task, count: int, message: str) -> None:
        """Forget what the database knows."""
        del task.transitions[:count]
        task.message = task.message.removeprefix(message).removeprefix("; ")
        if not task.transitions:
            self.tasks.pop(task.id, None)

    def _look(self) -> None:
        """Find out which changes of the write without an answer were made."""
        rows = self._run(
            GetRows(fields=["id", "state", "attempt", "launcher_id"], where=Compare("id", "in", sorted(self._doubtful)))
        )
        found = {row[0]: row[1:] for row in rows}
        for job, (count, message) in self._doubtful.items():
            task = self.tasks.get(job)
            if task is None:
                continue
            state, attempt, holder = found.get(job, (None, None, None))
            if _made(task, count, mine=(attempt, holder) == (task.attempt, self._launcher), state=state):
                logger.info("job %s: the write without an answer was made", job)
                if self._recorded is not None:
                    self._recorded([_update(task, monotonic(), count)])
                self._told(task, count, message)
        self._doubtful = {}


def _update(task: Task, now: float, count: int | None = None) -> Update:
    return Update(
        job=task.id,
        attempt=task.attempt,
        transitions=[(state, max(0.0, now - at)) for state, at in task.transitions[:count]],
        message=task.message[:LONGEST_MESSAGE],
        return_code=task.return_code,
        release=task.released,
    )


def _made(task: Task, count: int, *, mine: bool, state: State | None) -> bool:
    """Whether the write that held the first ``count`` transitions of a job was made, from how the job stands now."""
    last = task.transitions[count - 1][0] if count else None
    if last in END or (task.released and count == len(task.transitions)):
        return not mine  # taken from us by this write, or for another reason: nothing is left to tell
    return mine and last is not None and state == last
