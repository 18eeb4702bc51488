"""Second looks at layers that the first pass has left too far above what is proven possible.

Where a layer's peak is far above its bound, few slots on a GPU are the cause, and replica counts
are searched together with packing (`recount`). What is still above is left to a walk over swaps
and hand-overs of slots between experts (`handover`). Neither makes a layer worse.
"""

import numpy as np

from eplb.solver.bounds import _simple_bound
from eplb.solver.handover import _affordable_steps, _search
from eplb.solver.jit import inner, kernel
from eplb.solver.layers import NEAR_ENOUGH, _peak_of
from eplb.solver.order import HISTOGRAM
from eplb.solver.pack import _least_peak_of_pairs, _new_pack_scratch, _rank
from eplb.solver.packing import F64, I64, Packing, _new_packing, _new_search_scratch
from eplb.solver.recount import _recount
from eplb.solver.swap import _descend

__all__ = ["FEW_SLOTS", "WORTH_A_SEARCH"]

WORTH_A_SEARCH = 1.5e-3
"""Peak over bound, less 1, from which a layer is searched: the search takes many times as long as
all before, and gains little below that (docs/experiments.md, replica counts)."""

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


@kernel
def _search_layers(
    loads: F64, layers: I64, num_nodes: int, num_gpus: int, phy2log: I64, peaks: F64, bounds: F64
) -> None:
    """Walk from where `layers` are, rows of `phy2log` [L, P], and lower their `peaks` [L].

    `bounds` [L] are proven. Experts stay on the node where they are.
    """
    num_experts, num_slots = loads.shape[1], phy2log.shape[1]
    experts_per_node, slots_per_node = num_experts // num_nodes, num_slots // num_nodes
    gpus_per_node, slots_per_gpu = num_gpus // num_nodes, num_slots // num_gpus
    if _affordable_steps(experts_per_node, gpus_per_node, slots_per_gpu) == 0:
        return
    packing = _new_packing(experts_per_node, gpus_per_node, slots_per_gpu)
    scratch = _new_search_scratch(experts_per_node, gpus_per_node, slots_per_gpu)
    histogram = np.empty(HISTOGRAM, np.int64)
    weight, share = np.empty(experts_per_node), np.empty(num_experts)
    count, place = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    order, experts = np.empty(experts_per_node, np.int64), np.empty(experts_per_node, np.int64)
    spare = np.empty((2, experts_per_node), np.int64)
    for i in range(layers.shape[0]):
        layer = layers[i]
        for node in range(num_nodes):
            slots = phy2log[layer, node * slots_per_node : (node + 1) * slots_per_node]
            _take_up(loads[layer], slots, weight, count, experts, place)
            bound = _simple_bound(weight, gpus_per_node, slots_per_gpu, share, spare[0], spare[1])
            bound = max(bound, bounds[layer])
            _rank(weight, count, packing, order, spare[0], histogram)
            _lay_out(slots, place, order, spare[0], packing)
            _search(packing, bound, bound * (1.0 + NEAR_ENOUGH), scratch)
            _put_back(packing, order, experts, slots)
        peaks[layer] = _peak_of(loads[layer], phy2log[layer], slots_per_gpu, count, share)


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
def _lay_out(slots: I64, place: I64, order: I64, rank_of: I64, packing: Packing) -> None:
    """Fill a ranked packing's slots and load from the experts in `slots`, all that `_search` needs.

    `order` tells the expert of a rank; `rank_of` is scratch.
    """
    num_gpus, slots_per_gpu = packing.slots.shape
    for rank in range(order.shape[0]):
        rank_of[order[rank]] = rank
    for gpu in range(num_gpus):
        packing.load[gpu] = 0.0
        for slot in range(slots_per_gpu):
            rank = rank_of[place[slots[gpu * slots_per_gpu + slot]]]
            packing.slots[gpu, slot] = rank
            packing.load[gpu] += packing.share[rank]


@inner
def _put_back(packing: Packing, order: I64, experts: I64, slots: I64) -> None:
    """Write the experts of a packing into `slots`."""
    num_gpus, slots_per_gpu = packing.slots.shape
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            slots[gpu * slots_per_gpu + slot] = experts[order[packing.slots[gpu, slot]]]
