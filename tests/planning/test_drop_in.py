"""`rebalance_experts`: DeepSeek's signature, shapes and meaning, in the kind that was given."""

import inspect
from typing import Any

import naive
import numpy as np
import pytest
from numpy.typing import NDArray

from eplb import (
    Cluster,
    ClusterError,
    LoadsError,
    OptionError,
    Placement,
    PlacementError,
    plan,
    rebalance_experts,
)

WEIGHT = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
)
POLICIES = {"hierarchical": (16, 4, 2, 8), "global": (16, 3, 2, 8), "no spare": (12, 4, 2, 4)}


def test_signature_is_deepseeks() -> None:
    parameters = inspect.signature(rebalance_experts).parameters
    names = ["weight", "num_replicas", "num_groups", "num_nodes", "num_gpus"]
    assert list(parameters)[:5] == names
    # What is more is asked for by name, and nothing where it is not.
    for parameter in list(parameters.values())[5:]:
        assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, None)


def test_it_starts_from_what_runs() -> None:
    current, _, _ = rebalance_experts(WEIGHT, 16, 1, 2, 8)
    changed = WEIGHT[:, ::-1]
    moved, log2phy, logcnt = rebalance_experts(changed, 16, 1, 2, 8, current=current, max_moves=5)
    cluster = Cluster.with_slots(16, 8, 2)
    running = Placement(current, 12, cluster)
    made = plan(changed, cluster, current=running, max_moves=5)
    assert np.array_equal(moved, made.placement.phy2log)
    assert np.array_equal(logcnt, made.placement.logcnt)
    assert log2phy.shape == (3, 12, 5)
    assert 0 < Placement(moved, 12, cluster).moves_from(running) <= 5
    with pytest.raises(PlacementError, match="slots in a layer"):
        rebalance_experts(WEIGHT, 16, 1, 2, 8, current=current[:, :-1])
    with pytest.raises(OptionError, match="max_moves"):
        rebalance_experts(WEIGHT, 16, 1, 2, 8, max_moves=5)


@pytest.mark.parametrize("policy", POLICIES)
def test_maps_mean_what_deepseeks_do(policy: str) -> None:
    num_replicas, num_groups, num_nodes, num_gpus = POLICIES[policy]
    phy2log, log2phy, logcnt = rebalance_experts(
        WEIGHT,
        num_replicas=num_replicas,
        num_groups=num_groups,
        num_nodes=num_nodes,
        num_gpus=num_gpus,
    )
    width = num_replicas - 12 + 1
    assert phy2log.shape == (3, num_replicas)
    assert log2phy.shape == (3, 12, width)
    assert logcnt.shape == (3, 12)
    for slots, of_expert, counts in zip(
        phy2log.tolist(), log2phy.tolist(), logcnt.tolist(), strict=True
    ):
        assert naive.log2phy(slots, 12, width) == of_expert
        assert naive.logcnt(slots, 12) == counts
        assert min(counts) >= 1
        assert naive.num_duplicates(slots, num_gpus) == 0
    cluster = Cluster.with_slots(num_replicas, num_gpus, num_nodes)
    made = plan(WEIGHT, cluster, num_groups=num_groups)
    assert np.array_equal(made.placement.phy2log, phy2log)


@pytest.mark.parametrize(("num_groups", "num_nodes"), [(0, 2), (None, 2), (0, 1), (5, 2), (7, 4)])
def test_groups_that_nodes_do_not_divide_mean_nothing(
    num_groups: int | None, num_nodes: int
) -> None:
    given = rebalance_experts(WEIGHT, 16, num_groups, num_nodes, 8)
    for one, other in zip(given, rebalance_experts(WEIGHT, 16, 1, num_nodes, 8), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("num_groups", [-1, 1.5, "many"])
def test_what_is_no_number_of_groups_is_named(num_groups: Any) -> None:
    with pytest.raises(ClusterError, match="num_groups"):
        rebalance_experts(WEIGHT, 16, num_groups, 2, 8)


def test_groups_stay_on_a_node_where_nodes_divide_them() -> None:
    phy2log, _, _ = rebalance_experts(WEIGHT, *POLICIES["hierarchical"])
    for slots in phy2log:
        on_nodes = [set(node) for node in (slots // 3).reshape(2, 8).tolist()]
        assert [len(groups) for groups in on_nodes] == [2, 2]
        assert not on_nodes[0] & on_nodes[1]


@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT.tolist(), WEIGHT.astype(np.float32)])
def test_arrays_come_back_as_arrays_that_the_caller_owns(weight: Any) -> None:
    maps: tuple[NDArray[np.int64], ...] = rebalance_experts(weight, *POLICIES["hierarchical"])
    for made in maps:
        assert type(made) is np.ndarray
        assert made.dtype == np.int64
        made[...] = 7
    again = rebalance_experts(weight, *POLICIES["hierarchical"])
    assert not any((made == 7).all() for made in again)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32", "int64"])
def test_tensors_come_back_as_tensors_that_the_caller_owns(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    weight = torch.tensor(WEIGHT, dtype=getattr(torch, dtype))
    maps = rebalance_experts(weight, *POLICIES["hierarchical"])
    expected = rebalance_experts(WEIGHT, *POLICIES["hierarchical"])
    for made, array in zip(maps, expected, strict=True):
        assert isinstance(made, torch.Tensor)
        assert made.dtype == torch.int64
        assert made.device.type == "cpu"
        assert made.is_contiguous()
        assert np.array_equal(made.numpy(), array)
        made.fill_(7)


def test_tensor_of_a_graph() -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    weight = torch.tensor(WEIGHT, dtype=torch.float32, requires_grad=True).T.contiguous().T
    phy2log, _, _ = rebalance_experts(weight, *POLICIES["global"])
    assert not phy2log.requires_grad
    assert np.array_equal(phy2log.numpy(), rebalance_experts(WEIGHT, *POLICIES["global"])[0])


def test_more_slots_on_a_gpu_than_experts() -> None:
    """Unavoidable second copies: as many slots of an expert as X allows must still be told."""
    phy2log, log2phy, logcnt = rebalance_experts([[3.0, 1.0]], 8, 1, 1, 2)
    assert log2phy.shape == (1, 2, 7)
    assert naive.log2phy(phy2log[0].tolist(), 2, 7) == log2phy[0].tolist()
    assert logcnt.sum() == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((14, 4, 2, 8), "14 slots do not divide over 8 GPUs: 16 slots would"),
        ((7, 4, 2, 8), "7 slots do not divide over 8 GPUs: 16 slots would"),
        ((16, 4, 3, 8), "8 GPUs do not divide over 3 nodes: 6 or 9 GPUs would"),
        ((16, 5, 1, 8), "12 experts do not divide into 5 groups: 4 or 6 groups would"),
        (
            (8, 4, 2, 8),
            "8 slots do not hold 12 experts: give each of the 8 GPUs at least 2 slots, 16 in all",
        ),
        ((0, 4, 2, 8), "the number of slots is 0: give 1 or more"),
        ((16, 4, 2, 0), "num_gpus is 0: give 1 or more"),
        ((16, 4, 0, 8), "num_nodes is 0: give 1 or more"),
        ((16.0, 4, 2, 8), "the number of slots is 16.0: give a whole number, 1 or more"),
        ((16, 4, 2, "8"), "num_gpus is '8': give a whole number, 1 or more"),
    ],
)
def test_counts_that_do_not_fit(arguments: tuple[Any, Any, Any, Any], message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        rebalance_experts(WEIGHT, *arguments)
    assert str(raised.value) == message


def test_loads_are_checked() -> None:
    with pytest.raises(LoadsError, match=r"loads\[0, 1\] is inf"):
        rebalance_experts([[1.0, np.inf]], 2, 1, 1, 2)
