"""Swaps that make every window's busiest GPU less busy: an accelerator of the search.

The peak of a window, max over GPUs, says nothing of the GPUs just below it. The p-norm of the loads
is near the peak for a large p, and smooth: each window counts by the p-norm of its GPU loads, and a
swap is worth what it takes off the weighted sum of them. (Where GPUs are not as fast, loads are
over their paces there, and a GPU counts as it is fast.) A sum of powers, whose factors are renewed
from sweep to sweep, stands for that sum of norms; it is never below it and touches it where the
swaps stand, so what lowers the one lowers the other (majorise and minimise).

GPUs are looked at in turn, and each makes its best swap with any other. With s and c the slope and
half the curvature of the powers, a swap that shifts loads d[t] from GPU g to GPU h changes them by

    sum over t of  d[t] * (s[t, h] - s[t, g]) + d[t]^2 * (c[t, h] + c[t, g])

to the second order, which no d makes lower than - sum over t of (s[t, h] - s[t, g])^2 / (4 (c[t, h]
+ c[t, g])): so few GPUs are looked at closely. The best swap is then tried exactly.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating, inner
from eplb.solver.packing import F64, FORBIDDEN, Gpus, _keep_apart
from eplb.solver.state import State

__all__: list[str] = []

_DOUBLINGS = np.array([1, 3])
"""Norms to swap under, one after the other, of the powers 2 ** doublings."""
_MOST_SWEEPS = np.array([30, 2])
"""Sweeps over all GPUs under each; those under the first end sooner by themselves."""
_PRODUCTS = 12e6
_TOLERANCE = 1e-4
"""Part of the sum of norms that a swap must gain."""


class Norm(NamedTuple):
    """The powers of G GPUs' loads in T windows, to the second order, and scratch memory."""

    factor: F64
    """[T] what a window's powers count in this sweep."""
    slope: F64
    """[T, G] slope of the powers, and half their curvature in the next."""
    curve: F64
    apart: F64
    """[T] slope of one GPU less that of another, and the sum of their curves in the next."""
    bent: F64
    most: F64
    """[G] what a GPU's swaps with another take off at most."""
    change: F64
    """[S] what a swap of a slot with each of another GPU changes; S the most slots of any."""
    gpus: Gpus
    rate: F64
    """[G] 1 over the pace of a GPU."""


@allocating
def _swap_under_norms(state: State, gpus: Gpus) -> None:
    """Swap under each norm in turn while that lowers the weighted sum of them over windows."""
    slots, holds, part, load = state.slots, state.holds, state.part, state.load
    num_windows, num_gpus = load.shape
    slots_per_gpu, node_gpus = slots.shape[0] // num_gpus, state.node_gpus
    size = 0
    for gpu in range(num_gpus):
        size = max(size, gpus.first[gpu + 1] - gpus.first[gpu])
    norm = Norm(
        np.empty(num_windows),
        np.empty((num_windows, num_gpus)),
        np.empty((num_windows, num_gpus)),
        np.empty(num_windows),
        np.empty(num_windows),
        np.empty(num_gpus),
        np.empty(size),
        gpus,
        1.0 / gpus.pace,
    )
    # Products of two slots' loads in a window that a sweep may take.
    in_a_sweep = 0.5 * num_gpus * (node_gpus - 1) * slots_per_gpu**2 * num_windows
    affordable = int(max(1.0, min(float(_MOST_SWEEPS[0]), _PRODUCTS / max(1.0, in_a_sweep))))
    for stage in range(_DOUBLINGS.shape[0]):
        doublings = _DOUBLINGS[stage]
        for _ in range(min(_MOST_SWEEPS[stage], affordable)):
            least = _TOLERANCE * _weigh(norm, load, state.root, doublings)
            swapped = False
            for gpu in range(num_gpus):
                begin = gpu // node_gpus * node_gpus
                bounded = False
                for host in range(gpu + 1, begin + node_gpus):
                    if not bounded:
                        _bound_gains(norm, gpu, begin, node_gpus)
                        bounded = True
                    if not norm.most[host] > least:
                        continue
                    slot, other = _best_swap_with(norm, state, gpu, host, least)
                    if slot < 0 or not _gains(norm, part, load, gpu, host, slot, other, doublings):
                        continue
                    swapped = True
                    bounded = False
                    expert, partner = slots[slot], slots[other]
                    slots[slot], slots[other] = partner, expert
                    holds[gpu, expert] -= 1
                    holds[gpu, partner] += 1
                    holds[host, partner] -= 1
                    holds[host, expert] += 1
                    _keep_apart(state.barred, state.rules, gpu, expert, np.int64(-FORBIDDEN))
                    _keep_apart(state.barred, state.rules, host, expert, np.int64(FORBIDDEN))
                    _keep_apart(state.barred, state.rules, host, partner, np.int64(-FORBIDDEN))
                    _keep_apart(state.barred, state.rules, gpu, partner, np.int64(FORBIDDEN))
                    for window in range(num_windows):
                        mine, theirs = part[window, slot], part[window, other]
                        part[window, slot], part[window, other] = theirs, mine
                        load[window, gpu] += theirs - mine
                        load[window, host] += mine - theirs
                    _expand(norm, load, gpu, doublings)
                    _expand(norm, load, host, doublings)
            if not swapped:
                break


@inner
def _power(value: float, doublings: int) -> float:
    """The value to the power 2 ** doublings, by squaring: the same bits on every processor."""
    for _ in range(doublings):
        value *= value
    return value


@inner
def _weigh(norm: Norm, load: F64, root: F64, doublings: int) -> float:
    """Renew what windows count, and the powers of all GPUs; return the weighted sum of norms."""
    num_windows, num_gpus = load.shape
    total = 0.0
    for window in range(num_windows):
        powers = 0.0
        for gpu in range(num_gpus):
            powers += norm.gpus.pace[gpu] * _power(load[window, gpu] * norm.rate[gpu], doublings)
        # The inverse of a power by square roots, which are exact everywhere.
        length = powers
        for _ in range(doublings):
            length = np.sqrt(length)
        norm.factor[window] = root[window] * length / powers if powers > 0.0 else 0.0
        total += root[window] * length
    for gpu in range(num_gpus):
        _expand(norm, load, gpu, doublings)
    return total


@inner
def _expand(norm: Norm, load: F64, gpu: int, doublings: int) -> None:
    """Renew the powers of a GPU's loads."""
    power, rate = float(2**doublings), norm.rate[gpu]
    for window in range(load.shape[0]):
        now = load[window, gpu] * rate
        steep, bent = 0.0, 0.0
        if now > 0.0:
            steep = norm.factor[window] * power * _power(now, doublings) / now
            bent = 0.5 * (power - 1.0) * steep / now * rate
        norm.slope[window, gpu], norm.curve[window, gpu] = steep, bent


@inner
def _best_swap_with(norm: Norm, state: State, gpu: int, host: int, least: float) -> tuple[int, int]:
    """The slots of two GPUs whose swap takes off most, and more than the least; -1 for none."""
    slots, holds, barred, part = state.slots, state.holds, state.barred, state.part
    num_windows = part.shape[0]
    change, first_slot = norm.change, norm.gpus.first
    best, first, second = -least, np.int64(-1), np.int64(-1)
    for window in range(num_windows):
        norm.apart[window] = norm.slope[window, host] - norm.slope[window, gpu]
        norm.bent[window] = norm.curve[window, host] + norm.curve[window, gpu]
    theirs, size = first_slot[host], first_slot[host + 1] - first_slot[host]
    for slot in range(first_slot[gpu], first_slot[gpu + 1]):
        if holds[host, slots[slot]] > 0 or barred[host, slots[slot]] >= FORBIDDEN:
            continue
        for i in range(size):
            change[i] = 0.0
        for window in range(num_windows):
            mine, steep, bent = part[window, slot], norm.apart[window], norm.bent[window]
            parts = part[window, theirs : theirs + size]
            for i in range(size):
                shift = mine - parts[i]
                change[i] += shift * (steep + bent * shift)
        for i in range(size):
            if (
                change[i] < best
                and holds[gpu, slots[theirs + i]] == 0
                and barred[gpu, slots[theirs + i]] < FORBIDDEN
            ):
                best, first, second = change[i], slot, theirs + i
    return first, second


@inner
def _bound_gains(norm: Norm, gpu: int, begin: int, node_gpus: int) -> None:
    """Fill `most` for swaps of a GPU with those of its node, from GPU `begin` on."""
    # Slices, since an index that may be below 0 keeps a loop from being done in steps of several.
    most = norm.most[begin : begin + node_gpus]
    for host in range(node_gpus):
        most[host] = 0.0
    for window in range(norm.slope.shape[0]):
        # What is added keeps windows without load from dividing 0 by 0.
        steep, bent = norm.slope[window, gpu], norm.curve[window, gpu] + 1e-300
        slopes = norm.slope[window, begin : begin + node_gpus]
        curves = norm.curve[window, begin : begin + node_gpus]
        for host in range(node_gpus):
            apart = slopes[host] - steep
            most[host] += 0.25 * apart * apart / (curves[host] + bent)


@inner
def _gains(
    norm: Norm, part: F64, load: F64, gpu: int, host: int, slot: int, other: int, doublings: int
) -> bool:
    """Whether a swap of two slots of two GPUs lowers the powers."""
    pace, paces = norm.gpus.pace[gpu], norm.gpus.pace[host]
    rate, rates = norm.rate[gpu], norm.rate[host]
    gain = 0.0
    for window in range(part.shape[0]):
        shift = part[window, slot] - part[window, other]
        mine, theirs = load[window, gpu], load[window, host]
        now = pace * _power(mine * rate, doublings) + paces * _power(theirs * rates, doublings)
        after = pace * _power((mine - shift) * rate, doublings)
        after += paces * _power((theirs + shift) * rates, doublings)
        gain += norm.factor[window] * (now - after)
    return gain > 0.0
