"""What needs launchers of its own, on every database: their ends, what they write and say, very many parents.

What can become of jobs otherwise is in the scenarios, of which many share a launcher.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import pytest
from balsam_program import here
from workflow_runs import Running, launch, messages, sh, shell, states, text, wait_for_state

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database
    from balsam_core.dbdir.directory import DBDir


@pytest.fixture
def db(each_db: DBDir) -> Iterator[Database]:
    with open_db(each_db.path) as opened:
        yield opened


# ---- each step is on record before the next starts


HANG = "echo $$ > pid; test -e go || exec sleep 600"


@pytest.mark.parametrize(
    ("step", "state", "steps"),
    [
        ("preprocess", "STAGED_IN", "pre pre run post"),
        ("run", "RUNNING", "pre run run post"),
        ("postprocess", "RUN_DONE", "pre run post post"),
        ("handler", "RUN_ERROR", "pre run post post"),
    ],
)
def test_a_launcher_killed_in_a_step_repeats_that_step_only(db: Database, step: str, state: str, steps: str) -> None:
    hangs = {"pre": step == "preprocess", "run": step == "run", "post": step in {"postprocess", "handler"}}
    pre, run, post = (f"echo {name} >> steps; {HANG if hangs[name] else 'true'}" for name in hangs)
    job = sh(f"{run}; exit {3 * (step == 'handler')}", name="job", post_error_handler=True)
    job.preprocess, job.postprocess = shell(pre), shell(post)
    db.jobs.add(job)
    with Running(db) as first:
        wait_for_state(db, job, state)
        wait_until(lambda: text(db, job, "pid"), what="the step's start")
        first.kill()
    (db.workdir(job) / "go").touch()
    launch(db)
    assert states(db) == {"job": "JOB_FINISHED"}
    assert text(db, job, "steps").split() == steps.split()
    lost = "RUN_TIMEOUT" if step == "run" else state
    assert [one.outcome for one in db.jobs.attempts(job)] == [lost, "JOB_FINISHED"]
    assert "launcher 1" in messages(db, job)
    assert text(db, job, "postprocess.log.1") == ""


def test_a_launcher_that_is_stopped_leaves_each_job_where_the_next_one_goes_on(db: Database) -> None:
    run = f"echo x >> runs; {HANG}"
    handled = sh(run, name="handled", post_timeout_handler=True, postprocess=shell('test "$BALSAM_JOB_TIMEOUT" = TRUE'))
    jobs = [
        sh(run, name="again"),
        sh(run, name="once", auto_timeout_retry=False),
        handled,
        sh("echo x >> runs", name="prepares", preprocess=shell(HANG)),
        sh("echo x >> runs", name="finishes", postprocess=shell(HANG)),
    ]
    db.jobs.add([*jobs, *(sh("true", name=f"child of {job.name}", parents=[job]) for job in jobs)])
    with Running(db, "--max-ranks-per-node", "5") as first:
        wait_until(lambda: all(text(db, job, "pid") for job in jobs), what="the jobs' start")
        first.process.terminate()
        _, err = first.wait()
        assert first.process.returncode == 143, err
    stopped = {
        "again": "RESTART_READY", "once": "FAILED", "handled": "RUN_TIMEOUT", "prepares": "STAGED_IN",
        "finishes": "RUN_DONE", "child of once": "FAILED",
    }  # fmt: skip
    assert {name: state for name, state in states(db).items() if state != "AWAITING_PARENTS"} == stopped
    for job in jobs:
        (db.workdir(job) / "go").touch()
    assert launch(db)["finished"] == 8
    assert {name for name, state in states(db).items() if state != "JOB_FINISHED"} == {"once", "child of once"}
    assert {job.name: text(db, job, "runs").count("x") for job in jobs} == {
        "again": 2, "once": 1, "handled": 1, "prepares": 1, "finishes": 1,
    }  # fmt: skip


def test_jobs_without_hooks_are_written_together(db: Database) -> None:
    jobs = [sh("true", name=str(number)) for number in range(20)]
    db.jobs.add(jobs)
    launch(db)
    assert all(len(db.jobs.history(job)) <= 3 for job in jobs)  # added; (running;) ended


def test_hooks_of_many_jobs_keep_all_slots_busy(db: Database) -> None:
    """While a state is being written, its job takes no slot."""
    hooks = {"preprocess": "sleep 0.1", "postprocess": "sleep 0.1"}
    db.jobs.add([sh("sleep 0.1", name=str(number), **hooks) for number in range(20)])
    done = launch(db, "--max-ranks-per-node", "4")
    assert done["finished"] == 20
    assert done["seconds"] < 20 * 0.3 / 4 * 3


# ---- limits, and what is kept


def test_a_hook_over_the_time_limit_fails_its_job_and_keeps_no_slot(db: Database) -> None:
    names = ("preprocess", "postprocess")
    hooks = [sh("true", name=name, time_limit_minutes=0.03, **{name: "sleep 600"}) for name in names]
    db.jobs.add([*hooks, sh("true", name="other", priority=-1)])
    launch(db, "--max-ranks-per-node", "1")
    assert states(db) == {"preprocess": "FAILED", "postprocess": "FAILED", "other": "JOB_FINISHED"}
    for job in hooks:
        assert f"{job.name}: its time limit of 0.03 minutes was over" in messages(db, job)


def test_what_attempts_took_is_shown(db: Database) -> None:
    job = sh("sleep 0.3; test -e tried || { touch tried; exit 4; }", name="job", max_retries=1)
    waiting = sh("true", name="waiting", num_nodes=2)
    db.jobs.add([job, waiting])
    launch(db)
    host = db.jobs.get(job.id or 0).host
    assert host
    shown = here.good("show", str(job.id), db=db.path).out
    (table,) = (part for part in shown.split("\n\n") if part.startswith("ATTEMPT"))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:4] == ["ATTEMPT", "OUTCOME", "RETURN_CODE", "HOST"]
    assert [line[:4] for line in lines[1:]] == [["1", "RUN_ERROR", "4", host], ["2", "JOB_FINISHED", "0", host]]
    first, second = here.good("show", str(job.id), "-o", "json", db=db.path).json["attempts"]
    assert (first["return_code"], second["return_code"], second["host"]) == (4, 0, host)
    assert 0.25 <= first["elapsed"] < 10  # it slept for 0.3, but its start is told a moment later
    assert 0 < first["cpu_seconds"] < 10
    assert 2**20 < first["max_memory"] < 2**30
    listed = here.good("ls", "-F", "name,host,elapsed,cpu_seconds", "-o", "csv", db=db.path).out
    ran, unstarted = csv.DictReader(listed.splitlines())
    assert (ran["name"], ran["host"], float(ran["elapsed"]) >= 0.3) == ("job", host, True)
    assert (unstarted["host"], unstarted["elapsed"]) == ("", "")
    assert [one.name for one in db.jobs.where(Job.elapsed > 0.2)] == ["job"]


# ---- files from parents


def test_a_parents_file_that_changes_through_a_link_is_told_everywhere(db: Database) -> None:
    parent = sh("echo step0 > state", name="parent")
    links = sh("echo changed > state", name="links", parents=[parent], input_files=["state"], postprocess="true")
    db.jobs.add([parent, links])
    out = here("launcher", "--consume-all", db=db.path).out
    assert f"changed while these jobs ran, which have links to them: {links.id} (balsam show ID)" in out
    assert f"state of job {parent.id} (--input-mode copy gives a job copies)" in messages(db, links)
    assert f"changed while job {links.id} ran, which has links to them: state" in messages(db, parent)
    copies = sh("echo mine > state; exit 1", name="copies", parents=[parent], input_files=["state"], input_mode="copy")
    db.jobs.add(copies)
    done = launch(db)
    assert (done["failed"], done["changed_parents"]) == (1, [])
    assert (text(db, parent, "state"), text(db, copies, "state")) == ("changed\n", "mine\n")
    db.jobs.where(name="copies").retry()
    db.jobs.where(name="copies").kill()
    db.jobs.where(name="copies").retry()
    launch(db)
    assert "changed while" not in messages(db, copies)


def test_25000_parents(db: Database) -> None:
    count = 25_000
    parents = db.jobs.add(Job(command="true", name="p", num_nodes=2) for _ in range(count))
    some = db.jobs.get(parents[-1])
    place = db.workdir(some)
    place.mkdir(parents=True)
    (place / "x.1").write_text("x")
    child = sh('wc -l < "$BALSAM_PARENT_IDS_FILE"; echo ${BALSAM_PARENT_IDS-unset}; cat x.1; ls', name="child")
    child.parents, child.wait_for_parents, child.input_files = list(parents), False, ["x.*"]
    db.jobs.add(child)
    launch(db)
    assert text(db, child, "child.out").split() == [
        *(str(count), "unset", "xchild.err", "child.out", "parent_ids.txt", "x.1"),
    ]
