"""What a trace holds: its shape, how uneven its loads are, and how they change from window to
window.

Everything is taken from shares: an expert's part of its layer's load in a window. Layers with no
load have none and are left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplb.errors import LoadsError
from eplb.loads import LoadTrace, as_array, check_values

_Array: TypeAlias = NDArray[np.float64]

_AT_ONCE = 1 << 20
"""Values worked on at a time, so that memory stays bounded: 8 MB an array."""

_MOST_PAIRED = 64
"""Windows of which each is compared with each; of more, only those some lags apart."""

_HOTTEST = 5
"""Experts that are named."""

_MOST_ROWS, _MOST_COLUMNS = 16, 64
"""Of a heat map in signs."""

SIGNS, PLAIN_SIGNS = " ░▒▓█", " .:*#"
"""Of a heat map from cold to hot, for terminals with UTF-8 and without."""

_EVEN = 1e-12
"""Standard deviation over mean below which loads differ by rounding alone."""


@dataclass(frozen=True, eq=False)
class Skew:
    """How uneven loads are: one figure for each of N layers with a load.

    Where there were several windows, a layer counts once for each in which it has a load, window
    by window.

    Attributes:
        layer: [N] number of the layer, dense ones counted.
        hottest: [N] load of the hottest expert over the mean of the experts; 1 is even.
        top_fifth: [N] part of the load that the hottest fifth of the experts have, of their number
            rounded to the nearest; 0.2 is even.
        spread: [N] standard deviation of the log of the experts' shares, in nats; experts without
            load are left out.
        idle: [N] experts with less than 1 % of the mean load, those without any among them.
    """

    layer: NDArray[np.int64]
    hottest: NDArray[np.float64]
    top_fifth: NDArray[np.float64]
    spread: NDArray[np.float64]
    idle: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Drift:
    """How much loads change between windows: means over layers, and over pairs of windows.

    A layer counts in the pairs where it has a load in both windows. Correlations are of shares,
    Pearson's, and leave out even loads, which have none. Spreads are the standard deviation of the
    log ratio of shares, in nats, over the experts with a load in both windows. A mean of nothing is
    NaN.

    Attributes:
        lags: K distances between windows: 1, 2, 4, ... below T; of one window, none.
        correlation: [K] mean over pairs of windows so far apart; the first is of neighbours.
        spread: [K] the same.
        first_last_correlation: between the first and the last window.
        first_last_spread: the same.
        correlation_of_pairs: [T, T] between any two windows, None of more than 64.
        spread_of_pairs: [T, T] the same.
    """

    lags: tuple[int, ...]
    correlation: NDArray[np.float64]
    spread: NDArray[np.float64]
    first_last_correlation: float
    first_last_spread: float
    correlation_of_pairs: NDArray[np.float64] | None
    spread_of_pairs: NDArray[np.float64] | None


def skew(loads: Any) -> Skew:
    """How uneven loads are, layer by layer.

    Args:
        loads: [..., L, E] tokens routed to each logical expert.

    Raises:
        LoadsError: loads of fewer than two axes, empty, or with a value that is no number of
            tokens.
    """
    # A trace's loads are read-only, and another kind of array would be a copy.
    is_array = isinstance(loads, np.ndarray) and loads.dtype == np.float64
    array: _Array = loads if is_array else as_array(loads)
    if array.ndim < 2:
        raise LoadsError(
            f"loads have shape {array.shape}: give layers and experts last [..., L, E]"
        )
    check_values(array)
    num_layers, num_experts = array.shape[-2:]
    rows = array.reshape(-1, num_experts)
    loaded = np.flatnonzero(rows.any(axis=-1))
    size = max(1, _AT_ONCE // num_experts)
    parts = [
        _skew_of_rows(rows[loaded[begin : begin + size]])
        for begin in range(0, max(1, loaded.size), size)
    ]
    hottest, top_fifth, spread, idle = map(np.concatenate, zip(*parts, strict=True))
    return Skew(loaded % num_layers, hottest, top_fifth, spread, idle.astype(np.int64))


def _skew_of_rows(rows: _Array) -> tuple[_Array, _Array, _Array, NDArray[np.int64]]:
    """Hottest, top fifth, spread and idle experts of rows [N, E] that all have a load."""
    num_experts = rows.shape[-1]
    mean = rows.mean(axis=-1, keepdims=True)
    relative = rows / mean
    fifth = max(1, round(num_experts / 5))
    split = num_experts - fifth
    top_fifth = np.partition(relative, split, axis=-1)[:, split:].sum(axis=-1) / num_experts
    logs, has_load = _logs(relative)
    num_loaded = has_load.sum(axis=-1)
    spread = np.sqrt((logs**2).sum(axis=-1) / num_loaded)
    return relative.max(axis=-1), top_fifth, spread, (relative < 0.01).sum(axis=-1)


def _logs(rows: _Array) -> tuple[_Array, _Array]:
    """[..., E] logs less their mean over experts with load, 0 for others; 1 where there is load."""
    has_load = rows > 0.0
    logs = np.zeros_like(rows)
    np.log(rows, out=logs, where=has_load)
    num_loaded = np.maximum(has_load.sum(axis=-1, keepdims=True), 1)
    logs -= logs.sum(axis=-1, keepdims=True) / num_loaded
    logs *= has_load
    return logs, has_load.astype(np.float64)


def drift(trace: LoadTrace) -> Drift:
    """How much the loads of a trace change between its windows.

    Memory stays near 60 MB, or seven times the loads of one layer where that is more.
    """
    num_windows, num_layers, num_experts = trace.loads.shape
    lags = tuple(1 << power for power in range((num_windows - 1).bit_length()))
    # The first window and the last, then windows so far apart.
    paired = [(slice(1), slice(-1, None)), *((slice(-lag), slice(lag, None)) for lag in lags)]
    sums = np.zeros((len(paired), 4))
    of_each = np.zeros((4, num_windows, num_windows)) if num_windows <= _MOST_PAIRED else None
    size = max(1, _AT_ONCE // (num_windows * num_experts))
    for begin in range(0, num_layers, size):
        layers = _layers(trace.loads[:, begin : begin + size])
        for total, (first, second) in zip(sums, paired, strict=True):
            found = _compare(layers, first, second, _each_with_its_own)
            total += [part.sum(axis=(0, 1)) for part in found]
        if of_each is not None:
            every = slice(None)
            of_each += [
                part.sum(axis=0) for part in _compare(layers, every, every, _each_with_each)
            ]
    (ends, *correlation), (ends_spread, *spread) = _means(sums.T)
    pairs = (None, None) if of_each is None else _means(of_each)
    correlations, spreads = np.array(correlation), np.array(spread)
    return Drift(lags, correlations, spreads, float(ends), float(ends_spread), *pairs)


def _means(sums: _Array) -> tuple[_Array, _Array]:
    """Mean correlations and spreads, of sums [4, ...] of what `_compare` tells; NaN of nothing."""
    total, count = sums[::2], sums[1::2]
    correlation, spread = np.where(count > 0.0, total / np.maximum(count, 1.0), np.nan)
    return correlation, spread


class _Layers(NamedTuple):
    """Some layers of a trace, window by window: [L, T, E] each, but for the last."""

    deviation: _Array  # of shares from their mean, of length 1 over experts
    logs: _Array
    has_load: _Array
    uneven: _Array  # [L, T, 1]


_Dot: TypeAlias = Callable[[_Array, _Array], _Array]


def _each_with_its_own(first: _Array, second: _Array) -> _Array:
    """[L, P] dot products over experts of [L, P, E] and [L, P, E]."""
    product: _Array = np.einsum("lpe,lpe->lp", first, second)
    return product


def _each_with_each(first: _Array, second: _Array) -> _Array:
    """[L, T, U] dot products over experts of [L, T, E] and [L, U, E]."""
    product: _Array = first @ second.swapaxes(1, 2)
    return product


def _layers(loads: _Array) -> _Layers:
    """What windows are compared by, of loads [T, L, E]."""
    rows = np.ascontiguousarray(loads.swapaxes(0, 1))
    logs, has_load = _logs(rows)
    mean = rows.mean(axis=-1, keepdims=True)
    deviation = rows / np.where(mean > 0.0, mean, 1.0)
    deviation -= deviation.mean(axis=-1, keepdims=True)
    length = np.sqrt(_each_with_its_own(deviation, deviation))[..., None]
    uneven = length > _EVEN * np.sqrt(rows.shape[-1])
    deviation /= np.where(uneven, length, 1.0)
    return _Layers(deviation, logs, has_load, uneven.astype(np.float64))


def _compare(layers: _Layers, first: slice, second: slice, dot: _Dot) -> tuple[_Array, ...]:
    """Compare the windows of one slice with those of another, paired as `dot` does: correlation and
    spread for each layer and pair, and behind each whether it is there (0 or 1).
    """
    one, other = (_Layers(*(part[:, some] for part in layers)) for some in (first, second))
    count = dot(one.has_load, other.has_load)
    safe = np.maximum(count, 1.0)
    mean = (dot(one.logs, other.has_load) - dot(one.has_load, other.logs)) / safe
    square = dot(one.logs**2, other.has_load) + dot(one.has_load, other.logs**2)
    square -= 2.0 * dot(one.logs, other.logs)
    spread = np.sqrt(np.maximum(square / safe - mean**2, 0.0))
    correlates = dot(one.uneven, other.uneven)
    correlation = np.clip(dot(one.deviation, other.deviation), -1.0, 1.0) * correlates
    return correlation, correlates, spread, (count > 0.0).astype(np.float64)


@dataclass(frozen=True)
class Range:
    """A figure over layers and windows."""

    mean: float
    least: float
    most: float


@dataclass(frozen=True)
class LagFigures:
    """Windows `lag` apart: correlation of experts' shares, and sd of their log ratio in nats."""

    lag: int
    correlation: float | None
    spread: float | None


@dataclass(frozen=True)
class HotExpert:
    """An expert with much load, all windows together.

    Attributes:
        layer, expert: their numbers.
        times_mean: its load over that of a mean expert of the layer.
    """

    layer: int
    expert: int
    times_mean: float


@dataclass(frozen=True)
class Inspection:
    """The figures of a trace; those of layers leave out dense ones.

    Attributes:
        windows: T; layers: L; experts: E.
        dense_layers: numbers of the layers with no load in any window.
        source_ranks: ranks that tokens come from, None where the file counts them together.
        seconds: from the first window to the last, None where the file tells no times.
        load_per_layer: load of a layer in a window, dense layers left out.
        hottest: load of a layer's hottest expert over the mean of its experts.
        top_fifth: part of the load that the hottest fifth of the experts have.
        spread: standard deviation of the log of the experts' shares, in nats.
        idle: experts with less than 1 % of the mean load.
        ordered: whether windows follow each other.
        drift: by how far apart windows are; empty of windows in no order.
        first_last: the first window and the last, None of one window, and of windows in no order.
        alike: correlation of experts' shares, over any two windows that are in no order; None of
            others, of more than 64, and where loads are even.
        hottest_experts: those with most load of all layers, the hottest first.
    """

    windows: int
    first_window: str
    last_window: str
    layers: int
    experts: int
    dense_layers: list[int]
    model: str | None
    top_k: int | None
    source_ranks: int | None
    seconds: float | None
    load_per_layer: Range | None
    hottest: Range | None
    top_fifth: Range | None
    spread: Range | None
    idle: Range | None
    ordered: bool
    drift: list[LagFigures]
    first_last: LagFigures | None
    alike: Range | None
    hottest_experts: list[HotExpert]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def inspect_trace(trace: LoadTrace) -> Inspection:
    """Take the figures of a trace."""
    uneven = skew(trace.loads)
    change = drift(trace)
    per_layer = trace.loads.sum(axis=2)[:, np.logical_not(trace.dense)]
    last = trace.num_windows - 1
    first_last = LagFigures(
        last, _known(change.first_last_correlation), _known(change.first_last_spread)
    )
    return Inspection(
        windows=trace.num_windows,
        first_window=trace.names[0],
        last_window=trace.names[-1],
        layers=trace.num_layers,
        experts=trace.num_experts,
        dense_layers=np.array(trace.layer_numbers)[trace.dense].tolist(),
        model=trace.model,
        top_k=trace.top_k,
        source_ranks=None if trace.sources is None else len(trace.sources),
        seconds=None if trace.times is None else float(np.ptp(trace.times)),
        load_per_layer=_range(per_layer),
        hottest=_range(uneven.hottest),
        top_fifth=_range(uneven.top_fifth),
        spread=_range(uneven.spread),
        idle=_range(uneven.idle),
        ordered=trace.ordered,
        drift=[
            LagFigures(lag, _known(correlation), _known(spread))
            for lag, correlation, spread in zip(
                change.lags, change.correlation, change.spread, strict=True
            )
            if trace.ordered
        ],
        first_last=first_last if last and trace.ordered else None,
        alike=None if trace.ordered else _alike(change),
        hottest_experts=_hottest(trace),
    )


def _alike(change: Drift) -> Range | None:
    """Correlation of any two windows, where that is known."""
    pairs = change.correlation_of_pairs
    if pairs is None:
        return None
    found = pairs[np.triu_indices(len(pairs), 1)]
    return _range(found[~np.isnan(found)])


def heat(trace: LoadTrace) -> _Array:
    """[L, E] load of each expert over that of a mean one of its layer, all windows together; 0 in
    dense layers.
    """
    total = trace.total()
    mean = total.mean(axis=1, keepdims=True)
    found: _Array = np.divide(total, mean, out=np.zeros_like(total), where=mean > 0.0)
    return found


class Shades(NamedTuple):
    """What the five signs of a heat map stand for.

    Attributes:
        steps: where each but the last ends, in times the mean.
        words: what it says, of each.
    """

    steps: tuple[float, ...]
    words: tuple[str, ...]


OF_EXPERTS = Shades(
    (0.5, 1.0, 2.0, 4.0),
    ("below half the mean", "to the mean", "to twice", "to four times", "above"),
)
OF_GPUS = Shades(
    (0.9, 1.0, 1.1, 1.25),
    ("below 0.9 of the mean", "to the mean", "to 1.1 times", "to 1.25", "above"),
)


def heat_map(
    maps: Mapping[str, _Array],
    layers: Sequence[int],
    what: str,
    shades: Shades,
    width: int,
    signs: str = SIGNS,
) -> tuple[str, list[str]]:
    """Loads in layers as lines of signs, for a terminal.

    Args:
        maps: [L, N] loads over the mean of their layer, by headings; they stand side by side. One
            alone needs none.
        layers: [L] numbers of the layers.
        what: has these loads: "expert" or "GPU".
        shades: what the signs stand for.
        width: characters of a line at most.
        signs: from cold to hot.

    Returns:
        What the signs mean, and the lines. Where there are more layers or columns than fit,
        neighbours share a sign, and it is that of the hottest.
    """
    num_layers, number = next(iter(maps.values())).shape
    rows = np.array_split(np.arange(num_layers), min(num_layers, _MOST_ROWS))
    numbers = [
        f"{layers[each[0]]}-{layers[each[-1]]}" if len(each) > 1 else str(layers[each[0]])
        for each in rows
    ]
    indent = max(len(number) for number in ("layer", *numbers)) + 1
    most = (width - indent) // len(maps) - 3
    columns = np.array_split(np.arange(number), max(1, min(number, most, _MOST_COLUMNS)))
    lines = []
    if len(maps) > 1:
        heads = (f" {name:<{len(columns) + 2}}" for name in maps)
        lines.append(f"{'layer':>{indent - 1}}{''.join(heads)}".rstrip())
    for label, row in zip(numbers, rows, strict=True):
        drawn = []
        for heat_of in maps.values():
            hottest = (heat_of[np.ix_(row, each)].max() for each in columns)
            of_row = (signs[int(np.searchsorted(shades.steps, each, "right"))] for each in hottest)
            drawn.append(f" |{''.join(of_row)}|")
        lines.append(f"{label:>{indent - 1}}{''.join(drawn)}")
    legend = ", ".join(f"{sign!r} {words}" for sign, words in zip(signs, shades.words, strict=True))
    shared = [
        f"{' or '.join(map(str, sorted({len(parts[-1]), len(parts[0])})))} {name}s"
        for parts, name in ((rows, "layer"), (columns, what))
        if len(parts[0]) > 1
    ]
    shown = f"the hottest of {' and '.join(shared)}" if shared else f"one {what} of a layer"
    return f"Each sign is the load of {shown}: {legend}.", lines


def _hottest(trace: LoadTrace) -> list[HotExpert]:
    found = heat(trace)
    order = np.argsort(-found, axis=None, kind="stable")[:_HOTTEST]
    places = zip(*np.unravel_index(order, found.shape), strict=True)
    return [
        HotExpert(trace.layer_numbers[layer], int(expert), float(found[layer, expert]))
        for layer, expert in places
        if found[layer, expert] > 0.0
    ]


def _range(values: NDArray[Any]) -> Range | None:
    if not values.size:
        return None
    return Range(float(values.mean()), float(values.min()), float(values.max()))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
