"""What a launcher asks of its processes, and what it is told of them."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence  # noqa: TC003
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from balsam_core.launcher.programs import explain_failure
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")

SHORTAGE_ERRORS = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class ShortageError(Exception):
    """This machine can't start another process now; nothing is wrong with the command."""


def is_shortage(err: BaseException | None) -> bool:
    """Whether an error means that this machine is out of processes, memory or descriptors for now."""
    return isinstance(err, OSError) and err.errno in SHORTAGE_ERRORS


class Command(NamedTuple):
    """What a process is to be.

    Attributes:
        argv: The command line; its first word is searched in its ``PATH``.
        cwd: Its working directory.
        env: Its environment variables, over those that all commands have.
        stdout: Name of a file in ``cwd`` for its output; emptied if it exists.
        stderr: The same for its errors; may be the same file.
        label: What the journal calls it; empty for what isn't noted there.
        cores: The cores that it may use; empty for all of this process.
    """

    argv: list[str]
    cwd: Path
    env: Mapping[str, str]
    stdout: str
    stderr: str
    label: str = ""
    cores: Sequence[int] = ()


@dataclass(slots=True, eq=False)
class Process(Generic[T]):
    """A command between its start and its end.

    Attributes:
        owner: The caller's object for it.
        command: What it is.
        program: The file that it runs.
        is_remembered: Whether that file was found for an earlier command.
        started_at: When it was started, by the monotonic clock; 0 as long as that was not told.
    """

    owner: T
    command: Command
    program: str = ""
    is_remembered: bool = False
    started_at: float = 0.0


class Started(NamedTuple, Generic[T]):
    """A command runs, since this moment of the monotonic clock."""

    owner: T
    at: float


class Refused(NamedTuple, Generic[T]):
    """A command was not started.

    The error is an OSError that says what can't be used and why, a ValueError for a word or variable that holds a NUL,
    or a :class:`ShortageError`.
    """

    owner: T
    error: Exception


class Stuck(NamedTuple, Generic[T]):
    """Processes of a command have not ended by SIGKILL; its end is told when they are gone."""

    owner: T
    pids: list[int]


class Ended(NamedTuple, Generic[T]):
    """A command has ended, with all that it started.

    Attributes:
        owner: The caller's object for it.
        exit_code: Of its main process; negative for a signal.
        why: Why it was ended before its main process had: "asked", or who was lost: "lease", "guardian", "keeper";
            empty where it ended by itself.
        started_at: When it was started, by the monotonic clock.
        ended_at: When its main process ended.
        cpu: User and system time of all its processes, seconds.
        memory: Largest resident memory of one of them, KiB (bytes on macOS); at least that of a keeper, about 10 MiB.
        left_behind: Processes that its main process left running, and that were ended.
    """

    owner: T
    exit_code: int
    why: str
    started_at: float
    ended_at: float
    cpu: float = 0.0
    memory: int = 0
    left_behind: int = 0

    @property
    def is_lost(self) -> bool:
        """Whether it was ended because somebody was lost who keeps it."""
        return self.why not in {"", "asked"}


Event = Started[T] | Refused[T] | Stuck[T] | Ended[T]


def explain_refusal(program: str, command: Command, step: str, number: int, text: str) -> Exception:
    """Return the error of a command that was not started: at which step, and what the system said."""
    why = reason(OSError(number, text))
    if step == "lease" or number in SHORTAGE_ERRORS:
        return ShortageError(why)
    if step == "words":
        return ValueError(text)
    if step == "cwd":
        return OSError(number, f"can't enter the working directory {str(command.cwd)!r}: {why}")
    if step in {"stdout", "stderr"}:
        name = command.stdout if step == "stdout" else command.stderr
        why = {errno.ELOOP: "it is a symbolic link", errno.ENXIO: "it is a pipe"}.get(number, why)
        return OSError(number, f"can't write {name}: {why}")
    if step == "cores":
        return OSError(number, f"can't bind to the processors {','.join(map(str, command.cores))}: {why}")
    return OSError(number, explain_failure(program, command.cwd, OSError(number, text)))
