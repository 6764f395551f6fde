"""The lifecycle of one job, from its claim until the launcher is done with it.

A lifecycle is a generator. It does itself what is quick (directories, links, decisions), yields a :class:`ProcessSpec`
for each process that must run, and is sent the :class:`ProcessResult`. It notes each state as the job reaches it.
Whatever goes wrong for this job ends here, as a failure with a reason; no error reaches the other jobs.

After an error a job first uses its automatic retries; when none are left the error handler may save it. After a timeout
the handler, which the user has to ask for, comes before the automatic retry, which is on by default.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.dbdir.workdirs import make_workdir, output_name
from balsam_core.errors import BalsamError, DBDirError
from balsam_core.launcher.job.commands import bound_cores, hook_argv, job_argv, job_environment, ranks_started
from balsam_core.launcher.job.dataflow import link_parents, stage_in_command, stage_out_commands
from balsam_core.launcher.job.failures import DiskFullError, describe_error, describe_exit, is_disk_full, last_line
from balsam_core.launcher.placement import Need
from balsam_core.launcher.process_events import ShortageError, is_shortage
from balsam_core.model.states import END, State

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.launcher.counters import Counters
    from balsam_core.launcher.mpi import MPI
    from balsam_core.launcher.placement import Place
    from balsam_core.model.app import App
    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

logger = logging.getLogger(__name__)

_S = State


class ProcessSpec(NamedTuple):
    """A process that a job needs now.

    Attributes:
        argv: Its command line.
        env: Its whole environment.
        stdout: File for its output, in the working directory.
        stderr: File for its errors; may be the same.
        started_state: The state that the job reaches when the process has started; None for none.
        cores: Numbers of the processors that it is bound to; empty for no binding.
    """

    argv: list[str]
    env: Mapping[str, str]
    stdout: str
    stderr: str
    started_state: State | None = None
    cores: tuple[int, ...] = ()


class ProcessResult(NamedTuple):
    """How a process ended.

    Attributes:
        exit_code: Exit code, negative for a signal.
        stop_reason: Why the launcher stopped it; empty where it ended by itself.
        is_lost: Whether nobody wanted it to end: what keeps it was lost, as ``stop_reason`` says.
        ended_at: When it ended, by the monotonic clock; None for now.
        left_behind: Processes that it had left running, and that were ended.
    """

    exit_code: int
    stop_reason: str = ""
    is_lost: bool = False
    ended_at: float | None = None
    left_behind: int = 0

    @property
    def remark(self) -> str:
        """What else the history should say of it; mostly nothing."""
        count = self.left_behind
        if not count:
            return ""
        return "1 process left behind was ended" if count == 1 else f"{count} processes left behind were ended"


@dataclass(frozen=True, kw_only=True)
class LauncherContext:
    """What all jobs of a launcher share.

    Attributes:
        directory: The DB directory.
        environment: Environment variables of every process.
        counters: Counts where the time goes.
        mpi: What starts jobs of several ranks; None where nothing can.
    """

    directory: DBDir
    environment: dict[str, str]
    counters: Counters
    mpi: MPI | None = None


class ClaimedJob:
    """A job that this launcher has claimed, with what has happened to it since.

    Attributes:
        job: The job as it was claimed.
        state: Its state now.
        transitions: States that it reached and that the database doesn't know yet, each with its time by the monotonic
            clock.
        message: The reasons, for the history.
        return_code: Exit code of the run, once it ran.
        released: Whether the launcher gives it back unfinished.
        workdir: Its working directory; set once it is made.
        need: What it takes of a node.
        place: What it has been given; None until it is started.
    """

    workdir: Path
    place: Place | None = None

    def __init__(self, job: Job, app: App | None, parents: list[ParentRef], context: LauncherContext) -> None:
        self.job = job
        self.id: int = job.id or 0
        self.attempt = job.attempt
        self.state = job.state
        self.transitions: list[tuple[State, float]] = []
        self.message = ""
        self.return_code: int | None = None
        self.released = False
        self.need = Need.of(job)
        self._app = app
        self._parents = parents
        self._context = context

    def reach(self, state: State, reason: str = "", at: float | None = None) -> None:
        """Note that the job reached a state, now or at a moment of the monotonic clock."""
        self.state = state
        self.transitions.append((state, monotonic() if at is None else at))
        self.remark(reason)

    def remark(self, text: str) -> None:
        """Note something for the history; nothing where the text is empty."""
        if text:
            self.message = f"{self.message}; {text}" if self.message else text

    def give_back(self) -> None:
        """Drop what happened and release the job as the database knows it: it wasn't started, or was killed."""
        self.transitions.clear()
        self.message = ""
        self.return_code = None
        self.released = True

    # ---- the lifecycle

    def lifecycle(self) -> Generator[ProcessSpec, ProcessResult, None]:
        """Go through the states that are left; see the module's docstring.

        Raises:
            DiskFullError: There is no room for this job, nor for any other; the job is to be given back.
            ShortageError: Too many open files or too little memory; a new lifecycle may go on later.
        """
        try:
            yield from self._pass_states()
        except DiskFullError:
            self.released = True
            raise
        except (BalsamError, OSError, ValueError) as err:  # ValueError: an argument that no program can be given
            if is_shortage(err) or is_shortage(err.__cause__):
                raise ShortageError(describe_error(err)) from err
            self._fail(describe_error(err))
        except Exception as err:
            logger.exception("job %s: unexpected fault", self.id)
            self._fail(f"unexpected {type(err).__name__}: {describe_error(err)}")

    def _pass_states(self) -> Generator[ProcessSpec, ProcessResult, None]:
        with self._context.counters.timed("workdir"):
            self._make_workdir()
        if self.state is _S.RUNNING:
            self.reach(_S.RUN_TIMEOUT, "its launcher was lost while it ran")
            self.reach(_S.RESTART_READY)
        if self.state is _S.READY:
            yield from self._stage_in()
        if self.state is _S.STAGED_IN and not self.released:
            yield from self._run_hook("preprocess", _S.PREPROCESSED)
        if self.state in {_S.PREPROCESSED, _S.RESTART_READY} and not self.released:
            yield from self._run_main_process()
        if self.state is _S.RUN_DONE and not self.released:
            yield from self._stage_out()
        if self.state is _S.RUN_DONE and not self.released:
            yield from self._run_hook("postprocess", _S.POSTPROCESSED)
        if self.state is _S.RUN_ERROR:
            yield from self._handle_error()
        if self.state is _S.RUN_TIMEOUT and not self.released:
            yield from self._handle_timeout()
        if self.state is _S.POSTPROCESSED:
            self.reach(_S.JOB_FINISHED)

    def _make_workdir(self) -> None:
        try:
            self.workdir = make_workdir(self._context.directory, self.job)
        except DBDirError as err:
            if not self.job.user_workdir and is_disk_full(err.__cause__):
                raise DiskFullError(err.message) from err
            raise

    def _stage_in(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.stage_in:
            argv = stage_in_command(self.job, self.workdir)
            if not (yield from self._run_step(argv, "stage_in")):
                return
        if self.job.input_files and self._parents:
            with self._context.counters.timed("links"):
                link_parents(self._context.directory, self.job, self.workdir, self._parents)
        self.reach(_S.STAGED_IN)

    def _run_main_process(self) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = job_argv(self.job, self._app)
        with ranks_started(self.job, argv, self._environment, self._context.mpi) as (argv, env):
            result = yield ProcessSpec(
                argv,
                env,
                output_name(self.job, ".out"),
                output_name(self.job, ".err"),
                _S.RUNNING,
                bound_cores(self.job, self.place),
            )
        self.return_code = result.exit_code
        if result.stop_reason:
            self.reach(_S.RUN_TIMEOUT, result.stop_reason, result.ended_at)
            if result.is_lost:
                self._mark_for_restart("")
            elif self.job.post_timeout_handler:
                self.released = True  # this launcher is about to end; the next one runs the handler
        elif result.exit_code:
            why = self._describe_failure(result, output_name(self.job, ".err"))
            self.reach(_S.RUN_ERROR, why, result.ended_at)
        else:
            self.reach(_S.RUN_DONE, at=result.ended_at)
        self.remark(result.remark)

    def _stage_out(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if not (self.job.stage_out and self.job.stage_out_files):
            return
        for argv in stage_out_commands(self.job, self.workdir):
            if not (yield from self._run_step(argv, "stage_out")):
                return

    def _run_hook(self, hook: str, done_state: State) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = hook_argv(self.job, self._app, hook)
        if not argv or (yield from self._run_step(argv, hook)):
            self.reach(done_state)

    def _handle_error(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.retries < self.job.max_retries:
            self._mark_for_restart(f"retry {self.job.retries + 1} of {self.job.max_retries}")
        elif self.job.post_error_handler:
            yield from self._run_handler("BALSAM_JOB_ERROR")
        else:
            self.reach(_S.FAILED)

    def _handle_timeout(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.post_timeout_handler:
            yield from self._run_handler("BALSAM_JOB_TIMEOUT")
        elif self.job.auto_timeout_retry:
            self._mark_for_restart("")
        else:
            self.reach(_S.FAILED)

    def _run_handler(self, variable: str) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = hook_argv(self.job, self._app, "postprocess")
        if not argv:
            self._fail("there is no postprocess that could handle it")
            return
        env = {**self._environment, variable: "TRUE"}
        if (yield from self._run_step(argv, "postprocess", what="the handler (postprocess)", env=env)):
            self.reach(_S.POSTPROCESSED, "handled by postprocess")

    # ---- parts of it

    def _run_step(
        self, argv: list[str], stem: str, *, what: str = "", env: dict[str, str] | None = None
    ) -> Generator[ProcessSpec, ProcessResult, bool]:
        """Run a process beside the job's main one, with a log of this stem; return whether the lifecycle may go on."""
        log = output_name(self.job, ".log", stem=stem)
        result = yield ProcessSpec(argv, env or self._environment, log, log)
        if result.remark:
            self.remark(f"{what or stem}: {result.remark}")
        if result.stop_reason:
            self.released = True  # the next launcher does this step again
        elif result.exit_code:
            self._fail(f"{what or stem}: {self._describe_failure(result, log)}")
        return not result.stop_reason and not result.exit_code

    @cached_property
    def _environment(self) -> dict[str, str]:
        return job_environment(self._context.environment, self.job, self._app, self.place)

    def _describe_failure(self, result: ProcessResult, errors: str) -> str:
        line = last_line(self.workdir / errors)
        return describe_exit(result.exit_code) + (f": {line}" if line else "")

    def _fail(self, reason: str) -> None:
        if self.state not in END:
            self.reach(_S.FAILED, reason)

    def _mark_for_restart(self, reason: str) -> None:
        self.reach(_S.RESTART_READY, reason)
        self.released = True
