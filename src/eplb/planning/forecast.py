"""From the windows so far to the windows to plan for.

What comes next is not known; a rule says what to plan for instead. `plan` lowers the expected peak
over the windows that a rule gives, so a rule that gives several plans for each of them.

Where loads have clearly changed, to what was not there before, all rules but `Clusters` pass over
the windows from before the change: it can be too late for a backtest to show that.

Workloads in no order have no last one, and no change: what rules make of them goes by none.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eplb.errors import OptionError
from eplb.loads import to_total
from eplb.merging import clear_change

__all__ = [
    "FORECASTS",
    "HISTORY",
    "Clusters",
    "Decay",
    "Deviation",
    "Extended",
    "Forecast",
    "Last",
    "Mean",
    "Recent",
    "Scenarios",
    "Smoothed",
    "changed_at",
    "in_no_order",
    "named_forecast",
]

_Loads = NDArray[np.float64]


HISTORY = 32
"""Windows that are planned for, the last ones, unless a user says otherwise (docs/study.md)."""


@dataclass(frozen=True, eq=False)
class Scenarios:
    """Windows to plan for.

    Attributes:
        loads: [K, L, E] tokens, each window of a layer scaled to the same total.
        weights: [K] what they count, adding up to 1.

    Where none that counts has any load there is one of them, of no load.
    """

    loads: _Loads
    weights: NDArray[np.float64]

    def __post_init__(self) -> None:
        if not self.loads[self.weights > 0.0].any():
            object.__setattr__(self, "loads", np.zeros_like(self.loads[:1]))
            object.__setattr__(self, "weights", np.ones(1))


Forecast = Callable[[_Loads], Scenarios]
"""A rule: windows so far [T, L, E], the last one last, to windows to plan for."""


@dataclass(frozen=True)
class Smoothed:
    """The mean of the last windows, in which one counts so many times as much as the one after it
    as would have predicted each of them best from those before: exponential smoothing.

    Where loads wander and windows are noisy, no other weights predict them better: few windows
    count if they wander far, and all alike if nothing but noise differs.

    Source: Muth, "Optimal properties of exponentially weighted forecasts", 1960.

    Attributes:
        windows: how many of them at most.
    """

    windows: int = HISTORY

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        scaled = _of_one_total(_present(loads, self.windows))
        *_, mean = _smoothed(scaled, _best_kept(scaled))
        return _alike(_of_one_total(mean[None]))


@dataclass(frozen=True)
class Last:
    """The last window, as it was."""

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        return _alike(_of_one_total(loads[-1:]))


@dataclass(frozen=True)
class Mean:
    """The mean of the last windows: what engines plan for, who add them up.

    Attributes:
        windows: how many of them at most; None for all, as they are in no order.
    """

    windows: int | None = HISTORY

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        return _alike(_of_one_total(_present(loads, self.windows)).mean(axis=0, keepdims=True))


@dataclass(frozen=True)
class Decay:
    """The mean of all windows, in which one counts half as much as one `half_life` later.

    Attributes:
        half_life: windows after which a load counts half.
    """

    half_life: float = 8.0

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        keep = 0.5 ** (1.0 / self.half_life)
        mean = np.zeros(loads.shape[1:])
        for window in _of_one_total(loads[changed_at(loads) :]):
            mean = keep * mean + window
        return _alike(_of_one_total(mean[None]))


@dataclass(frozen=True)
class Deviation:
    """The mean of the last windows, and so many standard deviations: hot now and then is hot.

    Attributes:
        deviations: how many standard deviations over windows.
        windows: how many of them at most; None for all, as they are in no order.
    """

    deviations: float = 1.0
    windows: int | None = HISTORY

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        scaled = _of_one_total(_present(loads, self.windows))
        high = scaled.mean(axis=0) + self.deviations * scaled.std(axis=0)
        return _alike(_of_one_total(high[None]))


@dataclass(frozen=True)
class Recent:
    """The last windows, each a scenario of its own.

    Attributes:
        windows: how many of them at most; None for all, as they are in no order.
    """

    windows: int | None = HISTORY

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        return _alike(_of_one_total(_present(loads, self.windows)))


@dataclass(frozen=True)
class Extended:
    """The last windows, each further from their mean than it was.

    T windows lie closer to their own mean than a new one will: for normal numbers by the root of
    (T + 1) / (T - 1).

    Attributes:
        windows: how many of them at most; None for all, as they are in no order.
    """

    windows: int | None = HISTORY

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        scaled = _of_one_total(_present(loads, self.windows))
        number = len(scaled)
        if number == 1:
            return _alike(scaled)
        mean = scaled.mean(axis=0)
        factor = np.sqrt((number + 1.0) / (number - 1.0))
        return _alike(_of_one_total(np.maximum(mean + factor * (scaled - mean), 0.0)))


@dataclass(frozen=True)
class Clusters:
    """Kinds of windows, each a scenario that counts by how often it came; old ones are not lost.

    Windows are put together with those whose shares are alike (k-means on the square roots of
    shares, begun with windows far from each other), and a scenario is their mean.

    Attributes:
        clusters: how many kinds at most.
        windows: how many windows at most, the last ones; None for all.
    """

    clusters: int = 8
    windows: int | None = 128

    def __call__(self, loads: _Loads) -> Scenarios:
        """The windows to plan for."""
        scaled = _of_one_total(loads if self.windows is None else loads[-self.windows :])
        if len(scaled) <= self.clusters:
            return _alike(scaled)
        kind = _kinds(np.sqrt(scaled).reshape(len(scaled), -1), self.clusters)
        sizes = np.bincount(kind)
        means = np.stack([scaled[kind == number].mean(axis=0) for number in range(len(sizes))])
        return Scenarios(means, sizes / sizes.sum())


FORECASTS: dict[str, Forecast] = {
    "smoothed": Smoothed(),
    "last": Last(),
    "mean": Mean(),
    "decay": Decay(),
    "deviation": Deviation(),
    "recent": Recent(),
    "extended": Extended(),
    "clusters": Clusters(),
}
"""Rules by name, from simple to clever."""


def named_forecast(name: str) -> Forecast:
    """The rule of a name.

    Raises:
        OptionError: there is none.
    """
    if name not in FORECASTS:
        raise OptionError(f"no forecast is called {name!r}: give {', '.join(FORECASTS)}")
    return FORECASTS[name]


def in_no_order(rule: Forecast) -> Forecast:
    """The rule for windows that do not follow each other: of all of them, whichever comes last.

    Raises:
        OptionError: a rule that goes by which window came last.
    """
    if isinstance(rule, Smoothed | Last | Decay):
        name = type(rule).__name__.lower()
        raise OptionError(
            f"forecast {name} goes by the order of windows, and these are workloads in no order: "
            "give recent, mean, deviation, extended or clusters, or the files in their order"
        )
    if isinstance(rule, Mean | Deviation | Recent | Extended | Clusters):
        return replace(rule, windows=None)
    return rule


def changed_at(loads: _Loads) -> int:
    """The first window of [T, L, E] since a clear change of the loads, 0 where there was none, as
    `eplb.merging.clear_change` tells it from distances. Only the last 32 windows are looked at.

    Example:
        >>> before, after = [[4.0, 2.0, 1.0]], [[1.0, 2.0, 4.0]]
        >>> changed_at(np.array([before] * 8 + [after] * 2))
        8
    """
    last = loads[-HISTORY:]
    change = clear_change(len(last), _apart(last))
    return len(loads) - len(last) + change if change else 0


def _present(loads: _Loads, most: int | None) -> _Loads:
    """The last windows, so many at most, since loads have clearly changed; None for all."""
    if most is None:
        return loads
    return loads[max(changed_at(loads), len(loads) - most) :]


def _apart(loads: _Loads) -> Callable[[int], _Loads]:
    """How far a window [L, E] is from each of those before it, mean over the layers that both load.

    The squared distance of the square roots of experts' shares, whose noise is alike.
    """
    total = loads.sum(axis=2)
    loaded = total > 0.0
    roots = np.sqrt(loads / np.where(loaded, total, 1.0)[:, :, None])

    def away(window: int) -> _Loads:
        apart = ((roots[:window] - roots[window]) ** 2).sum(axis=2)
        both = loaded[:window] & loaded[window]
        found: _Loads = (apart * both).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
        return found

    return away


def _alike(loads: _Loads) -> Scenarios:
    return Scenarios(loads, np.full(len(loads), 1.0 / len(loads)))


def _of_one_total(loads: _Loads) -> _Loads:
    """Windows of which each layer that has a load adds up to the mean of such windows."""
    total = loads.sum(axis=2, keepdims=True)
    loaded = np.maximum((total > 0.0).sum(axis=0), 1)
    return to_total(loads, total, total.sum(axis=0) / loaded)


_KEPT = tuple(tenths / 10.0 for tenths in range(10, -1, -1))
"""What a window may count of the one after it: from all alike to none but the last."""
_FEWEST = 4
"""Windows from which it can be told what to keep of those before."""
_SAME = 1e-9
"""Part of the windows' squares by which predictions must differ; less is rounding."""


def _best_kept(scaled: _Loads) -> float:
    """What a window is to count of the one after it, by squared errors of predictions."""
    number = len(scaled)
    if number < _FEWEST:
        return 1.0
    # The first ones have too little before them.
    begin = number // 4
    squares = float((scaled**2).sum())
    loaded = np.asarray(scaled.any(axis=2))
    best, least = 1.0, np.inf
    for kept in _KEPT:
        error = 0.0
        for window, mean in enumerate(_smoothed(scaled[:-1], kept), start=1):
            if window >= begin:
                away = ((scaled[window] - mean) ** 2).sum(axis=1)
                error += float(away[loaded[window]].sum())
        if error < least - _SAME * squares:
            best, least = kept, error
    return best


def _smoothed(scaled: _Loads, kept: float) -> Iterator[_Loads]:
    """After each window the mean so far [L, E], in which one counts `kept` times the next; layers
    without load in it keep the mean that they had.
    """
    total, count = np.zeros(scaled.shape[1:]), np.zeros((scaled.shape[1], 1))
    for window in scaled:
        loaded = window.any(axis=1, keepdims=True)
        total = np.where(loaded, kept * total + window, total)
        count = np.where(loaded, kept * count + 1.0, count)
        yield total / np.maximum(count, 1.0)


_MOST_ROUNDS = 10


def _kinds(points: _Loads, most: int) -> NDArray[np.int64]:
    """[T] number of the cluster of each of the points [T, D], counted from 0, none empty.

    Distances are sums of squares and no products of matrices, which differ between processors.
    """
    centres = [points[-1]]
    away = _distance(points, centres[0])
    while len(centres) < most and away.max() > 0.0:
        centres.append(points[int(away.argmax())])
        away = np.minimum(away, _distance(points, centres[-1]))
    kind = np.full(len(points), -1)
    for _ in range(_MOST_ROUNDS):
        nearest = np.stack([_distance(points, centre) for centre in centres]).argmin(axis=0)
        if np.array_equal(nearest, kind):
            break
        kind = nearest
        centres = [points[kind == number].mean(axis=0) for number in np.unique(kind)]
    _, numbered = np.unique(kind, return_inverse=True)
    return numbered.astype(np.int64).ravel()


def _distance(points: _Loads, centre: _Loads) -> _Loads:
    away: _Loads = ((points - centre) ** 2).sum(axis=1)
    return away
