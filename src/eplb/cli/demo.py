"""`eplb demo`: what balancing gains on made-up loads like DeepSeek-V3's; no file is needed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.cli import options
from eplb.cli.interrupts import working
from eplb.cli.terminal import print_demo, print_json
from eplb.cost.models import MODELS
from eplb.replaying.demo import MODEL, demo, warm_up_demo


def command(
    gpus: options.Gpus = 32,
    nodes: options.Nodes = 4,
    slots: options.Slots = None,
    groups: options.Groups = 1,
    seed: int = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what balancing gains on made-up loads that behave like DeepSeek-V3's.

    What vLLM and SGLang do today is replayed beside this planner on mixed traffic, each scored on
    loads that it has not seen. No file is needed.

    Options:
        seed: Random seed of the loads.
        output: Write the placement to this file, as JSON that SGLang loads.
    """
    target = options.target_of(output, None)
    cluster = options.cluster_of(MODELS[MODEL].num_experts, gpus, nodes, slots)
    with working("compiling kernels, once on a machine"):
        warm_up_demo()
    with working("replaying"):
        found = demo(cluster, num_groups=groups, seed=seed, threads=threads)
    if target is not None:
        target.write(found.last, found.trace)
    if as_json:
        print_json({**found.to_json(), "seed": seed, "output": output})
        return
    print_demo(Console(), found, seed)
    if target is not None:
        target.say(found.last, found.trace)
