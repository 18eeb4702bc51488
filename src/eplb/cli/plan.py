"""`eplb plan`: a placement for loads, and what it gains."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from eplb.checks import budget_from, gpus_from, in_few_words, printable
from eplb.cli import options
from eplb.cli.bundles import one_of
from eplb.cli.interrupts import PLANNING, working
from eplb.cli.nodes import RoutedBy, traffic_of
from eplb.cli.objective import ObjectiveOptions
from eplb.cli.pins import PinOptions
from eplb.cli.reading import LayerOptions
from eplb.cli.running import Change, CurrentGpus, RunningOptions, check_moves_options
from eplb.cli.terminal import print_json, print_summary, print_verdict, say
from eplb.cluster import Cluster
from eplb.formats.placements import ENGINES
from eplb.moving.verdict import judge
from eplb.placement import Placement
from eplb.planning.backtest import BEST, expected_of
from eplb.planning.forecast import FORECASTS, HISTORY, Recent, named_forecast
from eplb.planning.pins import Pins
from eplb.planning.plan import check_batch, plan
from eplb.planning.problem import Effort
from eplb.planning.solve import planned_rule
from eplb.planning.summary import summarize
from eplb.planning.traffic import Traffic
from eplb.replaying.policies import Forecasted, Moving, warm_up
from eplb.report.commands import typed


def command(
    traces: options.TraceFiles,
    *,
    asked: options.ClusterOptions,
    dead: options.Dead = None,
    groups: options.Groups = 1,
    forecast: Annotated[
        str,
        typer.Option(
            help="How to forecast the load from several windows: "
            f"{', '.join(FORECASTS)}, or {BEST} to try them and use the best."
        ),
    ] = BEST,
    effort: Effort = "default",
    current: Annotated[Path | None, typer.Option(metavar="PLACEMENT")] = None,
    max_moves: options.MaxMoves = None,
    move_cost: float | None = None,
    current_gpus: CurrentGpus = None,
    advice: options.AdviceOptions,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    to: Annotated[
        str | None, one_of(ENGINES, f"Format of --output: {{}}. [default: {ENGINES[0]}]")
    ] = None,
    reading: LayerOptions,
    dispatch: options.DispatchRule = None,
    low: ObjectiveOptions,
    traffic: RoutedBy = None,
    node_price: float | None = None,
    pins: PinOptions,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Plan a placement for the loads in a file or folder, and write it for an engine.

    If there are several windows, each forecast is first tried on them and scored on the windows
    that follow. The plan is then for what the best forecast expects.

    Options:
        effort: Work that planning may take, in fixed amounts.
        current: File of the placement that runs, in any format that `eplb evaluate` reads. The plan
            starts from it and moves only what gains; the slots of a GPU stay the same unless
            --slots is given. [default: plan from scratch]
        move_cost: Minimum load that each move takes off the busiest GPU of a layer, in the unit of
            the loads. [default: 0.05 % of a GPU's load, or 0 with --max-moves; where GPUs have
            failed, 0 and a budget of 1.5 moves for each slot that was lost]
        output: Write the placement to this file, in the format of --to.
        node_price: The peak that it may cost, as a share of a GPU's load, that a token is sent to
            one node fewer. Groups then need not stay on their nodes. It goes with --traffic, unless
            the loads say how many experts a token is routed to. [default: none]
    """
    target, rule = options.target_of(output, to, *traces), options.rule_of(dispatch, to)
    wished = pins.wished()
    # An engine's format says how its plans are scored; what they are made for is asked for.
    afresh = "even" if dispatch is None else rule
    weighs_nodes = traffic is not None or node_price is not None
    step = low.step(afresh, weighs_nodes=weighs_nodes, speed=asked.speed)
    if step is not None and low.objective == "tokens":
        check_batch(step, rule, current)
    check_moves_options(
        current, max_moves=max_moves, move_cost=move_cost, current_gpus=current_gpus
    )
    if forecast != BEST:
        named_forecast(forecast)
    loads = reading.loads(traces, to_stderr=as_json)
    running: Placement | None = None
    budget: int | None = None
    if current is None:
        cluster = asked.cluster(loads.num_experts)
        cluster = cluster if dead is None else cluster.without(gpus_from(dead, "--dead"))
    else:
        runs = RunningOptions(current, **vars(asked), dead=dead, current_gpus=current_gpus)
        running, cluster = runs.load(loads, reading)
        if max_moves is not None:
            budget = budget_from(max_moves, "--max-moves").of(options.moe_slots(loads, cluster))
    card, model = low.machines(loads, cluster, step)
    routed = traffic_of(traffic, node_price, loads, cluster, groups)
    with working("trying forecasts; kernels are compiled once on a machine"):
        what = expected_of(
            loads,
            cluster,
            forecast,
            num_groups=groups,
            effort=effort,
            dispatch=rule,
            planned=afresh,
            threads=threads,
        )
    expected, planned = what.scenarios, planned_rule(afresh, running)
    kept = None if wished is None else wished.at_layers(loads.layers)
    with working(PLANNING):
        _warm_up(planned, routed, moving=running is not None, pinned=kept is not None)
        begin = time.perf_counter()
        made = plan(
            expected.loads,
            cluster,
            num_groups=groups,
            weights=expected.weights,
            current=running,
            max_moves=budget,
            move_cost=move_cost,
            dispatch=planned,
            traffic=routed,
            batch=step,
            objective=low.objective,
            gpu=card,
            model=model,
            pins=kept,
            effort=effort,
            threads=threads,
        )
        seconds = time.perf_counter() - begin
    made = replace(made, placement=replace(made.placement, layers=loads.layers))
    summary = summarize(expected.loads, made, groups, seconds, what.words, rule, running, routed)
    change = None
    if current is not None and running is not None:
        num_slots = options.moe_slots(loads, cluster)
        change = Change(current, running, made, expected.loads, num_slots, budget, rule)
    verdict = None
    # What a verdict weighs are plans for tokens.
    plain = low.objective == "tokens"
    if plain and not loads.dense.all():
        verdict = judge(
            loads.last(HISTORY),
            cluster,
            running,
            num_groups=groups if node_price is None else 1,
            ordered=loads.ordered,
            dispatch=rule,
            max_moves=budget,
            move_cost=move_cost,
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
                "output": output,
                **({} if change is None else change.to_json(loads)),
                "to": None if target is None else target.engine,
                "backtest": None if what.tried is None else what.tried.to_json(),
                "verdict": None if verdict is None else verdict.to_json(),
            }
        )
        return
    reason = None if change is None else change.why_duplicates()
    print_summary(Console(), printable(in_few_words(traces)), summary, reason)
    if change is not None:
        say(change.said())
        if change.died:
            say(change.lost(loads))
    if verdict is not None:
        # What is written already needs no command.
        done = target is not None and (current is None or made.moves <= verdict.moves)
        said = typed(
            **vars(reading),
            **vars(pins),
            current_gpus=current_gpus,
            dispatch=dispatch,
            traffic=traffic,
            node_price=node_price,
        )
        command = options.next_command(traces, cluster, groups, said, current, verdict.moves)
        print_verdict(Console(), verdict, None if done else command)
    if kept is not None:
        say("The plan keeps the pins.")
    if low.objective == "time":
        say(f"{made.notes[-1].replace('times', 'Times', 1)}.")
    if not plain:
        say("What to do is judged of plans for tokens alone.")
    if target is not None:
        target.say(made.placement, loads)


def _warm_up(rule: str, traffic: Traffic | None, *, moving: bool, pinned: bool) -> None:
    """Compile the kernels of a plan, or load them, so that its time is its own."""
    warm_up((Moving if moving else Forecasted)(Recent(), dispatch=rule))
    if traffic is not None:
        plan(np.ones((1, 4)), Cluster(4, 2, 1), traffic=Traffic(1, price=traffic.price))
    if pinned:
        plan(np.ones((1, 4)), Cluster(4, 1, 1), dispatch=rule, pins=Pins(gpus={0: 0}))
