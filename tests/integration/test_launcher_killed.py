"""A launcher that dies without a word: nothing of it survives, nothing runs twice, and others take over at once."""

from __future__ import annotations

import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import pytest
from balsam_program import BALSAM, here
from job_trees import Runs
from resources import wait_for_end

from balsam_core import Job
from balsam_core.client import dead_launchers
from balsam_core.client.dead_launchers import LauncherWatch
from balsam_core.client.launchers import SILENT_SHARE
from balsam_core.dbdir.launcher_journal import MARK, Journal, journal_path
from balsam_core.model.calls import ClaimJobs, GetLaunchers, RegisterLauncher, RemovedJob, RenewLease, Resources
from balsam_core.testing.tools import wait_until

TAKEN_OVER_WITHIN = 20.0  # seconds
GONE_WITHIN = 5.0


@pytest.fixture
def start(path):
    """Start launchers that are gone after the test."""
    started = []

    def run(*words, inside=None):
        command = [*BALSAM, "--db", str(path), "launcher", "--consume-all", "--max-ranks-per-node", "8", *words]
        if inside:
            command = ["sh", "-c", f'echo 0 > {inside}/cgroup.procs; exec "$@"', "sh", *command]
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


@pytest.fixture
def delegated():
    """A control group that is delegated to us; its folder."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    where = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), None)
    if sys.platform != "linux" or os.geteuid() != 0 or where is None or not os.access(where, os.W_OK):
        pytest.skip("needs root and cgroup v2")
    folder = Path(where) / f"test-{os.getpid()}"
    folder.mkdir()
    os.setxattr(folder, "user.delegate", b"1")
    yield folder
    (folder / "cgroup.kill").write_text("1")
    wait_until(lambda: "populated 0" in (folder / "cgroup.events").read_text(), "the end of all in the group")
    for inner in [one for one in folder.iterdir() if one.is_dir()]:
        inner.rmdir()
    folder.rmdir()


def test_a_delegated_control_group_ends_what_has_left_everything_else(db, start, path, delegated):
    # Without guardian and keepers, nothing else tells whose process it is that has its own session and environment.
    job = Job(command="setsid -w env -i sh -c 'echo $$ > pid; exec sleep 600'", name="hides")
    db.jobs.add(job)
    first = start(inside=delegated)
    file = db.workdir(job) / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job's start")
    pid = int(file.read_text())
    wait_until(lambda: str(db.jobs.get(job.id).state) == "RUNNING", "its record")
    inner = next(delegated.glob("balsam-*")) / "inner"  # as a container tool makes one
    inner.mkdir()
    (inner / "cgroup.procs").write_text(str(pid))
    guardian = guardian_of(db, first)
    keepers = [one.pid for one in psutil.Process(guardian).children()]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # together, as it were
        for victim in (first.pid, guardian, *keepers):
            os.kill(victim, number)
    first.wait()
    assert psutil.pid_exists(pid)
    here.good("status", db=path)
    wait_for_end([pid])
    assert db.run(GetLaunchers()) == []
    assert str(db.jobs.get(job.id).state) == "RESTART_READY"
    assert [one.name for one in delegated.iterdir() if one.is_dir()] == []
    db.jobs.where(name="hides").kill()
    db.jobs.add(Job(command="cat /proc/self/cgroup", name="short"))
    (short,) = db.jobs.where(name="short")
    out, err = start(inside=delegated).communicate(timeout=60)
    assert "1 finished" in out, err
    assert f"/{delegated.name}/balsam-" in (db.workdir(short) / "short.out").read_text()
    assert [one.name for one in delegated.iterdir() if one.is_dir()] == []


def test_what_had_ended_is_not_repeated(db, start, path, tmp_path):
    ends = [
        Job(command=shlex.join(["sh", "-c", RUN_WHEN_STOPPED.format(tmp_path, name, code)]), name=name)
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
    assert here("launcher", "--consume-all", db=path).code == 10
    assert (tmp_path / "well").read_text() == "well\n"
    assert (tmp_path / "badly").read_text() == "badly\n"
    assert {job.name: str(job.state) for job in db.jobs} == {
        "stops": "JOB_FINISHED",
        "well": "JOB_FINISHED",
        "badly": "FAILED",
    }
    assert "its run had ended before launcher" in history(db, ends[0])
    assert "exit code 3" in history(db, ends[1])


RUN_WHEN_STOPPED = "until test -e {0}/stopped; do sleep 0.02; done; echo {1} >> {0}/{1}; exit {2}"
STOP_AND_WAIT = """
import os, signal, sys, time
from pathlib import Path
from balsam_core import current_job
from balsam_core.dbdir.launcher_journal import Journal
db = current_job().db
go = Path(sys.argv[1], "go")
if not go.exists():
    head = Journal(db.directory, int(os.environ["BALSAM_LAUNCHER_ID"])).head
    time.sleep(0.5)  # so that the launcher is idle
    os.kill(head.launcher, signal.SIGSTOP)
    Path(sys.argv[1], "stopped").touch()
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


@pytest.mark.parametrize("verb", ["kill", "retry", "remove"])
def test_python_frees_the_jobs_of_a_dead_launcher_as_the_verbs_do(db, start, verb):
    job = Job(command="sleep 600", name="long")
    db.jobs.add(job)
    first = start()
    wait_until(lambda: db.jobs.get(job.id).state == "RUNNING", "the job's start")
    chosen = db.jobs.where(id=job.id)
    if verb == "retry":
        chosen.kill()
    first.kill()
    first.wait()
    assert getattr(chosen, verb)() in (1, [RemovedJob(id=job.id, name="long", workflow="default")])
    state = {"kill": "USER_KILLED", "retry": "READY"}.get(verb)
    assert [(str(one.state), one.launcher_id) for one in db.jobs] == ([(state, None)] if state else [])
    assert db.run(GetLaunchers()) == []


def test_a_job_that_outlives_its_launcher_does_not_take_it_for_ended(db, start, monkeypatch):
    """This process takes the part of such a job, which changes jobs."""
    db.jobs.add(Job(command="sleep 600", name="long"))
    first = start()
    wait_until(lambda: db.jobs.where(state="RUNNING").count(), "the job's start")
    guardian = guardian_of(db, first)
    mark = Journal(db.directory, 1).head.mark
    for pid in (first.pid, guardian):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    monkeypatch.setattr(dead_launchers, "PATIENCE", 0.2)
    monkeypatch.setenv(MARK, mark)
    assert db.end_dead_launchers() == []
    assert [one.launcher_id for one in db.jobs] == [1]
    monkeypatch.delenv(MARK)
    wait_until(db.end_dead_launchers, "the proof of its death")
    assert [(str(one.state), one.launcher_id) for one in db.jobs] == [("RESTART_READY", None)]


TRACER = "import ctypes; print(ctypes.CDLL(None).ptrace(0x4206, {}, 0, 0), flush=True); input()"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs ptrace of another process")
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_job_whose_process_cannot_be_ended_is_not_given_back(db, start, how):
    # A traced process that was killed stays until its tracer looks at it.
    job = Job(command="sh -c 'echo $$ > pid; exec sleep 600'", name="hangs")
    db.jobs.add(job)
    launcher = start()
    file = db.workdir(job) / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job's start")
    wait_until(lambda: str(db.jobs.get(job.id).state) == "RUNNING", "its record")
    words = [sys.executable, "-c", TRACER.format(file.read_text().strip())]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as tracer:
        assert tracer.stdout.readline() == "0\n"
        if how == "stopped":
            launcher.terminate()
            out, err = launcher.communicate(timeout=60)
            assert launcher.returncode == 11, err
            assert f"processes of these jobs can't be ended: {job.id}; other launchers get" in err
        else:
            launcher.kill()
            launcher.communicate()
        second = start("--time-limit-minutes", "0.15")
        out, err = second.communicate(timeout=60)
        assert second.returncode == 11, err
        assert "Still held by others: 1 job of launcher 1" in out
        tracer.stdin.write("\n")
        tracer.stdin.flush()
        if how == "stopped":
            assert "it can't be given back, since these of its processes can't be ended" in history(db, job)
    assert here.good("status", db=db.path).err.startswith("Launcher 1 ")
    assert str(db.jobs.get(job.id).state) == "RESTART_READY"


# ---- a launcher of which nothing proves the death


@pytest.fixture
def far(db):
    """A launcher of another machine that holds a job, with a lease of three seconds; what renews it, and a watch."""
    db.jobs.add(Job(command="true"))
    call = RegisterLauncher(host="far", pid=7, boot_id="b", process_start=0.0, lease_seconds=LEASE)
    me = db.run(call)
    db.run(ClaimJobs(launcher=me, limit=1, resources=Resources()))
    return lambda: db.run(RenewLease(launcher=me, lease_seconds=LEASE)), LauncherWatch(db.directory, db.run)


LEASE = 3.0  # seconds


def set_clock(db, hours):
    """Let the database look as if its clock had been set by so much."""
    with closing(sqlite3.connect(db.path / "db.sqlite3")) as conn, conn:
        stored = conn.execute("SELECT lease_until, seen_at FROM launchers").fetchone()
        shifted = [str(datetime.fromisoformat(value) - timedelta(hours=hours)) for value in stored]
        conn.execute("UPDATE launchers SET lease_until = ?, seen_at = ?", shifted)


def watch_for(watch, seconds, meanwhile=lambda: None):
    """Look until a launcher is closed or time is over; return whether one was, and after how long."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        meanwhile()
        if watch.look():
            return True, time.monotonic() - began
        time.sleep(0.05)
    return False, seconds


def test_a_launcher_that_renews_its_lease_lives_whatever_the_clock_says(db, far):
    renew, watch = far
    for hours in (3, -3):
        renew()
        set_clock(db, hours)
        assert watch.look() == []

        def step_again(hours=hours):
            renew()
            set_clock(db, hours)

        assert watch_for(watch, LEASE / 2, step_again) == (False, LEASE / 2)
    assert [one.jobs for one in db.run(GetLaunchers())] == [1]


def test_a_silent_launcher_is_given_up_after_a_watch_and_not_by_the_clock(db, far):
    _, watch = far
    set_clock(db, 3)
    assert not db.run(GetLaunchers())[0].alive
    closed, after = watch_for(watch, 2 * LEASE)
    assert closed
    assert after > LEASE * SILENT_SHARE
    assert db.run(GetLaunchers()) == []
    assert [job.launcher_id for job in db.jobs] == [None]


def test_a_clock_that_was_set_back_delays_that_by_no_more_than_a_lease(db, far):
    _, watch = far
    set_clock(db, -3)
    closed, after = watch_for(watch, 4 * LEASE)
    assert closed
    assert LEASE < after < 2 * LEASE


def test_the_watch_begins_anew_when_the_database_was_away(db, far, monkeypatch):
    _, watch = far
    set_clock(db, 3)
    watch.look()
    monkeypatch.setattr(dead_launchers, "LONGEST_GAP", 0.5)
    time.sleep(LEASE * SILENT_SHARE + 0.6)
    assert watch.look() == []
    assert watch_for(watch, 2 * LEASE)[0]


@pytest.mark.usefixtures("far")
def test_a_launcher_waits_for_a_silent_one_and_takes_over(db, start):
    db.run(RenewLease(launcher=1, lease_seconds=45))  # so that the watch takes longer than from one line to the next
    set_clock(db, 3)
    launcher = start()
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, err
    assert out.startswith("1 finished")
    assert "waiting for 1 job of launcher 1 (host far, pid 7), which is silent and counts as dead at " in err


def test_no_verb_gives_a_living_launcher_up_by_the_clock(db, start, path):
    job = Job(command="sleep 600", name="long")
    db.jobs.add(job)
    start()
    wait_until(lambda: db.jobs.get(job.id).state == "RUNNING", "the job's start")
    set_clock(db, 3)
    assert "held by a launcher" in here.refused("rm", str(job.id), "-y", db=path, code=4)
    assert here("launcher", "--consume-all", "--time-limit-minutes", "0.05", db=path).code == 11
    here.good("status", db=path)
    assert (str(db.jobs.get(job.id).state), db.jobs.get(job.id).attempt) == ("RUNNING", 1)
    assert len(db.run(GetLaunchers())) == 1


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
        assert here("launcher", "--consume-all", "--time-limit-minutes", "0.01", db=path).code == 11
    runs.let_end()
    wait_until(lambda: not runs.unfinished(), "the jobs' end")
    assert {job.attempt for job in db.jobs} == {1}
