"""Comparisons and sweeps as tables for a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb.balance import Interval
from eplb.checks import printable
from eplb.replaying.compare import Comparison, Score
from eplb.replaying.sweep import SweepRow

__all__ = ["print_comparison", "print_sweep"]

_COSTS = ("moved", "bytes", "plan")


def print_comparison(console: Console, title: str, comparison: Comparison) -> None:
    """Print what each policy gave."""
    first = printable(comparison.scores[0].policy)
    console.print(Text(printable(title), style="bold"))
    console.print(Text(_setting(comparison)))
    console.print()
    table = _table(console, "policy")
    gain = f"over {first}"
    net = [score.net for score in comparison.scores]
    known = any(each is not None for each in net)
    for heading in ("balancedness", "pooled", "worst window", gain, *_COSTS, *["net"] * known):
        table.add_column(heading, justify="right")
    for number, score in enumerate(comparison.scores):
        table.add_row(
            printable(score.policy),
            _with_interval(score.balancedness, score.balancedness_interval),
            f"{score.pooled:.4f}",
            f"{score.worst_window:.4f}",
            _gain(score) if number else "",
            *_costs(score),
            *[_net(score, number)] * known,
        )
    console.print(table)
    _say_what_is_sure(console, comparison.scores)
    if known:
        console.print(
            Text(
                f"Net: share of the service's time that is saved against {first}, the time lost by "
                "moving included."
            )
        )
    if comparison.windows < comparison.wanted:
        console.print()
        console.print(
            Text(
                f"Stopped after {comparison.windows:,} of {comparison.wanted:,} windows.",
                style="bold",
            )
        )


def print_sweep(console: Console, title: str, rows: Sequence[SweepRow], wanted: int) -> None:
    """Print a line for each replay of a sweep."""
    console.print(Text(printable(title), style="bold"))
    console.print()
    table = _table(console, "GPUs")
    for heading in ("slots", "spare", "every"):
        table.add_column(heading, justify="right")
    table.add_column("policy")
    for heading in ("balancedness", "worst window", *_COSTS):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.gpus),
            str(row.slots),
            str(row.spare),
            str(row.every),
            printable(row.score.policy),
            _with_interval(row.score.balancedness, row.score.balancedness_interval),
            f"{row.score.worst_window:.4f}",
            *_costs(row.score),
        )
    console.print(table)
    _say_what_is_sure(console, [row.score for row in rows])
    if len(rows) < wanted:
        console.print()
        console.print(Text(f"Stopped after {len(rows)} of {wanted} replays.", style="bold"))


def _table(console: Console, first: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3 if console.width > 100 else 1, 0, 0))
    table.add_column(first)
    return table


def _say_what_is_sure(console: Console, scores: Sequence[Score]) -> None:
    if any(score.balancedness_interval is not None for score in scores):
        console.print()
        console.print(
            Text("± is half a 95 % confidence interval. Moved: slots that GPUs receive at a plan.")
        )


def _setting(comparison: Comparison) -> str:
    """What was replayed, in a sentence."""
    layers = f"{comparison.layers - comparison.dense_layers} MoE layers"
    if comparison.dense_layers:
        layers += f" (and {comparison.dense_layers} with no load)"
    nodes = f" on {comparison.nodes} nodes" if comparison.nodes > 1 else ""
    cadence = "every window" if comparison.every == 1 else f"every {comparison.every} windows"
    shown = "the window" if comparison.history == 1 else f"up to {comparison.history} windows"
    return (
        f"{layers} of {comparison.experts} experts in {comparison.slots} slots on "
        f"{comparison.gpus} GPUs{nodes}; {comparison.windows:,} windows served, a plan before "
        f"{cadence} from {shown} before it"
    )


def _with_interval(value: float, interval: Interval | None, form: str = ".4f") -> str:
    text = format(value, form)
    if interval is not None:
        text += f" ±{(interval.high - interval.low) / 2.0:.4f}"
    return text


def _gain(score: Score) -> str:
    return _with_interval(score.gain, score.gain_interval, "+.4f")


def _net(score: Score, number: int) -> str:
    """What is saved in all; nothing of the first, which the others are compared with."""
    return f"{score.net:+.2%}" if number and score.net is not None else ""


def _costs(score: Score) -> tuple[str, str, str]:
    """What plans moved, in slots and bytes, and how long they took."""
    moved = "-" if score.moved is None else f"{score.moved:.1%}"
    size = "-" if score.bytes_per_plan is None else _bytes(score.bytes_per_plan)
    return moved, size, _milliseconds(score.plan_ms)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000.0:
            return f"{number:.3g} {unit}"
        number /= 1000.0
    return f"{number:.3g} TB"


def _milliseconds(value: float) -> str:
    return f"{value:.1f} ms" if value < 1000.0 else f"{value / 1000.0:.1f} s"
