"""How a placement does on loads, beside plans made now, what engines plan by themselves, and the
layout that they start with.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Interval, Served, paced
from eplb.dispatching.rules import check_named
from eplb.errors import LoadsError
from eplb.loads import LoadTrace
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN, Verdict, judge
from eplb.placement import Placement
from eplb.planning.backtest import HELD_OUT, Schedule
from eplb.planning.engine import engine_placement
from eplb.planning.forecast import HISTORY, Recent, Scenarios, in_no_order
from eplb.planning.plan import plan
from eplb.planning.solve import planned_rule

_WORST = 5


@dataclass(frozen=True)
class Standing:
    """One placement on the windows.

    Attributes:
        placement: "this"; "from this", a plan that starts from it and moves what is worth a move;
            "afresh", a plan from scratch; "engine", what engines plan by themselves; "contiguous",
            the layout that they start with.
        balancedness: mean GPU load / max GPU load, mean over windows and layers; interval: where
            that is with 95 % confidence, None of few windows.
        pooled: the same as sum of means / sum of maxima; pooled_interval: of that.
        worst_window: balancedness of the least balanced window.
        gain: balancedness above that of the placement evaluated; gain_interval: of that.
        duplicates: slots of MoE layers that hold an expert a second time on a GPU.
        moves: experts of MoE layers that GPUs would receive to get there from the placement
            evaluated; moved: the same as a share of slots.
    """

    placement: str
    balancedness: float
    interval: Interval | None
    pooled: float
    pooled_interval: Interval | None
    worst_window: float
    gain: float
    gain_interval: Interval | None
    duplicates: int
    moves: int
    moved: float


@dataclass(frozen=True)
class LayerFigures:
    """Balancedness of one layer, mean over windows, by placement."""

    layer: int
    this: float
    from_this: float
    afresh: float
    engine: float
    contiguous: float


@dataclass(frozen=True)
class HotGpu:
    """The GPU with the most load under the placement evaluated.

    Attributes:
        gpu: its number.
        load: its load over that of a GPU on average, all windows and layers added up.
        busiest: share of the layers of windows in which no GPU has more load.
    """

    gpu: int
    load: float
    busiest: float


@dataclass(frozen=True)
class Unseen:
    """The later half of the windows, with a plan from this placement for the earlier half; or all
    of those in no order, held out in turn, with plans for the others.

    Attributes:
        seen: windows that a plan was made from; windows: others, that are scored.
        this, plan: balancedness of both; gain: of the plan above the placement evaluated.
    """

    seen: int
    windows: int
    this: float
    plan: float
    gain: float
    gain_interval: Interval | None


@dataclass(frozen=True)
class Evaluation:
    """A placement on a trace.

    Attributes:
        gpus: G, dead ones too; dead: their numbers; slots: of a layer, on those alive.
        layers: L; dense_layers: numbers of those with no load in any window.
        dispatch: name of the rule of dispatch that all figures are under.
        ordered: whether windows follow each other.
        standings: of the placement, of two plans for the same slots made from these windows, of
            what engines plan from them, and of the contiguous layout.
        unseen: what a plan gains on windows that it was not made from; None of one window.
        worst_layers: the least balanced, the worst first.
        hottest: the GPU with the most load, None without load.
        verdict: what to do, by the last 32 windows; None without load.
    """

    layers: int
    dense_layers: list[int]
    experts: int
    gpus: int
    dead: list[int]
    nodes: int
    slots: int
    groups: int
    windows: int
    dispatch: str
    ordered: bool
    standings: list[Standing]
    unseen: Unseen | None
    worst_layers: list[LayerFigures]
    hottest: HotGpu | None
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        verdict = None if self.verdict is None else self.verdict.to_json()
        return {**asdict(replace(self, verdict=None)), "verdict": verdict}


def evaluate_placement(
    placement: Placement,
    trace: LoadTrace,
    *,
    num_groups: int = 1,
    dispatch: str = "even",
    least_gain: float = LEAST_GAIN,
    confidence: float = CONFIDENCE,
    threads: int | None = None,
) -> Evaluation:
    """Score a placement on every window, beside plans made now, the engine's own and the contiguous
    layout.

    Plans are made from the last 32 windows and scored on all: what they gain on windows that they
    have seen is the most that there is. What re-planning would have gained is told by `unseen`.

    Args:
        placement: L layers of E experts.
        trace: windows [T, L, E].
        num_groups: groups that the model routes by, for the plans.
        dispatch: how windows are served: a rule as for `Placement.gpu_load`.
        least_gain: balancedness that the verdict asks for, as `eplb.decide` does.
        confidence: how sure it asks a gain to be.
        threads: most threads to plan with, None for one a processor.

    Raises:
        LoadsError: a trace of other layers or experts.
        ClusterError: groups that do not divide the experts.
        OptionError: a rule that is not known, or a split: it fits no placement but its own.
    """
    check_named(dispatch)
    if (placement.num_layers, placement.num_experts) != (trace.num_layers, trace.num_experts):
        raise LoadsError(
            f"{trace!r} is of another model than {placement!r}: both need the same number "
            "of layers and experts"
        )
    cluster = placement.cluster
    moe = np.logical_not(trace.dense)
    begin = Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
    planned = partial(_planned, trace, placement, num_groups, threads)
    placements = {
        "this": placement,
        "from this": planned(trace.loads),
        "afresh": planned(trace.loads, planned_rule(dispatch), afresh=True),
        "engine": engine_placement(trace.last(HISTORY), cluster, num_groups),
        "contiguous": begin,
    }
    found = {name: each.serve(trace.loads, dispatch) for name, each in placements.items()}
    return Evaluation(
        layers=trace.num_layers,
        dense_layers=np.array(trace.layer_numbers)[trace.dense].tolist(),
        experts=trace.num_experts,
        gpus=cluster.num_gpus,
        dead=list(cluster.dead),
        nodes=cluster.num_nodes,
        slots=cluster.num_held,
        groups=num_groups,
        windows=trace.num_windows,
        dispatch=dispatch,
        ordered=trace.ordered,
        standings=[
            _standing(name, each, found[name], placement, found["this"], moe)
            for name, each in placements.items()
        ],
        unseen=_unseen(planned, found["this"], trace, dispatch),
        worst_layers=_worst_layers(trace, *found.values()),
        hottest=_hottest(placement, trace, dispatch),
        verdict=None
        if trace.dense.all()
        else judge(
            trace.last(HISTORY),
            cluster,
            placement,
            ordered=trace.ordered,
            num_groups=num_groups,
            dispatch=dispatch,
            least_gain=least_gain,
            confidence=confidence,
            threads=threads,
        ),
    )


def _planned(
    trace: LoadTrace,
    current: Placement,
    num_groups: int,
    threads: int | None,
    loads: NDArray[np.float64],
    dispatch: str = "even",
    *,
    afresh: bool = False,
) -> Placement:
    """A plan for the same slots and some of the windows, from the placement that runs or afresh."""
    rule = Recent() if trace.ordered else in_no_order(Recent())
    expected = Scenarios(loads, np.ones(1)) if len(loads) == 1 else rule(loads)
    return plan(
        expected.loads,
        current.cluster,
        num_groups=num_groups,
        weights=expected.weights,
        current=None if afresh else current,
        dispatch=dispatch,
        threads=threads,
    ).placement


def _standing(
    name: str,
    placement: Placement,
    served: Served,
    this: Placement,
    served_by_this: Served,
    moe: NDArray[np.bool_],
) -> Standing:
    held = placement.phy2log[moe].reshape(-1, placement.cluster.slots_per_gpu)
    held = np.sort(held[held[:, 0] >= 0], axis=1)
    moves = int(placement.moves_by_layer(this)[moe].sum())
    gain, gain_interval = served.gain_over(served_by_this)
    return Standing(
        placement=name,
        balancedness=served.average(),
        interval=served.interval(),
        pooled=served.pooled(),
        pooled_interval=served.pooled_interval(),
        worst_window=served.worst_window(),
        gain=gain,
        gain_interval=gain_interval,
        duplicates=int((held[:, 1:] == held[:, :-1]).sum()),
        moves=moves,
        moved=moves / max(1, held.size),
    )


def _unseen(
    planned: Callable[[NDArray[np.float64]], Placement],
    served: Served,
    trace: LoadTrace,
    dispatch: str,
) -> Unseen | None:
    """Windows with plans that had not seen them."""
    total = trace.num_windows
    if total == 1:
        return None
    half = Schedule(total, total, total // 2)
    schedule = half if trace.ordered else Schedule(-(-total // HELD_OUT))
    parts = []
    seen = 0
    for shown, after in schedule.plans(trace):
        loads = trace.loads[shown]
        seen = max(seen, len(loads))
        parts.append(planned(loads).serve(trace.loads[after], dispatch))
    ahead = Served.joined(parts)
    later = served.part(slice(total - schedule.num_served(trace), None))
    gain, interval = ahead.gain_over(later)
    return Unseen(
        seen=seen,
        windows=schedule.num_served(trace),
        this=later.average(),
        plan=ahead.average(),
        gain=gain,
        gain_interval=interval,
    )


def _worst_layers(trace: LoadTrace, *found: Served) -> list[LayerFigures]:
    """The layers that are least balanced under the first of the placements."""
    layers = np.flatnonzero(~trace.dense)
    by_layer = [np.nanmean(each.balancedness[:, layers], axis=0) for each in found]
    worst = np.argsort(by_layer[0], kind="stable")[:_WORST]
    return [
        LayerFigures(
            trace.layer_numbers[layers[number]], *(float(each[number]) for each in by_layer)
        )
        for number in worst
    ]


def _hottest(placement: Placement, trace: LoadTrace, dispatch: str) -> HotGpu | None:
    """The GPU with the most load, None where none has any."""
    num_gpus = placement.cluster.num_gpus
    total, busiest = np.zeros(num_gpus), np.zeros(num_gpus, np.int64)
    for window in trace.loads:
        load = paced(placement.gpu_load(window, dispatch), placement.cluster.speeds)
        total += load.sum(axis=0)
        busiest += np.bincount(load.argmax(axis=1)[load.any(axis=1)], minlength=num_gpus)
    mean = float(total.sum()) / len(placement.cluster.alive)
    if mean <= 0.0:
        return None
    gpu = int(total.argmax())
    return HotGpu(gpu, float(total[gpu] / mean), float(busiest[gpu] / busiest.sum()))
