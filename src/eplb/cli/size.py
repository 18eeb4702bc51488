"""`eplb size`: how many spare slots to buy, against the KV cache that their memory would hold."""

from typing import Annotated

import typer
from rich.console import Console

from eplb.balance import with_interval
from eplb.checks import counted, in_few_words
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    DispatchRule,
    Gpus,
    Groups,
    Nodes,
    Threads,
    TraceFiles,
    numbers,
    rule_of,
)
from eplb.cli.reading import ReadingOptions
from eplb.cli.service import ModelName, PlainExpertBytes
from eplb.cli.terminal import _bytes, _line, _table, _title, print_json, progress_bar
from eplb.cluster import Cluster
from eplb.cost.models import find_model
from eplb.dispatching.rules import in_words
from eplb.planning.forecast import FORECASTS
from eplb.planning.problem import Effort
from eplb.replaying.sizing import KNEE, Sizing, Slots, size

__all__ = ["command"]

_OF_MEMORY = "--expert-bytes and --kv-bytes"


def command(
    traces: TraceFiles,
    *,
    gpus: Gpus,
    nodes: Nodes = 1,
    spare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Slots on each GPU beyond those that the experts fill. [default: 0,1,2,3,4]",
            show_default=False,
        ),
    ] = None,
    groups: Groups = 1,
    forecast: Annotated[
        str, typer.Option(help=f"What to plan for of the windows so far: {', '.join(FORECASTS)}.")
    ] = "recent",
    effort: Annotated[
        Effort, typer.Option(help="Work that planning may take, in fixed amounts.")
    ] = "default",
    model: ModelName = None,
    expert_bytes: PlainExpertBytes = None,
    kv_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes of a token in the KV cache of one GPU, all layers. [default: the model's "
            "in BF16, a GPU keeping the whole cache of its own requests]",
            show_default=False,
        ),
    ] = None,
    reading: ReadingOptions,
    dispatch: DispatchRule = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show what each spare slot gains on loads not seen, and the memory that it takes.

    For each number of slots, plans are made through the loads, and each is scored on windows that
    follow it. The knee is the last number up to which each slot gains 0.01 of balancedness.
    """
    rule, wanted = rule_of(dispatch), None if spare is None else numbers(spare, "--spare", 1)
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
        _print(Console(), in_few_words(traces), found)


def _print(console: Console, title: str, found: Sizing) -> None:
    _title(console, title)
    on_nodes = f" on {found.nodes} nodes" if found.nodes > 1 else ""
    _line(
        console,
        f"{counted(found.layers, 'MoE layer')} of {found.experts} experts on {found.gpus} GPUs"
        f"{on_nodes}",
    )
    _line(console, in_words(found.dispatch))
    console.print()
    unseen = found.windows > 0
    table = _table("spare on a GPU", "slots", "seen", *["unseen"] * unseen, "gain")
    if found.bytes_each is not None:
        table.add_column("of a GPU's memory", justify="right")
        if found.kv_bytes is not None:
            table.add_column("or KV tokens", justify="right")
    for number, each in enumerate(found.points):
        table.add_row(
            f"{each.spare} (knee)" if number == found.knee else f"{each.spare}",
            *(f"{each.num_slots:,}", f"{each.seen:.4f}"),
            *[with_interval(each.height, each.interval)] * unseen,
            "" if each.gain is None else with_interval(each.gain, each.gain_interval, "+.4f"),
            *[] if each.bytes is None else [_bytes(each.bytes)],
            *[] if each.kv_tokens is None else [f"{each.kv_tokens:,}"],
        )
    console.print(table)
    console.print()
    for line in _words(found):
        _line(console, line)


def _words(found: Sizing) -> list[str]:
    """What to buy, what the next slot would gain, and what the figures are."""
    knee = found.points[found.knee]
    lines = [_advice(knee)]
    if found.knee + 1 < len(found.points):
        more = found.points[found.knee + 1]
        line = f"{more.spare - knee.spare} more would add {more.height - knee.height:.4f}"
        if more.bytes is not None and knee.bytes is not None:
            line += f" and take {_bytes(more.bytes - knee.bytes)} of each GPU's memory"
        if more.kv_tokens is not None and knee.kv_tokens is not None:
            line += f", or {more.kv_tokens - knee.kv_tokens:,} tokens of KV cache"
        lines.append(f"{line}.")
    if found.windows:
        came = "that came after" if found.ordered else "held out in turn: workloads in no order"
        lines.append(
            f"Unseen: {found.plans} plan{'s' * (found.plans > 1)} for each number of slots, scored "
            f"on {found.windows} window{'s' * (found.windows > 1)} {came}."
        )
    else:
        lines.append(
            "There is one window, so plans are scored on what they were made from. On other "
            "windows all have less, and those with few slots lose most: give more windows."
        )
    if found.bytes_each is None:
        lines.append("Give --model or --expert-bytes for the memory that slots take.")
    elif found.kv_bytes is None:
        lines.append("Give --kv-bytes for the KV cache that the same memory would hold.")
    return lines


def _advice(knee: Slots) -> str:
    if not knee.spare:
        return f"No spare slot gains {KNEE:g} of balancedness: {knee.height:.4f} without."
    slots = "1 spare slot" if knee.spare == 1 else f"{knee.spare} spare slots"
    return f"The knee is at {slots} on each GPU: balancedness {knee.height:.4f}."
