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
from functools import partial

import psutil
import pytest
import short_leases
from amounts import at_most
from balsam_program import BALSAM
from job_trees import Runs, processes_of
from resources import is_alive, wait_for_end

from balsam_core import Job, open_db
from balsam_core.dbdir.launcher_journal import Journal
from balsam_core.model.calls import GetLaunchers
from balsam_core.testing.tools import server_processes, signal_all, wait_until

GONE_WITHIN = 5.0  # seconds after a kill
TAKEN_OVER_WITHIN = 20.0
STOPPED_WITHIN = 25.0
LEASE = 6.0  # seconds; commands end a third before its end


@pytest.fixture
def start(path):
    """Start launchers that are gone after the test."""
    started = []

    def run(*words, lease=None, path=path):
        program = BALSAM if lease is None else [sys.executable, short_leases.__file__, str(lease)]
        command = [*program, "--db", str(path), "launcher", "--consume-all", "--max-ranks-per-node", "64", *words]
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


def has_gone_on(db, launcher, before):
    """Say whether a launcher has ended, or has renewed its lease after this time."""
    renewed = (one.pid == launcher.pid and one.seen_at > before for one in db.run(GetLaunchers()))
    return launcher.poll() is not None or any(renewed)


def wait_for_sleep(db, job):
    file = db.workdir(job) / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job's start")
    return int(file.read_text())


def test_launchers_killed_again_and_again(db, start, tmp_path, amount, verdict):
    """A launcher is killed with jobs of all kinds, another one waits; in the end all have run once to the end (T30)."""
    kills, copies = amount((3, 1), (100, 5))
    runs = Runs(db, tmp_path)
    runs.add_long_jobs(copies)
    db.jobs.add(Job(command="true", name="last", parents=runs.jobs))
    running = start()
    longest = {"end": 0.0, "takeover": 0.0}
    for number in range(kills):
        waiting = start()
        wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the other launcher")
        if number % 3 != 2:  # else while it starts them
            runs.wait_for_start()
        time.sleep(random.uniform(0.0, 0.5))
        lost = launcher_info(db, running).id
        beside_jobs = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        killed_at = time.monotonic()
        wait_for_end([one.pid for one in beside_jobs], seconds=at_most(GONE_WITHIN))
        assert processes_of(db, lost) == []
        longest["end"] = max(longest["end"], time.monotonic() - killed_at)
        runs.wait_for_start()
        longest["takeover"] = max(longest["takeover"], time.monotonic() - killed_at)
        assert longest["end"] < at_most(GONE_WITHIN)
        assert longest["takeover"] < at_most(TAKEN_OVER_WITHIN)
        runs.forgive()
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
        f"{longest['end']:.1f} s, all jobs running again within {longest['takeover']:.1f} s, no two runs at once, "
        f"all ran to the end",
    )


GUARDIANS = {
    "guardian": "the keepers ended all processes within {:.1f} s, and its launcher ran the jobs again",
    "guardian and launcher": "the keepers ended all processes within {:.1f} s, and the next launcher ran the jobs",
    "guardian, launcher and keepers": (
        "the processes ran on until the next launcher started, which ended them within {:.1f} s and ran the jobs then"
    ),
}


@pytest.mark.parametrize("victims", GUARDIANS)
def test_guardians_killed(db, start, tmp_path, amount, verdict, victims):
    """What keeps the jobs of a launcher is killed, alone or with the launcher (T31)."""
    rounds, copies = amount((1, 1), (20, 5))
    runs = Runs(db, tmp_path)
    runs.add_long_jobs(copies)
    launcher = start()
    longest = 0.0
    for _ in range(rounds):
        pids = runs.wait_for_start()
        lost = launcher_info(db, launcher).id
        guardian = Journal(db.directory, lost).head.guardian
        keepers = [one.pid for one in psutil.Process(guardian).children()] if "keepers" in victims else []
        before = processes_of(db, lost)
        doomed = [guardian, *([launcher.pid] if "launcher" in victims else []), *keepers]
        began = time.monotonic()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # all at once: none sees another's end
            for pid in doomed:
                os.kill(pid, number)
        if keepers:
            time.sleep(0.5)
            assert all(map(is_alive, pids))  # nobody is left who could end them
            began = time.monotonic()
        if "launcher" in victims:
            launcher.communicate()
            launcher = start()
        wait_for_end(before, seconds=at_most(TAKEN_OVER_WITHIN if keepers else GONE_WITHIN))
        longest = max(longest, time.monotonic() - began)
        runs.wait_for_start()
        runs.forgive()
    runs.let_end()
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    verdict(
        "T31",
        f"{victims} killed",
        f"{rounds} times with {len(runs.jobs)} jobs: {GUARDIANS[victims].format(longest)}; no two runs at once, all "
        f"ran to the end",
    )


def test_a_launcher_stopped_within_its_lease(db, start, tmp_path, amount, verdict):
    """A launcher is stopped by SIGSTOP and goes on before its lease is over (T32)."""
    times, seconds, lease = amount(1, 10), amount(2.0, 8.0), 3 * LEASE
    runs = Runs(db, tmp_path)
    runs.add_long_jobs(amount(1, 5))
    db.jobs.add(Job(command="true", name="child", parents=runs.jobs))
    both = [start(lease=lease)]
    pids = runs.wait_for_start()
    both.append(start(lease=lease))
    wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the second launcher")
    for _ in range(times):
        both[0].send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        both[0].send_signal(signal.SIGCONT)
        assert all(map(is_alive, pids))
        time.sleep(1.0)  # in which it renews its lease
    runs.let_end()
    for one in both:
        out, err = one.communicate(timeout=60)
        assert one.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    assert {job.attempt for job in runs.stored()} == {1}
    seen = f"{times} times for {seconds:g} s of {lease:g} with {len(runs.jobs)} jobs: went on, each job ran once"
    verdict("T32", "launcher stopped within its lease", seen)


def test_a_launcher_stopped_around_and_past_its_lease(db, start, tmp_path, amount, verdict):
    """A launcher is stopped by SIGSTOP until about its lease's end, or until others have its jobs (T32)."""
    stops = [LEASE * share for share in amount((1.0, 2.0), (0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 2.0))]
    runs = Runs(db, tmp_path)
    runs.add_long_jobs(amount(1, 5))
    db.jobs.add(Job(command="true", name="child", parents=runs.jobs))
    launcher = start(lease=LEASE)
    given_up = 0
    for seconds in stops:
        runs.wait_for_start()
        other = start(lease=LEASE)
        wait_until(lambda: len(db.run(GetLaunchers())) == 2, "the other launcher")
        launcher.send_signal(signal.SIGSTOP)
        stopped_at = launcher_info(db, launcher).seen_at
        time.sleep(seconds)
        launcher.send_signal(signal.SIGCONT)
        # It goes on, or it was given up: whoever has the jobs then runs them.
        wait_until(partial(has_gone_on, db, launcher, stopped_at), "its going on")
        if launcher.poll() is None:
            other.terminate()
            other.communicate()
        else:
            _, err = launcher.communicate()
            assert launcher.returncode == 4, err
            assert "was given up" in err
            given_up += 1
            launcher = other
        runs.forgive()
    assert given_up > 0
    runs.let_end()
    out, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 0, out + err
    assert runs.unfinished() == {}
    assert runs.overlaps() == []
    verdict(
        "T32",
        "launcher stopped around and past its lease",
        f"{len(stops)} times with {len(runs.jobs)} jobs: {given_up} times another one had its jobs, and it ended with "
        f"exit code 4; its processes had been ended by the keepers; no two runs at once, all ran to the end",
    )


@contextlib.contextmanager
def locked(db):
    """Keep the database file locked."""
    with closing(sqlite3.connect(db.path / "db.sqlite3", isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def frozen(db):
    """Keep the server and its watchdog stopped."""
    processes = server_processes(db.directory)
    signal_all(signal.SIGSTOP, processes)
    yield
    signal_all(signal.SIGCONT, processes)


@pytest.mark.parametrize("how", ["file locked", "server frozen"])
def test_the_database_is_away_for_two_leases(start, make_served, tmp_path, amount, verdict, how):
    """What ends before the keepers must end it is recorded afterwards; the rest runs again (T33)."""
    count, lease = amount((2, LEASE), (16, 30.0))
    served = make_served("away")
    if how == "server frozen":
        served.start()
    go, end = tmp_path / "go", tmp_path / "end"
    noted = f"echo $$ > pid; while :; do date +%s.%N > new; mv new last; sleep 0.05; test -e {go} && exit 0; done"
    short = f"echo $$ > pid; until test -e {end}; do sleep 0.05; done; echo x >> runs; exit"
    with open_db(served.path) as db:
        longs = [Job(command=shlex.join(["sh", "-c", noted]), name=f"long {n}") for n in range(count)]
        shorts = [Job(command=shlex.join(["sh", "-c", f"{short} {n % 2}"]), name=f"short {n}") for n in range(count)]
        db.jobs.add([*longs, *shorts])
        launcher = start(lease=lease, path=db.path)
        pids = [wait_for_sleep(db, job) for job in longs]
        for job in shorts:
            wait_for_sleep(db, job)
        with locked(db) if how == "file locked" else frozen(db):
            away_at = time.time()
            end.touch()
            wait_for_end(pids, seconds=2 * lease)
            lived = min(float((db.workdir(job) / "last").read_text()) for job in longs) - away_at
            time.sleep(max(0.0, 2 * lease - (time.time() - away_at)))
            go.touch()
        out, err = launcher.communicate(timeout=60)
        assert launcher.returncode == 10, out + err
        assert lived > lease * 2 / 3 - lease / 15 - 1
        expected = {job.name: ("JOB_FINISHED", 2) for job in longs}
        expected |= {job.name: (("FAILED" if n % 2 else "JOB_FINISHED"), 1) for n, job in enumerate(shorts)}
        assert {job.name: (str(job.state), job.attempt) for job in db.jobs} == expected
        assert {(db.workdir(job) / "runs").read_text() for job in shorts} == {"x\n"}
        for job in longs:
            assert "could not renew its lease in time" in " ".join(event.message for event in db.jobs.history(job))
    verdict(
        "T33",
        f"database away for twice the lease, {how}",
        f"{count} of {2 * count} runs ended meanwhile and were recorded afterwards; the others lived for {lived:.1f} s "
        f"of a lease of {lease:g} s, were ended before it was over, and ran again",
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
