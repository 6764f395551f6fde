"""What a job asks its launcher to run, and what it is told of that."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from balsam_core.model.states import State


class ProcessSpec(NamedTuple):
    """A process that a job needs now.

    Attributes:
        argv: Its command line.
        env: Its environment variables, over those of every process.
        stdout: File for its output, in the working directory.
        stderr: File for its errors; may be the same.
        started_state: The state that the job reaches when the process has started; None for none.
        cores: Numbers of the processors that it is bound to; empty for no binding.
        time_limit: Seconds after which it is to be ended; None for no limit.
    """

    argv: list[str]
    env: Mapping[str, str]
    stdout: str
    stderr: str
    started_state: State | None = None
    cores: tuple[int, ...] = ()
    time_limit: float | None = None


class ProcessResult(NamedTuple):
    """How a process ended.

    Attributes:
        exit_code: Exit code, negative for a signal.
        stop_reason: Why the launcher stopped it; empty where it ended by itself.
        is_lost: Whether nobody wanted it to end: what keeps it was lost, as ``stop_reason`` says.
        ended_at: When it ended, by the monotonic clock; None for now.
        left_behind: Processes that it had left running, and that were ended.
        over_limit: Whether that was because its time limit was over.
        cpu_seconds: Processor time, user and system, in seconds; None for unknown.
        max_memory: The most memory that it used, in bytes; None for unknown.
    """

    exit_code: int
    stop_reason: str = ""
    is_lost: bool = False
    ended_at: float | None = None
    left_behind: int = 0
    over_limit: bool = False
    cpu_seconds: float | None = None
    max_memory: int | None = None

    @property
    def remark(self) -> str:
        """What else the history should say of it; mostly nothing."""
        count = self.left_behind
        if not count:
            return ""
        return "1 process left behind was ended" if count == 1 else f"{count} processes left behind were ended"
