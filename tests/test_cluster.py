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
    for field in dataclasses.fields(cluster):
        assert type(getattr(cluster, field.name)) is int
    assert Cluster.with_slots(np.int64(12), np.int32(4), np.int8(2)) == cluster


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
