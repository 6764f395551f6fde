"""How much work a database has with jobs that wait and that become ready, as SQLite counts it: no clock is asked."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from balsam_core import Job, open_db
from balsam_core.model import calls
from balsam_core.model.calls import Update, UpdateJobs
from balsam_core.model.states import State
from balsam_core.testing.tools import DONE, claim, register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from balsam_core import Database

STEPS = 100  # instructions of SQLite's machine that count as one


class Work:
    """What SQLite has done in this process.

    Attributes:
        steps: Instructions of its machine, in hundreds.
        updates: Its UPDATE statements, each row of an ``executemany`` counted.
    """

    steps = 0
    updates = 0

    def watch(self, connection: Any, _record: object) -> None:
        """Count on a driver's connection."""
        connection.set_progress_handler(self._count_step, STEPS)
        connection.set_trace_callback(self._count_statement)

    def _count_step(self) -> None:
        self.steps += 1

    def _count_statement(self, text: str) -> None:
        self.updates += text.startswith("UPDATE")


@pytest.fixture
def work() -> Iterator[Work]:
    counted = Work()
    sa.event.listen(sa.Engine, "connect", counted.watch)
    yield counted
    sa.event.remove(sa.Engine, "connect", counted.watch)


@pytest.fixture
def counted(work: Work, path: Path) -> Iterator[tuple[Database, Work]]:
    with open_db(path) as db:
        yield db, work


def fan_out(count: int) -> list[Job]:
    top = Job(command="true")
    return [top, *(Job(command="true", parents=[top]) for _ in range(count))]


def fan_in(count: int) -> list[Job]:
    tops = [Job(command="true") for _ in range(count)]
    return [*tops, Job(command="true", parents=tops)]


def wide(count: int) -> list[Job]:
    jobs = [Job(command="true") for _ in range(100)]
    for number in range(100, count):
        jobs.append(Job(command="true", parents=[jobs[number - 100], jobs[number - 99]]))
    return jobs


def chain(count: int) -> list[Job]:
    jobs = [Job(command="true") for _ in range(count)]
    for before, after in pairwise(jobs):
        after.parents = [before]
    return jobs


def end(db: Database, launcher: int, jobs: list[Job], states: Sequence[State] = DONE) -> None:
    """Record states of claimed jobs."""
    path = [(state, 0.0) for state in states]
    updates = [Update(job=job.id or 0, attempt=job.attempt, transitions=path) for job in jobs]
    assert db.run(UpdateJobs(launcher=launcher, updates=updates)) == {}


@pytest.mark.parametrize(("shape", "count"), [(fan_out, 300), (fan_in, 300), (wide, 300), (chain, 40)])
def test_jobs_become_ready_at_a_cost_linear_in_their_edges(
    counted: tuple[Database, Work], shape: Callable[[int], list[Job]], count: int
) -> None:
    db, work = counted
    launcher = register(db)
    per_edge = []
    for size in (count, count, 10 * count):
        jobs = shape(size)
        db.jobs.add(jobs)
        steps = work.steps
        while taken := claim(db, launcher, 200):
            end(db, launcher, taken)
        per_edge.append((work.steps - steps) / sum(len(job.parents) for job in jobs))
    assert db.jobs.where(state="JOB_FINISHED").count() == db.jobs.count()
    assert per_edge[2] < 1.5 * per_edge[1]


@pytest.mark.parametrize("well", [True, False], ids=["ready", "failed"])
def test_many_children_change_in_few_updates(counted: tuple[Database, Work], well: bool) -> None:
    db, work = counted
    launcher = register(db)
    jobs = fan_out(3000)
    db.jobs.add(jobs)
    top = claim(db, launcher)
    updates = work.updates
    end(db, launcher, top, DONE if well else (State.STAGED_IN, State.FAILED))
    assert work.updates - updates < 3000 / 100
    ended = {"JOB_FINISHED": 1, "READY": 3000} if well else {"FAILED": 3001}
    assert db.jobs.states() == ended


def test_a_turn_of_a_launcher_costs_the_same_however_many_jobs_wait(counted: tuple[Database, Work]) -> None:
    db, work = counted
    launcher, other = register(db), register(db)
    unfit = Job(command="true", num_nodes=2)
    db.jobs.add(unfit)
    costs = []
    for size in (300, 300, 3000):
        db.jobs.add(
            [Job(command="true", num_nodes=1 + n % 2, parents=[unfit] if n % 3 == 2 else []) for n in range(size)]
        )
        claim(db, other, 3)
        steps = work.steps
        for _ in range(5):
            end(db, launcher, claim(db, launcher, 3))
            db.run(calls.RenewLease(launcher=launcher, lease_seconds=900))
            db.run(calls.GetKilledJobs(launcher=launcher))
            db.run(calls.GetLaunchers())
            db.run(calls.PromoteStagedInsert())
            db.run(calls.PromoteDelayed())
            db.run(calls.GetDelay())
            db.run(calls.CountHeldByOthers(launcher=launcher))
        costs.append(work.steps - steps)
    assert costs[2] < 1.2 * costs[1]
