"""Expert groups onto nodes: the assignment whose busiest node is lightest, proven by search.

A model that routes by groups sends a token to few of them, so a group's experts stay on one node
and each node gets equally many groups. There are few ways to do that (105 for 8 groups on 4 nodes),
so the best is found by branch and bound rather than guessed. For several windows, the best is the
one whose busiest node is lightest in expectation; which node is busiest differs by window.
"""

import numpy as np
from numpy.typing import ArrayLike

from eplb.errors import LoadsError
from eplb.loads import check_loads
from eplb.solver.jit import inner, kernel
from eplb.solver.packing import F64, I64, B

__all__ = ["place_groups"]

_MOST_TRIES = 50_000
"""Placements of one group that a search may try before it settles for the best so far, divided by
the windows."""


def place_groups(loads: ArrayLike, num_nodes: int) -> tuple[I64, B]:
    """Put expert groups on nodes so that the busiest node has the least load.

    Args:
        loads: [L, K] load of each group.
        num_nodes: N, a divisor of K; each node gets K / N groups.

    Returns:
        node of each group [L, K], and whether each layer's is proven best [L]: it is, unless there
        are so many groups that the search had to stop.

    Raises:
        LoadsError: loads that are no loads, or groups that the nodes do not divide.
    """
    checked = check_loads(loads)
    num_layers, num_groups = checked.shape
    if num_nodes < 1 or num_groups % num_nodes:
        raise LoadsError(f"{num_groups} groups cannot be spread evenly over {num_nodes} nodes")
    node_of_group = np.empty((num_layers, num_groups), np.int64)
    proven = np.empty(num_layers, np.bool_)
    _place_groups_of_layers(checked, num_nodes, node_of_group, proven)
    return node_of_group, proven


@kernel
def _place_groups_of_layers(loads: F64, num_nodes: int, node_of_group: I64, proven: B) -> None:
    for layer in range(loads.shape[0]):
        load = loads[layer : layer + 1]
        proven[layer] = _place_groups(load, num_nodes, np.inf, node_of_group[layer])[1]


@kernel
def _gather_layers(
    windows: F64,
    weights: F64,
    begin: int,
    end: int,
    num_groups: int,
    expert_of: I64,
    busiest: F64,
) -> None:
    """Write the experts of each node: `expert_of` [L, N, E / N] for layers `begin` to `end` of
    `windows` [T, L, E], which count `weights` [T, L].

    `busiest` [L] becomes the least load that the busiest node can be expected to have; 0 where the
    search stopped before that was proven.
    """
    num_windows, _, num_experts = windows.shape
    num_nodes = expert_of.shape[1]
    group_size = num_experts // num_groups
    mean, load = np.empty((1, num_groups)), np.empty((num_windows, num_groups))
    node_of_group = np.empty(num_groups, np.int64)
    for layer in range(begin, end):
        mean[:] = 0.0
        load[:] = 0.0
        for window in range(num_windows):
            weight = weights[window, layer]
            for expert in range(num_experts):
                load[window, expert // group_size] += weight * windows[window, layer, expert]
            for group in range(num_groups):
                mean[0, group] += load[window, group]
        expected, proven = _place_groups(mean, num_nodes, np.inf, node_of_group)
        if num_windows > 1:
            # From there it cannot get worse, however early the search must stop.
            start = _expected_of(load, num_nodes, node_of_group)
            expected, proven = _place_groups(load, num_nodes, start, node_of_group)
        busiest[layer] = expected if proven else 0.0
        for node in range(num_nodes):
            place = 0
            for group in range(num_groups):
                if node_of_group[group] == node:
                    for i in range(group_size):
                        expert_of[layer, node, place] = group * group_size + i
                        place += 1


@inner
def _expected_of(load: F64, num_nodes: int, node_of_group: I64) -> float:
    """The sum over windows of the busiest node's load."""
    expected = 0.0
    on_node = np.empty(num_nodes)
    for window in range(load.shape[0]):
        on_node[:] = 0.0
        for group in range(load.shape[1]):
            on_node[node_of_group[group]] += load[window, group]
        expected += on_node.max()
    return expected


@inner
def _place_groups(load: F64, num_nodes: int, best: float, node_of_group: I64) -> tuple[float, bool]:
    """Fill `node_of_group` [K] from `load` [T, K] where that is better than `best`; return the
    least sum over windows of the busiest node's load, and whether it is proven.

    Groups are placed from heavy to light, so the first descent is the usual greedy.
    """
    num_windows, num_groups = load.shape
    room = num_groups // num_nodes
    mean = np.zeros(num_groups)
    least = np.zeros(num_windows)
    enough = 0.0
    for window in range(num_windows):
        total = 0.0
        for group in range(num_groups):
            mean[group] += load[window, group]
            total += load[window, group]
            least[window] = max(least[window], load[window, group])
        least[window] = max(total / num_nodes, least[window])
        enough += least[window]
    enough *= 1.0 + 1e-12
    order = np.empty(num_groups, np.int64)
    for group in range(num_groups):
        i = group
        while i > 0 and mean[order[i - 1]] < mean[group]:
            order[i] = order[i - 1]
            i -= 1
        order[i] = group
    node_load, node_mean = np.zeros((num_windows, num_nodes)), np.zeros(num_nodes)
    node_size = np.zeros(num_nodes, np.int64)
    at = np.full(num_groups, -1, np.int64)
    rank_of_node = np.full((num_groups, num_nodes), -1, np.int64)
    tried = np.zeros(num_groups, np.int64)
    # Of the busiest node once so many groups are placed.
    peak = np.zeros((num_groups + 1, num_windows))
    most = _MOST_TRIES // num_windows
    tries = 0
    depth = 0
    _order_nodes(node_load, node_mean, node_size, room, rank_of_node[0])
    while depth >= 0 and tries < most and best > enough:
        group = order[depth]
        if at[depth] >= 0:
            for window in range(num_windows):
                node_load[window, at[depth]] -= load[window, group]
            node_mean[at[depth]] -= mean[group]
            node_size[at[depth]] -= 1
            at[depth] = -1
        node = np.int64(-1)
        if tried[depth] < num_nodes:
            node = rank_of_node[depth, tried[depth]]
        if node < 0:
            depth -= 1
            continue
        tried[depth] += 1
        expected, at_least = 0.0, 0.0
        for window in range(num_windows):
            highest = max(peak[depth, window], node_load[window, node] + load[window, group])
            peak[depth + 1, window] = highest
            expected += highest
            at_least += max(highest, least[window])
        if at_least >= best:
            continue
        tries += 1
        at[depth] = node
        for window in range(num_windows):
            node_load[window, node] += load[window, group]
        node_mean[node] += mean[group]
        node_size[node] += 1
        if depth < num_groups - 1:
            depth += 1
            tried[depth] = 0
            _order_nodes(node_load, node_mean, node_size, room, rank_of_node[depth])
            continue
        best = expected
        for i in range(num_groups):
            node_of_group[order[i]] = at[i]
    return best, tries < most or best <= enough


@inner
def _order_nodes(node_load: F64, node_mean: F64, node_size: I64, room: int, nodes: I64) -> None:
    """Write the nodes with room from light to heavy, one of those that are alike; -1 after them."""
    num_windows, num_nodes = node_load.shape
    num = 0
    for node in range(num_nodes):
        nodes[node] = -1
        alike = node_size[node] == room
        for i in range(num):
            other = nodes[i]
            same = node_size[other] == node_size[node]
            for window in range(num_windows):
                same = same and node_load[window, other] == node_load[window, node]
            alike = alike or same
        if alike:
            continue
        i = num
        while i > 0 and node_mean[nodes[i - 1]] > node_mean[node]:
            nodes[i] = nodes[i - 1]
            i -= 1
        nodes[i] = node
        num += 1
