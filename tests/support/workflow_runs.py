"""What tests of whole workflows use: launchers, jobs that are shell or Python scripts, and what became of them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

from balsam_program import BALSAM, here

from balsam_core import Job
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from balsam_core import Database

__all__ = [
    "DEADLINE",
    "Running",
    "launch",
    "messages",
    "py",
    "python",
    "sh",
    "shell",
    "states",
    "text",
    "transitions",
    "wait_for_state",
]

DEADLINE = 60.0  # seconds


def sh(script: str, **fields: Any) -> Job:
    """Return a job that runs a shell script."""
    return Job(command=shell(script), **fields)


def py(script: str, **fields: Any) -> Job:
    """Return a job that runs a Python script as :func:`python` does."""
    return Job(command=python(script), **fields)


PYTHON_HEAD = """
import time
from balsam_core import Job, current_job
me = current_job()
def named(name):
    return me.db.jobs.where(workflow=me.job.workflow, name=name)
def wait_for(name, state):
    while named(name).first().state != state:
        time.sleep(0.05)
"""


def python(script: str) -> str:
    """Return the command line of a Python script.

    It has ``Job``, ``me``, the current job, ``named`` for the job of a name in its workflow, and ``wait_for``.
    """
    return shlex.join([sys.executable, "-c", PYTHON_HEAD + script])


def shell(script: str) -> str:
    """Return the command line of a shell script."""
    return shlex.join(["sh", "-c", script])


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
