"""How evenly GPUs are loaded: the field's measures, from the loads of GPUs or of slots.

Balancedness is the mean over the maximum; 1 is perfect. Over layers and windows it is either the
mean of their ratios, or pooled: the sum of the means over the sum of the maxima, in which a layer
counts by how long it takes. vLLM logs the pooled one, and the research benchmark has it twice: over
GPUs, and over single physical experts. SGLang logs the mean, with dense layers counted as perfect;
here, layers and windows with no load are left out.
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from eplb.errors import OptionError

__all__ = ["Average", "balancedness", "ratios"]

Average = Literal["mean", "pooled"]


def ratios(load: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over max along the last axis: [..., G] loads to [...] ratios, NaN where no GPU has any.

    The mean of loads that are all alike may be a rounding above them, so ratios end at 1.
    """
    peak = load.max(axis=-1)
    ratio: NDArray[np.float64] = np.full(peak.shape, np.nan)
    np.divide(load.mean(axis=-1), peak, out=ratio, where=peak > 0.0)
    np.minimum(ratio, 1.0, out=ratio)
    return ratio


def balancedness(load: NDArray[np.float64], average: Average = "mean") -> float:
    """Balancedness of loads [..., G] of GPUs, or [..., P] of slots, over all that is before.

    Where nothing has any load, nothing waits, and this is 1.

    Raises:
        OptionError: an average that is none of "mean" and "pooled".
    """
    if average not in get_args(Average):
        raise OptionError(f"average is {average!r}: give 'mean' or 'pooled'")
    peak = load.max(axis=-1)
    if not peak.any():
        return 1.0
    if average == "pooled":
        return min(float(load.mean(axis=-1).sum() / peak.sum()), 1.0)
    return float(np.nanmean(ratios(load)))
