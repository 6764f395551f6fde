"""Launchers run real processes on a real SQLite database, alone and together, and stop cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from balsam_program import BALSAM, here
from resources import is_alive

from balsam_core import App, Job, open_db
from balsam_core.errors import Conflict, OutcomeUnknown
from balsam_core.launcher import display as display_module
from balsam_core.launcher import loop as loop_module
from balsam_core.launcher import options as constants
from balsam_core.launcher import progress as progress_module
from balsam_core.launcher.loop import Launcher
from balsam_core.launcher.options import LauncherOptions
from balsam_core.launcher.progress import PlainProgress
from balsam_core.model.calls import ClaimJobs, GetLaunchers, RenewLease, UpdateJobs
from balsam_core.testing.tools import wait_until

DEADLINE = 60.0  # seconds
STOPPED_WITHIN = 25.0


def launch(path, *words):
    """Run a launcher to its end in this process and return what it did."""
    selection = words if {"--wf-name", "--job-file"} & set(words) else ("--consume-all", *words)
    result = here("launcher", *selection, "-o", "json", db=path)
    assert result.code == (10 if result.json["failed"] else 0), result
    return result.json


class Running:
    """A launcher in a process of its own."""

    def __init__(self, path, *words):
        command = [*BALSAM, "--db", str(path), "launcher"]
        self.process = subprocess.Popen(
            [*command, "--consume-all", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait(self):
        out, err = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, out, err


@pytest.fixture
def start(path):
    """Start launchers that are gone after the test."""
    started = []

    def run(*words):
        started.append(Running(path, *words))
        return started[-1]

    yield run
    for launcher in started:
        launcher.process.kill()
        launcher.process.communicate()


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def states(db):
    return {job.name: str(job.state) for job in db.jobs}


def transitions(db, job):
    return [str(state) for event in db.jobs.history(job) for state, _ in event.transitions]


def messages(db, job):
    return " | ".join(event.message for event in db.jobs.history(job) if event.message)


def text(db, job, name):
    return (db.workdir(job) / name).read_text()


# ---- what a job gets and leaves


def test_a_job_passes_all_states_in_its_own_directory(db, path):
    job = sh("pwd; echo oops >&2; exec cat", name="first", workflow="w")
    db.jobs.add(job)
    done = launch(path)
    assert (done["finished"], done["failed"], done["reason"]) == (1, 0, "")
    place = path / "data" / "w" / f"first_{job.id}"
    assert (place / "first.out").read_text() == f"{place}\n"
    assert (place / "first.err").read_text() == "oops\n"
    expected = "READY STAGED_IN PREPROCESSED RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"
    assert " ".join(transitions(db, job)).endswith(expected)
    after = db.jobs.get(job.id)
    assert (after.return_code, after.attempt, after.launcher_id) == (0, 1, None)


def test_times_in_the_history_are_those_of_the_job(db, path):
    job = sh("sleep 0.5", name="nap")
    db.jobs.add(job)
    launch(path)
    at = {}
    for event in db.jobs.history(job):
        at |= {state: event.at.timestamp() - age for state, age in event.transitions}
    assert 0.45 < at["RUN_DONE"] - at["RUNNING"] < 5.0
    assert list(at.values()) == sorted(at.values())


def test_children_wait_for_parents_and_get_their_files(db, path):
    parents = [sh(f"echo {n} > result.txt; echo log {n}", name=f"search-{n}", workflow="lj") for n in (1, 2, 3)]
    child = sh("cat result*.txt | sort", name="reduce", workflow="lj", parents=parents, input_files=["*.txt"])
    last = sh("cat *.out", name="table", workflow="report", parents=[child], input_files=["*.out"])
    db.jobs.add([last, child, *parents])
    launch(path)
    assert text(db, child, "reduce.out") == "1\n2\n3\n"
    assert text(db, last, "table.out") == "1\n2\n3\n"
    ids = sorted(parent.id for parent in parents)
    names = {file.name for file in db.workdir(child).iterdir() if file.is_symlink()}
    assert names == {"result.txt", f"result_{ids[1]}.txt", f"result_{ids[2]}.txt"}


def test_the_environment_says_which_job_this_is(db, path, monkeypatch):
    monkeypatch.setenv("FROM_OUTSIDE", "kept")
    db.apps.add(App("env", "env", environ={"FROM_APP": "app", "BOTH": "app"}))
    parents = [sh("true"), sh("true")]
    job = Job(app="env", name="env", parents=parents, environ={"FROM_JOB": "job", "BOTH": "job"})
    db.jobs.add([*parents, job])
    launch(path)
    got = dict(line.split("=", 1) for line in text(db, job, "env.out").splitlines() if "=" in line)
    assert got["BALSAM_DB_PATH"] == str(path)
    assert got["BALSAM_JOB_ID"] == str(job.id)
    assert got["BALSAM_PARENT_IDS"] == f"{parents[0].id} {parents[1].id}"
    assert int(got["BALSAM_LAUNCHER_ID"]) > 0
    assert (got["FROM_OUTSIDE"], got["FROM_APP"], got["FROM_JOB"], got["BOTH"]) == ("kept", "app", "job", "job")


def test_a_job_can_add_jobs_which_the_same_launcher_runs(db, path):
    script = "from balsam_core import current_job; current_job().spawn(command='echo child', name='spawned')"
    db.jobs.add(Job(command=shlex.join([sys.executable, "-c", script]), name="parent"))
    assert launch(path)["finished"] == 2
    assert states(db) == {"parent": "JOB_FINISHED", "spawned": "JOB_FINISHED"}


def test_hooks_run_around_the_job_with_logs_of_their_own(db, path):
    app = App(
        "sim",
        "cat input",
        preprocess=shlex.join(["sh", "-c", "echo pre; echo {x} > input"]),
        postprocess=shlex.join(["sh", "-c", "echo post; cp *.out result"]),
    )
    db.apps.add(app)
    job = Job(app="sim", name="sim", parameters={"x": 42})
    own = Job(app="sim", name="own", parameters={"x": 1}, preprocess="sh -c 'echo mine > input'")
    db.jobs.add([job, own])
    assert launch(path)["finished"] == 2
    assert (text(db, job, "preprocess.log"), text(db, job, "postprocess.log")) == ("pre\n", "post\n")
    assert text(db, job, "result") == "42\n"
    assert text(db, own, "own.out") == "mine\n"


def test_files_are_staged_in_and_out(db, path, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mesh").write_text("mesh")
    out = tmp_path / "out"
    job = sh(
        "tr a-z A-Z < mesh > result.dat",
        name="stage",
        stage_in=str(tmp_path / "in"),
        stage_out=str(out),
        stage_out_files=["*.dat"],
    )
    db.jobs.add(job)
    assert launch(path)["finished"] == 1
    assert {file.name: file.read_text() for file in out.iterdir()} == {"result.dat": "MESH"}


def test_hostile_names_stay_inside_data(db, path, tmp_path):
    names = ["../../etc", "", "-rf", "new\nline", "🌲", "x" * 10_000, "a/b", ".."]
    jobs = [sh("pwd", name=name, workflow=(name or "w")[:255]) for name in names]
    db.jobs.add(jobs)
    before = {entry.name for entry in tmp_path.iterdir()}
    assert launch(path)["finished"] == len(names)
    places = {db.workdir(job).resolve() for job in jobs}
    assert len(places) == len(names)
    assert all(place.parent.parent == path / "data" for place in places)
    assert all(len(list(place.glob("*.out"))) == 1 for place in places)
    assert {entry.name for entry in tmp_path.iterdir()} == before


# ---- what goes wrong


def test_one_bad_job_harms_no_other(db, path):
    (path / "data").joinpath("planted").symlink_to("/tmp")
    shebang = path.parent / "bad-script"
    shebang.write_text("#!/no/such/interpreter\n")
    shebang.chmod(0o755)
    plain = path.parent / "plain"
    plain.write_text("text")
    db.apps.add(App("missing", "no-such-program-anywhere"), App("script", str(shebang)))
    bad = {
        "missing": (Job(app="missing"), "no such program in PATH"),
        "script": (Job(app="script"), "interpreter"),
        "plain": (Job(command=str(plain)), "not executable"),
        "directory": (Job(command="/"), "permission denied"),
        "workdir": (Job(command="true", user_workdir="/dev/null/x"), "can't make the working directory"),
        "planted": (Job(command="true", workflow="planted"), "symbolic link"),
        "preprocess": (Job(command="true", preprocess="sh -c 'echo no mesh; exit 3'"), "exit code 3: no mesh"),
        "postprocess": (Job(command="true", postprocess="false"), "postprocess: exit code 1"),
        "stage": (Job(command="true", stage_in="/no/such/place"), "does not exist"),
    }  # fmt: skip
    for name, (job, _) in bad.items():
        job.name = name
    parent = sh("true", name="parent")
    good = [sh("true", name=f"good-{n}") for n in range(10)]
    db.jobs.add([parent, *(job for job, _ in bad.values()), *good])
    done = launch(path)
    assert (done["finished"], done["failed"]) == (len(good) + 1, len(bad))
    for name, (job, why) in bad.items():
        assert db.jobs.get(job.id).state == "FAILED", name
        assert why in messages(db, job), name
    assert {states(db)[job.name] for job in good} == {"JOB_FINISHED"}


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("exit 255", 255), ("kill -SEGV $$", -11)])
def test_return_codes_and_signals_are_kept(db, path, script, code):
    job = sh(f"echo last words >&2; {script}", name="bad")
    child = sh("true", name="child", parents=[job])
    db.jobs.add([job, child])
    launch(path)
    after = db.jobs.get(job.id)
    assert (after.state, after.return_code) == ("FAILED", code)
    assert "last words" in messages(db, job)
    assert transitions(db, job)[-2:] == ["RUN_ERROR", "FAILED"]
    assert db.jobs.get(child.id).state == "FAILED"


def test_what_a_job_leaves_running_is_killed(db, path):
    job = sh("sleep 600 & echo $!", name="leaves")
    db.jobs.add(job)
    assert launch(path)["finished"] == 1
    left = int(text(db, job, "leaves.out"))
    wait_until(lambda: not is_alive(left), what="the end of the background process")


def test_jobs_that_do_not_fit_are_counted_and_keep_nobody(db, path):
    large = Job(command="true", name="large", num_nodes=2)
    db.jobs.add([large, Job(command="true", name="child", parents=[large]), Job(command="true", name="small")])
    done = launch(path)
    assert (done["finished"], done["unfit"][0]["jobs"]) == (1, 1)
    assert states(db) == {"large": "READY", "child": "AWAITING_PARENTS", "small": "JOB_FINISHED"}
    said = here.good("launcher", "--consume-all", db=path).out
    assert "1 job needs 2 nodes (id 1); this launcher has 1" in said


def test_a_job_that_cannot_end_in_time_is_not_started(db, path):
    db.jobs.add([Job(command="true", name="long", wall_time_minutes=60), Job(command="true", name="short")])
    done = launch(path, "--time-limit-minutes", "5")
    assert (done["finished"], done["unfit"][0]["jobs"], done["reason"]) == (1, 1, "")
    assert states(db) == {"long": "READY", "short": "JOB_FINISHED"}


# ---- which jobs


def test_a_workflow_is_run_alone(db, path):
    db.jobs.add([Job(command="true", name=name, workflow=name) for name in ("a", "b")])
    assert launch(path, "--wf-name", "a")["finished"] == 1
    assert states(db) == {"a": "JOB_FINISHED", "b": "READY"}
    refusal = here.refused("launcher", "--wf-name", "unknown", db=path, code=3)
    assert refusal == "there are no jobs in workflow 'unknown'; 'balsam ls wf' lists the workflows"


def test_listed_jobs_are_run_alone(db, path, tmp_path):
    jobs = [Job(command="true", name=str(number)) for number in range(4)]
    child = Job(command="true", name="child", parents=[jobs[1]])
    stuck = Job(command="true", name="stuck", parents=[jobs[3]])
    db.jobs.add([*jobs, child, stuck])
    listing = tmp_path / "ids"
    listing.write_text(f"{jobs[0].id}, {jobs[1].id}  # two\n\n{child.id}\n{stuck.id}\n")
    assert launch(path, "--job-file", str(listing))["finished"] == 3
    assert {name for name, state in states(db).items() if state == "JOB_FINISHED"} == {"0", "1", "child"}


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ([], 2, "--consume-all, --wf-name NAME or --job-file FILE"),
        (["--consume-all", "--wf-name", "a"], 2, "leave out"),
        (["--wf-name", ""], 2, "name of a workflow"),
        (["--job-file", "/no/such/file"], 2, "can't be read"),
        (["--consume-all", "--max-ranks-per-node", "0"], 2, "range"),
        (["--consume-all", "--time-limit-minutes", "nan"], 2, "is no number"),
        (["--job-file", "-"], 3, "no job 17"),
    ],
)
def test_a_wrong_command_line_starts_nothing(db, path, words, code, why):
    db.jobs.add(Job(command="true", name="a"))
    assert why in here.refused("launcher", *words, code=code, db=path, stdin="17\n")
    assert states(db) == {"a": "READY"}


# ---- what it tells


def test_people_are_told_how_it_went(db, path):
    db.jobs.add([sh("true", name="good"), sh("exit 1", name="bad")])
    done = here("launcher", "--consume-all", db=path)
    assert done.code == 10
    assert done.out.startswith("1 finished, 1 failed in ")
    assert "balsam ls --root-failures" in done.out
    assert "1 finished, 1 failed, 0 running" in done.err
    (log,) = (path / "log").glob("launcher-1.log")
    assert "(bad) failed: exit code 1" in log.read_text()


def test_a_quiet_run_says_something_now_and_then(db, path, monkeypatch):
    monkeypatch.setattr(progress_module, "PLAIN_EVERY", 0.2)
    monkeypatch.setattr(display_module, "LOG_EVERY", 0.2)
    monkeypatch.setattr(PlainProgress, "every", 0.05)
    db.jobs.add([sh("sleep 2", name="long"), sh("true", workflow="other"), Job(command="true", num_nodes=2)])
    done = here.good("launcher", "--wf-name", "default", db=path)
    same = [line for line in done.err.splitlines() if line.startswith("0 of 2 done, 0 finished, 0 failed, 1 running,")]
    assert len(same) > 3
    assert (path / "log" / "launcher-1.log").read_text().count("0 of 2 done") > 3


def test_jobs_run_on_when_nobody_can_be_told(db, path):
    class Broken(PlainProgress):
        every = 0.0

        def __init__(self):
            super().__init__(sys.stderr)

        def show(self, snapshot):
            raise BrokenPipeError(32, "Broken pipe")

        close = show

    db.jobs.add([sh("true", name=f"j{n}") for n in range(3)])
    assert Launcher(db, LauncherOptions(slots=2), Broken()).run().finished == 3


# ---- stopping


def pids_of(db, jobs, names=("pid",)):
    """Wait until each job has written its process ids, and return them."""

    def read():
        found = []
        for job in jobs:
            for name in names:
                file = db.workdir(job) / name
                if not file.exists() or not file.read_text().endswith("\n"):
                    return None
                found.append(int(file.read_text()))
        return found

    return wait_until(read, what="the jobs' start")


SLEEPER = "sleep 600 & echo $! > child; echo $$ > pid; wait"
STUBBORN = "trap '' TERM; sleep 600 & echo $! > child; echo $$ > pid; wait; wait; sleep 600"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_all_processes_and_gives_the_jobs_back(db, start, number):
    running = [sh(SLEEPER, name=f"running-{n}") for n in range(2)]
    waiting = [sh("true", name=f"waiting-{n}") for n in range(3)]
    once = sh(SLEEPER, name="once", auto_timeout_retry=False)
    handled = sh(SLEEPER, name="handled", postprocess="true", post_timeout_handler=True)
    prepares = Job(command="true", name="prepares", preprocess=shlex.join(["sh", "-c", SLEEPER]))
    at_once = [*running, once, handled, prepares]
    db.jobs.add([*at_once, *waiting])
    launcher = start("--max-ranks-per-node", "5")
    pids = pids_of(db, at_once, ("pid", "child"))
    begin = time.monotonic()
    launcher.process.send_signal(number)
    code, out, err = launcher.wait()
    assert time.monotonic() - begin < STOPPED_WITHIN
    assert code == 128 + number, err
    assert f"Ended early: stopped by {signal.Signals(number).name}" in out
    assert not any(is_alive(pid) for pid in pids)
    expected = dict.fromkeys(["running-0", "running-1"], "RESTART_READY") | {
        "waiting-0": "READY",
        "waiting-1": "READY",
        "waiting-2": "READY",
        "once": "FAILED",
        "handled": "RUN_TIMEOUT",
        "prepares": "STAGED_IN",
    }
    assert states(db) == expected
    assert db.jobs.where(launcher_id=None).count() == len(expected)
    assert "stopped by" in messages(db, running[0])
    assert db.run(GetLaunchers()) == []


def test_a_second_ctrl_c_kills_at_once(db, start):
    job = sh(STUBBORN, name="stubborn")
    db.jobs.add(job)
    launcher = start()
    pids = pids_of(db, [job], ("pid", "child"))
    launcher.process.send_signal(signal.SIGINT)
    (log,) = (db.path / "log").glob("launcher-1.log")
    wait_until(lambda: "ends: stopped by SIGINT" in log.read_text(), what="the first request")
    begin = time.monotonic()
    launcher.process.send_signal(signal.SIGINT)
    code, _, err = launcher.wait()
    assert code == 130, err
    assert time.monotonic() - begin < constants.TERM_GRACE - 1
    assert not any(is_alive(pid) for pid in pids)
    assert states(db) == {"stubborn": "RESTART_READY"}


@pytest.mark.slow
def test_who_does_not_heed_sigterm_is_killed_in_time(db, start):
    job = sh(STUBBORN, name="stubborn")
    db.jobs.add(job)
    launcher = start()
    pids = pids_of(db, [job], ("pid", "child"))
    begin = time.monotonic()
    launcher.process.terminate()
    code, _, err = launcher.wait()
    assert code == 143, err
    assert time.monotonic() - begin < STOPPED_WITHIN
    assert not any(is_alive(pid) for pid in pids)
    assert states(db) == {"stubborn": "RESTART_READY"}


def test_the_time_limit_ends_it_well(db, path):
    jobs = [sh(SLEEPER, name="sleeps"), sh(SLEEPER, name="once", auto_timeout_retry=False)]
    db.jobs.add(jobs)
    done = launch(path, "--time-limit-minutes", "0.02", "--max-ranks-per-node", "2")
    assert done["reason"] == "the time limit was reached"
    assert states(db) == {"sleeps": "RESTART_READY", "once": "FAILED"}
    assert not any(is_alive(pid) for pid in pids_of(db, jobs, ("pid", "child")))


# ---- killing


def test_a_killed_job_ends_and_the_others_go_on(db, start):
    victim, other = sh(SLEEPER, name="victim"), sh("echo $$ > pid; until test -e go; do sleep 0.05; done", name="other")
    child = sh("true", name="child", parents=[victim])
    db.jobs.add([victim, other, child])
    launcher = start("--max-ranks-per-node", "2")
    pids = pids_of(db, [victim], ("pid", "child"))
    pids_of(db, [other])
    assert db.jobs.where(id=victim.id).kill("too slow") >= 1
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="the end of the killed job")
    wait_until(lambda: db.jobs.get(victim.id).launcher_id is None, what="the giving back of the killed job")
    (db.workdir(other) / "go").touch()
    code, out, err = launcher.wait()
    assert code == 0, err
    assert out.startswith("1 finished, 0 failed, 1 killed in ")
    assert states(db) == {"victim": "USER_KILLED", "other": "JOB_FINISHED", "child": "PARENT_KILLED"}
    assert transitions(db, victim)[-1] == "USER_KILLED"


# ---- several launchers


def test_launchers_share_jobs_and_run_each_once(db, path, start, tmp_path):
    runs = tmp_path / "runs"
    script = f"until test -e {tmp_path}/go; do sleep 0.02; done; echo $BALSAM_JOB_ID $BALSAM_LAUNCHER_ID >> {runs}"
    jobs = [sh(script, name=f"j{n}") for n in range(200)]
    last = sh(f"wc -l < {runs}", name="last", parents=jobs)
    db.jobs.add([*jobs, last])
    launchers = [start("--max-ranks-per-node", "2") for _ in range(2)]
    wait_until(lambda: [info.jobs >= 2 for info in db.run(GetLaunchers())] == [True, True], what="both launchers")
    (tmp_path / "go").touch()
    for launcher in launchers:
        code, _, err = launcher.wait()
        assert code == 0, err
    ran = [line.split() for line in runs.read_text().splitlines()]
    assert sorted(int(job) for job, _ in ran) == sorted(job.id for job in jobs)
    assert len({launcher for _, launcher in ran}) == 2
    assert text(db, last, "last.out").strip() == "200"
    assert set(states(db).values()) == {"JOB_FINISHED"}
    assert {job.attempt for job in db.jobs} == {1}


def test_a_launcher_waits_for_children_of_what_another_one_runs(db, start, tmp_path):
    parent = sh(f"echo $$ > pid; until test -e {tmp_path}/go; do sleep 0.02; done", name="parent")
    db.jobs.add([parent, sh("true", name="child", parents=[parent], workflow="other")])
    first = start("--max-ranks-per-node", "1")
    pids_of(db, [parent])
    second = start()
    wait_until(lambda: len(db.run(GetLaunchers())) == 2, what="the second launcher")
    holder = f"1 job of launcher 1 (host {os.uname().nodename}, pid {first.process.pid})"
    assert f"waiting for {holder}" in next(line for line in second.process.stderr if "waiting" in line)
    third = start("--time-limit-minutes", "0.05").wait()
    fourth = here("launcher", "--wf-name", "other", "--time-limit-minutes", "0.05", db=db.path)
    for code, out in (third[:2], (fourth.code, fourth.out)):
        assert code == 11
        assert out.splitlines()[-2:] == ["Ended early: the time limit was reached", f"Still held by others: {holder}"]
    (tmp_path / "go").touch()
    assert [launcher.wait()[0] for launcher in (first, second)] == [0, 0]
    assert set(states(db).values()) == {"JOB_FINISHED"}


def test_a_launcher_waits_for_the_jobs_of_others_which_may_come_back(db, path, start, tmp_path):
    db.jobs.add(sh(f"echo $$ > pid; until test -e {tmp_path}/go; do sleep 0.02; done", name="long"))
    first = start("--max-ranks-per-node", "1")
    pids_of(db, list(db.jobs))
    second = start()
    holder = f"1 job of launcher 1 (host {os.uname().nodename}, pid {first.process.pid})"
    assert f"waiting for {holder}" in next(line for line in second.process.stderr if "waiting" in line)
    db.jobs.add(sh("true", name="short", workflow="other"))
    done = here.good("launcher", "--wf-name", "other", db=path)  # the job that the first one holds is not for this one
    assert "held" not in done.out
    (tmp_path / "go").touch()
    assert [launcher.wait()[0] for launcher in (first, second)] == [0, 0]
    assert {job.attempt for job in db.jobs} == {1}


# ---- a database that comes and goes


class Flaky:
    """A transport that loses answers, or lets a call fail."""

    def __init__(self, transport):
        self._transport = transport
        self.lose = {}  # kind of call -> list of "before", "after", or an error
        self.lost = 0

    def run(self, call, *, timeout=None):
        plan = self.lose.get(type(call))
        how = plan.pop(0) if plan else None
        if isinstance(how, Exception):
            raise how
        if how == "before":
            self.lost += 1
            raise OutcomeUnknown("no answer")
        answer = self._transport.run(call, timeout=timeout)
        if how == "after":
            self.lost += 1
            raise OutcomeUnknown("no answer")
        return answer

    def close(self):
        self._transport.close()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(constants, "FIRST_BACK_OFF", 0.02)
    monkeypatch.setattr("balsam_core.launcher.retrying_client.FIRST_BACK_OFF", 0.02)
    monkeypatch.setattr("balsam_core.launcher.retrying_client.LONGEST_BACK_OFF", 0.1)
    monkeypatch.setattr("balsam_core.launcher.retrying_client.CALL_TIMEOUT", 0.2)


def test_lost_answers_neither_lose_nor_double_a_run(db, path, tmp_path, impatient):
    runs = tmp_path / "runs"
    jobs = [sh(f"echo $BALSAM_JOB_ID >> {runs}", name=f"j{n}") for n in range(60)]
    with open_db(path) as flaky:
        flaky.transport = Flaky(flaky.transport)
        flaky.transport.lose = {
            UpdateJobs: ["after", None, "before", "after", None, "after"],
            ClaimJobs: ["after", None, "before", None, "after", "after"],
        }
        db.jobs.add(jobs)
        outcome = Launcher(flaky, LauncherOptions(slots=2)).run()
        assert flaky.transport.lost >= 6
    assert outcome.finished == 60
    assert sorted(int(line) for line in runs.read_text().split()) == sorted(job.id for job in jobs)
    assert set(states(db).values()) == {"JOB_FINISHED"}


def test_a_launcher_that_ends_by_an_error_records_the_runs_that_had_ended(db, path, tmp_path):
    runs = tmp_path / "runs"
    db.jobs.add(job := sh(f"echo $BALSAM_JOB_ID >> {runs}", name="short"))
    with open_db(path) as flaky:
        flaky.transport = Flaky(flaky.transport)
        flaky.transport.lose = {UpdateJobs: [RuntimeError("a bug")]}
        with pytest.raises(RuntimeError, match="a bug"):
            Launcher(flaky, LauncherOptions(slots=2)).run()
    assert str(db.jobs.get(job.id).state) == "RUN_DONE"
    assert "its run had ended before launcher 1 ended because of an error" in messages(db, job)
    assert list((path / "log").glob("*.journal")) == []
    here.good("launcher", "--consume-all", db=path)
    assert str(db.jobs.get(job.id).state) == "JOB_FINISHED"
    assert runs.read_text().split() == [str(job.id)]


def test_a_database_that_is_away_stops_no_running_job(db, path, impatient, caplog):
    caplog.set_level("INFO")
    job = sh("echo $$ > pid; until test -e go; do sleep 0.02; done", name="long")
    db.jobs.add([job, *(sh("true") for _ in range(5))])
    held = threading.Event()
    faults = []

    def hold_the_database():
        try:
            pids_of(db, [job])
            with contextlib.closing(sqlite3.connect(path / "db.sqlite3", isolation_level=None, timeout=60)) as other:
                other.execute("BEGIN IMMEDIATE")
                held.set()
                (db.workdir(job) / "go").touch()
                wait_until(lambda: "can't be reached" in caplog.text, what="the launcher's warning")
                other.execute("ROLLBACK")
        except BaseException as err:  # noqa: BLE001  (told by the main thread)
            faults.append(err)

    thread = threading.Thread(target=hold_the_database)
    thread.start()
    with open_db(path) as own:
        outcome = Launcher(own, LauncherOptions(slots=2)).run()
    thread.join()
    assert faults == []
    assert held.is_set()
    assert outcome.finished == 6
    assert "the database answers again" in caplog.text
    assert set(states(db).values()) == {"JOB_FINISHED"}
    assert {job.attempt for job in db.jobs} == {1}


def test_a_launcher_that_lost_its_lease_ends_its_processes(db, path, monkeypatch):
    monkeypatch.setattr(loop_module.constants, "RENEW_EVERY", 0.0)
    job = sh(SLEEPER, name="sleeps")
    db.jobs.add(job)
    with open_db(path) as own:
        own.transport = Flaky(own.transport)
        own.transport.lose = {RenewLease: [None, None, Conflict("given up")]}
        with pytest.raises(Conflict, match="given up"):
            Launcher(own, LauncherOptions(slots=1)).run()
    pid = db.workdir(job) / "pid"
    assert not pid.exists() or not is_alive(int(pid.read_text()))


def test_the_summary_says_what_waits_for_parents(db, path):
    parent = sh("true", name="parent", num_nodes=2)
    child = sh("true", name="child", parents=[parent])
    db.jobs.add([parent, child, sh("true", name="grandchild", parents=[child], workflow="other")])
    lines = here.good("launcher", "--consume-all", db=path).out.splitlines()
    assert lines[1].startswith("Not run: 1 job needs 2 nodes (id 1)")
    assert lines[2].startswith("Not run: 2 jobs that wait for parents (balsam ls --state AWAITING_PARENTS")
    assert "Not run: 1 job that waits for parents" in here.good("launcher", "--wf-name", "other", db=path).out


def test_json_holds_all_that_is_known(db, path):
    done = launch(path)
    counted = {"finished", "failed", "killed", "again", "unfit", "changed_parents"}
    assert done.keys() == {*counted, "seconds", "fault", "reason", "spent", "held_by_others", "gave_up", "waiting"}
    assert json.dumps(done)
    assert os.environ.get("BALSAM_DB_PATH") is None


def test_a_launcher_works_on_every_database(each_db):
    with open_db(each_db.path) as db:
        parents = [sh("echo x > part", name=f"p{n}") for n in range(30)]
        child = sh("cat part* | wc -l", name="sum", parents=parents, input_files=["part"])
        bad = sh("exit 3", name="bad", max_retries=1)
        db.jobs.add([*parents, child, bad])
        outcome = Launcher(db, LauncherOptions(slots=2)).run()
        assert (outcome.finished, outcome.failed, outcome.again) == (31, 1, 1)
        assert text(db, child, "sum.out").strip() == "30"
        assert db.run(GetLaunchers()) == []
