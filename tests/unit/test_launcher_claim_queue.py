"""Claims are the larger the shorter the jobs are, and the end is found without asking for ever."""

from __future__ import annotations

import pytest

from balsam_core.launcher import claim_queue as module
from balsam_core.launcher.claim_queue import ClaimQueue
from balsam_core.launcher.counters import Counters
from balsam_core.launcher.job.claimed_job import LauncherContext
from balsam_core.launcher.options import LARGEST_CLAIM, LauncherOptions
from balsam_core.launcher.placement import Need, Node
from balsam_core.model.app import App
from balsam_core.model.calls import (
    Claim,
    ClaimJobs,
    CountHeldByOthers,
    GetDelay,
    HasClaimable,
    ParentRef,
    Resources,
)
from balsam_core.model.job import Job

SLOTS = 4


class Store:
    """Gives numbered jobs as long as there are some."""

    def __init__(self, jobs, **settings):
        self.settings = settings
        self.left = jobs
        self.given = 0
        self.claims = []
        self.delay = None
        self.others = 0
        self.of_only = 0

    def __call__(self, call):
        if isinstance(call, CountHeldByOthers):
            return self.others if call.only is None else self.of_only
        if isinstance(call, GetDelay):
            return self.delay
        if isinstance(call, HasClaimable):
            return self.left > 0
        assert isinstance(call, ClaimJobs)
        self.claims.append(call)
        count = min(call.limit // self.settings.get("threads_per_rank", 1), self.left)
        self.left -= count
        first = self.given + 1
        self.given += count
        return Claim(jobs=[Job(id=first + place, command="true", attempt=1, **self.settings) for place in range(count)])


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def make_queue(store, **options):
    context = LauncherContext(directory=None, environment={}, counters=Counters())
    return ClaimQueue(store, 1, LauncherOptions(slots=SLOTS, **options), context, Resources, Node(range(SLOTS)))


def drain(queue, clock, *, seconds_per_job, total):
    """Run jobs that take so long, all slots at once; return the claims' sizes."""
    sizes = []
    free, done = SLOTS, 0
    while done < total:
        if wanted := queue.wanted(free):
            sizes.append(queue.claim(wanted))
        running = 0
        while queue.jobs and running < SLOTS:
            queue.jobs.popleft()
            running += 1
        done += running
        if wanted := queue.wanted(0):  # while they run
            sizes.append(queue.claim(wanted))
        clock.now += seconds_per_job
    return sizes


def test_short_jobs_are_claimed_by_the_hundred(clock):
    store = Store(10_000)
    sizes = drain(make_queue(store), clock, seconds_per_job=0.001, total=5_000)
    assert max(sizes) > 100
    assert max(sizes) <= LARGEST_CLAIM
    assert len(sizes) < 60


def test_long_jobs_are_not_kept_from_others(clock):
    queue = make_queue(Store(1_000))
    sizes = drain(queue, clock, seconds_per_job=60.0, total=40)
    assert max(sizes) <= SLOTS
    assert len(queue.jobs) == 0


def test_long_jobs_that_happen_to_end_together_are_not_taken_for_short_ones(clock):
    store = Store(1_000)
    queue = make_queue(store)
    queue.claim(queue.wanted(SLOTS))
    queue.jobs.clear()
    clock.now += 3600.0
    for _ in range(SLOTS):
        queue.claim(queue.wanted(1))
        assert len(queue.jobs) == 1
        queue.jobs.clear()
        clock.now += 0.1


def test_claims_shrink_when_jobs_become_long(clock):
    queue = make_queue(Store(100_000))
    drain(queue, clock, seconds_per_job=0.001, total=3_000)
    queue.jobs.clear()
    drain(queue, clock, seconds_per_job=10.0, total=2_000)
    assert len(queue.jobs) == 0


def test_nothing_is_claimed_while_all_slots_are_taken(clock):
    queue = make_queue(Store(100))
    assert queue.wanted(SLOTS) == SLOTS
    queue.claim(SLOTS)
    queue.jobs.clear()
    assert queue.wanted(0) == 0


@pytest.mark.parametrize(
    ("settings", "waiting", "wanted"),
    [({}, 3, 1), ({"threads_per_rank": 2}, 1, 2), ({"node_packing_count": 4}, 4, 4)],
)
def test_what_waits_is_counted_in_slots_without_packed_jobs(clock, settings, waiting, wanted):
    queue = make_queue(Store(100, **settings))
    queue.claim(SLOTS)
    while len(queue.jobs) > waiting:
        queue.jobs.popleft()
    assert queue.wanted(SLOTS) == wanted


def test_an_empty_database_is_asked_less_and_less(clock):
    store = Store(0)
    queue = make_queue(store)
    for _ in range(1_000):
        if wanted := queue.wanted(SLOTS):
            queue.claim(wanted)
        clock.now += 0.01
    assert 8 < len(store.claims) < 30
    queue.poll_soon()
    assert queue.wanted(SLOTS)


def test_a_look_tells_whether_there_are_jobs_and_claims_none(clock):
    store = Store(SLOTS)
    queue = make_queue(store)
    queue.look()
    assert (queue.next_need, queue.dry, store.claims) == (Need(), False, [])
    queue.claim(SLOTS)
    assert queue.next_need is None
    queue.look()  # too early
    assert (queue.next_need, queue.dry) == (None, False)
    clock.now += 1.0
    queue.look()
    assert (queue.next_need, queue.dry) == (None, True)


def test_listed_jobs_are_asked_for_in_slices(clock):
    store = Store(0)
    queue = make_queue(store, only=tuple(range(1, 4502)), workflow="w")
    queue.claim(SLOTS)
    assert [len(call.only) for call in store.claims] == [2000, 2000, 501]
    assert {call.workflow for call in store.claims} == {"w"}


def test_the_end_is_when_nothing_can_come(clock):
    store = Store(0)
    assert not make_queue(store).more_may_come()
    store.others = 1
    assert make_queue(store).more_may_come()
    assert not make_queue(store, only=(1, 2)).more_may_come()
    store.of_only = 1
    assert make_queue(store, only=(1, 2)).more_may_come()
    store.others, store.of_only, store.delay = 0, 0, 3600.0
    queue = make_queue(store)
    assert queue.more_may_come()
    assert queue.waits_for.startswith("waiting for a retry at ")
    assert make_queue(store, only=(1, 2)).more_may_come()


def test_paused_jobs_go_on_first_once_they_are_on_record(clock):
    queue = make_queue(Store(3))
    queue.claim(3)
    first, second = queue.jobs.popleft(), queue.jobs.popleft()
    for claimed in (first, second):
        claimed.paused = True
        queue.paused[claimed.id] = claimed
    queue.resume({second.id})
    assert ([job.id for job in queue.jobs], [*queue.paused]) == ([first.id, 3], [second.id])
    assert not first.paused
    queue.resume(())
    assert [job.id for job in queue.jobs] == [second.id, first.id, 3]


def test_a_claimed_job_gets_its_app_and_its_parents(clock):
    app = App("sim", "sim.x")
    parent = ParentRef(1, "w", "p", "")
    claim = Claim(
        jobs=[Job(id=2, app="sim", parents=[1]), Job(id=3, command="true")],
        apps={"sim": app},
        parents={1: parent},
    )
    queue = make_queue(lambda _: claim)
    queue.claim(2)
    first, second = queue.jobs
    assert (first._app, first._parents) == (app, [parent])
    assert (second._app, second._parents) == (None, [])
    assert queue.withdraw(2) is first
    assert queue.withdraw(2) is None
    assert list(queue.jobs) == [second]
