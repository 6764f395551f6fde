"""Running jobs: slots are never overbooked, one bad job harms no other, and everything can be ended."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import time

import psutil
import pytest
from resources import is_alive

from balsam_core.dbdir.directory import DBDir
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job.claimed_job import ClaimedJob, LauncherContext
from balsam_core.launcher.job_runner import JobRunner
from balsam_core.launcher.placement import Node
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import wait_until

DEADLINE = 30.0  # seconds


class Watched:
    """A runner with two slots, and what it reported."""

    def __init__(self, path, slots=2):
        (path / "db" / "data").mkdir(parents=True)
        directory = DBDir(path=path / "db", db_type="sqlite", id="0" * 32)
        self.context = LauncherContext(directory=directory, environment=dict(os.environ), counters=Counters())
        self.queue = []
        self.done = []
        self.dropped = []
        self.changed = []
        self.most = 0
        self.runner = JobRunner(
            Node(range(slots)), self.context.counters, on_change=self.changed.append, on_done=self._on_done
        )

    def _on_done(self, running):
        claimed = running.claimed
        if claimed.paused and not running.dropped and not self.runner.stopping:
            claimed.paused = False
            claimed.transitions.clear()  # they are on record now
            self.queue.insert(0, claimed)
            return
        (self.dropped if running.dropped else self.done).append(running.claimed)

    def job(self, job_id, command, **fields):
        job = Job(**{"id": job_id, "name": "t", "command": command, "state": State.READY, "attempt": 1, **fields})
        return ClaimedJob(job, None, [], self.context)

    def run(self, *jobs):
        """Run the jobs to their end."""
        self.queue += jobs
        self.until(lambda: not self.queue and not self.runner.jobs)
        return {job.id: job.state for job in self.done}

    def until(self, condition):
        queue = self.queue
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            if self.runner.blocked:
                self.runner.retry_blocked()
            while queue and self.runner.start(queue[0]):
                queue.pop(0)
                self.most = max(self.most, sum(len(running.place.slots) for running in self.runner.jobs.values()))
            self.runner.collect(0.1)


def running_in(folder):
    """Say whether a process has this directory."""
    return any(process.info["cwd"] == str(folder) for process in psutil.process_iter(["cwd"]))


@pytest.fixture
def watched(tmp_path):
    one = Watched(tmp_path)
    yield one
    one.runner.processes.close(grace=0.0)


def test_jobs_run_side_by_side_up_to_the_slots(watched):
    states = watched.run(*(watched.job(number, "true") for number in range(1, 8)))
    assert states == dict.fromkeys(range(1, 8), State.JOB_FINISHED)
    assert watched.most == 2
    assert watched.runner.free_slots == 2


def test_a_job_with_threads_takes_more_slots_and_never_more_than_there_are(watched):
    sizes = [1, 2, 99, 1]
    jobs = [watched.job(number, "true", threads_per_rank=size) for number, size in enumerate(sizes, 1)]
    assert set(watched.run(*jobs).values()) == {State.JOB_FINISHED}
    assert watched.most == 2


def test_one_bad_job_harms_no_other(watched):
    bad = [
        watched.job(1, "no-such-program-anywhere"),
        watched.job(2, "echo 'open"),
        watched.job(3, "true", input_files=["../*"]),
        watched.job(4, "true", user_workdir="/dev/null/x"),
        watched.job(5, "/"),
        watched.job(6, "false"),
        watched.job(7, "sh -c 'kill -9 $$'"),
        watched.job(8, "true", preprocess="false"),
        watched.job(9, "true", postprocess="false"),
    ]
    good = [watched.job(number, "true") for number in range(10, 15)]
    states = watched.run(*bad, *good)
    assert {number for number, state in states.items() if state is State.FAILED} == set(range(1, 10))
    assert {number for number, state in states.items() if state is State.JOB_FINISHED} == set(range(10, 15))


def test_the_start_of_a_run_is_reported_at_once(watched):
    watched.runner.start(watched.job(1, "sleep 600"))
    watched.until(lambda: watched.changed)
    assert [job.state for job in watched.changed] == [State.RUNNING]


def test_stopping_ends_all_and_says_why(watched):
    for number in (1, 2):
        watched.runner.start(watched.job(number, "sleep 600"))
    watched.runner.stop("stopped by SIGINT", grace=DEADLINE)
    watched.until(lambda: not watched.runner.jobs)
    assert [job.state for job in watched.done] == [State.RESTART_READY] * 2
    assert all(job.released and job.message == "stopped by SIGINT" for job in watched.done)
    assert [job.return_code for job in watched.done] == [-signal.SIGTERM] * 2


def test_nothing_is_started_after_stopping(watched):
    # The process may end well before the signal or by it; what comes after is not started in any case.
    watched.runner.start(watched.job(1, "sh -c 'trap \"exit 0\" TERM; sleep 600 & wait'", postprocess="touch started"))
    watched.runner.stop("stopped", grace=DEADLINE)
    watched.until(lambda: not watched.runner.jobs)
    assert not watched.runner.start(watched.job(2, "true"))
    assert not (watched.done[0].workdir / "started").exists()


def test_what_ended_by_itself_was_not_stopped(watched):
    watched.runner.start(watched.job(1, "touch ended", postprocess="sleep 600"))
    workdir = watched.runner.jobs[1].claimed.workdir
    wait_until(lambda: (workdir / "ended").exists() and not running_in(workdir), "the end of the run")
    watched.runner.stop("stopped", grace=DEADLINE)
    watched.until(lambda: not watched.runner.jobs)
    (job,) = watched.queue
    assert (job.state, job.return_code) == (State.RUN_DONE, 0)


def test_a_run_over_its_limit_is_ended_and_no_other(watched):
    over = watched.job(1, "sleep 600", time_limit_minutes=0.005)
    watched.runner.start(over)
    watched.runner.start(watched.job(2, "sleep 0.6", time_limit_minutes=5))

    def ended():
        watched.runner.stop_overdue()
        return not watched.runner.jobs

    watched.until(ended)
    assert [(job.id, job.state) for job in watched.done] == [(1, State.FAILED), (2, State.JOB_FINISHED)]
    assert over.message == "its time limit of 0.005 minutes was over"
    assert over.elapsed < 5
    assert watched.runner.stop_overdue() is None


def test_a_hook_over_its_limit_is_ended_and_frees_its_place(watched):
    over = watched.job(1, "true", state=State.STAGED_IN, preprocess="sleep 600", time_limit_minutes=0.005)
    watched.runner.start(over)

    def ended():
        watched.runner.stop_overdue()
        return not watched.runner.jobs

    watched.until(ended)
    assert (over.state, over.message) == (State.FAILED, "preprocess: its time limit of 0.005 minutes was over")


def test_the_result_of_a_dropped_job_does_not_count(watched):
    watched.runner.start(watched.job(1, "sleep 600"))
    watched.runner.drop(watched.runner.jobs[1], grace=DEADLINE)
    watched.until(lambda: not watched.runner.jobs)
    assert [job.id for job in watched.dropped] == [1]
    assert watched.done == []
    assert watched.runner.free_slots == 2


@contextlib.contextmanager
def without_descriptors(watched):
    """Let the keepers have no descriptor for the next commands."""
    watched.run(watched.job(98, "true"), watched.job(99, "true"))
    watched.done.clear()
    keepers = psutil.Process(watched.runner.processes.guardian_pid).children()
    before = keepers[0].rlimit(resource.RLIMIT_NOFILE)
    for keeper in keepers:
        keeper.rlimit(resource.RLIMIT_NOFILE, (keeper.num_fds(), before[1]))
    yield
    for keeper in keepers:
        keeper.rlimit(resource.RLIMIT_NOFILE, before)


def test_what_the_machine_cannot_start_now_is_started_later(watched):
    with without_descriptors(watched):
        watched.queue += [watched.job(number, "true") for number in range(1, 6)]
        watched.until(lambda: watched.runner.blocked)
        assert watched.runner.free_slots == 0
    watched.until(lambda: not watched.queue and not watched.runner.jobs)
    assert {job.id: job.state for job in watched.done} == dict.fromkeys(range(1, 6), State.JOB_FINISHED)


def test_what_the_machine_cannot_start_is_given_back_at_the_end(watched):
    with without_descriptors(watched):
        watched.runner.start(watched.job(1, "true"))
        watched.until(lambda: watched.runner.blocked)
        watched.runner.stop("stopped", grace=DEADLINE)
    assert [(job.state, job.released) for job in watched.done] == [(State.PREPROCESSED, True)]


# ---- what others do to processes


def start_and_find(watched, **fields):
    """Start a job that sleeps, and return the process id of its run."""
    watched.runner.start(watched.job(1, "sh -c 'echo $$ > pid; exec sleep 600'", **fields))
    file = watched.runner.jobs[1].claimed.workdir / "pid"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the job's start")
    return int(file.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_a_job_and_its_launcher_stops_the_job(watched, number):
    os.kill(start_and_find(watched), number)
    watched.until(lambda: watched.runner.jobs[1].held)
    watched.runner.stop("stopped by SIGTERM", grace=DEADLINE)
    (job,) = watched.done
    assert (job.state, job.released, job.message) == (State.RESTART_READY, True, "stopped by SIGTERM")


def test_a_signal_to_a_shells_command_stops_the_job_too(watched):
    watched.runner.start(watched.job(1, "sh -c 'exit 143'"))
    watched.until(lambda: watched.runner.jobs[1].held)
    watched.runner.stop("stopped by SIGTERM", grace=DEADLINE)
    assert [job.state for job in watched.done] == [State.RESTART_READY]


def test_a_signal_to_a_job_alone_fails_it_a_moment_later(watched):
    os.kill(start_and_find(watched), signal.SIGTERM)
    watched.until(lambda: watched.runner.jobs[1].held)
    assert watched.done == []
    watched.until(lambda: not watched.runner.jobs)
    (job,) = watched.done
    assert (job.state, job.return_code) == (State.FAILED, -signal.SIGTERM)
    assert job.message == "killed by SIGTERM"


def test_a_lost_guardian_costs_a_job_its_run_only(watched):
    start_and_find(watched, auto_timeout_retry=False)
    os.kill(watched.runner.processes.guardian_pid, signal.SIGKILL)
    watched.until(lambda: not watched.runner.jobs)
    (job,) = watched.done
    assert (job.state, job.released) == (State.RESTART_READY, True)
    assert job.message == "its launcher's guardian was lost"
    assert watched.run(watched.job(2, "true"))[2] is State.JOB_FINISHED


def test_what_a_run_left_behind_is_told(watched):
    leaves = "sh -c 'for n in 1 2 3; do sleep 600 & done'"
    watched.run(watched.job(1, leaves), watched.job(2, "true", postprocess=leaves))
    assert {job.id: job.message for job in watched.done} == {
        1: "3 processes left behind were ended",
        2: "postprocess: 3 processes left behind were ended",
    }


def test_a_full_disk_stops_starting_and_gives_the_job_back(watched, monkeypatch):
    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    watched.runner.start(watched.job(1, "sleep 600"))
    monkeypatch.setattr(os, "mkdir", full)
    watched.runner.start(watched.job(2, "true"))
    assert watched.runner.fault.startswith("can't make the working directory ")
    assert watched.runner.fault.endswith("no space left on device")
    assert [(job.id, job.state, job.released) for job in watched.done] == [(2, State.READY, True)]
    assert 1 in watched.runner.jobs
    assert watched.runner.free_slots == 0


def test_abandoning_leaves_no_process(tmp_path):
    watched = Watched(tmp_path)
    pid = start_and_find(watched)
    assert watched.runner.processes.close(grace=DEADLINE)
    assert not is_alive(pid)
