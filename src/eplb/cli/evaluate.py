"""`eplb evaluate`: how good the placement is that runs now, and what a plan would gain."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import gpus_from, in_few_words
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AdviceOptions,
    AsJson,
    Dead,
    DispatchRule,
    Groups,
    Speed,
    Threads,
    given,
    next_command,
    rule_of,
    with_speed,
)
from eplb.cli.reading import LayerOptions
from eplb.cli.terminal import print_evaluation, print_json, say, waiting
from eplb.planning.plan import what_is_left
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
    traces: Annotated[
        list[Path],
        typer.Argument(metavar="LOADS...", help="Loads to score it on, as for other commands."),
    ],
    *,
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
    dead: Dead = None,
    speed: Speed = None,
    groups: Groups = 1,
    advice: AdviceOptions,
    reading: LayerOptions,
    dispatch: DispatchRule = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score the placement that runs now, and show what a plan for the same slots would gain."""
    rule = rule_of(dispatch)
    loads = reading.loads(traces, to_stderr=as_json)
    running = reading.placement(placement, loads, gpus, nodes)
    running = replace(running, cluster=with_speed(running.cluster, speed))
    if dead is not None:
        cluster = running.cluster.without(gpus_from(dead, "--dead"))
        lost = len(running.lost_on(cluster))
        running = what_is_left(running, cluster, loads.loads, threads)
        if lost:
            say(
                f"{lost:,} experts died with their last copy. They are scored where the fewest "
                "moves put them.",
                to_stderr=as_json,
            )
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        waiting(console, "planning; kernels are compiled once on a machine"),
    ):
        found = evaluate_placement(
            running,
            loads,
            num_groups=groups,
            dispatch=rule,
            **vars(advice),
            threads=threads,
        )
    if as_json:
        print_json(found.to_json())
    else:
        said = given(**vars(reading), dispatch=dispatch)
        moves = 0 if found.verdict is None else found.verdict.moves
        command = next_command(traces, running.cluster, groups, said, placement, moves)
        print_evaluation(Console(), f"{placement} on {in_few_words(traces)}", found, command)
