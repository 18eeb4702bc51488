"""How engines plan today, to compare with: DeepSeek's algorithm, with or without swaps after it.

Groups are packed onto nodes and replicas onto GPUs, the heaviest first onto the lightest with room
(github.com/deepseek-ai/EPLB). The version that this project started from then swaps replicas of
the busiest GPU, up to 50 times for each packing. Neither looks at whether a GPU gets an expert
twice.
"""

import numpy as np
from numpy.typing import ArrayLike

from eplb.cluster import Cluster, check_even
from eplb.loads import check_loads
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, HISTOGRAM, I64, _descending
from eplb.solver.replicate import _replicate

__all__ = ["greedy"]

_MOST_SWAPS = 50
_LEAST_GAIN = 1e-5
"""Load by which a swap must lower the busiest GPU, as in the version started from."""


def greedy(loads: ArrayLike, cluster: Cluster, num_groups: int, *, swaps: bool) -> I64:
    """Plan as DeepSeek's EPLB does.

    Args:
        loads: [L, E] tokens routed to each logical expert.
        cluster: the GPUs and their slots, at least E.
        num_groups: groups that the model routes by, a divisor of E; where the nodes divide them,
            each group stays on one node.
        swaps: whether the busiest GPU's replicas are swapped afterwards.

    Returns:
        phy2log [L, P], the expert in each slot.

    Raises:
        LoadsError: loads that are no loads.
    """
    checked = check_loads(loads)
    check_even(cluster)
    num_nodes = cluster.num_nodes if num_groups % cluster.num_nodes == 0 else 1
    phy2log = np.empty((checked.shape[0], cluster.num_slots), np.int64)
    most_swaps = _MOST_SWAPS if swaps else 0
    groups = num_groups if num_nodes > 1 else 1
    _greedy_layers(checked, groups, num_nodes, cluster.num_gpus, most_swaps, phy2log)
    return phy2log


@kernel
def _greedy_layers(
    loads: F64, num_groups: int, num_nodes: int, num_gpus: int, most_swaps: int, phy2log: I64
) -> None:
    """Fill `phy2log` [L, P], layer by layer and node by node."""
    num_layers, num_experts = loads.shape
    num_slots = phy2log.shape[1] // num_nodes
    node_experts = num_experts // num_nodes
    node_gpus = num_gpus // num_nodes
    group_size = num_experts // num_groups
    groups_per_node = num_groups // num_nodes
    group_load = np.empty(num_groups)
    groups = np.empty((num_nodes, groups_per_node), np.int64)
    expert_of = np.empty(node_experts, np.int64)
    weight = np.empty(node_experts)
    count = np.empty(node_experts, np.int64)
    share = np.empty(node_experts)
    heap = np.empty(node_experts, np.int64)
    replica = np.empty(num_slots, np.int64)
    replica_load = np.empty(num_slots)
    packed = np.empty((node_gpus, num_slots // node_gpus), np.int64)
    for layer in range(num_layers):
        for group in range(num_groups):
            group_load[group] = 0.0
        for expert in range(num_experts):
            group_load[expert // group_size] += loads[layer, expert]
        _pack(group_load, groups, most_swaps)
        for node in range(num_nodes):
            for i in range(node_experts):
                group = groups[node, i // group_size]
                expert_of[i] = group * group_size + i % group_size
                weight[i] = loads[layer, expert_of[i]]
            _replicate(weight, num_slots, num_slots, count, share, heap)
            at = 0
            for i in range(node_experts):
                for _ in range(count[i]):
                    replica[at] = expert_of[i]
                    replica_load[at] = share[i]
                    at += 1
            _pack(replica_load, packed, most_swaps)
            slot = node * num_slots
            for gpu in range(node_gpus):
                for i in packed[gpu]:
                    phy2log[layer, slot] = replica[i]
                    slot += 1


@allocating
def _pack(load: F64, packed: I64, most_swaps: int) -> None:
    """Fill `packed` [M, S] with items of `load` [M * S], each pack with S of them."""
    num_packs, size = packed.shape
    if size == 1:
        for pack in range(num_packs):
            packed[pack, 0] = pack
        return
    order = np.empty(load.shape[0], np.int64)
    scratch = np.empty(load.shape[0], np.int64)
    _descending(load, order, scratch, np.empty(HISTOGRAM, np.int64))
    pack_load = np.zeros(num_packs)
    pack_size = np.zeros(num_packs, np.int64)
    for item in order:
        lightest = -1
        for pack in range(num_packs):
            room = pack_size[pack] < size
            if room and (lightest < 0 or pack_load[pack] < pack_load[lightest]):
                lightest = pack
        packed[lightest, pack_size[lightest]] = item
        pack_size[lightest] += 1
        pack_load[lightest] += load[item]
    for _ in range(most_swaps):
        if not _swap(load, packed, pack_load):
            break


@inner
def _swap(load: F64, packed: I64, pack_load: F64) -> bool:
    """Swap an item of the heaviest pack with one of another so that the heavier of the two is as
    light as it can be; return whether that was worth doing.
    """
    num_packs, size = packed.shape
    heaviest = np.argmax(pack_load)
    best = np.inf
    other, mine, theirs = -1, -1, -1
    for pack in range(num_packs):
        if pack == heaviest:
            continue
        for i in range(size):
            for j in range(size):
                change = load[packed[heaviest, j]] - load[packed[pack, i]]
                peak = max(pack_load[heaviest] - change, pack_load[pack] + change)
                if peak < best:
                    best = peak
                    other, mine, theirs = pack, j, i
    if not best < pack_load[heaviest] - _LEAST_GAIN:
        return False
    change = load[packed[heaviest, mine]] - load[packed[other, theirs]]
    pack_load[heaviest] -= change
    pack_load[other] += change
    packed[heaviest, mine], packed[other, theirs] = packed[other, theirs], packed[heaviest, mine]
    return True
