"""The first pass over layers, in one compiled loop: loads in, slots out."""

import numpy as np

from eplb.solver.jit import inner, kernel
from eplb.solver.pack import _least_peak_of_pairs, _new_pack_scratch, _pack, _rank
from eplb.solver.packing import F64, I64, Gpus, _new_packing, _new_search_scratch
from eplb.solver.replicate import _replicate
from eplb.solver.swap import WORK, _descend

__all__ = ["NEAR_ENOUGH"]

NEAR_ENOUGH = 4e-4
"""Peak over bound, less 1, at which a layer is done: past that, time is worth more."""
NEAR_ENOUGH_WITHOUT_SPARE = 3e-5
"""The same where every expert has one replica: only swaps are left, and they are quick
(docs/experiments.md, swaps)."""


@kernel
def _plan_layers(
    loads: F64,
    begin: int,
    end: int,
    expert_of: I64,
    num_gpus: int,
    slots_per_gpu: int,
    phy2log: I64,
    peaks: F64,
    bounds: F64,
) -> None:
    """Plan layers `begin` to `end` of `loads` [L, E]: fill their rows of `phy2log` [L, P], `peaks`
    and `bounds` [L].

    `expert_of` [L, N, E / N] has the experts of each node, or [1, 1, E] of all layers; `bounds`
    has what that proves already.
    """
    num_experts = loads.shape[1]
    _, num_nodes, experts_per_node = expert_of.shape
    gpus_per_node = num_gpus // num_nodes
    slots_per_node = gpus_per_node * slots_per_gpu
    packing = _new_packing(experts_per_node, gpus_per_node, slots_per_gpu)
    pack_scratch = _new_pack_scratch(experts_per_node, gpus_per_node, slots_per_gpu)
    search_scratch = _new_search_scratch(experts_per_node, gpus_per_node, slots_per_gpu)
    weight = np.empty(num_experts)
    local = np.empty(experts_per_node)
    share = np.empty(num_experts)
    count = np.empty(num_experts, np.int64)
    order = np.empty(experts_per_node, np.int64)
    spare = np.empty(experts_per_node, np.int64)
    for layer in range(begin, end):
        total = 0.0
        for expert in range(num_experts):
            weight[expert] = loads[layer, expert]
            total += weight[expert]
        if total == 0.0:
            for expert in range(num_experts):
                weight[expert] = 1.0  # nothing to balance: spread evenly
        bound = max(bounds[layer], total / num_gpus)
        for node in range(num_nodes):
            experts = expert_of[layer % expert_of.shape[0], node]
            slots = phy2log[layer, node * slots_per_node : (node + 1) * slots_per_node]
            if slots_per_gpu >= experts_per_node:
                # Every GPU can hold every expert: alike GPUs are evenly loaded. With no load, the
                # slots beyond that go round.
                beyond = slots_per_gpu - experts_per_node if total == 0.0 else 0
                for slot in range(slots_per_node):
                    gpu, place = slot // slots_per_gpu, slot % slots_per_gpu
                    if place >= experts_per_node:
                        place += gpu * beyond
                    slots[slot] = experts[place % experts_per_node]
                continue
            node_total = 0.0
            for i in range(experts_per_node):
                local[i] = weight[experts[i]]
                node_total += local[i]
            _replicate(local, slots_per_node, gpus_per_node, count, share, order)
            _rank(local, count, packing, order, spare, pack_scratch.histogram)
            _pack(packing, pack_scratch)
            node_bound = max(node_total / gpus_per_node, packing.share[0])
            near = NEAR_ENOUGH if slots_per_node > experts_per_node else NEAR_ENOUGH_WITHOUT_SPARE
            target = max(bound, node_bound) * (1.0 + near)
            _descend(packing, max(target, _least_peak_of_pairs(packing)), int(WORK), search_scratch)
            if num_nodes == 1:
                bound = node_bound
            for gpu in range(gpus_per_node):
                for slot in range(slots_per_gpu):
                    slots[gpu * slots_per_gpu + slot] = experts[order[packing.slots[gpu, slot]]]
        peaks[layer] = 0.0
        if total > 0.0:
            peaks[layer] = _peak_of(weight, phy2log[layer], slots_per_gpu, count, share)
        bounds[layer] = bound if total > 0.0 else 0.0


@inner
def _peak_of(weight: F64, phy2log: I64, slots_per_gpu: int, count: I64, share: F64) -> float:
    """Load of the busiest GPU, added up slot by slot as `Placement.gpu_load` does."""
    for expert in range(weight.shape[0]):
        count[expert] = 0
    for slot in range(phy2log.shape[0]):
        count[phy2log[slot]] += 1
    for expert in range(weight.shape[0]):
        share[expert] = weight[expert] / count[expert]
    peak = 0.0
    for begin in range(0, phy2log.shape[0], slots_per_gpu):
        load = 0.0
        for slot in range(begin, begin + slots_per_gpu):
            load += share[phy2log[slot]]
        peak = max(peak, load)
    return peak


@kernel
def _peak_layers(
    windows: F64, weights: F64, layers: I64, gpus: Gpus, phy2log: I64, peaks: F64
) -> None:
    """Fill `peaks` [L] of `layers` with the expected peak, of loads over paces, over `windows`
    [T, L, E], which count `weights` [T, L].
    """
    num_windows, _, num_experts = windows.shape
    count, share = np.empty(num_experts, np.int64), np.empty(num_experts)
    for layer in layers:
        peaks[layer] = 0.0
        for window in range(num_windows):
            peak = _paced_peak_of(windows[window, layer], phy2log[layer], gpus, count, share)
            peaks[layer] += weights[window, layer] * peak


@inner
def _paced_peak_of(weight: F64, phy2log: I64, gpus: Gpus, count: I64, share: F64) -> float:
    """Load over pace of the busiest GPU, added up slot by slot as `Placement.gpu_load` does."""
    for expert in range(weight.shape[0]):
        count[expert] = 0
    for slot in range(phy2log.shape[0]):
        count[phy2log[slot]] += 1
    for expert in range(weight.shape[0]):
        share[expert] = weight[expert] / count[expert]
    peak = 0.0
    for gpu in range(gpus.pace.shape[0]):
        load = 0.0
        for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
            load += share[phy2log[slot]]
        peak = max(peak, load / gpus.pace[gpu])
    return peak
