"""`eplb evaluate`: how good the placement is that runs now, and what a plan would gain."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import gpus_from, in_few_words
from eplb.cli import options
from eplb.cli.interrupts import PLANNING, working
from eplb.cli.reading import LayerOptions
from eplb.cli.terminal import print_evaluation, print_json, say
from eplb.planning.plan import what_is_left
from eplb.replaying.evaluate import evaluate_placement
from eplb.report.commands import typed


def command(
    placement: Annotated[Path, typer.Argument(metavar="PLACEMENT")],
    traces: Annotated[list[Path], typer.Argument(metavar="LOADS...")],
    *,
    gpus: int | None = None,
    nodes: int | None = None,
    dead: options.Dead = None,
    speed: options.Speed = None,
    groups: options.Groups = 1,
    advice: options.AdviceOptions,
    reading: LayerOptions,
    dispatch: options.DispatchRule = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Score the placement that runs now, and show what a plan for the same slots would gain.

    Options:
        placement: The placement that runs: a file for SGLang, vLLM, TensorRT-LLM or vllm-ascend,
            arrays as DeepSeek's EPLB returns them, or a dump of SGLang's recorder (per_pass,
            per_token).
        traces: Loads to score it on, as for other commands.
        gpus: Number of GPUs (EP ranks) of the placement. [default: what the file says]
        nodes: Number of nodes that hold the GPUs. [default: what the file says, or 1]
    """
    rule = options.rule_of(dispatch)
    loads = reading.loads(traces, to_stderr=as_json)
    running = reading.placement(placement, loads, gpus, nodes)
    running = replace(running, cluster=options.with_speed(running.cluster, speed))
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
    with working(PLANNING):
        found = evaluate_placement(
            running, loads, num_groups=groups, dispatch=rule, **vars(advice), threads=threads
        )
    if as_json:
        print_json(found.to_json())
    else:
        said = typed(**vars(reading), dispatch=dispatch)
        moves = 0 if found.verdict is None else found.verdict.moves
        command = options.next_command(traces, running.cluster, groups, said, placement, moves)
        print_evaluation(Console(), f"{placement} on {in_few_words(traces)}", found, command)
