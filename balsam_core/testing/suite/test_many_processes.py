"""Many processes on one database: nothing is lost, doubled or given to two, and nobody is told of a deadlock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from balsam_core.errors import BalsamError
from balsam_core.model.app import App
from balsam_core.model.job import Job
from balsam_core.model.states import END
from balsam_core.schema.tables import counters
from balsam_core.testing.programs import run_together

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine

    from balsam_core import Database
    from balsam_core.testing.fixtures import SuiteDB

WRITERS, WRITES = 8, 25
SHARERS, TURNS = 16, 4
TAKERS = 4
CHURNERS, ROUNDS = 4, 40


def test_many_writers_lose_and_double_nothing(suite_db: SuiteDB, db: Database) -> None:
    """Also the first of a workflow and of a key, which several insert at the same moment."""
    (before,) = db.jobs.add(Job(command="x"))
    outputs = run_together([("write", suite_db.path, number, WRITES) for number in range(WRITERS)])
    shared = WRITES // 5
    expected = WRITERS * (WRITES - shared) + shared
    rows = list(db.jobs.where(Job.id > before).rows("id", "name", "key"))
    assert len({name for _, name, _ in rows}) == len(rows) == expected
    assert [number for number, _, _ in rows] == list(range(before + 1, before + 1 + expected)), "ids are dense"
    assert len({key for _, _, key in rows if key}) == shared
    told = [list(map(int, out.split())) for out in outputs]
    assert all(len(ids) == WRITES for ids in told)
    assert {number for ids in told for number in ids} == {number for number, _, _ in rows}


def test_overlapping_keys_are_no_error_and_one_job_each(suite_db: SuiteDB, db: Database) -> None:
    """All who add a key at the same moment are told the same id."""
    outputs = run_together([("share", suite_db.path, number, TURNS) for number in range(SHARERS)])
    told = {tuple(word.split("=")) for out in outputs for word in out.split()}
    assert told == {(key, str(number)) for number, key in db.jobs.rows("id", "key")}


def test_claims_of_many_processes_are_disjoint_and_complete(suite_db: SuiteDB, db: Database) -> None:
    parent = Job(command="p")
    ids = db.jobs.add(
        [parent, *(Job(command="x", priority=i % 3, parents=[parent] if i % 4 == 0 else []) for i in range(300))]
    )
    outputs = run_together([("take", suite_db.path) for _ in range(TAKERS)])
    claimed = [int(number) for out in outputs for number in out.split()]
    assert sorted(claimed) == list(ids)
    assert db.jobs.states() == {"JOB_FINISHED": len(ids)}


def test_changes_that_lock_each_others_jobs_all_come_through(suite_db: SuiteDB, db: Database) -> None:
    for _ in range(10):
        parents = [Job(command="p") for _ in range(3)]
        db.jobs.add([*parents, *(Job(command="c", parents=parents) for _ in range(3))])
    run_together([("churn", suite_db.path, seed, ROUNDS) for seed in range(CHURNERS)])
    # What is left is sound: it can be drained to the end, and each job's state agrees with its parents'.
    run_together([("take", suite_db.path)])
    assert set(db.jobs.states()) <= set(END), db.jobs.states()


def test_an_error_of_the_driver_undoes_its_own_call_only(
    suite_db: SuiteDB, db: Database, owner: Callable[[], AbstractContextManager[Engine]]
) -> None:
    """The next id of a job is taken, so that the database refuses each new job, amid calls that it takes."""
    (taken,) = db.jobs.add(Job(command="x"))

    def set_last_id(value: int) -> None:
        with owner() as engine, engine.begin() as conn:
            conn.execute(counters.update().where(counters.c.name == "jobs").values(last=value))

    def add_apps(writer: int) -> list[str]:
        names = [f"app-{writer}-{number}" for number in range(WRITES)]
        with suite_db.open() as mine:
            for number, name in enumerate(names):
                mine.apps.add(App(name, "x"))
                if number % 4 == writer % 4:
                    with pytest.raises(BalsamError):
                        mine.jobs.add(Job(command="x", workflow=name))
        return names

    set_last_id(taken - 1)
    try:
        with ThreadPoolExecutor(WRITERS) as threads:
            acknowledged = [name for names in threads.map(add_apps, range(WRITERS)) for name in names]
        assert {app.name for app in db.apps} == set(acknowledged), "calls that were acknowledged are lost"
        assert list(db.jobs.ids()) == [taken]
    finally:
        set_last_id(taken)
    assert db.jobs.add(Job(command="x"))[0] == taken + 1
