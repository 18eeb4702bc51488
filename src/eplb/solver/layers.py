"""The first pass over layers, in one compiled loop: loads in, slots out."""

import numpy as np

from eplb.solver.jit import inner, kernel
from eplb.solver.packing import F64, I64, Gpus, Task
from eplb.solver.replicate import _replicate
from eplb.solver.swap import _new_packer, _packed, _swap_to, _write_out

__all__ = ["NEAR_ENOUGH"]

NEAR_ENOUGH = 4e-4
"""Peak over bound, less 1, at which a layer is done: past that, time is worth more."""
NEAR_ENOUGH_WITHOUT_SPARE = 3e-5
"""The same where every expert has one replica: only swaps are left, and they are quick
(docs/experiments.md, swaps)."""


@kernel
def _plan_layers(
    layers: I64, loads: F64, expert_of: I64, gpus: Gpus, phy2log: I64, peaks: F64, bounds: F64
) -> None:
    """Plan `layers` of `loads` [L, E], for GPUs that are alike: fill their rows of `phy2log`
    [L, P], `peaks` and `bounds` [L].

    `expert_of` [L, N, E / N] has the experts of each node, or [1, 1, E] of all layers; `bounds`
    has what that proves already.
    """
    num_experts, num_gpus = loads.shape[1], gpus.pace.shape[0]
    slots_per_gpu = phy2log.shape[1] // num_gpus
    _, num_nodes, experts_per_node = expert_of.shape
    gpus_per_node = num_gpus // num_nodes
    slots_per_node = gpus_per_node * slots_per_gpu
    by = _new_packer(experts_per_node, gpus_per_node, slots_per_gpu)
    weight = np.empty(num_experts)
    local = np.empty(experts_per_node)
    share = np.empty(num_experts)
    count = np.empty(num_experts, np.int64)
    for layer in layers:
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
            _replicate(local, slots_per_node, gpus_per_node, count, share, by.order)
            _packed(by, local, count)
            node_bound = max(node_total / gpus_per_node, by.packing.share[0])
            near = NEAR_ENOUGH if slots_per_node > experts_per_node else NEAR_ENOUGH_WITHOUT_SPARE
            _swap_to(by, max(bound, node_bound) * (1.0 + near))
            if num_nodes == 1:
                bound = node_bound
            _write_out(by, experts, slots)
        peaks[layer] = 0.0
        if total > 0.0:
            peaks[layer] = _peak_of(weight, phy2log[layer], gpus, count, share)
        bounds[layer] = bound if total > 0.0 else 0.0


@kernel
def _peak_layers(layers: I64, task: Task, phy2log: I64, peaks: F64) -> None:
    """Fill `peaks` [L] of `layers` with the expected peak of slots [L, P], loads over paces."""
    num_windows, _, num_experts = task.windows.shape
    count, share = np.empty(num_experts, np.int64), np.empty(num_experts)
    for layer in layers:
        peaks[layer] = 0.0
        for window in range(num_windows):
            load = task.windows[window, layer]
            peak = _peak_of(load, phy2log[layer], task.gpus, count, share)
            peaks[layer] += task.weights[window, layer] * peak


@inner
def _peak_of(weight: F64, phy2log: I64, gpus: Gpus, count: I64, share: F64) -> float:
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
