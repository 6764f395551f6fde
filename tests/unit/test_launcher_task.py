"""A job's walk: which processes it asks for, and which states it comes to, from wherever it was claimed."""

from __future__ import annotations

import errno

import pytest

from balsam_core.dbdir.directory import DBDir
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job import task as module
from balsam_core.launcher.job.task import DiskFullError, Ended, LauncherContext, Task, last_line
from balsam_core.model.app import App
from balsam_core.model.calls import ParentRef
from balsam_core.model.job import Job
from balsam_core.model.states import State, first_illegal_transition

STOP = "stopped by SIGTERM"


@pytest.fixture
def around(tmp_path):
    (tmp_path / "db" / "data").mkdir(parents=True)
    directory = DBDir(path=tmp_path / "db", db_type="sqlite", id="0" * 32)
    return LauncherContext(directory=directory, environment={"PATH": "/bin"}, counters=Counters())


class Walked:
    """What became of a job whose processes ended as told."""

    def __init__(self, task, ends):
        self.task = task
        self.commands = []
        self.begun_at = task.state
        walk = task.walk()
        ends = iter(ends)
        try:
            command = next(walk)
            while True:
                self.commands.append(command)
                end = next(ends)
                if isinstance(end, Exception):
                    command = walk.throw(end)
                    continue
                if command.begins:
                    task.reach(command.begins)
                command = walk.send(end if isinstance(end, Ended) else Ended(end))
        except StopIteration:
            pass
        assert next(ends, None) is None, "the walk asked for fewer processes"
        assert first_illegal_transition(self.begun_at, [state for state, _ in task.transitions]) is None

    @property
    def states(self):
        return " ".join(state for state, _ in self.task.transitions)

    @property
    def words(self):
        return [command.argv[0] for command in self.commands]


def walked(around, *ends, app=None, parents=(), **fields):
    fields = {"id": 5, "name": "sim", "state": State.READY, "attempt": 1, **fields}
    if app:
        fields["app"] = app.name
    else:
        fields.setdefault("command", "run")
    return Walked(Task(Job(**fields), app, list(parents), around), ends)


HOOKS = {"preprocess": "before", "postprocess": "after"}
TO_THE_END = "STAGED_IN PREPROCESSED RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"


def test_a_plain_job_runs_one_process_and_passes_all_states(around):
    job = walked(around, 0)
    assert (job.states, job.words, job.task.return_code, job.task.message) == (TO_THE_END, ["run"], 0, "")
    assert not job.task.released
    assert (job.commands[0].stdout, job.commands[0].stderr) == ("sim.out", "sim.err")
    times = [at for _, at in job.task.transitions]
    assert times == sorted(times)


def test_hooks_run_before_and_after_with_logs_of_their_own(around):
    job = walked(around, 0, 0, 0, **HOOKS)
    assert (job.states, job.words) == (TO_THE_END, ["before", "run", "after"])
    assert [command.stdout for command in job.commands] == ["preprocess.log", "sim.out", "postprocess.log"]
    assert job.commands[0].stderr == "preprocess.log"
    assert [command.begins for command in job.commands] == [None, State.RUNNING, None]


@pytest.mark.parametrize(
    ("state", "ends", "words", "states"),
    [
        ("STAGED_IN", [0, 0, 0], "before run after", "PREPROCESSED RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"),
        ("PREPROCESSED", [0, 0], "run after", "RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"),
        ("RESTART_READY", [0, 0], "run after", "RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"),
        ("RUNNING", [0, 0], "run after", "RUN_TIMEOUT RESTART_READY RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"),
        ("RUN_DONE", [0], "after", "POSTPROCESSED JOB_FINISHED"),
        ("POSTPROCESSED", [], "", "JOB_FINISHED"),
        ("RUN_ERROR", [], "", "FAILED"),
        ("RUN_TIMEOUT", [], "", "RESTART_READY"),
    ],
)
def test_a_job_that_another_launcher_left_goes_on_where_it_stands(around, state, ends, words, states):
    job = walked(around, *ends, state=State(state), **HOOKS)
    assert (job.states, " ".join(job.words)) == (states, words)


def test_a_failing_preprocess_fails_the_job_with_its_last_words(around):
    place = around.directory.data / "default" / "sim_5"
    place.mkdir(parents=True)
    (place / "preprocess.log").write_text("starting\nno such mesh: a.msh\n\n")
    job = walked(around, 2, **HOOKS)
    assert job.states == "STAGED_IN FAILED"
    assert job.task.message == "preprocess: exit code 2: no such mesh: a.msh"


def test_a_failing_postprocess_fails_the_job(around):
    job = walked(around, 0, 0, 1, **HOOKS)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_DONE FAILED"
    assert job.task.message == "postprocess: exit code 1"
    assert job.task.return_code == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [(3, "exit code 3"), (-9, "killed by SIGKILL"), (-63, "killed by signal 63"), (255, "exit code 255")],
)
def test_an_error_fails_the_job_with_the_code(around, code, why):
    job = walked(around, 0, code, **HOOKS)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_ERROR FAILED"
    assert (job.task.message, job.task.return_code) == (why, code)


def test_an_error_is_retried_as_often_as_allowed(around):
    job = walked(around, 1, max_retries=2, retries=1)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_ERROR RESTART_READY"
    assert job.task.released
    assert job.task.message == "exit code 1; retry 2 of 2"
    assert walked(around, 1, max_retries=2, retries=2).states.endswith("RUN_ERROR FAILED")


@pytest.mark.parametrize(("code", "states"), [(0, "POSTPROCESSED JOB_FINISHED"), (1, "FAILED")])
def test_an_error_handler_decides(around, code, states):
    job = walked(around, 0, 7, code, post_error_handler=True, **HOOKS)
    assert job.states == f"STAGED_IN PREPROCESSED RUNNING RUN_ERROR {states}"
    assert job.commands[2].env["BALSAM_JOB_ERROR"] == "TRUE"
    assert "BALSAM_JOB_ERROR" not in job.commands[1].env
    assert job.task.return_code == 7


def test_an_error_handler_without_a_command_fails_the_job(around):
    job = walked(around, 1, post_error_handler=True)
    assert job.states.endswith("RUN_ERROR FAILED")
    assert "no postprocess" in job.task.message


def test_retries_come_before_the_error_handler(around):
    job = walked(around, 0, 1, max_retries=1, post_error_handler=True, **HOOKS)
    assert job.states.endswith("RUN_ERROR RESTART_READY")


@pytest.mark.parametrize(("retry", "state", "released"), [(True, "RESTART_READY", True), (False, "FAILED", False)])
def test_a_job_that_the_launcher_stopped_timed_out(around, retry, state, released):
    job = walked(around, Ended(-15, STOP), auto_timeout_retry=retry)
    assert job.states == f"STAGED_IN PREPROCESSED RUNNING RUN_TIMEOUT {state}"
    assert job.task.message == STOP
    assert job.task.released is released


def test_ending_well_after_the_request_to_stop_is_a_timeout_too(around):
    job = walked(around, Ended(0, STOP))
    assert job.states.endswith("RUN_TIMEOUT RESTART_READY")  # it may have written a checkpoint and nothing more


def test_a_timeout_handler_is_left_to_the_next_launcher(around):
    job = walked(around, 0, Ended(-15, STOP), post_timeout_handler=True, **HOOKS)
    assert job.states.endswith("RUNNING RUN_TIMEOUT")
    assert job.task.released
    later = walked(around, 0, state=State.RUN_TIMEOUT, post_timeout_handler=True, **HOOKS)
    assert (later.states, later.words) == ("POSTPROCESSED JOB_FINISHED", ["after"])
    assert later.commands[0].env["BALSAM_JOB_TIMEOUT"] == "TRUE"


@pytest.mark.parametrize(
    ("ends", "state"),
    [([Ended(-15, STOP)], "STAGED_IN"), ([0, 0, Ended(-15, STOP)], "RUN_DONE"), ([0, 0, Ended(0, STOP)], "RUN_DONE")],
)
def test_a_hook_that_was_stopped_is_done_again_by_the_next_launcher(around, ends, state):
    job = walked(around, *ends, **HOOKS)
    assert job.states.split()[-1] == state
    assert job.task.released


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "can't run 'x'"), ValueError("embedded null byte")])
def test_a_process_that_cannot_start_fails_only_its_job(around, error):
    job = walked(around, error)
    assert job.states == "STAGED_IN PREPROCESSED FAILED"
    assert job.task.message == (error.strerror if isinstance(error, OSError) else str(error))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"command": "echo {x}", "parameters": {"y": 1}}, "parameter 'x' is missing"),
        ({"command": "echo 'open"}, "close the quotation"),
        ({"stage_in": "/no/such/file"}, "stage_in: '/no/such/file' does not exist"),
        ({"user_workdir": "/dev/null/x"}, "can't make the working directory"),
    ],
)
def test_what_can_never_work_fails_with_the_reason(around, fields, why):
    job = walked(around, **fields)
    assert job.states.endswith("FAILED")
    assert why in job.task.message


def test_a_bad_pattern_fails_its_job(around):
    job = walked(around, input_files=["../*"], parents=[ParentRef(1, "default", "a", "")])
    assert job.states == "FAILED"
    assert "input_files" in job.task.message


def test_a_fault_of_ours_fails_only_its_job(around, monkeypatch, caplog):
    monkeypatch.setattr(module, "make_workdir", lambda *_: 1 / 0)
    job = walked(around)
    assert (job.states, job.task.message) == ("FAILED", "unexpected ZeroDivisionError: division by zero")
    assert "Traceback" in caplog.text


def test_a_reason_can_be_stored_whatever_it_holds(around):
    job = walked(around, OSError(errno.EINVAL, "bad \udc80 name\nwith\0all"))
    job.task.message.encode()
    assert job.task.message.isprintable()


def test_a_full_disk_is_no_fault_of_the_job(around, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "mkdir", full)
    task = Task(Job(id=5, command="true", state=State.READY), None, [], around)
    with pytest.raises(DiskFullError, match="no space left"):
        next(task.walk())
    assert task.released
    assert task.transitions == []


def test_staging_is_done_by_processes(around, tmp_path):
    (tmp_path / "in").mkdir()
    job = walked(around, 0, 0, stage_in=str(tmp_path / "in"), stage_out=str(tmp_path / "out"), stage_out_files=["*"])
    assert (job.states, job.words) == (TO_THE_END, ["cp", "run"])  # nothing was written, so nothing is copied
    assert job.commands[0].stdout == "stage_in.log"


def test_copying_out_that_fails_fails_the_job(around, tmp_path):
    place = around.directory.data / "default" / "sim_5"
    place.mkdir(parents=True)
    (place / "result").touch()
    job = walked(around, 0, 1, stage_out=str(tmp_path / "out"), stage_out_files=["result"])
    assert job.states.endswith("RUN_DONE FAILED")
    assert job.task.message == "stage_out: exit code 1"


def test_an_apps_hooks_and_environment_are_used(around):
    app = App("sim", "sim.x {x}", preprocess="before", environ={"A": "1"})
    job = walked(around, 0, 0, app=app, parameters={"x": 3}, environ={"B": "2"})
    assert [command.argv for command in job.commands] == [["before"], ["sim.x", "3"]]
    assert job.commands[0].env == job.commands[1].env
    assert {"A": "1", "B": "2", "BALSAM_JOB_ID": "5", "PATH": "/bin"}.items() <= job.commands[1].env.items()


@pytest.mark.parametrize(("threads", "per_core", "slots"), [(1, 1, 1), (4, 1, 4), (4, 2, 2), (5, 2, 3), (1, 4, 1)])
def test_threads_take_slots(around, threads, per_core, slots):
    job = Job(id=1, command="true", threads_per_rank=threads, threads_per_core=per_core)
    assert Task(job, None, [], around).slots == slots


def test_a_job_given_back_tells_nothing(around):
    job = walked(around, 1)
    job.task.give_back()
    assert (job.task.transitions, job.task.message, job.task.return_code, job.task.released) == ([], "", None, True)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\n", "two"),
        (b"x" * 10_000, "x" * 300),
        (b"\xff\x00\x1b[31mred", "\ufffd  [31mred"),
    ],
)
def test_last_lines_are_short_and_printable(tmp_path, content, line):
    (tmp_path / "f").write_bytes(content)
    assert last_line(tmp_path / "f") == line
    assert last_line(tmp_path / "missing") == ""
