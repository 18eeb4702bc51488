"""Replicas onto GPUs: the balanced largest differencing method, with no expert twice on a GPU.

Sorted replicas are cut into S rows of G, and each GPU takes one replica of every row. Two rows are
merged by adding the largest of one to the smallest of the other, always the two rows that spread
most, until one is left. On the loads that matter here the busiest GPU ends 5 to 10 times nearer
the mean than by the usual "heaviest first onto the least loaded GPU with room", in less time
(docs/experiments.md). With two slots on a GPU it is optimal for the given replica counts.

Source: Yakir, "The differencing algorithm LDM for partitioning: a proof of a conjecture of
Karmarkar and Karp", 1996 (BLDM for two sets); Michiels et al., "Performance ratios for the
differencing method", 2003 (more sets).
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating, inner
from eplb.solver.packing import F64, HISTOGRAM, I64, Packing, _descending, _holds, _swap

__all__ = ["PackScratch"]

_INSERTION_MOST = 96
"""Rows up to this long are sorted by insertion; measured, the two cost the same near 100."""


class PackScratch(NamedTuple):
    """Memory of `_pack`: replicas p stand in sorted order; a stack is what one GPU will hold."""

    expert: I64
    """[P] rank of the expert of a replica."""
    total: F64
    """[P] load of the stack that begins with a replica."""
    last: I64
    """[P] last replica of the stack that begins with a replica."""
    following: I64
    """[P] next replica in the stack, -1 at its end."""
    rows: I64
    """[S, G] the stacks of a row, by their first replica, the heaviest stack first."""
    spread: F64
    """[S] heaviest minus lightest stack of a row."""
    alive: I64
    """[S] rows not merged away yet."""
    keys: F64
    order: I64
    stacks: I64
    histogram: I64


@allocating
def _new_pack_scratch(num_experts: int, num_gpus: int, slots_per_gpu: int) -> PackScratch:
    num_slots = num_gpus * slots_per_gpu
    return PackScratch(
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.float64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty((slots_per_gpu, num_gpus), np.int64),
        np.empty(slots_per_gpu, np.float64),
        np.empty(slots_per_gpu, np.int64),
        np.empty(num_gpus, np.float64),
        np.empty(num_gpus, np.int64),
        np.empty(num_gpus, np.int64),
        np.empty(HISTOGRAM, np.int64),
    )


@inner
def _rank(
    weight: F64, count: I64, packing: Packing, order: I64, scratch: I64, histogram: I64
) -> None:
    """Put experts into ranks: fill `packing`'s weight, count, share and first, and `order` [E].

    `order[rank]` is the expert, by falling load of one replica.
    """
    num_experts = weight.shape[0]
    share = packing.weight  # as scratch, until the order is known
    for expert in range(num_experts):
        share[expert] = weight[expert] / count[expert]
    _descending(share, order, scratch, histogram)
    first = 0
    for rank in range(num_experts):
        packing.share[rank] = share[order[rank]]
        packing.copies[rank] = count[order[rank]]
        packing.first[rank] = first
        first += count[order[rank]]
    for rank in range(num_experts):
        packing.weight[rank] = weight[order[rank]]


@inner
def _pack(packing: Packing, scratch: PackScratch) -> None:
    """Place the replicas of a ranked layer: fill `packing`'s gpu_of, slots and load."""
    num_gpus, slots_per_gpu = packing.slots.shape
    total, last, following, rows = scratch.total, scratch.last, scratch.following, scratch.rows
    spread, alive = scratch.spread, scratch.alive
    replica = 0
    for rank in range(packing.share.shape[0]):
        for _ in range(packing.copies[rank]):
            scratch.expert[replica] = rank
            total[replica] = packing.share[rank]
            last[replica] = replica
            following[replica] = -1
            replica += 1
    for row in range(slots_per_gpu):
        for i in range(num_gpus):
            rows[row, i] = row * num_gpus + i
        spread[row] = total[row * num_gpus] - total[row * num_gpus + num_gpus - 1]
        alive[row] = row
    for num_rows in range(slots_per_gpu, 1, -1):
        one, other = _widest_two(spread, alive, num_rows)
        row, gone = alive[one], alive[other]
        for i in range(other, num_rows - 1):
            alive[i] = alive[i + 1]
        for i in range(num_gpus):
            stack = rows[row, i]
            added = rows[gone, num_gpus - 1 - i]
            following[last[stack]] = added
            last[stack] = last[added]
            total[stack] += total[added]
        if num_rows > 2:
            _sort_row(rows[row], scratch)
            spread[row] = total[rows[row, 0]] - total[rows[row, num_gpus - 1]]
    row = alive[0]
    for gpu in range(num_gpus):
        replica = rows[row, gpu]
        packing.load[gpu] = total[replica]
        slot = 0
        while replica >= 0:
            packing.slots[gpu, slot] = scratch.expert[replica]
            packing.gpu_of[replica] = gpu
            slot += 1
            replica = following[replica]
    if not _separate(packing):
        _deal(packing)


@inner
def _least_peak_of_pairs(packing: Packing) -> float:
    """Least peak of any packing of these replicas where a GPU has two slots, otherwise 0.

    The replica that is i-th from the top stands beside the one that is i-th from the bottom: some
    GPU of any packing has one of the i largest beside one that is no smaller than that.
    """
    if packing.slots.shape[1] != 2:
        return 0.0
    peak = 0.0
    top, bottom = 0, packing.share.shape[0] - 1
    top_left, bottom_left = packing.copies[top], packing.copies[bottom]
    while top < bottom:
        peak = max(peak, packing.share[top] + packing.share[bottom])
        pairs = min(top_left, bottom_left)
        top_left -= pairs
        bottom_left -= pairs
        if top_left == 0:
            top += 1
            top_left = packing.copies[top]
        if bottom_left == 0:
            bottom -= 1
            bottom_left = packing.copies[bottom]
    if top == bottom and min(top_left, bottom_left) > 1:
        peak = max(peak, 2.0 * packing.share[top])
    return peak


@inner
def _widest_two(spread: F64, alive: I64, num_rows: int) -> tuple[int, int]:
    """Places in `alive`, in order, of the two rows with the largest spread, ties to the first."""
    widest = 0
    for i in range(1, num_rows):
        if spread[alive[i]] > spread[alive[widest]]:
            widest = i
    second = -1
    for i in range(num_rows):
        if i != widest and (second < 0 or spread[alive[i]] > spread[alive[second]]):
            second = i
    return min(widest, second), max(widest, second)


@inner
def _sort_row(row: I64, scratch: PackScratch) -> None:
    """Sort the stacks of a row by falling load."""
    num_gpus = row.shape[0]
    total = scratch.total
    if num_gpus <= _INSERTION_MOST:
        for i in range(1, num_gpus):
            stack = row[i]
            load = total[stack]
            j = i - 1
            while j >= 0 and total[row[j]] < load:
                row[j + 1] = row[j]
                j -= 1
            row[j + 1] = stack
        return
    for i in range(num_gpus):
        scratch.keys[i] = total[row[i]]
    _descending(scratch.keys, scratch.order, scratch.stacks, scratch.histogram)
    for i in range(num_gpus):
        scratch.stacks[i] = row[i]
    for i in range(num_gpus):
        row[i] = scratch.stacks[scratch.order[i]]


@inner
def _separate(packing: Packing) -> bool:
    """Swap away second copies of an expert on a GPU, each for a replica of the nearest load.

    Returns False where some copy finds no swap that makes no other duplicate.
    """
    for rank in range(packing.share.shape[0]):
        start = packing.first[rank]
        for i in range(start + 1, start + packing.copies[rank]):
            gpu = packing.gpu_of[i]
            twice = False
            for j in range(start, i):
                twice = twice or packing.gpu_of[j] == gpu
            if twice and not _swap_away(packing, rank, gpu):
                return False
    return True


@inner
def _swap_away(packing: Packing, rank: int, gpu: int) -> bool:
    """Swap one replica of `rank` from `gpu` with the replica elsewhere whose load is nearest."""
    num_experts = packing.share.shape[0]
    share = packing.share
    above, below = rank - 1, rank + 1
    while above >= 0 or below < num_experts:
        if above >= 0 and (
            below >= num_experts or share[above] - share[rank] <= share[rank] - share[below]
        ):
            partner = above
            above -= 1
        else:
            partner = below
            below += 1
        if _holds(packing, gpu, partner):
            continue
        start = packing.first[partner]
        for i in range(start, start + packing.copies[partner]):
            other = packing.gpu_of[i]
            if not _holds(packing, other, rank):
                _swap(packing, gpu, rank, other, partner)
                return True
    return False


@inner
def _deal(packing: Packing) -> None:
    """Deal replicas out like cards: never twice on a GPU, as no expert has more than G of them."""
    num_gpus = packing.load.shape[0]
    replica = 0
    for gpu in range(num_gpus):
        packing.load[gpu] = 0.0
    for rank in range(packing.share.shape[0]):
        for _ in range(packing.copies[rank]):
            gpu = replica % num_gpus
            packing.slots[gpu, replica // num_gpus] = rank
            packing.gpu_of[replica] = gpu
            packing.load[gpu] += packing.share[rank]
            replica += 1
