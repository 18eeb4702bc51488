"""`eplb plan`: a placement for loads, and what it gains."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from eplb.checks import budget_from, gpus_from, in_few_words, printable
from eplb.cli.bundles import beginning
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.nodes import NodePrice, RoutedBy, traffic_of
from eplb.cli.objective import ObjectiveOptions
from eplb.cli.options import (
    AdviceOptions,
    AsJson,
    ClusterOptions,
    Dead,
    DispatchRule,
    Groups,
    MaxMoves,
    Threads,
    TraceFiles,
    given,
    moe_slots,
    next_command,
    rule_of,
    target_of,
)
from eplb.cli.pins import PinOptions
from eplb.cli.reading import LayerOptions
from eplb.cli.running import CurrentGpus, RunningPlacement, check_moves_options, load_current
from eplb.cli.terminal import print_json, print_summary, print_verdict, say, waiting
from eplb.cluster import Cluster
from eplb.files import check_writable
from eplb.formats.placements import ENGINES
from eplb.loads import LoadTrace
from eplb.moving.verdict import judge
from eplb.planning.backtest import BEST, Expected, expected_of
from eplb.planning.forecast import FORECASTS, HISTORY, Recent, Scenarios, named_forecast
from eplb.planning.pins import Pins
from eplb.planning.plan import Plan, check_batch, plan
from eplb.planning.problem import Effort
from eplb.planning.solve import planned_rule
from eplb.planning.summary import Summary, summarize
from eplb.planning.traffic import Traffic
from eplb.replaying.policies import Forecasted, Moving, warm_up

__all__ = ["command", "timed_plan"]


def command(
    traces: TraceFiles,
    *,
    asked: ClusterOptions,
    dead: Dead = None,
    groups: Groups = 1,
    forecast: Annotated[
        str,
        typer.Option(
            help="How to forecast the load from several windows: "
            f"{', '.join(FORECASTS)}, or {BEST} to try them and use the best."
        ),
    ] = BEST,
    effort: Annotated[
        Effort, typer.Option(help="Work that planning may take, in fixed amounts.")
    ] = "default",
    current: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACEMENT",
            help="File of the placement that runs, in any format that `eplb evaluate` reads. The "
            "plan starts from it and moves only what gains; the slots of a GPU stay the same "
            "unless --slots is given. [default: plan from scratch]",
            show_default=False,
        ),
    ] = None,
    max_moves: MaxMoves = None,
    move_cost: Annotated[
        float | None,
        typer.Option(
            help="Minimum load that each move takes off the busiest GPU of a layer, in the unit of "
            "the loads. [default: 0.05 % of a GPU's load, or 0 with --max-moves; where GPUs have "
            "failed, 0 and a budget of 1.5 moves for each slot that was lost]",
            show_default=False,
        ),
    ] = None,
    current_gpus: CurrentGpus = None,
    advice: AdviceOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Write the placement to this file, in the format of --to."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            autocompletion=beginning(ENGINES),
            help=f"Format of --output: {', '.join(ENGINES)}. [default: {ENGINES[0]}]",
            show_default=False,
        ),
    ] = None,
    reading: LayerOptions,
    dispatch: DispatchRule = None,
    low: ObjectiveOptions,
    traffic: RoutedBy = None,
    node_price: NodePrice = None,
    pins: PinOptions,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan a placement for the loads in a file or folder, and write it for an engine.

    If there are several windows, each forecast is first tried on them and scored on the windows
    that follow. The plan is then for what the best forecast expects.
    """
    target, rule = target_of(output, to), rule_of(dispatch, to)
    wished = pins.wished()
    # An engine's format says how its plans are scored; what they are made for is asked for.
    afresh = "even" if dispatch is None else rule
    weighs_nodes = traffic is not None or node_price is not None
    step = low.step(afresh, weighs_nodes=weighs_nodes, speed=asked.speed)
    if step is not None and low.objective == "tokens":
        check_batch(step, rule, current)
    if output is not None:
        check_writable(output, *traces)
    check_moves_options(current, max_moves, move_cost, current_gpus)
    if forecast != BEST:
        named_forecast(forecast)
    loads = reading.loads(traces, to_stderr=as_json)
    moves: RunningPlacement | None = None
    if current is None:
        cluster = asked.cluster(loads.num_experts)
        cluster = cluster if dead is None else cluster.without(gpus_from(dead, "--dead"))
    else:
        running, cluster = load_current(current, loads, reading, asked, current_gpus, dead)
        num_slots = moe_slots(loads, cluster)
        budget = None if max_moves is None else budget_from(max_moves, "--max-moves").of(num_slots)
        moves = RunningPlacement(current, running, num_slots, budget, move_cost, rule)
    card, model = low.machines(loads, cluster, step)
    routed = traffic_of(traffic, node_price, loads, cluster, groups)
    what = _expected(loads, cluster, groups, forecast, effort, rule, afresh, threads)
    expected, tried = what.scenarios, what.tried
    planned = planned_rule(afresh, None if moves is None else moves.placement)
    kept = None if wished is None else wished.at_layers(loads.layers)
    made, summary = timed_plan(
        expected, cluster, groups, effort, threads, what.words, moves, rule, planned, routed,
        loads.layers, batch=step, objective=low.objective, gpu=card, model=model, pins=kept,
    )  # fmt: skip
    verdict = None
    # What a verdict weighs are plans for tokens.
    plain = low.objective == "tokens"
    if plain and not loads.dense.all():
        verdict = judge(
            loads.last(HISTORY),
            cluster,
            None if moves is None else moves.placement,
            num_groups=groups if node_price is None else 1,
            ordered=loads.ordered,
            dispatch=rule,
            max_moves=None if moves is None else moves.most,
            move_cost=None if moves is None else moves.cost,
            **vars(advice),
            pins=kept,
            threads=threads,
        )
    if target is not None:
        target.write(made.placement, loads)
    if as_json:
        print_json(
            {
                **summary.to_json(),
                "batch": None if step is None else asdict(step),
                "peak": made.peak.tolist(),
                "bound": made.bound.tolist(),
                "notes": list(made.notes),
                "pins": None if wished is None else wished.to_json(),
                "output": None if output is None else str(output),
                **({} if moves is None else moves.to_json(made, expected, loads)),
                "to": None if target is None else target.engine,
                "backtest": None if tried is None else tried.to_json(),
                "verdict": None if verdict is None else verdict.to_json(),
            }
        )
        return
    reason = None if moves is None else moves.why_duplicates(made)
    print_summary(Console(), printable(in_few_words(traces)), summary, reason)
    if moves is not None:
        say(moves.said(made, expected))
        lost = moves.lost(made, loads)
        if lost is not None:
            say(lost)
    if verdict is not None:
        # What is written already needs no command.
        done = target is not None and (moves is None or made.moves <= verdict.moves)
        said = given(
            **vars(reading),
            **vars(pins),
            current_gpus=current_gpus,
            dispatch=dispatch,
            traffic=traffic,
            node_price=node_price,
        )
        command = next_command(traces, cluster, groups, said, current, verdict.moves)
        print_verdict(Console(), verdict, None if done else command)
    if kept is not None:
        say("The plan keeps the pins.")
    if low.objective == "time":
        say(f"{made.notes[-1].replace('times', 'Times', 1)}.")
    if not plain:
        say("What to do is judged of plans for tokens alone.")
    if target is not None:
        target.say(made.placement, loads)


def _expected(
    trace: LoadTrace,
    cluster: Cluster,
    groups: int,
    forecast: str,
    effort: Effort,
    dispatch: str,
    planned: str,
    threads: int | None,
) -> Expected:
    """What to plan for; finding that out takes as long as some dozens of plans."""
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        waiting(console, "trying forecasts; kernels are compiled once on a machine"),
    ):
        return expected_of(
            trace,
            cluster,
            forecast,
            num_groups=groups,
            effort=effort,
            dispatch=dispatch,
            planned=planned,
            threads=threads,
        )


def timed_plan(
    expected: Scenarios,
    cluster: Cluster,
    groups: int,
    effort: Effort,
    threads: int | None,
    said: str | None = None,
    moves: RunningPlacement | None = None,
    dispatch: str = "even",
    planned: str = "even",
    traffic: Traffic | None = None,
    layers: tuple[int, ...] | None = None,
    **asked: Any,
) -> tuple[Plan, Summary]:
    """Plan for a rule, and say what that gains under one and how long it took, once kernels are
    there.
    """
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        waiting(console, "planning; kernels are compiled once on a machine"),
    ):
        policy = Forecasted if moves is None else Moving
        warm_up(policy(Recent(), dispatch=planned))
        if traffic is not None:
            plan(np.ones((1, 4)), Cluster(4, 2, 1), traffic=Traffic(1, price=traffic.price))
        if asked.get("pins") is not None:
            plan(np.ones((1, 4)), Cluster(4, 1, 1), dispatch=planned, pins=Pins(gpus={0: 0}))
        begin = time.perf_counter()
        made = plan(
            expected.loads,
            cluster,
            num_groups=groups,
            weights=expected.weights,
            current=None if moves is None else moves.placement,
            max_moves=None if moves is None else moves.most,
            move_cost=None if moves is None else moves.cost,
            dispatch=planned,
            traffic=traffic,
            effort=effort,
            threads=threads,
            **asked,
        )
        seconds = time.perf_counter() - begin
    made = replace(made, placement=replace(made.placement, layers=layers))
    running = None if moves is None else moves.placement
    return made, summarize(expected.loads, made, groups, seconds, said, dispatch, running, traffic)
