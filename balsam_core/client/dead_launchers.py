"""Launchers that have died without a word: proof of their death, and what becomes of their jobs.

A launcher is dead when its guardian's farewell is in its journal, or when, on this machine, neither it nor its guardian
lives and nothing of its jobs is left. What its journal has and the database has not is recorded first, so that no run
that has ended is repeated; then its jobs are given back.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from balsam_core.dbdir.launcher_journal import MARK, Journal
from balsam_core.model import calls
from balsam_core.model.calls import MOST_JOBS, CloseLauncher, GetLaunchers, GetRows, Update, UpdateJobs
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State
from balsam_core.system.processes import end_marked, is_alive, this_machine
from balsam_core.system.signals import BATCH_EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.launcher_journal import Run
    from balsam_core.model.calls import Call, LauncherInfo

logger = logging.getLogger(__name__)

R = TypeVar("R")

PATIENCE = 3.0  # seconds for a guardian to end what its dead launcher has left
_POLL = 0.05  # seconds

_S = State
_TO_RUNNING = {
    _S.READY: [_S.STAGED_IN, _S.PREPROCESSED, _S.RUNNING],
    _S.STAGED_IN: [_S.PREPROCESSED, _S.RUNNING],
    _S.PREPROCESSED: [_S.RUNNING],
    _S.RESTART_READY: [_S.RUNNING],
    _S.RUNNING: [],
}
"""The states that a job has passed when its run has ended, from each state that the database may have."""


class RunCall(Protocol):
    """Runs a call on the database."""

    def __call__(self, call: Call[R], /) -> R:
        """Return the answer."""


class Closed(NamedTuple):
    """A launcher that was dead and has been closed.

    Attributes:
        launcher: What the database knew of it.
        why: How its death is known.
    """

    launcher: LauncherInfo
    why: str


def end_dead_launchers(directory: DBDir, run: RunCall, *, patience: float = 0.0) -> list[Closed]:
    """Close the launchers that are proved dead, which gives their jobs back.

    Args:
        directory: The DB directory.
        run: Runs calls on its database.
        patience: Seconds to wait for the processes of a dead launcher that are just being ended.

    Raises:
        BalsamError: The database can't be asked, or refuses.
    """
    until = time.monotonic() + patience
    closed: list[Closed] = []
    while True:
        dying = False
        for launcher in run(GetLaunchers()):
            journal = Journal(directory, launcher.id)
            proof = _find_proof(launcher, journal)
            if not proof:
                dying = dying or proof is not None
                continue
            _record_runs(run, launcher, journal.runs())
            run(CloseLauncher(launcher=launcher.id, why=proof))
            journal.remove()
            logger.warning("%s", proof)
            closed.append(Closed(launcher, proof))
        if not dying or time.monotonic() >= until:
            return closed
        time.sleep(_POLL)


def lives_here(directory: DBDir, launcher: LauncherInfo) -> bool:
    """Say whether a launcher's process is seen to live on this machine."""
    head = Journal(directory, launcher.id).head
    return head is not None and head.machine == this_machine() and is_alive(head.launcher, head.launcher_start)


def _find_proof(launcher: LauncherInfo, journal: Journal) -> str | None:
    """Return how it is known that a launcher is dead, empty where its processes are just being ended, else None."""
    head = journal.head
    if head is None or (head.machine.node, head.launcher) != (launcher.host, launcher.pid):
        return None
    is_here = head.machine == this_machine()
    if is_here and is_alive(head.launcher, head.launcher_start):
        return None
    name = f"launcher {launcher.id} (host {launcher.host}, pid {launcher.pid}) was lost"
    if journal.has_farewell:
        return f"{name}; its guardian has ended all its processes"
    if not is_here:
        return None
    if is_alive(head.guardian, head.guardian_start) or not end_marked(MARK, head.mark):
        return ""
    return f"{name} with its guardian; none of its processes is left"


def _record_runs(run: RunCall, launcher: LauncherInfo, runs: Iterable[Run]) -> None:
    """Record the runs that had ended when their launcher died, on its behalf; the jobs go on from there."""
    codes = {(one.job, one.attempt): one.exit_code for one in runs if one.exit_code not in BATCH_EXIT_CODES}
    ids = sorted({job for job, _ in codes})
    for at in range(0, len(ids), MOST_JOBS):
        held = AllOf([Compare("launcher_id", "eq", launcher.id), Compare("id", "in", ids[at : at + MOST_JOBS])])
        updates = []
        for job, attempt, state in run(GetRows(fields=["id", "attempt", "state"], where=held)):
            code = codes.get((job, attempt))
            passed = _TO_RUNNING.get(State(state))
            if code is None or passed is None:
                continue
            end = f"exit code {code}; " if code else ""
            updates.append(
                Update(
                    job=job,
                    attempt=attempt,
                    transitions=[(one, 0.0) for one in (*passed, _S.RUN_ERROR if code else _S.RUN_DONE)],
                    message=f"{end}its run had ended before launcher {launcher.id} was lost",
                    return_code=code,
                    release=True,
                    run=calls.Run(),
                )
            )
        if updates:
            run(UpdateJobs(launcher=launcher.id, host=launcher.host, updates=updates))
