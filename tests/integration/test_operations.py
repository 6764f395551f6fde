"""Every operation, on real SQLite, PostgreSQL and MariaDB, through NativeTransport."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from native import make_transport

from balsam_core import App, Job, State
from balsam_core.errors import Conflict, InvalidInput, NotFound, SchemaMismatch, Unavailable
from balsam_core.jobs import Jobs
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Update
from balsam_core.schema import tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.transport import NativeTransport

S = State
DONE = [S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_DONE, S.POSTPROCESSED, S.JOB_FINISHED]


@pytest.fixture
def transport(engine_url: str) -> Iterator[NativeTransport]:
    with make_transport(engine_url) as made:
        yield made


@pytest.fixture
def jobs(transport: NativeTransport) -> Jobs:
    return Jobs(transport)


def launcher(transport: NativeTransport, *, lease: float = 900) -> int:
    return transport.run(
        calls.RegisterLauncher(host="here", pid=1, boot_id="b", process_start=0.0, lease_seconds=lease)
    )


def claim(transport: NativeTransport, number: int, limit: int = 100, **more: object) -> list[Job]:
    return transport.run(calls.ClaimJobs(launcher=number, limit=limit, **{"resources": Resources(), **more})).jobs


def walk(transport: NativeTransport, number: int, job: Job, *hops: State, **more: object) -> dict[int, str]:
    update = Update(job=job.id, attempt=job.attempt, hops=[(hop, 0.0) for hop in hops], **more)
    return transport.run(calls.UpdateJobs(launcher=number, updates=[update]))


def test_added_jobs_come_back_as_they_went_in(transport: NativeTransport, jobs: Jobs) -> None:
    transport.run(calls.AddApp(app=App("sim", "sim.x --x {x} {y}", environ={"A": "1"})))
    given = {
        "name": "näme 🎈\n/../x",
        "workflow": "Wörk",
        "description": "d" * 70_000,
        "app": "sim",
        "args": "--more '{x} y'",
        "parameters": {"x": 1.5, "y": ["a", None, {"b": True}], "z": "🎈"},
        "wait_for_parents": False,
        "input_files": ["*.xyz"],
        "stage_in": "/in",
        "stage_out": "/out",
        "stage_out_files": ["*.dat"],
        "user_workdir": "/w",
        "environ": {"K": "v=1"},
        "preprocess": "pre",
        "postprocess": "post",
        "post_error_handler": True,
        "post_timeout_handler": True,
        "auto_timeout_retry": False,
        "max_retries": 3,
        "priority": -7,
        "wall_time_minutes": 90,
        "num_nodes": 4,
        "ranks_per_node": 2,
        "threads_per_rank": 3,
        "threads_per_core": 2,
        "gpus_per_rank": 0.25,
        "node_packing_count": 5,
        "cpu_affinity": "depth",
        "key": "k/1",
        "data": {"n": 2**53 + 1},
    }
    job = Job(**given)
    jobs.add(job)
    found = jobs.get(job.id)
    assert {name: getattr(found, name) for name in given} == given
    assert (found.state, found.attempt, found.retries, found.return_code) == (S.READY, 0, 0, None)
    assert found.created_at.tzinfo == UTC
    assert abs(found.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert {spec for spec in Job.__struct_fields__ if spec not in given} == {
        "parents",
        "command",
        "id",
        "state",
        "state_since",
        "created_at",
        "attempt",
        "retries",
        "return_code",
        "launcher_id",
    }  # fmt: skip  (so that a new field is tested here too)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job(), "either an app or a command"),
        (Job(app="a", command="b"), "not both"),
        (Job(command="  "), "blank"),
        (Job(command="echo 'x"), "close the quotation"),
        (Job(command="x", name="a\0b"), "NUL"),
        (Job(command="x", workflow=""), "workflow is empty"),
        (Job(command="x", workflow="w" * 256), "at most 255"),
        (Job(command="x", name="n" * 10_001), "at most 10000"),
        (Job(command="x", key="k" * 256), "at most 255"),
        (Job(command="x", num_nodes=0), ">= 1"),
        (Job(command="x", priority=2**31), "<= 2147483647"),
        (Job(command="x", parameters={"x": float("nan")}), "JSON can't"),
        (Job(command="x", parameters={"x": 2**63}), "64-bit"),
        (Job(command="x", parameters={"x": {"deep": ["a\0"]}}), "NUL"),
        (Job(command="x", data={"x": "\ud800"}), "surrogate"),
        (Job(command="x", environ={"A=B": "1"}), "'='"),
        (Job(app="known"), "needs the parameters x"),
        (Job(app="known", parameters={"x": 1}, args="{zzz}"), "zzz"),
        (Job(command="x", parents=[0]), "parent"),
        (Job(command="x", parents=[-1]), "parent"),
        (Job(command="x", parents=["1"]), "parent"),
    ],
)
def test_a_wrong_job_is_refused_and_nothing_is_written(
    transport: NativeTransport, jobs: Jobs, job: Job, words: str
) -> None:
    transport.run(calls.AddApp(app=App("known", "known {x}")))
    with pytest.raises(InvalidInput, match=words):
        jobs.add([Job(command="fine"), job])
    assert jobs.count() == 0
    assert jobs.add(Job(command="fine"))[0] == 1, "a refused insert gives its ids back"


def test_an_unknown_app_and_an_unknown_parent_are_not_found(transport: NativeTransport, jobs: Jobs) -> None:
    transport.run(calls.AddApp(app=App("simulate", "x")))
    with pytest.raises(NotFound, match="did you mean 'simulate'"):
        jobs.add(Job(app="simulat"))
    with pytest.raises(NotFound, match="no job 99"):
        jobs.add(Job(command="x", parents=[99]))
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
    assert jobs.add_dependency(first, third) is False
    assert jobs.get(third.id).parents == [first.id, second.id]


def test_a_dependency_makes_a_ready_job_wait(transport: NativeTransport, jobs: Jobs) -> None:
    parent, child = Job(command="x"), Job(command="x")
    jobs.add([parent, child])
    jobs.add_dependency(parent, child)
    assert jobs.get(child.id).state == S.AWAITING_PARENTS
    me = launcher(transport)
    (claimed,) = claim(transport, me)
    assert claimed.id == parent.id
    walk(transport, me, claimed, *DONE)
    (claimed,) = claim(transport, me)
    with pytest.raises(Conflict, match="started"):
        jobs.add_dependency(Job(command="z", id=jobs.add(Job(command="z"))[0]), claimed)


def test_children_start_when_all_parents_have_finished(transport: NativeTransport, jobs: Jobs) -> None:
    parents = [Job(command="x") for _ in range(3)]
    child = Job(command="y", parents=parents)
    eager = Job(command="z", parents=parents, wait_for_parents=False)
    jobs.add([child, *parents, eager])  # any order
    assert jobs.get(child.id).state == S.AWAITING_PARENTS
    assert jobs.get(eager.id).state == S.READY
    me = launcher(transport)
    taken = {job.id: job for job in claim(transport, me)}
    assert set(taken) == {*(job.id for job in parents), eager.id}
    updates = [
        Update(job=job.id, attempt=1, hops=[(hop, 0.0) for hop in DONE])
        for job in taken.values()
        if job.id in {parents[0].id, parents[1].id}
    ]
    assert transport.run(calls.UpdateJobs(launcher=me, updates=updates)) == {}
    assert jobs.get(child.id).state == S.AWAITING_PARENTS
    walk(transport, me, taken[parents[2].id], *DONE)
    assert jobs.get(child.id).state == S.READY
    answer = transport.run(calls.ClaimJobs(launcher=me, limit=5, resources=Resources()))
    assert [job.parents for job in answer.jobs] == [sorted(job.id for job in parents)]
    assert set(answer.parents) == {job.id for job in parents}


@pytest.mark.parametrize(("end", "words"), [(S.FAILED, "failed"), (S.USER_KILLED, "was killed")])
def test_descendants_of_a_lost_job_end_and_say_why(
    transport: NativeTransport, jobs: Jobs, end: State, words: str
) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent])
    grandchild = Job(command="x", parents=[child])
    bystander = Job(command="x")
    jobs.add([parent, child, grandchild, bystander])
    if end == S.FAILED:
        me = launcher(transport)
        taken = {job.id: job for job in claim(transport, me)}
        walk(transport, me, taken[parent.id], S.FAILED, message="boom")
        expected = S.FAILED
    else:
        jobs.where(id=parent.id).kill()
        expected = S.PARENT_KILLED
    assert [jobs.get(job.id).state for job in (parent, child, grandchild, bystander)] == [
        end,
        expected,
        expected,
        S.READY,
    ]
    assert jobs.history(child)[-1].message == f"parent {parent.id} {words}"
    late = Job(command="x", parents=[grandchild])
    jobs.add(late)
    assert jobs.get(late.id).state == expected, "a child added later shares the fate"


def test_retry_starts_jobs_again_with_those_that_ended_because_of_them(transport: NativeTransport, jobs: Jobs) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent])
    grandchild = Job(command="x", parents=[child])
    jobs.add([parent, child, grandchild])
    me = launcher(transport)
    (taken,) = claim(transport, me)
    walk(transport, me, taken, S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_ERROR, S.FAILED, return_code=3)
    assert jobs.states() == {S.FAILED: 3}
    with pytest.raises(Conflict, match="retry the parent"):
        jobs.where(id=child.id).retry()
    assert jobs.where(Job.state == "FAILED").retry() == 1
    assert [jobs.get(job.id).state for job in (parent, child, grandchild)] == [
        S.READY,
        S.AWAITING_PARENTS,
        S.AWAITING_PARENTS,
    ]
    assert jobs.get(parent.id).return_code is None
    for expected in (parent, child, grandchild):
        (taken,) = claim(transport, me)
        assert taken.id == expected.id
        walk(transport, me, taken, *DONE)
    assert jobs.states() == {S.JOB_FINISHED: 3}


def test_remove_refuses_jobs_that_others_need(transport: NativeTransport, jobs: Jobs) -> None:
    parent = Job(command="x")
    child = Job(command="x", parents=[parent], workflow="w", name="c")
    jobs.add([parent, child])
    with pytest.raises(Conflict, match="waits for job"):
        jobs.where(id=parent.id).remove()
    me = launcher(transport)
    claim(transport, me)
    with pytest.raises(Conflict, match="held by a launcher"):
        jobs.remove()
    transport.run(calls.CloseLauncher(launcher=me))
    removed = jobs.remove()
    assert [(job.id, job.workflow, job.name) for job in removed] == [(2, "w", "c"), (1, "default", "job")]
    assert jobs.count() == 0
    with transport.engine.connect() as conn:
        for table in (tables.job_edges, tables.job_events):
            assert conn.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0


def test_a_key_gives_the_same_job_back(jobs: Jobs) -> None:
    first = Job(command="x", key="a")
    jobs.add(first)
    again = [Job(command="x", key="b"), Job(command="y", key="a"), Job(command="z"), Job(command="x", key="b")]
    child = Job(command="c", parents=[again[1], again[3]])
    ids = jobs.add([*again, child])
    assert list(ids) == [2, 1, 3, 2, 4]
    assert jobs.get(4).parents == [1, 2]
    assert jobs.count() == 4


def test_many_jobs_appear_at_once(transport: NativeTransport, jobs: Jobs) -> None:
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
    assert len(ids) == count
    assert (ids[0], ids[-1], ids[5:7]) == (1, count, [6, 7])
    assert jobs.states() == {S.READY: count // 2, S.AWAITING_PARENTS: count // 2}
    assert transport.run(calls.PromoteBatch()) is False
    assert {event.job_id: event.hops for event in jobs.history(ids[1], ids[2])} == {
        ids[1]: [(S.CREATED, 0.0), (S.AWAITING_PARENTS, 0.0)],
        ids[2]: [(S.CREATED, 0.0), (S.READY, 0.0)],
    }


def test_an_insert_that_fails_in_the_middle_leaves_nothing(transport: NativeTransport, jobs: Jobs) -> None:
    many = [Job(command="x", key=f"k{i}") for i in range(calls.MOST_JOBS + 5)]
    many[-1].num_nodes = -1
    with pytest.raises(InvalidInput, match="num_nodes"):
        jobs.add(many)
    assert jobs.count() == 0
    with transport.engine.connect() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar() == 0
    many[-1].num_nodes = 1
    assert len(jobs.add(many)) == calls.MOST_JOBS + 5


def test_keys_of_a_killed_insert_can_be_used_again(transport: NativeTransport, jobs: Jobs) -> None:
    dead = transport.run(calls.OpenBatch())
    transport.run(calls.AddJobs(jobs=[Job(command="old", key="k"), Job(command="old", parents=[-1])], batch=dead))
    assert jobs.count() == 0
    assert claim(transport, launcher(transport)) == []
    fresh = Job(command="new", key="k")
    jobs.add(fresh)
    assert [(job.command, job.key) for job in jobs] == [("new", "k")]
    with pytest.raises(Conflict, match="run again"):
        transport.run(calls.PublishBatch(batch=dead))
    while transport.run(calls.AbandonBatch(batch=dead)):
        pass
    assert jobs.count() == 1


def test_a_batch_published_by_a_killed_process_is_promoted_by_others(transport: NativeTransport, jobs: Jobs) -> None:
    batch = transport.run(calls.OpenBatch())
    answer = transport.run(calls.AddJobs(jobs=[Job(command="x") for _ in range(5)], batch=batch))
    transport.run(calls.AddJobs(jobs=[Job(command="y", parents=[answer.first])], batch=batch))
    transport.run(calls.PublishBatch(batch=batch))
    assert jobs.states() == {S.CREATED: 6}
    while transport.run(calls.PromoteBatch(limit=2)):
        pass
    assert jobs.states() == {S.READY: 5, S.AWAITING_PARENTS: 1}


def test_claims_go_by_priority_then_age_and_only_what_fits(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add(
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
    me = launcher(transport)
    some = Resources(minutes_left=50)
    assert transport.run(calls.CountWaiting(resources=some)) == {"fits": 5, "does not fit": 3}
    assert [job.name for job in claim(transport, me, 2, resources=some)] == ["high", "middle"]
    assert [job.name for job in claim(transport, me, 9, resources=some)] == ["threads", "low", "low2"]
    assert claim(transport, me, 9, resources=some) == []
    everything = Resources(nodes=2, gpus_per_node=1)
    assert {job.name for job in claim(transport, me, 9, resources=everything)} == {"wide", "long", "gpu"}


def test_claims_of_one_workflow_or_of_given_jobs(transport: NativeTransport, jobs: Jobs) -> None:
    ids = jobs.add([Job(command="x", workflow=flow) for flow in ("a", "b", "a", "b")])
    me = launcher(transport)
    assert [job.id for job in claim(transport, me, workflow="b", limit=1)] == [ids[1]]
    assert claim(transport, me, workflow="none") == []
    assert [job.id for job in claim(transport, me, only=[ids[1], ids[2]])] == [ids[2]]
    assert [job.id for job in claim(transport, me, workflow="b")] == [ids[3]]


def test_updates_by_a_stale_launcher_are_refused(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add([Job(command="x"), Job(command="y")])
    old = launcher(transport, lease=-1)
    taken = claim(transport, old)
    walk(transport, old, taken[0], S.STAGED_IN, S.PREPROCESSED, S.RUNNING)
    new = launcher(transport)  # finds the first one's lease over
    assert [jobs.get(job.id).state for job in taken] == [S.RESTART_READY, S.READY]
    with pytest.raises(Conflict, match="lease"):
        transport.run(calls.RenewLease(launcher=old, lease_seconds=9))
    with pytest.raises(Conflict, match="lease"):
        claim(transport, old)
    again = claim(transport, new)
    assert [job.attempt for job in again] == [2, 2]
    assert "no longer" in walk(transport, old, taken[0], S.RUN_DONE)[taken[0].id]
    assert walk(transport, new, again[0], S.RUNNING, S.RUN_DONE) == {}
    assert "can't go from" in walk(transport, new, again[0], S.RUNNING)[again[0].id]
    assert jobs.get(taken[0].id).state == S.RUN_DONE


def test_a_killed_job_stays_with_its_launcher_until_it_is_stopped(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add(Job(command="x"))
    me = launcher(transport)
    (job,) = claim(transport, me)
    walk(transport, me, job, S.STAGED_IN, S.PREPROCESSED, S.RUNNING)
    assert jobs.where(id=job.id).kill("enough") == 1
    assert transport.run(calls.GetKilled(launcher=me)) == [job.id]
    assert transport.run(calls.RenewLease(launcher=me, lease_seconds=9)).killed == [job.id]
    assert walk(transport, me, job, S.RUN_DONE) == {job.id: "the job was killed by the user"}
    assert walk(transport, me, job, release=True) == {}
    assert transport.run(calls.GetKilled(launcher=me)) == []
    found = jobs.get(job.id)
    assert (found.state, found.launcher_id) == (S.USER_KILLED, None)
    assert claim(transport, me) == []
    assert jobs.history(job)[-1].message == "enough"


def test_a_released_job_can_be_claimed_again(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add([Job(command="x"), Job(command="y")])
    me = launcher(transport)
    first, second = claim(transport, me)
    assert walk(transport, me, first, release=True) == {}
    hops = (S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_ERROR, S.RESTART_READY)
    assert walk(transport, me, second, *hops, return_code=1) == {}
    again = claim(transport, me)
    assert [(job.id, job.state, job.attempt, job.retries) for job in again] == [
        (first.id, S.READY, 2, 0),
        (second.id, S.RESTART_READY, 2, 1),
    ]


def test_only_errors_use_up_the_retries(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add(Job(command="x"))
    me = launcher(transport)
    (job,) = claim(transport, me)
    walk(transport, me, job, S.STAGED_IN, S.PREPROCESSED, S.RUNNING, S.RUN_TIMEOUT, S.RESTART_READY)
    (job,) = claim(transport, me)
    walk(transport, me, job, S.RUNNING, S.RUN_ERROR)
    assert jobs.get(job.id).retries == 0
    walk(transport, me, job, S.RESTART_READY)
    assert jobs.get(job.id).retries == 1


def test_hops_keep_their_own_times(transport: NativeTransport, jobs: Jobs) -> None:
    jobs.add(Job(command="x"))
    me = launcher(transport)
    (job,) = claim(transport, me)
    update = Update(job=job.id, attempt=1, hops=[(S.STAGED_IN, 3.5), (S.PREPROCESSED, 2.25)], message="m")
    transport.run(calls.UpdateJobs(launcher=me, updates=[update]))
    last = jobs.history(job)[-1]
    assert (last.hops, last.message, last.attempt) == ([(S.STAGED_IN, 3.5), (S.PREPROCESSED, 2.25)], "m", 1)
    assert last.at - jobs.get(job.id).state_since == timedelta(seconds=2.25)


def test_launchers_are_listed_and_say_goodbye(transport: NativeTransport, jobs: Jobs) -> None:
    child = Job(command="c")
    child.parents = parents = [Job(command="x"), Job(command="x")]
    jobs.add([child, *parents])
    me, other = launcher(transport), launcher(transport)
    claim(transport, me, 1)
    claim(transport, other, 1)
    assert [(info.id, info.jobs, info.alive) for info in transport.run(calls.GetLaunchers())] == [
        (me, 1, True),
        (other, 1, True),
    ]
    assert transport.run(calls.Unfinished(launcher=me)) == 1
    transport.run(calls.CloseLauncher(launcher=other))
    assert transport.run(calls.Unfinished(launcher=me)) == 0
    assert [info.id for info in transport.run(calls.GetLaunchers())] == [me]


def test_filters_mean_the_same_everywhere(transport: NativeTransport, jobs: Jobs) -> None:
    transport.run(calls.AddApp(app=App("sim", "x")))
    jobs.add(
        [
            Job(app="sim", name="Alpha", workflow="one", priority=3, num_nodes=2),
            Job(command="a%b", name="alpha", workflow="One", description="50%_x"),
            Job(command="c", name="beta", workflow="two", key="K", priority=-1),
        ]
    )

    def ids(*conditions: object, **equal: object) -> list[int]:
        return jobs.where(*conditions, **equal).ids()

    assert ids(name="alpha") == [2]
    assert ids(Job.name.contains("pha")) == [1, 2]
    assert ids(Job.name.contains("PHA")) == []
    assert ids(Job.name.startswith("al")) == [2]
    assert ids(Job.description.contains("%_")) == [2]
    assert ids(workflow="one") == [1]
    assert ids(Job.workflow.in_(["one", "two", "none"])) == [1, 3]
    assert ids(app="sim") == [1]
    assert ids(~(Job.workflow == "one")) == [2, 3]
    assert ids(Job.num_nodes > 1) == [1]
    assert ids((Job.priority > 2) | (Job.key == "K")) == [1, 3]
    assert ids(Job.key == None) == [1, 2]  # noqa: E711  (a condition, not a comparison)
    assert ids(Job.description == "") == [1, 3]
    assert ids(Job.id.in_([])) == []
    assert ids(state="READY") == [1, 2, 3]
    assert ids(Job.created_at > datetime.now(UTC) + timedelta(hours=1)) == []
    assert jobs.where(Job.priority < 9).order_by("priority", descending=True).ids() == [1, 2, 3]
    assert jobs.order_by(Job.workflow).ids() == [2, 1, 3]
    assert list(jobs.where(id=1).rows("name", Job.app, "num_nodes", "parents", "id")) == [["Alpha", "sim", 2, [], 1]]
    assert jobs.limit(2).ids() == [1, 2]
    assert jobs.first().name == "Alpha"
    assert transport.run(calls.LastJob()) == 3
    assert transport.run(calls.CountStates(by_workflow=True)) == {
        "one": {"READY": 1},
        "One": {"READY": 1},
        "two": {"READY": 1},
    }
    for wrong in (Job.state == "NONSENSE", Job.priority == "high", Job.parameters == {}, Job.name == 3):
        with pytest.raises(InvalidInput):
            ids(wrong)
    with pytest.raises(InvalidInput, match="no field 'colour'"):
        jobs.where(colour="red")


def test_apps_are_defined_once(transport: NativeTransport, jobs: Jobs) -> None:
    app = App("sim", "a {x}", description="d", preprocess="p", postprocess="q", environ={"A": "1"})
    first = transport.run(calls.AddApp(app=app))
    assert transport.run(calls.AddApp(app=app)) == first
    with pytest.raises(Conflict, match="differs"):
        transport.run(calls.AddApp(app=App("sim", "b")))
    assert transport.run(calls.GetApps(names=["sim"])) == [app]
    assert transport.run(calls.AddApp(app=App("sim", "b"), replace=True)) == first
    assert transport.run(calls.GetApps()) == [App("sim", "b")]
    jobs.add(Job(app="sim"))
    with pytest.raises(Conflict, match="used by job 1"):
        transport.run(calls.RemoveApp(name="sim"))
    jobs.remove()
    transport.run(calls.RemoveApp(name="sim"))
    with pytest.raises(NotFound):
        transport.run(calls.RemoveApp(name="sim"))
    for wrong in (App("", "x"), App("a", " "), App("a", "x '"), App("a\0", "x"), App("n" * 256, "x")):
        with pytest.raises(InvalidInput):
            transport.run(calls.AddApp(app=wrong))


def test_old_answers_and_abandoned_inserts_are_pruned(transport: NativeTransport) -> None:
    batch = transport.run(calls.OpenBatch())
    transport.run(calls.AddJobs(jobs=[Job(command="x") for _ in range(3)], batch=batch))
    long_ago = datetime.now(UTC) - timedelta(days=8)
    with transport.engine.begin() as conn:
        conn.execute(tables.applied.update().values(at=long_ago))
        conn.execute(tables.batches.update().values(touched_at=long_ago))
    while transport.run(calls.Prune()):
        pass
    with transport.engine.connect() as conn:
        left = conn.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar()
        answers = conn.execute(sa.select(sa.func.min(tables.applied.c.at))).scalar()
    assert left == 0
    assert answers.replace(tzinfo=UTC) > long_ago + timedelta(days=1)


def test_a_foreign_schema_is_refused(transport: NativeTransport, engine_url: str) -> None:
    with transport.engine.begin() as conn:
        conn.execute(sa.text("UPDATE schema_version SET version_num = '9999'"))
    from native import is_retryable, make_engine

    from balsam_core.transport import NativeTransport

    with (
        NativeTransport(make_engine(engine_url), is_retryable=is_retryable) as other,
        pytest.raises(SchemaMismatch, match="newer than this program"),
    ):
        other.run(calls.GetInfo())


def test_a_closed_transport_says_so(engine_url: str) -> None:
    transport = make_transport(engine_url)
    assert transport.run(calls.GetInfo()).db_id == "test"
    transport.close()
    transport.close()
    with pytest.raises(Unavailable, match="closed"):
        transport.run(calls.GetInfo())
