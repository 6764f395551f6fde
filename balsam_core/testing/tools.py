"""What several tests of the suite need: the command line as a program, a launcher without processes, waiting."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, TypeVar

from balsam_core.model import calls
from balsam_core.model.calls import Resources, Update
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from balsam_core import Database, Job

__all__ = ["DONE", "balsam", "claim", "one_line", "register", "update", "wait_until"]

T = TypeVar("T")

DONE = (
    State.STAGED_IN,
    State.PREPROCESSED,
    State.RUNNING,
    State.RUN_DONE,
    State.POSTPROCESSED,
    State.JOB_FINISHED,
)
"""The way of a job that works."""

PATIENCE = 90.0  # seconds, on a busy machine


def balsam(*words: str | PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line as a program."""
    return subprocess.run(
        [sys.executable, "-m", "balsam_core.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command that had to fail: one line, no traceback."""
    assert done.returncode != 0, f"it did not fail: {done.stdout}"
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, f"an error is one line, not: {done.stderr}"
    return lines[0]


def wait_until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE) -> T:
    """Ask until the answer is true, and return it; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.005)
    return answer


def register(db: Database, *, lease: float = 900) -> int:
    """Announce a launcher."""
    return db.run(calls.RegisterLauncher(host="here", pid=1, boot_id="b", process_start=0.0, lease_seconds=lease))


def claim(
    db: Database,
    launcher: int,
    limit: int = 100,
    *,
    resources: Resources | None = None,
    workflow: str = "",
    only: list[int] | None = None,
) -> list[Job]:
    """Take jobs."""
    call = calls.ClaimJobs(
        launcher=launcher, limit=limit, resources=resources or Resources(), workflow=workflow, only=only
    )
    return db.run(call).jobs


def update(
    db: Database,
    launcher: int,
    job: Job,
    *transitions: State,
    message: str = "",
    return_code: int | None = None,
    release: bool = False,
) -> dict[int, str]:
    """Record what happened to a job; return the refusals."""
    assert job.id is not None
    told = Update(
        job=job.id,
        attempt=job.attempt,
        transitions=[(transition, 0.0) for transition in transitions],
        message=message,
        return_code=return_code,
        release=release,
    )
    return db.run(calls.UpdateJobs(launcher=launcher, updates=[told]))
