"""How far to walk in each layer: peaks against moves, and where moves of a budget gain most.

What a layer's peak is after so many moves is the lower convex hull of the states on its walk. The
pieces of all hulls, by falling gain for each move, make one curve: every point of it has the least
sum of peaks for its moves, and a budget or a price is a place on it.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I64, Gpus, _copy
from eplb.solver.search import Steps, _follow

__all__ = ["AFRESH", "Pieces", "choose", "hulls"]

AFRESH = -1
"""In place of a number of steps: the plan made afresh."""

_LOWER = 1.0 - 1e-12
"""A peak is lower than another where it is below so much of it: the rest is rounding."""

_LOOKS = 1_000_000
"""Looks at states, about, in filling up a budget: a millisecond. The whole budget of a few small
layers is spent that way, the last moves of large ones."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of hulls, by falling gain for each move; those of one layer in their order.

    Attributes:
        first: [L] the state of each layer before any piece: of fewest moves.
        base_moves: [L] moves there.
        afresh_moves, afresh_peaks: [L] moves to plans made afresh, below 0 for none; their peaks.
        layer, steps, moves, gain: [N] layer of a piece, the steps at its end or `AFRESH`, the moves
            that it adds and what the layer's peak falls by.
    """

    first: NDArray[np.int64]
    base_moves: NDArray[np.int64]
    afresh_moves: NDArray[np.int64]
    afresh_peaks: NDArray[np.float64]
    layer: NDArray[np.int64]
    steps: NDArray[np.int64]
    moves: NDArray[np.int64]
    gain: NDArray[np.float64]


def hulls(
    steps: Steps, afresh_moves: NDArray[np.int64], afresh_peaks: NDArray[np.float64]
) -> Pieces:
    """The pieces of the hulls of all layers.

    Args:
        steps: the walks.
        afresh_moves: [L] moves to a plan made afresh, below 0 where there is none.
        afresh_peaks: [L] its peak.
    """
    num_layers, most = steps.moves.shape
    most = max(most, 1 + int(steps.length.max(initial=0))) + 2
    num_points = np.empty(num_layers, np.int64)
    points = np.empty((num_layers, most), np.int64)
    moves = np.zeros((num_layers, most), np.int64)
    peaks = np.zeros((num_layers, most))
    _fill_hulls(steps, afresh_moves, afresh_peaks, num_points, points, moves, peaks)
    inside = np.arange(1, most) < num_points[:, None]
    layer, _ = np.nonzero(inside)
    more, gain = np.diff(moves, axis=1), -np.diff(peaks, axis=1)
    each = np.divide(gain, more, out=np.full(gain.shape, -np.inf), where=inside)
    # Rounding may not change the order of a layer's pieces.
    np.minimum.accumulate(each, axis=1, out=each)
    more, gain = more[inside], gain[inside]
    order = np.argsort(-each[inside], kind="stable")
    return Pieces(
        points[:, 0],
        moves[:, 0],
        afresh_moves,
        afresh_peaks,
        layer[order],
        points[:, 1:][inside][order],
        more[order],
        gain[order],
    )


def choose(
    pieces: Pieces, budget: int | None, price: NDArray[np.float64], steps: Steps
) -> NDArray[np.int64]:
    """[L] the steps to make, or `AFRESH`: what a larger budget gives is never worse.

    Pieces are taken as far as the budget goes. The last of them leave room for what costs least
    together with its price among all states beyond them (a knapsack with a choice in each class,
    by dynamic programming), so that no move is left over because no whole piece fits.

    Args:
        pieces: the hulls.
        budget: most moves in all layers together, not below `pieces.base_moves`; None for any.
        price: [L] what the peak of a layer is to fall by at least for each move.
        steps: the walks.
    """
    chosen: NDArray[np.int64] = pieces.first.copy()
    which = np.flatnonzero(pieces.gain > pieces.moves * price[pieces.layer])
    left = sys.maxsize if budget is None else budget - int(pieces.base_moves.sum())
    spent = np.cumsum(pieces.moves[which])
    fits = int(np.searchsorted(spent, left, side="right"))
    room = 0
    if fits < which.size:
        room = min(left, int(math.sqrt(_LOOKS / max(chosen.size, 1))))
        fits = min(fits, int(np.searchsorted(spent, left - room, side="right")))
        room = left - (int(spent[fits - 1]) if fits else 0)
    # The last piece of a layer is written last.
    chosen[pieces.layer[which[:fits]]] = pieces.steps[which[:fits]]
    if room:
        _fill_up(steps, pieces.afresh_moves, pieces.afresh_peaks, price, room, chosen)
    return chosen


@kernel
def _fill_up(
    steps: Steps, afresh_moves: I64, afresh_peaks: F64, price: F64, room: int, chosen: I64
) -> None:
    """Go on from the states `chosen` [L], with at most `room` moves more in all, to those of least
    peaks and price together; of equal ones to those of fewest moves.
    """
    num_layers = chosen.shape[0]
    least, last = np.zeros(room + 1), np.zeros(room + 1)
    # What a layer takes of so much room, and where that many moves more lead.
    taken = np.zeros((num_layers, room + 1), np.int64)
    state = np.empty((num_layers, room + 1), np.int64)
    lowest = np.empty(room + 1)
    for layer in range(num_layers):
        moves, peak = afresh_moves[layer], afresh_peaks[layer]
        if chosen[layer] != AFRESH:
            moves, peak = steps.moves[layer, chosen[layer]], steps.peaks[layer, chosen[layer]]
        lowest[:] = np.inf
        for step in range(steps.length[layer] + 1):
            more = steps.moves[layer, step] - moves
            if 0 < more <= room and steps.peaks[layer, step] < lowest[more]:
                lowest[more], state[layer, more] = steps.peaks[layer, step], step
        more = afresh_moves[layer] - moves
        if 0 < more <= room and afresh_moves[layer] >= 0 and afresh_peaks[layer] < lowest[more]:
            lowest[more], state[layer, more] = afresh_peaks[layer], AFRESH
        for more in range(room + 1):
            last[more] = least[more]
        base = peak
        for more in range(1, room + 1):
            if not lowest[more] < peak * _LOWER:
                continue
            peak = lowest[more]
            falls = base - peak - price[layer] * more
            for budget in range(more, room + 1):
                if last[budget - more] - falls < least[budget]:
                    least[budget] = last[budget - more] - falls
                    taken[layer, budget] = more
    for layer in range(num_layers - 1, -1, -1):
        more = taken[layer, room]
        if more > 0:
            chosen[layer] = state[layer, more]
            room -= more


@kernel
def _fill_hulls(
    steps: Steps,
    afresh_moves: I64,
    afresh_peaks: F64,
    num_points: I64,
    points: I64,
    moves: I64,
    peaks: F64,
) -> None:
    """Fill the rows of the last four by the corners of each layer's hull, moves rising."""
    most = 0
    for layer in range(num_points.shape[0]):
        for step in range(steps.length[layer] + 1):
            most = max(most, steps.moves[layer, step])
        most = max(most, afresh_moves[layer])
    best = np.empty(most + 1, np.int64)
    lowest = np.empty(most + 1)
    for layer in range(num_points.shape[0]):
        for move in range(most + 1):
            lowest[move] = np.inf
        for step in range(steps.length[layer] + 1):
            at = steps.moves[layer, step]
            if steps.peaks[layer, step] < lowest[at]:
                lowest[at] = steps.peaks[layer, step]
                best[at] = step
        at = afresh_moves[layer]
        if at >= 0 and afresh_peaks[layer] < lowest[at]:
            lowest[at] = afresh_peaks[layer]
            best[at] = AFRESH
        num = 0
        for move in range(most + 1):
            if not lowest[move] < np.inf:
                continue
            if num > 0 and lowest[move] >= peaks[layer, num - 1] * _LOWER:
                continue
            while num > 1:
                run, whole = moves[layer, num - 1] - moves[layer, num - 2], move
                whole -= moves[layer, num - 2]
                fall = peaks[layer, num - 2] - peaks[layer, num - 1]
                if fall * whole > (peaks[layer, num - 2] - lowest[move]) * run:
                    break
                num -= 1
            moves[layer, num], peaks[layer, num] = move, lowest[move]
            points[layer, num] = best[move]
            num += 1
        num_points[layer] = num


@kernel
def _alone_layers(loads: F64, start: I64, gpus: Gpus, steps: Steps, alone: F64) -> None:
    """Fill `alone` [L, K + 1] by the most load over pace of a GPU's experts that have no other copy
    after so many steps from `start` [L, P], and which no split takes off it; inf beyond the steps.
    """
    num_experts = loads.shape[1]
    copies = np.empty(num_experts, np.int64)
    slots = np.empty(start.shape[1], np.int64)
    alone[:] = np.inf
    for layer in range(loads.shape[0]):
        for step in range(steps.length[layer] + 1):
            _copy(start[layer], slots)
            _follow(steps, layer, step, slots)
            copies[:] = 0
            for slot in range(slots.shape[0]):
                copies[slots[slot]] += 1
            most = 0.0
            for gpu in range(gpus.pace.shape[0]):
                load = 0.0
                for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
                    if copies[slots[slot]] == 1:
                        load += loads[layer, slots[slot]]
                most = max(most, load / gpus.pace[gpu])
            alone[layer, step] = most
