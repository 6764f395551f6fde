"""A job's lifecycle: which processes it asks for and which states it reaches from any state that it is claimed in."""

from __future__ import annotations

import errno
import os

import pytest

from balsam_core.dbdir.directory import DBDir
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job import claimed_job as module
from balsam_core.launcher.job.claimed_job import ClaimedJob, LauncherContext
from balsam_core.launcher.job.failures import DiskFullError, last_words
from balsam_core.launcher.job.process import ProcessResult
from balsam_core.model.app import App
from balsam_core.model.calls import ParentRef
from balsam_core.model.job import Job
from balsam_core.model.states import State, first_illegal_transition

STOP = "stopped by SIGTERM"


@pytest.fixture
def context(tmp_path):
    (tmp_path / "db" / "data").mkdir(parents=True)
    directory = DBDir(path=tmp_path / "db", db_type="sqlite", id="0" * 32)
    return LauncherContext(directory=directory, environment={"PATH": "/bin"}, counters=Counters())


class EndedJob:
    """A job after its lifecycle, with processes that ended as given.

    Attributes:
        recorded: What was on record before each pause.
    """

    def __init__(self, claimed, ends):
        self.claimed = claimed
        self.specs = []
        self.recorded = []
        self.times = []
        first_state = claimed.state
        self.ends = iter(ends)
        self.live()
        while claimed.paused:
            self.recorded.append(claimed.state)
            self.times += claimed.transitions
            claimed.transitions.clear()
            claimed.paused = False
            self.live()
        assert next(self.ends, None) is None, "the lifecycle asked for fewer processes"
        self.times += claimed.transitions
        assert first_illegal_transition(first_state, [state for state, _ in self.times]) is None

    def live(self):
        claimed = self.claimed
        lifecycle = claimed.lifecycle()
        try:
            spec = next(lifecycle)
            while True:
                self.specs.append(spec)
                end = next(self.ends)
                if isinstance(end, Exception):
                    spec = lifecycle.throw(end)
                    continue
                if spec.started_state:
                    claimed.reach(spec.started_state)
                spec = lifecycle.send(end if isinstance(end, ProcessResult) else ProcessResult(end))
        except StopIteration:
            pass

    @property
    def states(self):
        return " ".join(state for state, _ in self.times)

    @property
    def programs(self):
        return [spec.argv[0] for spec in self.specs]


def live(context, *ends, app=None, parents=(), **fields):
    fields = {"id": 5, "name": "sim", "state": State.READY, "attempt": 1, **fields}
    if app:
        fields["app"] = app.name
    else:
        fields.setdefault("command", "run")
    return EndedJob(ClaimedJob(Job(**fields), app, list(parents), context), ends)


HOOKS = {"preprocess": "before", "postprocess": "after"}
TO_THE_END = "STAGED_IN PREPROCESSED RUNNING RUN_DONE POSTPROCESSED JOB_FINISHED"


def test_a_plain_job_runs_one_process_and_passes_all_states(context):
    job = live(context, 0)
    assert (job.states, job.programs, job.claimed.return_code, job.claimed.message) == (TO_THE_END, ["run"], 0, "")
    assert not job.claimed.released
    assert (job.specs[0].stdout, job.specs[0].stderr) == ("sim.out", "sim.err")
    times = [at for _, at in job.times]
    assert times == sorted(times)
    assert job.recorded == []


def test_hooks_run_before_and_after_with_logs_of_their_own(context):
    job = live(context, 0, 0, 0, **HOOKS)
    assert (job.states, job.programs) == (TO_THE_END, ["before", "run", "after"])
    assert [spec.stdout for spec in job.specs] == ["preprocess.log", "sim.out", "postprocess.log"]
    assert job.specs[0].stderr == "preprocess.log"
    assert [spec.started_state for spec in job.specs] == [None, State.RUNNING, None]
    assert job.recorded == ["STAGED_IN", "PREPROCESSED", "RUN_DONE"]


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
def test_a_job_that_another_launcher_left_goes_on_where_it_stands(context, state, ends, words, states):
    job = live(context, *ends, state=State(state), **HOOKS)
    assert (job.states, " ".join(job.programs)) == (states, words)


def test_a_failing_preprocess_fails_the_job_with_its_last_line(context):
    workdir = context.directory.data / "default" / "sim_5"
    workdir.mkdir(parents=True)
    (workdir / "preprocess.log").write_text("starting\nno such mesh: a.msh\n\n")
    job = live(context, 2, **HOOKS)
    assert job.states == "STAGED_IN FAILED"
    assert job.claimed.message == "preprocess: exit code 2: starting | no such mesh: a.msh"


def test_a_failing_postprocess_fails_the_job(context):
    job = live(context, 0, 0, 1, **HOOKS)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_DONE FAILED"
    assert job.claimed.message == "postprocess: exit code 1"
    assert job.claimed.return_code == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [(3, "exit code 3"), (-9, "killed by SIGKILL"), (-63, "killed by signal 63"), (255, "exit code 255")],
)
def test_an_error_fails_the_job_with_the_code(context, code, why):
    job = live(context, 0, code, **HOOKS)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_ERROR FAILED"
    assert (job.claimed.message, job.claimed.return_code) == (why, code)


def test_an_error_is_retried_as_often_as_allowed(context):
    job = live(context, 1, max_retries=2, retries=1)
    assert job.states == "STAGED_IN PREPROCESSED RUNNING RUN_ERROR RESTART_READY"
    assert job.claimed.released
    assert job.claimed.message == "exit code 1; retry 2 of 2"
    assert live(context, 1, max_retries=2, retries=2).states.endswith("RUN_ERROR FAILED")


@pytest.mark.parametrize(("code", "states"), [(0, "POSTPROCESSED JOB_FINISHED"), (1, "FAILED")])
def test_an_error_handler_decides(context, code, states):
    job = live(context, 0, 7, code, post_error_handler=True, **HOOKS)
    assert job.states == f"STAGED_IN PREPROCESSED RUNNING RUN_ERROR {states}"
    assert job.specs[2].env["BALSAM_JOB_ERROR"] == "TRUE"
    assert "BALSAM_JOB_ERROR" not in job.specs[1].env
    assert job.claimed.return_code == 7


def test_an_error_handler_without_a_command_fails_the_job(context):
    job = live(context, 1, post_error_handler=True)
    assert job.states.endswith("RUN_ERROR FAILED")
    assert "no postprocess" in job.claimed.message


def test_retries_come_before_the_error_handler(context):
    job = live(context, 0, 1, max_retries=1, post_error_handler=True, **HOOKS)
    assert job.states.endswith("RUN_ERROR RESTART_READY")


@pytest.mark.parametrize(("retries", "delay"), [(0, 1.5), (1, 3.0), (4, 24.0), (30, 86400.0), (5000, 86400.0)])
def test_the_pause_before_a_retry_doubles_up_to_a_day(context, retries, delay):
    job = live(context, 1, max_retries=9999, retries=retries, retry_delay_seconds=1.5)
    assert job.claimed.delay == delay
    assert job.claimed.message == f"exit code 1; retry {retries + 1} of 9999 in {delay:g} s"


@pytest.mark.parametrize(("code", "end"), [(0, "POSTPROCESSED JOB_FINISHED"), (1, "FAILED")])
def test_a_run_over_its_own_limit_is_handled_and_never_retried(context, code, end):
    over = ProcessResult(-15, "its time limit of 2 minutes was over", over_limit=True)
    job = live(context, over, time_limit_minutes=2, max_retries=5)
    assert job.states.endswith("RUNNING RUN_TIMEOUT FAILED")
    assert job.specs[0].time_limit == 120
    assert job.claimed.message == over.stop_reason
    handled = live(context, 0, over, code, time_limit_minutes=2, max_retries=5, post_timeout_handler=True, **HOOKS)
    assert handled.states.endswith(f"RUNNING RUN_TIMEOUT {end}")
    assert handled.specs[2].env["BALSAM_JOB_TIMEOUT"] == "TRUE"
    assert handled.recorded[-1] == "RUN_TIMEOUT"
    assert live(context, 0).specs[0].time_limit is None


@pytest.mark.parametrize("step", ["stage_in", "preprocess", "postprocess", "stage_out"])
def test_every_step_has_the_limit_and_fails_the_job_when_it_is_over(context, tmp_path, step):
    (tmp_path / "in").mkdir()
    (context.directory.data / "default" / "sim_5").mkdir(parents=True)
    (context.directory.data / "default" / "sim_5" / "result").touch()
    over = ProcessResult(-15, "its time limit of 2 minutes was over", over_limit=True)
    fields = {"stage_in": str(tmp_path / "in"), "stage_out": str(tmp_path / "out"), "stage_out_files": ["result"]}
    ends = [0] * ["stage_in", "preprocess", "run", "postprocess", "stage_out"].index(step)
    job = live(context, *ends, over, time_limit_minutes=2, max_retries=5, **HOOKS, **fields)
    assert job.states.endswith("FAILED")
    assert job.claimed.message == f"{step}: {over.stop_reason}"
    assert not job.claimed.released
    assert {spec.time_limit for spec in job.specs} == {120}


def test_results_are_copied_out_last_and_for_saved_jobs_too(context, tmp_path):
    workdir = context.directory.data / "default" / "sim_5"
    workdir.mkdir(parents=True)
    (workdir / "result").touch()
    staging = {"stage_out": str(tmp_path / "out"), "stage_out_files": ["result"], "postprocess": "after"}
    job = live(context, 0, 0, 0, **staging)
    assert job.programs == ["run", "after", "cp"]
    assert job.recorded == ["RUN_DONE", "POSTPROCESSED"]
    saved = live(context, 1, 0, 0, post_error_handler=True, **staging)
    assert saved.programs == ["run", "after", "cp"]
    assert saved.recorded == ["RUN_ERROR", "POSTPROCESSED"]
    assert saved.states.endswith("RUN_ERROR POSTPROCESSED JOB_FINISHED")


def test_outputs_of_earlier_attempts_are_kept_under_the_attempt_that_wrote_them(context):
    workdir = context.directory.data / "default" / "sim_5"
    workdir.mkdir(parents=True)

    def attempt(number, out, **fields):
        live(context, 0, attempt=number, state=State.RESTART_READY, **fields)
        assert not (workdir / "sim.out").exists()
        (workdir / "sim.out").write_text(out)
        (workdir / "sim.err").touch()  # an empty one is not kept

    attempt(1, "first")
    attempt(3, "third")  # the second was given back before it began
    attempt(4, "fourth")
    assert (workdir / "sim.out.1").read_text() == "first"
    assert (workdir / "sim.out.3").read_text() == "third"
    (workdir / "sim.out.4").write_text("somebody's own")
    attempt(5, "fifth")
    assert (workdir / "sim.out.4").read_text() == "somebody's own"
    assert (workdir / "sim.out.4.2").read_text() == "fourth"
    assert not list(workdir.glob("sim.err.*"))


def test_what_an_attempt_took_is_known_when_its_run_has_ended(context):
    job = live(context, ProcessResult(3, cpu_seconds=1.5, max_memory=4096)).claimed
    assert job.elapsed is not None
    assert 0 <= job.elapsed < 5
    assert (job.cpu_seconds, job.max_memory) == (1.5, 4096)
    assert job.begun_at is not None
    assert live(context, command="echo 'open").claimed.begun_at is None


@pytest.mark.parametrize(("retry", "state", "released"), [(True, "RESTART_READY", True), (False, "FAILED", False)])
def test_a_job_that_the_launcher_stopped_timed_out(context, retry, state, released):
    job = live(context, ProcessResult(-15, STOP), auto_timeout_retry=retry)
    assert job.states == f"STAGED_IN PREPROCESSED RUNNING RUN_TIMEOUT {state}"
    assert job.claimed.message == STOP
    assert job.claimed.released is released


def test_ending_well_after_the_request_to_stop_is_a_timeout_too(context):
    job = live(context, ProcessResult(0, STOP))
    assert job.states.endswith("RUN_TIMEOUT RESTART_READY")  # it may have written a checkpoint and nothing more


def test_a_timeout_handler_is_left_to_the_next_launcher(context):
    job = live(context, 0, ProcessResult(-15, STOP), post_timeout_handler=True, **HOOKS)
    assert job.states.endswith("RUNNING RUN_TIMEOUT")
    assert job.claimed.released
    later = live(context, 0, state=State.RUN_TIMEOUT, post_timeout_handler=True, **HOOKS)
    assert (later.states, later.programs) == ("POSTPROCESSED JOB_FINISHED", ["after"])
    assert later.specs[0].env["BALSAM_JOB_TIMEOUT"] == "TRUE"


@pytest.mark.parametrize(
    ("ends", "state"),
    [
        ([ProcessResult(-15, STOP)], "STAGED_IN"),
        ([0, 0, ProcessResult(-15, STOP)], "RUN_DONE"),
        ([0, 0, ProcessResult(0, STOP)], "RUN_DONE"),
    ],
)
def test_a_hook_that_was_stopped_is_done_again_by_the_next_launcher(context, ends, state):
    job = live(context, *ends, **HOOKS)
    assert job.states.split()[-1] == state
    assert job.claimed.released


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "can't run 'x'"), ValueError("embedded null byte")])
def test_a_process_that_cannot_start_fails_only_its_job(context, error):
    job = live(context, error)
    assert job.states == "STAGED_IN PREPROCESSED FAILED"
    assert job.claimed.message == (error.strerror if isinstance(error, OSError) else str(error))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"command": "echo 'open"}, "close the quotation"),
        ({"stage_in": "/no/such/file"}, "stage_in: '/no/such/file' does not exist"),
        ({"user_workdir": "/dev/null/x"}, "can't make the working directory"),
    ],
)
def test_what_can_never_work_fails_with_the_reason(context, fields, why):
    job = live(context, **fields)
    assert job.states.endswith("FAILED")
    assert why in job.claimed.message


def test_a_bad_pattern_fails_its_job(context):
    job = live(context, input_files=["../*"], parents=[ParentRef(1, "default", "a", "")])
    assert job.states == "FAILED"
    assert "input_files" in job.claimed.message


def test_a_fault_of_ours_fails_only_its_job(context, monkeypatch, caplog):
    monkeypatch.setattr(module, "make_workdir", lambda *_: 1 / 0)
    job = live(context)
    assert (job.states, job.claimed.message) == ("FAILED", "unexpected ZeroDivisionError: division by zero")
    assert "Traceback" in caplog.text


def test_a_reason_can_be_stored_whatever_it_holds(context):
    job = live(context, OSError(errno.EINVAL, "bad \udc80 name\nwith\0all"))
    job.claimed.message.encode()
    assert job.claimed.message.isprintable()


def test_a_full_disk_is_no_fault_of_the_job(context, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    claimed = ClaimedJob(Job(id=5, command="true", state=State.READY), None, [], context)
    with pytest.raises(DiskFullError, match="no space left"):
        next(claimed.lifecycle())
    assert claimed.released
    assert claimed.transitions == []


def test_staging_is_done_by_processes(context, tmp_path):
    (tmp_path / "in").mkdir()
    job = live(context, 0, 0, stage_in=str(tmp_path / "in"), stage_out=str(tmp_path / "out"), stage_out_files=["*"])
    assert (job.states, job.programs) == (TO_THE_END, ["cp", "run"])  # nothing was written, so nothing is copied
    assert job.specs[0].stdout == "stage_in.log"


def test_copying_out_that_fails_fails_the_job(context, tmp_path):
    workdir = context.directory.data / "default" / "sim_5"
    workdir.mkdir(parents=True)
    (workdir / "result").touch()
    job = live(context, 0, 1, stage_out=str(tmp_path / "out"), stage_out_files=["result"])
    assert job.states.endswith("RUN_DONE POSTPROCESSED FAILED")
    assert job.claimed.message == "stage_out: exit code 1"
    assert job.recorded == ["POSTPROCESSED"]


def test_an_apps_hooks_and_environment_are_used(context):
    app = App("sim", "sim.x {x}", preprocess="before", environ={"A": "1"})
    job = live(context, 0, 0, app=app, parameters={"x": 3}, environ={"B": "2"})
    assert [spec.argv for spec in job.specs] == [["before"], ["sim.x", "3"]]
    assert job.specs[0].env == job.specs[1].env
    assert {"A": "1", "B": "2", "BALSAM_JOB_ID": "5"}.items() <= job.specs[1].env.items()
    assert "PATH" not in job.specs[1].env  # every process has what the launcher has


def test_a_job_given_back_has_no_changes(context):
    job = live(context, 1)
    job.claimed.give_back()
    assert (job.claimed.transitions, job.claimed.message, job.claimed.return_code, job.claimed.released) == (
        [],
        "",
        None,
        True,
    )


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\n\nthree\nfour", "two | three | four"),
        (b"x" * 10_000, "x" * 300),
        (b"\xff\x00\x1b[31mred", "\ufffd  [31mred"),
        (b"a\n----------\nb 1\n----------\n", "a | b 1"),
    ],
)
def test_last_words_are_short_and_printable(tmp_path, content, line):
    (tmp_path / "f").write_bytes(content)
    assert last_words(tmp_path / "f") == line
    assert last_words(tmp_path / "missing") == ""


OPENMPI_ABORT = """\
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
with errorcode 7.

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
You may or may not see output from other processes, depending on
exactly when Open MPI kills them.
--------------------------------------------------------------------------
[host:811] 1 more process has sent help message help-mpi-api.txt / mpi-abort
[host:811] Set MCA parameter "orte_base_help_aggregate" to 0 to see all help / error messages
"""
OPENMPI_EXIT = """\
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[63352,1],1]
  Exit code:    7
--------------------------------------------------------------------------
"""
MPICH_ABORT = """\

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 4711 RUNNING AT host
=   EXIT CODE: 7
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
"""


@pytest.mark.parametrize(
    ("err", "out", "words"),
    [
        ("", "step 1\nERROR: no such pair style\nLast command: pair_style x\n", "ERROR: no such pair style"),
        ("fault\n", "result\n", "fault"),
        (OPENMPI_ABORT, "ERROR: lost atoms\n", "ERROR: lost atoms"),
        ("bad mesh\n" + OPENMPI_EXIT, "result\n", "bad mesh"),
        (OPENMPI_ABORT, "", "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD | with errorcode 7."),
        (OPENMPI_EXIT, "", "Process name: [[63352,1],1] | Exit code:    7"),
        (MPICH_ABORT, "", "=   EXIT CODE: 7"),
        ("Abort(7): application called\n" + MPICH_ABORT, "", "Abort(7): application called"),
    ],
)
def test_what_a_program_said_itself_comes_before_an_mpi_launchers_banner(context, err, out, words):
    workdir = context.directory.data / "default" / "sim_5"
    workdir.mkdir(parents=True)
    (workdir / "sim.err").write_text(err)
    (workdir / "sim.out").write_text(out)
    reason = live(context, 7).claimed.message
    assert reason.startswith("exit code 7: ")
    assert words in reason
    assert "You may or may not" not in reason
    assert "Set MCA" not in reason
