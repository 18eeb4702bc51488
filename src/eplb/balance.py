"""How evenly GPUs are loaded: the field's measures, from the loads of GPUs or of slots.

Balancedness is the mean over the maximum; 1 is perfect. Over layers and windows it is either the
mean of their ratios, or pooled: the sum of the means over the sum of the maxima, in which a layer
counts by how long it takes. vLLM logs the pooled one, and the research benchmark has it twice: over
GPUs, and over single physical experts. SGLang logs the mean, with dense layers counted as perfect;
here, layers and windows with no load are left out.

An average over windows that follow each other has a confidence interval. Windows near each other
are alike, so they are not drawn as if they were independent; blocks of neighbours are (circular
block bootstrap, Politis and Romano, 1992). Few blocks vary less than they should: Student's t makes
up for that.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eplb.errors import OptionError

Average = Literal["mean", "pooled"]

_LEVEL = 0.95
_DRAWS = 2000
_FEWEST, _FEWEST_BLOCKS = 16, 4
"""Windows, and blocks of them, below which nothing can be said."""
_FREEDOM = (1, 2, 3, 4, 5, 6, 8, 12, 24, 60, 1e9)
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.306, 2.179, 2.064, 2.0, 1.96)
"""Student's t at 97.5 % by degrees of freedom; between these it is nearly a line in 1 / them."""


@dataclass(frozen=True)
class Interval:
    """Between `low` and `high` with 95 % confidence."""

    low: float
    high: float


def mean_and_peak(
    load: NDArray[np.float64], speeds: Sequence[float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[...] mean and largest load of GPUs, of loads [..., G].

    Args:
        load: [..., G] loads; a dead GPU has none.
        speeds: [G] how fast each GPU is, 0 for a dead one, as `Cluster.speeds` has it: a load
            counts by the time that it takes, and the mean is over those alive. None where all are
            alike.
    """
    if speeds is None:
        return load.mean(axis=-1), load.max(axis=-1)
    pace = np.array(speeds)
    alive = pace > 0.0
    return load.sum(axis=-1) / pace.sum(), (load[..., alive] / pace[alive]).max(axis=-1)


def paced(load: NDArray[np.float64], speeds: Sequence[float] | None) -> NDArray[np.float64]:
    """[..., G] the time that loads take, load over speed; the loads where GPUs are alike."""
    if speeds is None:
        return load
    pace = np.array(speeds)
    return load / np.where(pace > 0.0, pace, 1.0)


def ratios(load: NDArray[np.float64], speeds: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Mean over max along the last axis: [..., G] loads to [...] ratios, NaN where no GPU has any;
    `speeds` as for `mean_and_peak`.

    The mean of loads that are all alike may be a rounding above them, so ratios end at 1.
    """
    return _ratios(*mean_and_peak(load, speeds))


def _ratios(mean: NDArray[np.float64], peak: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.full(peak.shape, np.nan)
    np.divide(mean, peak, out=ratio, where=peak > 0.0)
    np.minimum(ratio, 1.0, out=ratio)
    return ratio


def balancedness(
    load: NDArray[np.float64], average: Average = "mean", speeds: Sequence[float] | None = None
) -> float:
    """Balancedness of loads [..., G] of GPUs, or [..., P] of slots, over all that is before;
    `speeds` as for `mean_and_peak`.

    Where nothing has any load, nothing waits, and this is 1.

    Raises:
        OptionError: an average that is none of "mean" and "pooled".
    """
    if average not in get_args(Average):
        raise OptionError(f"average is {average!r}: give 'mean' or 'pooled'")
    mean, peak = mean_and_peak(load, speeds)
    if not peak.any():
        return 1.0
    if average == "pooled":
        return min(float(mean.sum() / peak.sum()), 1.0)
    return float(np.nanmean(_ratios(mean, peak)))


@dataclass(frozen=True, eq=False)
class Served:
    """How evenly GPUs were loaded in S windows that were served, layer by layer.

    Attributes:
        balancedness: [S, L] mean / max GPU load, NaN where a layer has no load.
        peak: [S, L] max GPU load, in the unit of the loads.
        mean: [S, L] mean GPU load.
    """

    balancedness: NDArray[np.float64]
    peak: NDArray[np.float64]
    mean: NDArray[np.float64]

    @classmethod
    def of(
        cls, loads: Iterable[NDArray[np.float64]], speeds: Sequence[float] | None = None
    ) -> "Served":
        """From the loads of GPUs [L, G] in each window, one after the other; `speeds` as for
        `mean_and_peak`.
        """
        found = (mean_and_peak(load, speeds) for load in loads)
        rows = [(_ratios(mean, peak), peak, mean) for mean, peak in found]
        return Served(*map(np.stack, zip(*rows, strict=True)))

    @classmethod
    def joined(cls, parts: Iterable["Served"]) -> "Served":
        """Windows of several in a row."""
        rows = [(part.balancedness, part.peak, part.mean) for part in parts]
        return Served(*map(np.concatenate, zip(*rows, strict=True)))

    def part(self, windows: slice) -> "Served":
        """Some of the windows."""
        return Served(self.balancedness[windows], self.peak[windows], self.mean[windows])

    def average(self) -> float:
        """Balancedness, the mean over windows and layers that have load; 1 where none has."""
        known = ~np.isnan(self.balancedness)
        return float(self.balancedness[known].mean()) if known.any() else 1.0

    def pooled(self) -> float:
        """Balancedness, the sum of mean GPU loads / the sum of max GPU loads."""
        peak = self.peak.sum()
        return min(float(self.mean.sum() / peak), 1.0) if peak > 0.0 else 1.0

    def by_window(self) -> NDArray[np.float64]:
        """[S] balancedness of each window, NaN where no layer has load."""
        sums, known = self._sums()
        by_window: NDArray[np.float64] = np.full(sums.size, np.nan)
        np.divide(sums, known, out=by_window, where=known > 0.0)
        return by_window

    def worst_window(self) -> float:
        """Balancedness of the least balanced window."""
        by_window = self.by_window()
        return float(np.nanmin(by_window)) if not np.isnan(by_window).all() else 1.0

    def interval(self, every: int = 1) -> Interval | None:
        """Where `average` is; `every` windows were served by one placement."""
        return ratio_interval(*self._sums(), every)

    def pooled_interval(self, every: int = 1) -> Interval | None:
        """Where `pooled` is."""
        return ratio_interval(self.mean.sum(axis=1), self.peak.sum(axis=1), every)

    def gain_over(self, other: "Served", every: int = 1) -> tuple[float, Interval | None]:
        """Average above another one's on the same windows, and where that is."""
        gain = self.average() - other.average()
        return gain, difference_interval(*self._sums(), *other._sums(), every)

    def _sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[S] sums of the balancedness of layers that have load, and how many have."""
        known = ~np.isnan(self.balancedness)
        sums: NDArray[np.float64] = np.where(known, self.balancedness, 0.0).sum(axis=1)
        return sums, known.sum(axis=1).astype(np.float64)


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
    wider = student(num_steps / block_length(num_steps, every) - 1.0) / _T[-1]
    return Interval(middle + float(low * wider), middle + float(high * wider))


def student(freedom: float) -> float:
    """Standard errors that a mean is within, to either side, with 95 % confidence."""
    return float(np.interp(-1.0 / freedom, -1.0 / np.array(_FREEDOM), _T))


def with_interval(value: float, interval: Interval | None, form: str = ".4f") -> str:
    """A figure in words with half its interval, where it has one: "0.9310 ±0.0012"."""
    text = format(value, form)
    if interval is not None:
        text += f" ±{(interval.high - interval.low) / 2.0:.4f}"
    return text
