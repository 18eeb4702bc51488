"""Groups on nodes: the proven best against every way to place them."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import layer_loads

from eplb import LoadsError
from eplb.solver.groups import place_groups

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


@pytest.mark.parametrize("num_nodes", [0, -1, 3, 8])
def test_groups_that_nodes_do_not_divide(num_nodes: int) -> None:
    with pytest.raises(LoadsError) as raised:
        place_groups([[1.0, 2.0, 3.0, 4.0]], num_nodes)
    assert str(raised.value) == f"4 groups cannot be spread evenly over {num_nodes} nodes"
