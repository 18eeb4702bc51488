"""`eplb evaluate`: how good the placement is that runs now, and what a plan would gain."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    Confidence,
    DispatchRule,
    Groups,
    LeastGain,
    Threads,
    given,
    next_command,
    rule_of,
)
from eplb.cli.reading import (
    Axes,
    Counters,
    FirstLayer,
    Layers,
    Merge,
    PlacementLayers,
    read_loads,
    read_placement,
)
from eplb.cli.terminal import print_evaluation, print_json
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN
from eplb.replaying.evaluate import evaluate_placement

__all__ = ["command"]


def command(
    placement: Annotated[
        Path,
        typer.Argument(
            metavar="PLACEMENT",
            help="The placement that runs: a file for SGLang, vLLM, TensorRT-LLM or vllm-ascend, "
            "arrays as DeepSeek's EPLB returns them, or a dump of SGLang's recorder (per_pass, "
            "per_token).",
        ),
    ],
    trace: Annotated[
        Path,
        typer.Argument(metavar="LOADS", help="Loads to score it on, as for the other commands."),
    ],
    gpus: Annotated[
        int | None,
        typer.Option(
            help="Number of GPUs (EP ranks) of the placement. [default: what the file says]",
            show_default=False,
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="Number of nodes that hold the GPUs. [default: what the file says, or 1]",
            show_default=False,
        ),
    ] = None,
    groups: Groups = 1,
    least_gain: LeastGain = LEAST_GAIN,
    confidence: Confidence = CONFIDENCE,
    axes: Axes = None,
    counters: Counters = False,
    first_layer: FirstLayer = None,
    layers: Layers = None,
    placement_layers: PlacementLayers = None,
    merge: Merge = "auto",
    dispatch: DispatchRule = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score the placement that runs now, and show what a plan for the same slots would gain."""
    rule = rule_of(dispatch)
    loads = read_loads(trace, axes, counters, merge, first_layer, layers, to_stderr=as_json)
    running = read_placement(placement, loads, gpus, nodes, placement_layers)
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        found = evaluate_placement(
            running,
            loads,
            num_groups=groups,
            dispatch=rule,
            least_gain=least_gain,
            confidence=confidence,
            threads=threads,
        )
    if as_json:
        print_json(found.to_json())
    else:
        reading = given(
            axes=axes,
            counters=counters,
            merge=None if merge == "auto" else merge,
            first_layer=first_layer,
            layers=layers,
            placement_layers=placement_layers,
            dispatch=dispatch,
        )
        moves = 0 if found.verdict is None else found.verdict.moves
        command = next_command(trace, running.cluster, groups, reading, placement, moves)
        print_evaluation(Console(), f"{placement} on {trace}", found, command)
