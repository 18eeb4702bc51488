"""Expert groups onto nodes: the assignment whose busiest node is lightest, proven by search.

A model that routes by groups sends a token to few of them, so a group's experts stay on one node
and each node gets equally many groups. There are few ways to do that (105 for 8 groups on 4 nodes),
so the best is found by branch and bound rather than guessed. For several windows, the best is the
one whose busiest node is lightest in expectation; which node is busiest differs by window.
"""

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, HISTOGRAM, I64, _descending

__all__: list[str] = []

_MOST_TRIES = 50_000
"""Placements of one group that a search may try before it settles for the best so far."""
_MOST_TRIES_OF_WINDOWS = 2_000
"""The same for several windows, where swaps have found a good one before."""


@kernel
def _gather_layers(
    layers: I64, windows: F64, weights: F64, num_groups: int, expert_of: I64, busiest: F64
) -> None:
    """Write the experts of each node: `expert_of` [L, N, E / N] for `layers` of `windows`
    [T, L, E], which count `weights` [T, L]; each node gets equally many groups.

    `busiest` [L] becomes the least load that the busiest node can be expected to have; 0 where
    there are so many groups that the search stopped before that was proven.
    """
    num_windows, _, num_experts = windows.shape
    num_nodes = expert_of.shape[1]
    group_size = num_experts // num_groups
    mean, load = np.empty(num_groups), np.empty((num_windows, num_groups))
    node_of_group, order = np.empty(num_groups, np.int64), np.empty(num_groups, np.int64)
    spare, histogram = np.empty(num_groups, np.int64), np.empty(HISTOGRAM, np.int64)
    for layer in layers:
        mean[:] = 0.0
        load[:] = 0.0
        for window in range(num_windows):
            weight = weights[window, layer]
            for expert in range(num_experts):
                load[window, expert // group_size] += weight * windows[window, layer, expert]
            for group in range(num_groups):
                mean[group] += load[window, group]
        _descending(mean, order, spare, histogram)
        if num_windows == 1:
            expected, proven = _place_groups(mean, order, num_nodes, node_of_group)
        else:
            for i in range(num_groups):
                node_of_group[order[i]] = i % num_nodes
            _swap_groups(load, num_nodes, node_of_group)
            expected, proven = _place_groups_for_windows(load, order, num_nodes, node_of_group)
        busiest[layer] = expected if proven else 0.0
        for node in range(num_nodes):
            place = 0
            for group in range(num_groups):
                if node_of_group[group] == node:
                    for i in range(group_size):
                        expert_of[layer, node, place] = group * group_size + i
                        place += 1


@allocating
def _place_groups(load: F64, order: I64, num_nodes: int, node_of_group: I64) -> tuple[float, bool]:
    """Fill `node_of_group` [K] from `load` [K]; return the busiest node's load and whether it is
    proven least. Groups are placed in `order` [K], from heavy to light, so the first descent is the
    usual greedy.
    """
    num_groups = load.shape[0]
    room = num_groups // num_nodes
    node_load = np.zeros(num_nodes)
    node_size = np.zeros(num_nodes, np.int64)
    at = np.full(num_groups, -1, np.int64)
    rank_of_node = np.full((num_groups, num_nodes), -1, np.int64)
    tried = np.zeros(num_groups, np.int64)
    total = 0.0
    for group in range(num_groups):
        total += load[group]
    least = max(total / num_nodes, load[order[0]])
    best = np.inf
    tries = 0
    depth = 0
    _order_nodes(node_load, node_size, room, rank_of_node[0])
    while depth >= 0:
        group = order[depth]
        if at[depth] >= 0:
            node_load[at[depth]] -= load[group]
            node_size[at[depth]] -= 1
            at[depth] = -1
        node = -1
        if tried[depth] < num_nodes:
            node = rank_of_node[depth, tried[depth]]
        if node < 0 or node_load[node] + load[group] >= best or tries >= _MOST_TRIES:
            depth -= 1  # the nodes that follow are heavier still
            continue
        tries += 1
        tried[depth] += 1
        at[depth] = node
        node_load[node] += load[group]
        node_size[node] += 1
        if depth < num_groups - 1:
            depth += 1
            tried[depth] = 0
            _order_nodes(node_load, node_size, room, rank_of_node[depth])
            continue
        best = 0.0
        for i in range(num_nodes):
            best = max(best, node_load[i])
        for i in range(num_groups):
            node_of_group[order[i]] = at[i]
        if best <= least * (1.0 + 1e-12):
            return best, True
    return best, tries < _MOST_TRIES


@inner
def _order_nodes(node_load: F64, node_size: I64, room: int, nodes: I64) -> None:
    """Write the nodes with room from light to heavy, one of those that are alike; -1 after them."""
    num = 0
    for node in range(node_load.shape[0]):
        nodes[node] = -1
        alike = node_size[node] == room
        for i in range(num):
            other = nodes[i]
            if node_load[other] == node_load[node] and node_size[other] == node_size[node]:
                alike = True
        if alike:
            continue
        i = num
        while i > 0 and node_load[nodes[i - 1]] > node_load[node]:
            nodes[i] = nodes[i - 1]
            i -= 1
        nodes[i] = node
        num += 1


@allocating
def _swap_groups(load: F64, num_nodes: int, node_of_group: I64) -> None:
    """Swap groups of different nodes while that lowers the sum over windows of the busiest node's
    load; groups have `load` [T, K].
    """
    num_windows, num_groups = load.shape
    node_load = np.zeros((num_windows, num_nodes))
    lowest = _sum_of_busiest(load, node_of_group, node_load)
    better = True
    while better:
        better = False
        for group in range(num_groups):
            for other in range(group + 1, num_groups):
                node, host = node_of_group[group], node_of_group[other]
                if node == host:
                    continue
                expected = 0.0
                for window in range(num_windows):
                    shift = load[window, other] - load[window, group]
                    highest = 0.0
                    for i in range(num_nodes):
                        on_node = node_load[window, i]
                        if i == node:
                            on_node += shift
                        elif i == host:
                            on_node -= shift
                        highest = max(highest, on_node)
                    expected += highest
                if expected < lowest * (1.0 - 1e-12):
                    node_of_group[group], node_of_group[other] = host, node
                    lowest = _sum_of_busiest(load, node_of_group, node_load)
                    better = True


@inner
def _sum_of_busiest(load: F64, node_of_group: I64, node_load: F64) -> float:
    """The sum over windows of the busiest node's load; fill `node_load` [T, N]."""
    expected = 0.0
    node_load[:] = 0.0
    for window in range(load.shape[0]):
        highest = 0.0
        for group in range(load.shape[1]):
            node_load[window, node_of_group[group]] += load[window, group]
        for node in range(node_load.shape[1]):
            highest = max(highest, node_load[window, node])
        expected += highest
    return expected


@allocating
def _place_groups_for_windows(
    load: F64, order: I64, num_nodes: int, node_of_group: I64
) -> tuple[float, bool]:
    """Change `node_of_group` [K] where that lowers the sum over windows of the busiest node's load,
    of groups with `load` [T, K] that are placed in `order` [K]; return the sum and whether it is
    proven least.
    """
    num_windows, num_groups = load.shape
    room = num_groups // num_nodes
    node_load, node_size = np.zeros((num_windows, num_nodes)), np.zeros(num_nodes, np.int64)
    best = _sum_of_busiest(load, node_of_group, node_load)
    least = np.zeros(num_windows)
    enough = 0.0
    for window in range(num_windows):
        total = 0.0
        for group in range(num_groups):
            total += load[window, group]
            least[window] = max(least[window], load[window, group])
        least[window] = max(total / num_nodes, least[window])
        enough += least[window]
    enough *= 1.0 + 1e-12
    at = np.full(num_groups, -1, np.int64)
    # Loads of the busiest node once so many groups are placed.
    peak = np.zeros((num_groups + 1, num_windows))
    node_load[:] = 0.0
    tries = 0
    depth = 0
    while depth >= 0 and tries < _MOST_TRIES_OF_WINDOWS and best > enough:
        group = order[depth]
        last = at[depth]
        if last >= 0:
            for window in range(num_windows):
                node_load[window, last] -= load[window, group]
            node_size[last] -= 1
        node = last + 1
        # Of the nodes that have nothing, which are alike, only the first is tried.
        if node == num_nodes or (last >= 0 and node_size[last] == 0):
            at[depth] = -1
            depth -= 1
            continue
        at[depth] = node
        expected, at_least = 0.0, 0.0
        for window in range(num_windows):
            highest = max(peak[depth, window], node_load[window, node] + load[window, group])
            peak[depth + 1, window] = highest
            expected += highest
            at_least += max(highest, least[window])
            node_load[window, node] += load[window, group]
        node_size[node] += 1
        tries += 1
        if node_size[node] > room or at_least >= best:
            continue
        if depth < num_groups - 1:
            depth += 1
            continue
        best = expected
        for i in range(num_groups):
            node_of_group[order[i]] = at[i]
    return best, tries < _MOST_TRIES_OF_WINDOWS or best <= enough
