"""Launchers that share processors: none is used twice or idle while jobs wait, and each launcher gets its part."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import subprocess
import sys
from dataclasses import replace
from math import inf
from types import SimpleNamespace

import pytest

from balsam_core.launcher import sharing as module
from balsam_core.launcher.placement import Need, Node
from balsam_core.launcher.processes import Processes
from balsam_core.launcher.sharing import (
    FRESH,
    KEEP,
    LOOK_EVERY,
    PATIENCE,
    Limits,
    Row,
    as_set,
    limits,
    share_gpus,
    share_processors,
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BALSAM_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def share():
    """Make nodes with shared processors."""
    made = []

    def make(cores, name="launcher"):
        made.append(Node(cores, shared=share_processors(cores, name)))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def gpu_node():
    """Make nodes of eight processors with shared GPUs."""
    made = []

    def make(gpus):
        made.append(Node(range(8), gpus=gpus, shared_gpus=share_gpus(gpus, "launcher")))
        return made[-1]

    yield make
    for node in made:
        node.close()


@pytest.fixture
def clock(monkeypatch):
    """The time, which only the test changes."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(module, "monotonic", lambda: clock.now)
    return clock


# ---- what two launchers do to each other


def test_what_one_has_is_not_for_the_other(share):
    one, other = share([0, 1, 2, 3]), share([2, 3, 4])
    place = one.take(Need(cores_per_rank=3))
    one.look_around(None)
    other.look_around(None)
    assert (place.cores, other.free_slots) == ((0, 1, 2), 2)
    assert other.take(Need(cores_per_rank=3)) is None
    assert other.take(Need(cores_per_rank=2)).cores == (3, 4)
    assert one.free_slots == 1  # not seen yet
    assert one.take(Need()) is None
    assert one.is_crowded_out
    one.give_back(place)
    assert one.free_slots == 3


def test_another_processor_is_tried_where_one_has_just_been_taken(share):
    one, other = share([0, 1, 2]), share([0, 1, 2])
    one.take(Need())
    assert other.take(Need()).cores == (1,)


def test_a_job_gets_all_that_it_needs_or_nothing(share):
    one, other = share([0, 1]), share([1])
    other.take(Need())
    assert one.take(Need(cores_per_rank=2)) is None
    assert share([0]).take(Need()).cores == (0,)


def test_one_that_wants_nothing_keeps_nothing_from_others(share, clock):
    one, _idle = share([0, 1]), share([0, 1])
    for _ in range(3):
        one.look_around(Need())
        clock.now += 60
    assert one.take(Need(cores_per_rank=2)).cores == (0, 1)


def test_one_with_much_work_goes_down_to_its_share_when_another_comes(share, clock):
    one, other = share(range(4), "one"), share(range(4), "other")
    places = [one.take(Need()) for _ in range(4)]
    one.look_around(Need())
    assert not one.waits  # all are its own
    for _ in range(2):
        other.look_around(Need())
    assert other.waits_for == "waiting for processors that are used by one"
    for _ in range(2):
        one.give_back(places.pop())
        one.look_around(Need())
        assert one.take(Need()) is None
        other.look_around(Need())
        assert other.take(Need())
    one.give_back(places.pop())
    other.look_around(Need())
    assert other.take(Need()) is None
    one.look_around(Need())
    assert one.take(Need())


def test_launchers_with_other_processors_do_not_care(share, clock):
    mine, one, other = share([4, 5, 6, 7]), share([0, 1]), share([0, 1])
    one.take(Need(cores_per_rank=2))
    one.look_around(None)
    for _ in range(3):
        other.look_around(Need())
        clock.now += 2 * PATIENCE
    mine.look_around(None)
    assert other.waits
    assert mine.take(Need(cores_per_rank=4))


def test_a_stopped_launcher_loses_its_turn_but_not_its_processors(share, clock):
    stopped, other = share(range(4)), share(range(4))
    stopped.take(Need())
    other.take(Need())
    other.look_around(None)
    for _ in range(2):
        stopped.look_around(Need(cores_per_rank=3))
    clock.now += PATIENCE
    other.look_around(Need())
    assert (stopped.waits, other.free_slots) == (True, 0)
    clock.now += FRESH
    other.look_around(Need())
    assert other.take(Need(cores_per_rank=2)).cores == (2, 3)
    assert other.free_slots == 0


def test_gpus_are_shared_too(gpu_node, clock):
    one, other = gpu_node(["0", "GPU-7a"]), gpu_node(["0", "GPU-7a"])
    halves = [one.take(Need(gpus_per_rank=0.5)) for _ in range(2)]
    one.look_around(None)
    other.look_around(None)
    assert (other.free_gpus, other.own_free_gpus, one.free_gpus) == (1, 2, 1)
    assert other.take(Need(gpus_per_rank=2)) is None
    assert other.take(Need(gpus_per_rank=1)).gpus == ("GPU-7a",)
    assert other.take(Need(gpus_per_rank=0.25)) is None
    one.give_back(halves[0])
    assert one.take(Need(gpus_per_rank=1)) is None
    assert one.take(Need(gpus_per_rank=0.5)).gpus == ("0",)
    assert one.take(Need()).gpus == ()


def test_one_that_waits_for_a_gpu_has_its_turn_and_keeps_no_processors(gpu_node, clock):
    one, other = gpu_node(["0"]), gpu_node(["0"])
    place = one.take(Need(gpus_per_rank=1))
    one.look_around(Need())
    for _ in range(2):
        other.look_around(Need(gpus_per_rank=1))
    assert other.waits_for.startswith("waiting for GPUs")
    clock.now += PATIENCE
    one.give_back(place)
    one.look_around(Need(gpus_per_rank=1))
    assert one.take(Need(gpus_per_rank=1)) is None
    assert one.take(Need())
    other.look_around(Need(gpus_per_rank=1))
    assert other.take(Need(gpus_per_rank=1)).gpus == ("0",)


def row(held, waits_since=0.0, usable=range(4)):
    return Row(100.0, waits_since, as_set(held), as_set(usable))


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (row([0]), [], Limits()),
        (row([0]), [row([1, 2])], Limits(busy=0b110)),
        (row([0]), [row([1, 2], 99.9)], Limits(0b110, 2)),
        (row([0]), [row([1], 99.9), row([2]), row([])], Limits(0b110, 2)),
        (row([0]), [row([1], 90.0)], Limits(0b1111, 2)),  # the other's turn
        (row([0]), [row([1, 2], 90.0)], Limits(0b110, 2)),  # it has its share
        (row([0], 80.0), [row([1], 90.0)], Limits(0b10, 2, has_turn=True)),
        (row([0], 90.0), [row([1], 80.0)], Limits(0b1111, 2)),
        (row([0]), [row([5], 90.0, usable=[5, 6])], Limits(0b100000)),  # other processors
        (row([0]), [row([3], 90.0, usable=[3, 4, 5])], Limits(0b111000, 2)),  # some of its processors are ours
        (row([0]), [replace(row([1], 90.0), told_at=100.0 - FRESH)], Limits(0b10)),
        (row([0]), [replace(row([1], 90.0), told_at=100.0 + FRESH)], Limits(0b10)),
    ],
)
def test_the_rules(own, others, expected):
    assert limits(own, others, 100.0) == expected


def test_one_that_has_just_got_a_processor_keeps_it_for_a_moment():
    others = [row([1], 90.0)]
    assert limits(row([0]), others, 100.0, 100.0 - KEEP / 2) == Limits(0b10, 2)
    assert limits(row([0]), others, 100.0, 100.0 - KEEP) == Limits(0b1111, 2)


def test_a_row_is_what_was_written():
    one = replace(row([0, 3], 1.5, usable=range(8192)), name="launcher 1 of /tmp/é")
    assert Row.unpack(one.pack()) == one


# ---- launchers that run for a while


class Simulated:
    """A launcher with an endless queue of jobs, each so many processors and seconds."""

    def __init__(self, node, jobs):
        self.node = node
        self.jobs = iter(jobs)
        self.first = next(self.jobs)
        self.first_since = None
        self.running = []
        self.used = 0.0  # processor seconds
        self.longest_wait = 0.0

    def turn(self, now):
        """Do what the loop does; return when to do it again."""
        self.first_since = self.first_since or now
        while self.running and self.running[0][0] <= now:
            self.node.give_back(heapq.heappop(self.running)[2])
        self.node.look_around(Need(cores_per_rank=self.first[0]) if self.first else None)
        while self.first and (place := self.node.take(Need(cores_per_rank=self.first[0]))):
            slots, seconds = self.first
            heapq.heappush(self.running, (now + seconds, id(place), place))
            self.used += slots * seconds
            self.longest_wait = max(self.longest_wait, now - self.first_since)
            self.first = next(self.jobs, None)
            self.first_since = now
        due = [self.running[0][0]] if self.running else []
        return min([*due, now + LOOK_EVERY] if self.node.waits or not due else due)

    def cores(self):
        return [core for *_, place in self.running for core in place.cores]


def run(clock, launchers, seconds):
    """Let launchers run, the second and later ones from the fifth second on; return the processor seconds in use."""
    start = clock.now
    due = [(start + 5.0 * (at > 0), at) for at in range(len(launchers))]
    used = 0.0
    while due[0][0] < start + seconds:
        now, at = heapq.heappop(due)
        used += (now - clock.now) * sum(len(one.cores()) for one in launchers)
        clock.now = now
        # What ends at the same moment has ended.
        heapq.heappush(due, (max(launchers[at].turn(now), now + 0.001), at))
        cores = [core for one in launchers for core in one.cores()]
        assert len(cores) == len(set(cores))
    return used


def short(seconds=0.05, slots=1):
    return itertools.repeat((slots, seconds))


@pytest.mark.parametrize(
    ("processors", "jobs"),
    [
        (2, [short(), short()]),
        (4, [short(3.0), short(0.05)]),
        (4, [short(30.0), short(1.0), short(1.0)]),
        (3, [short(), short()]),
        (2, [short(0.5)] * 5),
        (2, [short()] * 3),
        (8, [short(2.0, slots=8), short(0.5)]),
        (4, [short(1.0, slots=3), short(1.0, slots=3)]),
    ],
    ids=str,
)
def test_each_launcher_gets_its_part(processors, jobs, share, clock):
    launchers = [Simulated(share(range(processors), str(at)), one) for at, one in enumerate(jobs)]
    seconds = 600
    used = run(clock, launchers, seconds)
    parts = [one.used / sum(one.used for one in launchers) for one in launchers]
    are_small = all(next(one)[0] == 1 for one in jobs)
    assert min(parts) > (0.5 if are_small else 0.4) / len(jobs), parts
    assert used / (processors * seconds) > (0.85 if are_small else 0.5), used / (processors * seconds)


def test_a_job_of_the_whole_node_waits_no_longer_than_for_the_longest_job_that_runs(share, clock):
    rng = random.Random(20261128)
    many = Simulated(share(range(8)), ((rng.randint(1, 3), rng.choice([0.1, 1.0, 7.0])) for _ in itertools.count()))
    whole = Simulated(share(range(8)), short(1.0, slots=8))
    run(clock, [many, whole], 1000)
    assert whole.longest_wait < 7.0 + KEEP + PATIENCE + 2.0
    assert many.used > 1000


def test_one_job_at_a_time_leaves_the_rest_to_others(share, clock):
    one = Simulated(share(range(4)), itertools.chain([(1, 1000.0)], []))
    rest = Simulated(share(range(4)), short(0.5))
    run(clock, [one, rest], 100)
    assert rest.used > 0.9 * 3 * 95


# ---- locks and files


HOLD = """
import sys, time
from balsam_core.launcher.placement import Need, Node
from balsam_core.launcher.sharing import share_processors
node = Node([0, 1], shared=share_processors([0, 1], "child"))
node.take(Need())
node.look_around(None)
print("ready", flush=True)
time.sleep(600)
"""


def test_the_processors_of_a_killed_process_are_free(share):
    node = share([0, 1])
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        node.look_around(None)
        assert node.free_slots == 1
        child.kill()
    node.look_around(None)
    assert node.free_slots == 2


def test_the_guardian_keeps_them_until_all_have_ended(share):
    held = share_processors([0, 1], "one")
    assert held.take([0])
    processes = Processes(locks=[held.descriptor])
    processes.start_guardian()
    held.close()
    other = share([0, 1])
    assert other.take(Need(cores_per_rank=2)) is None
    processes.close()
    other.look_around(None)
    assert other.take(Need(cores_per_rank=2))


def test_rows_are_used_again(folder):
    for _ in range(3):
        share_processors([0], "one").close()
    (file,) = folder.iterdir()
    assert file.stat().st_size == module._ROW.size


@pytest.mark.parametrize("kind", ["link", "open to others", "file", "missing parent", "on the network"])
def test_an_unsafe_directory_is_not_used(kind, folder, caplog, monkeypatch):
    if kind == "link":
        folder.symlink_to(folder.parent)
    elif kind == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif kind == "file":
        folder.touch()
    elif kind == "on the network":
        monkeypatch.setattr(module, "is_network", lambda _: True)
    else:
        monkeypatch.setenv("BALSAM_RUNTIME_DIR", str(folder / "there" / "is none"))
    with caplog.at_level(logging.WARNING):
        assert share_processors([0], "one") is None
    (line,) = caplog.messages
    assert line.startswith(f"processors are not shared with this user's other launchers: {folder}")


def test_alone_nothing_limits(share):
    node = share([0, 1])
    node.look_around(Need())
    assert (node.free_slots, node.waits, node._shared.allowance) == (2, False, inf)
