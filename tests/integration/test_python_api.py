"""The Python API on a real SQLite database without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from array import array
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from balsam_core import App, Job, State, current_job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.errors import Conflict, InvalidInput, NotFound, TimedOut, Unavailable
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Update, UpdateJobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database

WRITERS, WRITES = 16, 200
DONE = ("STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return initialise(tmp_path / "my db?%41", "sqlite").db.path


def finish_all(path: Path) -> None:
    """Play a launcher that has instant jobs."""
    with open_db(path) as db:
        me = db.run(RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=900))
        while jobs := db.run(ClaimJobs(launcher=me, limit=2, resources=Resources())).jobs:
            transitions = [(State(name), 0.0) for name in DONE]
            updates = [Update(job=job.id, attempt=job.attempt, transitions=transitions, return_code=0) for job in jobs]
            assert db.run(UpdateJobs(launcher=me, updates=updates)) == {}


def test_an_ensemble_in_ten_lines(db: Database, path: Path) -> None:
    db.apps.add(App("sim", "sim.x --x {x}"))
    pre = Job(name="prep", command="prep", workflow="scan")
    sims = [Job(app="sim", workflow="scan", parameters={"x": x}, parents=[pre]) for x in range(5)]
    db.jobs.add([pre, *sims])
    runner = threading.Thread(target=finish_all, args=(path,))
    runner.start()
    ended = [(job.id, job.state, job.return_code) for job in db.as_completed([pre, *sims], timeout=60)]
    runner.join()
    assert sorted(ended) == [(job.id, "JOB_FINISHED", 0) for job in (pre, *sims)]
    assert ended[0][0] == pre.id
    assert db.jobs.where(workflow="scan").states() == {"JOB_FINISHED": 6}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"parameters": {"x": 10**20}}, "job 'bad': parameters holds 1.*64-bit"),
        ({"description": "\udcff"}, "job 'bad': the description is not valid Unicode"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_a_value_that_can_not_be_sent_is_named_with_its_job(db: Database, fields: dict[str, Any], why: str) -> None:
    jobs = [Job(name="good", command="x"), Job(name="bad", command="x", **fields)]
    with pytest.raises(InvalidInput, match=why):
        db.jobs.add(jobs)
    assert db.jobs.count() == 0
    assert [job.id for job in jobs] == [None, None]


class Kind(Enum):
    """A choice."""

    A = "a"


class Whole(int):
    """A number of another type, such as those of NumPy."""


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1, 2}, "set; a set has no order"),
        (frozenset("ab"), "frozenset; a set has no order"),
        ([{"deep": [{1}]}], "set; a set has no order"),
        (b"x", "bytes"),
        (Path("/x"), "PosixPath"),
        (1 + 2j, "complex"),
        (2**70, "64-bit"),
        (float("nan"), "JSON can't"),
        (datetime.now(UTC), "datetime"),
        (Whole(3), "Whole"),
        (array("d", [1.0]), "of a NumPy value or array give value.tolist"),
        ({1: 2}, "keys must be text"),
    ],
)
def test_a_value_that_would_not_come_back_is_refused(db: Database, value: object, why: str) -> None:
    for field in ("parameters", "data"):
        with pytest.raises(InvalidInput, match=f"^job 2 of 2: {field} h.*{why}"):
            db.jobs.add([Job(command="x"), Job(command="x", **{field: {"v": value}})])
    assert db.jobs.count() == 0


def test_values_that_json_lacks_are_stored_as_documented(db: Database) -> None:
    given = [Decimal("1.50"), date(2026, 1, 2), datetime(2026, 1, 2, 3, 4), timedelta(days=1), (1, 2), Kind.A]  # noqa: DTZ001
    (job,) = db.jobs.add(Job(command="x", parameters={"v": given}))
    stored = ["1.50", "2026-01-02", "2026-01-02T03:04:00", "P1D", [1, 2], "a"]
    assert db.jobs.get(job).parameters["v"] == stored


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"environ": {"A": "x", "B": 1}}, "environment variable B has the value 1, which is no text"),
        ({"environ": {1: "x"}}, "1 can't name an environment variable"),
        ({"input_files": {"a", "b"}}, "input_files holds a value of type set"),
        ({"input_files": ["../*.x"]}, "input_files: the pattern '../.*' holds a slash"),
        ({"stage_in": "in"}, "stage_in: 'in' is no absolute path"),
        ({"args": "'a"}, "args: can't split"),
        ({"parents": None}, "parents must be a list, not None"),
        ({"parents": (job for job in ())}, "parents must be a list, not <generator"),
        ({"parents": Job(command="p")}, "parents must be a list, not <Job"),
        ({"parents": [object()]}, "a parent is a Job or a job's id"),
        ({"app": "no", "command": ""}, "app 'no' needs the parameters x"),
    ],
)
def test_a_job_without_a_name_is_named_by_its_place(db: Database, fields: dict[str, Any], why: str) -> None:
    if "app" in fields:
        db.apps.add(App("no", "{x}"))
    with pytest.raises(InvalidInput, match=f"^job 2 of 3: {why}"):
        db.jobs.add([Job(command="x"), Job(**{"command": "x", **fields}), Job(command="x")])
    assert db.jobs.count() == 0


def test_the_place_is_that_in_what_was_given(db: Database) -> None:
    db.apps.add(App("sim", "{x}"))
    parent = Job(command="x")
    with pytest.raises(InvalidInput, match=r"^job 1 of 2: app 'sim' needs"):
        db.jobs.add([Job(app="sim", parents=[parent]), parent])
    many = [Job(command="x") for _ in range(4_500)]
    with pytest.raises(InvalidInput, match=r"^job 4501 of 4501: app 'sim' needs"):
        db.jobs.add([*many, Job(app="sim")])
    with pytest.raises(InvalidInput, match=r"^the given job number 4501: app 'sim' needs"):
        db.jobs.add(job for job in [*many, Job(app="sim")])
    with pytest.raises(InvalidInput, match=r"^the job with the key 'k': app 'sim' needs"):
        db.jobs.add([Job(command="x"), Job(app="sim", key="k")])
    assert db.jobs.count() == 0


@pytest.mark.parametrize(
    "given", [None, 3, "abc", "", b"x", {}, {"a": 1}, App("a", "b"), [None], [App("a", "b")], ["x"], Job], ids=repr
)
def test_only_jobs_can_be_added(db: Database, given: Any) -> None:
    with pytest.raises(InvalidInput, match="Job objects can be added, not "):
        db.jobs.add(given)
    assert db.jobs.count() == 0


def test_a_job_is_given_once(db: Database) -> None:
    parent = Job(command="x")
    child = Job(command="x", name="c", parents=[parent])
    with pytest.raises(Conflict, match="job 'c' is given twice"):
        db.jobs.add([child, parent, child])
    with pytest.raises(Conflict, match="job 2 of 2 is given twice"):
        db.jobs.add(job for job in [parent, parent])
    assert (db.jobs.count(), parent.id, child.id) == (0, None, None)


@pytest.mark.parametrize("before", [1, 4_500])
def test_a_generator_that_fails_adds_nothing(db: Database, before: int) -> None:
    def failing() -> Iterator[Job]:
        yield from (Job(command="x") for _ in range(before))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.jobs.add(failing())
    assert db.jobs.count() == 0


def test_wrong_values_of_apps_are_named(db: Database) -> None:
    for app, why in (
        (App("a", "x", environ={"A": 1}), "app 'a': environment variable A has the value 1"),  # type: ignore[dict-item]
        (App("a", 3), "app 'a': executable can't be 3; it must be of type str"),
    ):
        with pytest.raises(InvalidInput, match=why):
            db.apps.add(App("good", "x"), app)
    with pytest.raises(InvalidInput, match="only App objects can be defined, not 'a'"):
        db.apps.add("a")
    assert list(db.apps) == []


@pytest.mark.parametrize(
    ("choose", "why"),
    [
        (lambda jobs: jobs.where(Job.id == Whole(3)), "id can't be compared with 3 of type .*Whole"),
        (lambda jobs: jobs.where(Job.id.in_([1, Whole(3)])), "id can't be compared with 3 of type .*Whole"),
        (lambda jobs: jobs.where(id=Whole(3)), "id can't be compared with 3 of type .*Whole"),
        (lambda jobs: jobs.where(Job.id == 2**64), "no 64-bit integer"),
        (lambda jobs: jobs.where(Job.id.in_([2**64])), "no 64-bit integer"),
        (lambda jobs: jobs.where(Job.name.in_("abc")), "takes a list of values, not 'abc'"),
        (lambda jobs: jobs.where(Job.id.in_(3)), "takes a list of values, not 3"),
        (lambda jobs: jobs.where(state=["FAILED"]), "for one of several values use in_"),
        (lambda jobs: jobs.where(Job.state == 3), "there is no state 3"),
        (lambda jobs: jobs.where(Job.name > datetime.now(UTC)), "name can't be compared with datetime"),
        (lambda jobs: jobs.where(Job.created_at > datetime(2026, 1, 1)), "no time zone"),  # noqa: DTZ001
        (lambda jobs: jobs.where(Job.data == {"a": 1}), "data, which is a document"),
        (lambda jobs: jobs.limit("3"), "limit"),
        (lambda jobs: jobs.limit(-1), "limit"),
        (lambda jobs: jobs.order_by(3), "no field 3"),
        (lambda jobs: jobs.where(id=jobs.get("3").id), "'3' of type str is no job"),
    ],
)
def test_a_wrong_value_of_a_filter_is_said(db: Database, choose: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        choose(db.jobs).ids()
    with pytest.raises(InvalidInput, match="takes a list of jobs or ids, not 3"):
        list(db.as_completed(3))


def test_ids_come_in_the_order_of_adding(db: Database) -> None:
    first = db.jobs.add(Job(command="x", key="b"))
    assert db.jobs.add(Job(command="x", key=key) for key in "abc") == [2, *first, 3]
    jobs = [Job(command="x") for _ in range(2500)]
    assert db.jobs.add(jobs) == [job.id for job in jobs] == list(range(4, 2504))
    assert db.jobs.add([]) == []


def test_as_completed_says_what_it_waited_for_in_vain(db: Database) -> None:
    ids = db.jobs.add([Job(command="x"), Job(command="y")])
    with pytest.raises(TimedOut, match="2 of the jobs"):
        list(db.as_completed(ids, timeout=0.1))
    db.jobs.where(id=ids[0]).remove()
    with pytest.raises(NotFound, match=f"job {ids[0]} was removed"):
        list(db.as_completed(ids, timeout=5))


def test_jobs_can_be_written_to_files(db: Database, tmp_path: Path) -> None:
    db.jobs.add(Job(command="x", parameters={"n": number}) for number in range(2500))
    assert db.jobs.where(Job.id > 10).to_jsonl(tmp_path / "jobs.jsonl") == 2490
    lines = (tmp_path / "jobs.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["parameters"] == {"n": 10}
    assert len({json.loads(line)["id"] for line in lines}) == 2490


def test_current_job_is_found_by_its_environment(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="BALSAM_JOB_ID is not set"):
        current_job()
    parent = Job(command="p", workflow="w", name="me", parameters={"x": 1})
    db.jobs.add(parent)
    monkeypatch.setenv("BALSAM_JOB_ID", str(parent.id))
    monkeypatch.setenv("BALSAM_DB_PATH", str(db.path))
    me = current_job()
    assert (me.id, me.parameters) == (parent.id, {"x": 1})
    child = me.spawn(command="c")
    me.db.close()
    found = db.jobs.get(child.id)
    assert (found.workflow, found.parents, found.state) == ("w", [parent.id], "AWAITING_PARENTS")


def test_a_database_is_refused_after_a_fork(db: Database) -> None:
    child = os.fork()
    if not child:
        try:
            db.jobs.count()
        except Unavailable as err:
            os._exit(7 if "fork" in err.message else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert db.jobs.count() == 0


WRITER = """
import sys
from balsam_core import Job, open_db
path, writer, writes = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.readline()
with open_db(path) as db:
    for number in range(writes):
        db.jobs.add(Job(command="x", name=f"{writer}-{number}"))
"""


def test_sixteen_writers_lose_and_double_nothing(db: Database, path: Path) -> None:
    """0.2 lost 118 of 320 saves of 16 writers."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(writer), str(WRITES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for writer in range(WRITERS)
    ]
    try:
        outputs = [process.communicate("\n", timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert outputs == [""] * WRITERS
    assert [process.returncode for process in processes] == [0] * WRITERS
    names = sorted(row[0] for row in db.jobs.rows("name"))
    assert names == sorted(f"{writer}-{number}" for writer in range(WRITERS) for number in range(WRITES))
