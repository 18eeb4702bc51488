"""Names for GPUs and slots, and a placement that another cluster takes over."""

import itertools

import naive
import naive_moves
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver.test_search import held_by, sets_of, some_loads
from strategies import COMPILED

from eplb.solver.adopt import _adopt_layers, _fill_new, homes
from eplb.solver.match import _keep_slots, fewest_received, name_gpus
from eplb.solver.packing import Gpus

pytestmark = pytest.mark.oracle

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_names_against_all_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 4))
    num_gpus = num_nodes * int(rng.integers(1, 4 if num_nodes < 3 and COMPILED else 3))
    size, num_experts = int(rng.integers(1, 4)), int(rng.integers(2, 8))
    slots = rng.integers(0, num_experts, num_gpus * size)
    held = rng.random((num_gpus, num_experts)) < 0.4
    named = name_gpus(slots, held, num_nodes)
    nodes = [sorted(map(tuple, node)) for node in slots.reshape(num_nodes, -1, size).tolist()]
    assert sorted(
        sorted(map(tuple, node)) for node in named.reshape(num_nodes, -1, size).tolist()
    ) == sorted(nodes)
    best = naive_moves.fewest_received_by_naming(slots.tolist(), sets_of(held), num_nodes)
    assert naive_moves.received(named.tolist(), sets_of(held)) == best
    assert fewest_received(slots, held) <= best


@given(seeds)
def test_experts_that_stay_keep_their_slots(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_layers, num_gpus, size = map(int, rng.integers(1, 5, 3))
    num_experts = int(rng.integers(1, 6))
    new = rng.integers(0, num_experts, (num_layers, num_gpus * size))
    before = rng.integers(-1, num_experts, new.shape)
    kept = new.copy()
    _keep_slots(kept, before, np.arange(num_gpus + 1) * size)
    for was, now, old in zip(
        new.reshape(-1, size).tolist(),
        kept.reshape(-1, size).tolist(),
        before.reshape(-1, size).tolist(),
        strict=True,
    ):
        assert sorted(now) == sorted(was)
        for expert in set(was):
            same = sum(now[slot] == old[slot] == expert for slot in range(size))
            assert same == min(was.count(expert), old.count(expert))


@given(seeds)
def test_slots_are_taken_over_with_the_fewest_moves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_gpus, size = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    num_experts = int(rng.integers(1, min(6, num_gpus * size) + 1))
    old_size = int(rng.integers(1, 5))
    before = rng.integers(0, num_experts, (num_gpus, old_size))
    held = held_by(before, num_gpus, num_experts)
    empty = rng.random(num_gpus) < 0.2
    held[empty], before[empty] = False, -1
    slots = np.full((num_gpus, size), -1)
    slots[:, :old_size] = before[:, :size]
    start = np.empty((1, num_gpus * size), np.int64)
    loads, home = some_loads(rng, 1, num_experts), np.zeros((1, num_experts), np.int64)
    first = np.arange(num_gpus + 1) * size
    _adopt_layers(loads, held[None], slots.reshape(1, -1), home, 1, first, start)
    state = start[0].tolist()
    assert naive_moves.valid(state, num_experts, 1)
    best = naive_moves.fewest_received(sets_of(held), num_experts, size)
    assert naive_moves.received(state, sets_of(held)) == best


def test_experts_that_all_left_out_find_room() -> None:
    """Three GPUs lose a slot each; dropping the lightest on each would leave out expert 0."""
    held = np.array([[[1, 0, 1], [0, 0, 1], [1, 1, 0]]], np.bool_)
    before, home = np.array([[0, 2, 1]]), np.zeros((1, 3), np.int64)
    for loads in itertools.permutations([1.0, 2.0, 3.0]):
        start = np.empty((1, 3), np.int64)
        _adopt_layers(np.array([loads]), held, before, home, 1, np.arange(4), start)
        assert start.tolist() == [[0, 2, 1]]


@given(seeds)
def test_groups_come_home_with_the_fewest_moves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_nodes, share, group_size = map(int, rng.integers(1, 4, 3))
    num_groups = num_nodes * share if num_nodes * share <= 6 else num_nodes
    gpus = int(rng.integers(1, 4))
    held = rng.random((1, num_nodes * gpus, num_groups * group_size)) < 0.3
    home = homes(held, num_groups, num_nodes)[0]
    groups = home.reshape(num_groups, group_size)
    assert (groups == groups[:, :1]).all()
    assert (np.bincount(groups[:, 0], minlength=num_nodes) == num_groups // num_nodes).all()
    on_node = held[0].reshape(num_nodes, gpus, -1).any(axis=1)
    there = on_node[home, np.arange(home.size)].sum()
    best = max(
        sum(
            int(on_node[node, group * group_size : (group + 1) * group_size].sum())
            for node, company in zip(order, nodes, strict=True)
            for group in company
        )
        for nodes in naive.on_nodes(range(num_groups), num_nodes)
        for order in itertools.permutations(range(num_nodes))
    )
    assert there == best


def filled_plainly(
    load: list[float], row: list[list[int]], held: list[set[int]]
) -> list[list[int]]:
    """GPUs that held nothing, without second copies, filled one by one by fourth powers of loads,
    all of which are computed anew for every choice.
    """
    had = [
        list(gpu) if has else list(dict.fromkeys(gpu)) for gpu, has in zip(row, held, strict=True)
    ]
    size = [len(gpu) for gpu in row]

    def cost(gpus: list[list[int]]) -> float:
        copies = [sum(gpu.count(expert) for gpu in gpus) for expert in range(len(load))]
        return sum(sum(load[each] / copies[each] for each in gpu) ** 4 for gpu in gpus)

    while True:
        choices = [
            (gpu, expert)
            for expert in range(len(load))
            for gpu in range(len(had))
            if len(had[gpu]) < size[gpu] and expert not in had[gpu]
        ]
        if not choices:
            return had

        def after(choice: tuple[int, int]) -> float:
            return cost([[*g, choice[1]] if n == choice[0] else g for n, g in enumerate(had)])

        gpu, expert = min(choices, key=after)
        had[gpu].append(expert)


def test_new_gpus_are_filled_so_that_fourth_powers_are_least() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        load = rng.lognormal(0.0, 1.0, (1, 9))
        row = np.concatenate([rng.permutation(9), rng.integers(0, 9, 3), [4] * 4, [7] * 4])
        held = np.zeros((1, 5, 9), np.bool_)
        held[0, np.arange(12) // 4, row[:12]] = True
        start = row[None].copy()
        gpus = Gpus(np.arange(0, 21, 4), np.ones(5))
        _fill_new(load, np.array([0]), np.logical_not(held.any(axis=2)), gpus, start)
        sets = [set(np.flatnonzero(each).tolist()) for each in held[0]]
        wanted = filled_plainly(load[0].tolist(), row.reshape(5, 4).tolist(), sets)
        assert [sorted(gpu) for gpu in start.reshape(5, 4).tolist()] == [sorted(g) for g in wanted]
