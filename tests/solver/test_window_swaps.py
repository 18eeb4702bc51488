"""Swaps under norms: what they keep, and that they even out loads."""

import naive
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parts import task_of
from solver.test_search import held_by, part_copies, some_loads, some_slots

from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I32, I64, Gpus, Task
from eplb.solver.search import _begin
from eplb.solver.state import _new_state
from eplb.solver.window_swaps import _swap_under_norms

pytestmark = pytest.mark.oracle

ROUNDING = 1e-9


@kernel
def _swap(task: Task, root: F64, start: I64, held: I32, part: F64, load: F64) -> None:
    """Swap from `start` [P], which becomes what is found, and fill what GPUs hold and the loads of
    slots and GPUs.
    """
    state = _new_state(task)
    state.root[:] = root
    state.loads[:] = task.windows[:, 0]
    state.target[:] = 0.0
    _begin(state, start)
    _swap_under_norms(state, task.gpus)
    start[:] = state.slots
    held[:] = state.holds
    part[:] = state.part
    load[:] = state.load


@given(st.integers(0, 2**32 - 1))
def test_what_swaps_keep(seed: int) -> None:
    """Every expert keeps its replicas and its node, none comes twice onto a GPU, and the loads
    that are kept are those of what is found.
    """
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 3))
    num_gpus = num_nodes * int(rng.integers(2, 6))
    size = int(rng.integers(1, 5))
    node_slots = num_gpus // num_nodes * size
    node_experts = int(rng.integers(max(size, node_slots // 2), node_slots + 1))
    start = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    assume(part_copies(start, num_gpus, num_nodes))
    num_experts = num_nodes * node_experts
    loads = some_loads(rng, int(rng.integers(1, 5)), num_experts) + 1e-3
    loads *= num_gpus / loads.sum(axis=1, keepdims=True)
    weight = rng.random(len(loads)) + 0.1
    root = np.sqrt(weight)
    found = start.copy()
    part, load = np.empty((len(loads), start.size)), np.empty((len(loads), num_gpus))
    held = np.empty((num_gpus, num_experts), np.int32)
    gpus = Gpus(np.arange(num_gpus + 1) * size, np.ones(num_gpus))
    task = task_of((loads * root[:, None])[:, None], np.ones((len(loads), 1)), num_nodes, gpus)
    _swap(task, root, found, held, part, load)
    for node in range(num_nodes):
        on_node = slice(node * node_slots, (node + 1) * node_slots)
        assert np.array_equal(np.sort(found[on_node]), np.sort(start[on_node]))
    assert naive.num_duplicates(found.tolist(), num_gpus) == 0
    assert np.array_equal(held, held_by(found, num_gpus, num_experts))
    share = loads / np.bincount(start)
    np.testing.assert_allclose(part, root[:, None] * share[:, found], rtol=ROUNDING)
    of_gpus = np.array([naive.gpu_loads(found.tolist(), each, num_gpus) for each in loads.tolist()])
    np.testing.assert_allclose(load, root[:, None] * of_gpus, rtol=ROUNDING)


def test_swaps_part_experts_that_are_busy_together() -> None:
    """Four experts are busy in turn, two by two: one of each two on a GPU is as even as can be."""
    loads = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    root = np.ones(2)
    start, part, load = np.arange(4), np.empty((2, 4)), np.empty((2, 2))
    task = task_of(loads[:, None], np.ones((2, 1)), 1, Gpus(np.array([0, 2, 4]), np.ones(2)))
    _swap(task, root, start, np.empty((2, 4), np.int32), part, load)
    assert (load == 1.0).all()
