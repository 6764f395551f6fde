"""Jobs in work: slots are never overbooked, one bad job harms no other, and everything can be ended."""

from __future__ import annotations

import errno
import os
import signal
import time

import pytest

from balsam_core.dbdir.directory import DBDir
from balsam_core.launcher import processes as processes_module
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.crew import JobRunner
from balsam_core.launcher.job.task import LauncherContext, Task
from balsam_core.model.job import Job
from balsam_core.model.states import State

DEADLINE = 30.0  # seconds


class Watched:
    """A crew of two slots and what it told."""

    def __init__(self, path, slots=2):
        (path / "db" / "data").mkdir(parents=True)
        directory = DBDir(path=path / "db", db_type="sqlite", id="0" * 32)
        self.around = LauncherContext(directory=directory, environment=dict(os.environ), counters=Counters())
        self.left = []
        self.dropped = []
        self.changed = []
        self.most = 0
        self.crew = JobRunner(slots, self.around.counters, changed=self.changed.append, left=self._leave)

    def _leave(self, left):
        (self.dropped if left.dropped else self.left).append(left.task)

    def task(self, number, command, **fields):
        job = Job(**{"id": number, "name": "t", "command": command, "state": State.READY, "attempt": 1, **fields})
        return Task(job, None, [], self.around)

    def run(self, *tasks):
        """Run the tasks to their end."""
        queue = list(tasks)
        self.until(lambda: not queue and not self.crew.live, queue)
        return {task.id: task.state for task in self.left}

    def until(self, condition, queue=()):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            if self.crew.short:
                self.crew.retry()
            while queue and self.crew.fits(queue[0]):
                self.crew.begin(queue.pop(0))
                self.most = max(self.most, sum(live.slots for live in self.crew.live.values()))
            self.crew.collect(0.1)
            self.crew.processes.kill_overdue()


@pytest.fixture
def watched(tmp_path):
    one = Watched(tmp_path)
    yield one
    one.crew.abandon(grace=0.0)


def test_jobs_run_side_by_side_up_to_the_slots(watched):
    states = watched.run(*(watched.task(number, "true") for number in range(1, 8)))
    assert states == dict.fromkeys(range(1, 8), State.JOB_FINISHED)
    assert watched.most == 2
    assert watched.crew.free == 2


def test_a_job_with_threads_takes_more_slots_and_never_more_than_there_are(watched):
    sizes = [1, 2, 99, 1]
    tasks = [watched.task(number, "true", threads_per_rank=size) for number, size in enumerate(sizes, 1)]
    assert set(watched.run(*tasks).values()) == {State.JOB_FINISHED}
    assert watched.most == 2


def test_one_bad_job_harms_no_other(watched):
    bad = [
        watched.task(1, "no-such-program-anywhere"),
        watched.task(2, "echo 'open"),
        watched.task(3, "true", input_files=["../*"]),
        watched.task(4, "true", user_workdir="/dev/null/x"),
        watched.task(5, "/"),
        watched.task(6, "false"),
        watched.task(7, "sh -c 'kill -9 $$'"),
        watched.task(8, "true", preprocess="false"),
        watched.task(9, "true", postprocess="false"),
    ]
    good = [watched.task(number, "true") for number in range(10, 15)]
    states = watched.run(*bad, *good)
    assert {number for number, state in states.items() if state is State.FAILED} == {1, 2, 4, 5, 6, 7, 8, 9}
    assert {number for number, state in states.items() if state is State.JOB_FINISHED} == {3, *range(10, 15)}


def test_the_begin_of_a_run_is_told_at_once(watched):
    watched.crew.begin(watched.task(1, "sleep 600"))
    assert [task.state for task in watched.changed] == [State.RUNNING]


def test_closing_ends_all_and_says_why(watched):
    for number in (1, 2):
        watched.crew.begin(watched.task(number, "sleep 600"))
    watched.crew.close("stopped by SIGINT", grace=DEADLINE)
    watched.until(lambda: not watched.crew.live)
    assert [task.state for task in watched.left] == [State.RESTART_READY] * 2
    assert all(task.released and task.message == "stopped by SIGINT" for task in watched.left)
    assert [task.return_code for task in watched.left] == [-signal.SIGTERM] * 2


def test_nothing_is_started_after_closing(watched):
    # The process may end well before the signal or by it; what comes after is not started in any case.
    watched.crew.begin(watched.task(1, "sh -c 'trap \"exit 0\" TERM; sleep 600 & wait'", postprocess="touch started"))
    watched.crew.close("stopped", grace=DEADLINE)
    watched.until(lambda: not watched.crew.live)
    assert not watched.crew.fits(watched.task(2, "true"))
    assert not (watched.left[0].place / "started").exists()


def test_what_ended_by_itself_was_not_stopped(watched):
    watched.crew.begin(watched.task(1, "true", postprocess="sleep 600"))
    process = watched.crew.live[1].process
    assert process is not None
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    watched.crew.close("stopped", grace=DEADLINE)
    watched.until(lambda: not watched.crew.live)
    (task,) = watched.left
    assert (task.state, task.released, task.return_code) == (State.RUN_DONE, True, 0)


def test_a_dropped_jobs_account_of_itself_counts_for_nothing(watched):
    watched.crew.begin(watched.task(1, "sleep 600"))
    watched.crew.drop(watched.crew.live[1], grace=DEADLINE)
    watched.until(lambda: not watched.crew.live)
    assert [task.id for task in watched.dropped] == [1]
    assert watched.left == []
    assert watched.crew.free == 2


def test_what_the_machine_cannot_start_now_is_started_later(watched, monkeypatch):
    real = os.posix_spawn
    refusals = [errno.EAGAIN, errno.ENOMEM, errno.EAGAIN]

    def spawn(*args, **settings):
        if refusals:
            number = refusals.pop()
            raise OSError(number, os.strerror(number))
        return real(*args, **settings)

    monkeypatch.setattr(processes_module.os, "posix_spawn", spawn)
    states = watched.run(*(watched.task(number, "true") for number in range(1, 6)))
    assert states == dict.fromkeys(range(1, 6), State.JOB_FINISHED)


def test_what_the_machine_cannot_start_is_given_back_at_the_end(watched, monkeypatch):
    def spawn(*_args, **_settings):
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(processes_module.os, "posix_spawn", spawn)
    watched.crew.begin(watched.task(1, "true"))
    assert watched.crew.short
    assert watched.crew.free == 0
    watched.crew.close("stopped", grace=DEADLINE)
    assert [(task.state, task.released) for task in watched.left] == [(State.PREPROCESSED, True)]


def test_a_full_disk_stops_starting_and_gives_the_job_back(watched, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    watched.crew.begin(watched.task(1, "sleep 600"))
    monkeypatch.setattr(os, "mkdir", full)
    watched.crew.begin(watched.task(2, "true"))
    assert "disk is full" in watched.crew.fault
    assert [(task.id, task.state, task.released) for task in watched.left] == [(2, State.READY, True)]
    assert 1 in watched.crew.live
    assert watched.crew.free == 0


def test_abandoning_leaves_no_process(tmp_path):
    watched = Watched(tmp_path)
    watched.crew.begin(watched.task(1, "sleep 600"))
    process = watched.crew.live[1].process
    watched.crew.abandon(grace=DEADLINE)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
