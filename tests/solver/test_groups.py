"""Groups on nodes: the proven best against every way to place them."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import place_groups
from strategies import layer_loads

from eplb.solver.groups import _gather_layers

pytestmark = pytest.mark.oracle


@given(st.data())
def test_busiest_node_is_the_lightest_possible(data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 4))
    size = data.draw(st.integers(1, 8 // num_nodes))
    layer = data.draw(layer_loads(num_nodes * size))
    node_of_group, proven = place_groups([layer], num_nodes)
    assert proven.tolist() == [True]
    assert np.bincount(node_of_group[0], minlength=num_nodes).tolist() == [size] * num_nodes
    on_node = [0.0] * num_nodes
    for load, node in zip(layer, node_of_group[0], strict=True):
        on_node[node] += load
    assert max(on_node) == pytest.approx(naive.busiest_node(layer, num_nodes), rel=1e-12)


@given(st.data())
def test_busiest_node_is_lightest_over_all_windows(data: st.DataObject) -> None:
    """Of the expected load, which is proven; every node has as many whole groups as any other."""
    num_nodes = data.draw(st.integers(1, 3))
    num_groups = num_nodes * data.draw(st.integers(1, 8 // num_nodes))
    size, num_windows = data.draw(st.integers(1, 2)), data.draw(st.integers(2, 4))
    layer = st.lists(layer_loads(num_groups * size), min_size=num_windows, max_size=num_windows)
    windows = np.array(data.draw(layer))[:, None]
    parts = data.draw(st.lists(st.integers(1, 5), min_size=num_windows, max_size=num_windows))
    weights = np.array(parts, np.float64)[:, None] / sum(parts)
    expert_of = np.empty((1, num_nodes, num_groups // num_nodes * size), np.int64)
    busiest = np.empty(1)
    _gather_layers(np.arange(1), windows, weights, num_groups, expert_of, busiest)
    experts = sorted(expert_of.ravel().tolist())
    assert experts == list(range(num_groups * size))
    groups = [sorted(set((node // size).tolist())) for node in expert_of[0]]
    assert [len(node) for node in groups] == [num_groups // num_nodes] * num_nodes
    weighed = weights * windows[:, 0]
    expected = sum(max(loads[node].sum() for node in expert_of[0]) for loads in weighed)
    assert busiest[0] == pytest.approx(expected, rel=1e-9)
    of_groups = weighed.reshape(num_windows, num_groups, size).sum(axis=2)
    best = naive.expected_busiest_node(of_groups.tolist(), num_nodes)
    assert expected == pytest.approx(best, rel=1e-9)


def test_many_groups_are_no_worse_for_the_windows_than_for_their_mean() -> None:
    """Where there are too many ways to try all of them."""
    rng = np.random.default_rng(5)
    windows, weights = rng.lognormal(size=(8, 1, 48)), np.full((8, 1), 1 / 8)
    expert_of, busiest = np.empty((1, 6, 8), np.int64), np.empty(1)
    _gather_layers(np.arange(1), windows, weights, 48, expert_of, busiest)
    assert busiest[0] == 0.0, "not proven"
    mean = np.empty((1, 6, 8), np.int64)
    _gather_layers(np.arange(1), windows.mean(axis=0)[None], np.ones((1, 1)), 48, mean, busiest)
    for_windows, for_mean = (
        np.mean([max(loads[node].sum() for node in nodes[0]) for loads in windows[:, 0]])
        for nodes in (expert_of, mean)
    )
    assert for_windows < for_mean


@pytest.mark.parametrize(("num_groups", "num_nodes"), [(8, 4), (8, 2), (9, 3), (10, 2), (12, 4)])
def test_skewed_groups(num_groups: int, num_nodes: int) -> None:
    """DeepSeek-V3's shape, and shapes at which placing the heaviest first is not the best."""
    loads = np.random.default_rng(2).lognormal(size=(4, num_groups))
    node_of_group, proven = place_groups(loads, num_nodes)
    assert proven.all()
    for layer, nodes in zip(loads, node_of_group, strict=True):
        busiest = np.bincount(nodes, weights=layer).max()
        assert busiest == pytest.approx(naive.busiest_node(layer.tolist(), num_nodes), rel=1e-12)


def test_too_many_groups_are_placed_evenly_and_not_called_proven() -> None:
    """Distinct powers that no split evens out, far too many to try all."""
    loads = 1.17 ** np.arange(64.0)[None, :] + np.linspace(0.0, 0.5, 64) ** 3
    node_of_group, proven = place_groups(loads, 8)
    assert not proven.any()
    assert np.bincount(node_of_group[0]).tolist() == [8] * 8
    assert np.bincount(node_of_group[0], weights=loads[0]).max() < 1.2 * loads.sum() / 8


def test_ties_keep_the_order_of_groups() -> None:
    node_of_group, proven = place_groups(np.ones((1, 6)), 3)
    assert proven.all()
    assert node_of_group[0, :3].tolist() == [0, 1, 2]
