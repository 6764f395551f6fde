"""What users and launchers do at the same moment: whichever comes first at every point, it comes to a sound end."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from amounts import FULL
from interleaving import DEADLINE, FAIL, Scene, World, end, register
from plugin_dbs import open_transport

from balsam_core import Job
from balsam_core.client.jobs import Jobs
from balsam_core.errors import BalsamError, Conflict, InvalidInput, NotFound
from balsam_core.model import calls
from balsam_core.model.calls import Claim, Resources
from balsam_core.model.states import State
from balsam_core.schema.tables import staged_inserts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from balsam_core.dbdir.directory import DBDir
    from balsam_core.transport.base import Transport

    Build = Callable[[World], Scene]

# SQLite has one writer at a time. In full, on both kinds, and either one of the two is the first.
KINDS = ["postgres", "mysql"] if FULL else ["postgres"]
pytestmark = pytest.mark.parametrize("module_db", KINDS, indirect=True, scope="module")

S = State
ADDERS, TURNS = 16, 6


@pytest.fixture(scope="module")
def world(module_db: DBDir) -> Iterator[World]:
    made = World(module_db)
    yield made
    made.close()


def call(one: calls.Call[Any]) -> Callable[[Transport], Any]:
    return lambda transport: transport.run(one)


def worked(*answers: Any) -> None:
    for answer in answers:
        assert not isinstance(answer, BalsamError), answer


# ---- inserts of many calls


def left_behind(world: World, *added: Job) -> int:
    batch = world.batch(*added)
    with world.engine.begin() as conn:
        conn.execute(staged_inserts.update().values(updated_at=datetime.now(UTC) - timedelta(days=2)))
    return batch


def gone_or_whole(world: World, batch: int, published: Any, count: int) -> None:
    """Assert that a batch was either published, and all is there, or not, and nothing is."""
    if isinstance(published, BalsamError):
        assert isinstance(published, (NotFound, Conflict)), published
        count = 0
    world.promote()
    for _ in range(5):
        world.run(calls.Prune())
    assert world.jobs.count() == count, "a published insert is there, all of it"


def prune_and_publish(world: World) -> Scene:
    batch = left_behind(world, *(Job(command="x") for _ in range(3)))

    def check(pruned: Any, published: Any) -> None:
        worked(pruned)
        gone_or_whole(world, batch, published, 3)

    return Scene(call(calls.Prune()), call(calls.PublishStagedInsert(staged_insert=batch)), check)


def prune_a_part_and_publish(world: World) -> Scene:
    batch = left_behind(world, *(Job(command="x") for _ in range(3)))

    def check(pruned: Any, published: Any) -> None:
        worked(pruned)
        gone_or_whole(world, batch, published, 3)

    return Scene(call(calls.Prune(limit=1)), call(calls.PublishStagedInsert(staged_insert=batch)), check)


def prune_and_go_on(world: World) -> Scene:
    batch = left_behind(world, Job(command="x"))

    def go_on(transport: Transport) -> None:
        transport.run(calls.AddJobs(jobs=[Job(command="y")], staged_insert=batch))
        transport.run(calls.PublishStagedInsert(staged_insert=batch))

    def check(pruned: Any, published: Any) -> None:
        worked(pruned)
        gone_or_whole(world, batch, published, 2)

    return Scene(call(calls.Prune()), go_on, check)


def prune_twice(world: World) -> Scene:
    left_behind(world, *(Job(command="x") for _ in range(3)))

    def check(one: Any, other: Any) -> None:
        worked(one, other)
        while world.run(calls.Prune()):
            pass
        with world.engine.connect() as conn:
            assert conn.execute(staged_inserts.select()).all() == []

    return Scene(call(calls.Prune()), call(calls.Prune()), check)


def take_over_and_publish(world: World) -> Scene:
    batch = world.batch(Job(command="old", key="k"), Job(command="old"))

    def check(added: Any, published: Any) -> None:
        worked(added)
        world.promote()
        (job,) = world.jobs.where(key="k")
        assert list(added) == [job.id]
        if isinstance(published, BalsamError):
            assert isinstance(published, Conflict), published
            assert job.command == "new"
            assert world.jobs.count() == 1
        else:
            assert job.command == "old"
            assert world.jobs.count() == 2

    return Scene(
        lambda t: Jobs(t).add(Job(command="new", key="k"), if_exists="keep"),
        call(calls.PublishStagedInsert(staged_insert=batch)),
        check,
    )


def abandon(batch: int) -> Callable[[Transport], None]:
    def run(transport: Transport) -> None:
        while transport.run(calls.AbandonStagedInsert(staged_insert=batch)):
            pass

    return run


def take_over_and_abandon(world: World) -> Scene:
    batch = world.batch(Job(command="old", key="k"), Job(command="old"))

    def check(added: Any, abandoned: Any) -> None:
        worked(added, abandoned)
        assert [(job.id, job.command) for job in world.jobs] == [(added[0], "new")]

    return Scene(lambda t: Jobs(t).add(Job(command="new", key="k")), abandon(batch), check)


def take_over_twice(world: World) -> Scene:
    world.batch(Job(command="old", key="k"), Job(command="old", key="l"))

    def check(one: Any, other: Any) -> None:
        worked(one, other)
        assert sorted(one) == sorted(other) == world.jobs.ids()
        assert len(set(one)) == 2

    def add(*keys: str) -> Callable[[Transport], Any]:
        return lambda transport: Jobs(transport).add([Job(command="new", key=key) for key in keys])

    return Scene(add("k", "l"), add("l", "k"), check)


def same_key_in_two_batches(world: World) -> Scene:
    one, other = world.run(calls.OpenStagedInsert()), world.run(calls.OpenStagedInsert())

    def insert(batch: int) -> Callable[[Transport], None]:
        def run(transport: Transport) -> None:
            jobs = [Job(command=str(batch), key="k")]
            transport.run(calls.AddJobs(jobs=jobs, staged_insert=batch, if_exists="keep"))
            transport.run(calls.PublishStagedInsert(staged_insert=batch))

        return run

    def check(first: Any, second: Any) -> None:
        lost = [answer for answer in (first, second) if isinstance(answer, BalsamError)]
        assert len(lost) < 2, "one of them goes on"
        for error in lost:
            assert isinstance(error, Conflict), error
            assert "run again" in str(error)
        world.promote()
        assert world.jobs.count() == 1

    return Scene(insert(one), insert(other), check)


# ---- launchers


def nothing_stays_held(world: World, count: int) -> None:
    """Assert that the jobs come to the next launcher, and that a user may then do what he likes with them."""
    me = world.run(register())
    taken = world.run(calls.ClaimJobs(launcher=me, limit=10, resources=Resources())).jobs
    assert len(taken) == count, "some are held by a launcher that has ended, or by nobody"
    world.run(calls.CloseLauncher(launcher=me))
    assert world.jobs.kill() == count
    assert world.jobs.retry() == count
    assert len(world.jobs.remove()) == count


def claim(launcher: int) -> Callable[[Transport], Claim]:
    return call(calls.ClaimJobs(launcher=launcher, limit=10, resources=Resources()))


def check_claim(world: World, claimed: Any, other: Any) -> None:
    worked(other)
    assert isinstance(claimed, (Claim, Conflict)), claimed
    nothing_stays_held(world, 3)


def reap(world: World, launcher: int) -> Callable[[Transport], Any]:
    """Return what ends a launcher that gives no sign of life."""
    (info,) = [info for info in world.run(calls.GetLaunchers()) if info.id == launcher]
    return call(calls.CloseLauncher(launcher=launcher, seen_at=info.seen_at))


def claim_and_reap(world: World) -> Scene:
    world.jobs.add([Job(command="x") for _ in range(3)])
    late = world.launcher(lease=-1)
    return Scene(claim(late), reap(world, late), lambda *answers: check_claim(world, *answers))


def claim_of_given_and_reap(world: World) -> Scene:
    ids = list(world.jobs.add([Job(command="x") for _ in range(3)]))
    late = world.launcher(lease=-1)
    claiming = calls.ClaimJobs(launcher=late, limit=10, resources=Resources(), only=ids)
    return Scene(call(claiming), reap(world, late), lambda *answers: check_claim(world, *answers))


def claim_and_close(world: World) -> Scene:
    world.jobs.add([Job(command="x") for _ in range(3)])
    me = world.launcher()
    closing = call(calls.CloseLauncher(launcher=me))
    return Scene(claim(me), closing, lambda *answers: check_claim(world, *answers))


def late(world: World) -> int:
    """Return a launcher that holds three jobs, and whose lease is over."""
    jobs = [Job(command="x") for _ in range(3)]
    world.jobs.add(jobs)
    me = world.held(*jobs)
    world.run(calls.RenewLease(launcher=me, lease_seconds=-1))
    return me


def renew_and_reap(world: World) -> Scene:
    me = late(world)

    def check(renewed: Any, reaped: Any) -> None:
        worked(reaped)
        living = {info.id for info in world.run(calls.GetLaunchers())}
        assert (me in living) == (not isinstance(renewed, BalsamError)), renewed
        if isinstance(renewed, BalsamError):
            assert isinstance(renewed, Conflict), renewed
        else:
            (info,) = [info for info in world.run(calls.GetLaunchers()) if info.id == me]
            assert info.jobs == 3, "a lease that was renewed keeps its jobs"
            world.run(calls.CloseLauncher(launcher=me))
        nothing_stays_held(world, 3)

    return Scene(call(calls.RenewLease(launcher=me, lease_seconds=900)), reap(world, me), check)


def start_and_reap(world: World) -> Scene:
    me = late(world)
    job = next(iter(world.jobs))

    def check(told: Any, reaped: Any) -> None:
        worked(told, reaped)
        nothing_stays_held(world, 3)

    return Scene(call(end(me, job, S.STAGED_IN, S.PREPROCESSED, S.RUNNING)), reap(world, me), check)


def kill_and_reap(world: World) -> Scene:
    me = late(world)

    def check(killed: Any, reaped: Any) -> None:
        worked(reaped)
        assert killed == 3
        assert len(world.jobs.where(state="USER_KILLED").remove()) == 3

    return Scene(lambda t: Jobs(t).kill(), reap(world, me), check)


def reap_twice(world: World) -> Scene:
    me = late(world)

    def check(one: Any, other: Any) -> None:
        worked(one, other)
        assert {one, other} == {True, False}
        nothing_stays_held(world, 3)

    return Scene(reap(world, me), reap(world, me), check)


def kill_and_claim(world: World) -> Scene:
    job = Job(command="x")
    world.jobs.add(job)
    me = world.launcher()

    def check(killed: Any, claimed: Any) -> None:
        worked(claimed)
        assert killed == 1
        assert world.state(job) == S.USER_KILLED
        if claimed.jobs:
            assert world.run(calls.GetKilledJobs(launcher=me)) == [job.id], "the launcher is told"
            world.run(calls.CloseLauncher(launcher=me))
        assert len(world.jobs.remove()) == 1

    return Scene(lambda t: Jobs(t).kill(), claim(me), check)


def kill_and_end(world: World) -> Scene:
    job = Job(command="x")
    world.jobs.add(job)
    me = world.held(job)

    def check(killed: Any, told: Any) -> None:
        worked(killed, told)
        assert world.state(job) == (S.USER_KILLED if killed else S.JOB_FINISHED)
        assert bool(told) == bool(killed), "a refusal says that it was killed"

    return Scene(lambda t: Jobs(t).kill(), call(end(me, job)), check)


# ---- parents and children


def family(world: World, parents: int = 1) -> tuple[list[Job], Job]:
    elders = [Job(command="p") for _ in range(parents)]
    child = Job(command="c", parents=list(elders))
    world.jobs.add([*elders, child])
    return elders, child


def fail_and_kill_the_child(world: World) -> Scene:
    (parent,), child = family(world)
    failing = call(end(world.held(parent), parent, *FAIL))

    def check(failed: Any, killed: Any) -> None:
        assert failed == {}
        worked(killed)
        assert world.state(child) == (S.USER_KILLED if killed else S.FAILED)
        assert world.ends(child) == (0 if killed else 1)

    return Scene(failing, lambda t: Jobs(t).where(id=child.id).kill(), check)


def two_parents_fail(world: World) -> Scene:
    (one, other), child = family(world, 2)

    def check(*answers: Any) -> None:
        assert answers == ({}, {})
        assert (world.state(child), world.ends(child)) == (S.FAILED, 1)

    return Scene(call(end(world.held(one), one, *FAIL)), call(end(world.held(other), other, *FAIL)), check)


def one_parent_fails_and_one_is_killed(world: World) -> Scene:
    (one, other), child = family(world, 2)

    def check(failed: Any, killed: Any) -> None:
        assert failed == {}
        assert killed == 1
        assert world.state(child) in {S.FAILED, S.PARENT_KILLED}

    failing = call(end(world.held(one), one, *FAIL))
    return Scene(failing, lambda t: Jobs(t).where(id=other.id).kill(), check)


def two_parents_finish(world: World) -> Scene:
    (one, other), child = family(world, 2)

    def check(*answers: Any) -> None:
        assert answers == ({}, {})
        assert world.state(child) == S.READY

    return Scene(call(end(world.held(one), one)), call(end(world.held(other), other)), check)


def one_parent_finishes_and_one_fails(world: World) -> Scene:
    (one, other), child = family(world, 2)

    def check(*answers: Any) -> None:
        assert answers == ({}, {})
        assert (world.state(child), world.ends(child)) == (S.FAILED, 1)

    return Scene(call(end(world.held(one), one)), call(end(world.held(other), other, *FAIL)), check)


def finish_and_kill_the_child(world: World) -> Scene:
    (parent,), child = family(world)

    def check(told: Any, killed: Any) -> None:
        assert told == {}
        assert killed == 1
        assert world.state(child) == S.USER_KILLED

    return Scene(call(end(world.held(parent), parent)), lambda t: Jobs(t).where(id=child.id).kill(), check)


def promote_and(world: World, *transitions: State) -> Scene:
    parent = Job(command="p")
    world.jobs.add(parent)
    me = world.held(parent)
    batch = world.batch(Job(command="c", parents=[parent.id or 0]), Job(command="x"), publish=True)

    def check(promoted: Any, told: Any) -> None:
        worked(promoted)
        assert told == {}
        world.promote()
        assert world.jobs.where(command="c").states() == {S.FAILED if transitions else S.READY: 1}

    return Scene(call(calls.PromoteStagedInsert(staged_insert=batch)), call(end(me, parent, *transitions)), check)


def promote_and_finish(world: World) -> Scene:
    return promote_and(world)


def promote_and_fail(world: World) -> Scene:
    return promote_and(world, *FAIL)


def promote_and_kill(world: World) -> Scene:
    batch = world.batch(Job(command="p"), Job(command="c", parents=[-1]), publish=True)
    parent = next(iter(world.jobs))

    def check(promoted: Any, killed: Any) -> None:
        worked(promoted, killed)
        world.promote()
        assert world.jobs.states() == {S.USER_KILLED: 1, S.PARENT_KILLED: 1}

    return Scene(
        call(calls.PromoteStagedInsert(staged_insert=batch)), lambda t: Jobs(t).where(id=parent.id).kill(), check
    )


def promote_twice(world: World) -> Scene:
    batch = world.batch(*(Job(command="x") for _ in range(3)), publish=True)

    def check(*answers: Any) -> None:
        worked(*answers)
        world.promote()
        nothing_stays_held(world, 3)

    return Scene(call(calls.PromoteStagedInsert(staged_insert=batch)), call(calls.PromoteStagedInsert(limit=2)), check)


def retry_and(world: World, *transitions: State) -> Scene:
    (parent,), child = family(world)
    me = world.held(parent)
    world.jobs.where(id=child.id).kill()

    def check(retried: Any, told: Any) -> None:
        assert told == {}
        if isinstance(retried, BalsamError):
            assert transitions, retried
            assert isinstance(retried, Conflict), retried
            assert world.state(child) == S.USER_KILLED
        else:
            assert world.state(child) == (S.FAILED if transitions else S.READY)

    return Scene(lambda t: Jobs(t).where(id=child.id).retry(), call(end(me, parent, *transitions)), check)


def retry_and_finish(world: World) -> Scene:
    return retry_and(world)


def retry_and_fail(world: World) -> Scene:
    return retry_and(world, *FAIL)


def retry_twice(world: World) -> Scene:
    (parent,), child = family(world)
    world.jobs.where(id=parent.id).kill()

    def check(*answers: Any) -> None:
        worked(*answers)
        assert sum(answers) == 1
        assert [world.state(parent), world.state(child)] == [S.READY, S.AWAITING_PARENTS]

    return Scene(lambda t: Jobs(t).where(id=parent.id).retry(), lambda t: Jobs(t).where(id=parent.id).retry(), check)


def add_a_child_and(world: World, *transitions: State) -> Scene:
    parent = Job(command="p")
    world.jobs.add(parent)
    me = world.held(parent)

    def check(added: Any, told: Any) -> None:
        worked(added)
        assert told == {}
        assert world.jobs.get(added[0]).state == (S.FAILED if transitions else S.READY)

    return Scene(
        lambda t: Jobs(t).add(Job(command="c", parents=[parent.id or 0])), call(end(me, parent, *transitions)), check
    )


def add_a_child_and_finish(world: World) -> Scene:
    return add_a_child_and(world)


def add_a_child_and_fail(world: World) -> Scene:
    return add_a_child_and(world, *FAIL)


def add_a_child_and_remove(world: World) -> Scene:
    parent = Job(command="p")
    world.jobs.add(parent)

    def check(added: Any, removed: Any) -> None:
        if isinstance(added, BalsamError):
            assert isinstance(added, NotFound), added
            assert len(removed) == 1
        else:
            assert isinstance(removed, Conflict), removed
            assert world.jobs.get(added[0]).state == S.AWAITING_PARENTS

    adding = calls.AddJobs(jobs=[Job(command="c", parents=[parent.id or 0])])
    return Scene(lambda t: [t.run(adding).first_id], lambda t: Jobs(t).where(id=parent.id).remove(), check)


def depend_and(world: World, *transitions: State) -> Scene:
    parent, child = Job(command="p"), Job(command="c")
    world.jobs.add([parent, child])
    me = world.held(parent)

    def check(added: Any, told: Any) -> None:
        assert added is True
        assert told == {}
        if not transitions:
            assert world.state(child) == S.READY
        else:
            assert world.state(child) in {S.READY, S.FAILED}

    depending = call(calls.AddEdge(parent=parent.id or 0, child=child.id or 0))
    return Scene(depending, call(end(me, parent, *transitions)), check)


def depend_and_finish(world: World) -> Scene:
    return depend_and(world)


def depend_and_fail(world: World) -> Scene:
    return depend_and(world, *FAIL)


def depend_both_ways(world: World) -> Scene:
    one, other = world.jobs.add([Job(command="a"), Job(command="b")])

    def check(*answers: Any) -> None:
        assert sorted(isinstance(answer, InvalidInput) for answer in answers) == [False, True], answers

    return Scene(call(calls.AddEdge(parent=one, child=other)), call(calls.AddEdge(parent=other, child=one)), check)


def update_and(world: World, parent: Job, child: Job, other: Callable[[Transport], Any]) -> Scene:
    """A job gets another command and a parent, while something else happens to one of the two."""
    changed = Job(command="new", key="k", parents=[parent])

    def check(updated: Any, answer: Any) -> None:
        worked(answer)
        job = world.jobs.get(child.id or 0)
        if isinstance(updated, BalsamError):
            assert isinstance(updated, Conflict), updated
            assert "has started" in str(updated)
            assert (job.command, job.parents) == ("old", [])
        else:
            assert (job.command, job.parents) == ("new", [parent.id])
            assert job.state == (S.READY if world.state(parent) == S.JOB_FINISHED else S.AWAITING_PARENTS)

    return Scene(lambda t: Jobs(t).add(changed, if_exists="update"), other, check)


def parent_and_child(world: World) -> tuple[Job, Job]:
    two = Job(command="p"), Job(command="old", key="k")
    world.jobs.add(two)
    return two


def update_and_claim(world: World) -> Scene:
    parent, child = parent_and_child(world)
    me = world.run(register())
    claiming = calls.ClaimJobs(launcher=me, limit=1, resources=Resources(), only=[child.id or 0])
    return update_and(world, parent, child, call(claiming))


def update_and_finish(world: World) -> Scene:
    parent, child = parent_and_child(world)
    return update_and(world, parent, child, call(end(world.held(parent), parent)))


def update_and_depend(world: World) -> Scene:
    parent, child = parent_and_child(world)
    depending = calls.AddEdge(parent=parent.id or 0, child=child.id or 0)
    return update_and(world, parent, child, call(depending))


SCENES: list[Build] = [
    prune_and_publish,
    prune_a_part_and_publish,
    prune_and_go_on,
    prune_twice,
    take_over_and_publish,
    take_over_and_abandon,
    take_over_twice,
    same_key_in_two_batches,
    claim_and_reap,
    claim_of_given_and_reap,
    claim_and_close,
    renew_and_reap,
    start_and_reap,
    kill_and_reap,
    reap_twice,
    kill_and_claim,
    kill_and_end,
    fail_and_kill_the_child,
    two_parents_fail,
    one_parent_fails_and_one_is_killed,
    two_parents_finish,
    one_parent_finishes_and_one_fails,
    finish_and_kill_the_child,
    promote_and_finish,
    promote_and_fail,
    promote_and_kill,
    promote_twice,
    retry_and_finish,
    retry_and_fail,
    retry_twice,
    add_a_child_and_finish,
    add_a_child_and_fail,
    add_a_child_and_remove,
    depend_and_finish,
    depend_and_fail,
    depend_both_ways,
    update_and_claim,
    update_and_finish,
    update_and_depend,
]


@pytest.mark.parametrize("swapped", [False, True] if FULL else [False], ids=["", "swapped"] if FULL else [""])
@pytest.mark.parametrize("build", SCENES, ids=lambda build: build.__name__)
def test_at_once(world: World, build: Build, swapped: bool) -> None:
    world.play(build, swapped=swapped)


def test_many_add_overlapping_keys(module_db: DBDir, world: World) -> None:
    """Nobody gets an error, each key is one job, and all are told the same id."""
    together = threading.Barrier(ADDERS)
    told: dict[str, set[int]] = {}
    faults: list[BaseException] = []

    def add(number: int) -> None:
        try:
            with open_transport(module_db) as transport:
                for turn in range(TURNS):
                    keys = [f"{turn}-{(number * 7 + step * step) % 12}" for step in range(6)]
                    together.wait(DEADLINE)
                    ids = Jobs(transport).add([Job(command="x", key=key) for key in dict.fromkeys(keys)])
                    for key, one in zip(dict.fromkeys(keys), ids, strict=True):
                        told.setdefault(key, set()).add(one)
        except BaseException as err:  # noqa: BLE001
            faults.append(err)
            together.abort()

    threads = [threading.Thread(target=add, args=(number,)) for number in range(ADDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    errors = [error for error in faults if not isinstance(error, threading.BrokenBarrierError)]
    assert not errors, errors[0]
    assert all(len(ids) == 1 for ids in told.values())
    assert dict(world.jobs.where(Job.key.in_([*told])).rows("key", "id")) == {
        key: ids.pop() for key, ids in told.items()
    }
