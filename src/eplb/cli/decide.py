"""`eplb decide`: whether to move now, which layers, or to wait."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eplb.checks import budget_from, in_few_words, whole_number
from eplb.cli import options
from eplb.cli.interrupts import PLANNING, working
from eplb.cli.pins import PinOptions
from eplb.cli.reading import LayerOptions
from eplb.cli.running import RunningOptions
from eplb.cli.service import ServiceOptions
from eplb.cli.terminal import print_decision, print_json, say
from eplb.loads import LoadTrace
from eplb.moving.decide import MARGIN, Decision, decide
from eplb.planning.forecast import HISTORY
from eplb.report.commands import typed


def command(
    traces: options.TraceFiles,
    *,
    running: RunningOptions,
    seconds: float,
    groups: options.Groups = 1,
    costs: ServiceOptions,
    margin: float = MARGIN,
    max_moves: options.MaxMoves = None,
    advice: options.AdviceOptions,
    history: int = HISTORY,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    reading: LayerOptions,
    dispatch: options.DispatchRule = None,
    pins: PinOptions,
    threads: options.Threads = None,
    exit_code: Annotated[bool, typer.Option("--exit-code")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Decide whether to move now: weigh the expected gain of a plan against the cost of moving.

    The answer is to move, to move some layers, or to wait. The exit status is 0 in every case,
    unless --exit-code is given. No file is written when the answer is to wait.

    Options:
        seconds: Seconds until the next decision.
        margin: Minimum ratio of gain to cost for a move.
        history: Maximum number of windows to use, the last ones.
        output: Write the new placement to this file, as JSON that SGLang loads.
        exit_code: Exit with 1 if the answer is to wait.
    """
    target = options.target_of(output, None, *traces)
    whole_number(history, "--history")
    rule, wished = options.rule_of(dispatch), pins.wished()
    loads = reading.loads(traces, to_stderr=as_json)
    placement, cluster = running.load(loads, reading)
    service = costs.service(cluster, loads)
    budget = None
    if max_moves is not None:
        budget = budget_from(max_moves, "--max-moves").of(options.moe_slots(loads, cluster))
    with working(PLANNING):
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
    goes = target if found.placement is not None else None
    if as_json:
        asked = {"service": asdict(service), "seconds": seconds, "margin": margin}
        print_json({**_to_json(found, loads), **asked, "output": goes and goes.path})
    else:
        said = typed(
            **vars(reading), **vars(pins), current_gpus=running.current_gpus, dispatch=dispatch
        )
        command, current = None, running.current
        if goes is None and found.placement is not None:
            command = options.next_command(traces, cluster, groups, said, current, found.moves)
        print_decision(Console(), f"{in_few_words(traces)}, {current} running", found, command)
        if service.lost_seconds(0.0, 1) == 0.0 == service.layer_delay:
            say("Only transfers are counted; --engine adds the time that an engine itself takes.")
    if goes is not None and found.placement is not None:
        goes.write(found.placement, loads)
        if not as_json:
            goes.say(found.placement, loads)
    if exit_code and found.placement is None:
        raise typer.Exit(1)


def _to_json(found: Decision, loads: LoadTrace) -> dict[str, Any]:
    figures = {name: value for name, value in vars(found).items() if name != "plan"}
    layers = [loads.layer_numbers[layer] for layer in found.layers]
    return {**figures, "layers": layers, "verdict": found.verdict.to_json()}
