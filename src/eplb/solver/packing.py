"""What the solver's kernels share: one layer being packed, scratch memory, and a sort.

Inside the solver a layer's experts are named by *rank*, 0 the one whose replicas are largest, so
that "a little smaller than" is a step to the right in memory. A `Packing` is in ranks throughout.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.arrays import F64, I32, I64, B, Gpus, Task, Wishes
from eplb.solver.jit import allocating, inner

__all__ = [
    "F64",
    "FORBIDDEN",
    "HISTOGRAM",
    "I32",
    "I64",
    "LONGEST_BAR",
    "MOST_SWAPS",
    "B",
    "Gpus",
    "Packing",
    "SearchScratch",
    "Task",
    "Wishes",
]

MOST_SWAPS = 400
"""Most swaps of one descent, for which there is a log."""
LONGEST_BAR = 24
"""Most steps for which an expert may not return to a GPU that it left."""

FORBIDDEN = 1 << 20
"""Bars, and copies that count as held, from which on they are wishes that no step takes away."""

HISTOGRAM = 4 * 256
"""Length of the histogram that `_descending` needs: 256 bins for each of its 4 passes."""


class Packing(NamedTuple):
    """One layer's replicas on GPUs: E experts by rank, G GPUs of S slots, P = G * S replicas."""

    weight: F64
    """[E] load of an expert, all its replicas together."""
    copies: I64
    """[E] replicas of an expert."""
    share: F64
    """[E] load of one replica, falling with rank: weight / copies."""
    first: I64
    """[E] where an expert's replicas begin in `gpu_of`."""
    gpu_of: I64
    """[P] GPU of a replica; an expert's replicas stand together."""
    slots: I64
    """[G, S] expert in a slot; -1 in those at the end that a GPU does not have."""
    load: F64
    """[G] load of a GPU."""


@allocating
def _new_packing(num_experts: int, num_gpus: int, slots_per_gpu: int) -> Packing:
    return Packing(
        np.empty(num_experts, np.float64),
        np.empty(num_experts, np.int64),
        np.empty(num_experts, np.float64),
        np.empty(num_experts, np.int64),
        np.empty(num_gpus * slots_per_gpu, np.int64),
        np.empty((num_gpus, slots_per_gpu), np.int64),
        np.empty(num_gpus, np.float64),
    )


class SearchScratch(NamedTuple):
    """Memory of swaps, which bar an expert for some steps from a GPU that it left."""

    barred: I64
    """[E, G] last step at which an expert may not come onto a GPU."""
    step: I64
    """[1] steps made so far, in all layers, so that `barred` need not be cleared."""
    log: I64
    """[MOST_SWAPS, 4] swaps made since the best packing so far: GPU, expert, GPU, expert."""


@allocating
def _new_search_scratch(num_experts: int, num_gpus: int, slots_per_gpu: int) -> SearchScratch:
    return SearchScratch(
        np.zeros((num_experts, num_gpus), np.int64),
        np.zeros(1, np.int64),
        np.empty((MOST_SWAPS, 4), np.int64),
    )


@inner
def _write_rules(rules: I64, wishes: Wishes, row: int) -> None:
    """Fill `rules` [E, 2 + D] with the fewest copies of an expert, the most, and the experts that
    no GPU may hold beside it, -1 behind the last of them.
    """
    for expert in range(rules.shape[0]):
        rules[expert, 0], rules[expert, 1] = wishes.least[row, expert], wishes.most[row, expert]
        _copy(wishes.apart[row, expert], rules[expert, 2:])


@inner
def _keep_apart(bars: I32, rules: I64, gpu: int, expert: int, by: int) -> None:
    """Add to the `bars` [G, E] of those that an expert must be apart from, on a GPU that it comes
    to or leaves; `rules` are those of `_write_rules`.
    """
    for i in range(2, rules.shape[1]):
        other = rules[expert, i]
        if other < 0:
            break
        bars[gpu, other] += by


@inner
def _holds(packing: Packing, gpu: int, expert: int) -> bool:
    """Whether a GPU holds a replica of an expert."""
    start = packing.first[expert]
    for i in range(start, start + packing.copies[expert]):
        if packing.gpu_of[i] == gpu:
            return True
    return False


@inner
def _swap(packing: Packing, gpu: int, expert: int, other: int, partner: int) -> None:
    """Exchange a replica of `expert` on `gpu` for a replica of `partner` on GPU `other`."""
    slot = 0
    while packing.slots[gpu, slot] != expert:
        slot += 1
    packing.slots[gpu, slot] = partner
    slot = 0
    while packing.slots[other, slot] != partner:
        slot += 1
    packing.slots[other, slot] = expert
    i = packing.first[expert]
    while packing.gpu_of[i] != gpu:
        i += 1
    packing.gpu_of[i] = other
    i = packing.first[partner]
    while packing.gpu_of[i] != other:
        i += 1
    packing.gpu_of[i] = gpu
    change = packing.share[expert] - packing.share[partner]
    packing.load[gpu] -= change
    packing.load[other] += change


@inner
def _peak(load: F64) -> float:
    """Load of the busiest GPU."""
    peak = 0.0
    for gpu in range(load.shape[0]):
        peak = max(peak, load[gpu])
    return peak


@inner
def _copy(source: F64 | I64, target: F64 | I64) -> None:
    """Copy an array; numba's own way compiles longer than a whole kernel."""
    for i in range(source.shape[0]):
        target[i] = source[i]


@inner
def _excess(above: float) -> float:
    """Square of a load above a target, 0 for one under it."""
    return above * above if above > 0.0 else 0.0


@inner
def _descending(keys: F64, order: I64, scratch: I64, histogram: I64) -> None:
    """Write into `order` [n] the indices that sort `keys` [n], none negative, from large to small.

    A stable radix sort by the upper half of the float's bits, then an insertion pass, nearly free
    on what is nearly sorted, that settles the lower half: several times faster than comparisons
    on the few hundred keys of a layer. `scratch` [n] and `histogram` [HISTOGRAM] are overwritten.
    """
    n = keys.shape[0]
    bits = keys.view(np.uint64)
    low = np.uint64(255)
    for i in range(HISTOGRAM):
        histogram[i] = 0
    for i in range(n):
        flipped = ~bits[i]  # the complement sorts from large to small
        for digit in range(4):
            shift = np.uint64(32 + 8 * digit)
            histogram[256 * digit + np.int64((flipped >> shift) & low)] += 1
        order[i] = i
    source, target = order, scratch
    for digit in range(4):
        shift = np.uint64(32 + 8 * digit)
        base = 256 * digit
        if histogram[base + np.int64((~bits[0] >> shift) & low)] == n:
            continue
        start = 0
        for i in range(base, base + 256):
            size = histogram[i]
            histogram[i] = start
            start += size
        for i in range(n):
            index = source[i]
            place = base + np.int64((~bits[index] >> shift) & low)
            target[histogram[place]] = index
            histogram[place] += 1
        source, target = target, source
    for i in range(n):
        order[i] = source[i]
    for i in range(1, n):
        index = order[i]
        key = keys[index]
        j = i - 1
        while j >= 0 and (keys[order[j]] < key or (keys[order[j]] == key and order[j] > index)):
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = index
