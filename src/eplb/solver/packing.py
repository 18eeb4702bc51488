"""The arrays that the solver's kernels share: one layer being packed, and their scratch memory.

Inside the solver a layer's experts are named by *rank*, 0 the one whose replicas are largest, so
that "a little smaller than" is a step to the right in memory. A `Packing` is in ranks throughout.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.solver.jit import inner

__all__ = ["F64", "I64", "LONGEST_BAR", "MOST_SWAPS", "B", "Packing", "SearchScratch"]

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
B = NDArray[np.bool_]

MOST_SWAPS = 400
"""Most swaps of one descent, for which there is a log."""
LONGEST_BAR = 24
"""Most steps for which an expert may not return to a GPU that it left."""


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
    """[G, S] expert in a slot."""
    load: F64
    """[G] load of a GPU."""


@inner
def _new_packing(num_experts: int, num_gpus: int, slots_per_gpu: int) -> Packing:
    """Memory for a packing, with nothing in it."""
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
    """Memory of the searches, which bar an expert for some steps from a GPU that it left."""

    holds: B
    """[E, G] whether a GPU holds an expert; all False between layers."""
    barred: I64
    """[E, G] last step at which an expert may not come onto a GPU."""
    step: I64
    """[1] steps made so far, in all layers, so that `barred` need not be cleared."""
    more: F64
    """[E] what a replica of an expert loses when the expert gets one more."""
    fewer: F64
    """[E] what a replica of an expert gains when the expert has one fewer."""
    relief: F64
    """[E] excess saved on all GPUs that hold an expert when it gets one more replica."""
    burden: F64
    """[E] excess added on all GPUs that hold an expert when it has one fewer replica."""
    best: I64
    """[G, S] slots of the best packing so far."""
    log: I64
    """[MOST_SWAPS, 4] swaps made since then: GPU, expert, GPU, expert."""


@inner
def _new_search_scratch(num_experts: int, num_gpus: int, slots_per_gpu: int) -> SearchScratch:
    """Memory for the searches of one packing."""
    return SearchScratch(
        np.zeros((num_experts, num_gpus), np.bool_),
        np.zeros((num_experts, num_gpus), np.int64),
        np.zeros(1, np.int64),
        np.empty(num_experts, np.float64),
        np.empty(num_experts, np.float64),
        np.empty(num_experts, np.float64),
        np.empty(num_experts, np.float64),
        np.empty((num_gpus, slots_per_gpu), np.int64),
        np.empty((MOST_SWAPS, 4), np.int64),
    )


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
def _excess(above: float) -> float:
    """Square of a load above a target, 0 for one under it."""
    return above * above if above > 0.0 else 0.0
