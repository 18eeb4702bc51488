"""Replica counts searched together with packing: steps of one hand-over, each packed afresh.

Where a GPU has few slots, the counts that make the largest replica smallest are not those that
pack best: with two slots, what matters is which replica stands beside which. Each step looks at
the busiest GPU. It gives one of its experts a replica more, from those that lose least by it, or
one replica fewer, in favour of the experts with the largest replicas; each candidate is packed
anew, and the first that lowers the excess above a target is kept.
"""

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.pack import PackScratch, _pack, _rank
from eplb.solver.packing import F64, I64, Packing, _excess, _peak

__all__: list[str] = []

_WIDTH = 8
"""Experts that are tried on the other side of a hand-over."""
_WORK = 200_000
"""Replicas and experts handled, for one layer."""
_AIM = 0.25
"""The target, as a share of the way from the bound to the peak."""


@inner
def _recount(
    weight: F64,
    count: I64,
    bound: float,
    enough: float,
    packing: Packing,
    order: I64,
    spare: I64,
    scratch: PackScratch,
) -> float:
    """Change `count` [E] while that lowers the peak of its packing; return that peak.

    `packing` and `order` hold the packing of the final counts.
    """
    work = _WORK
    num_gpus = packing.load.shape[0]
    num_experts = weight.shape[0]
    peak = _packed(weight, count, packing, order, spare, scratch)
    givers = np.empty(2 * _WIDTH * packing.slots.shape[1], np.int64)
    receivers = np.empty_like(givers)
    key = np.empty(num_experts)
    once = 4 * (num_experts + packing.gpu_of.shape[0])
    better = True
    while better and peak > enough and work > 0:
        better = False
        target = bound + _AIM * (peak - bound)
        excess = _total_excess(packing.load, target)
        num = _candidates(weight, count, num_gpus, packing, order, key, givers, receivers)
        for i in range(num):
            work -= once
            count[givers[i]] -= 1
            count[receivers[i]] += 1
            new_peak = _packed(weight, count, packing, order, spare, scratch)
            if _total_excess(packing.load, target) < excess * (1.0 - 1e-9):
                better = True
                peak = new_peak
                break
            count[givers[i]] += 1
            count[receivers[i]] -= 1
            if work <= 0:
                break
        if not better:
            peak = _packed(weight, count, packing, order, spare, scratch)
    return peak


@inner
def _packed(
    weight: F64, count: I64, packing: Packing, order: I64, spare: I64, scratch: PackScratch
) -> float:
    """Pack the replicas that `count` says and return the peak."""
    _rank(weight, count, packing, order, spare, scratch.histogram)
    _pack(packing, scratch)
    return _peak(packing.load)


@inner
def _total_excess(load: F64, target: float) -> float:
    """Sum over GPUs of the squared load above the target."""
    total = 0.0
    for gpu in range(load.shape[0]):
        total += _excess(load[gpu] - target)
    return total


@inner
def _candidates(
    weight: F64,
    count: I64,
    max_copies: int,
    packing: Packing,
    order: I64,
    key: F64,
    givers: I64,
    receivers: I64,
) -> int:
    """Write the hand-overs to try, most promising first, as experts; return how many.

    The busiest GPU's experts each receive from the `_WIDTH` experts whose replicas stay smallest
    with one fewer, and give to the `_WIDTH` with the largest replicas.
    """
    num_experts = weight.shape[0]
    busiest = 0
    for gpu in range(1, packing.load.shape[0]):
        if packing.load[gpu] > packing.load[busiest]:
            busiest = gpu
    for expert in range(num_experts):
        key[expert] = weight[expert] / (count[expert] - 1) if count[expert] > 1 else np.inf
    num = 0
    for width in range(_WIDTH):
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
            if width < num_experts and count[expert] > 1:
                receiver = order[width]
                if receiver != expert and count[receiver] < max_copies:
                    givers[num] = expert
                    receivers[num] = receiver
                    num += 1
    return num
