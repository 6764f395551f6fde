"""Claiming jobs and recording what happened to them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from balsam_core.errors import Conflict
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Run, Update
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import claim, register, update

if TYPE_CHECKING:
    from balsam_core import Database
    from balsam_core.client.jobs import Jobs

S = State


def test_claims_go_by_priority_then_age_and_only_what_fits(db: Database, jobs: Jobs) -> None:
    ids = jobs.add(
        [
            Job(command="x", name="low"),
            Job(command="x", name="wide", num_nodes=2, priority=9),
            Job(command="x", name="long", wall_time_minutes=100, priority=9),
            Job(command="x", name="threads", threads_per_rank=2, priority=1),
            Job(command="x", name="high", priority=5),
            Job(command="x", name="gpu", gpus_per_rank=0.5, priority=9),
            Job(command="x", name="low2", wall_time_minutes=10),
            Job(command="x", name="middle", priority=1),
        ]
    )
    me = register(db)
    some = Resources(minutes_left=50)
    unfit = db.run(calls.GetUnfit(resources=some))
    assert [(one.first, one.nodes, one.minutes, one.gpus_per_node) for one in unfit] == [
        (ids[1], 2, 0, 0), (ids[2], 1, 100, 0), (ids[5], 1, 0, 0.5)
    ]  # fmt: skip
    assert [job.name for job in claim(db, me, 2, resources=some)] == ["high", "middle"]
    assert [job.name for job in claim(db, me, 9, resources=some)] == ["threads", "low", "low2"]
    assert claim(db, me, 9, resources=some) == []
    everything = Resources(nodes=2, gpus_per_node=1)
    assert {job.name for job in claim(db, me, 9, resources=everything)} == {"wide", "long", "gpu"}


def test_one_claim_over_several_classes_gives_each_job_once_by_priority(db: Database, jobs: Jobs) -> None:
    ids = jobs.add(
        [Job(command="x", num_nodes=1 + n % 3, priority=n // 3 % 4) for n in range(24)]  # all of each in each class
    )
    me = register(db)
    everything = Resources(nodes=3)
    first = claim(db, me, 13, resources=everything)  # past two priorities, into the third
    rest = claim(db, me, 100, resources=everything)
    assert sorted(job.id or 0 for job in first + rest) == list(ids)
    priorities = [job.priority for job in first + rest]
    assert priorities == sorted(priorities, reverse=True)
    assert len(first) == 13
    assert claim(db, me, resources=everything) == []


def test_claims_of_one_workflow_or_of_given_jobs(db: Database, jobs: Jobs) -> None:
    ids = jobs.add([Job(command="x", workflow=flow) for flow in ("a", "b", "a", "b")])
    me = register(db)
    assert [job.id for job in claim(db, me, 1, workflow="b")] == [ids[1]]
    assert claim(db, me, workflow="none") == []
    assert [job.id for job in claim(db, me, only=[ids[1], ids[2]])] == [ids[2]]
    assert [job.id for job in claim(db, me, workflow="b")] == [ids[3]]


def test_updates_by_a_stale_launcher_are_refused(db: Database, jobs: Jobs) -> None:
    jobs.add([Job(command="x"), Job(command="y")])
    old = register(db)
    taken = claim(db, old)
    ids = [job.id or 0 for job in taken]
    update(db, old, taken[0], S.STAGED_IN, S.PREPROCESSED, S.RUNNING)
    assert db.run(calls.CloseLauncher(launcher=old, why="it was lost"))
    assert jobs.history(ids[0])[-1].message == "it was lost"
    new = register(db)
    assert [jobs.get(number).state for number in ids] == [S.RESTART_READY, S.READY]
    with pytest.raises(Conflict, match="given up as lost"):
        db.run(calls.RenewLease(launcher=old, lease_seconds=9))
    with pytest.raises(Conflict, match="given up as lost"):
        claim(db, old)
    again = claim(db, new)
    assert [job.attempt for job in again] == [2, 2]
    assert "no longer" in update(db, old, taken[0], S.RUN_DONE)[ids[0]]
    assert update(db, new, again[0], S.RUNNING, S.RUN_DONE) == {}
    assert "can't go from" in update(db, new, again[0], S.RUNNING)[ids[0]]
    assert jobs.get(ids[0]).state == S.RUN_DONE


def test_a_killed_job_stays_with_its_launcher_until_it_is_stopped(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, S.STAGED_IN, S.PREPROCESSED, S.RUNNING)
    assert jobs.where(id=number).kill("enough") == 1
    assert db.run(calls.GetKilledJobs(launcher=me)) == [number]
    assert db.run(calls.RenewLease(launcher=me, lease_seconds=9)).killed == [number]
    assert update(db, me, job, S.RUN_DONE) == {number: "the job was killed by the user"}
    assert update(db, me, job, release=True) == {}
    assert db.run(calls.GetKilledJobs(launcher=me)) == []
    found = jobs.get(number)
    assert (found.state, found.launcher_id) == (S.USER_KILLED, None)
    assert claim(db, me) == []
    assert jobs.history(number)[-1].message == "enough"


def test_a_message_without_a_transition_is_in_the_history(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    claim(db, me)
    before = jobs.get(number).state_since
    assert db.run(calls.UpdateJobs(launcher=me, updates=[Update(job=number, attempt=1, message="it hangs")])) == {}
    last = jobs.history(number)[-1]
    assert (last.transitions, last.message, last.attempt) == ([], "it hangs", 1)
    after = jobs.get(number)
    assert (after.state, after.state_since, after.launcher_id) == (S.READY, before, me)


def test_a_released_job_can_be_claimed_again(db: Database, jobs: Jobs) -> None:
    jobs.add([Job(command="x"), Job(command="y")])
    me = register(db)
    first, second = claim(db, me)
    assert update(db, me, first, release=True) == {}
    transitions = (S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_ERROR, S.RESTART_READY)
    assert update(db, me, second, *transitions, return_code=1) == {}
    assert [(job.id, job.state, job.attempt, job.retries) for job in claim(db, me)] == [
        (first.id, S.READY, 2, 0),
        (second.id, S.RESTART_READY, 2, 1),
    ]


def test_only_errors_use_up_the_retries(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_TIMEOUT, S.RESTART_READY)
    (job,) = claim(db, me)
    update(db, me, job, S.RUNNING, S.RUN_ERROR)
    assert jobs.get(number).retries == 0
    update(db, me, job, S.RESTART_READY)
    assert jobs.get(number).retries == 1


BEGUN = (S.STAGED_IN, S.PREPROCESSED, S.RUNNING)


def test_an_attempt_is_recorded_once_when_it_ends(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, release=True)  # nothing was begun
    (job,) = claim(db, me)
    update(db, me, job, *BEGUN)
    assert jobs.attempts(number) == []
    assert jobs.get(number).elapsed is None
    update(db, me, job, S.RUN_ERROR, S.RESTART_READY, return_code=3, run=Run(2.0, 1.0), host="here")
    (job,) = claim(db, me)
    update(db, me, job, S.RUNNING, S.RUN_TIMEOUT, release=True, run=Run(1.0, 0.5, 0.25, 4096), host="here")
    found = [(one.attempt, one.outcome, one.return_code, one.elapsed, one.max_memory) for one in jobs.attempts(number)]
    assert found == [(2, "RUN_ERROR", 3, 1.0, None), (3, "RUN_TIMEOUT", None, 0.5, 4096)]
    last = jobs.get(number)
    assert (last.host, last.elapsed, last.cpu_seconds, last.max_memory) == ("here", 0.5, 0.25, 4096)
    assert last.started_at == jobs.attempts(number)[-1].started_at
    assert jobs.where(Job.elapsed < 1, host="here").ids() == [number]
    assert jobs.where(Job.cpu_seconds > 1).ids() == []
    assert [row[0] for row in jobs.order_by("max_memory").rows("max_memory")] == [4096]
    jobs.where(id=number).kill()
    jobs.remove()
    assert jobs.attempts(number) == []


def test_a_delayed_retry_waits_and_can_be_killed_and_retried(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x", retry_delay_seconds=1000))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, *BEGUN, S.RUN_ERROR, S.RESTART_READY, delay=1000.0)
    waiting = jobs.get(number)
    assert waiting.not_before is not None
    assert waiting.state_since is not None
    assert 990 < (waiting.not_before - waiting.state_since).total_seconds() <= 1000
    db.run(calls.PromoteDelayed())
    assert claim(db, me) == []
    jobs.kill()
    assert db.run(calls.GetDelay()) is None
    jobs.retry()
    assert jobs.get(number).not_before is None
    assert [one.id for one in claim(db, me)] == [number]


def lose(db: Database, *transitions: State) -> None:
    """Let a launcher claim all jobs, bring them so far, and be lost."""
    launcher = register(db)
    for job in claim(db, launcher):
        update(db, launcher, job, *transitions)
    db.run(calls.CloseLauncher(launcher=launcher, why="it was lost"))


def test_a_job_with_which_three_launchers_were_lost_fails_until_it_is_retried(db: Database, jobs: Jobs) -> None:
    job = Job(command="x")
    child = Job(command="y", parents=[job])
    number, other = jobs.add([job, child])
    lose(db)  # not begun
    lose(db, *BEGUN)
    assert (jobs.get(number).state, jobs.get(number).launchers_lost) == (S.RESTART_READY, 1)
    lose(db, S.RUNNING)
    me = register(db)
    (again,) = claim(db, me)
    update(db, me, again, S.RUNNING, S.RUN_TIMEOUT, S.RESTART_READY, run=Run(1.0))
    assert jobs.get(number).launchers_lost == 0  # they must be lost in a row
    for count in (1, 2):
        lose(db, S.RUNNING)
        assert (jobs.get(number).state, jobs.get(number).launchers_lost) == (S.RESTART_READY, count)
    lose(db, S.RUNNING, S.RUN_DONE)
    assert [jobs.get(one).state for one in (number, other)] == [S.FAILED, S.FAILED]
    assert jobs.history(number)[-1].message.endswith(f"lost with this job: balsam retry {number}")
    outcomes = [one.outcome for one in jobs.attempts(number)]
    assert outcomes == [S.RUN_TIMEOUT] * 5 + [S.FAILED]
    jobs.where(id=number).retry()
    assert [(jobs.get(one).state, jobs.get(one).launchers_lost) for one in (number, other)] == [
        (S.READY, 0),
        (S.AWAITING_PARENTS, 0),
    ]


def test_a_lost_launcher_does_not_count_for_a_job_that_it_had_not_begun(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, S.STAGED_IN, S.PREPROCESSED, release=True)
    time.sleep(0.05)  # a clock's tick
    lose(db)
    assert (jobs.get(number).state, jobs.get(number).launchers_lost) == (S.PREPROCESSED, 0)
    lose(db, S.RUNNING)
    assert (jobs.get(number).state, jobs.get(number).launchers_lost) == (S.RESTART_READY, 1)


def test_a_launcher_that_says_that_it_ends_does_not_count_as_lost(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, *BEGUN)
    db.run(calls.CloseLauncher(launcher=me))
    assert (jobs.get(number).state, jobs.get(number).launchers_lost) == (S.RESTART_READY, 0)


def test_an_update_can_leave_remarks_with_other_jobs(db: Database, jobs: Jobs) -> None:
    first, second = jobs.add([Job(command="x"), Job(command="y")])
    me = register(db)
    (job, _) = claim(db, me)
    update(db, me, job, S.STAGED_IN, message="mine", remarks={second: "yours"})
    update(db, me, job, release=True, message="given back")
    assert [event.message for event in jobs.history(first)] == ["", "mine", "given back"]
    remark = jobs.history(second)[-1]
    assert (remark.message, remark.transitions) == ("yours", [])


def test_transitions_keep_their_own_times(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    claim(db, me)
    time.sleep(0.5)
    told = Update(job=number, attempt=1, transitions=[(S.STAGED_IN, 0.375), (S.PREPROCESSED, 0.25)], message="m")
    db.run(calls.UpdateJobs(launcher=me, updates=[told]))
    last = jobs.history(number)[-1]
    assert (last.transitions, last.message, last.attempt) == (told.transitions, "m", 1)
    since = jobs.get(number).state_since
    assert since is not None
    assert last.at - since == timedelta(seconds=0.25)


def test_no_transition_is_dated_before_the_last_change(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    claim(db, me)
    told = Update(job=number, attempt=1, transitions=[(S.STAGED_IN, 100.0), (S.PREPROCESSED, 0.0)])
    db.run(calls.UpdateJobs(launcher=me, updates=[told]))
    added, last = jobs.history(number)
    (_, age), (_, now) = last.transitions
    assert now == 0
    assert abs(last.at - timedelta(seconds=age) - added.at) < timedelta(seconds=1e-5)


def test_a_launcher_that_has_renewed_its_lease_is_not_closed(db: Database, jobs: Jobs) -> None:
    jobs.add(Job(command="x"))
    me = register(db, lease=-1)
    claim(db, me)
    (before,) = db.run(calls.GetLaunchers())
    assert (before.alive, before.lease_seconds) == (False, -1)
    assert db.run(calls.RenewLease(launcher=me, lease_seconds=600)).killed == []
    assert not db.run(calls.CloseLauncher(launcher=me, seen_at=before.seen_at))
    (now,) = db.run(calls.GetLaunchers())
    assert (now.alive, now.lease_seconds, now.jobs) == (True, 600, 1)
    register(db)  # does nothing to others, whatever the clock says
    assert db.run(calls.CloseLauncher(launcher=me, seen_at=now.seen_at))
    assert not db.run(calls.CloseLauncher(launcher=me))


def test_launchers_are_listed_and_can_be_closed(db: Database, jobs: Jobs) -> None:
    parents = [Job(command="x"), Job(command="x")]
    jobs.add([Job(command="c", parents=parents), *parents])
    me, other = register(db), register(db)
    claim(db, me, 1)
    claim(db, other, 1)
    listed = [(info.id, info.jobs, info.alive) for info in db.run(calls.GetLaunchers())]
    assert listed == [(me, 1, True), (other, 1, True)]
    assert db.run(calls.CountHeldByOthers(launcher=me)) == 1
    db.run(calls.CloseLauncher(launcher=other))
    assert db.run(calls.CountHeldByOthers(launcher=me)) == 0
    assert [info.id for info in db.run(calls.GetLaunchers())] == [me]


def test_a_killed_job_is_held_until_its_launcher_releases_it(db: Database, jobs: Jobs) -> None:
    (number,) = jobs.add(Job(command="x"))
    me = register(db)
    (job,) = claim(db, me)
    update(db, me, job, *BEGUN)
    jobs.kill()
    update(db, me, job, message="its processes can't be ended")
    assert (jobs.get(number).state, jobs.get(number).launcher_id) == (S.USER_KILLED, me)
    with pytest.raises(Conflict, match="has not yet said"):
        jobs.retry()
    update(db, me, job, release=True)
    assert jobs.get(number).launcher_id is None
    assert jobs.retry() == 1
