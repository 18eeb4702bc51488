"""A second look at layers that the first pass has left too far above what is proven possible.

Where a layer's peak is far above its bound, few slots on a GPU are the cause, and replica counts
are searched together with packing (`recount`). No layer becomes worse.
"""

import numpy as np

from eplb.solver.bounds import _simple_bound
from eplb.solver.jit import inner, kernel
from eplb.solver.layers import NEAR_ENOUGH, _peak_of
from eplb.solver.pack import _least_peak_of_pairs, _new_pack_scratch
from eplb.solver.packing import F64, I64, Packing, _new_packing, _new_search_scratch
from eplb.solver.recount import _recount
from eplb.solver.swap import _descend

__all__ = ["FEW_SLOTS"]

FEW_SLOTS = 0.01
"""Peak over bound, less 1, from which replica counts are searched."""


@kernel
def _recount_layers(
    loads: F64, layers: I64, num_nodes: int, num_gpus: int, phy2log: I64, peaks: F64, bounds: F64
) -> None:
    """Search the replica counts of `layers`, rows of `phy2log` [L, P], and lower their `peaks` [L].

    `bounds` [L] are proven. Experts stay on the node where they are.
    """
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    experts_per_node, slots_per_node = num_experts // num_nodes, num_slots // num_nodes
    gpus_per_node, slots_per_gpu = num_gpus // num_nodes, num_slots // num_gpus
    packing = _new_packing(experts_per_node, gpus_per_node, slots_per_gpu)
    pack_scratch = _new_pack_scratch(experts_per_node, gpus_per_node, slots_per_gpu)
    scratch = _new_search_scratch(experts_per_node, gpus_per_node, slots_per_gpu)
    weight, share = np.empty(experts_per_node), np.empty(num_experts)
    count, place = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    order, experts = np.empty(experts_per_node, np.int64), np.empty(experts_per_node, np.int64)
    spare = np.empty((2, experts_per_node), np.int64)
    kept = np.empty(num_slots, np.int64)
    for i in range(layers.shape[0]):
        layer = layers[i]
        for slot in range(num_slots):
            kept[slot] = phy2log[layer, slot]
        for node in range(num_nodes):
            slots = phy2log[layer, node * slots_per_node : (node + 1) * slots_per_node]
            _take_up(loads[layer], slots, weight, count, experts, place)
            bound = _simple_bound(weight, gpus_per_node, slots_per_gpu, share, spare[0], spare[1])
            bound = max(bound, bounds[layer])
            enough = bound * (1.0 + NEAR_ENOUGH)
            _recount(weight, count, bound, enough, packing, order, spare[0], pack_scratch)
            _descend(packing, max(enough, _least_peak_of_pairs(packing)), scratch)
            _put_back(packing, order, experts, slots)
        peak = _peak_of(loads[layer], phy2log[layer], slots_per_gpu, count, share)
        if peak < peaks[layer]:
            peaks[layer] = peak
        else:
            for slot in range(num_slots):
                phy2log[layer, slot] = kept[slot]


@inner
def _take_up(loads: F64, slots: I64, weight: F64, count: I64, experts: I64, place: I64) -> None:
    """List the experts in `slots` by index, with their loads, their replicas and their place."""
    for expert in range(place.shape[0]):
        place[expert] = 0
    for slot in range(slots.shape[0]):
        place[slots[slot]] += 1
    num = 0
    for expert in range(place.shape[0]):
        if place[expert] > 0:
            experts[num] = expert
            weight[num] = loads[expert]
            count[num] = place[expert]
            place[expert] = num
            num += 1


@inner
def _put_back(packing: Packing, order: I64, experts: I64, slots: I64) -> None:
    """Write the experts of a packing into `slots`."""
    num_gpus, slots_per_gpu = packing.slots.shape
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            slots[gpu * slots_per_gpu + slot] = experts[order[packing.slots[gpu, slot]]]
