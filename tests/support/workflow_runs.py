"""What tests of whole workflows use: launchers, jobs that are shell or Python scripts, and what became of them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import sqlalchemy as sa
from balsam_program import BALSAM, here

from balsam_core import Job, open_db
from balsam_core.backends import registry
from balsam_core.schema.tables import launchers
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database
    from balsam_core.dbdir.directory import DBDir

__all__ = [
    "DEADLINE",
    "Running",
    "end_leases",
    "killing",
    "launch",
    "messages",
    "py",
    "sh",
    "states",
    "text",
    "transitions",
    "wait_for_state",
]

DEADLINE = 60.0  # seconds


def sh(script: str, **fields: Any) -> Job:
    """Return a job that runs a shell script."""
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def py(script: str, **fields: Any) -> Job:
    """Return a job that runs a Python script, which has ``current_job``, ``Job`` and ``me``, the current job."""
    head = "from balsam_core import Job, current_job\nme = current_job()\n"
    return Job(command=shlex.join([sys.executable, "-c", head + script]), **fields)


def launch(db: Database, *words: str) -> dict[str, Any]:
    """Run a launcher to its end in this process and return what it did."""
    done = here("launcher", "--consume-all", "-o", "json", *words, db=db.path)
    assert done.code in {0, 10}, done  # 10 where jobs failed
    found: dict[str, Any] = done.json
    return found


class Running:
    """A launcher in a process of its own; killed at the end of the ``with`` block."""

    def __init__(self, db: Database, *words: str) -> None:
        self.process = subprocess.Popen(
            [*BALSAM, "--db", str(db.path), "launcher", "--consume-all", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> tuple[str, str]:
        """Wait for its end and return what it said."""
        return self.process.communicate(timeout=DEADLINE)

    def kill(self) -> None:
        """Kill it, so that it can't say anything any more."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()


@contextlib.contextmanager
def killing(*pid_files: Any) -> Iterator[None]:
    """Kill the processes whose numbers are in files, at the end."""
    try:
        yield
    finally:
        for file in pid_files:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


def end_leases(directory: DBDir) -> None:
    """Let the leases of all launchers be over: they are lost as far as the database can know."""
    engine = registry.load(directory.db_type).create_engine(directory, "owner")
    with engine.begin() as conn:
        conn.execute(sa.update(launchers).values(lease_until=datetime.now(UTC) - timedelta(hours=1)))
    engine.dispose()


def states(db: Database) -> dict[str, str]:
    """Return the state of each job by name."""
    return {job.name: str(job.state) for job in db.jobs}


def transitions(db: Database, job: Job) -> list[str]:
    """Return all states that a job went through."""
    return [str(state) for event in db.jobs.history(job) for state, _ in event.transitions]


def messages(db: Database, job: Job) -> str:
    """Return what the history of a job says."""
    return " | ".join(event.message for event in db.jobs.history(job) if event.message)


def text(db: Database, job: Job, name: str) -> str:
    """Return the content of a file of a job, empty where there is none."""
    file = db.workdir(job) / name
    return file.read_text() if file.exists() else ""


def wait_for_state(db: Database, job: Job, state: str) -> None:
    """Wait until all others see a job in a state."""
    assert job.id is not None
    wait_until(lambda: db.jobs.get(job.id or 0).state == state, what=f"{job.name} in {state}")


def reopened(directory: DBDir) -> Database:
    """Open a DB."""
    return open_db(directory.path)
