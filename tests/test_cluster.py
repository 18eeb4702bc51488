"""`Cluster`: what it checks, and the counts that it proposes."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from eplb import Cluster, ClusterError
from eplb.cluster import check_shape, nearest_multiples


def test_fields() -> None:
    cluster = Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
    assert (cluster.num_gpus, cluster.num_nodes, cluster.slots_per_gpu) == (32, 4, 9)
    assert cluster.num_slots == 288
    assert cluster == Cluster.with_slots(288, num_gpus=32, num_nodes=4)
    assert hash(cluster) == hash(Cluster(32, 4, 9))
    assert cluster != Cluster(32, 2, 9)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cluster.num_gpus = 64  # type: ignore[misc]


def test_one_node_unless_told() -> None:
    assert Cluster(num_gpus=2, slots_per_gpu=3).num_nodes == 1
    assert Cluster.with_slots(6, 2).num_nodes == 1


def test_any_kind_of_whole_number_becomes_an_int() -> None:
    cluster = Cluster(np.int32(4), np.uint8(2), np.int64(3))
    for name in ("num_gpus", "num_nodes", "slots_per_gpu"):
        assert type(getattr(cluster, name)) is int
    assert [type(gpu) for gpu in cluster.without(np.array([1, 3])).dead] == [int, int]
    assert Cluster.with_slots(np.int64(12), np.int32(4), np.int8(2)) == cluster


def test_dead_gpus_keep_their_numbers_and_slots() -> None:
    cluster = Cluster(num_gpus=8, num_nodes=4, slots_per_gpu=3).without([6]).without((1, 6))
    assert (cluster.dead, cluster.alive) == ((1, 6), (0, 2, 3, 4, 5, 7))
    assert (cluster.num_gpus, cluster.num_slots, cluster.num_held) == (8, 24, 18)
    assert cluster.speeds == (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0)
    assert cluster == Cluster(8, 4, 3, dead=(6, 1)) != Cluster(8, 4, 3)
    healthy = Cluster(8, 4, 3)
    assert healthy.survivors is healthy
    assert healthy.speeds is None
    assert healthy.without([]) == healthy


@pytest.mark.parametrize(
    ("dead", "nodes"), [([1, 6], 1), ([0, 1], 3), ([1, 2, 5, 7], 4), ([0, 1, 2, 3, 4, 6], 2)]
)
def test_survivors_stay_on_nodes_where_each_has_as_many(dead: list[int], nodes: int) -> None:
    survivors = Cluster(num_gpus=8, num_nodes=4, slots_per_gpu=3).without(dead).survivors
    assert survivors == Cluster(8 - len(dead), nodes, 3)


@pytest.mark.parametrize(
    ("dead", "message"),
    [
        ([8], "a dead GPU is 8: give 0 to 7"),
        ([-1], "a dead GPU is -1: give 0 to 7"),
        ([1.0], "a dead GPU is 1.0: give a whole number, 0 to 7"),
        ("13", "dead GPUs are '13': give a list of their numbers"),
        (3, "dead GPUs are 3: give a list of their numbers"),
        (range(8), "all of 8 GPUs are dead: one at least must be alive"),
    ],
)
def test_gpus_that_cannot_be_dead(dead: Any, message: str) -> None:
    for die in (Cluster(8, 1, 3).without, lambda gpus: Cluster(8, 1, 3, gpus)):
        with pytest.raises(ClusterError) as raised:
            die(dead)
        assert str(raised.value) == message


def test_slots_that_the_living_lack() -> None:
    message = (
        "240 slots do not hold 256 experts: 16 slots are missing: give each of the 24 GPUs alive "
        "at least 11 slots, 352 in all, those of dead GPUs counted"
    )
    with pytest.raises(ClusterError) as raised:
        check_shape(256, Cluster(32, 4, 10).without(range(8)), 8)
    assert str(raised.value) == message


def test_gpus_of_different_slots_and_speeds() -> None:
    cluster = Cluster(4, 2, np.array([9, 4, 9, 16]), speed=[1, 0.5, np.float32(2.0), 1.0])
    assert (cluster.slots, cluster.slots_per_gpu) == ((9, 4, 9, 16), 16)
    assert (cluster.num_slots, cluster.num_held) == (64, 38)
    assert cluster.speeds == cluster.speed == (1.0, 0.5, 2.0, 1.0)
    assert not cluster.even
    assert cluster == dataclasses.replace(cluster)
    assert cluster == Cluster(4, 2, (9, 4, 9, 16), speed=(1.0, 0.5, 2.0, 1.0))
    alive = cluster.without([3])
    assert alive.capacity == (9, 4, 9, 0)
    assert alive.speeds == (1.0, 0.5, 2.0, 0.0)
    assert alive.survivors == Cluster(3, 1, [9, 4, 9], speed=[1.0, 0.5, 2.0])
    left = cluster.without([1, 3])
    assert not left.survivors.slots
    assert not left.even


def test_lists_that_say_nothing() -> None:
    """GPUs that are alike need no list; a speed of all is kept, as loads are judged by it."""
    assert Cluster(3, 1, [4, 4, 4], speed=[1.0, 1.0, 1.0]) == Cluster(3, 1, 4)
    fast = Cluster(2, 1, 4, speed=[2.0, 2.0])
    assert fast.even
    assert fast.speeds == (2.0, 2.0)


@pytest.mark.parametrize(
    ("slots", "speed", "message"),
    [
        ([4, 4], None, "slots_per_gpu has 2 numbers: give one for each of 3 GPUs"),
        ([4, 4, 0], None, "slots_per_gpu[2] is 0: give 1 or more"),
        ([4, 4.5, 4], None, "slots_per_gpu[1] is 4.5: give a whole number, 1 or more"),
        ([[4], [4], [4]], None, "slots_per_gpu[0] is [4]: give a whole number, 1 or more"),
        ("444", None, "slots_per_gpu is '444': give a whole number, 1 or more"),
        (4, [1.0, 1.0], "speed has 2 numbers: give one for each of 3 GPUs"),
        (4, [1.0, 0.0, 1.0], "speed[1] is 0.0: give above 0"),
        (4, [1.0, -2.0, 1.0], "speed[1] is -2.0: give above 0"),
        (4, [1.0, 1.0, float("nan")], "speed[2] is nan: give above 0"),
        (4, [float("inf"), 1.0, 1.0], "speed[0] is inf: give above 0"),
        (4, 2.0, "speed is 2.0: give a number for each of 3 GPUs"),
        (
            4,
            [1.0, 1e-7, 1.0],
            "speeds are from 1e-07 to 1: give none that is more than 1,000,000 times another",
        ),
    ],
)
def test_lists_of_no_cluster(slots: Any, speed: Any, message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        Cluster(3, 1, slots, speed=speed)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 1, 2), "num_gpus is 0: give 1 or more"),
        ((-4, 1, 2), "num_gpus is -4: give 1 or more"),
        ((4, 0, 2), "num_nodes is 0: give 1 or more"),
        ((4, 1, 0), "slots_per_gpu is 0: give 1 or more"),
        ((4, 1), "slots_per_gpu is 0: give 1 or more"),
        ((4.0, 1, 2), "num_gpus is 4.0: give a whole number, 1 or more"),
        (("4", 1, 2), "num_gpus is '4': give a whole number, 1 or more"),
        ((4, None, 2), "num_nodes is None: give a whole number, 1 or more"),
        ((6, 4, 2), "6 GPUs do not divide over 4 nodes: 4 or 8 GPUs would"),
        ((2, 4, 2), "2 GPUs do not divide over 4 nodes: 4 GPUs would"),
    ],
)
def test_numbers_that_no_cluster_has(fields: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        Cluster(*fields)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((290, 32), "290 slots do not divide over 32 GPUs: 288 or 320 slots would"),
        ((3, 32), "3 slots do not divide over 32 GPUs: 32 slots would"),
        ((0, 32), "the number of slots is 0: give 1 or more"),
        ((-32, 32), "the number of slots is -32: give 1 or more"),
        ((64, 0), "num_gpus is 0: give 1 or more"),
        ((64, 32, 5), "32 GPUs do not divide over 5 nodes: 30 or 35 GPUs would"),
        ((64, 32, 0), "num_nodes is 0: give 1 or more"),
        ((64.0, 32), "the number of slots is 64.0: give a whole number, 1 or more"),
        ((64, "32"), "num_gpus is '32': give a whole number, 1 or more"),
    ],
)
def test_slots_that_do_not_divide(numbers: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        Cluster.with_slots(*numbers)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("value", "divisor", "text"),
    [(290, 32, "288 or 320"), (31, 32, "32"), (33, 32, "32 or 64"), (1, 2, "2")],
)
def test_nearest_multiples(value: int, divisor: int, text: str) -> None:
    assert nearest_multiples(value, divisor) == text


@pytest.mark.parametrize(
    ("slots", "gpus", "experts", "text"),
    [
        (256, 3, 256, "258"),
        (160, 24, 160, "168"),
        (257, 8, 257, "264"),
        (100, 24, 160, "168"),
        (290, 32, 256, "288 or 320"),
    ],
)
def test_suggested_slots_hold_the_experts(slots: int, gpus: int, experts: int, text: str) -> None:
    with pytest.raises(ClusterError, match=f"GPUs: {text} slots would$"):
        Cluster.with_slots(slots, gpus, num_experts=experts)
    for suggested in text.split(" or "):
        cluster = Cluster.with_slots(int(suggested), gpus, num_experts=experts)
        assert check_shape(experts, cluster, 1) == 1
