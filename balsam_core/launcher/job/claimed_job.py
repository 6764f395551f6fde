"""The lifecycle of one job, from its claim until the launcher is done with it.

A lifecycle is a generator. It does itself what is quick (directories, links, decisions), yields a :class:`ProcessSpec`
for each process that must run, and is sent the :class:`ProcessResult`. It notes each state as the job reaches it.
Whatever goes wrong for this job ends here, as a failure with a reason; no error reaches the other jobs.

A process may only start when the step before it is on record, so that it isn't done again if the launcher is lost: the
lifecycle then ends with :attr:`ClaimedJob.paused`, and goes on in a new one when the database has the states so far.
Only jobs with hooks or stage-out cost such a write of their own.

What comes after an error or a timeout is in docs/reference/job-states.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.dbdir.workdirs import make_workdir, output_name
from balsam_core.errors import BalsamError, DBDirError
from balsam_core.launcher.job.commands import bound_cores, hook_argv, job_argv, job_environment, ranks_started
from balsam_core.launcher.job.dataflow import LinkedFiles, change_remarks, copy_commands, find_inputs, link_inputs
from balsam_core.launcher.job.failures import (
    DiskFullError,
    describe_error,
    describe_exit,
    is_about,
    is_data_unusable,
    is_disk_full,
    is_no_space_left,
    last_words,
)
from balsam_core.launcher.job.outputs import keep_earlier_outputs
from balsam_core.launcher.job.process import ProcessResult, ProcessSpec
from balsam_core.launcher.job.staging import stage_in_command, stage_out_commands
from balsam_core.launcher.placement import Need
from balsam_core.launcher.process_events import ShortageError, is_shortage
from balsam_core.model.states import END, State

if TYPE_CHECKING:
    from collections.abc import Generator
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

LONGEST_DELAY = 86_400.0  # seconds between two attempts


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
        paused: Whether it goes on when its transitions are on record.
        delay: Seconds that it may not be claimed after it is given back.
        remarks: Messages for the histories of other jobs, by id.
        changed_parents: Whether files of its parents, which it has links to, changed while it ran.
        begun_at: When its first process was asked for, by the monotonic clock; None before.
        elapsed: Duration of its run in seconds; None before its end.
        cpu_seconds: Processor time of its run in seconds; None for unknown.
        max_memory: The most memory that its run used, in bytes; None for unknown.
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
        self.paused = False
        self.delay = 0.0
        self.remarks: dict[int, str] = {}
        self.changed_parents = False
        self.begun_at: float | None = None
        self.elapsed: float | None = None
        self.cpu_seconds: float | None = None
        self.max_memory: int | None = None
        self._running_since = 0.0
        self._is_over_limit = False
        self.need = Need.of(job)
        self._app = app
        self._parents = parents
        self._context = context

    def reach(self, state: State, reason: str = "", at: float | None = None) -> None:
        """Note that the job reached a state, now or at a moment of the monotonic clock."""
        self.state = state
        moment = monotonic() if at is None else at
        self.transitions.append((state, moment))
        if state is _S.RUNNING:
            self._running_since = moment
        self.remark(reason)

    def remark(self, text: str) -> None:
        """Note something for the history; nothing where the text is empty."""
        if text:
            self.message = f"{self.message}; {text}" if self.message else text

    def give_back(self) -> None:
        """Drop what happened and release the job as the database knows it: it wasn't started, or was killed."""
        if self.state is _S.RUNNING:
            self.elapsed = monotonic() - self._running_since
        self.transitions.clear()
        self.message = ""
        self.return_code = None
        self.released = True

    # ---- the lifecycle

    def lifecycle(self) -> Generator[ProcessSpec, ProcessResult, None]:
        """Go through the states that are left; see the module's docstring.

        Raises:
            DiskFullError: No files can be made for this job, nor for any other; the job is to be given back.
            ShortageError: Too many open files or too little memory; a new lifecycle may go on later.
        """
        self.__dict__.pop("_environment", None)  # after a pause it may have another place
        try:
            yield from self._pass_states()
        except DiskFullError:
            self.released = True
            raise
        except (BalsamError, OSError, ValueError) as err:  # ValueError: an argument that no program can be given
            if is_disk_full(err) and is_about(err, self._context.directory.path):
                self.released = True
                raise DiskFullError(describe_error(err)) from err
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
        steps = {
            _S.READY: self._stage_in,
            _S.STAGED_IN: self._preprocess,
            _S.PREPROCESSED: self._run_main_process,
            _S.RESTART_READY: self._run_main_process,
            _S.RUN_DONE: self._postprocess,
            _S.RUN_ERROR: self._handle_error,
            _S.RUN_TIMEOUT: self._handle_timeout,
            _S.POSTPROCESSED: self._stage_out,
        }
        while self.state in steps and not self.released and not self.paused:
            yield from steps[self.state]()

    def _pause(self) -> bool:
        """End this lifecycle where something is not yet on record; returns whether it does."""
        self.paused = bool(self.transitions)
        return self.paused

    def _make_workdir(self) -> None:
        try:
            self.workdir = make_workdir(self._context.directory, self.job)
        except DBDirError as err:
            if not self.job.user_workdir and is_data_unusable(err.__cause__):
                raise DiskFullError(err.message) from err
            raise

    def _stage_in(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.stage_in:
            argv = stage_in_command(self.job, self.workdir)
            if not (yield from self._run_step(argv, "stage_in")):
                return
        remark = ""
        if self.job.input_files:
            with self._context.counters.timed("links"):
                inputs = find_inputs(self._context.directory, self.job, self.workdir, self._parents)
                if self.job.input_mode == "link":
                    link_inputs(self.job, self.workdir, inputs)
            if self.job.input_mode == "copy":
                for argv in copy_commands(self.job, self.workdir, inputs):
                    if not (yield from self._run_step(argv, "input_files")):
                        return
            remark = inputs.remark
        self.reach(_S.STAGED_IN, remark)

    def _preprocess(self) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = hook_argv(self.job, self._app, "preprocess")
        if not argv:
            self.reach(_S.PREPROCESSED)
        elif not self._pause() and (yield from self._run_step(argv, "preprocess")):
            self.reach(_S.PREPROCESSED)
            self._pause()

    def _run_main_process(self) -> Generator[ProcessSpec, ProcessResult, None]:
        out, err = output_name(self.job, ".out"), output_name(self.job, ".err")
        argv = job_argv(self.job, self._app)
        linked = None
        if self.job.input_files and self._parents and self.job.input_mode == "link":
            linked = LinkedFiles(self._context.directory, self.job, self.workdir, self._parents)
        base, mpi = self._context.environment, self._context.mpi
        with ranks_started(self.job, argv, self._environment, base, mpi, self.place) as (argv, env):
            cores = bound_cores(self.job, self.place)
            result = yield from self._run_process(ProcessSpec(argv, env, out, err, _S.RUNNING, cores, self._time_limit))
        if linked is not None and (changed := linked.changed()):
            self.changed_parents = True
            own, self.remarks = change_remarks(self.job, changed)
            self.remark(own)
        self.return_code = result.exit_code
        ended_at = monotonic() if result.ended_at is None else result.ended_at
        self.elapsed = max(0.0, ended_at - self._running_since)
        self.cpu_seconds, self.max_memory = result.cpu_seconds, result.max_memory
        if result.stop_reason:
            self.reach(_S.RUN_TIMEOUT, result.stop_reason, result.ended_at)
            self._is_over_limit = result.over_limit
            if result.is_lost:
                self.reach(_S.RESTART_READY)
                self.released = True
            else:
                # A launcher that stops it is about to end: the next one runs the handler.
                self.released = self.job.post_timeout_handler and not result.over_limit
        elif result.exit_code and not self.job.user_workdir and is_no_space_left(self.workdir):
            failure = f"{self._describe_failure(result, err, out)} (no space left in {str(self.workdir)!r})"
            self.reach(_S.RUN_TIMEOUT, failure, result.ended_at)
            self.reach(_S.RESTART_READY)
            raise DiskFullError(f"job {self.id}: {failure}")
        elif result.exit_code:
            self.reach(_S.RUN_ERROR, self._describe_failure(result, err, out), result.ended_at)
        else:
            self.reach(_S.RUN_DONE, at=result.ended_at)
        self.remark(result.remark)

    def _postprocess(self) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = hook_argv(self.job, self._app, "postprocess")
        if not argv or (not self._pause() and (yield from self._run_step(argv, "postprocess"))):
            self.reach(_S.POSTPROCESSED)

    def _stage_out(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.stage_out and self.job.stage_out_files:
            if self._pause():
                return
            for argv in stage_out_commands(self.job, self.workdir):
                if not (yield from self._run_step(argv, "stage_out")):
                    return
        self.reach(_S.JOB_FINISHED)

    def _handle_error(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.retries < self.job.max_retries:
            self._retry_after_error()
        elif self.job.post_error_handler:
            yield from self._run_handler("BALSAM_JOB_ERROR")
        else:
            self.reach(_S.FAILED)

    def _handle_timeout(self) -> Generator[ProcessSpec, ProcessResult, None]:
        if self.job.post_timeout_handler:
            yield from self._run_handler("BALSAM_JOB_TIMEOUT")
        elif self.job.auto_timeout_retry and not self._is_over_limit:
            self.reach(_S.RESTART_READY)
            self.released = True
        else:
            self.reach(_S.FAILED)

    def _run_handler(self, variable: str) -> Generator[ProcessSpec, ProcessResult, None]:
        argv = hook_argv(self.job, self._app, "postprocess")
        if not argv:
            self._fail("there is no postprocess that could handle it")
            return
        if self._pause():
            return
        env = {**self._environment, variable: "TRUE"}
        if (yield from self._run_step(argv, "postprocess", what="the handler (postprocess)", env=env)):
            self.reach(_S.POSTPROCESSED, "handled by postprocess")

    def _retry_after_error(self) -> None:
        count = self.job.retries + 1
        self.delay = min(self.job.retry_delay_seconds * 2.0 ** min(count - 1, 60), LONGEST_DELAY)
        when = f" in {self.delay:g} s" if self.delay else ""
        self.reach(_S.RESTART_READY, f"retry {count} of {self.job.max_retries}{when}")
        self.released = True

    # ---- parts of it

    def _run_step(
        self, argv: list[str], stem: str, *, what: str = "", env: dict[str, str] | None = None
    ) -> Generator[ProcessSpec, ProcessResult, bool]:
        """Run a process beside the job's main one, with a log of this stem; return whether the lifecycle may go on."""
        log = output_name(self.job, ".log", stem=stem)
        spec = ProcessSpec(argv, env or self._environment, log, log, time_limit=self._time_limit)
        result = yield from self._run_process(spec)
        if result.remark:
            self.remark(f"{what or stem}: {result.remark}")
        if result.over_limit:
            self._fail(f"{what or stem}: {result.stop_reason}")
        elif result.stop_reason:
            self.released = True  # the next launcher does this step again
            self.remark(f"{what or stem}: {result.stop_reason}")
        elif result.exit_code:
            self._fail(f"{what or stem}: {self._describe_failure(result, log)}")
        return not result.stop_reason and not result.exit_code

    def _run_process(self, spec: ProcessSpec) -> Generator[ProcessSpec, ProcessResult, ProcessResult]:
        if self.attempt > 1:
            keep_earlier_outputs(self.job, self.workdir, {spec.stdout, spec.stderr})
        if self.begun_at is None:
            self.begun_at = monotonic()
        return (yield spec)

    @cached_property
    def _environment(self) -> dict[str, str]:
        return job_environment(self._context.environment, self.job, self._app, self.workdir, self.place)

    @property
    def _time_limit(self) -> float | None:
        """Seconds that each process of the job may take; None for no limit."""
        return self.job.time_limit_minutes * 60 or None

    def _describe_failure(self, result: ProcessResult, *outputs: str) -> str:
        said = last_words(*(self.workdir / name for name in outputs))
        return describe_exit(result.exit_code) + (f": {said}" if said else "")

    def _fail(self, reason: str) -> None:
        if self.state not in END:
            self.reach(_S.FAILED, reason)
