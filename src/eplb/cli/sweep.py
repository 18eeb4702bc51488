"""`eplb sweep`: policies, cluster sizes, spare slots and cadences, each with each."""

import contextlib
import itertools
import json
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stopping_on_interrupt
from eplb.cli.options import (
    DEFAULT_POLICIES,
    AsJson,
    DispatchRule,
    First,
    Groups,
    History,
    Nodes,
    Policies,
    SweepRecord,
    TraceFiles,
    cluster_of,
    listed,
    numbers,
    rule_of,
)
from eplb.cli.reading import ReadingOptions
from eplb.cli.records import check_ending, write_sweep
from eplb.cli.service import PlainExpertBytes
from eplb.cli.terminal import print_sweep, printing_to_stderr, progress_bar, say
from eplb.errors import EplbError
from eplb.planning.forecast import HISTORY
from eplb.replaying.sweep import SweepRow, sweep_rows

__all__ = ["command"]


def command(
    traces: TraceFiles,
    *,
    gpus: Annotated[
        list[str], typer.Option(metavar="N,...", help="Number of GPUs, or several as 32,64.")
    ],
    policy: Policies = None,
    spare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Redundant experts on each GPU, or several numbers as 1,2. [default: 1]",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N,...",
            help="Number of windows between plans, or several as 1,4. [default: 1]",
            show_default=False,
        ),
    ] = None,
    nodes: Nodes = 1,
    groups: Groups = 1,
    history: History = HISTORY,
    first: First = 1,
    reading: ReadingOptions,
    expert_bytes: PlainExpertBytes = None,
    dispatch: DispatchRule = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Number of replays at a time. [default: one per core]", show_default=False
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Run the replays on the Dask cluster whose scheduler has this address, such as "
            "tcp://host:8786. Its workers must have eplb.",
        ),
    ] = None,
    output: SweepRecord = None,
    as_json: AsJson = False,
) -> None:
    """Replay every combination of policies, cluster sizes, spare slots and cadences.

    The replays run on all cores, or with --scheduler on a Dask cluster.

    On Ctrl-C, or if a policy fails, the results so far are printed and written.
    """
    if output is not None:
        check_ending(output, *traces)
    policies, rule = listed(policy) or DEFAULT_POLICIES, rule_of(dispatch)
    sizes, spares, cadences = (
        numbers(given, name, 1)
        for given, name in ((gpus, "--gpus"), (spare, "--spare"), (every, "--every"))
    )
    console = Console(stderr=True)
    with quitting_on_interrupt(console):
        loads = reading.loads(traces, to_stderr=as_json)
    clusters = [
        cluster_of(loads.num_experts, size, nodes, None, spare=more)
        for size, more in itertools.product(sizes, spares)
    ]
    wanted = len(clusters) * len(cadences) * len(policies)
    rows: list[SweepRow] = []
    failure: EplbError | None = None
    with (
        printing_to_stderr(),
        stopping_on_interrupt(console) as stopped,
        progress_bar(console, "sweeping") as advance,
    ):
        found = sweep_rows(
            loads,
            clusters,
            policies,
            every=cadences,
            num_groups=groups,
            history=history,
            first=first,
            expert_bytes=expert_bytes,
            dispatch=rule,
            jobs=-1 if jobs is None and scheduler is None else jobs,
            scheduler=scheduler,
        )
        with contextlib.closing(found):
            try:
                for row in found:
                    rows.append(row)
                    advance(len(rows), wanted)
                    if stopped():
                        break
            except EplbError as error:
                if not rows:
                    raise
                failure = error
    if as_json:
        print(json.dumps([{"version": 1, **row.to_json()} for row in rows]))  # noqa: T201
    else:
        print_sweep(Console(), in_few_words(traces), rows, wanted)
    if output is not None and rows:
        write_sweep(output, rows)
        if not as_json:
            say(f"The figures are in {output}.")
    if failure is not None:
        raise failure
    if len(rows) < wanted:
        raise typer.Exit(INTERRUPTED)
