"""`eplb decide`: whether to move now, which layers, or to wait."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from eplb.checks import budget_from, in_few_words, whole_number
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    Between,
    Confidence,
    Current,
    CurrentGpus,
    Dead,
    DispatchRule,
    EngineName,
    ExpertBytes,
    ExpertShare,
    GpuName,
    Groups,
    LayerDelay,
    LayerSeconds,
    LeastGain,
    MaxMoves,
    ModelName,
    RebalanceSeconds,
    SlotsPerGpu,
    SomeGpus,
    SomeNodes,
    SomeSlots,
    Speed,
    Stall,
    Threads,
    TraceFiles,
    Within,
    given,
    moe_slots,
    next_command,
    rule_of,
    service_of,
)
from eplb.cli.reading import (
    Axes,
    Counters,
    FirstLayer,
    Layers,
    Merge,
    PlacementLayers,
    load_current,
    read_loads,
)
from eplb.cli.terminal import print_decision, print_json, say
from eplb.files import check_writable
from eplb.formats.placements import check_placement_path, save_placement
from eplb.moving.decide import MARGIN, Decision, decide
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN
from eplb.planning.forecast import HISTORY

__all__ = ["command"]


def command(
    traces: TraceFiles,
    current: Current,
    seconds: Annotated[float, typer.Option(help="Seconds until the next decision.")],
    gpus: SomeGpus = None,
    nodes: SomeNodes = None,
    slots: SomeSlots = None,
    slots_per_gpu: SlotsPerGpu = None,
    speed: Speed = None,
    dead: Dead = None,
    groups: Groups = 1,
    model: ModelName = None,
    gpu: GpuName = None,
    expert_bytes: ExpertBytes = None,
    bandwidth_within: Within = None,
    bandwidth_between: Between = None,
    engine: EngineName = None,
    rebalance_seconds: RebalanceSeconds = None,
    layer_seconds: LayerSeconds = None,
    layer_delay: LayerDelay = None,
    stall: Stall = None,
    expert_share: ExpertShare = None,
    margin: Annotated[
        float, typer.Option(help="Minimum ratio of gain to cost for a move.")
    ] = MARGIN,
    max_moves: MaxMoves = None,
    least_gain: LeastGain = LEAST_GAIN,
    confidence: Confidence = CONFIDENCE,
    history: Annotated[
        int, typer.Option(help="Maximum number of windows to use, the last ones.")
    ] = HISTORY,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the new placement to this file, as JSON that SGLang loads.",
        ),
    ] = None,
    current_gpus: CurrentGpus = None,
    axes: Axes = None,
    counters: Counters = False,
    first_layer: FirstLayer = None,
    layers: Layers = None,
    placement_layers: PlacementLayers = None,
    merge: Merge = "auto",
    dispatch: DispatchRule = None,
    threads: Threads = None,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if the answer is to wait.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decide whether to move now: weigh the expected gain of a plan against the cost of moving.

    The answer is to move, to move some layers, or to wait. The exit status is 0 in every case,
    unless --exit-code is given. No file is written when the answer is to wait.
    """
    if output is not None:
        check_placement_path(output, "sglang")
        check_writable(output, *traces)
    whole_number(history, "--history")
    rule = rule_of(dispatch)
    loads = read_loads(traces, axes, counters, merge, first_layer, layers, to_stderr=as_json)
    running, cluster = load_current(
        current, loads, gpus, nodes, slots, current_gpus, placement_layers, dead,
        slots_per_gpu, speed,
    )  # fmt: skip
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
    budget = None
    if max_moves is not None:
        budget = budget_from(max_moves, "--max-moves").of(moe_slots(loads, cluster))
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        found = decide(
            loads.loads[-history:],
            cluster,
            running,
            service,
            seconds,
            num_groups=groups,
            max_moves=budget,
            margin=margin,
            dispatch=rule,
            least_gain=least_gain,
            confidence=confidence,
            threads=threads,
        )
    goes = output if found.placement is not None else None
    if as_json:
        written = None if goes is None else str(goes)
        service_figures = {"service": asdict(service), "seconds": seconds, "margin": margin}
        print_json({**_to_json(found), **service_figures, "output": written})
    else:
        reading = given(
            axes=axes,
            counters=counters,
            merge=merge,
            first_layer=first_layer,
            layers=layers,
            placement_layers=placement_layers,
            current_gpus=current_gpus,
            dispatch=dispatch,
        )
        command = None
        if goes is None and found.placement is not None:
            command = next_command(traces, cluster, groups, reading, current, found.moves)
        print_decision(Console(), f"{in_few_words(traces)}, {current} running", found, command)
        if service.lost_seconds(0.0, 1) == 0.0 == service.layer_delay:
            say("Only transfers are counted; --engine adds the time that an engine itself takes.")
    if goes is not None and found.placement is not None:
        save_placement(found.placement, goes, to="sglang", dense=loads.dense, layers=loads.layers)
        if not as_json:
            say(f"Placement written to {goes} for sglang.")
    if exit_code and found.placement is None:
        raise typer.Exit(1)


def _to_json(found: Decision) -> dict[str, Any]:
    figures = {name: value for name, value in vars(found).items() if name != "plan"}
    return {**figures, "layers": list(found.layers), "verdict": found.verdict.to_json()}
