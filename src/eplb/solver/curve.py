"""How far to walk in each layer: peaks against moves, and where moves of a budget gain most.

What a layer's peak is after so many moves is the lower convex hull of the states on its walk. The
pieces of all hulls, by falling gain for each move, make one curve: every point of it has the least
sum of peaks for its moves, and a budget or a price is a place on it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I64
from eplb.solver.search import Steps

__all__ = ["AFRESH", "Pieces", "choose", "hulls"]

AFRESH = -1
"""In place of a number of steps: the plan made afresh."""


@dataclass(frozen=True)
class Pieces:
    """Pieces of hulls, by falling gain for each move; those of one layer in their order.

    Attributes:
        first: [L] steps that each layer makes before any piece.
        base_moves, base_peaks: [L] moves and peak there.
        layer, steps, moves, gain: [N] layer of a piece, the steps at its end or `AFRESH`, the moves
            that it adds and what the layer's peak falls by.
    """

    first: NDArray[np.int64]
    base_moves: NDArray[np.int64]
    base_peaks: NDArray[np.float64]
    layer: NDArray[np.int64]
    steps: NDArray[np.int64]
    moves: NDArray[np.int64]
    gain: NDArray[np.float64]


def hulls(
    steps: Steps,
    first: NDArray[np.int64],
    afresh_moves: NDArray[np.int64],
    afresh_peaks: NDArray[np.float64],
) -> Pieces:
    """The pieces of the hulls of all layers.

    Args:
        steps: the walks.
        first: [L] steps that each layer makes in any case.
        afresh_moves: [L] moves to a plan made afresh, below 0 where there is none.
        afresh_peaks: [L] its peak.
    """
    num_layers, most = steps.moves.shape
    most = max(most, 1 + int(steps.length.max(initial=0))) + 2
    num_points = np.empty(num_layers, np.int64)
    points = np.empty((num_layers, most), np.int64)
    moves = np.zeros((num_layers, most), np.int64)
    peaks = np.zeros((num_layers, most))
    _fill_hulls(steps, first, afresh_moves, afresh_peaks, num_points, points, moves, peaks)
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
        peaks[:, 0],
        layer[order],
        points[:, 1:][inside][order],
        more[order],
        gain[order],
    )


def choose(
    pieces: Pieces, budget: int | None, price: NDArray[np.float64], steps: Steps
) -> NDArray[np.int64]:
    """[L] the steps to make, or `AFRESH`.

    Args:
        pieces: the hulls.
        budget: most moves in all layers together, not below `pieces.base_moves`; None for any.
        price: [L] what the peak of a layer is to fall by at least for each move.
        steps: the walks, for what is left of the budget where no whole piece fits.
    """
    chosen: NDArray[np.int64] = pieces.first.copy()
    worth = pieces.gain > pieces.moves * price[pieces.layer]
    which = np.flatnonzero(worth)
    if budget is None:
        chosen[pieces.layer[which]] = pieces.steps[which]
        return chosen
    left = budget - int(pieces.base_moves.sum())
    fits = int(np.searchsorted(np.cumsum(pieces.moves[which]), left, side="right"))
    taken = which[:fits]
    # The last piece of a layer is written last.
    chosen[pieces.layer[taken]] = pieces.steps[taken]
    left -= int(pieces.moves[taken].sum())
    closed = np.zeros(chosen.shape, np.bool_)
    for piece in which[fits:]:
        if left <= 0:
            break
        layer = pieces.layer[piece]
        if closed[layer]:
            continue
        if pieces.moves[piece] <= left:
            chosen[layer] = pieces.steps[piece]
            left -= int(pieces.moves[piece])
        else:
            closed[layer] = True
            if chosen[layer] == AFRESH:
                continue
            chosen[layer], spent = _part_of(steps, layer, int(chosen[layer]), left)
            left -= spent
    return chosen


def _part_of(steps: Steps, layer: int, done: int, left: int) -> tuple[int, int]:
    """The best state of a layer that is at most so many moves beyond `done` steps, and its moves
    beyond them.
    """
    end = int(steps.length[layer]) + 1
    beyond = steps.moves[layer, done:end] - steps.moves[layer, done]
    peaks = np.where(beyond <= left, steps.peaks[layer, done:end], np.inf)
    best = int(np.argmin(peaks))
    return done + best, max(0, int(beyond[best]))


@kernel
def _fill_hulls(
    steps: Steps,
    first: I64,
    afresh_moves: I64,
    afresh_peaks: F64,
    num_points: I64,
    points: I64,
    moves: I64,
    peaks: F64,
) -> None:
    """Fill the rows of the last four by the corners of each layer's hull, moves rising."""
    most = 0
    for layer in range(first.shape[0]):
        for step in range(steps.length[layer] + 1):
            most = max(most, steps.moves[layer, step])
        most = max(most, afresh_moves[layer])
    best = np.empty(most + 1, np.int64)
    lowest = np.empty(most + 1)
    for layer in range(first.shape[0]):
        for move in range(most + 1):
            lowest[move] = np.inf
        for step in range(first[layer], steps.length[layer] + 1):
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
            if not lowest[move] < np.inf or (num > 0 and lowest[move] >= peaks[layer, num - 1]):
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
