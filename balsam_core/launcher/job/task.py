"""What one job goes through, from its claim until the launcher is done with it.

A lifecycle is a generator: it does what takes no time itself (directories, links, decisions), yields each
:class:`ProcessSpec` that must run as a process, and is told how it ended. It notes every state as the job comes there.
Whatever goes wrong for this job ends here, as its failure with a reason; nothing gets out to the other jobs.

After an error a job first uses its automatic retries; when none are left the error handler may save it. After a timeout
a handler, which the user has to ask for, comes before the automatic retry, which is on by default.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.dbdir.workdirs import make_workdir, output_name
from balsam_core.errors import BalsamError, DBDirError
from balsam_core.launcher.job.dataflow import link_parents, stage_in_command, stage_out_commands
from balsam_core.launcher.job.words import command_words, hook_words, job_environment
from balsam_core.launcher.processes import ShortageError, is_shortage
from balsam_core.model.states import END, State

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.launcher.counters import Counters
    from balsam_core.model.app import App
    from balsam_core.model.calls import ParentRef
    from balsam_core.model.job import Job

__all__ = ["DiskFullError", "Ended", "LauncherContext", "ProcessSpec", "Task", "is_disk_full"]

logger = logging.getLogger(__name__)

LAST_LINE = 300  # characters of a program's last words that go into the history

_S = State


class DiskFullError(Exception):
    """The file system of the DB directory is full: a fault of no job, and no job can do without."""


class ProcessSpec(NamedTuple):
    """A process that a job needs now.

    Attributes:
        argv: Its words.
        env: Its whole environment.
        stdout: File for its output, in the working directory.
        stderr: File for its errors; may be the same.
        begins: The state that the job comes to when it starts; None for none.
    """

    argv: list[str]
    env: Mapping[str, str]
    stdout: str
    stderr: str
    begins: State | None = None


class Ended(NamedTuple):
    """How a process ended.

    Attributes:
        code: Exit code, negative for a signal.
        stopped: Why the launcher stopped it; empty where it ended by itself.
    """

    code: int
    stopped: str = ""


@dataclass(frozen=True, kw_only=True)
class LauncherContext:
    """What all jobs of a launcher share.

    Attributes:
        directory: The DB directory.
        environment: Environment variables of every process.
        counters: Where the time goes.
    """

    directory: DBDir
    environment: dict[str, str]
    counters: Counters


class Task:
    """One claimed job.

    Attributes:
        job: The job as it was claimed.
        state: Where it stands now.
        transitions: States that it came to and that the database doesn't know yet, each with its time by the monotonic
            clock.
        message: Why, for the history.
        return_code: Exit code of the run, once it ran.
        released: Whether the launcher gives it back unfinished.
        place: Its working directory; set once it is made.
        slots: Cores that it takes.
    """

    place: Path

    def __init__(self, job: Job, app: App | None, parents: list[ParentRef], context: LauncherContext) -> None:
        self.job = job
        self.id: int = job.id or 0
        self.attempt = job.attempt
        self.state = job.state
        self.transitions: list[tuple[State, float]] = []
        self.message = ""
        self.return_code: int | None = None
        self.released = False
        self.slots = max(1, job.ranks_per_node * -(-job.threads_per_rank // job.threads_per_core))
        self._app = app
        self._parents = parents
        self._around = context
        self._env: dict[str, str] | None = None

    # ---- the walk

    def walk(self) -> Generator[ProcessSpec, Ended, None]:
        """Go through the states that are left; see the module's docstring.

        Raises:
            DiskFullError: There is no room for this job, nor for any other; the job is to be given back.
            ShortageError: Too many open files or too little memory; a new walk may go on later.
        """
        try:
            yield from self._walk()
        except DiskFullError:
            self.released = True
            raise
        except (BalsamError, OSError, ValueError) as err:  # ValueError: an argument that no program can be given
            if is_shortage(err) or is_shortage(err.__cause__):
                raise ShortageError(_reason(err)) from err
            self._fail(_reason(err))
        except Exception as err:
            logger.exception("job %s: unexpected fault", self.id)
            self._fail(f"unexpected {type(err).__name__}: {_reason(err)}")

    def _walk(self) -> Generator[ProcessSpec, Ended, None]:
        with self._around.counters.timed("workdir"):
            self._make_place()
        if self.state is _S.RUNNING:
            self.reach(_S.RUN_TIMEOUT, "its launcher was lost while it ran")
            self.reach(_S.RESTART_READY)
        if self.state is _S.READY:
            yield from self._stage_in()
        if self.state is _S.STAGED_IN and not self.released:
            yield from self._preprocess()
        if self.state in {_S.PREPROCESSED, _S.RESTART_READY} and not self.released:
            yield from self._run()
        if self.state is _S.RUN_DONE and not self.released:
            yield from self._stage_out()
        if self.state is _S.RUN_DONE and not self.released:
            yield from self._postprocess()
        if self.state is _S.RUN_ERROR:
            yield from self._after_error()
        if self.state is _S.RUN_TIMEOUT:
            yield from self._after_timeout()
        if self.state is _S.POSTPROCESSED:
            self.reach(_S.JOB_FINISHED)

    def _make_place(self) -> None:
        try:
            self.place = make_workdir(self._around.directory, self.job)
        except DBDirError as err:
            if not self.job.user_workdir and is_disk_full(err.__cause__):
                raise DiskFullError(err.message) from err
            raise

    def _stage_in(self) -> Generator[ProcessSpec, Ended, None]:
        if self.job.stage_in:
            command = self._own(stage_in_command(self.job, self.place), "stage_in")
            if not (yield from self._step(command, "stage_in")):
                return
        if self.job.input_files and self._parents:
            with self._around.counters.timed("links"):
                link_parents(self._around.directory, self.job, self.place, self._parents)
        self.reach(_S.STAGED_IN)

    def _preprocess(self) -> Generator[ProcessSpec, Ended, None]:
        words = hook_words(self.job, self._app, "preprocess")
        if not words or (yield from self._step(self._own(words, "preprocess"), "preprocess")):
            self.reach(_S.PREPROCESSED)

    def _run(self) -> Generator[ProcessSpec, Ended, None]:
        ended = yield ProcessSpec(
            command_words(self.job, self._app),
            self._environment(),
            output_name(self.job, ".out"),
            output_name(self.job, ".err"),
            _S.RUNNING,
        )
        self.return_code = ended.code
        if ended.stopped:
            self.reach(_S.RUN_TIMEOUT, ended.stopped)
            self._after_stop()
        elif ended.code:
            self.reach(_S.RUN_ERROR, f"{_how(ended.code)}{self._last_words()}")
        else:
            self.reach(_S.RUN_DONE)

    def _stage_out(self) -> Generator[ProcessSpec, Ended, None]:
        if not (self.job.stage_out and self.job.stage_out_files):
            return
        for words in stage_out_commands(self.job, self.place):
            if not (yield from self._step(self._own(words, "stage_out"), "stage_out")):
                return

    def _postprocess(self) -> Generator[ProcessSpec, Ended, None]:
        words = hook_words(self.job, self._app, "postprocess")
        if not words or (yield from self._step(self._own(words, "postprocess"), "postprocess")):
            self.reach(_S.POSTPROCESSED)

    def _after_error(self) -> Generator[ProcessSpec, Ended, None]:
        if self.job.retries < self.job.max_retries:
            self._again(f"retry {self.job.retries + 1} of {self.job.max_retries}")
        elif self.job.post_error_handler:
            yield from self._handle("BALSAM_JOB_ERROR")
        else:
            self.reach(_S.FAILED)

    def _after_timeout(self) -> Generator[ProcessSpec, Ended, None]:
        if self.released:
            return
        if self.job.post_timeout_handler:
            yield from self._handle("BALSAM_JOB_TIMEOUT")
        else:
            self._timed_out()

    def _after_stop(self) -> None:
        """Decide about a stopped job without starting anything: the launcher is about to end."""
        if self.job.post_timeout_handler:
            self.released = True  # the next launcher runs the handler
        else:
            self._timed_out()

    def _timed_out(self) -> None:
        if self.job.auto_timeout_retry:
            self._again("")
        else:
            self.reach(_S.FAILED)

    def _handle(self, variable: str) -> Generator[ProcessSpec, Ended, None]:
        words = hook_words(self.job, self._app, "postprocess")
        if not words:
            self._fail("there is no postprocess that could handle it")
            return
        command = self._own(words, "postprocess")
        command = command._replace(env={**command.env, variable: "TRUE"})
        if (yield from self._step(command, "the handler (postprocess)")):
            self.reach(_S.POSTPROCESSED, "handled by postprocess")

    def give_back(self) -> None:
        """Forget what happened and give the job back as the database knows it: it wasn't started, or was killed."""
        self.transitions.clear()
        self.message = ""
        self.return_code = None
        self.released = True

    # ---- parts

    def _step(self, command: ProcessSpec, what: str) -> Generator[ProcessSpec, Ended, bool]:
        """Run a process that belongs to the job but is not its run; return whether the walk may go on."""
        ended = yield command
        if ended.stopped:
            self.released = True  # the next launcher does this step again
        elif ended.code:
            self._fail(f"{what}: {_how(ended.code)}{self._last_words(command.stderr)}")
        return not ended.stopped and not ended.code

    def _own(self, words: list[str], stem: str) -> ProcessSpec:
        log = output_name(self.job, ".log", stem=stem)
        return ProcessSpec(words, self._environment(), log, log)

    def _environment(self) -> dict[str, str]:
        if self._env is None:
            self._env = job_environment(self._around.environment, self.job, self._app)
        return self._env

    def reach(self, state: State, why: str = "") -> None:
        """Note that the job came to a state."""
        self.state = state
        self.transitions.append((state, monotonic()))
        self._say(why)

    def _fail(self, why: str) -> None:
        if self.state not in END:
            self.reach(_S.FAILED, why)

    def _again(self, why: str) -> None:
        self.reach(_S.RESTART_READY, why)
        self.released = True

    def _say(self, why: str) -> None:
        if why:
            self.message = f"{self.message}; {why}" if self.message else why

    def _last_words(self, name: str | None = None) -> str:
        """Return the last line that the program wrote to its error output, for the history."""
        line = last_line(self.place / (name or output_name(self.job, ".err")))
        return f": {line}" if line else ""


def last_line(path: Path) -> str:
    """Return the last line of a file that isn't empty, cut to what a history can take; empty where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, 4096, max(0, size - 4096))
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    lines = tail.decode(errors="replace").rstrip().splitlines()
    return _printable(lines[-1].strip())[:LAST_LINE] if lines else ""


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def is_disk_full(err: BaseException | None) -> bool:
    """Whether an error means that the file system or the user's share of it is full."""
    return isinstance(err, OSError) and err.errno in {errno.ENOSPC, errno.EDQUOT}


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    import signal

    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _reason(err: Exception) -> str:
    if isinstance(err, DBDirError):
        return err.message
    text = (isinstance(err, OSError) and err.strerror) or str(err) or type(err).__name__
    if isinstance(err, OSError) and isinstance(err.filename, (str, bytes)):
        text = f"{os.fsdecode(err.filename)!r}: {text}"
    return _printable(text.encode(errors="backslashreplace").decode())
