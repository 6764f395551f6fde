"""Every operation of :mod:`balsam_core.model.calls`, each in its plainest form; other modules test what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from balsam_core.model import calls
from balsam_core.model.app import App
from balsam_core.model.calls import Call, Edge, Order, Resources, Update
from balsam_core.model.filters import Compare
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.testing.tools import claim, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core import Database


def kinds(base: type[Call[Any]] = Call) -> set[type[Call[Any]]]:
    """Return all operations."""
    below = {kind for sub in base.__subclasses__() for kind in kinds(sub)}
    return below or {base}


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


def info(db: Database) -> None:
    assert db.run(calls.GetInfo()).db_id == db.directory.id


def prune(db: Database) -> None:
    assert db.run(calls.Prune()) >= 0


def add_app(db: Database) -> None:
    first = db.run(calls.AddApp(app=App("a", "x")))
    assert db.run(calls.AddApp(app=App("a", "x"))) == first


def get_apps(db: Database) -> None:
    db.apps.add(App("b", "x"), App("a", "y {z}", environ={"A": "1"}))
    assert db.run(calls.GetApps()) == [App("a", "y {z}", environ={"A": "1"}), App("b", "x")]
    assert db.run(calls.GetApps(names=["b"])) == [App("b", "x")]


def remove_app(db: Database) -> None:
    db.apps.add(App("a", "x"))
    db.run(calls.RemoveApp(name="a"))
    assert db.run(calls.GetApps()) == []


def add_jobs(db: Database) -> None:
    added = db.run(calls.AddJobs(jobs=[Job(command="x"), Job(command="y", parents=[-1])]))
    assert db.jobs.get(added.first_id + 1).parents == [added.first_id]


def open_staged_insert(db: Database) -> None:
    opened(db, jobs=2)
    assert db.jobs.count() == 0


def publish_staged_insert(db: Database) -> None:
    batch = opened(db, jobs=2)
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    assert db.jobs.count() == 2


def abandon_staged_insert(db: Database) -> None:
    batch = opened(db, jobs=3)
    assert db.run(calls.AbandonStagedInsert(staged_insert=batch, limit=2)) == 2
    while db.run(calls.AbandonStagedInsert(staged_insert=batch)):
        pass
    assert db.jobs.count() == 0


def promote_staged_insert(db: Database) -> None:
    first = one(db)
    batch = db.run(calls.OpenStagedInsert())
    db.run(calls.AddJobs(jobs=[Job(command="x", parents=[first]) for _ in range(3)], staged_insert=batch))
    db.run(calls.PublishStagedInsert(staged_insert=batch))
    while db.run(calls.PromoteStagedInsert(staged_insert=batch, limit=2)):
        pass
    while db.run(calls.PromoteStagedInsert()):
        pass
    assert db.jobs.states() == {"READY": 1, "AWAITING_PARENTS": 3}


def add_edge(db: Database) -> None:
    first, second = pair(db)
    assert db.run(calls.AddEdge(parent=first, child=second)) is True
    assert db.run(calls.AddEdge(parent=first, child=second)) is False


def get_jobs(db: Database) -> None:
    first, second = pair(db)
    assert [job.id for job in db.run(calls.GetJobs(order=Order("id", descending=True)))] == [second, first]
    assert [job.id for job in db.run(calls.GetJobs(after=first))] == [second]
    assert db.run(calls.GetJobs(limit=0)) == []


def get_rows(db: Database) -> None:
    first, second = pair(db)
    rows = db.run(calls.GetRows(fields=["id", "state", "parents", "key"], limit=1, after=first))
    assert rows == [[second, "READY", [], None]]


def count_jobs(db: Database) -> None:
    _, second = pair(db)
    assert db.run(calls.CountJobs(where=Compare("id", "ge", second))) == 1


def count_states(db: Database) -> None:
    one(db, workflow="v")
    one(db, workflow="w")
    assert db.run(calls.CountStates()) == {"": {"READY": 2}}
    assert db.run(calls.CountStates(by_workflow=True)) == {"v": {"READY": 1}, "w": {"READY": 1}}


def last_job(db: Database) -> None:
    assert db.run(calls.LastJob()) is None
    assert one(db) == db.run(calls.LastJob())


def get_history(db: Database) -> None:
    job = one(db)
    db.jobs.where(id=job).kill("why")
    events = db.run(calls.GetHistory(jobs=[job]))
    assert [event.transitions[-1][0] for event in events] == ["READY", "USER_KILLED"]
    assert events[-1].message == "why"


def get_edges(db: Database) -> None:
    first = one(db)
    second = one(db, parents=[first])
    assert db.run(calls.GetEdges(jobs=[second])) == [Edge(first, second)]
    assert db.run(calls.GetEdges(jobs=[first], children_of=True)) == [Edge(first, second)]
    assert db.run(calls.GetEdges(jobs=[first])) == []


def kill_jobs(db: Database) -> None:
    first, second = pair(db)
    changed = db.run(calls.KillJobs(where=calls.EVERYTHING, limit=1))
    assert (len(changed.ids), changed.more) == (1, True)
    db.run(calls.KillJobs(where=calls.EVERYTHING))
    assert [db.jobs.get(job).state for job in (first, second)] == ["USER_KILLED"] * 2


def retry_jobs(db: Database) -> None:
    pair(db)
    db.jobs.kill()
    assert len(db.run(calls.RetryJobs(where=calls.EVERYTHING)).ids) == 2
    assert db.jobs.states() == {"READY": 2}


def remove_jobs(db: Database) -> None:
    job = one(db, name="n", workflow="w")
    assert db.run(calls.RemoveJobs(where=calls.EVERYTHING)) == [calls.RemovedJob(job, "w", "n")]
    assert db.run(calls.RemoveJobs(where=calls.EVERYTHING)) == []


def register_launcher(db: Database) -> None:
    assert register(db) < register(db)


def renew_lease(db: Database) -> None:
    assert db.run(calls.RenewLease(launcher=register(db), lease_seconds=60)).killed == []


def get_killed_jobs(db: Database) -> None:
    job, me = one(db), register(db)
    claim(db, me)
    db.jobs.where(id=job).kill()
    assert db.run(calls.GetKilledJobs(launcher=me)) == [job]


def close_launcher(db: Database) -> None:
    job, me = one(db), register(db)
    claim(db, me)
    db.run(calls.CloseLauncher(launcher=me))
    assert [taken.id for taken in claim(db, register(db))] == [job]


def claim_jobs(db: Database) -> None:
    db.apps.add(App("a", "x"))
    parent = one(db)
    (child,) = db.jobs.add(Job(app="a", parents=[parent], wait_for_parents=False))
    taken = db.run(calls.ClaimJobs(launcher=register(db), limit=9, resources=Resources()))
    assert [job.id for job in taken.jobs] == [parent, child]
    assert (taken.apps, [*taken.parents]) == ({"a": App("a", "x")}, [parent])


def update_jobs(db: Database) -> None:
    one(db)
    me = register(db)
    (job,) = claim(db, me)
    assert job.id is not None
    good = Update(job=job.id, attempt=1, transitions=[(State.STAGED_IN, 1.5)], message="m")
    assert db.run(calls.UpdateJobs(launcher=me, updates=[good])) == {}
    late = Update(job=job.id, attempt=0, transitions=[(State.PREPROCESSED, 0.0)])
    assert [*db.run(calls.UpdateJobs(launcher=me, updates=[late]))] == [job.id]
    assert db.jobs.get(job.id).state == "STAGED_IN"


def count_waiting(db: Database) -> None:
    one(db)
    one(db, num_nodes=2)
    assert db.run(calls.CountWaiting(resources=Resources())) == {"fits": 1, "does not fit": 1}


def get_launchers(db: Database) -> None:
    one(db)
    me = register(db)
    claim(db, me)
    (found,) = db.run(calls.GetLaunchers())
    assert (found.id, found.host, found.alive, found.jobs) == (me, "here", True, 1)


def count_held_by_others(db: Database) -> None:
    job = one(db)
    one(db, parents=[job])
    me, other = register(db), register(db)
    claim(db, other)
    assert db.run(calls.CountHeldByOthers(launcher=me)) == 1
    assert db.run(calls.CountHeldByOthers(launcher=other)) == 0


EXAMPLES: dict[type[Call[Any]], Callable[[Database], None]] = {
    calls.GetInfo: info,
    calls.Prune: prune,
    calls.AddApp: add_app,
    calls.GetApps: get_apps,
    calls.RemoveApp: remove_app,
    calls.AddJobs: add_jobs,
    calls.OpenStagedInsert: open_staged_insert,
    calls.PublishStagedInsert: publish_staged_insert,
    calls.AbandonStagedInsert: abandon_staged_insert,
    calls.PromoteStagedInsert: promote_staged_insert,
    calls.AddEdge: add_edge,
    calls.GetJobs: get_jobs,
    calls.GetRows: get_rows,
    calls.CountJobs: count_jobs,
    calls.CountStates: count_states,
    calls.LastJob: last_job,
    calls.GetHistory: get_history,
    calls.GetEdges: get_edges,
    calls.KillJobs: kill_jobs,
    calls.RetryJobs: retry_jobs,
    calls.RemoveJobs: remove_jobs,
    calls.RegisterLauncher: register_launcher,
    calls.RenewLease: renew_lease,
    calls.GetKilledJobs: get_killed_jobs,
    calls.CloseLauncher: close_launcher,
    calls.ClaimJobs: claim_jobs,
    calls.UpdateJobs: update_jobs,
    calls.CountWaiting: count_waiting,
    calls.GetLaunchers: get_launchers,
    calls.CountHeldByOthers: count_held_by_others,
}


def test_every_operation_has_an_example() -> None:
    assert kinds() == EXAMPLES.keys()


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.operation())
def test_operation(db: Database, kind: type[Call[Any]]) -> None:
    EXAMPLES[kind](db)
