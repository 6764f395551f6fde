"""Launchers killed, stopped, and cut off from the database: no job runs twice at once, and none is lost (T30-T35)."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest
import short_leases
from amounts import at_most
from balsam_program import BALSAM
from job_trees import Runs
from resources import is_alive, wait_for_end

from balsam_core import Job
from balsam_core.dbdir.launcher_journal import Journal
from balsam_core.model.calls import GetLaunchers
from balsam_core.testing.tools import wait_until

GONE_WITHIN = 5.0  # seconds after a kill
TAKEN_OVER_WITHIN = 20.0
STOPPED_WITHIN = 25.0
LEASE = 6.0  # seconds; commands end a third before its end


@pytest.fixture
def start(db):
    """Start launchers that are gone after the test."""
    started = []

    def run(*words, lease=None):
        program = BALSAM if lease is None else [sys.executable, short_leases.__file__, str(lease)]
        command = [*program, "--db", str(db.path), "launcher", "--consume-all", "--max-ranks-per-node", "64", *words]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield run
    for one in started:
        one.kill()
        one.communicate()


def launcher_info(db, launcher):
    (info,) = [one for one in db.run(GetLaunchers()) if one.pid == launcher.pid]
    return info


def wait_for_sleep(db, job):
    file = db.workdir(job) / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job's start")
    return int(file.read_text())


def test_launchers_killed_again_and_again(db, start, tmp_path, amount, verdict):
    """A launcher is killed with jobs of all kinds, another one waits; in the end all have run once to the end (T30)."""
    kills, copies = amount((2, 1), (100, 5))
    runs = Runs(db, tmp_path)
    runs.add_long_jobs(copies)
    db.jobs.add(Job(command="true", name="last", parents=runs.jobs))
    running = start()
    longest = {"end": 0.0, "takeover": 0.0}
    for _ in range(kills):
        pids = runs.wait_for_start()
        waiting = start()
        wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the other launcher")
        time.sleep(random.uniform(0.0, 0.5))
        runs.forget_start()
        running.kill()
        killed_at = time.monotonic()
        wait_for_end(pids, seconds=at_most(GONE_WITHIN))
        longest["end"] = max(longest["end"], time.monotonic() - killed_at)
        runs.wait_for_start()
        longest["takeover"] = max(longest["takeover"], time.monotonic() - killed_at)
        assert longest["takeover"] < at_most(TAKEN_OVER_WITHIN)
        running.communicate()
        running = waiting
    runs.let_end()
    out, err = running.communicate(timeout=120)
    assert running.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    verdict(
        "T30",
        "launcher killed while another waits",
        f"{kills} times with {len(runs.jobs)} jobs that make groups, sessions and daemons: all processes gone within "
        f"{longest['end']:.1f} s, all jobs running again within {longest['takeover']:.1f} s, no two runs at once",
    )


@pytest.mark.parametrize("victims", ["guardian", "guardian and launcher", "guardian, launcher and keepers"])
def test_guardians_killed(db, start, tmp_path, amount, verdict, victims):
    """What keeps the jobs of a launcher is killed, alone or with the launcher (T31)."""
    rounds = amount(1, 20)
    runs = Runs(db, tmp_path)
    runs.add_long_jobs()
    for _ in range(rounds):
        launcher = start()
        runs.forget_start()
        pids = runs.wait_for_start()
        guardian = Journal(db.directory, launcher_info(db, launcher).id).head.guardian
        keepers = [one.pid for one in psutil.Process(guardian).children()] if "keepers" in victims else []
        for pid in [guardian, *([launcher.pid] if "launcher" in victims else []), *keepers]:
            os.kill(pid, signal.SIGKILL)
        if not keepers:
            wait_for_end(pids, seconds=at_most(GONE_WITHIN))
        launcher.kill()
        launcher.communicate()
    last = start()
    runs.forget_start()
    runs.wait_for_start()
    runs.let_end()
    out, err = last.communicate(timeout=120)
    assert last.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    verdict(
        "T31",
        f"{victims} killed",
        f"{rounds} times with {len(runs.jobs)} jobs: no two runs at once, all ran to the end",
    )


@pytest.mark.parametrize("within", [True, False], ids=["within the lease", "past the lease"])
def test_a_launcher_stopped(db, start, tmp_path, verdict, within):
    """A launcher is stopped by SIGSTOP and goes on, within its lease or after others have its job (T32)."""
    runs = Runs(db, tmp_path)
    runs.add_long_jobs()
    db.jobs.add(Job(command="true", name="child", parents=runs.jobs))
    first = start(lease=LEASE)
    pids = runs.wait_for_start()
    second = start(lease=LEASE)
    wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the second launcher")
    first.send_signal(signal.SIGSTOP)
    if within:
        time.sleep(LEASE / 4)
        assert all(map(is_alive, pids))
    else:
        runs.forget_start()
        wait_for_end(pids, seconds=LEASE + at_most(GONE_WITHIN))
        runs.wait_for_start()
    first.send_signal(signal.SIGCONT)
    if not within:
        _, err = first.communicate(timeout=60)
        assert first.returncode == 4, err
        assert "was given up" in err
    runs.let_end()
    for one in (first, second):
        out, err = one.communicate(timeout=60)
        assert within is False or one.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    assert {job.attempt for job in runs.stored()} == {1 if within else 2}
    seen = "went on" if within else "its processes were ended by the keepers, another one ran the jobs; exit code 4"
    verdict("T32", f"launcher stopped {'within' if within else 'past'} its lease", f"{seen}; no two runs at once")


def test_the_database_is_away_for_two_leases(db, start, tmp_path, verdict):
    """What ends before the keepers must end it is recorded afterwards; the rest runs again (T33)."""
    go = tmp_path / "go"
    noted = "echo $$ > pid; while :; do date +%s.%N > last; sleep 0.05; test -e {go} && exit 0; done"
    long = Job(command=shlex.join(["sh", "-c", noted.format(go=go)]), name="long")
    short = Job(command=shlex.join(["sh", "-c", "echo $$ > pid; sleep 1.5; echo x >> runs"]), name="short")
    db.jobs.add([long, short])
    launcher = start(lease=LEASE)
    pid, _ = wait_for_sleep(db, long), wait_for_sleep(db, short)
    with closing(sqlite3.connect(db.path / "db.sqlite3", isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        away_at = time.time()
        wait_for_end([pid], seconds=2 * LEASE)
        lived = float((db.workdir(long) / "last").read_text()) - away_at
        time.sleep(max(0.0, 2 * LEASE - (time.time() - away_at)))
        go.touch()
        other.execute("ROLLBACK")
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, out + err
    assert lived > LEASE * 2 / 3 - LEASE / 15 - 1
    assert {job.name: (str(job.state), job.attempt) for job in db.jobs} == {
        "long": ("JOB_FINISHED", 2),
        "short": ("JOB_FINISHED", 1),
    }
    assert (db.workdir(short) / "runs").read_text() == "x\n"
    assert "could not renew its lease in time" in " ".join(event.message for event in db.jobs.history(long))
    verdict(
        "T33",
        "database away for twice the lease",
        "what ended meanwhile was recorded afterwards; the rest was ended before the lease was over, and ran again",
    )


def test_a_walltime_with_jobs_that_do_not_heed(db, start, tmp_path, amount, verdict):
    """SIGTERM reaches the launcher and all processes of its jobs, of which half ignore it (T35)."""
    count = amount(6, 32)
    jobs = [
        Job(
            command=shlex.join(
                ["sh", "-c", ("trap '' TERM; " if n % 2 else "") + "echo $$ > pid; sleep 600; sleep 600"]
            ),
            name=f"j{n}",
        )
        for n in range(count)
    ]
    db.jobs.add(jobs)
    launcher = start()
    pids = [wait_for_sleep(db, job) for job in jobs]
    began = time.monotonic()
    for pid in [*pids, *[one.pid for one in psutil.Process(launcher.pid).children(recursive=True)], launcher.pid]:
        with contextlib.suppress(ProcessLookupError):  # ended by another one of them
            os.kill(pid, signal.SIGTERM)
    out, err = launcher.communicate(timeout=60)
    took = time.monotonic() - began
    assert took < STOPPED_WITHIN
    assert launcher.returncode == 143, out + err
    assert not any(map(is_alive, pids))
    assert db.jobs.states() == {"RESTART_READY": count}
    assert db.run(GetLaunchers()) == []
    verdict(
        "T35",
        "SIGTERM to all processes of a launcher",
        f"{count} jobs, half ignore it: gone and given back in {took:.0f} s",
    )
