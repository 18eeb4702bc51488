"""Parts of the solver that run inside its kernels, called alone."""

import numpy as np
from numpy.typing import ArrayLike

from eplb.solver.bounds import _raise_bounds
from eplb.solver.groups import _gather_layers
from eplb.solver.jit import kernel
from eplb.solver.pack import _new_pack_scratch, _pack, _rank
from eplb.solver.packing import F64, I64, B, Gpus, Task, Wishes, _new_packing
from eplb.solver.replicate import _replicate

__all__ = ["lower_bound", "pack", "place_groups", "replicate", "task_of"]


@kernel
def _pack_layers(loads: F64, logcnt: I64, num_gpus: int, phy2log: I64) -> None:
    num_layers, num_experts = loads.shape
    slots_per_gpu = phy2log.shape[1] // num_gpus
    packing = _new_packing(num_experts, num_gpus, slots_per_gpu)
    scratch = _new_pack_scratch(num_experts, num_gpus, slots_per_gpu)
    order, spare = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    for layer in range(num_layers):
        _rank(loads[layer], logcnt[layer], packing, order, spare, scratch.histogram)
        _pack(packing, scratch)
        for slot in range(phy2log.shape[1]):
            rank = packing.slots[slot // slots_per_gpu, slot % slots_per_gpu]
            phy2log[layer, slot] = order[rank]


def pack(loads: ArrayLike, logcnt: ArrayLike, num_gpus: int) -> I64:
    """[L, P] replicas [L, E] of loads [L, E] on GPUs."""
    checked, counts = np.array(loads, np.float64), np.array(logcnt, np.int64)
    phy2log = np.empty((len(checked), int(counts[0].sum())), np.int64)
    _pack_layers(checked, counts, num_gpus, phy2log)
    return phy2log


@kernel
def _replicate_layers(loads: F64, num_slots: int, max_copies: int, logcnt: I64) -> None:
    share, heap = np.empty(loads.shape[1]), np.empty(loads.shape[1], np.int64)
    for layer in range(loads.shape[0]):
        _replicate(loads[layer], num_slots, max_copies, logcnt[layer], share, heap)


def replicate(loads: ArrayLike, num_slots: int, max_copies: int) -> I64:
    """[L, E] replicas of each expert."""
    checked = np.array(loads, np.float64)
    logcnt = np.empty(checked.shape, np.int64)
    _replicate_layers(checked, num_slots, max_copies, logcnt)
    return logcnt


def lower_bound(loads: ArrayLike, num_gpus: int, slots_per_gpu: int) -> F64:
    """[L] a load that the busiest GPU has in any plan, or more."""
    checked = np.array(loads, np.float64)
    every, bounds = np.arange(len(checked)), np.zeros(len(checked))
    _raise_bounds(every, checked, num_gpus, slots_per_gpu, np.full(len(checked), np.inf), bounds)
    return bounds


def place_groups(loads: ArrayLike, num_nodes: int) -> tuple[I64, B]:
    """[L, K] the node of each group, and [L] whether no other way has a lighter busiest node."""
    checked = np.array(loads, np.float64)
    num_layers, num_groups = checked.shape
    groups_of = np.empty((num_layers, num_nodes, num_groups // num_nodes), np.int64)
    every, busiest, weights = np.arange(num_layers), np.empty(num_layers), np.ones((1, num_layers))
    _gather_layers(every, checked[None], weights, num_groups, groups_of, busiest)
    node_of_group = groups_of.reshape(num_layers, -1).argsort(axis=1) // groups_of.shape[2]
    return node_of_group, (busiest > 0.0) | ~checked.any(axis=1)


def task_of(windows: F64, weights: F64, num_nodes: int, gpus: Gpus) -> Task:
    """A task without wishes."""
    num_experts = windows.shape[2]
    none = Wishes(
        np.zeros((1, 0, 0), np.bool_),
        np.ones((1, num_experts), np.int64),
        np.full((1, num_experts), int(gpus.first[-1])),
        np.empty((1, num_experts, 0), np.int64),
    )
    return Task(windows, weights, num_nodes, gpus, none)
