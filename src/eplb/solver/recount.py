"""Replica counts searched together with packing: steps of one hand-over, each packed afresh.

Where a GPU has few slots, the counts that make the largest replica smallest are not those that
pack best: with two slots, what matters is which replica stands beside which. Each step looks at
the busiest GPU. It gives one of its experts a replica more, from those that lose least by it, or
one replica fewer, in favour of the experts with the largest replicas; each candidate is packed
anew, and the first that lowers the excess above a target is kept.

With two slots on a GPU no packing has less excess than the pairs of the largest replica with the
smallest, the second largest with the second smallest and so on: the excess is convex in the loads,
and the loads of any other pairs are more spread out. So a candidate whose pairs are no better is
passed over without packing it.

It is for layers that the first pass leaves far above their bound, for which few slots on a GPU are
the cause. No layer becomes worse.
"""

import numpy as np

from eplb.solver.bounds import _simple_bound
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.layers import NEAR_ENOUGH, _peak_of
from eplb.solver.packing import F64, I64, Gpus, Packing, _copy, _excess
from eplb.solver.swap import Packer, _new_packer, _packed, _swap_to, _write_out

__all__ = ["FEW_SLOTS"]

_WIDTH = 8
"""Experts that are tried on the other side of a hand-over, or more where trying is cheap."""
_WIDE = 8
"""With two slots on a GPU, all tries of a step may take one part of so many of the work
(docs/experiments.md, replica counts)."""
_WORK = 400_000
"""Replicas and experts handled, for one layer."""
_PACKING = 8
"""How often packing handles each of them; measured against writing them down once."""
_AIM = 0.25
"""The target, as a share of the way from the bound to the peak."""


@allocating
def _recount(by: Packer, weight: F64, count: I64, bound: float, enough: float) -> None:
    """Change `count` [E] while that lowers the peak of its packing, and pack the final counts."""
    work, packing = _WORK, by.packing
    slots_per_gpu = packing.slots.shape[1]
    num_experts = weight.shape[0]
    num_replicas = packing.gpu_of.shape[0]
    peak = _packed(by, weight, count)
    width = _WIDTH
    if slots_per_gpu == 2:
        wide = _WORK // (_WIDE * 2 * slots_per_gpu * (num_experts + num_replicas))
        width = min(num_experts, max(_WIDTH, wide))
    givers = np.empty(2 * width * slots_per_gpu, np.int64)
    receivers = np.empty_like(givers)
    key = np.empty(num_experts)
    rank_of = np.empty(num_experts, np.int64)
    replicas = np.empty(num_replicas)
    pairs = slots_per_gpu == 2
    better = True
    while better and peak > enough and work > 0:
        better = False
        target = bound + _AIM * (peak - bound)
        least = _total_excess(packing.load, target) * (1.0 - 1e-9)
        num = _candidates(by, weight, count, key, width, givers, receivers)
        for rank in range(num_experts):
            rank_of[by.order[rank]] = rank
        for i in range(num):
            if work <= 0:
                break
            giver, receiver = givers[i], receivers[i]
            if pairs:
                work -= num_experts + num_replicas
                _hand_over(packing, rank_of[giver], rank_of[receiver], replicas)
                if _excess_of_pairs(replicas, target, least) >= least:
                    continue
            work -= _PACKING * (num_experts + num_replicas)
            count[giver] -= 1
            count[receiver] += 1
            peak = _packed(by, weight, count)
            better = _total_excess(packing.load, target) < least
            if better:
                break
            count[giver] += 1
            count[receiver] -= 1
            if pairs:  # the next hand-over starts from this packing
                _packed(by, weight, count)
        if not better:
            _packed(by, weight, count)


@inner
def _hand_over(packing: Packing, giver: int, receiver: int, replicas: F64) -> None:
    """Write the loads of all `replicas` [P], falling, as one slot goes from the expert of one rank
    to that of another; the packing stays as it is.
    """
    number, next_number = packing.copies[giver] - 1, packing.copies[receiver] + 1
    load, next_load = packing.weight[giver] / number, packing.weight[receiver] / next_number
    if next_load > load:
        number, load, next_number, next_load = next_number, next_load, number, load
    end = np.int64(0)  # a literal would be compiled for once more
    for rank in range(packing.share.shape[0]):
        share = packing.share[rank]
        while number > 0 and share <= load:
            end = _append(replicas, end, load, number)
            number, load, next_number = next_number, next_load, 0
        if rank not in (giver, receiver):
            end = _append(replicas, end, share, packing.copies[rank])
    end = _append(replicas, end, load, number)
    _append(replicas, end, next_load, next_number)


@inner
def _append(replicas: F64, end: int, load: float, number: int) -> int:
    """Write a number of replicas of one load at `end`; return the new end."""
    for i in range(end, end + number):
        replicas[i] = load
    return end + number


@inner
def _excess_of_pairs(replicas: F64, target: float, enough: float) -> float:
    """Least excess over any packing of `replicas` [P], falling, in pairs; `enough` or more is not
    counted to its end.
    """
    total = 0.0
    last = replicas.shape[0] - 1
    for i in range(replicas.shape[0] // 2):
        total += _excess(replicas[i] + replicas[last - i] - target)
        if total >= enough:
            break
    return total


@inner
def _total_excess(load: F64, target: float) -> float:
    """Sum over GPUs of the squared load above the target."""
    total = 0.0
    for gpu in range(load.shape[0]):
        total += _excess(load[gpu] - target)
    return total


@inner
def _candidates(
    by: Packer, weight: F64, count: I64, key: F64, width: int, givers: I64, receivers: I64
) -> int:
    """Write the hand-overs to try, most promising first, as experts; return how many.

    The busiest GPU's experts each receive from the `width` experts whose replicas stay smallest
    with one fewer, and give to the `width` with the largest replicas.
    """
    packing, order, max_copies = by.packing, by.order, by.packing.load.shape[0]
    num_experts, busiest = weight.shape[0], 0
    for gpu in range(1, max_copies):
        if packing.load[gpu] > packing.load[busiest]:
            busiest = gpu
    for expert in range(num_experts):
        key[expert] = weight[expert] / (count[expert] - 1) if count[expert] > 1 else np.inf
    num = 0
    for place in range(width):
        giver = 0
        for expert in range(1, num_experts):
            if key[expert] < key[giver]:
                giver = expert
        givable = key[giver] < np.inf
        key[giver] = np.inf
        for slot in range(packing.slots.shape[1]):
            expert = order[packing.slots[busiest, slot]]
            if givable and giver != expert and count[expert] < max_copies:
                givers[num] = giver
                receivers[num] = expert
                num += 1
            if place < num_experts and count[expert] > 1:
                receiver = order[place]
                if receiver != expert and count[receiver] < max_copies:
                    givers[num] = expert
                    receivers[num] = receiver
                    num += 1
    return num


FEW_SLOTS = 0.01
"""Peak over bound, less 1, from which replica counts are searched."""


@kernel
def _recount_layers(
    layers: I64, loads: F64, num_nodes: int, gpus: Gpus, phy2log: I64, peaks: F64, bounds: F64
) -> None:
    """Search the replica counts of `layers`, rows of `phy2log` [L, P], and lower their `peaks` [L].

    `bounds` [L] are proven. Experts stay on the node where they are. GPUs are alike.
    """
    num_experts, num_slots, num_gpus = loads.shape[1], phy2log.shape[1], gpus.pace.shape[0]
    experts_per_node, slots_per_node = num_experts // num_nodes, num_slots // num_nodes
    gpus_per_node, slots_per_gpu = num_gpus // num_nodes, num_slots // num_gpus
    by = _new_packer(experts_per_node, gpus_per_node, slots_per_gpu)
    weight, share = np.empty(experts_per_node), np.empty(num_experts)
    count, place = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    experts, heap = np.empty(experts_per_node, np.int64), np.empty(experts_per_node, np.int64)
    kept = np.empty(num_slots, np.int64)
    for layer in layers:
        _copy(phy2log[layer], kept)
        for node in range(num_nodes):
            slots = phy2log[layer, node * slots_per_node : (node + 1) * slots_per_node]
            _take_up(loads[layer], slots, weight, count, experts, place)
            bound = _simple_bound(weight, gpus_per_node, slots_per_gpu, share, by.spare, heap)
            bound = max(bound, bounds[layer])
            enough = bound * (1.0 + NEAR_ENOUGH)
            _recount(by, weight, count, bound, enough)
            _swap_to(by, enough)
            _write_out(by, experts, slots)
        peak = _peak_of(loads[layer], phy2log[layer], gpus, count, share)
        if peak < peaks[layer]:
            peaks[layer] = peak
        else:
            _copy(kept, phy2log[layer])


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
