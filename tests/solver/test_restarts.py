"""Other starts of a search: valid, of their number alone, and unlike each other."""

import naive
import naive_moves
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import task_of

from eplb.solver.packing import Gpus, Task
from eplb.solver.restarts import _shake_rows

pytestmark = pytest.mark.oracle


def alike(num_gpus: int, size: int, num_experts: int, num_nodes: int = 1) -> Task:
    """GPUs of as many slots."""
    gpus = Gpus(np.arange(num_gpus + 1) * size, np.ones(num_gpus))
    return task_of(np.empty((1, 1, num_experts)), np.ones((1, 1)), num_nodes, gpus)


@given(st.integers(0, 2**32 - 1))
def test_every_start(seed: int) -> None:
    """Every expert has a slot and no GPU gets a second copy of one. All experts of a group are on
    one node; unless groups trade places, that is the node where they were.
    """
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 3))
    num_gpus = num_nodes * int(rng.integers(1, 5))
    size = int(rng.integers(1, 5))
    node_slots = num_gpus // num_nodes * size
    node_experts = int(rng.integers(1, node_slots + 1))
    num_experts = num_nodes * node_experts
    num_groups = int(rng.choice([1, num_nodes, num_experts]))
    # Experts in turn: second copies are on a GPU only if it has more slots than there are experts.
    in_turn = [
        rng.permutation(node_experts)[np.arange(node_slots) % node_experts]
        for _ in range(num_nodes)
    ]
    plan = np.concatenate([slots + node * node_experts for node, slots in enumerate(in_turn)])
    numbers = rng.integers(0, 50, 6)
    rows = np.tile(plan, (6, 1))
    task = alike(num_gpus, size, num_experts, num_nodes)
    _shake_rows(numbers, task, num_groups, rows)
    for number, row in zip(numbers, rows, strict=True):
        alone = plan[None].copy()
        _shake_rows(np.array([number]), task, num_groups, alone)
        assert np.array_equal(alone[0], row)
        if num_groups == 1 or number % 4 == 0:
            assert naive_moves.valid(row.tolist(), num_experts, num_nodes)
        nodes = [set(node) for node in row.reshape(num_nodes, -1).tolist()]
        assert sorted(expert for node in nodes for expert in node) == list(range(num_experts))
        if num_groups > 1:
            groups = [{expert * num_groups // num_experts for expert in node} for node in nodes]
            assert {len(node) for node in groups} == {num_groups // num_nodes}
        before = naive.num_duplicates(plan.tolist(), num_gpus)
        assert naive.num_duplicates(row.tolist(), num_gpus) <= before


def test_starts_differ_in_counts_and_places() -> None:
    """Of 40 starts hardly any two are alike, and every expert is met with one copy and with more,
    on every GPU.
    """
    plan = np.array([0, 1, 2, 0, 1, 3, 0, 4, 5, 1, 2, 4])
    rows = np.tile(plan, (40, 1))
    _shake_rows(np.arange(40), alike(4, 3, 6), 1, rows)
    on_gpus = {tuple(map(tuple, np.sort(row.reshape(4, 3), axis=1))) for row in rows}
    assert len(on_gpus) > 35
    counts = np.array([np.bincount(row, minlength=6) for row in rows])
    assert (counts.min(axis=0) == 1).all()
    assert (counts.max(axis=0) > 1).all()
    for gpu in range(4):
        assert set(rows.reshape(40, 4, 3)[:, gpu].ravel()) == set(range(6))


def test_every_way_to_put_groups_on_nodes_is_met() -> None:
    plan = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])
    rows = np.tile(plan, (200, 1))
    _shake_rows(np.arange(200), alike(4, 3, 6, 2), 6, rows)
    ways = {frozenset(frozenset(node) for node in row.reshape(2, 6).tolist()) for row in rows}
    assert len(ways) == 10
    assert (rows[::4, :6] < 3).all()
