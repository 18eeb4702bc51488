"""Where a walk through one layer stands: slots, loads, and what replicas weigh on their GPUs.

The *excess* of a GPU is the sum over windows of (load above the least peak)^2. What a change takes
off it is put together from what is kept here for each slot and expert.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64, _excess

__all__ = ["Trail"]


class Trail(NamedTuple):
    """Where a walk through one layer stands: P slots on G GPUs, E experts, T windows."""

    slots: I64
    """[P] expert in a slot."""
    holds: I64
    """[G, E] slots of a GPU with an expert."""
    loads: F64
    """[T, E] load of an expert, as a share of the mean GPU's."""
    copies: I64
    """[E] its replicas."""
    home: I64
    """[E] the node that it is on, where nodes matter, or 0."""
    more: F64
    """[T, E] load of a replica if there were one more of the expert."""
    part: F64
    """[T, P] load of a slot."""
    room: F64
    """[T, P] load of the slot's GPU above the target: what it may still take, below 0."""
    weight: F64
    """[T] what a window counts."""
    target: F64
    """[T] the least peak: load up to which a GPU has no excess."""
    load: F64
    """[T, G] load of a GPU."""
    above: F64
    """[G] its excess."""
    above_of: F64
    """[P] that of the slot's GPU."""
    relief: F64
    """[P] what its GPU's excess falls by if a slot's expert has one more replica elsewhere."""
    burden: F64
    """[P] what it grows by if a slot's expert has one replica fewer, none if that is the last."""
    all_relief: F64
    """[E] sums of these over the slots of an expert."""
    all_burden: F64
    givers: I64
    """[P] slots whose expert has more than one replica, as many as there are."""
    left: F64
    """[T, P] load above the target of a giver's GPU without it."""
    kept: F64
    """[P] what a giver's leaving adds to the excess, but for its own GPU, which is emptied."""
    rate: F64
    """[3, P] what a swap's gain is to be multiplied by to be that of a move, where the expert that
    comes to a slot costs -1, 0 or 1 moves; 0 where there is no such swap.
    """
    gain: F64
    """[max(P, E)] scratch: what changes take off the excess."""


@inner
def _new_trail(num_experts: int, num_gpus: int, num_slots: int, num_windows: int) -> Trail:
    """Memory for a walk, with nothing in it."""
    return Trail(
        np.empty(num_slots, np.int64),
        np.empty((num_gpus, num_experts), np.int64),
        np.empty((num_windows, num_experts)),
        np.empty(num_experts, np.int64),
        np.empty(num_experts, np.int64),
        np.empty((num_windows, num_experts)),
        np.empty((num_windows, num_slots)),
        np.empty((num_windows, num_slots)),
        np.empty(num_windows),
        np.empty(num_windows),
        np.empty((num_windows, num_gpus)),
        np.empty(num_gpus),
        np.empty(num_slots),
        np.empty(num_slots),
        np.empty(num_slots),
        np.empty(num_experts),
        np.empty(num_experts),
        np.empty(num_slots, np.int64),
        np.empty((num_windows, num_slots)),
        np.empty(num_slots),
        np.empty((3, num_slots)),
        np.empty(max(num_slots, num_experts)),
    )


@inner
def _begin(trail: Trail, start: I64, num_nodes: int) -> None:
    """Take up a placement."""
    num_gpus, num_slots = trail.above.shape[0], start.shape[0]
    slots_per_gpu, slots_per_node = num_slots // num_gpus, num_slots // num_nodes
    for expert in range(trail.copies.shape[0]):
        trail.copies[expert] = 0
        for gpu in range(num_gpus):
            trail.holds[gpu, expert] = 0
    for slot in range(num_slots):
        expert = start[slot]
        trail.slots[slot] = expert
        trail.copies[expert] += 1
        trail.holds[slot // slots_per_gpu, expert] += 1
        trail.home[expert] = slot // slots_per_node
    for expert in range(trail.copies.shape[0]):
        for window in range(trail.loads.shape[0]):
            trail.more[window, expert] = trail.loads[window, expert] / (trail.copies[expert] + 1)
    for gpu in range(num_gpus):
        _renew(trail, gpu)


@inner
def _renew(trail: Trail, gpu: int) -> None:
    """Renew what is known of a GPU after a change on it."""
    slots_per_gpu = trail.slots.shape[0] // trail.above.shape[0]
    slots = range(gpu * slots_per_gpu, (gpu + 1) * slots_per_gpu)
    above = 0.0
    for slot in slots:
        trail.relief[slot] = 0.0
        trail.burden[slot] = 0.0
    for window in range(trail.load.shape[0]):
        load = 0.0
        for slot in slots:
            expert = trail.slots[slot]
            trail.part[window, slot] = trail.loads[window, expert] / trail.copies[expert]
            load += trail.part[window, slot]
        trail.load[window, gpu] = load
        weight = trail.weight[window]
        over = load - trail.target[window]
        here = weight * _excess(over)
        above += here
        for slot in slots:
            trail.room[window, slot] = over
            expert = trail.slots[slot]
            without = over - trail.part[window, slot]
            if over > 0.0:
                trail.relief[slot] += here - weight * _excess(without + trail.more[window, expert])
            if trail.copies[expert] > 1:
                fewer = trail.loads[window, expert] / (trail.copies[expert] - 1)
                trail.burden[slot] += weight * _excess(without + fewer) - here
    trail.above[gpu] = above
    for slot in slots:
        trail.above_of[slot] = above


@inner
def _expected(trail: Trail) -> float:
    """The expected peak."""
    expected = 0.0
    for window in range(trail.load.shape[0]):
        peak = 0.0
        for gpu in range(trail.load.shape[1]):
            peak = max(peak, trail.load[window, gpu])
        expected += trail.weight[window] * peak
    return expected


@inner
def _sum_up(trail: Trail, gpu: int, num_nodes: int) -> int:
    """Renew what adds up over GPUs, and list the givers on the node of a GPU; return how many."""
    num_slots, num_gpus = trail.slots.shape[0], trail.above.shape[0]
    slots_per_gpu = num_slots // num_gpus
    for expert in range(trail.copies.shape[0]):
        trail.all_relief[expert] = 0.0
        trail.all_burden[expert] = 0.0
    for slot in range(num_slots):
        trail.all_relief[trail.slots[slot]] += trail.relief[slot]
        trail.all_burden[trail.slots[slot]] += trail.burden[slot]
    node_slots = num_slots // num_nodes
    begin = gpu * slots_per_gpu // node_slots * node_slots
    givers = 0
    for slot in range(begin, begin + node_slots):
        expert = trail.slots[slot]
        if trail.copies[expert] > 1:
            trail.givers[givers] = slot
            trail.kept[givers] = (
                trail.burden[slot] - trail.all_burden[expert] + trail.above_of[slot]
            )
            for window in range(trail.part.shape[0]):
                trail.left[window, givers] = trail.room[window, slot] - trail.part[window, slot]
            givers += 1
    return givers
