"""Jobs that people and other jobs kill and retry while a launcher runs, in every phase, on every database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from resources import is_alive
from scenarios import DRAINED, LAUNCHED, Scenarios
from workflow_runs import py, python, sh, shell

from balsam_core import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenarios import Flow

    from balsam_core.dbdir.directory import DBDir

scenario = Scenarios()
SLEEP = shell("echo $$ > pid; exec sleep 600")
KILLED_WITHIN = 3.0  # seconds


@pytest.fixture(scope="module")
def judge(module_db: DBDir) -> Iterator[Callable[[str], None]]:
    with scenario.drained(module_db.path, "--max-ranks-per-node", "20") as drained:
        yield drained


# ---- kills in every phase


LATER = shell("test -e tried || { touch tried; exit 1; }; echo $$ > pid; exec sleep 600")
LATE = {"time_limit_minutes": 0.06, "post_timeout_handler": True}
PHASES: dict[str, tuple[dict[str, Any], str]] = {  # fields, and the state in which the job is killed
    # The first: its handler has a time limit, too.
    "the_timeout_handler": ({"command": "sleep 600", **LATE, "postprocess": SLEEP}, "RUN_TIMEOUT"),
    "preprocess": ({"preprocess": SLEEP}, "STAGED_IN"),
    "its_run": ({"command": SLEEP, "max_retries": 3, "postprocess": "touch handled"}, "RUNNING"),
    "a_run_that_ignores_it": (
        {"command": shell("trap '' TERM; echo $$ > pid; while :; do sleep 1; done")},
        "RUNNING",
    ),
    "postprocess": ({"postprocess": SLEEP}, "RUN_DONE"),
    "the_error_handler": ({"command": "false", "post_error_handler": True, "postprocess": SLEEP}, "RUN_ERROR"),
    "a_later_attempt": ({"command": LATER, "max_retries": 3}, "RUNNING"),
}


def killed_in(phase: str) -> Callable[[Flow], Iterator[str]]:
    fields, state = PHASES[phase]

    def killed(flow: Flow) -> Iterator[str]:
        job = Job(**{"command": "true", "name": "job", "priority": 9, **fields})
        flow.add(job, Job(command="true", name="child", parents=[job]))
        yield LAUNCHED
        pid = flow.wait_for_pid(job)
        flow.wait_for(job, state)
        killed_at = time.monotonic()
        assert flow.kill(job) == 1
        flow.wait_until(lambda: not is_alive(pid), "the end of its process")
        assert time.monotonic() - killed_at < (15 if "ignores" in phase else KILLED_WITHIN)
        yield DRAINED
        assert flow.states() == {"job": "USER_KILLED", "child": "PARENT_KILLED"}
        assert flow.transitions(job)[-1] == "USER_KILLED"
        assert flow.outcomes(job) == [*["RUN_ERROR"] * (phase == "a_later_attempt"), "USER_KILLED"]
        assert flow.get("job").launcher_id is None
        assert not (flow.db.workdir(job) / "handled").exists()

    return killed


for one in PHASES:
    scenario(killed_in(one), f"a_job_is_killed_in_{one}")


@scenario
def a_job_is_killed_while_it_waits_for_its_parent(flow: Flow) -> Iterator[str]:
    parent = sh("until test -e go; do sleep 0.1; done", name="parent", priority=9)
    child = sh("true", name="child", parents=[parent])
    flow.add(parent, child, sh("true", name="grandchild", parents=[child]))
    yield LAUNCHED
    flow.wait_for(parent, "RUNNING")
    assert flow.kill(child) == 1
    (flow.db.workdir(parent) / "go").touch()
    yield DRAINED
    assert flow.states() == {"parent": "JOB_FINISHED", "child": "USER_KILLED", "grandchild": "PARENT_KILLED"}
    assert flow.outcomes(child) == []


@scenario
def a_job_is_killed_that_no_launcher_can_take(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("true", name="job", num_nodes=2))
    yield LAUNCHED
    assert flow.kill(job) == 1
    yield DRAINED
    assert flow.transitions(job) == ["CREATED", "READY", "USER_KILLED"]


@scenario
def a_job_is_killed_while_its_retry_is_delayed(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("echo x >> runs; exit 1", name="job", max_retries=1, retry_delay_seconds=600, priority=9))
    yield LAUNCHED
    flow.wait_for(job, "RESTART_READY")
    assert flow.kill(job) == 1
    yield DRAINED
    assert (flow.states(), flow.text(job, "runs")) == ({"job": "USER_KILLED"}, "x\n")
    assert flow.outcomes(job) == ["RUN_ERROR"]


@scenario
def a_job_that_has_ended_is_not_killed(flow: Flow) -> Iterator[str]:
    flow.add(good := sh("true", name="good", priority=9), bad := sh("exit 1", name="bad", priority=9))
    yield LAUNCHED
    flow.wait_for(good, "JOB_FINISHED")
    flow.wait_for(bad, "FAILED")
    assert flow.kill(good, bad) == 0
    yield DRAINED
    assert flow.states() == {"good": "JOB_FINISHED", "bad": "FAILED"}


@scenario
def a_kill_spares_a_child_that_did_not_wait(flow: Flow) -> Iterator[str]:
    parent = Job(command=SLEEP, name="parent", priority=9)
    taker = sh("until test -e go; do sleep 0.1; done", name="taker", parents=[parent], priority=9)
    taker.wait_for_parents = False
    flow.add(parent, taker)
    yield LAUNCHED
    flow.wait_for_pid(parent)
    flow.wait_for(taker, "RUNNING")
    assert flow.kill(parent) == 1
    flow.wait_for(parent, "USER_KILLED")
    (flow.db.workdir(taker) / "go").touch()
    yield DRAINED
    assert flow.states() == {"parent": "USER_KILLED", "taker": "JOB_FINISHED"}


# ---- retries by people


@scenario
def a_killed_job_is_retried_when_its_process_is_gone_and_runs_again(flow: Flow) -> Iterator[str]:
    job = sh("echo x >> runs; echo $$ > pid; test -e go || exec sleep 600", name="job", priority=9)
    flow.add(job, child := sh("true", name="child", parents=[job]))
    yield LAUNCHED
    pid = flow.wait_for_pid(job)
    flow.kill(job)
    (flow.db.workdir(job) / "go").touch()
    yield LAUNCHED
    flow.wait_until(lambda: flow.get("job").launcher_id is None, "its giving back")
    assert not is_alive(pid)
    assert flow.jobs.retry() == 2
    yield DRAINED
    assert flow.states() == {"job": "JOB_FINISHED", "child": "JOB_FINISHED"}
    assert (flow.text(job, "runs"), flow.outcomes(job)) == ("x\nx\n", ["USER_KILLED", "JOB_FINISHED"])
    assert flow.transitions(child)[-7:-5] == ["READY", "STAGED_IN"]


@scenario
def a_failed_job_and_its_descendants_are_retried(flow: Flow) -> Iterator[str]:
    bad = sh("test -e mended", name="bad", priority=9, max_retries=1)
    middle = sh("true", name="middle", parents=[bad])
    flow.add(bad, middle, sh("true", name="last", parents=[middle]))
    yield LAUNCHED
    flow.wait_for(bad, "FAILED")
    (flow.db.workdir(bad) / "mended").touch()
    assert flow.jobs.retry() == 3
    yield DRAINED
    assert set(flow.states().values()) == {"JOB_FINISHED"}
    assert flow.outcomes(bad) == ["RUN_ERROR", "FAILED", "JOB_FINISHED"]
    assert (flow.get("bad").attempt, flow.get("bad").retries) == (3, 0)


# ---- jobs that kill and retry jobs


@scenario
def a_job_kills_running_and_waiting_jobs(flow: Flow) -> Iterator[str]:
    victim = Job(command=SLEEP, name="victim", priority=9)
    waiting = sh("true", name="waiting", num_nodes=2)
    kill = "wait_for('victim', 'RUNNING')\nprint(named('victim').kill('by a job'), named('waiting').kill())\n"
    flow.add(victim, sh("true", name="child", parents=[victim]), waiting, killer := py(kill, name="killer"))
    yield DRAINED
    assert flow.states() == {
        "victim": "USER_KILLED", "child": "PARENT_KILLED", "waiting": "USER_KILLED", "killer": "JOB_FINISHED",
    }  # fmt: skip
    assert flow.text(killer, "killer.out") == "1 1\n"
    assert "by a job" in flow.messages(victim)
    assert flow.outcomes(victim) == ["USER_KILLED"]
    assert not is_alive(flow.wait_for_pid(victim))


@scenario
def a_job_kills_itself(flow: Flow) -> Iterator[str]:
    flow.add(job := py("named('self').kill('enough')\ntime.sleep(600)\n", name="self", max_retries=3))
    yield DRAINED
    assert (flow.states(), flow.outcomes(job)) == ({"self": "USER_KILLED"}, ["USER_KILLED"])


@scenario
def a_postprocess_kills_what_waits_for_its_job(flow: Flow) -> Iterator[str]:
    parent = sh("true", name="parent", postprocess=python("named('child').kill()"))
    child = sh("true", name="child", parents=[parent])
    flow.add(parent, child, sh("true", name="grandchild", parents=[child]))
    yield DRAINED
    assert flow.states() == {"parent": "JOB_FINISHED", "child": "USER_KILLED", "grandchild": "PARENT_KILLED"}


@scenario
def a_job_retries_a_failed_and_a_killed_one(flow: Flow) -> Iterator[str]:
    bad, killed = sh("test -e mended", name="bad", priority=9), sh("true", name="killed")
    child = sh("true", name="child", parents=[killed, bad])
    mend = (
        "wait_for('bad', 'FAILED')\n"
        "(me.db.workdir(named('bad').first()) / 'mended').touch()\n"
        "print(named('bad').retry(), named('killed').retry(), named('child').retry())\n"
    )
    flow.add(bad, killed, child, mender := py(mend, name="mender"))
    flow.kill(killed)
    yield DRAINED
    assert set(flow.states().values()) == {"JOB_FINISHED"}
    assert flow.text(mender, "mender.out").split()[:2] == ["1", "1"]


@scenario
def a_handler_can_not_retry_its_own_job_and_decides_by_its_end(flow: Flow) -> Iterator[str]:
    job = sh("echo x >> runs; exit 1", name="job", post_error_handler=True)
    job.postprocess = python("print(named('job').retry())")
    flow.add(job)
    yield DRAINED
    assert (flow.states(), flow.text(job, "runs")) == ({"job": "JOB_FINISHED"}, "x\n")
    assert flow.text(job, "postprocess.log") == "0\n"


@pytest.mark.parametrize("name", list(scenario))
def test_changes(judge: Callable[[str], None], name: str) -> None:
    judge(name)
