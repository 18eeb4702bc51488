"""`eplb evaluate`: how good the placement is that runs now, and what a plan would gain."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb.balance import Interval
from eplb.checks import printable
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import AsJson, FirstLayer, Groups, Merge, Threads
from eplb.formats import load_placement, load_trace
from eplb.replaying.evaluate import Evaluation, Standing, evaluate_placement

__all__ = ["evaluate"]

_NAMES = {"this": "this placement", "from this": "a plan from it", "afresh": "a plan afresh"}


def evaluate(
    placement: Annotated[
        Path,
        typer.Argument(
            metavar="PLACEMENT",
            help="What runs: a placement for SGLang, vLLM, TensorRT-LLM or vllm-ascend, arrays as "
            "DeepSeek's EPLB returns, or a dump of SGLang's recorder (per_pass, per_token).",
        ),
    ],
    trace: Annotated[
        Path,
        typer.Argument(metavar="LOADS", help="Loads to score it on, as the other commands take."),
    ],
    gpus: Annotated[
        int | None,
        typer.Option(
            help="GPUs (EP ranks) that it is for. [default: what the file says, if it does]",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="Nodes that they stand on. [default: what the file says, or 1]",
            show_default=False,
        ),
    ] = None,
    groups: Groups = 1,
    first_layer: FirstLayer = 0,
    merge: Merge = 1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score the placement that runs now, and say what a plan for the same slots would gain."""
    loads = load_trace(trace).merged(merge)
    running = load_placement(
        placement,
        gpus,
        nodes,
        num_experts=loads.num_experts,
        dense=loads.dense,
        first_layer=first_layer,
    )
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        found = evaluate_placement(running, loads, num_groups=groups, threads=threads)
    if as_json:
        print(json.dumps(found.to_json()))  # noqa: T201
    else:
        _print(Console(), f"{placement} on {trace}", found)


def _print(console: Console, title: str, found: Evaluation) -> None:
    console.print(Text(printable(title), style="bold"))
    console.print(Text(_setting(found)))
    console.print()
    if len(found.dense_layers) == found.layers:
        console.print(Text("No layer has any load: there is nothing to balance."))
        return
    console.print(_placements(found))
    console.print()
    console.print(_layers(found))
    console.print()
    for line in _lines(found):
        console.print(Text(line))


def _setting(found: Evaluation) -> str:
    layers = f"{found.layers - len(found.dense_layers)} MoE layers"
    if found.dense_layers:
        layers += f" (and {len(found.dense_layers)} with no load)"
    nodes = f" on {found.nodes} nodes" if found.nodes > 1 else ""
    windows = "1 window" if found.windows == 1 else f"{found.windows:,} windows"
    return (
        f"{layers} of {found.experts} experts in {found.slots} slots on {found.gpus} GPUs{nodes}; "
        f"{windows}"
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _placements(found: Evaluation) -> Table:
    table = _table("", "balancedness", "pooled", "worst window", "duplicates", "moves")
    for standing in found.standings:
        table.add_row(
            _NAMES.get(standing.placement, standing.placement),
            _with_interval(standing.balancedness, standing.interval),
            _with_interval(standing.pooled, standing.pooled_interval),
            f"{standing.worst_window:.4f}",
            str(standing.duplicates),
            "" if standing.placement == "this" else f"{standing.moves:,} ({standing.moved:.1%})",
            style="bold" if standing.placement == "this" else None,
        )
    return table


def _layers(found: Evaluation) -> Table:
    table = _table("its worst layers", "this", "from it", "afresh", "contiguous")
    for figures in found.worst_layers:
        values = (figures.this, figures.from_this, figures.afresh, figures.contiguous)
        table.add_row(f"layer {figures.layer}", *(f"{value:.4f}" for value in values), style="dim")
    return table


def _lines(found: Evaluation) -> list[str]:
    lines = []
    if found.hottest is not None:
        hot = found.hottest
        lines.append(
            f"GPU {hot.gpu} has the most load, {hot.load:.3f} times that of a GPU on average; it "
            f"is the busiest in {hot.busiest:.0%} of layers."
        )
    if found.unseen is None:
        lines.append(
            "Plans were made from the one window that they are scored on: on others they gain less."
        )
    else:
        unseen = found.unseen
        gain = _with_interval(unseen.gain, unseen.gain_interval, "+.4f")
        lines.append(
            f"On the last {_count(unseen.windows)}, a plan from it for the {_count(unseen.seen)} "
            f"before gives {unseen.plan:.4f}, and this placement {unseen.this:.4f} ({gain})."
        )
    lines.append("Moves: experts that GPUs would receive to get there from this placement.")
    this = found.standings[0]
    if this.duplicates:
        lines.append(_duplicates(this))
    if any(standing.interval is not None for standing in found.standings):
        lines.append("± is half a 95 % confidence interval.")
    return lines


def _duplicates(this: Standing) -> str:
    slots = "1 slot holds" if this.duplicates == 1 else f"{this.duplicates:,} slots hold"
    return f"{slots} an expert that another slot of the GPU holds too: memory that gains nothing."


def _count(windows: int) -> str:
    return "window" if windows == 1 else f"{windows:,} windows"


def _with_interval(value: float, interval: Interval | None, form: str = ".4f") -> str:
    text = format(value, form)
    if interval is not None:
        text += f" ±{(interval.high - interval.low) / 2.0:.4f}"
    return text
