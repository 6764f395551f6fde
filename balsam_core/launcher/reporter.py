"""State changes that the database doesn't know yet, of all jobs, written together.

A change stays here until the database has confirmed it. If an answer got lost, the next write first reads which changes
were made. Knows nothing about processes.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.errors import OutcomeUnknown
from balsam_core.launcher.options import FLUSH_AFTER, FLUSH_AT, FLUSH_SHARE
from balsam_core.model.calls import MOST_JOBS, GetRows, Run, Update, UpdateJobs
from balsam_core.model.filters import Compare
from balsam_core.model.states import END, State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from balsam_core.launcher.job.claimed_job import ClaimedJob
    from balsam_core.launcher.retrying_client import RunCall

logger = logging.getLogger(__name__)

_COUNTED_AS = {State.JOB_FINISHED: "finished", State.FAILED: "failed"}  # else "again"
LONGEST_MESSAGE = 2000  # characters
LONGEST_WAIT = 1.0  # seconds that a change waits, however slow the database is


class Reporter:
    """The changes that one launcher has to write; ``on_recorded`` is called once with each that the database recorded.

    Attributes:
        jobs: Jobs with unwritten changes, by id.
        in_doubt: The update of each job in the write whose answer was lost, by id.
        counts: How many jobs ended, by how; only what is on record.
        jobs_ended: Whether the last write had ends of jobs, which may have made others ready.
    """

    def __init__(
        self,
        run: RunCall,
        launcher_id: int,
        on_recorded: Callable[[Sequence[Update]], None] | None = None,
        host: str = "",
    ) -> None:
        self.jobs: dict[int, ClaimedJob] = {}
        self.in_doubt: dict[int, Update] = {}
        self.counts = dict.fromkeys(("finished", "failed", "killed", "again"), 0)
        self.jobs_ended = False
        self._ended: dict[int, ClaimedJob] = {}  # not yet counted
        self._host = host
        self._run = run
        self._launcher_id = launcher_id
        self._on_recorded = on_recorded
        self._oldest_at = 0.0
        self._wait = FLUSH_AFTER

    def add(self, claimed: ClaimedJob) -> None:
        """Remember that a job has changes to write."""
        if not self.jobs:
            self._oldest_at = monotonic()
        self.jobs[claimed.id] = claimed

    def count_when_written(self, claimed: ClaimedJob) -> None:
        """Count a job that is done with the next write."""
        self._ended[claimed.id] = claimed

    def forget(self, claimed: ClaimedJob) -> None:
        """Drop the changes of a job."""
        self._ended.pop(claimed.id, None)
        self.jobs.pop(claimed.id, None)
        self.in_doubt.pop(claimed.id, None)

    def due(self) -> float | None:
        """Return when the changes are to be written at the latest, None where there are none."""
        if not self.jobs:
            return None
        return self._oldest_at if len(self.jobs) >= FLUSH_AT else self._oldest_at + self._wait

    def flush(self) -> list[tuple[ClaimedJob, str]]:
        """Write all changes.

        Returns:
            The jobs whose change the database refused, with its reason. They are forgotten here.

        Raises:
            BalsamError: Not all could be written; the others are kept.
        """
        start = monotonic()
        if self.in_doubt:
            self._resolve_doubt()
        refused: list[tuple[ClaimedJob, str]] = []
        ids = list(self.jobs)
        for at in range(0, len(ids), MOST_JOBS):
            chunk = [self.jobs[job] for job in ids[at : at + MOST_JOBS]]
            now = monotonic()
            updates = [_make_update(one, now) for one in chunk]
            call = UpdateJobs(launcher=self._launcher_id, host=self._host, updates=updates)
            try:
                answer = self._run(call)
            except OutcomeUnknown:
                self.in_doubt = {update.job: update for update in updates}
                raise
            if self._on_recorded is not None:
                self._on_recorded([update for update in updates if update.job not in answer])
            refused += [(self.jobs[job], why) for job, why in answer.items()]
            for one, update in zip(chunk, updates, strict=True):
                self._forget_written(one, update)
        self.jobs_ended = bool(self._ended)
        for job, _ in refused:
            self._ended.pop(job.id, None)
        for claimed in self._ended.values():
            self.counts[_COUNTED_AS.get(claimed.state, "again")] += 1
        self._ended.clear()
        self._wait = min(max(FLUSH_AFTER, FLUSH_SHARE * (monotonic() - start)), LONGEST_WAIT)
        return refused

    def _forget_written(self, claimed: ClaimedJob, update: Update) -> None:
        del claimed.transitions[: len(update.transitions)]
        rest = claimed.message.removeprefix(update.message).removeprefix("; ")
        claimed.message = rest if len(update.message) < LONGEST_MESSAGE else ""
        claimed.remarks = {}
        if not claimed.transitions and claimed.released == update.release:
            self.jobs.pop(claimed.id, None)

    def _resolve_doubt(self) -> None:
        """Read which changes of the write without an answer were made."""
        rows = self._run(
            GetRows(fields=["id", "state", "attempt", "launcher_id"], where=Compare("id", "in", sorted(self.in_doubt)))
        )
        found = {row[0]: row[1:] for row in rows}
        for job, update in self.in_doubt.items():
            claimed = self.jobs.get(job)
            if claimed is None:
                continue
            state, attempt, holder = found.get(job, (None, None, None))
            ours = (attempt, holder) == (claimed.attempt, self._launcher_id)
            if _was_written(update, ours=ours, state=state):
                logger.info("job %s: the write without an answer was made", job)
                if self._on_recorded is not None:
                    self._on_recorded([_make_update(claimed, monotonic(), len(update.transitions))])
                self._forget_written(claimed, update)
        self.in_doubt = {}


def _make_update(claimed: ClaimedJob, now: float, count: int | None = None) -> Update:
    return Update(
        job=claimed.id,
        attempt=claimed.attempt,
        transitions=[(state, max(0.0, now - at)) for state, at in claimed.transitions[:count]],
        message=claimed.message[:LONGEST_MESSAGE],
        return_code=claimed.return_code,
        release=claimed.released,
        delay=claimed.delay,
        run=_run_of(claimed, now),
        remarks=claimed.remarks,
    )


def _run_of(claimed: ClaimedJob, now: float) -> Run | None:
    """Return what the attempt took, once it has ended; None where nothing was begun."""
    if claimed.begun_at is None or not (claimed.released or claimed.state in END):
        return None
    return Run(max(0.0, now - claimed.begun_at), claimed.elapsed, claimed.cpu_seconds, claimed.max_memory)


def _was_written(update: Update, *, ours: bool, state: State | None) -> bool:
    """Whether a write was made, judged by the job's row now."""
    last = update.transitions[-1][0] if update.transitions else None
    if last in END or update.release:
        return not ours  # this write released the job, or it was taken from us: nothing is left to write
    return ours and last is not None and state == last
