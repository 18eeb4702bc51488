"""Plans for several windows: the least expected peak, replica counts and packing together.

Each window is scaled to the same total, so that it counts by how uneven it is. An expert gets
replicas by its mean load and a multiple of its standard deviation, replicas are spread over GPUs,
and the expected peak is lowered by swaps under norms of rising power.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.convex import _descend, _forget, _new_hosts
from eplb.solver.jit import inner, kernel
from eplb.solver.kicks import _kick_and_descend
from eplb.solver.layers import _peak_of
from eplb.solver.order import HISTOGRAM, _descending
from eplb.solver.packing import F64, I64
from eplb.solver.replicate import _replicate
from eplb.solver.spread import _spread

__all__ = ["EFFORTS", "SORTED_BY", "Work"]

SORTED_BY = 8
"""Experts by whose loads windows are put in order."""


class Work(NamedTuple):
    """A fixed amount of work.

    Attributes:
        doublings: [K] norms to descend under, one after the other, of the powers 2 ** doublings.
        tolerances: [K] part of the objective below which a swap is not worth looking for.
        sweeps: [K] most sweeps of each descent.
        most_products: of slots with slots and windows, in each descent; it has at least 1 sweep.
        num_kicks: tries to get out of dead ends.
        kick_stage: the descent after which they come.
        kick_doublings: the norm to descend under after a kick.
        kick_tolerance: the tolerance of that.
    """

    doublings: I64
    tolerances: F64
    sweeps: I64
    most_products: float
    num_kicks: int
    kick_stage: int
    kick_doublings: int
    kick_tolerance: float


_MOST_SWEEPS = 30
"""Descents end sooner by themselves, but for a few."""

_POWERS = np.array([1, 3, 5])

EFFORTS = {
    "fast": Work(_POWERS[1:2], np.array([1e-4]), np.array([_MOST_SWEEPS]), 4e6, 0, 0, 3, 1e-4),
    # Late sweeps under a low norm do what the next one does again.
    "default": Work(_POWERS, np.full(3, 1e-4), np.array([_MOST_SWEEPS, 2, 3]), 16e6, 0, 0, 3, 1e-4),
    # Kicks under a smooth norm: under a sharp one they fit the windows planned for, and no others.
    "thorough": Work(
        _POWERS, np.array([1e-4, 1e-4, 1e-5]), np.full(3, _MOST_SWEEPS), 100e6, 30, 1, 4, 2e-4
    ),
}
"""What an effort is for several windows."""


@kernel
def _plan_windows(
    loads: F64,
    weights: F64,
    layers: I64,
    expert_of: I64,
    num_gpus: int,
    slots_per_gpu: int,
    deviations: float,
    effort: Work,
    phy2log: I64,
    peaks: F64,
    bounds: F64,
) -> None:
    """Plan `layers` of `loads` [T, L, E], each of which has some load; fill their rows of `phy2log`
    [L, P], unless what is there has a lower expected peak, of `peaks` and of `bounds` [L], which
    hold those of the mean of the windows.

    `weights` [T] add up to 1. `expert_of` [L, N, E / N] has the experts of each node, or [1, 1, E].
    An expert counts by its mean load and `deviations` times its standard deviation.
    """
    num_windows, _, num_experts = loads.shape
    _, num_nodes, node_experts = expert_of.shape
    node_gpus = num_gpus // num_nodes
    node_slots = node_gpus * slots_per_gpu
    hosts = _new_hosts(node_gpus, slots_per_gpu, node_experts, num_windows)
    kept = _new_hosts(node_gpus, slots_per_gpu, node_experts, num_windows)
    scaled = np.empty((num_windows, num_experts))
    weight = np.empty(num_windows)
    local = np.empty((node_experts, num_windows))
    share = np.empty((node_experts, num_windows))
    score = np.empty(node_experts)
    per_replica = np.empty(num_experts)
    count = np.empty(num_experts, np.int64)
    kept_count = np.empty(node_experts, np.int64)
    order = np.empty(num_experts, np.int64)
    scratch = np.empty(node_experts, np.int64)
    histogram = np.empty(HISTOGRAM, np.int64)
    filled = np.empty(node_gpus, np.int64)
    found = np.empty(phy2log.shape[1], np.int64)
    in_a_sweep = 0.5 * node_gpus * (node_gpus - 1) * slots_per_gpu**2 * num_windows
    most_sweeps = int(
        max(1.0, min(float(_MOST_SWEEPS), effort.most_products / max(1.0, in_a_sweep)))
    )
    for layer in layers:
        mean_load = _scale(loads, layer, weights, scaled, weight) / num_gpus
        for node in range(num_nodes if slots_per_gpu < node_experts else 0):
            experts = expert_of[layer % expert_of.shape[0], node]
            for i in range(node_experts):
                for window in range(num_windows):
                    local[i, window] = scaled[window, experts[i]] / mean_load
            _score(local, weight, deviations, score)
            node_count = count[:node_experts]
            _replicate(score, node_slots, node_gpus, node_count, per_replica, order[:node_experts])
            _descending(per_replica[:node_experts], order[:node_experts], scratch, histogram)
            for i in range(node_experts):
                for window in range(num_windows):
                    share[i, window] = local[i, window] / node_count[i]
            _spread(hosts, share, node_count, order[:node_experts], weight, filled)
            for stage in range(effort.doublings.shape[0]):
                _forget(hosts)
                _descend(
                    hosts,
                    weight,
                    effort.doublings[stage],
                    effort.tolerances[stage],
                    min(effort.sweeps[stage], most_sweeps),
                )
                if effort.num_kicks > 0 and stage == effort.kick_stage:
                    _kick_and_descend(
                        hosts,
                        kept,
                        local,
                        node_count,
                        kept_count,
                        weight,
                        effort.kick_doublings,
                        effort.kick_tolerance,
                        most_sweeps,
                        effort.num_kicks,
                    )
            for gpu in range(node_gpus):
                for slot in range(slots_per_gpu):
                    place = node * node_slots + gpu * slots_per_gpu + slot
                    found[place] = experts[hosts.slots[gpu, slot]]
        peaks[layer] = _expected(scaled, weight, phy2log[layer], slots_per_gpu, count, per_replica)
        if slots_per_gpu < node_experts:
            peak = _expected(scaled, weight, found, slots_per_gpu, count, per_replica)
            if peak < peaks[layer]:
                peaks[layer] = peak
                for slot in range(found.shape[0]):
                    phy2log[layer, slot] = found[slot]
        # What no plan for the mean goes below, none for the windows does: a maximum is convex.
        expected = 0.0
        for window in range(num_windows):
            if weight[window] > 0.0:
                bound = _least_peak(
                    scaled[window], num_gpus, slots_per_gpu, count, per_replica, order
                )
                expected += weight[window] * bound
        bounds[layer] = max(bounds[layer], expected)


@inner
def _scale(loads: F64, layer: int, weights: F64, scaled: F64, weight: F64) -> float:
    """Fill `scaled` [T, E], windows of one total, and `weight` [T], 0 of windows with no load;
    return the total. They are put in an order that does not depend on how they come.
    """
    num_windows, _, num_experts = loads.shape
    order = np.empty(num_windows, np.int64)
    for window in range(num_windows):
        place = window
        while place > 0 and _comes_before(loads, layer, window, order[place - 1]):
            order[place] = order[place - 1]
            place -= 1
        order[place] = window
    loaded, mean = 0.0, 0.0
    for rank in range(num_windows):
        window = order[rank]
        total = 0.0
        for expert in range(num_experts):
            total += loads[window, layer, expert]
        weight[rank] = weights[window] if total > 0.0 else 0.0
        loaded += weight[rank]
        mean += weight[rank] * total
    mean /= loaded
    for rank in range(num_windows):
        window = order[rank]
        total = 0.0
        for expert in range(num_experts):
            total += loads[window, layer, expert]
        factor = mean / total if total > 0.0 else 0.0
        weight[rank] /= loaded
        for expert in range(num_experts):
            scaled[rank, expert] = loads[window, layer, expert] * factor
    return mean


@inner
def _comes_before(loads: F64, layer: int, window: int, other: int) -> bool:
    """Whether the first experts of a window have less load, in the order of a dictionary."""
    for expert in range(min(SORTED_BY, loads.shape[2])):
        if loads[window, layer, expert] != loads[other, layer, expert]:
            return bool(loads[window, layer, expert] < loads[other, layer, expert])
    return False


@inner
def _score(loads: F64, weight: F64, deviations: float, score: F64) -> None:
    """Fill `score` [E] from `loads` [E, T]: mean and so many standard deviations over windows."""
    for expert in range(loads.shape[0]):
        mean = 0.0
        for window in range(loads.shape[1]):
            mean += weight[window] * loads[expert, window]
        variance = 0.0
        for window in range(loads.shape[1]):
            away = loads[expert, window] - mean
            variance += weight[window] * away * away
        score[expert] = mean + deviations * np.sqrt(variance)


@inner
def _expected(
    scaled: F64, weight: F64, phy2log: I64, slots_per_gpu: int, count: I64, share: F64
) -> float:
    """The expected peak of a placement, added up as `Placement.gpu_load` does."""
    total = 0.0
    for window in range(scaled.shape[0]):
        if weight[window] > 0.0:
            peak = _peak_of(scaled[window], phy2log, slots_per_gpu, count, share)
            total += weight[window] * peak
    return total


@inner
def _least_peak(
    loads: F64, num_gpus: int, slots_per_gpu: int, count: I64, share: F64, heap: I64
) -> float:
    """A lower bound on the peak of one window: the mean, or the largest replica where the slots are
    too few to cut every expert down to the mean.
    """
    num_experts = loads.shape[0]
    num_slots = num_gpus * slots_per_gpu
    total = 0.0
    for expert in range(num_experts):
        total += loads[expert]
    mean = total / num_gpus
    needed = 0.0
    for expert in range(num_experts):
        needed += max(1.0, np.ceil(loads[expert] / mean))
    if needed <= num_slots or slots_per_gpu >= num_experts:
        return mean
    _replicate(loads, num_slots, num_gpus, count, share, heap)
    for expert in range(num_experts):
        mean = max(mean, share[expert])
    return mean
