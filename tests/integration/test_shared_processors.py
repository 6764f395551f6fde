"""Launchers of one user share the processors: no two jobs have one in common, and none waits for ever."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from balsam_program import BALSAM, here

from balsam_core import Job, open_db
from balsam_core.model.calls import GetLaunchers
from balsam_core.testing.tools import wait_until

DEADLINE = 120.0  # seconds


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


@pytest.fixture
def other_db(tmp_path):
    here.good("init", tmp_path / "other")
    with open_db(tmp_path / "other") as opened:
        yield opened


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start launchers that share the processors with each other, and with none of other tests."""
    monkeypatch.setenv("BALSAM_RUNTIME_DIR", str(tmp_path / "runtime"))
    started = []

    def run(db, *words):
        command = [*BALSAM, "--db", str(db.path), "launcher", "--consume-all", *words]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for launcher in started:
        launcher.kill()
        launcher.communicate()


def fill_the_node(db):
    """Add a job for each processor; return the files that end them."""
    files = [db.path.with_name(f"end{number}") for number in range(len(os.sched_getaffinity(0)))]
    db.jobs.add([sh(f"until [ -e {file} ]; do sleep 0.05; done", name="long") for file in files])
    return files


def running(db):
    return db.jobs.where(state="RUNNING").count()


def test_launchers_of_different_dbs_share_the_processors(db, other_db, start, tmp_path):
    folder, counts = tmp_path / "running", tmp_path / "counts"
    folder.mkdir()
    script = f"touch {folder}/$$; ls {folder} | wc -l >>{counts}; sleep 0.3; rm {folder}/$$"
    for one in (db, other_db):
        one.jobs.add([sh(script, name="a") for _ in range(24)])
    for launcher in [start(db), start(other_db)]:
        out, err = launcher.communicate(timeout=DEADLINE)
        assert (launcher.returncode, "24 finished" in out) == (0, True), out + err
    assert max(map(int, counts.read_text().split())) == len(os.sched_getaffinity(0))


def test_a_launcher_waits_for_processors_without_claiming_jobs(db, other_db, start):
    files = fill_the_node(db)
    start(db)
    wait_until(lambda: running(db) == len(files), "the long jobs")
    job = sh("true", name="waits")
    other_db.jobs.add(job)
    waiting = start(other_db)
    line = waiting.stderr.readline()
    while "waiting for processors" not in line:
        assert line
        line = waiting.stderr.readline()
    assert f"used by launcher 1 of {db.path}" in line
    assert other_db.jobs.get(job.id).launcher_id is None
    assert waiting.poll() is None
    files[0].touch()
    out, err = waiting.communicate(timeout=DEADLINE)
    assert (waiting.returncode, "1 finished" in out) == (0, True), out + err


def test_one_that_waits_for_processors_ends_when_time_is_over_or_others_have_done_its_jobs(db, start):
    files = fill_the_node(db)
    first = start(db)
    wait_until(lambda: running(db) == len(files), "the long jobs")
    db.jobs.add(sh("true", name="last", priority=-1))
    hurried, patient = start(db, "--time-limit-minutes", "0.05"), start(db)
    out, err = hurried.communicate(timeout=DEADLINE)
    assert (hurried.returncode, "0 finished" in out) == (11, True), out + err
    for file in files:
        file.touch()
    ends = [launcher.communicate(timeout=DEADLINE) for launcher in (first, patient)]
    assert (first.returncode, patient.returncode) == (0, 0), ends
    assert db.jobs.where(state="JOB_FINISHED").count() == len(files) + 1


def test_who_says_how_many_run_shares_nothing(db, other_db, start):
    files = fill_the_node(db)
    start(db)
    wait_until(lambda: running(db) == len(files), "the long jobs")
    for number, words in enumerate((["--max-ranks-per-node", "1"], ["--num-workers", "1"]), 1):
        other_db.jobs.add(sh("true", name="a"))
        launcher = start(other_db, *words)
        assert launcher.wait(DEADLINE) == 0
        assert other_db.jobs.where(state="JOB_FINISHED").count() == number


def test_a_job_of_the_whole_node_gets_its_turn_beside_another_launcher(db, other_db, start):
    db.jobs.add([sh("sleep 0.2", name="a") for _ in range(400)])
    job = sh("true", name="whole", threads_per_rank=64)
    other_db.jobs.add(job)
    start(db)
    wait_until(lambda: running(db), "the first jobs")
    launcher = start(other_db)
    assert launcher.wait(DEADLINE) == 0
    assert db.jobs.where(state="JOB_FINISHED").count() < 400


def test_launchers_share_gpus(db, other_db, start, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    script = f"mkdir {tmp_path}/lock || exit 1; sleep 0.2; rmdir {tmp_path}/lock"
    db.jobs.add([sh(script, name="a", gpus_per_rank=1) for _ in range(40)])
    first = start(db)
    wait_until(lambda: running(db), "the first jobs")
    other_db.jobs.add([sh(script, name="a", gpus_per_rank=1), sh("true", name="plain")])
    out, err = start(other_db).communicate(timeout=DEADLINE)
    assert "2 finished, 0 failed" in out, out + err
    assert db.jobs.where(state="JOB_FINISHED").count() < 40
    out, err = first.communicate(timeout=DEADLINE)
    assert "40 finished, 0 failed" in out, out + err


def test_the_processors_of_a_killed_launcher_are_free_when_its_jobs_are_gone(db, other_db, start, tmp_path):
    cores = len(os.sched_getaffinity(0))
    db.jobs.add([sh(f"trap '' TERM; echo $$ >>{tmp_path}/pids; sleep 600; true", name="a") for _ in range(cores)])
    first = start(db)
    wait_until(lambda: running(db) == cores, "the long jobs")
    pids = (tmp_path / "pids").read_text().split()
    other_db.jobs.add(sh(f"for pid in {' '.join(pids)}; do ! kill -0 $pid || exit 1; done", name="after"))
    second = start(other_db)
    wait_until(lambda: other_db.run(GetLaunchers()), "the second launcher")
    first.kill()
    out, err = second.communicate(timeout=DEADLINE)
    assert (second.returncode, "1 finished" in out) == (0, True), out + err
