"""Launchers that have died without a word: what becomes of their jobs.

One whose death is proved (see :mod:`balsam_core.client.launchers`) counts as dead at once. Without proof it does when
its lease is over and it has given no sign of life while somebody watched for some time. That time is measured by the
watcher: a clock that is set must not let a job run twice. Its processes have been ended by then, since their keepers
know the lease, too.

What the journal of a dead launcher has and the database has not is recorded first, so that no run that has ended is
repeated; then its jobs are given back.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from balsam_core.client.launchers import SILENT_SHARE, describe, find_proof, is_silent, lives_here
from balsam_core.dbdir.launcher_journal import Journal
from balsam_core.model import calls
from balsam_core.model.calls import MOST_JOBS, CloseLauncher, GetLaunchers, GetRows, Update, UpdateJobs
from balsam_core.model.filters import AllOf, Compare
from balsam_core.model.states import State
from balsam_core.system.cgroups import end_group
from balsam_core.system.signals import BATCH_EXIT_CODES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.launcher_journal import Run
    from balsam_core.model.calls import Call, LauncherInfo

R = TypeVar("R")

PATIENCE = 3.0  # seconds for a guardian to end what its dead launcher has left
LONGEST_GAP = 15.0  # seconds between two looks; after a longer one the watch begins anew
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


class LauncherWatch:
    """Watches the launchers of a database, and closes the dead ones.

    Attributes:
        living: Those that were not dead at the last look.
        seconds_left: How long each of them that is not seen to live may still be silent, by id, from the last look on.
    """

    def __init__(self, directory: DBDir, run: RunCall) -> None:
        self.living: list[LauncherInfo] = []
        self.seconds_left: dict[int, float] = {}
        self._directory = directory
        self._run = run
        self._last_signs: dict[int, tuple[datetime, float]] = {}  # launcher -> its last sign, when we first saw that
        self._looked_at = 0.0

    def look(self) -> list[Closed]:
        """Look at all launchers once; close the dead ones and return them.

        Raises:
            BalsamError: The database can't be asked, or refuses.
        """
        launchers = self._run(GetLaunchers())
        now = time.monotonic()
        if now - self._looked_at > LONGEST_GAP:
            self._last_signs.clear()  # the database was away, for them as well
        self._looked_at = now
        closed: list[Closed] = []
        self.living, self.seconds_left = [], {}
        for launcher in launchers:
            journal = Journal(self._directory, launcher.id)
            why = find_proof(launcher, journal)
            left = None if why else 0.0 if why == "" else self._seconds_left(launcher, journal, now)
            if not why and left is not None and left < 0:
                why = describe(launcher, "has given no sign of life, and its lease is over")
            if why and self._close(launcher, journal, why):
                closed.append(Closed(launcher, why))
            elif not why:
                self.living.append(launcher)
                if left is not None:
                    self.seconds_left[launcher.id] = left
        return closed

    def look_patiently(self, seconds: float) -> list[Closed]:
        """Look, and wait so long for one whose processes are just being ended, or that counts as dead by then.

        Raises:
            BalsamError: The database can't be asked, or refuses.
        """
        until = time.monotonic() + seconds
        closed = self.look()
        while self.seconds_left and time.monotonic() + min(self.seconds_left.values()) < until:
            time.sleep(_POLL)
            closed += self.look()
        return closed

    def doubtful(self) -> list[LauncherInfo]:
        """Return those of the living that hold jobs and may be dead: they have missed their renewals."""
        return [one for one in self.living if one.jobs and one.id in self.seconds_left and is_silent(one)]

    def _seconds_left(self, launcher: LauncherInfo, journal: Journal, now: float) -> float | None:
        """Return how long a launcher may still be silent until it counts as dead; None where it is seen to live."""
        if lives_here(journal):
            return None
        if self._last_signs.get(launcher.id, (None,))[0] != launcher.seen_at:
            self._last_signs[launcher.id] = (launcher.seen_at, now)
        silent = now - self._last_signs[launcher.id][1]
        lease = max(launcher.lease_seconds, 0.0)
        return (lease if launcher.alive else SILENT_SHARE * lease) - silent

    def _close(self, launcher: LauncherInfo, journal: Journal, why: str) -> bool:
        record_runs(self._run, launcher.id, launcher.host, journal.runs(), f"launcher {launcher.id} was lost")
        if not self._run(CloseLauncher(launcher=launcher.id, why=why, seen_at=launcher.seen_at)):
            return False  # somebody else has done it, or it lives
        if journal.head is not None and journal.head.is_here and journal.owner == os.geteuid():
            end_group(journal.head.group)  # empty by now
        journal.remove()
        return True


def end_dead_launchers(directory: DBDir, run: RunCall, *, patience: float = 0.0) -> list[Closed]:
    """Close the launchers that are dead, which gives their jobs back.

    Args:
        directory: The DB directory.
        run: Runs calls on its database.
        patience: Seconds to wait for one whose processes are just being ended, or that counts as dead in so short a
            time.

    Raises:
        BalsamError: The database can't be asked, or refuses.
    """
    return LauncherWatch(directory, run).look_patiently(patience)


def record_runs(run: RunCall, launcher: int, host: str, runs: Iterable[Run], end: str) -> None:
    """Record the runs that had ended when their launcher did, on its behalf; the jobs go on from there.

    Args:
        run: Runs calls on the database.
        launcher: The launcher's id.
        host: Where it ran.
        runs: What its journal has.
        end: How the launcher ended, in words.

    Raises:
        BalsamError: The database can't be asked, or refuses.
    """
    codes = {(one.job, one.attempt): one.exit_code for one in runs if one.exit_code not in BATCH_EXIT_CODES}
    ids = sorted({job for job, _ in codes})
    for at in range(0, len(ids), MOST_JOBS):
        held = AllOf([Compare("launcher_id", "eq", launcher), Compare("id", "in", ids[at : at + MOST_JOBS])])
        updates = []
        for job, attempt, state in run(GetRows(fields=["id", "attempt", "state"], where=held)):
            code = codes.get((job, attempt))
            passed = _TO_RUNNING.get(State(state))
            if code is None or passed is None:
                continue
            with_code = f"exit code {code}; " if code else ""
            updates.append(
                Update(
                    job=job,
                    attempt=attempt,
                    transitions=[(one, 0.0) for one in (*passed, _S.RUN_ERROR if code else _S.RUN_DONE)],
                    message=f"{with_code}its run had ended before {end}",
                    return_code=code,
                    release=True,
                    run=calls.Run(),
                )
            )
        if updates:
            run(UpdateJobs(launcher=launcher, host=host, updates=updates))
