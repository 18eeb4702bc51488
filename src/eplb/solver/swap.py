"""Swaps between GPUs under a target: the quick part of improving, on replicas sorted by load.

As experts are in ranks, the replicas that would bring an overloaded GPU just under the target stand
side by side, and the search for a swap does not grow with the number of GPUs.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.arrays import F64, I64
from eplb.solver.jit import allocating, inner
from eplb.solver.pack import PackScratch, _least_peak_of_pairs, _new_pack_scratch, _pack, _rank
from eplb.solver.packing import (
    LONGEST_BAR,
    MOST_SWAPS,
    Packing,
    SearchScratch,
    _excess,
    _holds,
    _new_packing,
    _new_search_scratch,
    _peak,
    _swap,
)

__all__ = ["Packer"]

_WORK = 60_000
"""Looks at a replica, for one layer."""


class Packer(NamedTuple):
    """What it takes to pack the experts of a node, time and again, and to swap after that."""

    packing: Packing
    order: I64
    """[E] the expert of a rank."""
    spare: I64
    """[E] scratch."""
    scratch: PackScratch
    swaps: SearchScratch


@allocating
def _new_packer(num_experts: int, num_gpus: int, slots_per_gpu: int) -> Packer:
    return Packer(
        _new_packing(num_experts, num_gpus, slots_per_gpu),
        np.empty(num_experts, np.int64),
        np.empty(num_experts, np.int64),
        _new_pack_scratch(num_experts, num_gpus, slots_per_gpu),
        _new_search_scratch(num_experts, num_gpus, slots_per_gpu),
    )


@inner
def _packed(by: Packer, weight: F64, count: I64) -> float:
    """Pack experts of loads [E] in so many replicas [E]; return the peak."""
    _rank(weight, count, by.packing, by.order, by.spare, by.scratch.histogram)
    _pack(by.packing, by.scratch)
    return _peak(by.packing.load)


@inner
def _swap_to(by: Packer, target: float) -> None:
    """Swap until no GPU is above a target, or above what no packing in pairs is below."""
    _descend(by.packing, max(target, _least_peak_of_pairs(by.packing)), np.int64(_WORK), by.swaps)


@inner
def _write_out(by: Packer, experts: I64, slots: I64) -> None:
    """Write what is packed into slots [P], which of `experts` [E] each holds."""
    num_gpus, slots_per_gpu = by.packing.slots.shape
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            slots[gpu * slots_per_gpu + slot] = experts[by.order[by.packing.slots[gpu, slot]]]


@inner
def _descend(packing: Packing, target: float, work: int, scratch: SearchScratch) -> None:
    """Swap replicas until no GPU is above `target` or the `work` is spent, looks at a
    replica.

    First every GPU above the target is brought to it where one swap can, its partner staying at
    or under it. Then a tabu search: the busiest GPU makes the swap that leaves the least excess,
    the sum of (load above the target)^2, even where that is for the worse; what has left a GPU is
    barred from it for some steps; the packing with the lowest peak is kept.
    """
    load, barred, clock, log = packing.load, scratch.barred, scratch.step, scratch.log
    num_gpus = load.shape[0]
    clock[0] += LONGEST_BAR  # no bar of the layer before holds
    bar = min(10, 2 + num_gpus // 3)
    busiest, lightest = _extremes(load)
    lowest = load[busiest]
    since_lowest = 0
    for step in range(num_gpus + MOST_SWAPS):
        only_fitting = step < num_gpus
        if only_fitting:
            gpu = step
            if load[gpu] <= target or work <= 0:
                continue
        else:
            gpu, lightest = _extremes(load)
            if step == num_gpus or load[gpu] < lowest:
                lowest = load[gpu]
                since_lowest = 0
            if lowest <= target or work <= 0:
                break
            clock[0] += 1
        expert, partner, other, looks = _least_excess(
            packing, gpu, target, lightest, only_fitting, barred, clock[0]
        )
        work -= looks
        if expert >= 0:
            _swap(packing, gpu, expert, other, partner)
        if only_fitting:
            continue
        if expert < 0:
            break
        barred[expert, gpu] = clock[0] + bar
        barred[partner, other] = clock[0] + bar
        log[since_lowest, 0], log[since_lowest, 1] = gpu, partner
        log[since_lowest, 2], log[since_lowest, 3] = other, expert
        since_lowest += 1
    if _peak(load) < lowest:
        since_lowest = 0
    for i in range(since_lowest - 1, -1, -1):
        _swap(packing, log[i, 0], log[i, 1], log[i, 2], log[i, 3])


@inner
def _extremes(load: F64) -> tuple[int, float]:
    """The busiest GPU, the first of them, and the load of the lightest."""
    busiest = 0
    lightest = load[0]
    for gpu in range(1, load.shape[0]):
        if load[gpu] > load[busiest]:
            busiest = gpu
        lightest = min(lightest, load[gpu])
    return busiest, lightest


@inner
def _first_within(share: F64, begin: int, most: float) -> int:
    """The first rank from `begin` on whose share is at most `most`."""
    end = share.shape[0]
    while begin < end:
        middle = (begin + end) // 2
        if share[middle] > most:
            begin = middle + 1
        else:
            end = middle
    return begin


@inner
def _least_excess(
    packing: Packing,
    gpu: int,
    target: float,
    lightest: float,
    only_fitting: bool,
    barred: I64,
    step: int,
) -> tuple[int, int, int, int]:
    """The swap for `gpu` that leaves the least excess on it and its partner.

    Returns (expert, partner, other GPU, looks at a replica), -1 where there is none. A swap that
    leaves none ends the search: of those, the one that takes least from the room under the target,
    for the first slot that has one. `only_fitting` asks for such alone. `lightest` is the load of
    the lightest GPU or less.
    """
    share, load = packing.share, packing.load
    num_experts = share.shape[0]
    above = load[gpu] - target
    # A partner may be lighter by less than this, or the other GPU would become the busiest.
    window = target - lightest if only_fitting else load[gpu] - lightest
    least = np.inf
    found = (-1, -1, -1)
    looks = 0
    for slot in range(packing.slots.shape[1]):
        expert = packing.slots[gpu, slot]
        if expert < 0:
            break
        most = share[expert] - above
        partner = expert + 1
        if only_fitting:
            partner = _first_within(share, partner, most)
        while partner < num_experts and share[partner] == share[expert]:
            partner += 1
        while partner < num_experts:
            change = share[expert] - share[partner]
            if change >= window and not (only_fitting and change <= window):
                break
            left = _excess(above - change)
            start = packing.first[partner]
            for i in range(start, start + packing.copies[partner]):
                other = packing.gpu_of[i]
                looks += 1
                over = load[other] - target
                after = left + _excess(over + change)
                if only_fitting and after > 0.0:
                    continue
                value = after - _excess(over)
                if (
                    value < least
                    and other != gpu
                    and barred[expert, other] < step
                    and barred[partner, gpu] < step
                    and (packing.copies[expert] == 1 or not _holds(packing, other, expert))
                    and (packing.copies[partner] == 1 or not _holds(packing, gpu, partner))
                ):
                    least = value
                    found = (expert, partner, other)
                    if after == 0.0:
                        return found[0], found[1], found[2], looks
            partner += 1
    return found[0], found[1], found[2], looks
