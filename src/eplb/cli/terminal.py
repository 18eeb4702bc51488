"""What commands print in a terminal: every table, and the sentences around it."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from eplb.checks import printable
from eplb.describe import Inspection
from eplb.planning.summary import Summary

__all__ = ["print_inspection", "print_summary"]


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


def print_summary(console: Console, title: str, summary: Summary) -> None:
    """Print a plan's figures for a person."""
    console.print(Group(*_heading(title, summary), *_balance(summary), *_footing(summary)))


def _heading(title: str, summary: Summary) -> list[RenderableType]:
    dense = len(summary.dense_layers)
    layers = f"{summary.layers - dense} MoE layers"
    if dense:
        layers += f" (and {dense} with no load, spread evenly)"
    nodes = f" on {summary.nodes} nodes" if summary.nodes > 1 else ""
    lines: list[RenderableType] = [
        Text(title, style="bold"),
        Text(
            f"{layers} of {summary.experts} experts "
            f"in {summary.slots} slots on {summary.gpus} GPUs{nodes}"
        ),
    ]
    if summary.planned_for is not None:
        lines.append(Text(summary.planned_for))
    if summary.policy == "hierarchical":
        lines.append(Text(f"{summary.groups} expert groups, each kept on one node"))
    elif summary.groups > 1 and summary.nodes > 1:
        lines.append(
            Text(
                f"{summary.groups} expert groups do not divide over {summary.nodes} nodes: "
                "experts go anywhere"
            )
        )
    return lines


def _balance(summary: Summary) -> list[RenderableType]:
    if len(summary.dense_layers) == summary.layers:
        return [Text("No layer has any load: every expert is spread evenly.")]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("balancedness (mean / max GPU load)")
    table.add_column("contiguous", justify="right")
    table.add_column("plan", justify="right", style="bold")
    table.add_column("proven gap", justify="right")
    table.add_row(
        f"mean of {summary.layers - len(summary.dense_layers)} layers",
        f"{summary.contiguous:.4f}",
        f"{summary.plan:.4f}",
        f"{summary.gap_mean:.3%}",
    )
    for layer in summary.worst_layers:
        table.add_row(
            f"layer {layer.layer}",
            f"{layer.contiguous:.4f}",
            f"{layer.plan:.4f}",
            f"{layer.gap:.3%}",
            style="dim",
        )
    return [
        Text(),
        table,
        Text(),
        Text(
            f"The busiest GPU of a layer has {summary.busiest_gpu_saves:.0%} less to do. No plan "
            f"can better this one by more than {summary.gap_mean:.3%} on average, "
            f"{summary.gap_worst:.3%} in any layer."
        ),
    ]


def _footing(summary: Summary) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if summary.duplicates:
        lines.append(
            Text(
                f"{summary.duplicates} slots hold an expert a second time on a GPU: "
                "GPUs have more slots than there are experts."
            )
        )
    lines.append(
        Text(
            f"Planned in {_duration(summary.seconds)} "
            f"({_duration(summary.first_seconds)} the first time, which compiles or loads kernels)."
        )
    )
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.1f} s"
