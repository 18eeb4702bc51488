"""`eplb size`: how many spare slots to buy, against the KV cache that their memory would hold."""

from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli import options
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.reading import ReadingOptions
from eplb.cli.service import ModelName, PlainExpertBytes
from eplb.cli.terminal import print_json, print_sizing, progress_bar
from eplb.cluster import Cluster
from eplb.cost.models import find_model
from eplb.planning.forecast import FORECASTS
from eplb.planning.problem import Effort
from eplb.replaying.sizing import size

_OF_MEMORY = "--expert-bytes and --kv-bytes"


def command(
    traces: options.TraceFiles,
    *,
    gpus: options.Gpus,
    nodes: options.Nodes = 1,
    spare: Annotated[list[str] | None, typer.Option(metavar="N,...")] = None,
    groups: options.Groups = 1,
    forecast: Annotated[
        str, typer.Option(help=f"What to plan for of the windows so far: {', '.join(FORECASTS)}.")
    ] = "recent",
    effort: Effort = "default",
    model: ModelName = None,
    expert_bytes: PlainExpertBytes = None,
    kv_bytes: int | None = None,
    reading: ReadingOptions,
    dispatch: options.DispatchRule = None,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what each spare slot gains on loads not seen, and the memory that it takes.

    For each number of slots, plans are made through the loads, and each is scored on windows that
    follow it. The knee is the last number up to which each slot gains 0.01 of balancedness.

    Options:
        spare: Slots on each GPU beyond those that the experts fill. [default: 0,1,2,3,4]
        effort: Work that planning may take, in fixed amounts.
        kv_bytes: Bytes of a token in the KV cache of one GPU, all layers. [default: the model's in
            BF16, a GPU keeping the whole cache of its own requests]
    """
    rule, wanted = (
        options.rule_of(dispatch),
        None if spare is None else options.numbers(spare, "--spare", 1),
    )
    console = Console(stderr=True)
    with quitting_on_interrupt(console):
        loads = reading.loads(traces, to_stderr=as_json)
        with progress_bar(console, "sizing") as advance:
            found = size(
                loads,
                Cluster(gpus, nodes, 1),
                wanted,
                num_groups=groups,
                dispatch=rule,
                forecast=forecast,
                model=None if model is None else find_model(model, _OF_MEMORY),
                expert_bytes=expert_bytes,
                kv_bytes=kv_bytes,
                effort=effort,
                threads=threads,
                progress=advance,
            )
    if as_json:
        print_json(found.to_json())
    else:
        print_sizing(Console(), in_few_words(traces), found)
