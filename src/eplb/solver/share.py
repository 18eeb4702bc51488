"""One split for several windows: each expert's tokens shared over its copies in the same parts in
every window, so that the mean peak over windows is least.

That is a linear programme. Here its maxima are smoothed (the logarithm of a sum of exponentials),
and the split goes down the slope of that with momentum, on the simplex of each expert; then the
smoothing is made finer. The weights by which GPUs count in the slope are a dual solution: they
prove a bound as they go.

Source: Y. Nesterov, "Smooth minimization of non-smooth functions", 2005; the method of A. Auslender
and M. Teboulle, 2006, of which every point is a split.
"""

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.level import Edges, _find_edges, _new_edges
from eplb.solver.packing import F64, I64, Gpus

__all__: list[str] = []

_SMOOTHING = (0.03, 0.006, 0.0015)
"""Of the mean peak, one stage each."""
_STEPS = 400
"""Steps of a stage (docs/experiments.md, dispatch)."""
_STRIDE = 16.0
"""How much longer a step is than is safe for every input. The best split is kept, so that one that
oversteps costs nothing but itself (docs/experiments.md, dispatch)."""
_DONE = 2e-4
"""Gap to the bound at which a layer is done."""


@kernel
def _share_layers(
    layers: I64, loads: F64, phy2log: I64, gpus: Gpus, split: F64, peaks: F64, bounds: F64
) -> None:
    """Find one split for all windows in `layers` of `loads` [T, L, E]: fill `split` [L, P], the
    mean peak over windows, of loads over paces, and its bound, `peaks` and `bounds` [L]. Slots of
    -1 hold nothing.
    """
    num_windows, _, num_experts = loads.shape
    num_gpus, rate = gpus.pace.shape[0], 1.0 / gpus.pace
    num_slots = phy2log.shape[1]
    edges = _new_edges(num_experts, num_slots)
    first, gpu_of = edges.first, edges.gpu_of
    base = np.empty((num_windows, num_gpus))
    level = np.empty((num_windows, num_gpus))
    part = np.empty((5, num_slots))
    slope = np.empty(num_slots)
    for layer in layers:
        row = phy2log[layer]
        number = _find_edges(row, gpus.first, edges)
        load = loads[:, layer]
        for window in range(num_windows):
            for gpu in range(num_gpus):
                base[window, gpu] = 0.0
            for expert in range(num_experts):
                if first[expert + 1] - first[expert] == 1:
                    base[window, gpu_of[first[expert]]] += load[window, expert]
        copied = edges.copied[:number]
        peaks[layer], bounds[layer] = _share(load, edges, copied, rate, base, level, part, slope)
        for slot in range(num_slots):
            split[layer, slot] = 0.0
            if row[slot] >= 0:
                edge = edges.of_slot[slot]
                part_of_gpu = 1.0 if edges.number[row[slot]] == 1 else part[3, edge]
                split[layer, slot] = part_of_gpu / edges.copies[edge]


@allocating
def _share(
    load: F64, edges: Edges, copied: I64, rate: F64, base: F64, level: F64, part: F64, slope: F64
) -> tuple[float, float]:
    """The best parts into `part[3]`; return their mean peak, and its bound."""
    first, gpu_of = edges.first, edges.gpu_of
    here, ahead, at, best, average = part
    num_windows, num_gpus = base.shape
    most = np.zeros(num_gpus, np.int64)
    slowest = rate.max()
    crowd = 1
    for i in range(copied.shape[0]):
        expert = copied[i]
        for edge in range(first[expert], first[expert + 1]):
            best[edge] = 1.0 / (first[expert + 1] - first[expert])
            here[edge] = best[edge]
            ahead[edge] = best[edge]
            most[gpu_of[edge]] += 1
            crowd = max(crowd, most[gpu_of[edge]])
    lowest, proven, scale = np.inf, 0.0, 0.0
    for stage in range(len(_SMOOTHING)):
        for edge in range(first[first.shape[0] - 1]):
            here[edge] = best[edge]
            ahead[edge] = best[edge]
            average[edge] = 0.0
        average_base = 0.0
        for step in range(_STEPS):
            pace = 2.0 / (step + 2.0)
            for i in range(copied.shape[0]):
                for edge in range(first[copied[i]], first[copied[i] + 1]):
                    at[edge] = (1.0 - pace) * here[edge] + pace * ahead[edge]
                    slope[edge] = 0.0
            smoothing = _SMOOTHING[stage] * scale
            peak = 0.0
            bound = 0.0
            for window in range(num_windows):
                for gpu in range(num_gpus):
                    level[window, gpu] = base[window, gpu]
                for i in range(copied.shape[0]):
                    expert = copied[i]
                    for edge in range(first[expert], first[expert + 1]):
                        level[window, gpu_of[edge]] += load[window, expert] * at[edge]
                highest = 0.0
                for gpu in range(num_gpus):
                    level[window, gpu] *= rate[gpu]
                    highest = max(highest, level[window, gpu])
                peak += highest / num_windows
            if scale == 0.0:
                scale = peak
                smoothing = _SMOOTHING[stage] * scale
            if scale == 0.0:
                return 0.0, proven
            for window in range(num_windows):
                highest = 0.0
                for gpu in range(num_gpus):
                    highest = max(highest, level[window, gpu])
                total = 0.0
                for gpu in range(num_gpus):
                    level[window, gpu] = _exponential((level[window, gpu] - highest) / smoothing)
                    total += level[window, gpu]
                for gpu in range(num_gpus):
                    level[window, gpu] /= total * num_windows
                    level[window, gpu] *= rate[gpu]
                    bound += level[window, gpu] * base[window, gpu]
                for i in range(copied.shape[0]):
                    expert = copied[i]
                    for edge in range(first[expert], first[expert + 1]):
                        slope[edge] += load[window, expert] * level[window, gpu_of[edge]]
            # The mean of dual solutions is one too, and a better one than the last.
            average_base += pace * (bound - average_base)
            bound = average_base
            for i in range(copied.shape[0]):
                least = np.inf
                for edge in range(first[copied[i]], first[copied[i] + 1]):
                    average[edge] += pace * (slope[edge] - average[edge])
                    least = min(least, average[edge])
                bound += least
            proven = max(proven, bound)
            if peak < lowest:
                lowest = peak
                for i in range(copied.shape[0]):
                    for edge in range(first[copied[i]], first[copied[i] + 1]):
                        best[edge] = at[edge]
            if lowest <= proven * (1.0 + _DONE):
                return lowest, proven
            for i in range(copied.shape[0]):
                expert = copied[i]
                heaviest = 0.0
                for window in range(num_windows):
                    heaviest = max(heaviest, load[window, expert] * slowest)
                if heaviest == 0.0:
                    continue
                length = _STRIDE * smoothing / (pace * crowd * heaviest * heaviest)
                for edge in range(first[expert], first[expert + 1]):
                    ahead[edge] -= length * slope[edge]
                _project(ahead, first[expert], first[expert + 1])
                for edge in range(first[expert], first[expert + 1]):
                    here[edge] = (1.0 - pace) * here[edge] + pace * ahead[edge]
    return lowest, proven


@inner
def _project(values: F64, begin: int, end: int) -> None:
    """Onto the simplex: no part below 0, all of them 1, as near as can be."""
    # All are lowered alike, and those that would be negative are dropped until none is. The highest
    # part stays, so the rest is measured from it, and what is 1 below it is dropped at once.
    top = values[begin]
    for i in range(begin + 1, end):
        top = max(top, values[i])
    number = 0
    level = -1.0
    while True:
        total = 0.0
        kept = 0
        for i in range(begin, end):
            if values[i] - top > level:
                total += values[i] - top
                kept += 1
        above = (total - 1.0) / kept
        if kept == number:
            break
        number = kept
        level = max(level, above)
    for i in range(begin, end):
        values[i] = max(0.0, values[i] - top - above)


@inner
def _exponential(value: float) -> float:
    """Of a value of 0 or less, to 1e-12 of it, by sums and products alone: a library's function
    differs between processors by the last bit.
    """
    if value < -60.0:
        return 0.0
    part = value / 64.0
    term = 1.0
    total = 1.0
    for degree in range(1, 17):
        term *= part / degree
        total += term
    for _ in range(6):
        total *= total
    return total
