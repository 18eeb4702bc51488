"""Proven lower bounds on the load of the busiest GPU, over every choice of counts and places.

Three facts bound it. It is no less than the mean. It is no less than the largest replica, which
Adams' counts make as small as it can be. And where a GPU has few slots, what stands beside a large
replica counts: at a peak T, choose x in (T/2, T]; a GPU holds at most one replica of x or more
(*large*), and all others on it are T - x or less (*small*). So with S slots each large one takes S
- 1 small ones along. For a price p in [0, 1], give a large replica the weight 1 + p (S - 1), a
small one 1 - p and any other 1: no GPU holds more than S. If the cheapest counts weigh more than
all slots, no plan has peak T.

Source of the third: dual feasible functions for bin packing (Fekete and Schepers, "New classes of
fast lower bounds for bin packing problems", 2001), here with the replica counts left open.
"""

import numpy as np

from eplb.solver.jit import inner, kernel
from eplb.solver.packing import F64, I64
from eplb.solver.replicate import _replicate

__all__: list[str] = []

_THRESHOLDS = 16
"""Values of x that are tried, evenly spread over (T/2, T]."""
_PRICE_STEPS = 7
"""Halvings of the interval of p."""
_PEAK_STEPS = 10
"""Halvings of the interval in which the bound lies."""
_SMALLEST = 1e-280
"""A peak below this is left alone: a reciprocal of what it is divided into may overflow."""


@kernel
def _raise_bounds(
    layers: I64, loads: F64, num_gpus: int, slots_per_gpu: int, peaks: F64, bounds: F64
) -> None:
    """Raise the proven `bounds` [L] of `layers` as far as can be; some plan has the `peaks` [L]."""
    num_experts = loads.shape[1]
    counts = np.empty((3, num_experts), np.int64)
    share = np.empty(num_experts)
    for layer in layers:
        weight = loads[layer]
        bound = _simple_bound(weight, num_gpus, slots_per_gpu, share, counts[0], counts[1])
        bound = max(bounds[layer], bound)
        bound = _company_bound(weight, num_gpus, slots_per_gpu, bound, peaks[layer], counts)
        # Rounding may leave a proven bound above the peak that attains it.
        bounds[layer] = min(bound, peaks[layer])


@inner
def _simple_bound(
    weight: F64, num_gpus: int, slots_per_gpu: int, share: F64, count: I64, heap: I64
) -> float:
    """The larger of the mean GPU load and the largest replica of Adams' counts."""
    num_slots = num_gpus * slots_per_gpu
    _replicate(weight, num_slots, num_slots, count, share, heap)
    total = 0.0
    largest = 0.0
    for expert in range(weight.shape[0]):
        total += weight[expert]
        largest = max(largest, share[expert])
    return max(total / num_gpus, largest)


@inner
def _least_peak(
    loads: F64, num_gpus: int, slots_per_gpu: int, count: I64, share: F64, heap: I64
) -> float:
    """A lower bound on the peak of one window: the mean, or the largest replica where the slots are
    too few to cut every expert down to the mean.
    """
    num_experts = loads.shape[0]
    num_slots = num_gpus * slots_per_gpu
    total = 0.0
    for expert in range(num_experts):
        total += loads[expert]
    mean = total / num_gpus
    needed = 0.0
    for expert in range(num_experts):
        needed += max(1.0, np.ceil(loads[expert] / mean))
    if needed <= num_slots or slots_per_gpu >= num_experts:
        return mean
    _replicate(loads, num_slots, num_gpus, count, share, heap)
    for expert in range(num_experts):
        mean = max(mean, share[expert])
    return mean


@inner
def _company_bound(
    weight: F64, num_gpus: int, slots_per_gpu: int, bound: float, peak: float, counts: I64
) -> float:
    """The best of `bound`, proven already, and what large replicas and their company prove.

    `peak` is a peak that some plan has; `counts` [3, E] is scratch.
    """
    if slots_per_gpu < 2 or bound < _SMALLEST:
        return bound
    for i in range(_THRESHOLDS):
        # Far apart first: once the best is near, the others fail at their first test.
        ratio = 1.0 - 0.5 * _reversed_bits(i, _THRESHOLDS) / _THRESHOLDS
        # Where this threshold proves nothing just above the bound, it proves nothing at all.
        proven = bound * 1.001
        if not _impossible(weight, num_gpus, slots_per_gpu, proven, ratio, counts):
            continue
        bound = proven
        above = min(peak, 2.0 * bound)
        for _ in range(_PEAK_STEPS):
            middle = 0.5 * (bound + above)
            if _impossible(weight, num_gpus, slots_per_gpu, middle, ratio, counts):
                bound = middle
            else:
                above = middle
    return bound


@inner
def _reversed_bits(number: int, end: int) -> int:
    """The number with its bits in reverse, for numbers below `end`, a power of 2."""
    found = 0
    while end > 1:
        found = 2 * found + number % 2
        number //= 2
        end //= 2
    return found


@inner
def _impossible(
    weight: F64, num_gpus: int, slots_per_gpu: int, peak: float, ratio: float, counts: I64
) -> bool:
    """Whether the threshold `ratio` * `peak` proves that no plan has this peak.

    Fills `counts` for the experts that one replica does not make small: the least replicas with
    which an expert's are large, neither, or small; 0 for those that cannot be.
    """
    num_experts = weight.shape[0]
    num_slots = num_gpus * slots_per_gpu
    most = num_slots - num_experts + 1
    # Rounding must never prove too much: a replica counts as fitting when it nearly does.
    fits = peak * (1.0 + 1e-12)
    large = peak * ratio
    small = fits - large
    # Products, as quotients take half of the time; what they round is far below 1e-12.
    per_fits, per_large, per_small = 1.0 / fits, 1.0 / large, 1.0 / small
    num_small, num = 0, 0
    for expert in range(num_experts):
        load = weight[expert]
        if load <= small:
            num_small += 1  # one small replica is the cheapest at every price
            continue
        count = max(np.int64(np.ceil(load * per_fits)), np.int64(1))
        counts[0, num] = count if load >= large * count else 0
        count = max(count, np.int64(load * per_large) + 1)
        counts[1, num] = count if load > small * count else 0
        count = num_slots + 1
        if load <= small * most:
            count = np.int64(np.ceil(load * per_small))
        counts[2, num] = count if count <= most else 0
        num += 1
    needed = num_slots * (1.0 + 1e-9)
    lower, upper = 0.0, 1.0
    for _ in range(_PRICE_STEPS):
        price = 0.5 * (lower + upper)
        # What all replicas weigh is `weighed + slope * price` around here.
        weighed, slope = num_small, -num_small
        for i in range(num):
            least = np.inf
            count, rate = 0, 0
            if counts[0, i] > 0:
                count, rate = counts[0, i], counts[0, i] * (slots_per_gpu - 1)
                least = count + rate * price
            if counts[1, i] > 0 and counts[1, i] < least:
                count, rate = counts[1, i], 0
                least = float(count)
            if counts[2, i] > 0 and counts[2, i] * (1.0 - price) < least:
                count, rate = counts[2, i], -counts[2, i]
                least = count * (1.0 - price)
            if least == np.inf:
                return True
            weighed += count
            slope += rate
        if weighed + slope * price > needed:
            return True
        if slope > 0:
            lower = price
        else:
            upper = price
        # The least weight is concave in the price: it stays under this line up to the interval's
        # far end.
        if weighed + slope * (upper if slope > 0 else lower) <= needed:
            return False
    return False
