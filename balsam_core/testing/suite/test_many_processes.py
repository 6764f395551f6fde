"""Many processes on one database: nothing is lost, doubled or given to two, and nobody is told of a deadlock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.model.job import Job
from balsam_core.model.states import END
from balsam_core.testing.programs import run_together

if TYPE_CHECKING:
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
