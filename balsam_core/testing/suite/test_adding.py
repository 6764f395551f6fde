"""Adding jobs: dependencies, keys, and inserts of many calls that appear at once or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from balsam_core.errors import Conflict, InvalidInput, NotFound
from balsam_core.model import calls
from balsam_core.model.app import App
from balsam_core.model.calls import Update
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import DONE, claim, register, update

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database
    from balsam_core.client.jobs import Jobs

S = State


def state(jobs: Jobs, job: Job) -> S:
    return jobs.get(job.id or 0).state


def test_an_unknown_app_and_an_unknown_parent_are_not_found(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("simulate", "x"))
    with pytest.raises(NotFound, match="did you mean 'simulate'"):
        jobs.add(Job(app="simulat"))
    with pytest.raises(NotFound, match="no job 999999999"):
        jobs.add(Job(command="x", parents=[999999999]))
    assert jobs.count() == 0


def test_a_circle_among_new_jobs_is_refused(jobs: Jobs) -> None:
    first, second, third = (Job(name=name, command="x") for name in "abc")
    first.parents, second.parents, third.parents = [third], [first], [second]
    with pytest.raises(InvalidInput, match="circle"):
        jobs.add([first, second, third])
    assert jobs.count() == 0


def test_a_dependency_that_closes_a_circle_is_refused(jobs: Jobs) -> None:
    first = Job(command="x")
    second = Job(command="x", parents=[first])
    third = Job(command="x", parents=[second])
    jobs.add([first, second, third])
    with pytest.raises(InvalidInput, match="circle"):
        jobs.add_dependency(third, first)
    with pytest.raises(InvalidInput, match="own parent"):
        jobs.add_dependency(first, first)
    assert jobs.add_dependency(first, third) is True
    assert jobs.get(third.id or 0).parents == [first.id, second.id]


def test_a_dependency_makes_a_ready_job_wait(db: Database, jobs: Jobs) -> None:
    parent, child = Job(command="x"), Job(command="x")
    jobs.add([parent, child])
    jobs.add_dependency(parent, child)
    assert state(jobs, child) == S.AWAITING_PARENTS
    me = register(db)
    (claimed,) = claim(db, me)
    assert claimed.id == parent.id
    update(db, me, claimed, *DONE)
    (claimed,) = claim(db, me)
    (late,) = jobs.add(Job(command="z"))
    with pytest.raises(Conflict, match="started"):
        jobs.add_dependency(late, claimed)


def test_children_start_when_all_parents_have_finished(db: Database, jobs: Jobs) -> None:
    parents = [Job(command="x") for _ in range(3)]
    child = Job(command="y", parents=parents)
    eager = Job(command="z", parents=parents, wait_for_parents=False)
    jobs.add([child, *parents, eager])  # any order
    assert (state(jobs, child), state(jobs, eager)) == (S.AWAITING_PARENTS, S.READY)
    me = register(db)
    taken = {job.id: job for job in claim(db, me)}
    assert set(taken) == {*(job.id for job in parents), eager.id}
    updates = [
        Update(job=job.id or 0, attempt=1, transitions=[(transition, 0.0) for transition in DONE])
        for job in taken.values()
        if job.id in {parents[0].id, parents[1].id}
    ]
    assert db.run(calls.UpdateJobs(launcher=me, updates=updates)) == {}
    assert state(jobs, child) == S.AWAITING_PARENTS
    update(db, me, taken[parents[2].id], *DONE)
    assert state(jobs, child) == S.READY
    (found,) = claim(db, me)
    assert found.parents == sorted(job.id or 0 for job in parents)


@pytest.mark.parametrize(("end", "words"), [(S.FAILED, "failed"), (S.USER_KILLED, "was killed")])
def test_descendants_of_a_lost_job_end_and_say_why(db: Database, jobs: Jobs, end: S, words: str) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent])
    grandchild = Job(command="x", parents=[child])
    bystander = Job(command="x")
    jobs.add([parent, child, grandchild, bystander])
    if end == S.FAILED:
        me = register(db)
        taken = {job.id: job for job in claim(db, me)}
        update(db, me, taken[parent.id], S.FAILED, message="boom")
        expected = S.FAILED
    else:
        jobs.where(id=parent.id).kill()
        expected = S.PARENT_KILLED
    assert [state(jobs, job) for job in (parent, child, grandchild, bystander)] == [end, expected, expected, S.READY]
    assert jobs.history(child)[-1].message == f"parent {parent.id} {words}"
    late = Job(command="x", parents=[grandchild])
    jobs.add(late)
    assert state(jobs, late) == expected, "a child added later shares the fate"


def test_retry_starts_jobs_again_with_those_that_ended_because_of_them(db: Database, jobs: Jobs) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent])
    grandchild = Job(command="x", parents=[child])
    jobs.add([parent, child, grandchild])
    me = register(db)
    (taken,) = claim(db, me)
    update(db, me, taken, S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_ERROR, S.FAILED, return_code=3)
    assert jobs.states() == {S.FAILED: 3}
    with pytest.raises(Conflict, match="retry the parent"):
        jobs.where(id=child.id).retry()
    assert jobs.where(Job.state == "FAILED").retry() == 3
    waiting = [state(jobs, job) for job in (parent, child, grandchild)]
    assert waiting == [S.READY, S.AWAITING_PARENTS, S.AWAITING_PARENTS]
    assert jobs.get(parent.id or 0).return_code is None
    for expected in (parent, child, grandchild):
        (taken,) = claim(db, me)
        assert taken.id == expected.id
        update(db, me, taken, *DONE)
    assert jobs.states() == {S.JOB_FINISHED: 3}


@pytest.mark.parametrize("killed", ["first", "all"])
def test_descendants_are_retried_in_slices_that_begin_where_the_one_before_ended(
    db: Database, jobs: Jobs, killed: str
) -> None:
    chain = [Job(command="x")]
    for _ in range(6):
        chain.append(Job(command="x", parents=[chain[-1]]))
    last = Job(command="x", parents=[chain[0], chain[-1]])
    jobs.add([*chain, last])
    where = Compare("id", "eq", chain[0].id) if killed == "first" else calls.EVERYTHING
    db.run(calls.KillJobs(where=where))
    changed = [db.run(calls.RetryJobs(where=where, limit=2))]
    while changed[-1].more:
        go_on = calls.RetryJobs(where=where, limit=2, last_root=changed[-1].last_root, rest=changed[-1].rest)
        changed.append(db.run(go_on))
    named = [job for one in changed for job in one.ids]
    assert sorted(named) == ([chain[0].id] if killed == "first" else [job.id for job in (*chain, last)])
    assert jobs.states() == {S.READY: 1, S.AWAITING_PARENTS: 7}
    me = register(db)
    for expected in (*chain, last):
        (taken,) = claim(db, me)
        assert taken.id == expected.id
        update(db, me, taken, *DONE)


def test_a_retry_takes_each_job_once_even_if_it_is_killed_meanwhile(db: Database, jobs: Jobs) -> None:
    chain = [Job(command="x")]
    for _ in range(6):
        chain.append(Job(command="x", parents=[chain[-1]]))
    jobs.add(chain)
    jobs.kill()
    changed = db.run(calls.RetryJobs(where=calls.EVERYTHING, limit=1))
    named = changed.ids
    for _ in range(2 * len(chain)):
        jobs.where(id=chain[0].id).kill()
        if not changed.more:
            break
        again = calls.RetryJobs(where=calls.EVERYTHING, limit=1, last_root=changed.last_root, rest=changed.rest)
        changed = db.run(again)
        named += changed.ids
    assert not changed.more
    assert len(named) == len(set(named))
    assert state(jobs, chain[0]) == S.USER_KILLED, "the kill was not undone"


def test_remove_knows_a_child_for_which_the_condition_is_unknown(db: Database, jobs: Jobs) -> None:
    parent, other = Job(command="x"), Job(command="x")
    child = Job(command="x", parents=[parent, other])
    jobs.add([parent, other, child])
    me = register(db)
    (taken,) = claim(db, me, limit=1)
    update(db, me, taken, *DONE, return_code=0)
    with pytest.raises(Conflict, match=f"its children {child.id} have not finished"):
        jobs.where(return_code=0).remove()


def test_remove_refuses_jobs_that_others_need(db: Database, jobs: Jobs) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent], workflow="w", name="c")
    jobs.add([parent, child])
    with pytest.raises(Conflict, match=f"its children {child.id} have not finished and need it"):
        jobs.where(id=parent.id).remove()
    me = register(db)
    claim(db, me)
    with pytest.raises(Conflict, match="held by a launcher"):
        jobs.remove()
    db.run(calls.CloseLauncher(launcher=me))
    removed = [(job.id, job.workflow, job.name) for job in jobs.remove()]
    assert removed == [(child.id, "w", "c"), (parent.id, "default", "job")]
    assert jobs.count() == 0
    ids = [parent.id or 0, child.id or 0]
    assert db.run(calls.GetHistory(jobs=ids)) == []
    assert db.run(calls.GetEdges(jobs=ids)) == []


def test_a_killed_job_waits_for_its_launcher_until_that_has_ended(db: Database, jobs: Jobs) -> None:
    jobs.add(Job(command="x"))
    me = register(db)
    (taken,) = claim(db, me)
    assert jobs.kill() == 1
    for verb in (jobs.retry, jobs.remove):
        with pytest.raises(Conflict, match="is USER_KILLED, but launcher"):
            verb()
    assert db.run(calls.CloseLauncher(launcher=me))
    assert jobs.retry() == 1
    assert jobs.states() == {S.READY: 1}
    (again,) = claim(db, register(db))
    assert again.id == taken.id
    with pytest.raises(Conflict, match="held by a launcher"):
        jobs.remove()


def test_remove_refuses_a_job_whose_children_may_run_again(db: Database, jobs: Jobs) -> None:
    finished, failed = Job(command="x", name="finished"), Job(command="x", name="failed")
    reduce = Job(command="x", parents=[finished, failed])
    after = Job(command="x", parents=[reduce])
    jobs.add([finished, failed, reduce, after])
    me = register(db)
    for job in claim(db, me):
        update(db, me, job, *(DONE if job.name == "finished" else [S.FAILED]))
    assert jobs.states() == {S.JOB_FINISHED: 1, S.FAILED: 3}
    for parent in (finished, failed):
        with pytest.raises(Conflict, match=f"job {parent.id} can't be removed"):
            jobs.where(id=parent.id).remove()
    assert len(db.run(calls.GetEdges(jobs=[reduce.id or 0]))) == 2
    removed = [job.id for job in jobs.where(id=failed.id).remove(cascade=True)]
    assert removed == [after.id, reduce.id, failed.id]
    assert [job.id for job in jobs.where(id=finished.id).remove()] == [finished.id], "its children are gone"


def test_a_key_that_is_kept_gives_the_same_job_back(jobs: Jobs) -> None:
    first = Job(command="x", key="a")
    (known,) = jobs.add(first)
    again = [Job(command="x", key="b"), Job(command="y", key="a"), Job(command="z"), Job(command="x", key="b")]
    child = Job(command="c", parents=[again[1], again[3]])
    ids = jobs.add([*again, child], if_exists="keep")
    assert ids.existing == {known: "kept"}
    assert ids == [known + 1, known, known + 2, known + 1, known + 3]
    assert jobs.get(ids[-1]).parents == [known, known + 1]
    assert jobs.count() == 4


def test_many_jobs_appear_at_once(db: Database, jobs: Jobs) -> None:
    count = 2 * calls.MOST_JOBS + 10
    seen: list[int] = []

    def stream() -> Iterator[Job]:
        parent = Job(command="p")
        yield parent
        for number in range(1, count):
            if number % 1500 == 0:
                seen.append(jobs.count())
            yield Job(command="c", parents=[parent] if number % 2 else [])

    ids = jobs.add(stream())
    assert seen == [0, 0], "nothing was visible before the end"
    assert list(ids) == list(range(ids[0], ids[0] + count)), "ids are dense"
    assert jobs.states() == {S.READY: count // 2, S.AWAITING_PARENTS: count // 2}
    assert db.run(calls.PromoteStagedInsert()) is False
    assert {event.job_id: event.transitions for event in jobs.history(ids[1], ids[2])} == {
        ids[1]: [(S.CREATED, 0.0), (S.AWAITING_PARENTS, 0.0)],
        ids[2]: [(S.CREATED, 0.0), (S.READY, 0.0)],
    }


def test_an_insert_that_fails_in_the_middle_leaves_nothing(jobs: Jobs) -> None:
    (before,) = jobs.add(Job(command="x"))
    many = [Job(command="x", key=f"k{i}") for i in range(calls.MOST_JOBS + 5)]
    many[-1].num_nodes = -1
    with pytest.raises(InvalidInput, match="num_nodes"):
        jobs.add(many)
    assert jobs.ids() == [before]
    many[-1].num_nodes = 1
    assert len(jobs.add(many)) == calls.MOST_JOBS + 5


def test_a_key_that_comes_twice_gives_no_parents_to_the_first_job(jobs: Jobs) -> None:
    [parent] = jobs.add(Job(command="x"))
    two = [Job(command="x", key="k"), Job(command="x", key="k", parents=[parent])]
    with pytest.raises(Conflict, match="'k' comes twice with different content"):
        jobs.add(two)
    first, second = jobs.add(two, if_exists="keep")
    assert first == second
    assert jobs.get(first).parents == []
    assert jobs.get(first).state == S.READY


def test_keys_of_a_killed_insert_can_be_used_again(db: Database, jobs: Jobs) -> None:
    dead = db.run(calls.OpenStagedInsert())
    db.run(calls.AddJobs(jobs=[Job(command="old", key="k"), Job(command="old", parents=[-1])], staged_insert=dead))
    assert jobs.count() == 0
    assert claim(db, register(db)) == []
    jobs.add(Job(command="new", key="k"))
    assert [(job.command, job.key) for job in jobs] == [("new", "k")]
    with pytest.raises(Conflict, match="run again"):
        db.run(calls.PublishStagedInsert(staged_insert=dead))
    while db.run(calls.AbandonStagedInsert(staged_insert=dead)):
        pass
    assert jobs.count() == 1


def test_nothing_of_an_unpublished_insert_is_seen(db: Database, jobs: Jobs) -> None:
    (parent,) = jobs.add(Job(command="x"))
    batch = db.run(calls.OpenStagedInsert())
    hidden = db.run(calls.AddJobs(jobs=[Job(command="x", parents=[parent])], staged_insert=batch)).first_id
    assert jobs.ids() == [parent]
    assert db.run(calls.GetEdges(jobs=[parent], children_of=True)) == []
    assert db.run(calls.GetEdges(jobs=[hidden])) == []
    assert jobs.history(hidden) == []
    with pytest.raises(NotFound):
        jobs.add(Job(command="y", parents=[hidden]))
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    assert db.run(calls.GetEdges(jobs=[hidden])) == [calls.Edge(parent, hidden)]


def test_a_batch_published_by_a_killed_process_is_promoted_by_others(db: Database, jobs: Jobs) -> None:
    batch = db.run(calls.OpenStagedInsert())
    answer = db.run(calls.AddJobs(jobs=[Job(command="x") for _ in range(5)], staged_insert=batch))
    db.run(calls.AddJobs(jobs=[Job(command="y", parents=[answer.first_id])], staged_insert=batch))
    assert jobs.count() == 0
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    assert jobs.count() == 6
    while db.run(calls.PromoteStagedInsert(limit=2)):
        pass
    assert jobs.states() == {S.READY: 5, S.AWAITING_PARENTS: 1}


def test_apps_are_defined_once(db: Database, jobs: Jobs) -> None:
    app = App("sim", "a {x}", description="d", preprocess="p", postprocess="q", environ={"A": "1"})
    db.apps.add(app, app)
    with pytest.raises(Conflict, match="differs"):
        db.apps.add(App("sim", "b"))
    assert db.apps.get("sim") == app
    db.apps.add(App("sim", "b"), replace=True)
    assert list(db.apps) == [App("sim", "b")]
    (job,) = jobs.add(Job(app="sim"))
    with pytest.raises(Conflict, match=f"used by job {job}"):
        db.apps.remove("sim")
    jobs.remove()
    db.apps.remove("sim")
    with pytest.raises(NotFound):
        db.apps.remove("sim")
    for wrong in (App("", "x"), App("a", " "), App("a", "x '"), App("a\0", "x"), App("n" * 256, "x")):
        with pytest.raises(InvalidInput):
            db.apps.add(wrong)


def test_an_app_asks_for_nothing_that_a_waiting_job_lacks(db: Database, jobs: Jobs) -> None:
    db.apps.add(App("sim", "a {x}"))
    (job,) = jobs.add(Job(app="sim", parameters={"x": 1}))
    db.apps.add(App("sim", "b {x}"), replace=True)
    for wrong in (App("sim", "b {x} {y}"), App("sim", "b", preprocess="{y}"), App("sim", "b", postprocess="{y}")):
        with pytest.raises(Conflict, match=rf"job {job} has not started .* needs the parameters y \(given: x\)"):
            db.apps.add(wrong, replace=True)
        assert db.apps.get("sim") == App("sim", "b {x}")
    jobs.kill()
    jobs.add(Job(app="sim", parameters={"x": 1, "y": 2}, preprocess="own"))
    db.apps.add(App("sim", "b {x} {y}", preprocess="{z}"), replace=True)
    with pytest.raises(InvalidInput, match="needs the parameters z"):
        jobs.add(Job(app="sim", parameters={"x": 1, "y": 2}))


def test_a_chosen_job_behind_a_parent_that_is_not_chosen_is_counted(db: Database, jobs: Jobs) -> None:
    parent = Job(command="x")
    jobs.add([parent, Job(command="x", parents=[parent]), Job(command="x")])
    jobs.kill()
    changed = db.run(calls.RetryJobs(where=Compare("id", "gt", parent.id)))
    assert (len(changed.ids), changed.blocked, changed.held) == (1, 1, 0)
    assert "can't run again before its failed or killed parent" in changed.why
