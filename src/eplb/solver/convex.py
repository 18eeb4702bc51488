"""Swaps that make every window's busiest GPU less busy, by a convex cost of GPU loads.

The peak of a window, max over GPUs, says nothing of the GPUs just below it. The p-norm of the loads
is near the peak for a large p, and smooth: each window counts by the p-norm of its GPU loads, and a
swap is worth what it takes off the weighted sum of them. A sum of powers, whose weights are renewed
from sweep to sweep, stands for that sum of norms; it is never below it and touches it where the
search stands, so what lowers the one lowers the other (majorise and minimise).

For one pair of GPUs all swaps are compared by the second-order expansion of the cost; the best is
then tried exactly. What a slot's load would add to a GPU's cost is kept for all slots and GPUs, and
renewed for a GPU at a time, in loops over all slots, which processors do several steps of at once.
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
    lanes: F64
    """[T, G * S] the same, for loops over all slots."""
    load: F64
    """[T, G] load of a GPU in a window."""
    cost: F64
    """[T, G] the p-th power of the load."""
    slope: F64
    """[T, G] its slope, and half its curvature in the next, times what the window counts."""
    curve: F64
    weight: F64
    """[T] what a window's powers count in this sweep."""
    leaving: F64
    """[G * S] what it adds to its GPU's cost that a slot becomes empty, to the second order."""
    square: F64
    """[G * S] the part of that which grows with the square of the slot's load."""
    coming: F64
    """[G, G * S] what it adds to a GPU's cost that a slot's load comes on top, to the second order;
    and the part of that which grows with the square in the next.
    """
    coming_square: F64
    stale: B
    """[2, G] whether those four are to be renewed for a GPU, in what pairs with GPUs after it and
    with GPUs before it need.
    """
    changed: I64
    """[G] number of swaps done when a GPU last changed."""
    compared: I64
    """[G, G] the same when a pair was last compared."""
    most: F64
    """[G] what a GPU's swaps with another gain at most, to the second order."""
    theirs: F64
    """[S] what a swap adds to the cost by the slot that the other GPU gives, but for what depends
    on both; and the root of the part of it that grows with the square.
    """
    their_length: F64
    middle: F64
    """[T] scratch."""


@inner
def _new_hosts(num_gpus: int, slots_per_gpu: int, num_experts: int, num_windows: int) -> Hosts:
    """Memory for all that, with nothing in it."""
    num_slots = num_gpus * slots_per_gpu
    return Hosts(
        np.empty((num_gpus, slots_per_gpu), np.int64),
        np.empty((num_gpus, num_experts), np.bool_),
        np.empty((num_gpus, slots_per_gpu, num_windows)),
        np.empty((num_windows, num_slots)),
        np.empty((num_windows, num_gpus)),
        np.empty((num_windows, num_gpus)),
        np.empty((num_windows, num_gpus)),
        np.empty((num_windows, num_gpus)),
        np.empty(num_windows),
        np.empty(num_slots),
        np.empty(num_slots),
        np.empty((num_gpus, num_slots)),
        np.empty((num_gpus, num_slots)),
        np.empty((2, num_gpus), np.bool_),
        np.empty(num_gpus, np.int64),
        np.empty((num_gpus, num_gpus), np.int64),
        np.empty(num_gpus),
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
def _raise_loads(hosts: Hosts, doublings: int) -> None:
    """Renew the costs of loads."""
    load, cost = hosts.load, hosts.cost
    num_windows, num_gpus = load.shape
    for window in range(num_windows):
        for gpu in range(num_gpus):
            cost[window, gpu] = load[window, gpu]
        for _ in range(doublings):
            for gpu in range(num_gpus):
                cost[window, gpu] *= cost[window, gpu]


@inner
def _expand(hosts: Hosts, doublings: int) -> None:
    """Renew the second-order expansion of costs; what depends on it becomes stale."""
    load, cost, slope, curve, weight = (
        hosts.load,
        hosts.cost,
        hosts.slope,
        hosts.curve,
        hosts.weight,
    )
    num_windows, num_gpus = load.shape
    power = float(2**doublings)
    half = 0.5 * (power - 1.0)
    for window in range(num_windows):
        factor = weight[window] * power
        for gpu in range(num_gpus):
            at = load[window, gpu]
            steep = factor * cost[window, gpu] / at if at > 0.0 else 0.0
            slope[window, gpu] = steep
            curve[window, gpu] = half * steep / at if at > 0.0 else 0.0
    for gpu in range(num_gpus):
        hosts.stale[0, gpu] = True
        hosts.stale[1, gpu] = True


@inner
def _weigh(hosts: Hosts, weights: F64, doublings: int) -> float:
    """Renew what windows count; return the weighted sum of their powers."""
    num_windows, num_gpus = hosts.load.shape
    total = 0.0
    for window in range(num_windows):
        powers = 0.0
        for gpu in range(num_gpus):
            powers += hosts.cost[window, gpu]
        hosts.weight[window] = 0.0
        if powers > 0.0:
            norm = _root(powers, doublings)
            hosts.weight[window] = weights[window] * norm / powers
            total += weights[window] * norm
    return total


@inner
def _swap_slots(hosts: Hosts, gpu: int, i: int, other: int, j: int) -> None:
    """Swap slot i of one GPU with slot j of another; costs are left as they were."""
    slots, holds, part, lanes, load = hosts.slots, hosts.holds, hosts.part, hosts.lanes, hosts.load
    slots_per_gpu = slots.shape[1]
    one, two = gpu * slots_per_gpu + i, other * slots_per_gpu + j
    expert, their = slots[gpu, i], slots[other, j]
    for window in range(part.shape[2]):
        mine, theirs = part[gpu, i, window], part[other, j, window]
        load[window, gpu] += theirs - mine
        load[window, other] += mine - theirs
        part[gpu, i, window], part[other, j, window] = theirs, mine
        lanes[window, one], lanes[window, two] = theirs, mine
    slots[gpu, i], slots[other, j] = their, expert
    holds[gpu, expert], holds[other, expert] = False, True
    holds[other, their], holds[gpu, their] = False, True


@inner
def _sweep(hosts: Hosts, doublings: int, least: float, swaps: int) -> int:
    """Compare every pair of GPUs that is to be, and do the best swap of it where that gains more
    than `least`; return the number of swaps so far.

    What a swap changes, to the second order, is a sum for each of the two slots and their product,
    which is at most that of their lengths (Cauchy and Schwarz): so few products are computed. All
    in one function, since numba counts references to each array at each call.
    """
    slots, holds, part, lanes, load = hosts.slots, hosts.holds, hosts.part, hosts.lanes, hosts.load
    cost, slope, curve, weight = hosts.cost, hosts.slope, hosts.curve, hosts.weight
    leaving, square = hosts.leaving, hosts.square
    coming, coming_square, stale = hosts.coming, hosts.coming_square, hosts.stale
    changed, compared, most = hosts.changed, hosts.compared, hosts.most
    theirs, their_length, middle = hosts.theirs, hosts.their_length, hosts.middle
    num_gpus, slots_per_gpu, num_windows = part.shape
    num_slots = num_gpus * slots_per_gpu
    power = float(2**doublings)
    for gpu in range(num_gpus):
        bounded = False
        own = gpu * slots_per_gpu
        for other in range(gpu + 1, num_gpus):
            at = compared[gpu, other]
            if at >= changed[gpu] and at >= changed[other]:
                continue
            compared[gpu, other] = swaps
            if not bounded:
                bounded = True
                # Slices, since an index that may be below 0 keeps a loop from being done in steps
                # of several. What is added keeps windows without load from dividing 0 by 0.
                bounds = most[other:]
                for host in range(bounds.shape[0]):
                    bounds[host] = 0.0
                for window in range(num_windows):
                    steep, bent = slope[window, gpu], curve[window, gpu] + 1e-300
                    slopes, curves = slope[window, other:], curve[window, other:]
                    for host in range(bounds.shape[0]):
                        apart = slopes[host] - steep
                        bounds[host] += apart * apart / (curves[host] + bent)
            if not most[other] > 4.0 * least:
                continue
            their_first = other * slots_per_gpu
            for role in range(2):
                # To come in this sweep: this GPU with those after it, the other with those before.
                host = gpu if role == 0 else other
                if not stale[role, host]:
                    continue
                stale[role, host] = False
                begin = their_first if role == 0 else own
                end = num_slots if role == 0 else their_first
                first = host * slots_per_gpu
                for slot in range(first, first + slots_per_gpu):
                    leaving[slot] = 0.0
                    square[slot] = 0.0
                for window in range(num_windows):
                    steep, bent = slope[window, host], curve[window, host]
                    for slot in range(first, first + slots_per_gpu):
                        amount = lanes[window, slot]
                        squared = bent * amount * amount
                        square[slot] += squared
                        leaving[slot] += squared - steep * amount
                added, added_square = coming[host, begin:end], coming_square[host, begin:end]
                for slot in range(added.shape[0]):
                    added[slot] = 0.0
                    added_square[slot] = 0.0
                for window in range(0, num_windows - 1, 2):
                    steep, bent = slope[window, host], curve[window, host]
                    next_steep, next_bent = slope[window + 1, host], curve[window + 1, host]
                    amounts, next_amounts = lanes[window, begin:end], lanes[window + 1, begin:end]
                    for slot in range(added.shape[0]):
                        amount, next_amount = amounts[slot], next_amounts[slot]
                        squared = bent * amount * amount + next_bent * next_amount * next_amount
                        added_square[slot] += squared
                        added[slot] += steep * amount + next_steep * next_amount + squared
                if num_windows % 2 == 1:
                    window = num_windows - 1
                    steep, bent = slope[window, host], curve[window, host]
                    amounts = lanes[window, begin:end]
                    for slot in range(added.shape[0]):
                        amount = amounts[slot]
                        squared = bent * amount * amount
                        added_square[slot] += squared
                        added[slot] += steep * amount + squared
            lowest, longest = np.inf, 0.0
            for j in range(slots_per_gpu):
                slot = their_first + j
                theirs[j] = leaving[slot] + coming[gpu, slot]
                their_length[j] = np.sqrt(square[slot] + coming_square[gpu, slot])
                lowest = min(lowest, theirs[j])
                longest = max(longest, their_length[j])
            for window in range(num_windows):
                middle[window] = curve[window, gpu] + curve[window, other]
            best, first, second = -least, -1, -1
            for i in range(slots_per_gpu):
                if holds[other, slots[gpu, i]]:
                    continue
                slot = own + i
                mine = leaving[slot] + coming[other, slot]
                twice = 2.0 * np.sqrt(square[slot] + coming_square[other, slot])
                if mine + lowest - twice * longest >= best:
                    continue
                for j in range(slots_per_gpu):
                    alone = mine + theirs[j]
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
                after = _power(load[window, gpu] - change, doublings)
                after += _power(load[window, other] + change, doublings)
                gain += weight[window] * (cost[window, gpu] + cost[window, other] - after)
            if not gain > 0.0:
                continue
            _swap_slots(hosts, gpu, first, other, second)
            swaps += 1
            mine_at, their_at = own + first, their_first + second
            # Those before have been compared with both; the two are renewed.
            for host in range(other + 1, num_gpus):
                amount = coming[host, mine_at]
                coming[host, mine_at] = coming[host, their_at]
                coming[host, their_at] = amount
                amount = coming_square[host, mine_at]
                coming_square[host, mine_at] = coming_square[host, their_at]
                coming_square[host, their_at] = amount
            for host in (gpu, other):
                changed[host] = swaps
                stale[0, host] = True
                stale[1, host] = True
                for window in range(num_windows):
                    now = load[window, host]
                    powered = _power(now, doublings)
                    cost[window, host] = powered
                    steep = weight[window] * power * powered / now if now > 0.0 else 0.0
                    slope[window, host] = steep
                    bent = 0.5 * (power - 1.0) * steep / now if now > 0.0 else 0.0
                    curve[window, host] = bent
            bounded = False
    return swaps


@inner
def _forget(hosts: Hosts) -> None:
    """Let every pair of GPUs be compared by the descent that comes."""
    for gpu in range(hosts.changed.shape[0]):
        hosts.changed[gpu] = 0
        for other in range(hosts.changed.shape[0]):
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
    _raise_loads(hosts, doublings)
    swaps = 0
    for gpu in range(hosts.changed.shape[0]):
        swaps = max(swaps, hosts.changed[gpu])
    for _ in range(most_sweeps):
        before = swaps
        least = tolerance * _weigh(hosts, weights, doublings)
        _expand(hosts, doublings)
        swaps = _sweep(hosts, doublings, least, swaps)
        if swaps == before:
            break
    return _weigh(hosts, weights, doublings)
