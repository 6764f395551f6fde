"""Scenarios: workflows on one DB that share one launcher, so that many cost little.

Each is a generator. It adds jobs and yields ``LAUNCHED``, as often as it likes, to go on while the launcher runs; then
``DRAINED``, once, to go on when nothing is left to run::

    @scenario
    def a_killed_job_takes_its_children_along(flow):
        flow.add(parent := sh("exec sleep 600", name="parent"), sh("true", name="child", parents=[parent]))
        yield LAUNCHED
        flow.wait_for(parent, "RUNNING")
        assert flow.kill(parent) == 1
        yield DRAINED
        assert flow.states() == {"parent": "USER_KILLED", "child": "PARENT_KILLED"}
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

import workflow_runs
from workflow_runs import Running, sh

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from balsam_core import Database

__all__ = ["DRAINED", "LAUNCHED", "Flow", "Scenarios"]

LAUNCHED, DRAINED = "launched", "drained"
DRAINED_WITHIN = 300.0  # seconds
T = TypeVar("T")


class Flow:
    """The workflow of one scenario.

    Attributes:
        db: Its DB, which others share.
        name: Its name.
    """

    def __init__(self, db: Database, name: str) -> None:
        self.db = db
        self.name = name
        self.jobs = db.jobs.where(workflow=name)

    def add(self, *jobs: Job) -> None:
        """Add jobs to it; those that name a workflow keep that."""
        for job in jobs:
            job.workflow = self.name if job.workflow == "default" else job.workflow
        self.db.jobs.add(list(jobs))

    def get(self, name: str) -> Job:
        """Read the job of this name."""
        (job,) = self.jobs.where(name=name)
        return job

    def states(self) -> dict[str, str]:
        """Return the state of each job by name."""
        return {job.name: str(job.state) for job in self.jobs}

    def kill(self, *jobs: Job) -> int:
        """Kill jobs; returns how many that were."""
        return self.db.jobs.where(Job.id.in_([job.id for job in jobs])).kill()

    def wait_until(self, condition: Callable[[], T], what: str) -> T:
        """Wait for something, without keeping a processor busy; return the true answer."""
        return wait_until(condition, f"{what} ({self.name})", every=0.03)

    def wait_for(self, job: Job, state: str) -> None:
        """Wait until all others see a job in a state."""
        self.wait_until(lambda: self.db.jobs.get(job.id or 0).state == state, f"{job.name} in {state}")

    def wait_for_pid(self, job: Job) -> int:
        """Wait until a job has written the file ``pid``, and return what is in it."""
        return int(self.wait_until(lambda: self.text(job, "pid").strip(), f"the process of {job.name}"))

    def text(self, job: Job, name: str) -> str:
        """Return the content of a file of a job, empty where there is none."""
        return workflow_runs.text(self.db, job, name)

    def transitions(self, job: Job) -> list[str]:
        """Return all states that a job went through."""
        return workflow_runs.transitions(self.db, job)

    def messages(self, job: Job) -> str:
        """Return what the history of a job says."""
        return workflow_runs.messages(self.db, job)

    def outcomes(self, job: Job) -> list[str]:
        """Return how the attempts at a job ended."""
        return [one.outcome for one in self.db.jobs.attempts(job)]


class Scenarios:
    """The scenarios of a module, by name: ``scenario = Scenarios()``, then ``@scenario`` for each."""

    def __init__(self) -> None:
        self._functions: dict[str, Callable[[Flow], Iterator[str]]] = {}

    def __call__(self, function: Callable[[Flow], Iterator[str]], name: str = "") -> Callable[[Flow], Iterator[str]]:
        """Add one."""
        self._functions[name or function.__name__] = function
        return function

    def __iter__(self) -> Iterator[str]:
        """Give their names."""
        return iter(self._functions)

    @contextlib.contextmanager
    def drained(self, path: Path, *words: str) -> Iterator[Callable[[str], None]]:
        """Run all to the point where nothing is left to run; give a function that judges the one of a name."""
        with open_db(path) as db:
            runs = {name: _Run(Flow(db, name), function) for name, function in self._functions.items()}
            hold = sh("until test -e go; do sleep 0.2; done", name="hold", workflow="hold", priority=99)
            db.jobs.add(hold)
            for run in runs.values():
                run.go_on()
            with Running(db, *words) as launcher:
                workflow_runs.wait_for_state(db, hold, "RUNNING")
                while launched := [run for run in runs.values() if run.waits_for == LAUNCHED]:
                    for run in launched:
                        run.go_on()
                (db.workdir(hold) / "go").touch()
                _, err = launcher.process.communicate(timeout=DRAINED_WITHIN)
                assert launcher.process.returncode == 10, err  # some jobs failed
            yield lambda name: runs[name].judge()


class _Run:
    """A scenario under way."""

    def __init__(self, flow: Flow, function: Callable[[Flow], Iterator[str]]) -> None:
        self.waits_for = ""
        self._flow = flow
        self._steps = function(flow)
        self._fault: BaseException | None = None

    def go_on(self) -> None:
        """Let it go on to its next wait."""
        try:
            self.waits_for = next(self._steps)
        except BaseException as err:  # noqa: BLE001  (its own test raises it)
            self._fault = err
            self.waits_for = ""
            self._flow.jobs.kill()

    def judge(self) -> None:
        """Let it go on to its end."""
        if self._fault is not None:
            raise self._fault
        assert self.waits_for == DRAINED
        with contextlib.suppress(StopIteration):
            raise AssertionError(f"it waits for {next(self._steps)} after its jobs have ended")
