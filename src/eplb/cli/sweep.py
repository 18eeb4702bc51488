"""`eplb sweep`: policies, cluster sizes, spare slots and cadences, each with each."""

import itertools
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli import options
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stepping
from eplb.cli.reading import ReadingOptions
from eplb.cli.records import check_ending, write_sweep
from eplb.cli.service import PlainExpertBytes
from eplb.cli.terminal import print_sweep, say
from eplb.errors import EplbError
from eplb.planning.forecast import HISTORY
from eplb.replaying.sweep import SweepRow, sweep


def command(
    traces: options.TraceFiles,
    *,
    gpus: Annotated[list[str], typer.Option(metavar="N,...")],
    policy: options.Policies = None,
    spare: Annotated[list[str] | None, typer.Option(metavar="N,...")] = None,
    every: Annotated[list[str] | None, typer.Option(metavar="N,...")] = None,
    nodes: options.Nodes = 1,
    groups: options.Groups = 1,
    history: options.History = HISTORY,
    first: options.First = 1,
    reading: ReadingOptions,
    expert_bytes: PlainExpertBytes = None,
    dispatch: options.DispatchRule = None,
    jobs: int | None = None,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Replay every combination of policies, cluster sizes, spare slots and cadences.

    The replays run on all cores, or with --scheduler on a Dask cluster.

    On Ctrl-C, or if a policy fails, the results so far are printed and written.

    Options:
        gpus: Number of GPUs, or several as 32,64.
        spare: Redundant experts on each GPU, or several numbers as 1,2. [default: 1]
        every: Number of windows between plans, or several as 1,4. [default: 1]
        jobs: Number of replays at a time. [default: one per core]
        scheduler: Run the replays on the Dask cluster whose scheduler has this address, such as
            tcp://host:8786. Its workers must have eplb.
        output: Write every figure to this file, .csv or .json.
    """
    if output is not None:
        check_ending(output, *traces)
    policies, rule = options.listed(policy) or options.DEFAULT_POLICIES, options.rule_of(dispatch)
    sizes, spares, cadences = (
        options.numbers(given, name, 1)
        for given, name in ((gpus, "--gpus"), (spare, "--spare"), (every, "--every"))
    )
    with quitting_on_interrupt(Console(stderr=True)):
        loads = reading.loads(traces, to_stderr=as_json)
    clusters = [
        options.cluster_of(loads.num_experts, size, nodes, None, spare=more)
        for size, more in itertools.product(sizes, spares)
    ]
    wanted = len(clusters) * len(cadences) * len(policies)
    rows: list[SweepRow] = []
    failures: list[EplbError] = []
    with stepping("sweeping") as step:

        def after_row(row: SweepRow) -> bool:
            rows.append(row)
            return step(len(rows), wanted)

        sweep(
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
            progress=after_row,
            failed=failures.append,
        )
    if as_json:
        print(json.dumps([{"version": 1, **row.to_json()} for row in rows]))  # noqa: T201
    else:
        print_sweep(Console(), in_few_words(traces), rows, wanted)
    if output is not None and rows:
        write_sweep(output, rows)
        if not as_json:
            say(f"The figures are in {output}.")
    if failures:
        raise failures[0]
    if len(rows) < wanted:
        raise typer.Exit(INTERRUPTED)
