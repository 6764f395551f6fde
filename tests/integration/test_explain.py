"""``balsam explain`` names the reason at the root, for every way in which a job waits or ends, and what mends it."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sqlite3
import subprocess
import time

import pytest
from balsam_program import BALSAM, here
from journals import write_journal
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.model.calls import (
    AddJobs,
    ClaimJobs,
    CloseLauncher,
    KillJobs,
    OpenStagedInsert,
    PublishStagedInsert,
    RegisterLauncher,
    Resources,
)
from balsam_core.model.filters import Compare
from balsam_core.model.states import State
from balsam_core.system.processes import Machine, start_of, this_machine
from balsam_core.testing.tools import DONE, update, wait_until
from balsam_core.testing.tools import claim as claim_jobs
from balsam_core.testing.tools import register as register_launcher

PLENTY = 3.0  # seconds for an explanation, on a busy machine, where it takes a tenth


def explained(path, job):
    """Return what the command says, as JSON; the text for people must say the same."""
    number = job.id if isinstance(job, Job) else job
    found = here.good("explain", number, "-o", "json", db=path).json
    text = here.good("explain", number, db=path).out
    assert found["id"] == number
    assert text.splitlines()[-1] == (f"Fix: {found['fix']}" if found["fix"] else text.splitlines()[-1])
    assert "Fix: " in text or not found["fix"]
    return found


def failing(**fields):
    return Job(command=shlex.join(["sh", "-c", "echo no such mesh >&2; exit 3"]), **fields)


def launch(path):
    here("launcher", "--consume-all", db=path)


def registered(db, *, workflow="", lease=900.0, process=None, machine=None, **offer):
    """Register a launcher that runs nothing, and let it say of itself what it offers; returns its id."""
    pid, start = process or (os.getpid(), start_of(os.getpid()))
    call = RegisterLauncher(
        host=(machine or this_machine()).node,
        pid=pid,
        boot_id="b",
        process_start=0.0,
        lease_seconds=lease,
        workflow=workflow,
    )
    number = db.run(call)
    write_journal(db.directory, number, pid=pid, start=start, machine=machine, workflow=workflow, **offer)
    return number


def claim(db, launcher):
    return db.run(ClaimJobs(launcher=launcher, limit=9, resources=Resources())).jobs


@pytest.fixture
def gone():
    """A process that has ended, by its id and start."""
    process = subprocess.Popen(["sleep", "60"])
    found = process.pid, start_of(process.pid)
    process.kill()
    process.wait()
    return found


# ---- other jobs


def test_a_job_that_waits_names_its_parents_and_the_job_that_all_wait_for(db, path):
    first = Job(command="true", name="first", workflow="a b")
    middle = [Job(command="true", parents=[first]) for _ in range(7)]
    last = Job(command="true", parents=[*middle, first])
    db.jobs.add([first, *middle, last])
    found = explained(path, last)
    assert (found["reason"], found["jobs"]) == ("parents", [first.id])
    assert f"job {last.id} waits for 8 of its 8 parents: {first.id} (READY), {middle[0].id} (AWAIT" in found["text"]
    assert f"all of them wait in the end for 1 job: {first.id} (READY)" in found["text"]
    assert "no launcher is alive" in found["text"]
    assert found["fix"] == "balsam launcher --wf-name 'a b'"
    assert explained(path, first)["reason"] == "no-launcher"


def test_a_failure_is_explained_by_its_root_and_the_fix_repeats_all(db, path):
    bad = failing(name="bad")
    middle = Job(command="true", parents=[bad])
    last = Job(command="true", parents=[middle])
    db.jobs.add([bad, middle, last])
    launch(path)
    found = explained(path, last)
    assert (found["reason"], found["jobs"]) == ("parent-failed", [bad.id])
    assert "exit code 3: no such mesh" in found["text"]
    assert f"'balsam log {bad.id}'" in found["text"]
    own = explained(path, bad)
    assert (own["reason"], own["fix"]) == ("failed", f"balsam retry {bad.id}")
    here.good(*shlex.split(found["fix"])[1:], db=path)
    assert [str(job.state) for job in db.jobs] == ["READY", "AWAITING_PARENTS", "AWAITING_PARENTS"]


def test_many_root_failures_lead_to_their_list(db, path):
    bad = [failing() for _ in range(7)]
    last = Job(command="true", parents=bad)
    db.jobs.add([*bad, last])
    launch(path)
    found = explained(path, last)
    assert (found["fix"], found["jobs"]) == ("balsam ls --root-failures", [job.id for job in bad[:5]])
    assert "because of 7 jobs" in found["text"]


def test_a_killed_job_and_its_children_say_who_killed_it(db, path):
    parent = Job(command="true")
    child = Job(command="true", parents=[parent])
    db.jobs.add([parent, child])
    here.good("kill", parent.id, "-m", "wrong mesh", db=path)
    found = explained(path, parent)
    assert (found["reason"], found["fix"]) == ("killed", f"balsam retry {parent.id}")
    assert found["text"].endswith(": wrong mesh")
    found = explained(path, child)
    assert (found["reason"], found["jobs"]) == ("parent-killed", [parent.id])
    assert "wrong mesh" in found["text"]


def test_a_finished_job_needs_nothing(db, path):
    db.jobs.add(Job(command="true"))
    launch(path)
    found = explained(path, 1)
    assert (found["reason"], found["fix"]) == ("finished", "")


# ---- launchers


def test_a_running_job_says_where(db, path):
    job = Job(command="sleep 60")
    db.jobs.add(job)
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(job.id).state == "RUNNING", what="the job")
        found = explained(path, job)
        assert (found["reason"], found["fix"]) == ("running", "")
        assert f"(pid {launcher.pid} on {this_machine().node})" in found["text"]
        launcher.send_signal(signal.SIGTERM)
    assert explained(path, job)["reason"] == "no-launcher"


def test_a_launcher_whose_process_is_gone_is_not_alive(db, path):
    job = Job(command="sleep 20")
    db.jobs.add(job)
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(job.id).state == "RUNNING", what="the job")
        launcher.kill()
    assert explained(path, job)["reason"] != "running"
    assert "0 alive" in here.good("status", db=path).out
    shown = here.good("status", "-o", "json", db=path).json["launchers"]
    assert [(one["alive"], one["condition"]) for one in shown] in ([(False, "dead")], [])


def test_a_job_held_by_a_dead_launcher_says_so(db, path, gone):
    job = Job(command="true")
    db.jobs.add(job)
    claim(db, registered(db, process=gone))
    found = explained(path, job)
    assert (found["reason"], found["fix"]) == ("launcher-dead", "balsam launcher --consume-all")
    assert f"(pid {gone[0]} on {this_machine().node}), whose process is gone" in found["text"]


def test_a_process_with_the_number_of_a_dead_launcher_is_not_taken_for_it(db, path):
    job = Job(command="true")
    db.jobs.add(job)
    claim(db, registered(db, process=(os.getpid(), start_of(os.getpid()) - 100)))
    assert explained(path, job)["reason"] == "launcher-dead"


def test_a_launcher_elsewhere_is_judged_by_its_lease(db, path, gone):
    job = Job(command="true")
    db.jobs.add(job)
    claim(db, registered(db, process=gone, machine=Machine("far", "other", 0)))
    assert explained(path, job)["reason"] == "claimed"
    db.jobs.add(other := Job(command="true"))
    claim(db, registered(db, process=gone, machine=Machine("far", "other", 0), lease=0.0))
    wait_until(lambda: explained(path, other)["reason"] == "launcher-dead", what="the end of the lease")


def test_a_job_that_was_killed_but_not_yet_ended(db, path):
    job = Job(command="true")
    db.jobs.add(job)
    me = registered(db)
    claim(db, me)
    db.run(KillJobs(where=Compare("id", "eq", job.id)))
    assert "ends its processes" in explained(path, job)["text"]
    db.run(CloseLauncher(launcher=me))
    assert explained(path, job)["fix"] == f"balsam retry {job.id}"


def test_a_live_launcher_that_fits_takes_it(db, path):
    db.jobs.add(Job(command="true"))
    number = registered(db)
    found = explained(path, 1)
    assert (found["reason"], found["fix"]) == ("next", "")
    assert f"launcher {number} takes it" in found["text"]


@pytest.mark.parametrize(
    ("fields", "offer", "reason", "text"),
    [
        ({"num_nodes": 2}, {}, "resources", "2 nodes (it has 1)"),
        ({"ranks_per_node": 4}, {"ranks_per_node": 2}, "resources", "4 ranks on each node (it has 2)"),
        ({"gpus_per_rank": 0.5}, {}, "resources", "0.5 GPUs on each node (it has 0)"),
        ({"wall_time_minutes": 90}, "soon", "time-left", "may take 90 minutes, and it ends in 29"),
        ({}, {"workflow": "other"}, "not-selected", "workflow 'other' only"),
        ({}, {"only": [77]}, "not-selected", "its job file only"),
    ],
)
def test_a_launcher_that_will_not_take_a_job_says_why(db, path, fields, offer, reason, text):
    from datetime import UTC, datetime, timedelta

    if offer == "soon":
        offer = {"ends_at": datetime.now(UTC) + timedelta(minutes=30)}
    db.jobs.add(Job(command="true", workflow="w", **fields))
    registered(db, **offer)
    found = explained(path, 1)
    assert found["reason"] == reason
    assert text in found["text"]
    assert found["fix"].startswith("balsam launcher --wf-name w")


def test_the_launcher_that_comes_nearest_decides(db, path):
    db.jobs.add(Job(command="true", num_nodes=2))
    registered(db, workflow="other")
    registered(db)
    found = explained(path, 1)
    assert found["reason"] == "resources"
    assert found["fix"] == "balsam launcher --wf-name default  # where there are 2 nodes"


def test_a_real_launcher_says_what_it_offers(db, path):
    db.jobs.add([Job(command="sleep 60"), Job(command="true", num_nodes=2), Job(command="true", workflow="other")])
    words = [*BALSAM, "--db", path, "launcher", "--wf-name", "default", "--time-limit-minutes", "50"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(1).state == "RUNNING", what="the job")
        assert explained(path, 2)["reason"] == "resources"
        assert explained(path, 3)["reason"] == "not-selected"
        launcher.send_signal(signal.SIGTERM)


# ---- the rest


def test_a_job_whose_adder_ended_too_early_is_left_to_the_next_launcher(db, path):
    batch = db.run(OpenStagedInsert())
    db.run(AddJobs(jobs=[Job(command="true")], staged_insert=batch))
    assert "there is no job 1" in here.refused("explain", 1, db=path, code=3)
    db.run(PublishStagedInsert(staged_insert=batch))
    assert explained(path, 1)["reason"] == "created"
    launch(path)
    assert explained(path, 1)["reason"] == "finished"


def test_a_job_that_may_not_be_claimed_is_parked(db, path):
    db.jobs.add(Job(command="true"))
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as connection:
        connection.execute("UPDATE jobs SET claim_class = NULL")
        connection.commit()
    found = explained(path, 1)
    assert (found["reason"], found["fix"]) == ("parked", "balsam kill 1 && balsam retry 1")


def test_a_retry_that_waits_is_told(db, path):
    db.jobs.add(Job(command="true", max_retries=2, retry_delay_seconds=900))
    me = register_launcher(db)
    (job,) = claim_jobs(db, me)
    states = (*DONE[:3], State.RUN_ERROR, State.RESTART_READY)
    update(db, me, job, *states, message="exit code 1; retry 1 of 2 in 900 s", delay=900.0)
    found = explained(path, 1)
    assert found["reason"] == "delayed"
    assert "for its retry 1 of 2: exit code 1; retry 1 of 2 in 900 s" in found["text"]


def test_python_explains_too(db):
    db.jobs.add(Job(command="true"))
    found = db.explain(1)
    assert (found.reason, found.fix) == ("no-launcher", "balsam launcher --wf-name default")
    assert str(found).endswith("\nFix: balsam launcher --wf-name default")


def test_without_a_server_the_error_names_the_command(tmp_path, databases):
    served = ServedDB(tmp_path / "db", db_type="postgres")
    try:
        served.start()
        here.good("run", "--", "true", db=served.path)
        here.good("dbserver", "--stop", db=served.path)
        assert "balsam dbserver" in here.refused("explain", 1, db=served.path, code=6)
    finally:
        served.close()


def test_there_must_be_such_a_job(path):
    assert here.refused("explain", 12, db=path, code=3) == "there is no job 12"
    assert "name one job" in here.refused("explain", "1-3", db=path, code=2)


def test_a_long_chain_and_a_wide_fan_are_explained_at_once(db):
    chain = [Job(command="true", name="0")]
    for number in range(1, 10_000):
        chain.append(Job(command="true", name=str(number), parents=[chain[-1]]))
    db.jobs.add(chain)
    top = Job(command="true", name="top")
    fan = [Job(command="true", parents=[top]) for _ in range(20_000)]
    last = Job(command="true", parents=fan)
    db.jobs.add([top, *fan, last])
    begin = time.monotonic()
    assert db.explain(chain[-1]).jobs == (chain[0].id,)
    middle = time.monotonic()
    assert db.explain(last).jobs == (top.id,)
    end = time.monotonic()
    assert (middle - begin, end - middle) < (PLENTY, PLENTY), (middle - begin, end - middle)
    with open_db(db.path) as other:
        assert other.explain(fan[0]).reason == "parents"
