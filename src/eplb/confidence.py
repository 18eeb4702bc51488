"""How sure a figure is: confidence intervals of averages over windows that follow each other.

Windows near each other are alike, so single windows must not be drawn as if they were independent;
blocks of neighbours are (circular block bootstrap, Politis and Romano, 1992).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "block_length", "difference_interval", "ratio_interval"]

_LEVEL = 0.95
_DRAWS = 2000
_FEWEST = 4
"""Windows below which nothing can be said."""


@dataclass(frozen=True)
class Interval:
    """Between `low` and `high` with 95 % confidence."""

    low: float
    high: float


def block_length(num_steps: int) -> int:
    """Windows in a block: the cube root of their number, as the bootstrap's error is least for."""
    cube_root: float = num_steps ** (1 / 3)
    return max(1, round(cube_root))


def ratio_interval(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Interval | None:
    """Interval of sum(top) / sum(bottom) over windows.

    Args:
        top: [S] numerators, one a window.
        bottom: [S] denominators; windows of 0 add nothing.

    Returns:
        The interval, or None of fewer than 4 windows, or where every denominator is 0. The draws
        are the same for every call of the same length, so that intervals can be reproduced.
    """
    ratios = _drawn_ratios(top, bottom)
    return None if ratios is None else _between(ratios)


def difference_interval(
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
    other_top: NDArray[np.float64],
    other_bottom: NDArray[np.float64],
) -> Interval | None:
    """Interval of the difference of two such ratios on the same windows: first less other.

    Windows are drawn together, so what makes a window hard for both does not blur the difference.
    """
    ratios = _drawn_ratios(top, bottom)
    others = _drawn_ratios(other_top, other_bottom)
    return None if ratios is None or others is None else _between(ratios - others)


def _drawn_ratios(
    top: NDArray[np.float64], bottom: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    num_steps = top.size
    if num_steps < _FEWEST or not bottom.any():
        return None
    length = block_length(num_steps)
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


def _between(values: NDArray[np.float64]) -> Interval:
    tail = (1.0 - _LEVEL) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return Interval(float(low), float(high))
