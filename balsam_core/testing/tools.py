"""What several tests of the suite need: a launcher without processes, waiting, and the end of a server."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Update
from balsam_core.model.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from balsam_core import Database, Job
    from balsam_core.dbdir.directory import DBDir

T = TypeVar("T")

DONE = (
    State.STAGED_IN,
    State.PREPROCESSED,
    State.RUNNING,
    State.RUN_DONE,
    State.POSTPROCESSED,
    State.JOB_FINISHED,
)
"""The states of a job that succeeds."""

WAIT_TIMEOUT = 90.0  # seconds, on a busy machine


def wait_until(
    condition: Callable[[], T], what: str = "the condition", *, seconds: float = WAIT_TIMEOUT, every: float = 0.002
) -> T:
    """Ask again and again until the answer is true, and return it; fail after a deadline and say what was asked."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(every)
    return answer


def server_processes(directory: DBDir) -> list[psutil.Process]:
    """Return the watchdog, its server and the server's children; there must be a lease."""
    lease = LeaseObserver(directory).observe().lease
    assert lease is not None, "there is no lease"
    watchdog = psutil.Process(lease.pid)
    return [watchdog, *watchdog.children(recursive=True)]


def signal_all(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    """Signal processes; some may be gone by now."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill_server(directory: DBDir) -> None:
    """SIGKILL a watchdog and its server, so that neither sees the other's end; the published address stays behind."""
    processes = server_processes(directory)
    signal_all(signal.SIGSTOP, processes)
    signal_all(signal.SIGKILL, processes)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive, alive


def register(db: Database, *, lease: float = 900) -> int:
    """Register a launcher and return its id."""
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
    """Claim jobs and return them."""
    call = calls.ClaimJobs(
        launcher=launcher, limit=limit, resources=resources or Resources(), workflow=workflow, only=only
    )
    return db.run(call).jobs


def update(
    db: Database,
    launcher: int,
    job: Job,
    *transitions: State,
    host: str = "",
    **fields: Any,  # noqa: ANN401  (those of an Update)
) -> dict[int, str]:
    """Record transitions of a job; return why they were refused, by job id."""
    assert job.id is not None
    path = [(transition, 0.0) for transition in transitions]
    change = Update(job=job.id, attempt=job.attempt, transitions=path, **fields)
    return db.run(calls.UpdateJobs(launcher=launcher, host=host, updates=[change]))
