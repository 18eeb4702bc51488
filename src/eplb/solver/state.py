"""Where a search through one layer stands, for the moves of `search` and of `window_swaps`."""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating
from eplb.solver.packing import F64, I32, I64, B, Task

__all__ = ["State"]


class State(NamedTuple):
    """Where a search through one layer stands: P slots on G GPUs, E experts, T windows.

    Slots are those that GPUs have, numbered GPU by GPU. Loads are shares of the mean GPU's, times
    the square root of what their window counts, so that squares of them need no weights.
    """

    first: I64
    """[G + 1] first slot of a GPU, and the end."""
    pace: F64
    """[G] how fast a GPU is, 1 on average."""
    gpu_of: I64
    """[P] GPU of a slot."""
    slots: I64
    """[P] expert in a slot."""
    holds: I32
    """[G, E] slots of a GPU with an expert; all 0 between layers."""
    held: B
    """[G, E] what GPUs held before."""
    node_gpus: int
    """GPUs of a node."""
    loads: F64
    """[T, E] load of an expert."""
    copies: I64
    """[E] its replicas."""
    own: B
    """[P] whether a slot's expert is one that its GPU held before."""
    absent: I64
    """[E] GPUs that held it before and do not now."""
    home: I64
    """[E] the node that it is on, where nodes matter, or 0."""
    fewer: F64
    """[T, E] load of a replica if there were one fewer of the expert; as it is where that is the
    last; and if there were one more in the next.
    """
    more: F64
    root: F64
    """[T] the square root of what a window counts."""
    target: F64
    """[T] load up to which a GPU has no excess, times its pace."""
    part: F64
    """[T, P] load of a slot."""
    load: F64
    """[T, G] load of a GPU."""
    without: F64
    """[T, P] load above the target of a slot's GPU without the slot."""
    above: F64
    """[G] excess of a GPU."""
    settled: B
    """[G] whether no change was found for a GPU since it last changed."""
    relief: F64
    """[P] what its GPU's excess falls by if a slot's expert has one more replica elsewhere."""
    burden: F64
    """[P] what it grows by if a slot's expert has one replica fewer, none if that is the last."""
    all_relief: F64
    """[E] sums of these over the slots of an expert."""
    all_burden: F64
    listed: I64
    """[P] slots that a change is sought among, and what is known of them in the same order: their
    load in `their_part` [T, P], that of the rest of their GPU in `their_rest` [T, P], and what a
    change adds or takes off whatever else it does in `fixed` [P].
    """
    their_part: F64
    their_rest: F64
    fixed: F64
    most: F64
    """[G] what swaps with a GPU take off the excess at most."""
    rate: F64
    """[3, P] what a swap's gain is to be multiplied by to be that of a move, where the expert that
    comes to a slot costs -1, 0 or 1 moves; 0 where there is no such swap.
    """
    gain: F64
    """[max(P, E)] scratch: what changes take off the excess."""
    barred: I32
    """[G, E] last step at which an expert may not come onto a GPU. Where that is a wish it is
    `_NEVER`, and `FORBIDDEN` is added for each expert there that it must be apart from.
    """
    clock: I64
    """[1] steps tried so far, in all layers, so that `barred` need not be cleared."""
    rules: I64
    """[E, 2 + D] fewest copies of an expert, the most, and the experts that no GPU may hold beside
    it, -1 behind the last of them. One array, since a state is passed on array by array.
    """


@allocating
def _new_state(task: Task) -> State:
    num_windows, _, num_experts = task.windows.shape
    gpus, num_gpus = task.gpus, task.gpus.pace.shape[0]
    num_slots = int(gpus.first[num_gpus])
    gpu_of = np.empty(num_slots, np.int64)
    for gpu in range(num_gpus):
        for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
            gpu_of[slot] = gpu
    rules = np.full((num_experts, 2 + task.wishes.apart.shape[2]), -1)
    rules[:, 0], rules[:, 1] = 1, num_slots
    return State(
        gpus.first,
        gpus.pace,
        gpu_of,
        np.empty(num_slots, np.int64),
        np.zeros((num_gpus, num_experts), np.int32),
        np.empty((num_gpus, num_experts), np.bool_),
        num_gpus // task.num_nodes,
        np.empty((num_windows, num_experts)),
        np.empty(num_experts, np.int64),
        np.empty(num_slots, np.bool_),
        np.empty(num_experts, np.int64),
        np.empty(num_experts, np.int64),
        np.empty((num_windows, num_experts)),
        np.empty((num_windows, num_experts)),
        np.empty(num_windows),
        np.empty(num_windows),
        np.empty((num_windows, num_slots)),
        np.empty((num_windows, num_gpus)),
        np.empty((num_windows, num_slots)),
        np.empty(num_gpus),
        np.empty(num_gpus, np.bool_),
        np.empty(num_slots),
        np.empty(num_slots),
        np.empty(num_experts),
        np.empty(num_experts),
        np.empty(num_slots, np.int64),
        np.empty((num_windows, num_slots)),
        np.empty((num_windows, num_slots)),
        np.empty(num_slots),
        np.empty(num_gpus),
        np.empty((3, num_slots)),
        np.empty(max(num_slots, num_experts)),
        np.zeros((num_gpus, num_experts), np.int32),
        np.ones(1, np.int64),
        rules,
    )
