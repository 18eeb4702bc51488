"""`eplb compare`: policies on a trace, each scored on what it has not seen."""

from typing import Annotated

import typer
from rich.console import Console

from eplb.checks import in_few_words
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stopping_on_interrupt
from eplb.cli.options import (
    DEFAULT_POLICIES,
    AsJson,
    Between,
    EngineName,
    ExpertBytes,
    ExpertShare,
    First,
    GpuName,
    Gpus,
    Groups,
    History,
    LayerDelay,
    LayerSeconds,
    ModelName,
    Nodes,
    Policies,
    RebalanceSeconds,
    Record,
    Slots,
    SlotsPerGpu,
    Speed,
    Stall,
    TraceFiles,
    Within,
    cluster_of,
    listed,
    rule_of,
    service_of,
    with_speed,
)
from eplb.cli.reading import (
    Axes,
    Counters,
    Merge,
    read_loads,
)
from eplb.cli.records import check_ending, write_comparison
from eplb.cli.terminal import print_comparison, print_json, printing_to_stderr, progress_bar, say
from eplb.dispatching.rules import RULES
from eplb.errors import EplbError
from eplb.planning.forecast import HISTORY
from eplb.replaying.compare import compare
from eplb.replaying.policies import named_policies

__all__ = ["command"]


def command(
    traces: TraceFiles,
    gpus: Gpus,
    policy: Policies = None,
    nodes: Nodes = 1,
    slots: Slots = None,
    slots_per_gpu: SlotsPerGpu = None,
    speed: Speed = None,
    groups: Groups = 1,
    every: Annotated[int, typer.Option(help="Number of windows between plans.")] = 1,
    history: History = HISTORY,
    first: First = 1,
    axes: Axes = None,
    counters: Counters = False,
    merge: Merge = "auto",
    expert_bytes: ExpertBytes = None,
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
    model: ModelName = None,
    gpu: GpuName = None,
    bandwidth_within: Within = None,
    bandwidth_between: Between = None,
    engine: EngineName = None,
    rebalance_seconds: RebalanceSeconds = None,
    layer_seconds: LayerSeconds = None,
    layer_delay: LayerDelay = None,
    stall: Stall = None,
    expert_share: ExpertShare = None,
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
        loads = read_loads(traces, axes, counters, merge, to_stderr=as_json)
    cluster = cluster_of(loads.num_experts, gpus, nodes, slots, slots_per_gpu=slots_per_gpu)
    cluster = with_speed(cluster, speed)
    service = None
    more = (window_seconds, model, gpu, bandwidth_within, bandwidth_between, stall, expert_share)
    overhead = (engine, rebalance_seconds, layer_seconds, layer_delay)
    if any(value is not None for value in (*more, *overhead)):
        service = service_of(
            cluster,
            loads,
            (model, gpu, expert_bytes, bandwidth_within, bandwidth_between),
            engine,
            stall=stall,
            expert_share=expert_share,
            rebalance_seconds=rebalance_seconds,
            layer_seconds=layer_seconds,
            layer_delay=layer_delay,
        )
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
            expert_bytes=expert_bytes,
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
