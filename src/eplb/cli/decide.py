"""`eplb decide`: whether to move now, which layers, or to wait."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eplb.checks import budget_from, in_few_words, whole_number
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AdviceOptions,
    AsJson,
    DispatchRule,
    Groups,
    MaxMoves,
    Threads,
    TraceFiles,
    given,
    moe_slots,
    next_command,
    rule_of,
)
from eplb.cli.pins import PinOptions
from eplb.cli.reading import LayerOptions
from eplb.cli.running import RunningOptions
from eplb.cli.service import ServiceOptions
from eplb.cli.terminal import print_decision, print_json, say, waiting
from eplb.files import check_writable
from eplb.formats.placements import check_placement_path, save_placement
from eplb.loads import LoadTrace
from eplb.moving.decide import MARGIN, Decision, decide
from eplb.planning.forecast import HISTORY

__all__ = ["command"]


def command(
    traces: TraceFiles,
    *,
    running: RunningOptions,
    seconds: Annotated[float, typer.Option(help="Seconds until the next decision.")],
    groups: Groups = 1,
    costs: ServiceOptions,
    margin: Annotated[
        float, typer.Option(help="Minimum ratio of gain to cost for a move.")
    ] = MARGIN,
    max_moves: MaxMoves = None,
    advice: AdviceOptions,
    history: Annotated[
        int, typer.Option(help="Maximum number of windows to use, the last ones.")
    ] = HISTORY,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the new placement to this file, as JSON that SGLang loads.",
        ),
    ] = None,
    reading: LayerOptions,
    dispatch: DispatchRule = None,
    pins: PinOptions,
    threads: Threads = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if the answer is to wait.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decide whether to move now: weigh the expected gain of a plan against the cost of moving.

    The answer is to move, to move some layers, or to wait. The exit status is 0 in every case,
    unless --exit-code is given. No file is written when the answer is to wait.
    """
    if output is not None:
        check_placement_path(output, "sglang")
        check_writable(output, *traces)
    whole_number(history, "--history")
    rule, wished = rule_of(dispatch), pins.wished()
    loads = reading.loads(traces, to_stderr=as_json)
    placement, cluster = running.load(loads, reading)
    service = costs.service(cluster, loads)
    budget = None
    if max_moves is not None:
        budget = budget_from(max_moves, "--max-moves").of(moe_slots(loads, cluster))
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        waiting(console, "planning; kernels are compiled once on a machine"),
    ):
        found = decide(
            loads.last(history),
            cluster,
            placement,
            service,
            seconds,
            ordered=loads.ordered,
            num_groups=groups,
            max_moves=budget,
            margin=margin,
            dispatch=rule,
            **vars(advice),
            pins=None if wished is None else wished.at_layers(loads.layers),
            threads=threads,
        )
    goes = output if found.placement is not None else None
    if as_json:
        written = None if goes is None else str(goes)
        service_figures = {"service": asdict(service), "seconds": seconds, "margin": margin}
        print_json({**_to_json(found, loads), **service_figures, "output": written})
    else:
        said = given(
            **vars(reading), **vars(pins), current_gpus=running.current_gpus, dispatch=dispatch
        )
        command, current = None, running.current
        if goes is None and found.placement is not None:
            command = next_command(traces, cluster, groups, said, current, found.moves)
        print_decision(Console(), f"{in_few_words(traces)}, {current} running", found, command)
        if service.lost_seconds(0.0, 1) == 0.0 == service.layer_delay:
            say("Only transfers are counted; --engine adds the time that an engine itself takes.")
    if goes is not None and found.placement is not None:
        save_placement(found.placement, goes, to="sglang", dense=loads.dense, layers=loads.layers)
        if not as_json:
            say(f"Placement written to {goes} for sglang.")
    if exit_code and found.placement is None:
        raise typer.Exit(1)


def _to_json(found: Decision, loads: LoadTrace) -> dict[str, Any]:
    figures = {name: value for name, value in vars(found).items() if name != "plan"}
    layers = [loads.layer_numbers[layer] for layer in found.layers]
    return {**figures, "layers": layers, "verdict": found.verdict.to_json()}
