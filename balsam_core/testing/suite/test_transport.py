"""``balsam_open_transport``: deadlines, closing, forks, threads, and errors that are Balsam's own."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from balsam_core.errors import InvalidInput, NotFound, OutcomeUnknown, Unavailable
from balsam_core.model import calls
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job

if TYPE_CHECKING:
    from balsam_core import Database
    from balsam_core.client.jobs import Jobs
    from balsam_core.testing.fixtures import SuiteDB

THREADS, ADDS = 8, 15
MANY = 70_000


def test_it_says_whose_database_it_is(db: Database) -> None:
    assert db.info().db_id == db.directory.id


def test_a_closed_one_says_so(suite_db: SuiteDB) -> None:
    db = suite_db.open()
    db.info()
    db.close()
    db.close()
    with pytest.raises(Unavailable, match="closed"):
        db.info()


def test_it_is_refused_after_a_fork_and_goes_on_in_the_parent(db: Database) -> None:
    db.jobs.count()
    child = os.fork()
    if not child:
        try:
            db.jobs.count()
        except Unavailable as err:
            os._exit(7 if "fork" in err.message else 8)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert db.jobs.count() == 0


def test_threads_share_it(db: Database) -> None:
    def add(number: int) -> None:
        for turn in range(ADDS):
            db.jobs.add(Job(command="x", name=f"{number}-{turn}"))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(add, range(THREADS)))  # raises what a thread has raised
    names = [name for (name,) in db.jobs.rows("name")]
    assert sorted(names) == sorted(f"{number}-{turn}" for number in range(THREADS) for turn in range(ADDS))


def test_after_a_deadline_nothing_happened_or_all(db: Database, jobs: Jobs) -> None:
    for timeout in (0.0, 0.0001, 0.001, 0.01):
        before = jobs.count()
        try:
            db.run(calls.AddJobs(jobs=[Job(command="x")]), timeout=timeout)
        except OutcomeUnknown:
            assert jobs.count() in {before, before + 1}
        except Unavailable:
            assert jobs.count() == before, "an error that says that nothing was changed"
        else:
            assert jobs.count() == before + 1
    jobs.add(Job(command="x"))


@pytest.mark.parametrize("value", [object(), "\ud800", 2**64, float("nan"), "a\0b", {"a": ["\0"]}])
def test_what_cannot_travel_or_be_stored_is_refused(jobs: Jobs, value: object) -> None:
    with pytest.raises(InvalidInput):
        jobs.add(Job(command="x", data={"value": value}))
    assert jobs.count() == 0


@pytest.mark.parametrize("field", ["id", "priority", "attempt", "name", "created_at", "gpus_per_rank", "key"])
@pytest.mark.parametrize(
    "value",
    [2**31, -(2**31) - 1, 2**63 - 1, -(2**63), 2**64 - 1, 1e300, "", "x" * 100_000, "'\";--\\%_", None, True, "🎈"],
)
def test_no_condition_makes_an_error_that_is_not_balsams(jobs: Jobs, field: str, value: object) -> None:
    jobs.add(Job(command="x"))
    for compare in ("eq", "gt", "in") if value is not None else ("eq",):
        try:
            found = jobs.where(Compare(field, compare, [value] if compare == "in" else value)).ids()
        except InvalidInput:
            continue
        assert len(found) <= 1


def test_many_ids_may_be_named_at_once(jobs: Jobs) -> None:
    """More than a statement may have parameters in some databases."""
    (known,) = jobs.add(Job(command="x"))
    named = jobs.where(Job.id.in_([*range(known + 1, known + MANY), known]))
    assert named.ids() == [known]
    assert (named.count(), named.kill(), named.retry()) == (1, 1, 1)
    assert [job.id for job in named.remove()] == [known]


@pytest.mark.parametrize("field", ["name", "key", "workflow", "app", "command", "description"])
def test_no_condition_holds_a_nul(jobs: Jobs, field: str) -> None:
    """Some databases can't store it, and some end the text there."""
    for compare in ("eq", "ne", "lt", "in", "contains", "startswith"):
        for value in ("\0", "a\0b"):
            with pytest.raises(InvalidInput, match="NUL"):
                jobs.where(Compare(field, compare, [value] if compare == "in" else value)).ids()


def test_faults_of_the_caller_are_told_apart(db: Database, jobs: Jobs) -> None:
    with pytest.raises(NotFound, match="no job"):
        jobs.get(10**9)
    with pytest.raises(NotFound, match="nosuch"):
        db.apps.get("nosuch")
    with pytest.raises(InvalidInput):
        jobs.add(Job(command="x", num_nodes=0))


def test_every_change_is_seen_by_others_at_once(suite_db: SuiteDB, db: Database) -> None:
    with suite_db.open() as other:
        for number in range(5):
            (added,) = db.jobs.add(Job(command="x", name=str(number)))
            assert other.jobs.get(added).name == str(number)
            other.jobs.where(id=added).kill()
            assert db.jobs.get(added).state == "USER_KILLED"
