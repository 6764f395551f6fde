"""A launcher that dies without a word: nothing of it survives, nothing runs twice, and others take over at once."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

import psutil
import pytest
from balsam_program import BALSAM, here
from job_trees import Runs
from resources import wait_for_end

from balsam_core import Job
from balsam_core.dbdir.launcher_journal import Journal, journal_path
from balsam_core.model.calls import GetLaunchers
from balsam_core.testing.tools import wait_until

TAKEN_OVER_WITHIN = 20.0  # seconds
GONE_WITHIN = 5.0


@pytest.fixture
def start(path):
    """Start launchers that are gone after the test."""
    started = []

    def run(*words):
        command = [*BALSAM, "--db", str(path), "launcher", "--consume-all", "--max-ranks-per-node", "8", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for launcher in started:
        launcher.kill()
        launcher.communicate()


@pytest.fixture
def runs(db, tmp_path):
    return Runs(db, tmp_path)


def history(db, job):
    return " | ".join(event.message for event in db.jobs.history(job) if event.message)


def guardian_of(db, launcher):
    (info,) = [one for one in db.run(GetLaunchers()) if one.pid == launcher.pid]
    return Journal(db.directory, info.id).head.guardian


@pytest.mark.parametrize("other", ["waiting", "busy", "later"])
def test_another_launcher_takes_over_at_once_and_nothing_survives(db, start, runs, other):
    runs.add_long_jobs()
    first = start()
    pids = runs.wait_for_start()
    if other != "later":
        busy = Job(command="sleep 600", name="busy")
        child = Job(command="true", name="child", parents=[runs.jobs[0]])
        db.jobs.add([child] if other == "waiting" else [child, busy])
        second = start()
        wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the second launcher")
    first.kill()
    killed_at = time.monotonic()
    wait_for_end(pids, seconds=GONE_WITHIN)
    runs.let_end()
    if other == "later":
        second = start()
    wait_until(lambda: not runs.unfinished(), "the jobs' end", seconds=TAKEN_OVER_WITHIN)
    assert time.monotonic() - killed_at < TAKEN_OVER_WITHIN
    if other == "busy":
        db.jobs.where(name="busy").kill()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err + out
    assert runs.overlaps() == []
    assert f"pid {first.pid}) was lost" in history(db, runs.jobs[0])
    assert db.run(GetLaunchers()) == []
    assert list((db.path / "log").glob("*.journal")) == []


@pytest.mark.parametrize("victims", ["guardian", "launcher and guardian", "all"])
def test_a_killed_guardian_costs_no_more_than_the_runs(db, start, runs, victims):
    runs.add_long_jobs()
    first = start()
    pids = runs.wait_for_start()
    guardian = guardian_of(db, first)
    keepers = [one.pid for one in psutil.Process(guardian).children()]
    doomed = {"guardian": [guardian], "launcher and guardian": [first.pid, guardian]}
    for pid in doomed.get(victims, [first.pid, guardian, *keepers]):
        os.kill(pid, signal.SIGKILL)
    if victims != "all":
        wait_for_end(pids, seconds=GONE_WITHIN)
        runs.let_end()
    second = start()  # it ends what nobody else could
    if victims == "all":
        wait_for_end(pids)
        runs.let_end()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err + out
    wait_until(lambda: not runs.unfinished(), "the jobs' end", seconds=TAKEN_OVER_WITHIN)
    assert runs.overlaps() == []


def test_what_had_ended_is_not_repeated(db, start, path, tmp_path):
    ends = [
        Job(command=shlex.join(["sh", "-c", f"echo {name} >> {tmp_path}/{name}; exit {code}"]), name=name)
        for name, code in (("well", 0), ("badly", 3))
    ]
    stops_launcher = Job(
        command=shlex.join([sys.executable, "-c", STOP_AND_WAIT, str(tmp_path)]), name="stops", priority=9
    )
    db.jobs.add([stops_launcher, *ends])
    first = start()
    wait_until(lambda: all((tmp_path / job.name).exists() for job in ends), "the ends of the runs")
    (info,) = db.run(GetLaunchers())
    wait_until(lambda: len(list(Journal(db.directory, info.id).runs())) == 2, "the journal")
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    here.good("launcher", "--consume-all", db=path)
    assert (tmp_path / "well").read_text() == "well\n"
    assert (tmp_path / "badly").read_text() == "badly\n"
    assert {job.name: str(job.state) for job in db.jobs} == {
        "stops": "JOB_FINISHED",
        "well": "JOB_FINISHED",
        "badly": "FAILED",
    }
    assert "its run had ended before launcher" in history(db, ends[0])
    assert "exit code 3" in history(db, ends[1])


STOP_AND_WAIT = """
import os, signal, sys, time
from pathlib import Path
from balsam_core import current_job
from balsam_core.dbdir.launcher_journal import Journal
db = current_job().db
go = Path(sys.argv[1], "go")
if not go.exists():
    head = Journal(db.directory, int(os.environ["BALSAM_LAUNCHER_ID"])).head
    while not Path(sys.argv[1], "well").exists():
        os.kill(head.launcher, signal.SIGSTOP)
        time.sleep(0.05)
    time.sleep(600)
"""


@pytest.mark.parametrize("verb", ["status", "kill", "retry", "rm"])
def test_verbs_need_no_launcher_to_free_the_jobs_of_a_dead_one(db, start, path, verb):
    job = Job(command="sleep 600", name="long")
    db.jobs.add(job)
    first = start()
    wait_until(lambda: db.jobs.get(job.id).state == "RUNNING", "the job's start")
    if verb == "retry":
        db.jobs.where(id=job.id).kill()
    first.kill()
    first.wait()
    words = {"status": [], "kill": [str(job.id)], "retry": [str(job.id)], "rm": [str(job.id), "-y"]}[verb]
    done = here.good(verb, *words, db=path)
    assert f"Launcher 1 (host {os.uname().nodename}, pid {first.pid}) was lost" in done.err
    if verb == "status":
        assert "launchers  0 alive" in done.out
    state = {"status": "RESTART_READY", "kill": "USER_KILLED", "retry": "READY"}.get(verb)
    assert [(str(one.state), one.launcher_id) for one in db.jobs] == ([(state, None)] if state else [])
    assert db.run(GetLaunchers()) == []


def test_a_launcher_that_ends_well_leaves_no_journal(db, path):
    db.jobs.add(Job(command="true"))
    here.good("launcher", "--consume-all", db=path)
    assert list((path / "log").glob("*.journal")) == []


def test_a_living_launcher_is_left_alone(db, start, runs, path):
    runs.add_long_jobs()
    start()
    runs.wait_for_start()
    (info,) = db.run(GetLaunchers())
    assert journal_path(db.directory, info.id).exists()
    for _ in range(3):
        here.good("launcher", "--consume-all", db=path)
    runs.let_end()
    wait_until(lambda: not runs.unfinished(), "the jobs' end")
    assert {job.attempt for job in db.jobs} == {1}
