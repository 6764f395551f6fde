"""The Python API on a real SQLite database without a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from balsam_core import App, Job, State, current_job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.errors import InvalidInput, NotFound, TimedOut, Unavailable
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Update, UpdateJobs

if TYPE_CHECKING:
    from pathlib import Path

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
