"""What is refused at the border whatever its type, and values that stay as they were checked."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import eplb
from eplb import Cluster, ClusterError, LoadsError, OptionError, Placement, PlacementError

CLUSTER = Cluster(4, 1, 3)
LOADS = np.arange(1.0, 25.0).reshape(3, 8)
PLACEMENT = Placement.contiguous(3, 8, CLUSTER)
NOTHING: Any = None
TUPLE: Any = (4, 1, 3)
TEXT: Any = "8"


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_copies_are_read_only(copied: Callable[[Any], Any]) -> None:
    made = eplb.plan(LOADS, CLUSTER)
    frontier = eplb.frontier(LOADS, CLUSTER, PLACEMENT)
    split = eplb.dispatch(PLACEMENT, LOADS)
    assert copied(PLACEMENT) == PLACEMENT
    trace = copied(eplb.LoadTrace(LOADS))
    plan = copied(made)
    for array in (
        copied(PLACEMENT).phy2log, plan.peak, plan.bound, plan.placement.phy2log, trace.loads,
        copied(frontier).moves, copied(split).split,
    ):  # fmt: skip
        assert not array.flags.writeable
    assert plan == made
    assert hash(plan) == hash(made)
    assert plan != replace(made, moves=7)
    assert plan != replace(made, lost=np.array([[0, 1]]))
    assert repr(plan).count("\n") == 0
    assert len(repr(plan)) < 100


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: eplb.plan(LOADS, TUPLE), ClusterError, r"the cluster is \(4, 1, 3\): give"),
        (lambda: eplb.plan(LOADS, NOTHING), ClusterError, "the cluster is None"),
        (lambda: eplb.frontier(LOADS, NOTHING, PLACEMENT), ClusterError, "the cluster is None"),
        (lambda: Placement(PLACEMENT.phy2log, 8, TUPLE), ClusterError, "the cluster is"),
        (lambda: Cluster(10**9, 1, 10**9), ClusterError, "give 1000000 or fewer"),
        (lambda: Cluster(10**4, 1, 10**4), ClusterError, "100000000 slots in a layer"),
        (lambda: Placement(PLACEMENT.phy2log, 10**18, CLUSTER), PlacementError, "has 12 slots"),
        (lambda: Placement(PLACEMENT.phy2log, TEXT, CLUSTER), PlacementError, "num_experts is '8'"),
        (lambda: Placement.contiguous(-1, 8, CLUSTER), PlacementError, "num_layers is -1"),
        (lambda: Placement.contiguous(1, 13, CLUSTER), PlacementError, "num_experts is 13"),
        (lambda: PLACEMENT.moves_from(NOTHING), PlacementError, "placement is of type NoneType"),
        (lambda: eplb.migrate(PLACEMENT, NOTHING), PlacementError, "new is of type NoneType"),
        (
            lambda: eplb.plan(LOADS, CLUSTER, current=PLACEMENT, move_cost=TEXT),
            OptionError,
            "move_cost is '8'",
        ),
        (
            lambda: eplb.plan(np.ma.masked_array(LOADS, LOADS > 20), CLUSTER),
            LoadsError,
            "masked in places",
        ),
    ],
)
def test_refused(call: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_arrays_that_mask_nothing_are_arrays() -> None:
    masked = np.ma.masked_array(LOADS, np.zeros(LOADS.shape, np.bool_))
    assert eplb.plan(masked, CLUSTER).placement == eplb.plan(LOADS, CLUSTER).placement


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested")
def test_tensors_of_every_kind() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(LOADS)
    wrong = {
        "sparse": tensor.to_sparse(),
        "csr": tensor.to_sparse_csr(),
        "without values": torch.empty((3, 8), device="meta"),
        "nested": torch.nested.nested_tensor([torch.ones(8), torch.ones(7)]),
        "list": [row.bfloat16() for row in tensor],
    }
    for values in wrong.values():
        with pytest.raises(LoadsError, match=r"dense|one array"):
            eplb.plan(values, CLUSTER)
    wanted = eplb.plan(LOADS, CLUSTER).placement
    assert eplb.plan(torch._neg_view(-tensor), CLUSTER).placement == wanted
