"""Placing jobs on a node: nothing is given twice, and everything comes back."""

from __future__ import annotations

import random

import pytest

from balsam_core.launcher.placement import Need, Node
from balsam_core.model.job import Job


def test_each_job_gets_processors_of_its_own_and_neighbours():
    node = Node([4, 5, 6, 7])
    two, one = node.take(Need(cores_per_rank=2)), node.take(Need())
    assert (two.cores, one.cores, node.free_slots) == ((4, 5), (6,), 1)
    assert node.take(Need(ranks=2)) is None
    node.give_back(two)
    assert node.free_slots == 3
    last = node.take(Need())
    assert last.cores == (4,)
    node.give_back(one)  # 5, 6, 7 are free
    assert node.take(Need(cores_per_rank=3)).cores == (5, 6, 7)


def test_a_job_of_more_threads_than_the_node_has_gets_all_of_it():
    node = Node([0, 1])
    assert node.take(Need(cores_per_rank=64)).cores == (0, 1)
    assert node.free_slots == 0


def test_more_slots_than_processors_share_them():
    node = Node([0, 1], slots=5)
    places = [node.take(Need()) for _ in range(5)]
    assert [place.cores for place in places] == [(0,), (1,), (0,), (1,), (0,)]
    assert node.take(Need()) is None


def test_fewer_slots_than_processors():
    node = Node([0, 1, 2, 3], slots=2)
    assert node.take(Need(ranks=4)).cores == (0, 1)


def test_no_more_jobs_than_allowed():
    node = Node([0, 1, 2, 3], most_jobs=1)
    place = node.take(Need())
    assert node.free_slots == 0
    assert node.take(Need()) is None
    node.give_back(place)
    assert node.free_slots == 4


@pytest.mark.parametrize("packing", [1, 2, 3, 7])
def test_the_packing_count_limits_jobs_of_its_kind(packing):
    node = Node(range(10))
    places = [node.take(Need(packing=packing)) for _ in range(packing)]
    assert None not in places
    assert node.take(Need(packing=packing)) is None
    assert node.take(Need()) is not None  # others may run beside them
    node.give_back(places[0])
    assert node.take(Need(packing=packing)) is not None


def test_whole_gpus_belong_to_one_job():
    node = Node(range(8), gpus=["0", "1", "GPU-3f"])
    assert node.take(Need(ranks=2, gpus_per_rank=1)).gpus == ("0", "1")
    assert node.take(Need(gpus_per_rank=2)) is None
    assert node.take(Need(gpus_per_rank=1)).gpus == ("GPU-3f",)
    assert node.take(Need(gpus_per_rank=0.1)) is None
    assert node.free_slots == 5


def test_parts_of_gpus_are_shared_and_fill_one_before_the_next():
    node = Node(range(20), gpus=["0", "1"])
    thirds = [node.take(Need(gpus_per_rank=1 / 3)) for _ in range(6)]
    assert [place.gpus for place in thirds] == [("0",)] * 3 + [("1",)] * 3
    assert node.take(Need(gpus_per_rank=0.01)) is None
    for place in thirds:
        node.give_back(place)
    assert node.take(Need(ranks=4, gpus_per_rank=0.5)).gpus == ("0", "1")


def test_a_rank_has_its_part_on_one_gpu():
    node = Node(range(20), gpus=["0", "1"])
    assert node.take(Need(gpus_per_rank=0.6)).gpus == ("0",)
    assert node.take(Need(gpus_per_rank=0.6)).gpus == ("1",)
    assert node.take(Need(gpus_per_rank=0.6)) is None  # 0.4 and 0.4 are free


def test_parts_that_fit_only_across_gpus_take_whole_ones():
    node = Node(range(20), gpus=["0", "1"])
    place = node.take(Need(ranks=3, gpus_per_rank=0.6))
    assert place.gpus == ("0", "1")
    assert node.take(Need(gpus_per_rank=0.1)) is None


def test_what_a_job_needs():
    job = Job(command="a", ranks_per_node=3, threads_per_rank=5, threads_per_core=2, gpus_per_rank=0.5)
    assert Need.of(job) == Need(ranks=3, cores_per_rank=3, gpus_per_rank=0.5, packing=job.node_packing_count)


def test_nothing_is_given_twice_in_any_order():
    rng = random.Random(20261128)
    node = Node(range(100, 116), gpus=["a", "b", "c"])
    places = []
    for _ in range(5000):
        if places and rng.random() < 0.5:
            node.give_back(places.pop(rng.randrange(len(places))))
        else:
            gpus = rng.choice([0, 0, 0.25, 1 / 3, 1, 2])
            place = node.take(Need(rng.randint(1, 3), rng.randint(1, 4), gpus, rng.choice([0, 0, 3])))
            places += [place] if place else []
        cores = [core for place in places for core in place.cores]
        assert len(cores) == len(set(cores)) == 16 - node.free_slots
        for at in range(3):
            assert sum(part for place in places for gpu, part in place.gpu_shares if gpu == at) < 1 + 1e-5
    for place in places:
        node.give_back(place)
    assert node.take(Need(12, 1, 0.25)).gpus == ("a", "b", "c")
