"""Every operation of :mod:`balsam_core.model.calls`, each in its plainest form; other modules test what it means.

A test is named like its operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from balsam_core.errors import Conflict
from balsam_core.model import calls
from balsam_core.model.app import App
from balsam_core.model.calls import Call, Edge, Order, Resources, Run, Update
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import DONE, claim, register, update

if TYPE_CHECKING:
    from balsam_core import Database


def one(db: Database, **fields: Any) -> int:  # noqa: ANN401
    return db.jobs.add(Job(command="x", **fields))[0]


def pair(db: Database) -> tuple[int, int]:
    first, second = db.jobs.add([Job(command="x"), Job(command="x")])
    return first, second


def opened(db: Database, jobs: int = 0) -> int:
    batch = db.run(calls.OpenStagedInsert())
    if jobs:
        db.run(calls.AddJobs(jobs=[Job(command="x") for _ in range(jobs)], staged_insert=batch))
    return batch


def delayed(db: Database, seconds: float) -> int:
    job_id, me = one(db), register(db)
    (job,) = claim(db, me)
    update(db, me, job, *DONE[:3], State.RUN_ERROR, State.RESTART_READY, delay=seconds)
    return job_id


def test_get_info(db: Database) -> None:
    assert db.run(calls.GetInfo()).db_id == db.directory.id


def test_prune(db: Database) -> None:
    assert db.run(calls.Prune()) >= 0


def test_add_app(db: Database) -> None:
    first = db.run(calls.AddApp(app=App("a", "x")))
    assert db.run(calls.AddApp(app=App("a", "x"))) == first


def test_get_apps(db: Database) -> None:
    db.apps.add(App("b", "x"), App("a", "y {z}", environ={"A": "1"}))
    assert db.run(calls.GetApps()) == [App("a", "y {z}", environ={"A": "1"}), App("b", "x")]
    assert db.run(calls.GetApps(names=["b"])) == [App("b", "x")]


def test_remove_app(db: Database) -> None:
    db.apps.add(App("a", "x"))
    db.run(calls.RemoveApp(name="a"))
    assert db.run(calls.GetApps()) == []


def test_add_jobs(db: Database) -> None:
    added = db.run(calls.AddJobs(jobs=[Job(command="x"), Job(command="y", parents=[-1])]))
    assert db.jobs.get(added.first_id + 1).parents == [added.first_id]


def test_open_staged_insert(db: Database) -> None:
    opened(db, jobs=2)
    assert db.jobs.count() == 0


def test_publish_staged_insert(db: Database) -> None:
    batch = opened(db, jobs=2)
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    assert db.jobs.count() == 2


def test_abandon_staged_insert(db: Database) -> None:
    batch = opened(db, jobs=3)
    assert db.run(calls.AbandonStagedInsert(staged_insert=batch, limit=2)) == 2
    while db.run(calls.AbandonStagedInsert(staged_insert=batch)):
        pass
    assert db.jobs.count() == 0


def test_promote_staged_insert(db: Database) -> None:
    first = one(db)
    batch = db.run(calls.OpenStagedInsert())
    db.run(calls.AddJobs(jobs=[Job(command="x", parents=[first]) for _ in range(3)], staged_insert=batch))
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    while db.run(calls.PromoteStagedInsert(staged_insert=batch, limit=2)):
        pass
    while db.run(calls.PromoteStagedInsert()):
        pass
    assert db.jobs.states() == {"READY": 1, "AWAITING_PARENTS": 3}


def test_add_edge(db: Database) -> None:
    first, second = pair(db)
    assert db.run(calls.AddEdge(parent=first, child=second)) is True
    assert db.run(calls.AddEdge(parent=first, child=second)) is False


def test_get_jobs(db: Database) -> None:
    first, second = pair(db)
    assert [job.id for job in db.run(calls.GetJobs(order=Order("id", descending=True)))] == [second, first]
    assert [job.id for job in db.run(calls.GetJobs(after=first))] == [second]
    assert db.run(calls.GetJobs(limit=0)) == []


def test_get_rows(db: Database) -> None:
    first, second = pair(db)
    rows = db.run(calls.GetRows(fields=["id", "state", "parents", "key"], limit=1, after=first))
    assert rows == [[second, "READY", [], None]]


def test_count_jobs(db: Database) -> None:
    _, second = pair(db)
    assert db.run(calls.CountJobs(where=Compare("id", "ge", second))) == 1


def test_count_states(db: Database) -> None:
    one(db, workflow="v")
    one(db, workflow="w")
    assert db.run(calls.CountStates()) == {"": {"READY": 2}}
    assert db.run(calls.CountStates(by_workflow=True)) == {"v": {"READY": 1}, "w": {"READY": 1}}


def test_last_job(db: Database) -> None:
    assert db.run(calls.LastJob()) is None
    assert one(db) == db.run(calls.LastJob())


def test_get_history(db: Database) -> None:
    job = one(db)
    db.jobs.where(id=job).kill("why")
    events = db.run(calls.GetHistory(jobs=[job]))
    assert [event.transitions[-1][0] for event in events] == ["READY", "USER_KILLED"]
    assert events[-1].message == "why"


def test_get_edges(db: Database) -> None:
    first = one(db)
    second = one(db, parents=[first])
    assert db.run(calls.GetEdges(jobs=[second])) == [Edge(first, second)]
    assert db.run(calls.GetEdges(jobs=[first], children_of=True)) == [Edge(first, second)]
    assert db.run(calls.GetEdges(jobs=[first])) == []


def test_kill_jobs(db: Database) -> None:
    first, second = pair(db)
    changed = db.run(calls.KillJobs(where=calls.EVERYTHING, limit=1))
    assert (len(changed.ids), changed.more) == (1, True)
    db.run(calls.KillJobs(where=calls.EVERYTHING))
    assert [db.jobs.get(job).state for job in (first, second)] == ["USER_KILLED"] * 2


def test_retry_jobs(db: Database) -> None:
    pair(db)
    db.jobs.kill()
    assert len(db.run(calls.RetryJobs(where=calls.EVERYTHING)).ids) == 2
    assert db.jobs.states() == {"READY": 2}


def test_check_removal(db: Database) -> None:
    first = one(db)
    second = one(db, parents=[first])
    assert db.run(calls.CheckRemoval(where=Compare("id", "eq", first))) == [Edge(first, second)]
    assert db.run(calls.CheckRemoval(where=Compare("id", "eq", first), cascade=True)) == []
    assert db.run(calls.CheckRemoval(where=Compare("id", "eq", second))) == []
    assert db.run(calls.CheckRemoval(where=calls.EVERYTHING)) == []
    assert [job.id for job in claim(db, register(db))] == [first]
    with pytest.raises(Conflict, match=f"job {first} is held by a launcher"):
        db.run(calls.CheckRemoval(where=calls.EVERYTHING))


def test_remove_jobs(db: Database) -> None:
    job = one(db, name="n", workflow="w")
    assert db.run(calls.RemoveJobs(where=calls.EVERYTHING)) == [calls.RemovedJob(job, "w", "n")]
    assert db.run(calls.RemoveJobs(where=calls.EVERYTHING)) == []


def test_register_launcher(db: Database) -> None:
    assert register(db) < register(db)


def test_renew_lease(db: Database) -> None:
    assert db.run(calls.RenewLease(launcher=register(db), lease_seconds=60)).killed == []


def test_get_killed_jobs(db: Database) -> None:
    job, me = one(db), register(db)
    claim(db, me)
    db.jobs.where(id=job).kill()
    assert db.run(calls.GetKilledJobs(launcher=me)) == [job]


def test_close_launcher(db: Database) -> None:
    job, me = one(db), register(db)
    claim(db, me)
    db.run(calls.CloseLauncher(launcher=me))
    assert [taken.id for taken in claim(db, register(db))] == [job]


def test_claim_jobs(db: Database) -> None:
    db.apps.add(App("a", "x"))
    parent = one(db)
    (child,) = db.jobs.add(Job(app="a", parents=[parent], wait_for_parents=False))
    taken = db.run(calls.ClaimJobs(launcher=register(db), limit=9, resources=Resources()))
    assert [job.id for job in taken.jobs] == [parent, child]
    assert (taken.apps, [*taken.parents]) == ({"a": App("a", "x")}, [parent])


def test_update_jobs(db: Database) -> None:
    one(db)
    me = register(db)
    (job,) = claim(db, me)
    assert job.id is not None
    good = Update(job=job.id, attempt=1, transitions=[(State.STAGED_IN, 1.5)], message="m")
    assert db.run(calls.UpdateJobs(launcher=me, updates=[good])) == {}
    late = Update(job=job.id, attempt=0, transitions=[(State.PREPROCESSED, 0.0)])
    assert [*db.run(calls.UpdateJobs(launcher=me, updates=[late]))] == [job.id]
    assert db.jobs.get(job.id).state == "STAGED_IN"


def test_get_blockers(db: Database) -> None:
    parent = one(db)
    child = one(db, parents=[parent])
    waits = calls.JobState(parent, State.READY)
    found = calls.Blockers(claimable=False, parents=[waits], parent_count=1, causes=[waits], cause_count=1)
    assert db.run(calls.GetBlockers(job=child)) == found
    assert db.run(calls.GetBlockers(job=parent)) == calls.Blockers(claimable=True)


def test_get_root_failures(db: Database) -> None:
    one(db)
    assert db.run(calls.GetRootFailures()) == {}


def test_get_attempts(db: Database) -> None:
    one(db)
    me = register(db)
    (job,) = claim(db, me)
    run = Run(3.5, 2.5, 1.25, 2**40)
    assert update(db, me, job, *DONE, return_code=0, run=run, host="here") == {}
    assert job.id is not None
    (found,) = db.run(calls.GetAttempts(jobs=[job.id]))
    assert (found.attempt, found.launcher_id, found.host, found.return_code) == (1, me, "here", 0)
    assert (found.elapsed, found.cpu_seconds, found.max_memory, found.outcome) == (2.5, 1.25, 2**40, "JOB_FINISHED")


def test_get_delay(db: Database) -> None:
    delayed(db, 1000)
    assert 900 < (db.run(calls.GetDelay()) or 0) <= 1000
    assert db.run(calls.GetDelay(workflow="none")) is None
    assert db.run(calls.GetDelay(only=[])) is None


def test_promote_delayed(db: Database) -> None:
    first, later = delayed(db, 1e-6), delayed(db, 1000)
    assert claim(db, register(db)) == []
    assert db.run(calls.PromoteDelayed()) is False
    assert [job.id for job in claim(db, register(db))] == [first]
    assert db.jobs.get(first).not_before is None
    assert db.jobs.get(later).not_before is not None


def test_get_unfit(db: Database) -> None:
    one(db)
    first, last = one(db, num_nodes=2, threads_per_rank=2), one(db, num_nodes=2)
    expected = calls.Unfit(jobs=2, first=first, last=last, nodes=2)
    assert db.run(calls.GetUnfit(resources=Resources())) == [expected]
    assert db.run(calls.GetUnfit(resources=Resources(), workflow="none")) == []


def test_has_claimable(db: Database) -> None:
    job = one(db, num_nodes=2, node_packing_count=1)
    me, more = register(db), Resources(nodes=2)

    def found(resources: Resources = more, **arguments: Any) -> bool:  # noqa: ANN401
        return db.run(calls.HasClaimable(launcher=me, resources=resources, **arguments))

    assert [found(Resources()), found()] == [False, True]
    assert [found(workflow="none"), found(packed=False)] == [False, False]
    assert [found(only=[job]), found(only=[job + 1]), found(only=[job], packed=False)] == [True, False, False]
    assert found(only=[job], workflow=db.jobs.get(job).workflow)
    claim(db, me, resources=more)
    assert not found()


def test_listed_jobs_with_a_packing_count_are_claimed_as_far_as_they_fit(db: Database) -> None:
    packed = [one(db, node_packing_count=2) for _ in range(3)]
    plain = one(db)
    me = register(db)

    def claimed(*, room: bool) -> list[int]:
        call = calls.ClaimJobs(launcher=me, limit=3, resources=Resources(), only=[*packed, plain], packed=room)
        return [job.id or 0 for job in db.run(call).jobs]

    assert claimed(room=False) == [plain]
    assert claimed(room=True) == packed[:2]


def test_get_launchers(db: Database) -> None:
    one(db)
    me = register(db)
    claim(db, me)
    (found,) = db.run(calls.GetLaunchers())
    assert (found.id, found.host, found.alive, found.jobs) == (me, "here", True, 1)


def test_count_held_by_others(db: Database) -> None:
    job = one(db)
    one(db, parents=[job])
    me, other = register(db), register(db)
    claim(db, other)
    assert db.run(calls.CountHeldByOthers(launcher=me)) == 1
    assert db.run(calls.CountHeldByOthers(launcher=other)) == 0
    assert db.run(calls.CountHeldByOthers(launcher=me, workflow="none")) == 0
    assert db.run(calls.CountHeldByOthers(launcher=me, workflow="default", only=[job])) == 1
    assert db.run(calls.CountHeldByOthers(launcher=me, only=[job + 1])) == 1, "it waits for the held one"
    assert db.run(calls.CountHeldByOthers(launcher=me, only=[job + 2])) == 0


def test_every_operation_is_here() -> None:
    kinds: list[type[Call[Any]]] = [*calls.Read.__subclasses__(), *calls.Write.__subclasses__()]
    assert {f"test_{kind.operation()}" for kind in kinds} <= globals().keys()
