"""`eplb demo`: what balancing gains on made-up loads like DeepSeek-V3's; no file is needed."""

from typing import Annotated

import typer
from rich.console import Console

from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    Gpus,
    Groups,
    Nodes,
    Output,
    Slots,
    Threads,
    cluster_of,
    target_of,
)
from eplb.cli.terminal import print_demo, print_json, waiting
from eplb.cost.models import MODELS
from eplb.files import check_writable
from eplb.replaying.demo import MODEL, demo, warm_up_demo

__all__ = ["command"]


def command(
    gpus: Gpus = 32,
    nodes: Nodes = 4,
    slots: Slots = None,
    groups: Groups = 1,
    seed: Annotated[int, typer.Option(help="Random seed of the loads.")] = 0,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show what balancing gains on made-up loads that behave like DeepSeek-V3's.

    What vLLM and SGLang do today is replayed beside this planner on mixed traffic, each scored on
    loads that it has not seen. No file is needed.
    """
    target = target_of(output, None)
    if output is not None:
        check_writable(output)
    cluster = cluster_of(MODELS[MODEL].num_experts, gpus, nodes, slots)
    console = Console(stderr=True)
    with quitting_on_interrupt(console), waiting(console, "compiling kernels, once on a machine"):
        warm_up_demo()
    with quitting_on_interrupt(console), waiting(console, "replaying"):
        found = demo(cluster, num_groups=groups, seed=seed, threads=threads)
    if target is not None:
        target.write(found.last, found.trace)
    if as_json:
        written = None if output is None else str(output)
        print_json({**found.to_json(), "seed": seed, "output": written})
        return
    print_demo(Console(), found, seed)
    if target is not None:
        target.say(found.last, found.trace)
