"""How sure a figure is: confidence intervals of averages over windows that follow each other.

Windows near each other are alike, so single windows must not be drawn as if they were independent;
blocks of neighbours are (circular block bootstrap, Politis and Romano, 1992). Few blocks vary less
than they should when drawn, so intervals are widened as Student's t is wider than the normal.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "block_length", "difference_interval", "ratio_interval"]

_LEVEL = 0.95
_DRAWS = 2000
_FEWEST, _FEWEST_BLOCKS = 16, 4
"""Windows, and blocks of them, below which nothing can be said."""
_T = {3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 8: 2.306, 12: 2.179, 24: 2.064, 60: 2.0, 1e9: 1.96}
"""Student's t at 97.5 % by degrees of freedom; between these it is nearly a line in 1 / them."""


@dataclass(frozen=True)
class Interval:
    """Between `low` and `high` with 95 % confidence."""

    low: float
    high: float


def block_length(num_steps: int, every: int = 1) -> int:
    """Windows in a block: as many as loads and a plan remember.

    That is 1.5 times the square root of their number, and at least those from one plan to the next,
    which one placement serves.
    """
    return max(1, every, round(1.5 * math.sqrt(num_steps)))


def ratio_interval(
    top: NDArray[np.float64], bottom: NDArray[np.float64], every: int = 1
) -> Interval | None:
    """Interval of sum(top) / sum(bottom) over windows.

    Args:
        top: [S] numerators, one a window.
        bottom: [S] denominators; windows of 0 add nothing.
        every: windows that one placement served.

    Returns:
        The interval, or None of fewer than 16 windows or 4 blocks, or where every denominator is 0.
        The draws are the same for every call of the same length, so that intervals can be
        reproduced.
    """
    ratios = _drawn_ratios(top, bottom, every)
    if ratios is None:
        return None
    return _between(ratios, float(top.sum() / bottom.sum()), top.size, every)


def difference_interval(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    other_top: NDArray[np.float64],
    other_bottom: NDArray[np.float64],
    every: int = 1,
) -> Interval | None:
    """Interval of the difference of two such ratios on the same windows: first less other.

    Windows are drawn together, so what makes a window hard for both does not blur the difference.
    """
    ratios = _drawn_ratios(top, bottom, every)
    others = _drawn_ratios(other_top, other_bottom, every)
    if ratios is None or others is None:
        return None
    middle = float(top.sum() / bottom.sum() - other_top.sum() / other_bottom.sum())
    return _between(ratios - others, middle, top.size, every)


def _drawn_ratios(
    top: NDArray[np.float64], bottom: NDArray[np.float64], every: int
) -> NDArray[np.float64] | None:
    num_steps = top.size
    length = block_length(num_steps, every)
    if num_steps < max(_FEWEST, _FEWEST_BLOCKS * length) or not bottom.any():
        return None
    starts = np.random.default_rng(0).integers(num_steps, size=(_DRAWS, -(-num_steps // length)))
    tops = _block_sums(top, length)[starts].sum(axis=1)
    bottoms = _block_sums(bottom, length)[starts].sum(axis=1)
    drawn = bottoms > 0.0
    ratios: NDArray[np.float64] = tops[drawn] / bottoms[drawn]
    return ratios


def _block_sums(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """[S] sums of the blocks that begin at each window, the end going on at the beginning."""
    around = np.concatenate([values, values[: length - 1]])
    sums: NDArray[np.float64] = np.convolve(around, np.ones(length), mode="valid")
    return sums


def _between(values: NDArray[np.float64], middle: float, num_steps: int, every: int) -> Interval:
    """The interval of draws around the figure itself, widened for how few blocks there are."""
    tail = (1.0 - _LEVEL) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail]) - middle
    freedom = num_steps / block_length(num_steps, every) - 1.0
    wider = np.interp(1.0 / freedom, [1.0 / key for key in reversed(_T)], [*reversed(_T.values())])
    wider /= _T[1e9]
    return Interval(middle + float(low * wider), middle + float(high * wider))
