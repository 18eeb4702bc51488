"""What a trace holds: its shape, how uneven its loads are and how they drift."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb.skew import drift, skew
from eplb.text import printable
from eplb.trace import LoadTrace

__all__ = ["Inspection", "LagFigures", "Range", "inspect_trace", "print_inspection"]


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
class Inspection:
    """The figures of a trace; those of layers leave out dense ones.

    Attributes:
        windows: T; layers: L; experts: E.
        dense_layers: layers with no load in any window.
        seconds: from the first window to the last, None where the file tells no times.
        load_per_layer: load of a layer in a window, dense layers left out.
        hottest: load of a layer's hottest expert over the mean of its experts.
        top_fifth: part of the load that the hottest fifth of the experts have.
        spread: standard deviation of the log of the experts' shares, in nats.
        idle: experts with less than 1 % of the mean load.
        drift: by how far apart windows are.
        first_last: the first window and the last, None of one window.
    """

    windows: int
    first_window: str
    last_window: str
    layers: int
    experts: int
    dense_layers: list[int]
    model: str | None
    top_k: int | None
    seconds: float | None
    load_per_layer: Range | None
    hottest: Range | None
    top_fifth: Range | None
    spread: Range | None
    idle: Range | None
    drift: list[LagFigures]
    first_last: LagFigures | None

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
        dense_layers=np.flatnonzero(trace.dense).tolist(),
        model=trace.model,
        top_k=trace.top_k,
        seconds=None if trace.times is None else float(np.ptp(trace.times)),
        load_per_layer=_range(per_layer),
        hottest=_range(uneven.hottest),
        top_fifth=_range(uneven.top_fifth),
        spread=_range(uneven.spread),
        idle=_range(uneven.idle),
        drift=[
            LagFigures(lag, _known(correlation), _known(spread))
            for lag, correlation, spread in zip(
                change.lags, change.correlation, change.spread, strict=True
            )
        ],
        first_last=first_last if last else None,
    )


def print_inspection(console: Console, title: str, found: Inspection) -> None:
    """Print the figures for a person."""
    console.print(Text(printable(title), style="bold"))
    for line in _lines(found):
        console.print(Text(line))
    if found.hottest is None:
        console.print(Text("No layer has any load."))
        return
    console.print()
    console.print(_skew_table(found))
    if found.drift:
        console.print()
        console.print(_drift_table(found))


def _lines(found: Inspection) -> list[str]:
    moe = found.layers - len(found.dense_layers)
    layers = f"{moe} MoE layers of {found.experts} experts"
    if found.dense_layers:
        layers += f", and {len(found.dense_layers)} with no load ({_numbers(found.dense_layers)})"
    windows = "1 window" if found.windows == 1 else f"{found.windows:,} windows"
    names = printable(found.first_window)
    if found.windows > 1:
        names += f" to {printable(found.last_window)}"
    if found.seconds is not None:
        names += f", {found.seconds:,.1f} seconds"
    known = [f"model {printable(found.model)}"] if found.model else []
    if found.top_k is not None:
        known.append(f"top {found.top_k}")
    return [f"{windows} ({names})", layers, *([", ".join(known)] if known else [])]


def _skew_table(found: Inspection) -> Table:
    table = _table("over layers and windows", "mean", "least", "most")
    for name, values, form in (
        ("load of a layer in a window", found.load_per_layer, "{:,.0f}"),
        ("hottest expert / mean expert", found.hottest, "{:.2f}"),
        ("part of the load on the hottest fifth", found.top_fifth, "{:.1%}"),
        ("spread of experts' shares (sd of their log)", found.spread, "{:.2f}"),
        ("experts below 1 % of the mean", found.idle, "{:.4g}"),
    ):
        if values is not None:
            cells = (form.format(value) for value in (values.mean, values.least, values.most))
            table.add_row(name, *cells)
    return table


def _drift_table(found: Inspection) -> Table:
    table = _table("windows apart", "correlation of shares", "sd of their log ratio")
    for row in found.drift:
        table.add_row(f"{row.lag:,}", _figure(row.correlation), _figure(row.spread))
    last = found.first_last
    if last is not None and last.lag != found.drift[-1].lag:
        table.add_row(
            f"{last.lag:,} (first and last)", _figure(last.correlation), _figure(last.spread)
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _range(values: NDArray[Any]) -> Range | None:
    if not values.size:
        return None
    return Range(float(values.mean()), float(values.min()), float(values.max()))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _numbers(numbers: list[int]) -> str:
    """Numbers with runs drawn together: "0-2, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
