"""Swaps that make every window's busiest GPU less busy, by a convex cost of GPU loads.

The peak of a window, max over GPUs, says nothing of the GPUs just below it. The p-norm of the loads
is near the peak for a large p, and smooth: each window counts by the p-norm of its GPU loads, and a
swap is worth what it takes off the weighted sum of them. A sum of powers, whose weights are renewed
from sweep to sweep, stands for that sum of norms; it is never below it and touches it where the
search stands, so what lowers the one lowers the other (majorise and minimise).

For one pair of GPUs all swaps are compared by the second-order expansion of the cost, which takes
two passes over the slots and one over their pairs; the best is then tried exactly.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64, B

__all__ = ["Hosts"]


class Hosts(NamedTuple):
    """What G GPUs of S slots hold of one layer, in T windows, and scratch memory of the search."""

    slots: I64
    """[G, S] expert in a slot."""
    holds: B
    """[G, E] whether a GPU holds an expert."""
    part: F64
    """[G, S, T] load of a slot in a window."""
    load: F64
    """[G, T] load of a GPU in a window."""
    cost: F64
    """[G, T] the p-th power of the load."""
    slope: F64
    """[G, T] its slope, and half its curvature in the next, times what the window counts."""
    curve: F64
    weight: F64
    """[T] what a window's powers count in this sweep."""
    leaving: F64
    """[G, S] what it adds to its GPU's cost that a slot becomes empty, to the second order."""
    square: F64
    """[G, S] the part of that which grows with the square of the slot's load."""
    changed: I64
    """[G] number of swaps done when a GPU last changed."""
    compared: I64
    """[G, G] the same when a pair was last compared."""
    mine: F64
    """[S] what a swap adds to the cost by the slot that one GPU gives, but for what depends on
    both; `my_length` the root of the part of it that grows with the square; and the same of the
    other GPU's.
    """
    my_length: F64
    theirs: F64
    their_length: F64
    middle: F64
    """[T] scratch."""


@inner
def _new_hosts(num_gpus: int, slots_per_gpu: int, num_experts: int, num_windows: int) -> Hosts:
    """Memory for all that, with nothing in it."""
    return Hosts(
        np.empty((num_gpus, slots_per_gpu), np.int64),
        np.empty((num_gpus, num_experts), np.bool_),
        np.empty((num_gpus, slots_per_gpu, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty(num_windows),
        np.empty((num_gpus, slots_per_gpu)),
        np.empty((num_gpus, slots_per_gpu)),
        np.empty(num_gpus, np.int64),
        np.empty((num_gpus, num_gpus), np.int64),
        np.empty(slots_per_gpu),
        np.empty(slots_per_gpu),
        np.empty(slots_per_gpu),
        np.empty(slots_per_gpu),
        np.empty(num_windows),
    )


@inner
def _power(value: float, doublings: int) -> float:
    """The value to the power 2 ** doublings, by squaring: the same bits on every processor."""
    for _ in range(doublings):
        value *= value
    return value


@inner
def _root(value: float, doublings: int) -> float:
    """The inverse of `_power`, by square roots, which are exact everywhere."""
    for _ in range(doublings):
        value = np.sqrt(value)
    return value


@inner
def _raise_loads(hosts: Hosts, gpu: int, doublings: int) -> None:
    """Renew the cost of a GPU's loads."""
    for window in range(hosts.load.shape[1]):
        hosts.cost[gpu, window] = _power(hosts.load[gpu, window], doublings)


@inner
def _expand(hosts: Hosts, gpu: int, doublings: int) -> None:
    """Renew the second-order expansion of a GPU's cost, and what each slot's leaving adds to it."""
    slots_per_gpu = hosts.slots.shape[1]
    power = float(2**doublings)
    for slot in range(slots_per_gpu):
        hosts.leaving[gpu, slot] = 0.0
        hosts.square[gpu, slot] = 0.0
    for window in range(hosts.load.shape[1]):
        load = hosts.load[gpu, window]
        slope, curve = 0.0, 0.0
        if load > 0.0:
            slope = hosts.weight[window] * power * hosts.cost[gpu, window] / load
            curve = 0.5 * (power - 1.0) * slope / load
        hosts.slope[gpu, window] = slope
        hosts.curve[gpu, window] = curve
        for slot in range(slots_per_gpu):
            part = hosts.part[gpu, slot, window]
            square = curve * part * part
            hosts.square[gpu, slot] += square
            hosts.leaving[gpu, slot] += square - slope * part


@inner
def _weigh(hosts: Hosts, weights: F64, doublings: int) -> float:
    """Renew what windows count; return the weighted sum of their powers."""
    num_gpus, num_windows = hosts.load.shape
    total = 0.0
    for window in range(num_windows):
        powers = 0.0
        for gpu in range(num_gpus):
            powers += hosts.cost[gpu, window]
        hosts.weight[window] = 0.0
        if powers > 0.0:
            norm = _root(powers, doublings)
            hosts.weight[window] = weights[window] * norm / powers
            total += weights[window] * norm
    return total


@inner
def _swap_slots(hosts: Hosts, gpu: int, i: int, other: int, j: int) -> None:
    """Swap slot i of one GPU with slot j of another; costs are left as they were."""
    expert, their = hosts.slots[gpu, i], hosts.slots[other, j]
    for window in range(hosts.load.shape[1]):
        part, theirs = hosts.part[gpu, i, window], hosts.part[other, j, window]
        hosts.load[gpu, window] += theirs - part
        hosts.load[other, window] += part - theirs
        hosts.part[gpu, i, window] = theirs
        hosts.part[other, j, window] = part
    hosts.slots[gpu, i] = their
    hosts.slots[other, j] = expert
    hosts.holds[gpu, expert] = False
    hosts.holds[other, expert] = True
    hosts.holds[other, their] = False
    hosts.holds[gpu, their] = True


@inner
def _swap_with_others(hosts: Hosts, gpu: int, doublings: int, least: float, swaps: int) -> int:
    """Swap slots of a GPU with slots of those after it, where that gains more than `least`; return
    the number of swaps so far.

    What a swap changes, to the second order, is a sum for each of the two slots and their product,
    which is at most that of their lengths (Cauchy and Schwarz): so few products are computed. All
    in one function, since numba counts references to each array at each call.
    """
    slots, holds, part, load = hosts.slots, hosts.holds, hosts.part, hosts.load
    cost, slope, curve, weight = hosts.cost, hosts.slope, hosts.curve, hosts.weight
    leaving, square, changed, compared = (
        hosts.leaving,
        hosts.square,
        hosts.changed,
        hosts.compared,
    )
    mine, my_length, theirs, their_length = (
        hosts.mine,
        hosts.my_length,
        hosts.theirs,
        hosts.their_length,
    )
    middle = hosts.middle
    num_gpus, slots_per_gpu, num_windows = part.shape
    for other in range(gpu + 1, num_gpus):
        at = compared[gpu, other]
        if at >= changed[gpu] and at >= changed[other]:
            continue
        compared[gpu, other] = swaps
        # No swap gains more than to have the same load in every window.
        for window in range(num_windows):
            middle[window] = 0.5 * (load[gpu, window] + load[other, window])
        for _ in range(doublings):
            for window in range(num_windows):
                middle[window] *= middle[window]
        gain = 0.0
        for window in range(num_windows):
            both = cost[gpu, window] + cost[other, window]
            gain += weight[window] * (both - 2.0 * middle[window])
        if not gain > least:
            continue
        for slot in range(slots_per_gpu):
            # Sums of even and odd windows, so that no addition waits for the one before.
            there, far, here, near = 0.0, 0.0, 0.0, 0.0
            there_odd, far_odd, here_odd, near_odd = 0.0, 0.0, 0.0, 0.0
            for window in range(0, num_windows - 1, 2):
                amount = part[gpu, slot, window]
                there += slope[other, window] * amount
                far += curve[other, window] * amount * amount
                amount = part[other, slot, window]
                here += slope[gpu, window] * amount
                near += curve[gpu, window] * amount * amount
                amount = part[gpu, slot, window + 1]
                there_odd += slope[other, window + 1] * amount
                far_odd += curve[other, window + 1] * amount * amount
                amount = part[other, slot, window + 1]
                here_odd += slope[gpu, window + 1] * amount
                near_odd += curve[gpu, window + 1] * amount * amount
            if num_windows % 2 == 1:
                window = num_windows - 1
                amount = part[gpu, slot, window]
                there += slope[other, window] * amount
                far += curve[other, window] * amount * amount
                amount = part[other, slot, window]
                here += slope[gpu, window] * amount
                near += curve[gpu, window] * amount * amount
            far += far_odd
            near += near_odd
            mine[slot] = leaving[gpu, slot] + (there + there_odd) + far
            my_length[slot] = np.sqrt(square[gpu, slot] + far)
            theirs[slot] = leaving[other, slot] + (here + here_odd) + near
            their_length[slot] = np.sqrt(square[other, slot] + near)
        for window in range(num_windows):
            middle[window] = curve[gpu, window] + curve[other, window]
        best, first, second = -least, -1, -1
        for i in range(slots_per_gpu):
            if holds[other, slots[gpu, i]]:
                continue
            twice = 2.0 * my_length[i]
            for j in range(slots_per_gpu):
                alone = mine[i] + theirs[j]
                if alone - twice * their_length[j] >= best or holds[gpu, slots[other, j]]:
                    continue
                even, odd = 0.0, 0.0
                for window in range(0, num_windows - 1, 2):
                    amount = part[gpu, i, window] * part[other, j, window]
                    even += middle[window] * amount
                    amount = part[gpu, i, window + 1] * part[other, j, window + 1]
                    odd += middle[window + 1] * amount
                if num_windows % 2 == 1:
                    window = num_windows - 1
                    even += middle[window] * part[gpu, i, window] * part[other, j, window]
                change = alone - 2.0 * (even + odd)
                if change < best:
                    best, first, second = change, i, j
        if first < 0:
            continue
        gain = 0.0
        for window in range(num_windows):
            change = part[gpu, first, window] - part[other, second, window]
            after = _power(load[gpu, window] - change, doublings)
            after += _power(load[other, window] + change, doublings)
            gain += weight[window] * (cost[gpu, window] + cost[other, window] - after)
        if gain > 0.0:
            _swap_slots(hosts, gpu, first, other, second)
            swaps += 1
            for host in (gpu, other):
                _raise_loads(hosts, host, doublings)
                _expand(hosts, host, doublings)
                changed[host] = swaps
    return swaps


@inner
def _forget(hosts: Hosts) -> None:
    """Let every pair of GPUs be compared by the descent that comes."""
    for gpu in range(hosts.load.shape[0]):
        hosts.changed[gpu] = 0
        for other in range(hosts.load.shape[0]):
            hosts.compared[gpu, other] = -1


@inner
def _descend(
    hosts: Hosts, weights: F64, doublings: int, tolerance: float, most_sweeps: int
) -> float:
    """Swap while that lowers the weighted sum over windows of the norm of power 2 ** doublings, and
    return that sum.

    Pairs of GPUs are compared in turn, in up to `most_sweeps` sweeps, where one of the two has
    changed since they were (`hosts.changed` and `hosts.compared`), and where a swap could gain more
    than `tolerance` of the sum.
    """
    num_gpus = hosts.load.shape[0]
    swaps = 0
    for gpu in range(num_gpus):
        _raise_loads(hosts, gpu, doublings)
        swaps = max(swaps, hosts.changed[gpu])
    for _ in range(most_sweeps):
        before = swaps
        least = tolerance * _weigh(hosts, weights, doublings)
        for gpu in range(num_gpus):
            _expand(hosts, gpu, doublings)
        for gpu in range(num_gpus):
            swaps = _swap_with_others(hosts, gpu, doublings, least, swaps)
        if swaps == before:
            break
    return _weigh(hosts, weights, doublings)
