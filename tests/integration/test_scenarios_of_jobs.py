"""What can become of one job, on every database: states, handlers, limits, retries, their mixture; input files."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from resources import is_alive
from scenarios import DRAINED, Scenarios
from workflow_runs import sh, shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenarios import Flow

    from balsam_core import Job
    from balsam_core.dbdir.directory import DBDir

scenario = Scenarios()
FOR_EVER = "exec sleep 600"
LIMIT = 0.03  # minutes; also for handlers, on a busy machine


@pytest.fixture(scope="module")
def judge(module_db: DBDir) -> Iterator[Callable[[str], None]]:
    with scenario.drained(module_db.path, "--max-ranks-per-node", "8") as drained:
        yield drained


# ---- as it should be


@scenario
def a_job_passes_all_states(flow: Flow) -> Iterator[str]:
    hooks = {"preprocess": shell("echo made > input"), "postprocess": shell("cp job.out result")}
    flow.add(job := sh("cat input; echo fault >&2", name="job", **hooks))
    yield DRAINED
    assert flow.transitions(job) == [
        *("CREATED", "READY", "STAGED_IN", "PREPROCESSED", "RUNNING", "RUN_DONE", "POSTPROCESSED", "JOB_FINISHED")
    ]
    assert (flow.text(job, "result"), flow.text(job, "job.err")) == ("made\n", "fault\n")
    found = flow.get("job")
    assert (found.return_code, found.attempt, found.launcher_id) == (0, 1, None)
    assert flow.outcomes(job) == ["JOB_FINISHED"]


# ---- errors


@scenario
def an_error_fails_a_job_without_a_handler(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("echo last words >&2; exit 3", name="job", postprocess="touch never"))
    yield DRAINED
    assert flow.transitions(job)[-3:] == ["RUNNING", "RUN_ERROR", "FAILED"]
    assert "exit code 3: last words" in flow.messages(job)
    assert not (flow.db.workdir(job) / "never").exists()
    assert (flow.get("job").return_code, flow.outcomes(job)) == (3, ["FAILED"])


@scenario
def an_error_handler_saves_a_job(flow: Flow) -> Iterator[str]:
    job = sh("touch half; exit 1", name="job", post_error_handler=True)
    job.postprocess = shell('test "$BALSAM_JOB_ERROR" = TRUE -a -z "$BALSAM_JOB_TIMEOUT" && mv half whole')
    flow.add(job, child := sh("ls whole", name="child", parents=[job], input_files=["whole"]))
    yield DRAINED
    assert flow.transitions(job)[-4:] == ["RUNNING", "RUN_ERROR", "POSTPROCESSED", "JOB_FINISHED"]
    assert flow.text(child, "child.out") == "whole\n"
    assert flow.get("job").return_code == 1


@scenario
def an_error_handler_that_fails_fails_the_job(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("exit 1", name="job", post_error_handler=True, postprocess=shell("echo lost; exit 7")))
    yield DRAINED
    assert flow.transitions(job)[-2:] == ["RUN_ERROR", "FAILED"]
    assert "the handler (postprocess): exit code 7: lost" in flow.messages(job)


@scenario
def a_preprocess_that_fails_keeps_the_job_from_running(flow: Flow) -> Iterator[str]:
    job = sh("touch ran", name="job", preprocess=shell("exit 5"), post_error_handler=True, max_retries=2)
    job.postprocess = "touch handled"
    flow.add(job)
    yield DRAINED
    assert flow.transitions(job)[-2:] == ["STAGED_IN", "FAILED"]
    assert "preprocess: exit code 5" in flow.messages(job)
    assert not any((flow.db.workdir(job) / name).exists() for name in ("ran", "handled"))


@scenario
def a_postprocess_that_fails_fails_a_job_that_ran_well(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("true", name="job", postprocess=shell("exit 5"), post_error_handler=True, max_retries=2))
    yield DRAINED
    assert flow.transitions(job)[-2:] == ["RUN_DONE", "FAILED"]
    assert (flow.get("job").return_code, flow.get("job").attempt) == (0, 1)


# ---- time limits


@scenario
def a_time_limit_ends_a_job_that_ignores_it_and_is_not_retried(flow: Flow) -> Iterator[str]:
    script = "trap '' TERM; sleep 600 & echo $! > pid; wait; wait; sleep 600"
    flow.add(job := sh(script, name="job", time_limit_minutes=LIMIT, max_retries=3))
    yield DRAINED
    assert flow.transitions(job)[-2:] == ["RUN_TIMEOUT", "FAILED"]
    assert f"its time limit of {LIMIT} minutes was over" in flow.messages(job)
    assert not is_alive(int(flow.text(job, "pid")))
    (attempt,) = flow.db.jobs.attempts(job)
    assert attempt.elapsed is not None
    assert LIMIT * 60 <= attempt.elapsed < 20


@scenario
def a_timeout_handler_saves_a_job(flow: Flow) -> Iterator[str]:
    job = sh(FOR_EVER, name="job", time_limit_minutes=LIMIT, post_timeout_handler=True)
    job.postprocess = shell('test "$BALSAM_JOB_TIMEOUT" = TRUE -a -z "$BALSAM_JOB_ERROR" && echo saved > result')
    flow.add(job, child := sh("cat result", name="child", parents=[job], input_files=["result"]))
    yield DRAINED
    assert flow.transitions(job)[-3:] == ["RUN_TIMEOUT", "POSTPROCESSED", "JOB_FINISHED"]
    assert flow.text(child, "child.out") == "saved\n"


@scenario
def a_timeout_handler_that_fails_fails_the_job(flow: Flow) -> Iterator[str]:
    job = sh(FOR_EVER, name="job", time_limit_minutes=LIMIT, post_timeout_handler=True, postprocess="false")
    flow.add(job)
    yield DRAINED
    assert flow.transitions(job)[-2:] == ["RUN_TIMEOUT", "FAILED"]


@scenario
def an_error_handler_is_not_for_timeouts_nor_the_other_for_errors(flow: Flow) -> Iterator[str]:
    late = sh(FOR_EVER, name="late", time_limit_minutes=LIMIT, post_error_handler=True, postprocess="touch handled")
    wrong = sh("exit 1", name="wrong", post_timeout_handler=True, postprocess="touch handled")
    flow.add(late, wrong)
    yield DRAINED
    assert flow.states() == {"late": "FAILED", "wrong": "FAILED"}
    assert not any((flow.db.workdir(job) / "handled").exists() for job in (late, wrong))


# ---- retries


@scenario
def a_retry_repeats_the_run_alone(flow: Flow) -> Iterator[str]:
    job = sh("echo x >> tries; test $(wc -l < tries) -ge 3", name="job", max_retries=5)
    job.preprocess, job.postprocess = shell("echo x >> pre"), shell("echo x >> post")
    flow.add(job)
    yield DRAINED
    assert [flow.text(job, name) for name in ("pre", "tries", "post")] == ["x\n", "x\n" * 3, "x\n"]
    found = flow.get("job")
    assert (found.state, found.attempt, found.retries, found.return_code) == ("JOB_FINISHED", 3, 2, 0)


@scenario
def the_handler_comes_when_no_retry_is_left(flow: Flow) -> Iterator[str]:
    job = sh("echo x >> tries; exit 4", name="job", max_retries=2, post_error_handler=True)
    job.postprocess = shell("cp tries seen")
    flow.add(job)
    yield DRAINED
    assert (flow.text(job, "seen"), str(flow.get("job").state)) == ("x\n" * 3, "JOB_FINISHED")
    assert flow.outcomes(job) == ["RUN_ERROR", "RUN_ERROR", "JOB_FINISHED"]


@scenario
def a_job_whose_retries_are_used_up_fails(flow: Flow) -> Iterator[str]:
    flow.add(job := sh("echo x >> tries; exit 4", name="job", max_retries=1))
    yield DRAINED
    assert (flow.text(job, "tries"), str(flow.get("job").state)) == ("x\n" * 2, "FAILED")
    assert flow.outcomes(job) == ["RUN_ERROR", "FAILED"]


@scenario
def a_retry_waits_longer_each_time(flow: Flow) -> Iterator[str]:
    job = sh("date +%s.%N >> times; test $(wc -l < times) -ge 3", name="job", max_retries=2, retry_delay_seconds=0.5)
    flow.add(job)
    yield DRAINED
    first, second, third = map(float, flow.text(job, "times").split())
    assert second - first >= 0.5
    assert third - second >= 1.0
    assert "retry 2 of 2 in 1 s" in flow.messages(job)
    found = flow.get("job")
    assert (found.state, found.attempt, found.not_before) == ("JOB_FINISHED", 3, None)


@scenario
def nothing_of_earlier_attempts_is_lost(flow: Flow) -> Iterator[str]:
    script = "echo x >> tries; n=$(wc -l < tries); echo try $n; echo fault $n >&2; test $n -ge 3"
    job = sh(script, name="job", max_retries=2)
    flow.add(job, reader := sh("ls", name="reader", parents=[job], input_files=["*.out", "*.err"]))
    yield DRAINED
    outputs = [flow.text(job, f"job.{name}") for name in ("out.1", "out.2", "out", "err.1", "err.2", "err")]
    assert outputs == [f"{kind} {n}\n" for kind in ("try", "fault") for n in (1, 2, 3)]
    assert "exit code 1: fault 1; retry 1 of 2 | exit code 1: fault 2; retry 2 of 2" in flow.messages(job)
    assert set(flow.text(reader, "reader.out").split()) == {"job.err", "job.out", "reader.err", "reader.out"}
    found = [(one.attempt, one.return_code, one.outcome) for one in flow.db.jobs.attempts(job)]
    assert found == [(1, 1, "RUN_ERROR"), (2, 1, "RUN_ERROR"), (3, 0, "JOB_FINISHED")]


# ---- outcome x handler x retries x child


OUTCOMES = {"well": "exit 0", "error": "exit 1", "timeout": FOR_EVER}
HANDLERS = {"no": "", "saves": "exit 0", "fails": 'test -z "$BALSAM_JOB_ERROR$BALSAM_JOB_TIMEOUT"'}
RETRIES = {"none": 0, "helps": 1, "useless": 1}
CHILDREN = ("none", "waits", "takes")


def expected(outcome: str, handler: str, retry: str) -> tuple[str, int]:
    """Return the last state and the number of attempts."""
    if outcome == "well":
        return "JOB_FINISHED", 1
    if outcome == "error" and retry == "helps":
        return "JOB_FINISHED", 2
    attempts = 2 if outcome == "error" and retry == "useless" else 1
    return ("JOB_FINISHED" if handler == "saves" else "FAILED"), attempts


@scenario
def every_mixture_of_outcome_handler_retries_and_child(flow: Flow) -> Iterator[str]:
    jobs: list[Job] = []
    wanted: dict[str, tuple[str, int]] = {}
    for outcome, handler, retry, child in itertools.product(OUTCOMES, HANDLERS, RETRIES, CHILDREN):
        name = f"{outcome}-{handler}-{retry}-{child}"
        body = OUTCOMES[outcome]
        if retry == "helps" and outcome == "error":
            body = "test -e tried && exit 0; touch tried; exit 1"
        job = sh(body, name=name, max_retries=RETRIES[retry])
        job.post_error_handler = job.post_timeout_handler = handler != "no"
        job.postprocess = shell(HANDLERS[handler]) if handler != "no" else ""
        job.time_limit_minutes = LIMIT if outcome == "timeout" else 0
        jobs.append(job)
        wanted[name] = expected(outcome, handler, retry)
        if child != "none":
            jobs.append(sh("true", name=f"child of {name}", parents=[job], wait_for_parents=child == "waits"))
            lives = child == "takes" or wanted[name][0] == "JOB_FINISHED"
            wanted[f"child of {name}"] = ("JOB_FINISHED", 1) if lives else ("FAILED", 0)
    flow.add(*jobs)
    yield DRAINED
    assert len(jobs) == 81 + 54
    assert {job.name: (str(job.state), job.attempt) for job in flow.jobs} == wanted


# ---- input files


@scenario
def a_missing_input_fails_the_job_before_it_runs(flow: Flow) -> Iterator[str]:
    parent = sh("touch equil.restart", name="parent")
    flow.add(parent, job := sh("touch ran", name="job", parents=[parent], input_files=["equil.restrat"]))
    yield DRAINED
    assert flow.states() == {"parent": "JOB_FINISHED", "job": "FAILED"}
    assert "input_files: no parent has the file 'equil.restrat'" in flow.messages(job)
    assert flow.transitions(job)[-2:] == ["READY", "FAILED"]
    assert not (flow.db.workdir(job) / "ran").exists()


@scenario
def a_wildcard_that_matches_nothing_is_remarked(flow: Flow) -> Iterator[str]:
    parent = sh("touch equil.restart", name="parent")
    flow.add(parent, job := sh("ls *.restart", name="job", parents=[parent], input_files=["*.restart", "*.xyz"]))
    yield DRAINED
    assert flow.text(job, "job.out") == "equil.restart\n"
    assert "input_files: no file of a parent matches '*.xyz'" in flow.messages(job)


@pytest.mark.parametrize("name", list(scenario))
def test_jobs(judge: Callable[[str], None], name: str) -> None:
    judge(name)
