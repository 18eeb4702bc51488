"""`eplb decide`: whether to move now, which layers, or to wait."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

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
    MaxMoves,
    SomeGpus,
    SomeNodes,
    SomeSlots,
    budget_of,
    load_current,
    moe_slots,
)
from eplb.cli.services import (
    Between,
    ExpertBytes,
    ExpertShare,
    GpuName,
    ModelName,
    Stall,
    Within,
    rates_of,
    service_of,
)
from eplb.errors import OptionError
from eplb.formats import load_trace
from eplb.formats.placements import check_placement_path, save_placement
from eplb.moving.decide import MARGIN, Decision, decide
from eplb.records import check_writable
from eplb.replaying.replay import HISTORY

__all__ = ["decide_on"]


def decide_on(
    trace: TraceFile,
    current: Current,
    seconds: Annotated[float, typer.Option(help="Time until the next decision.")],
    gpus: SomeGpus = None,
    nodes: SomeNodes = None,
    slots: SomeSlots = None,
    groups: Groups = 1,
    model: ModelName = None,
    gpu: GpuName = None,
    expert_bytes: ExpertBytes = None,
    bandwidth_within: Within = None,
    bandwidth_between: Between = None,
    stall: Stall = None,
    expert_share: ExpertShare = None,
    margin: Annotated[
        float, typer.Option(help="How many times its cost a gain is to be.")
    ] = MARGIN,
    max_moves: MaxMoves = None,
    history: Annotated[int, typer.Option(help="Most windows, the last ones.")] = HISTORY,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the placement to go to here, as SGLang loads it (JSON)."
        ),
    ] = None,
    current_gpus: CurrentGpus = None,
    first_layer: FirstLayer = 0,
    merge: Merge = 1,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Move, move some layers, or wait: what a plan is expected to gain, and what moving costs.

    Whatever is decided, the exit status is 0. When waiting, no file is written.
    """
    if output is not None:
        check_placement_path(output, "sglang")
        check_writable(output, trace)
    if history < 1:
        raise OptionError(f"--history is {history}: give 1 or more")
    loads = load_trace(trace).merged(merge)
    running, cluster = load_current(current, loads, gpus, nodes, slots, current_gpus, first_layer)
    rates = rates_of(
        cluster, model, gpu, expert_bytes, bandwidth_within, bandwidth_between, loads.model
    )
    service = service_of(cluster, rates, stall, expert_share)
    budget = budget_of(max_moves, moe_slots(loads, cluster))
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        found = decide(
            loads.loads[-history:],
            cluster,
            running,
            service,
            seconds,
            num_groups=groups,
            max_moves=budget,
            margin=margin,
            threads=threads,
        )
    goes = output if found.placement is not None else None
    if as_json:
        written = None if goes is None else str(goes)
        service_figures = {"service": asdict(service), "seconds": seconds, "margin": margin}
        print(json.dumps({**_to_json(found), **service_figures, "output": written}))  # noqa: T201
    else:
        _print(Console(), f"{trace}, {current} running", found)
    if goes is not None and found.placement is not None:
        save_placement(
            found.placement, goes, to="sglang", dense=loads.dense, first_layer=first_layer
        )
        if not as_json:
            line = f"Placement written to {printable(goes)} for sglang."
            Console().print(line, highlight=False, markup=False)


def _to_json(found: Decision) -> dict[str, Any]:
    figures = {name: value for name, value in vars(found).items() if name != "plan"}
    interval = found.gain_interval
    figures["gain_interval"] = None if interval is None else asdict(interval)
    return {**figures, "layers": list(found.layers)}


def _print(console: Console, title: str, found: Decision) -> None:
    console.print(Text(printable(title), style="bold"))
    console.print()
    console.print(Text(f"{found.action.capitalize()}: {found.reason}."))
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    waiting = found.action == "wait"
    table.add_column("weighed" if waiting else "to do")
    table.add_column("", justify="right")
    for row in _rows(found):
        table.add_row(*row)
    console.print(table)


def _rows(found: Decision) -> list[tuple[str, str]]:
    rows = [
        ("experts to move", f"{found.moves:,}"),
        ("bytes", f"{found.total_bytes / 1e9:,.3g} GB"),
        ("time of the transfers", f"{found.moving_seconds:.3g} s"),
    ]
    if found.layers:
        rows.insert(0, ("layers", f"{len(found.layers)}"))
    if found.tried or found.gain:
        gain = f"{found.gain:.2%}"
        if found.gain_interval is not None:
            low, high = found.gain_interval.low, found.gain_interval.high
            gain += f" ({low:.2%} to {high:.2%})"
        seen = "windows not planned for" if found.tried else "the windows planned for"
        rows.append((f"fall of the peaks on {seen}", gain))
        rows.append(("time gained until the next decision", f"{found.gained_seconds:.3g} s"))
    return [*rows, ("time lost by moving", f"{found.lost_seconds:.3g} s")]
