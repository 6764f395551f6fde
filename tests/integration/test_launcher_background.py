"""Launchers in the background: started, shown, followed and stopped; and what a launcher refuses to select."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from balsam_program import BALSAM, child, here
from journals import write_journal
from resources import is_alive

from balsam_core import Job
from balsam_core.dbdir.launcher_journal import journal_path, read_journals
from balsam_core.model.calls import GetLaunchers
from balsam_core.system.processes import Machine
from balsam_core.testing.tools import wait_until


@pytest.fixture
def start(db, path):
    """Start launchers in the background, which are stopped after the test."""

    def run(*words, **settings):
        done = child.good("launcher", *words, "--daemon", "-o", "json", db=path, **settings)
        assert done.err == ""
        return done.json

    yield run
    for found in read_journals(db.directory):
        here("launcher", "--stop", found.launcher, db=path)


def test_it_runs_on_without_its_starter_is_shown_and_stopped(db, path, start):
    db.jobs.add([Job(command="sleep 60", name="long"), Job(command="true", name="short")])
    begin = time.monotonic()
    started = start("--consume-all", "--max-ranks-per-node", 2)
    assert time.monotonic() - begin < 30
    assert started == {"launcher": 1, "pid": started["pid"], "log": str(path / "log" / "launcher-1.log")}
    wait_until(lambda: [str(job.state) for job in db.jobs] == ["RUNNING", "JOB_FINISHED"], what="the jobs")
    (shown,) = here.good("status", "-o", "json", db=path).json["launchers"]
    assert (shown["pid"], shown["alive"], shown["background"]) == (started["pid"], True, True)
    assert f"1: {shown['host']} pid {started['pid']}, 1 jobs, in the background" in here.good("status", db=path).out
    assert here.good("launcher", "--stop", db=path).out == "stopped 1 launcher: 1\n"
    assert not is_alive(started["pid"])
    assert db.run(GetLaunchers()) == []
    assert "stopped by SIGTERM" in here.good("log", "launcher", db=path).out
    assert read_journals(db.directory) == []
    said = here.good("launcher", "--stop", db=path).out
    assert said == "stopped no launcher: none runs in the background on this machine\n"


def test_its_starters_end_does_not_end_it(db, path, start):
    db.jobs.add(Job(command="sleep 60"))
    words = [*BALSAM, "--db", str(path), "launcher", "--consume-all", "--daemon", "-o", "json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as starter:
        started = json.loads(starter.communicate()[0])
    with pytest.raises(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGHUP)  # as a closed terminal does: nobody is left in that group
    wait_until(lambda: db.jobs.get(1).state == "RUNNING", what="the job")
    assert is_alive(started["pid"])


def test_listed_jobs_and_options_reach_it(db, path, start):
    db.jobs.add([Job(command="true", name=str(number)) for number in range(3)])
    start("--job-file", "-", "--time-limit-minutes", "0.5", stdin="1 3\n")
    wait_until(lambda: [str(job.state) for job in db.jobs] == ["JOB_FINISHED", "READY", "JOB_FINISHED"], what="them")
    start("--wf-name", "default", "--max-ranks-per-node", 7)
    wait_until(lambda: db.jobs.get(2).state == "JOB_FINISHED", what="the workflow's jobs")
    first, second = ((path / "log" / f"launcher-{number}.log").read_text() for number in (1, 2))
    assert "only=(1, 3), time_limit=30.0" in first
    assert "slots=7, workflow='default', only=None, time_limit=None" in second


def test_what_keeps_it_from_starting_is_told(path, db):
    db.jobs.add(Job(command="true"))
    (path / "log").rmdir()
    (path / "log").write_text("no folder")
    done = here("launcher", "--consume-all", "--daemon", db=path)
    assert done.code not in {0, 2}
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    assert db.run(GetLaunchers()) == []  # no lease is left


def test_a_launcher_in_the_foreground_is_stopped_by_its_number(db, path):
    db.jobs.add(Job(command="sleep 60"))
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(1).state == "RUNNING", what="the job")
        assert here.good("launcher", "--stop", db=path).out.endswith(
            "name one that doesn't: balsam launcher --stop 1\n"
        )
        assert here.good("launcher", "--stop", 1, "-o", "json", db=path).json == {"stopped": 1, "ids": [1]}
    assert launcher.returncode == 143
    assert db.jobs.get(1).state == "RESTART_READY"


def test_others_are_not_stopped(db, path):
    assert "no launcher 7 runs on this machine" in here.refused("launcher", "--stop", 7, db=path, code=3)
    assert "no id of a launcher" in here.refused("launcher", "--stop", "x", db=path, code=2)
    assert "no other option" in here.refused("launcher", "--stop", "--consume-all", db=path, code=2)
    write_journal(db.directory, 7, machine=Machine("far", "b", 0), pid=1)
    assert here.refused("launcher", "--stop", 7, db=path, code=4) == "launcher 7 runs on far: stop it there"
    # The number of a process that has ended may be another one's by now.
    with subprocess.Popen(["sleep", "60"]) as bystander:
        write_journal(db.directory, 8, pid=bystander.pid, start=1.0)
        assert "no launcher 8" in here.refused("launcher", "--stop", 8, db=path, code=3)
        assert bystander.poll() is None
        bystander.kill()


def test_journals_of_the_dead_are_removed_by_the_next_launcher(db, path):
    write_journal(db.directory, 98, pid=2**22 - 1)
    write_journal(db.directory, 99, machine=Machine("far", "b", 0), pid=1)
    journal_path(db.directory, 97).write_text("damaged")
    db.jobs.add(Job(command="true"))
    here.good("launcher", "--consume-all", db=path)
    assert [found.launcher for found in read_journals(db.directory)] == [99]
