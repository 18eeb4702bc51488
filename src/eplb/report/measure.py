"""From a trace to every figure of its report."""

from collections.abc import Callable, Sequence

import numpy as np

from eplb.checks import counted, in_few_words
from eplb.cluster import Cluster, check_shape
from eplb.cost import Assumptions
from eplb.cost.gpus import Gpu, find_gpu
from eplb.cost.models import Model
from eplb.dispatching.rules import check_named
from eplb.errors import LoadsError, PlacementError
from eplb.loads import LoadTrace
from eplb.moving.service import find_overhead
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN, judge
from eplb.placement import Placement
from eplb.planning.backtest import Schedule, expected_of
from eplb.planning.engine import engine_placement
from eplb.planning.forecast import Forecast, Recent, in_no_order, named_forecast
from eplb.planning.traffic import Traffic, check_traffic
from eplb.replaying.compare import compare
from eplb.replaying.policies import Policy, Staying, named_policy
from eplb.report.commands import Commands
from eplb.report.curves import (
    measure_moves,
    measure_nodes,
    measure_spare,
    measure_splits,
    measure_windows,
)
from eplb.report.figures import Choice, Figures, Setting
from eplb.report.sample import Asked
from eplb.report.standings import heat_of, hottest, standings_of, why_unsure
from eplb.report.through import measure_through
from eplb.report.timing import estimate_times, known_model

_MOST_PLANS, _PLANS = 32, 16
"""Plans of a replay: one a window up to so many; of longer traces fewer, evenly apart."""
STEPS = (
    "trying forecasts",
    "replaying",
    "spare slots",
    "windows",
    "moves",
    "time",
    "nodes",
    "estimating",
)
"""What is done, in order, as `progress` is told."""


def measure(
    trace: LoadTrace,
    cluster: Cluster,
    *,
    name: str | Sequence[str] = "loads",
    current: Placement | None = None,
    current_name: str | None = None,
    num_groups: int = 1,
    dispatch: str = "even",
    traffic: Traffic | None = None,
    least_gain: float = LEAST_GAIN,
    confidence: float = CONFIDENCE,
    model: Model | str | None = None,
    gpu: Gpu | str = "H100",
    engine: str | None = None,
    tokens_per_gpu: float = 128.0,
    window_seconds: float | None = None,
    assumptions: Assumptions | None = None,
    reading: tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
    threads: int | None = None,
    progress: Callable[[str, int, int], object] | None = None,
) -> Figures:
    """Take every figure of a report.

    Args:
        trace: the windows, in the order in which they happened; in no order, each is held out in
            turn, and nothing is said of time.
        cluster: the GPUs and their slots.
        name: path of the trace, or of its files, for the command that makes the plan.
        current: the placement that runs, for this cluster; None where engines start.
        current_name: its path.
        num_groups: groups that the model routes by.
        dispatch: the rule by which tokens are split over replicas, as for `Placement.gpu_load`.
        traffic: how tokens are routed, for a section on the nodes that they are sent to; None for
            none. A price is passed over: there are plans at several.
        least_gain: balancedness that the verdict asks for, as `eplb.decide` does.
        confidence: how sure it asks a gain to be.
        model: whose figures times are estimated by, by its name or as figures; None for the
            trace's own. Where its name is not known, the report says what is missing.
        gpu: that it is served on, by a name in `eplb.cost.GPUS` or as figures.
        engine: whose own time for a rebalance is counted where moving is decided, as in
            `Service.of`; None for transfers alone.
        tokens_per_gpu: tokens that each GPU brings into a step.
        window_seconds: time that a window stands for; by default as the trace says.
        assumptions: of the estimates.
        reading: options that say how the trace is read, for the commands.
        layers: options that say which layers the trace has, for the command.
        threads: most threads to plan with, None for one a processor.
        progress: called with one of `STEPS`, how much of it is done and how much there is.

    Raises:
        LoadsError: no layer has any load.
        ClusterError: slots or groups that do not fit the experts.
        PlacementError: a current placement of another shape.
        OptionError: a GPU or a rule that is not known, tokens or a time that are not above 0.
    """
    check_named(dispatch)
    if engine is not None:
        find_overhead(engine)
    trace = trace.merged()
    _check(trace, cluster, current, num_groups)
    if traffic is not None:
        check_traffic(traffic, trace.num_layers, trace.num_experts, num_groups, cluster.num_nodes)
    card = gpu if isinstance(gpu, Gpu) else find_gpu(gpu)
    assumed = assumptions or Assumptions()
    known = model if isinstance(model, Model) else known_model(model or trace.model, trace)
    say = progress or (lambda _what, _done, _wanted: None)
    asked = Asked(trace, cluster, num_groups, dispatch, threads)
    running = current or asked.start
    names = (name,) if isinstance(name, str) else tuple(name)

    say(STEPS[0], 0, 1)
    forecast, tried = _tried(asked)
    rule: Forecast = named_forecast(forecast) if forecast else Recent()
    rule = rule if trace.ordered else in_no_order(rule)
    commands = Commands(asked, names, reading, layers, forecast, current_name or "current.json")
    made = asked.plan(rule(trace.loads))
    served = 0 if trace.num_windows == 1 else Schedule().num_served(trace)
    every = 1 if served <= _MOST_PLANS else -(-served // _PLANS)

    def replaying(done: int, wanted: int) -> None:
        say(STEPS[1], done, wanted)

    comparison = None
    if trace.num_windows > 1:
        comparison = compare(
            trace,
            cluster,
            _policies(current, forecast, threads),
            num_groups=num_groups,
            every=every,
            dispatch=dispatch,
            progress=replaying,
        )
    replays = {} if comparison is None else {each.name: each for each in comparison.replays}
    planned_by_engine = engine_placement(asked.seen, cluster, num_groups)
    ran, ran_by_engine = (
        [*([first] if trace.ordered else []), *(replays[name].placements if replays else ())]
        for name, first in (("plan", made.placement), ("engine", planned_by_engine))
    )
    shape = known if isinstance(known, Model) else None
    spare = measure_spare(asked, rule, shape, lambda *done: say(STEPS[2], *done))
    windows = measure_windows(asked, lambda *done: say(STEPS[3], *done))
    say(STEPS[4], 0, 1)
    moves = measure_moves(asked, current, rule, commands.plan)
    through = measure_through(
        asked,
        comparison,
        running,
        rule,
        known,
        card,
        engine,
        window_seconds,
        lambda *done: say(STEPS[5], *done),
    )
    say(STEPS[6], 0, 1)
    nodes = None
    if traffic is not None:
        named = {"now": running, "the engine's own": planned_by_engine}
        nodes = measure_nodes(asked, traffic, rule, named)
    say(STEPS[7], 0, 1)
    estimated = estimate_times(
        asked, running, ran_by_engine, ran, known, card, tokens_per_gpu, assumed
    )
    standings = standings_of(asked, comparison, made.placement, planned_by_engine, current)
    verdict = judge(
        asked.seen,
        cluster,
        current,
        num_groups=num_groups,
        ordered=trace.ordered,
        dispatch=dispatch,
        least_gain=least_gain,
        confidence=confidence,
        threads=threads,
    )
    command = None
    if verdict.advised:
        command = commands.plan(None if current is None else verdict.moves)
    return Figures(
        setting=_setting(asked, in_few_words(names), current_name, every),
        choice=Choice(
            forecast,
            command,
            None if comparison is None else commands.compare(every),
            tried,
            float(made.gap[~trace.dense].mean()),
        ),
        verdict=verdict,
        seen_windows=len(asked.seen),
        unseen_windows=served,
        standings=standings,
        unsure=why_unsure(standings, trace.num_windows),
        heat=heat_of(asked, running, made.placement, ran),
        hot=hottest(trace, made.placement),
        splits=measure_splits(asked, rule),
        spare=spare,
        windows=windows,
        moves=moves,
        through=through,
        estimated=estimated,
        nodes=nodes,
    )


def _check(trace: LoadTrace, cluster: Cluster, current: Placement | None, num_groups: int) -> None:
    if trace.dense.all():
        raise LoadsError("no layer of the trace has any load, so there is nothing to report")
    check_shape(trace.num_experts, cluster, num_groups)
    if current is None:
        return
    if (current.num_layers, current.num_experts) != (trace.num_layers, trace.num_experts):
        raise PlacementError(
            f"the placement that runs is {current!r}, but the loads have "
            f"{counted(trace.num_layers, 'layer')} of {trace.num_experts} experts: give a "
            "placement of this model"
        )
    if current.cluster != cluster:
        raise PlacementError(
            f"the placement that runs has {current.cluster.num_slots} slots on "
            f"{current.cluster.num_gpus} GPUs, but the cluster given has {cluster.num_slots} on "
            f"{cluster.num_gpus}: leave out --slots, or give a placement for this cluster"
        )


def _tried(asked: Asked) -> tuple[str | None, tuple[tuple[str, float], ...]]:
    """The forecast that did best, as `eplb.plan` finds it, and how each did; none is chosen for
    windows in no order, which are all planned for.
    """
    found = expected_of(
        asked.trace,
        asked.cluster,
        num_groups=asked.num_groups,
        dispatch=asked.dispatch,
        threads=asked.threads,
    ).tried
    if found is None:
        return ("mean" if asked.trace.num_windows > 1 else None), ()
    if not asked.trace.ordered:
        return None, ()
    return found.best, tuple(found.scores.items())


def _policies(
    current: Placement | None, forecast: str | None, threads: int | None
) -> dict[str, Policy]:
    policies: dict[str, Policy] = {} if current is None else {"current": Staying(current)}
    return policies | {
        "engine": named_policy("deepseek"),
        "plan": named_policy(forecast or "eplb", threads),
        "contiguous": named_policy("contiguous"),
        "oracle": named_policy("oracle", threads),
    }


def _setting(asked: Asked, name: str, current: str | None, every: int) -> Setting:
    trace, cluster = asked.trace, asked.cluster
    return Setting(
        trace=name,
        model=trace.model,
        current=current,
        num_windows=trace.num_windows,
        first_window=trace.names[0],
        last_window=trace.names[-1],
        merged=None if trace.merging is None else trace.merging.words,
        num_layers=trace.num_layers,
        dense_layers=tuple(np.array(trace.layer_numbers)[trace.dense].tolist()),
        num_experts=trace.num_experts,
        num_gpus=cluster.num_gpus,
        num_nodes=cluster.num_nodes,
        num_slots=cluster.num_held,
        slots_per_gpu=cluster.slots_per_gpu,
        num_groups=asked.num_groups,
        dispatch=asked.dispatch,
        every=every,
        ordered=trace.ordered,
        uneven=_uneven(cluster),
    )


def _uneven(cluster: Cluster) -> str:
    """How GPUs differ, in words; nothing where they are alike."""
    words = ""
    if cluster.slots is not None:
        words = f" of {min(cluster.slots)} to {cluster.slots_per_gpu} slots"
    if cluster.speed is not None and not cluster.even:
        speeds = f"speed {min(cluster.speed):g} to {max(cluster.speed):g}"
        words += f" and {speeds}" if words else f" of {speeds}"
    return words
