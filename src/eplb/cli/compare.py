"""`eplb compare`: policies on a trace, each scored on what it has not seen."""

from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stopping_on_interrupt
from eplb.cli.options import (
    DEFAULT_POLICIES,
    AsJson,
    ClusterOptions,
    First,
    Groups,
    History,
    Policies,
    Record,
    TraceFiles,
    listed,
    rule_of,
)
from eplb.cli.reading import ReadingOptions
from eplb.cli.records import check_ending, write_comparison
from eplb.cli.service import ServiceOptions
from eplb.cli.terminal import print_comparison, print_json, printing_to_stderr, progress_bar, say
from eplb.dispatching.rules import RULES
from eplb.errors import EplbError
from eplb.planning.forecast import HISTORY
from eplb.replaying.compare import compare
from eplb.replaying.policies import named_policies

__all__ = ["command"]


def command(
    traces: TraceFiles,
    *,
    asked: ClusterOptions,
    policy: Policies = None,
    groups: Groups = 1,
    every: Annotated[int, typer.Option(help="Number of windows between plans.")] = 1,
    history: History = HISTORY,
    first: First = 1,
    reading: ReadingOptions,
    dispatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE,...",
            help="How tokens are split over the copies of an expert, for every figure: "
            f"{', '.join(RULES)}. Several, as even,best, give the balancedness under each. "
            "[default: even]",
            show_default=False,
        ),
    ] = None,
    window_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a window lasts. With this or any option below, the net benefit is "
            "printed. [default: what the loads say]",
            show_default=False,
        ),
    ] = None,
    costs: ServiceOptions,
    output: Record = None,
    as_json: AsJson = False,
) -> None:
    """Replay policies on a trace side by side. Each window is scored before a plan has seen it.

    On Ctrl-C, or if a policy fails, the results so far are printed and written.
    """
    if output is not None:
        check_ending(output, *traces)
    rules = [rule_of(rule) for rule in listed(dispatch) or ["even"]]
    console = Console(stderr=True)
    with quitting_on_interrupt(console), printing_to_stderr():
        policies = named_policies(listed(policy) or DEFAULT_POLICIES)
        loads = reading.loads(traces, to_stderr=as_json)
    cluster = asked.cluster(loads.num_experts)
    service = None
    if window_seconds is not None or costs.are_given():
        service = costs.service(cluster, loads)
    failures: list[EplbError] = []
    with (
        printing_to_stderr(),
        stopping_on_interrupt(console) as stopped,
        progress_bar(console, "replaying") as advance,
    ):

        def after_window(done: int, wanted: int) -> bool:
            advance(done, wanted)
            return not stopped()

        comparison = compare(
            loads,
            cluster,
            policies,
            num_groups=groups,
            every=every,
            history=history,
            first=first,
            expert_bytes=costs.expert_bytes,
            service=service,
            window_seconds=window_seconds,
            dispatch=rules,
            progress=after_window,
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
