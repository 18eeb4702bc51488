"""`eplb frontier`: what so many moves would give, from the placement that runs."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb.checks import printable
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import AsJson, FirstLayer, Groups, Merge, Threads, TraceFile
from eplb.cli.running import (
    Current,
    CurrentGpus,
    SomeGpus,
    SomeNodes,
    SomeSlots,
    load_current,
    moe_slots,
)
from eplb.errors import LoadsError
from eplb.formats import load_trace
from eplb.frontier_plot import check_plot_path, finding, plot_frontier
from eplb.loads import LoadTrace
from eplb.moving.frontier import Frontier, frontier
from eplb.planning.forecast import Recent, Scenarios
from eplb.planning.plan import Effort
from eplb.records import check_writable

__all__ = ["draw_frontier"]

_BAR = 30


def draw_frontier(
    trace: TraceFile,
    current: Current,
    gpus: SomeGpus = None,
    nodes: SomeNodes = None,
    slots: SomeSlots = None,
    groups: Groups = 1,
    points: Annotated[int, typer.Option(help="Most points; they are closer at few moves.")] = 20,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the curve here, as .svg or .png (needs matplotlib).")
    ] = None,
    effort: Annotated[
        Effort, typer.Option(help="How much work the plan made afresh may be.")
    ] = "default",
    current_gpus: CurrentGpus = None,
    first_layer: FirstLayer = 0,
    merge: Merge = 1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Balancedness against moves, from the placement that runs to a plan made afresh.

    Of several windows the last 32 are planned for, each a scenario.
    """
    if plot is not None:
        check_plot_path(plot)
        check_writable(plot, trace)
    loads = load_trace(trace).merged(merge)
    running, cluster = load_current(current, loads, gpus, nodes, slots, current_gpus, first_layer)
    num_slots = moe_slots(loads, cluster)
    if not num_slots:
        raise LoadsError(f"{trace}: no layer has any load: there is nothing to balance")
    expected = Recent()(loads.loads)
    if loads.num_windows == 1:
        expected = Scenarios(loads.loads, np.ones(1))
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        found = frontier(
            expected.loads,
            cluster,
            running,
            num_groups=groups,
            weights=expected.weights,
            points=points,
            effort=effort,
            threads=threads,
        )
    # Printed before it is drawn, for a disk may be full.
    if as_json:
        print(json.dumps(_to_json(found, num_slots, plot)))  # noqa: T201
    else:
        _print(Console(), f"{trace}, from {current}", loads, found, num_slots)
    if plot is not None:
        plot_frontier(plot, found, num_slots)
        if not as_json:
            line = f"The curve is drawn in {printable(plot)}."
            Console().print(line, highlight=False, markup=False)


def _to_json(found: Frontier, num_slots: int, plot: Path | None) -> dict[str, Any]:
    columns = (found.moves, found.moves / num_slots, found.balancedness, found.peak)
    return {
        "slots_of_layers_with_load": num_slots,
        "points": [
            dict(zip(("moves", "moved", "balancedness", "peak"), row, strict=True))
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ],
        "plot": None if plot is None else str(plot),
    }


def _print(console: Console, title: str, loads: LoadTrace, found: Frontier, num_slots: int) -> None:
    cluster = found.placements[0].cluster
    console.print(Text(printable(title), style="bold"))
    nodes = f" on {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    layers = int((~loads.dense).sum())
    console.print(
        Text(
            f"{layers} MoE layers of {loads.num_experts} experts in {cluster.num_slots} slots on "
            f"{cluster.num_gpus} GPUs{nodes}; moves: experts that GPUs must receive"
        )
    )
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("moves", "of slots", "balancedness", "of the gain"):
        table.add_column(heading, justify="right")
    table.add_column("")
    first, last = found.balancedness[0], found.balancedness[-1]
    for moves, balancedness in zip(found.moves.tolist(), found.balancedness.tolist(), strict=True):
        gain = (balancedness - first) / (last - first) if last > first else 1.0
        table.add_row(
            f"{moves:,}",
            f"{moves / num_slots:.2%}",
            f"{balancedness:.4f}",
            f"{gain:.0%}",
            "█" * round(_BAR * max(0.0, gain)),
        )
    console.print(table)
    console.print()
    console.print(Text(f"{finding(found, num_slots)}."))
