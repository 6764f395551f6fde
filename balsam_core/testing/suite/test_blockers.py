"""Why jobs wait or have failed: found through all generations of parents."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from balsam_core.errors import InvalidInput, NotFound
from balsam_core.model import calls
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import claim, register, update

if TYPE_CHECKING:
    from balsam_core import Database
    from balsam_core.client.jobs import Jobs

LONG = 3000  # generations; MySQL and MariaDB stop at 1000 unless told otherwise
MANY = 5000  # parents of one job


def fail(db: Database, *names: str) -> None:
    """Let jobs fail in a launcher."""
    me = register(db)
    path = State.STAGED_IN, State.PREPROCESSED, State.RUNNING, State.RUN_ERROR, State.FAILED
    for job in claim(db, me, 2000):
        if job.name in names:
            assert update(db, me, job, *path, message="exit code 1") == {}
    db.run(calls.CloseLauncher(launcher=me))


def blockers(db: Database, job: Job, limit: int = 5) -> calls.Blockers:
    assert job.id is not None
    return db.run(calls.GetBlockers(job=job.id, limit=limit))


def names(jobs: Jobs, found: list[calls.JobState]) -> list[tuple[str, str]]:
    return [(jobs.get(one.id).name, one.state) for one in found]


def chain(length: int) -> list[Job]:
    made = [Job(command="x", name="0")]
    made += [Job(command="x", name=str(number)) for number in range(1, length)]
    for before, after in pairwise(made):
        after.parents = [before]
    return made


def test_a_job_waits_for_parents_and_at_last_for_those_that_can_run(db: Database, jobs: Jobs) -> None:
    top = [Job(command="x", name=name) for name in ("a", "b", "c")]
    middle = Job(command="x", name="middle", parents=top[:2])
    free = Job(command="x", name="free", parents=[top[2]], wait_for_parents=False)
    last = Job(command="x", name="last", parents=[middle, free])
    jobs.add([*top, middle, free, last])
    found = blockers(db, last)
    assert names(jobs, found.parents) == [("middle", "AWAITING_PARENTS"), ("free", "READY")]
    assert names(jobs, found.causes) == [("a", "READY"), ("b", "READY"), ("free", "READY")]
    assert (found.parent_count, found.cause_count, found.claimable) == (2, 3, False)
    first = blockers(db, last, limit=1)
    assert (len(first.parents), len(first.causes), first.parent_count, first.cause_count) == (1, 1, 2, 3)
    assert blockers(db, free) == calls.Blockers(claimable=True)


def test_a_job_that_failed_because_of_others_names_the_first_causes(db: Database, jobs: Jobs) -> None:
    top = [Job(command="x", name=name) for name in ("bad", "good", "bad2")]
    middle = Job(command="x", name="middle", parents=top[:2])
    last = Job(command="x", name="last", parents=[middle, top[2]])
    jobs.add([*top, middle, last])
    fail(db, "bad", "bad2")
    found = blockers(db, last)
    assert names(jobs, found.parents) == [("bad2", "FAILED"), ("middle", "FAILED")]
    assert names(jobs, found.causes) == [("bad", "FAILED"), ("bad2", "FAILED")]
    assert blockers(db, top[0]) == calls.Blockers(claimable=False)


def test_a_job_that_is_not_there_has_no_blockers(db: Database) -> None:
    with pytest.raises(NotFound, match=r"there is no job \d+"):
        db.run(calls.GetBlockers(job=10**12))


def test_long_chains_and_many_parents_are_no_limit(db: Database, jobs: Jobs) -> None:
    long = chain(LONG)
    parents = [Job(command="x", name="one of many") for _ in range(MANY)]
    last = Job(command="x", name="last", parents=[long[-1], *parents])
    jobs.add([*long, *parents, last])
    assert names(jobs, blockers(db, long[-1]).causes) == [("0", "READY")]
    found = blockers(db, last)
    assert (found.parent_count, found.cause_count) == (MANY + 1, MANY + 1)
    with pytest.raises(InvalidInput, match="circle"):
        jobs.add_dependency(long[-1], long[0])
    jobs.where(id=long[0].id).kill()
    assert names(jobs, blockers(db, long[-1]).causes) == [("0", "USER_KILLED")]


def test_root_failures_count_what_failed_because_of_them_once(db: Database, jobs: Jobs) -> None:
    bad, worse = Job(command="x", name="bad"), Job(command="x", name="worse", workflow="other")
    ones = [Job(command="x", name=f"one-{number}", parents=[bad]) for number in range(3)]
    both = Job(command="x", name="both", parents=[ones[2], worse])
    own = Job(command="x", name="own", parents=[bad], wait_for_parents=False)
    killed = Job(command="x", name="killed")
    jobs.add([bad, worse, *ones, both, own, killed, Job(command="x", name="after", parents=[killed])])
    jobs.where(name="killed").kill()
    fail(db, "bad", "worse", "own")
    assert db.run(calls.GetRootFailures()) in ({bad.id: 4, worse.id: 0, own.id: 0}, {bad.id: 3, worse.id: 1, own.id: 0})
    assert db.run(calls.GetRootFailures(where=Compare("workflow", "eq", "other"))).keys() == {worse.id}


def test_counting_stops_at_a_limit(db: Database, jobs: Jobs) -> None:
    jobs.add([Job(command="x") for _ in range(9)])
    found = [db.run(calls.CountJobs(limit=limit)) for limit in (0, 5, 9, 10, None)]
    assert found == [0, 5, 9, 9, 9]
