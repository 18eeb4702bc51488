"""`eplb compare`: policies on a trace, each scored on what it has not seen."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli import options
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stepping
from eplb.cli.reading import ReadingOptions
from eplb.cli.records import check_ending, write_comparison
from eplb.cli.service import ServiceOptions
from eplb.cli.terminal import print_comparison, print_json, printing_to_stderr, say
from eplb.dispatching.rules import RULES
from eplb.errors import EplbError
from eplb.planning.forecast import HISTORY
from eplb.replaying.compare import compare
from eplb.replaying.policies import named_policies


def command(
    traces: options.TraceFiles,
    *,
    asked: options.ClusterOptions,
    policy: options.Policies = None,
    groups: options.Groups = 1,
    every: int = 1,
    history: options.History = HISTORY,
    first: options.First = 1,
    reading: ReadingOptions,
    dispatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE,...",
            help="How tokens are split over the copies of an expert, for every figure: "
            f"{', '.join(RULES)}. Several, as even,best, give the balancedness under each. "
            "[default: even]",
        ),
    ] = None,
    window_seconds: float | None = None,
    costs: ServiceOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Replay policies on a trace side by side. Each window is scored before a plan has seen it.

    On Ctrl-C, or if a policy fails, the results so far are printed and written.

    Options:
        every: Number of windows between plans.
        window_seconds: Seconds that a window lasts. With this or any option below, the net benefit
            is printed. [default: what the loads say]
        output: Write the figures to this file. A .csv file has those of every window and layer, a
            .json file has what --json prints.
    """
    if output is not None:
        check_ending(output, *traces)
    rules = [options.rule_of(rule) for rule in options.listed(dispatch) or ["even"]]
    with quitting_on_interrupt(Console(stderr=True)), printing_to_stderr():
        policies = named_policies(options.listed(policy) or options.DEFAULT_POLICIES)
        loads = reading.loads(traces, to_stderr=as_json)
    cluster = asked.cluster(loads.num_experts)
    service = None
    if window_seconds is not None or costs.are_given():
        service = costs.service(cluster, loads)
    failures: list[EplbError] = []
    with stepping("replaying") as step:
        comparison = compare(
            loads,
            cluster,
            policies,
            num_groups=groups,
            every=every,
            history=history,
            first=first,
            expert_bytes=costs.own.expert_bytes,
            service=service,
            window_seconds=window_seconds,
            dispatch=rules,
            progress=step,
            failed=failures.append,
        )
    # Printed before it is written, for a disk may be full.
    if as_json:
        print_json(comparison.to_json())
    else:
        print_comparison(Console(), in_few_words(traces), comparison)
    if output is not None:
        write_comparison(output, comparison, loads)
        if not as_json:
            say(f"The figures are in {output}.")
    if failures:
        raise failures[0]
    if comparison.windows < comparison.wanted:
        raise typer.Exit(INTERRUPTED)
