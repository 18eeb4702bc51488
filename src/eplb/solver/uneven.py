"""The first pass where GPUs differ in slots and speed: loads in, slots out.

A GPU of pace v is to have the load v * M, where M is the load of all GPUs over the sum of their
paces. What it still lacks, divided by its free slots, is the replica that it *wants*. Replicas are
placed by falling load, each on the GPU that wants the largest. Where GPUs do not differ by much,
there are as many of each expert as where they are alike, none of them large: that also suits loads
which were not seen. Otherwise experts are placed by falling load, in as many replicas as make each
about as large as GPUs want, while slots are to spare. Swaps follow, as where GPUs are alike: each
GPU counts as so much lighter as it is to have more than the mean.
"""

import numpy as np

from eplb.solver.arrays import F64, I64, B, Gpus
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.pack import _rank
from eplb.solver.packing import (
    HISTOGRAM,
    Packing,
    _copy,
    _descending,
    _new_packing,
    _new_search_scratch,
)
from eplb.solver.replicate import _replicate
from eplb.solver.swap import _descend

__all__ = ["NEAR_ENOUGH_UNEVEN"]

NEAR_ENOUGH_UNEVEN = 1e-3
"""Peak over bound, less 1, at which swaps end."""
_WORK = 15_000
"""Looks at a replica, for one filling (docs/experiments.md, GPUs that differ)."""
_AS_ALIKE = 0.0
_SCALES = np.array([_AS_ALIKE, 2.0, 3.0, 1.4, 1.1, 5.0, 1.0])
"""Fillings are tried with replicas so many times as large as is wanted, until one is near; the
first is with as many as where GPUs are alike (docs/experiments.md, GPUs that differ)."""
_NEAR = 3e-3
"""Peak over bound, less 1, at which no other filling is tried."""


@kernel
def _plan_uneven_layers(
    layers: I64, loads: F64, gpus: Gpus, phy2log: I64, peaks: F64, bounds: F64
) -> None:
    """Plan `layers` of `loads` [L, E]: fill their rows of `phy2log` [L, P], of the slots that GPUs
    have, and of `peaks` and `bounds` [L], loads over paces.
    """
    num_experts, num_gpus = loads.shape[1], gpus.pace.shape[0]
    num_slots = phy2log.shape[1]
    size = 0
    for gpu in range(num_gpus):
        size = max(size, gpus.first[gpu + 1] - gpus.first[gpu])
    packing = _new_packing(num_experts, num_gpus, size)
    swap_scratch = _new_search_scratch(num_experts, num_gpus, size)
    histogram = np.empty(HISTOGRAM, np.int64)
    falling, order = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    spare, slots = np.empty(num_experts, np.int64), np.empty(num_slots, np.int64)
    count, place = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    lacks, wants = np.empty(num_gpus), np.empty(num_gpus)
    free, line = np.empty(num_gpus, np.int64), np.empty(num_gpus, np.int64)
    holds = np.empty((num_gpus, num_experts), np.bool_)
    most_slots = min(num_slots, num_experts * num_gpus)
    by_need = np.argsort(_need(gpus), kind="mergesort")
    for layer in layers:
        load = loads[layer]
        _descending(load, falling, spare, histogram)
        bound = _bound(load, falling, gpus, by_need, packing)
        bounds[layer], peaks[layer] = bound, 0.0
        if bound == 0.0:
            for slot in range(num_slots):
                phy2log[layer, slot] = slot % num_experts
            continue
        peaks[layer] = np.inf
        for scale in _SCALES:
            by_load = falling
            if scale == _AS_ALIKE:
                if _fall_short(load, falling, gpus, bound, by_need[0]):
                    continue
                _replicate(load, most_slots, num_gpus, count, packing.share, order)
                _rank(load, count, packing, order, spare, histogram)
                if _least_of(packing, gpus, by_need) > bound:
                    continue
                by_load = order
            _fill(load, by_load, gpus, bound, scale, count, lacks, wants, free, line, holds, slots)
            _rank(load, count, packing, order, spare, histogram)
            if _least_of(packing, gpus, by_need) >= peaks[layer]:
                continue
            _take_up(gpus, slots, bound, packing, order, spare, place)
            _descend(packing, bound, int(_WORK), swap_scratch)
            peak = 0.0
            for gpu in range(num_gpus):
                total = 0.0
                for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
                    rank = packing.slots[gpu, slot - gpus.first[gpu]]
                    slots[slot] = order[rank]
                    total += packing.share[rank]
                peak = max(peak, total / gpus.pace[gpu])
            if peak < peaks[layer]:
                peaks[layer] = peak
                _copy(slots, phy2log[layer])
            if peaks[layer] <= bound * (1.0 + _NEAR):
                break


@allocating
def _need(gpus: Gpus) -> F64:
    """[G] slots of a GPU over its pace: the fewer, the larger the replicas that it needs."""
    need = np.empty(gpus.pace.shape[0])
    for gpu in range(need.shape[0]):
        need[gpu] = (gpus.first[gpu + 1] - gpus.first[gpu]) / gpus.pace[gpu]
    return need


@inner
def _fall_short(load: F64, order: I64, gpus: Gpus, bound: float, needy: int) -> bool:
    """Whether as many replicas as where GPUs are alike are surely too small: the slots are enough
    to cut all down to what those of the GPU that needs the largest must have on average.
    """
    num_experts, num_gpus = load.shape[0], gpus.pace.shape[0]
    total = 0.0
    for expert in range(num_experts):
        total += load[expert]
    least = total - bound * (num_gpus - gpus.pace[needy])
    share = least / (gpus.first[needy + 1] - gpus.first[needy])
    if share <= 0.0:
        return False
    spare = gpus.first[num_gpus] - num_experts
    for i in range(num_experts):
        if spare < 0 or load[order[i]] <= share:
            break
        spare -= np.int64(np.ceil(load[order[i]] / share)) - 1
    return bool(spare >= 0)


@inner
def _least_of(packing: Packing, gpus: Gpus, by_need: I64) -> float:
    """A lower bound on the peak of ranked replicas: GPUs hold no more than the largest for all
    their slots, which leaves the rest to the others. The first in `by_need` [G] are taken.
    """
    rest, pace, least = 0.0, 0.0, 0.0
    for rank in range(packing.share.shape[0]):
        rest += packing.share[rank] * packing.copies[rank]
    for gpu in range(gpus.pace.shape[0]):
        pace += gpus.pace[gpu]
    rank, left = 0, packing.copies[0]
    for i in range(gpus.pace.shape[0] - 1):
        gpu = by_need[i]
        for _ in range(gpus.first[gpu + 1] - gpus.first[gpu]):
            if left == 0 and rank + 1 < packing.share.shape[0]:
                rank += 1
                left = packing.copies[rank]
            if left > 0:
                rest -= packing.share[rank]
                left -= 1
        pace -= gpus.pace[gpu]
        if pace > 0.0:
            least = max(least, rest / pace)
    return least


@allocating
def _bound(load: F64, order: I64, gpus: Gpus, by_need: I64, packing: Packing) -> float:
    """A lower bound on the peak, of loads over paces.

    It is no less than the mean. Of the heaviest expert, some GPU takes what is left on the slowest
    of the GPUs that it has replicas on. And it is no less than that of one replica of each expert,
    where slots may stay empty; `packing` is overwritten.
    """
    num_experts, num_gpus = load.shape[0], gpus.pace.shape[0]
    total = 0.0
    for expert in range(num_experts):
        total += load[expert]
    bound = total / num_gpus
    fastest = np.sort(gpus.pace)
    most = min(num_gpus, gpus.first[num_gpus] - num_experts + 1)
    split = 0.0
    for copies in range(1, most + 1):
        split = max(split, copies * fastest[num_gpus - copies])
    bound = max(bound, load[order[0]] / split)
    for rank in range(num_experts):
        packing.share[rank], packing.copies[rank] = load[order[rank]], 1
    bound = max(bound, _least_of(packing, gpus, by_need))
    return float(bound)


@inner
def _fill(
    load: F64,
    order: I64,
    gpus: Gpus,
    bound: float,
    scale: float,
    count: I64,
    lacks: F64,
    wants: F64,
    free: I64,
    line: I64,
    holds: B,
    slots: I64,
) -> None:
    """Fill `slots` [P] and `count` [E], with replicas about `scale` times as large as is wanted, or
    of a scale of 0 with as many as `count` says, by their `order` [E]. The first GPUs in `line` [G]
    want the largest.
    """
    num_experts, num_gpus = load.shape[0], lacks.shape[0]
    spare, room = gpus.first[num_gpus] - num_experts, num_gpus
    for gpu in range(num_gpus):
        free[gpu] = gpus.first[gpu + 1] - gpus.first[gpu]
        lacks[gpu] = bound * gpus.pace[gpu]
        wants[gpu] = lacks[gpu] / free[gpu]
        at = gpu
        while at > 0 and wants[line[at - 1]] < wants[gpu]:
            line[at] = line[at - 1]
            at -= 1
        line[at] = gpu
        for expert in range(num_experts):
            holds[gpu, expert] = False
    for i in range(num_experts):
        expert = order[i]
        copies, wanted = np.int64(1), wants[line[0]]
        if scale == _AS_ALIKE:
            copies = count[expert]
        elif wanted > 0.0:
            copies = max(copies, np.int64(load[expert] / (wanted * scale) + 0.5))
        copies = min(copies, spare + 1, room)
        spare -= copies - 1
        count[expert] = copies
        share = load[expert] / copies
        for _ in range(copies):
            at = 0
            while holds[line[at], expert]:
                at += 1
            gpu = line[at]
            slots[gpus.first[gpu + 1] - free[gpu]] = expert
            holds[gpu, expert] = True
            lacks[gpu] -= share
            free[gpu] -= 1
            wants[gpu] = lacks[gpu] / free[gpu] if free[gpu] > 0 else -np.inf
            while at > 0 and wants[line[at - 1]] < wants[gpu]:
                line[at] = line[at - 1]
                at -= 1
            while at + 1 < room and wants[line[at + 1]] > wants[gpu]:
                line[at] = line[at + 1]
                at += 1
            line[at] = gpu
            room -= int(free[gpu] == 0)
    # What is left takes further replicas, of the lightest experts that a GPU does not hold.
    for gpu in range(num_gpus):
        i = num_experts - 1
        while free[gpu] > 0:
            expert = order[i] if i >= 0 else order[num_experts - 1]
            if i < 0 or not holds[gpu, expert]:
                slots[gpus.first[gpu + 1] - free[gpu]] = expert
                holds[gpu, expert] = True
                count[expert] += 1
                free[gpu] -= 1
            i -= 1


@inner
def _take_up(
    gpus: Gpus, slots: I64, bound: float, packing: Packing, order: I64, rank_of: I64, place: I64
) -> None:
    """Take `slots` [P] up into a ranked packing, in which a GPU is as far above `bound` as it is
    above what it may have.
    """
    for rank in range(order.shape[0]):
        rank_of[order[rank]] = rank
        place[rank] = packing.first[rank]
    for gpu in range(gpus.pace.shape[0]):
        begin, total = gpus.first[gpu], 0.0
        size = gpus.first[gpu + 1] - begin
        for slot in range(packing.slots.shape[1]):
            if slot >= size:
                packing.slots[gpu, slot] = -1
                continue
            rank = rank_of[slots[begin + slot]]
            packing.slots[gpu, slot] = rank
            packing.gpu_of[place[rank]] = gpu
            place[rank] += 1
            total += packing.share[rank]
        packing.load[gpu] = total - bound * (gpus.pace[gpu] * (1.0 + NEAR_ENOUGH_UNEVEN) - 1.0)
