"""What a launcher returns."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003
from dataclasses import dataclass, field

__all__ = ["LauncherResult"]


@dataclass(frozen=True, kw_only=True)
class LauncherResult:
    """What a launcher did.

    Attributes:
        finished: Jobs that finished.
        failed: Jobs that failed.
        killed: Jobs that the user killed while they were ours.
        again: Jobs given back, to be run again after an error or because the launcher stopped.
        seconds: How long it took.
        unfit: Waiting jobs that need more than this launcher has; counted up to a limit.
        reason: Why it ended though something was left; empty where nothing was.
        signal: The signal that asked it to stop; None where none did.
        spent: Seconds by kind of work.
    """

    finished: int = 0
    failed: int = 0
    killed: int = 0
    again: int = 0
    seconds: float = 0.0
    unfit: int = 0
    reason: str = ""
    signal: int | None = None
    spent: Mapping[str, float] = field(default_factory=dict)
