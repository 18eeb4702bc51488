"""The planner: loads and a cluster in, a placement with its peak and proven bound out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eplb.checks import Immutable, counted, ranges
from eplb.cluster import Cluster
from eplb.cost.gpus import Gpu
from eplb.cost.models import MODELS, Model
from eplb.errors import OptionError, PlacementError
from eplb.loads import LoadTrace, as_array, check_weights, check_windows
from eplb.placement import Placement
from eplb.planning.backtest import expected_of
from eplb.planning.batches import Batch, draw_batches
from eplb.planning.best_split import split_bounds
from eplb.planning.objectives import Clock, activated, check_objective, clock_of
from eplb.planning.passes import solve_mean
from eplb.planning.pinned import check_pins
from eplb.planning.pins import Pins
from eplb.planning.problem import Effort, Problem, check_effort, check_problem
from eplb.planning.relocate import (
    budget_of_deaths,
    came_empty,
    check_current,
    check_moves,
    choose,
    eased,
    moves,
    relocate,
    settle,
)
from eplb.planning.solve import WALKED, check_dispatch, solve_for
from eplb.planning.traffic import (
    Traffic,
    check_price,
    check_traffic,
    others_of,
    solve_at_price,
    walk_at_price,
    with_sources,
)
from eplb.solver.arrays import F64, I64

DEFAULT_MOVE_COST = 5e-4
"""What a move is to gain where nothing else is said, as a share of the mean GPU load."""
_DEAREST = 1e200
"""The highest price of a move; products of it are finite."""


def _no_experts() -> I64:
    """[0, 2] no layer and expert."""
    return np.empty((0, 2), np.int64)


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Immutable):
    """What the planner decided, and how far from proven best it is.

    Attributes:
        placement: the experts of every slot.
        peak: [L] load of the busiest GPU under the rule of dispatch, in the unit of the loads; of
            several windows the expected one, each window scaled to their mean total.
        bound: [L] proven: no plan for this cluster, with the groups on nodes, has a lower peak.
        moves: experts that GPUs must receive, from the placement that was current; 0 without one.
        lost: [K, 2] layer and expert of those whose every copy in the placement that was current
            is on a dead GPU: they are to be read from the checkpoint, all others come from a copy.
        notes: what a user should know of the loads: what was planned for, and windows that count
            for nothing.
        dispatch: the rule of dispatch that was planned for.
        other_nodes: [L] distinct other nodes that a token is sent to, as `eplb.other_nodes` has
            them for the mean of the windows; None where the traffic is not known.
        objective: what `peak` and `bound` are of: with "activated" they are experts that a GPU
            touches in a step, with "time" seconds of a layer.
    """

    placement: Placement
    peak: F64
    bound: F64
    moves: int = 0
    notes: tuple[str, ...] = ()
    dispatch: str = "even"
    lost: I64 = field(default_factory=_no_experts)
    other_nodes: F64 | None = None
    objective: str = "tokens"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        told, arrays = ("placement", "moves", "notes", "dispatch"), ("peak", "bound", "lost")
        return all(getattr(self, name) == getattr(other, name) for name in told) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays
        )

    def __hash__(self) -> int:
        return hash((self.placement, self.moves, self.dispatch))

    def __repr__(self) -> str:
        cluster = self.placement.cluster
        moved = f", {self.moves:,} moves" if self.moves else ""
        return (
            f"Plan({counted(self.placement.num_layers, 'layer')}, {cluster.num_slots} slots on "
            f"{cluster.num_gpus} GPUs, largest gap {self.gap.max():.2%}{moved})"
        )

    @cached_property
    def gap(self) -> F64:
        """[L] peak / bound - 1: what is left to gain at most; 0 for layers with no load."""
        safe = np.where(self.bound > 0.0, self.bound, 1.0)
        gap: F64 = np.where(self.bound > 0.0, self.peak / safe - 1.0, 0.0)
        gap.flags.writeable = False
        return gap


def plan(
    loads: ArrayLike | LoadTrace,
    cluster: Cluster,
    *,
    num_groups: int = 1,
    weights: ArrayLike | None = None,
    current: Placement | None = None,
    max_moves: int | None = None,
    move_cost: float | None = None,
    dispatch: str = "even",
    batch: Batch | None = None,
    objective: str = "tokens",
    gpu: str | Gpu = "H100",
    model: str | Model | None = None,
    traffic: Traffic | None = None,
    pins: Pins | None = None,
    effort: Effort = "default",
    threads: int | None = None,
) -> Plan:
    """Decide how many replicas each expert gets and on which GPU each sits.

    Each layer is planned on its own. Replica counts follow Adams' apportionment, replicas are
    packed by the balanced largest differencing method, and swaps bring the busiest GPU within
    0.04 % of a proven lower bound. Where they end further than 0.15 % from it, a local search
    changes replica counts and placement until its steps are spent. Layers of up to 16 slots are
    searched from many seeded starts. For several windows the plan
    minimises the expected peak, with every window scaled to the same total. No GPU gets two
    replicas of an expert unless it has more slots than there are experts. The same input gives the
    same plan on every host and with any number of threads.

    With a current placement, the search starts from it. Each layer goes as far as the move budget,
    which all layers share, or the price of a move allows, and never further than to the peak of a
    plan from scratch. Every move pays for itself, also where a GPU holds a second replica of an
    expert. Experts that stay on a GPU keep their slot. A layer with no load stays as it is, whether
    or not its groups are on nodes.

    Where GPUs differ in slots or speed, loads count by the time that they take: peaks and bounds
    are loads over speeds. Such plans are for an even or a best split, and experts go to any node.

    Where GPUs are dead, in the cluster or in the current placement, the plan is for those alive.
    Where some have died since the current placement, and neither a budget nor a price is given, the
    budget is 1.5 moves for each slot that died, and it is shared out so that a plan for an even
    split also leaves freedom to other splits.

    With `dispatch="best"` the peak is the one that the best split of each window leaves, and a
    search looks for placements that give such splits much freedom. It starts from the plan for an
    even split and is never worse, split best. Beside each window it plans for seeded copies of it,
    in which experts have somewhat more load or less: windows that were seen are soon perfect.
    From a current placement it goes by the moves that lower these peaks most, which are few. What
    is split is a batch: with `batch` it plans for batches of that size, drawn from the windows with
    a seed, and `peak` and `bound` are what is expected of these.

    With `dispatch="sglang"` or `"ascend"` the peak is the one that the engine's own table of
    dispatch leaves, with as many tokens from each GPU. Which GPU of which node holds a copy then
    decides what part of the tokens it takes, and a search looks for placements whose parts fit. It
    starts from the plan for an even split, and over all layers it is never worse. Of tokens that
    SGLang draws a copy for, it plans for what is expected, and avoids what chance decides.

    With `objective="activated"` the peak is the experts that the busiest GPU is expected to touch
    in a step of the size of `batch`, which is what decoding few tokens takes time for. An expert is
    touched where any token of the step is routed to it, and goes to one of its copies then, as
    `eplb.torch.BatchDispatch` sends it with the same objective.

    With `objective="time"` the peak is the seconds that a layer of such a step takes, as
    `eplb.cost` estimates it: what the slowest GPU computes for tokens and reads of the copies that
    any token comes to, and the way there and back. Of plans for tokens, for experts touched, and
    for the time that experts take in the first, each layer has the best; from a current placement,
    all layers have the same. The bound is the time of GPUs that are even.

    With `traffic` that has a price, nodes are a preference, between groups that must stay on nodes
    and experts that go anywhere: each layer has the least peak and price of the other nodes that
    its tokens are sent to, together. Naming GPUs so that these are few costs no balance. From a
    current placement, moves are to lower the two together.

    With `pins` every placement on the way keeps them, from scratch and from what runs.

    Example:
        >>> import numpy as np
        >>> import eplb
        >>> loads = np.array([[90.0, 30.0, 20.0, 20.0]])
        >>> made = eplb.plan(loads, eplb.Cluster(num_gpus=2, slots_per_gpu=3))
        >>> made.peak
        array([80.])
        >>> made.placement.logcnt
        array([[2, 2, 1, 1]])

    Args:
        loads: tokens routed to each logical expert, of one window [L, E] or several [T, L, E]: a
            torch tensor of any type and device, a numpy array or nested lists. A layer with no load
            is spread evenly; a window in which a layer has none counts for nothing there. Arrays
            are planned for as they are given. Of a `LoadTrace` of several windows, forecasts are
            tried first, each scored by what came next (`eplb.backtest`), and the best says what to
            plan for, as `eplb plan` does; `notes` tells which it was.
        cluster: the GPUs and their slots; at least E slots.
        num_groups: groups that the model routes by. Where the nodes divide them, each group stays
            on one node, equally many on each: where the busiest node is lightest, for several
            windows in expectation, and in layers of up to 16 slots elsewhere where that was found
            to lower the peak. Otherwise experts go anywhere.
        weights: [T] what the windows of an array count, None for all alike.
        current: the placement that runs, of this cluster or of one with other GPUs or slots: GPUs
            keep their numbers, those added or alive again hold nothing, those taken away are the
            last, and any may be dead now that was alive in it (`Cluster.without`). Where it
            and a `LoadTrace` both number their layers, rows are taken by number. None to plan
            afresh.
        max_moves: most moves from `current` in all layers together, None for any number.
        move_cost: what the peak of a layer is to fall by at least for each move, in the unit of the
            loads. None for 0.05 % of the mean GPU load, or for nothing where there is a budget.
        dispatch: the rule by which tokens are split over the copies of their expert: "even";
            "best" for placements of which each batch is split best, as `eplb.dispatch` does; or
            "sglang" or "ascend", the rules of these engines.
        batch: the batches that are split, where they are smaller than windows; with "best" alone,
            or with an objective other than "tokens".
        objective: what is kept low on the busiest GPU: "tokens"; "activated", the experts that it
            touches in a step; or "time". The last two are of steps of `batch`, under an even or a
            best split and without `traffic`.
        gpu: whose time it is, a name that `eplb.cost` knows, or figures.
        model: the same; None for the model that a `LoadTrace` names, or else one that is known to
            have as many experts and the `top_k` of the batch.
        traffic: how tokens are routed and what it is worth that they cross fewer nodes. With a
            price, groups need not stay on their nodes; without one, other nodes are counted.
        pins: what placements must keep to: experts on GPUs or nodes, pairs apart, numbers of
            copies. For an even or a best split, and without a price of nodes. Where GPUs have died
            too, moves have the usual price, and no budget of their own.
        effort: "fast", "default" or "thorough": fixed amounts of work, each several times the one
            before. "fast" with a current placement and several windows plans nothing afresh.
        threads: most threads to use, None for one a processor.

    Raises:
        LoadsError: loads that are not [L, E] or [T, L, E], or hold values that are not finite or
            below 0; several windows of which none has any load; weights of another number, or
            below 0.
        ClusterError: fewer slots than experts, groups that do not divide the experts, or GPUs that
            differ where the rule of dispatch is that of an engine.
        PlacementError: a current placement of other layers or experts.
        OptionError: another effort; a negative number of moves or cost, or one of the two without
            a current placement; a budget with which not every expert would have a slot; weights
            of a LoadTrace, whose windows a forecast weighs; a rule of dispatch that is not known,
            or that of an engine with a current placement; a batch with another rule than "best",
            without a `top_k` that is known, or, from a current placement, of ranks that split for
            themselves; pins that no placement keeps, or that do not go with what is planned for.
    """
    check_effort(effort)
    check_dispatch(dispatch)
    check_objective(objective, batch, dispatch, traffic)
    if objective == "tokens":
        check_batch(batch, dispatch, current)
    again = partial(
        plan, cluster=cluster, num_groups=num_groups, max_moves=max_moves, move_cost=move_cost,
        dispatch=dispatch, effort=effort, threads=threads,
    )  # fmt: skip
    if isinstance(loads, LoadTrace):
        if weights is not None:
            raise OptionError(
                "weights go with arrays: the windows of a LoadTrace are weighed by a forecast; "
                "plan for its loads to weigh them yourself"
            )
        trace = loads.merged()
        expected = expected_of(
            trace, cluster, num_groups=num_groups, effort=effort, threads=threads
        )
        if isinstance(traffic, Traffic):
            traffic = with_sources(traffic, trace, cluster.num_nodes)
        made = again(
            expected.scenarios.loads,
            weights=expected.scenarios.weights,
            current=_at_layers_of(trace, current),
            batch=None if batch is None else batch.of(trace.num_experts, trace.top_k),
            objective=objective,
            gpu=gpu,
            model=MODELS.get(loads.model or "") if model is None else model,
            traffic=traffic,
            pins=pins.at_layers(trace.layers) if isinstance(pins, Pins) else pins,
        )
        merged = None if trace.merging is None else trace.merging.words
        said = [merged, expected.words, *made.notes]
        placement = replace(made.placement, layers=trace.layers)
        return replace(made, placement=placement, notes=tuple(filter(None, said)))
    kept: Any = pins
    if objective != "tokens" and pins is not None:
        # The hottest experts are those with the most load, whatever is kept low.
        by_load = check_problem(loads, cluster, num_groups, weights, threads)
        kept = check_pins(by_load, pins, dispatch).pinned
    if objective == "time" and batch is not None:
        windows = check_windows(loads)
        clock = clock_of(batch, gpu, model, cluster, windows.shape[2])
        again = partial(again, weights=weights, current=current, pins=kept)
        weight = check_weights(None if weights is None else as_array(weights), len(windows))
        return _plan_for_time(again, windows, weight, clock, dispatch, moving=current is not None)
    if objective == "activated" and batch is not None:
        windows = check_windows(loads)
        loads, batch = activated(windows, batch.of(windows.shape[2])), None
    problem = check_problem(loads, cluster, num_groups, weights, threads)
    if batch is not None:
        batch = batch.of(problem.loads.shape[1])
    if kept is not None:
        problem = check_pins(problem, kept, dispatch)
    at_price = None
    if traffic is not None:
        num_layers, num_experts = problem.loads.shape
        check_traffic(traffic, num_layers, num_experts, problem.num_groups, cluster.num_nodes)
        at_price = None if traffic.price is None else traffic
    if at_price is not None:
        problem = replace(check_price(problem, dispatch), nodes=1)
    if current is None:
        if max_moves is not None or move_cost is not None:
            raise OptionError("max_moves and move_cost need a current placement to move from")
        layers = solve_for(problem, effort, dispatch, batch)
        if at_price is not None:
            layers = solve_at_price(problem, layers, effort, at_price)
        settled = layers.phy2log, np.ldexp(layers.peaks, problem.exponent)
        return _plan_of(problem, layers.bounds, *settled, 0, dispatch, objective, traffic)
    if dispatch not in WALKED:
        raise OptionError(
            f'dispatch is "{dispatch}" with a current placement: give "even" or "best", plans for '
            "the rule of an engine are made from scratch"
        )
    num_layers, num_experts = problem.loads.shape
    current = check_current(current, num_layers, num_experts)
    max_moves, move_cost = check_moves(max_moves, move_cost)
    of_deaths = None
    if max_moves is None and move_cost is None:
        max_moves = of_deaths = budget_of_deaths(problem, current)
    with np.errstate(over="ignore"):
        price = np.ldexp(np.full(num_layers, move_cost or 0.0), -problem.exponent)
        price *= problem.speed
    # No peak is so high.
    np.minimum(price, _DEAREST, out=price)
    if move_cost is None and max_moves is None:
        price = DEFAULT_MOVE_COST * problem.loads.sum(axis=1) / problem.cluster.num_gpus
    # A plan made afresh for many windows takes longer than all that follows.
    afresh = effort != "fast" or problem.windows.shape[0] == 1 or at_price is not None
    layers = solve_for(problem, effort, dispatch, batch) if afresh else solve_mean(problem, effort)
    if batch is not None:
        problem = draw_batches(problem, batch).problem
    if not afresh and dispatch == "best":
        layers = replace(layers, bounds=split_bounds(problem))
    walked = partial(
        relocate, problem, current, layers,
        afresh=afresh, rule=dispatch, budget=max_moves, price=price,
    )  # fmt: skip
    relocation = walked()
    if at_price is not None:
        layers = solve_at_price(problem, layers, effort, at_price)
        relocation = walk_at_price(relocation, current, layers, effort, at_price, max_moves)
    elif of_deaths is not None and dispatch == "even":
        relocation = eased(relocation)
    chosen = choose(relocation, max_moves, price)
    settled = settle(relocation, chosen)
    only_budget = max_moves is not None and move_cost is None
    may_fill = only_budget and at_price is None and pins is None
    came = came_empty(problem, current) if may_fill else None
    if came is not None:
        full = walked(filled=came)
        instead = choose(full, max_moves, price)
        of_full = settle(full, instead)
        if of_full[1].sum() < settled[1].sum():
            relocation, chosen, settled = full, instead, of_full
    moved = moves(relocation, chosen)
    made = _plan_of(problem, layers.bounds, *settled, moved, dispatch, objective, traffic)
    return replace(made, lost=current.lost_on(cluster)) if cluster.dead else made


def what_is_left(
    current: Placement, cluster: Cluster, loads: F64, threads: int | None = None
) -> Placement:
    """What serves where GPUs have died, until anything moves: the copies that are left, and the
    experts that died with their last copy where the fewest moves put them. The placement itself
    where none has died, or where more has changed than that.

    Args:
        current: the placement that ran.
        cluster: the cluster now.
        loads: [L, E] or [T, L, E] tokens routed to each logical expert.
        threads: most threads to use.

    Raises:
        EplbError: as for `plan`.
    """
    had = current.cluster
    same = (had.num_gpus, had.slots_per_gpu) == (cluster.num_gpus, cluster.slots_per_gpu)
    if not same or set(cluster.dead) <= set(had.dead):
        return current
    left = replace(had.without(cluster.dead), num_nodes=cluster.num_nodes)
    lost = len(current.lost_on(left))
    if not lost:
        return current.without(cluster.dead)
    mean = loads if loads.ndim == 2 else loads.mean(axis=0)
    return plan(
        mean, left, current=current, max_moves=lost, effort="fast", threads=threads
    ).placement


def check_batch(batch: object, dispatch: str, current: object) -> None:
    """A batch that plans are made for, or None.

    Raises:
        OptionError: anything else, or one that does not go with the rule or a current placement.
    """
    if batch is None:
        return
    if not isinstance(batch, Batch):
        raise OptionError(f"batch is {batch!r}: give an eplb.Batch, or None for whole windows")
    if dispatch != "best":
        raise OptionError(
            f'batch goes with dispatch="best", and dispatch is {dispatch!r}: other rules split '
            "batches of any size alike"
        )
    if current is not None and not batch.together:
        raise OptionError(
            "batch is of ranks that split for themselves, with a current placement: give "
            "together=True (--batch ...,together), or plan from scratch"
        )


def _plan_for_time(
    again: Callable[[F64], Plan],
    windows: F64,
    weight: F64,
    clock: Clock,
    dispatch: str,
    *,
    moving: bool,
) -> Plan:
    """The best of plans for tokens, for experts touched, and for the time that experts take in the
    first: in each layer, or of all layers where these share what may be moved.
    """
    made = again(windows)
    weighed = clock.weigh(made.placement, windows, dispatch), activated(windows, clock.batch)
    plans = [made, *map(again, weighed)]
    counted = weight[:, None] * windows.any(axis=2)
    counted /= np.where(counted.any(axis=0), counted.sum(axis=0), 1.0)
    peaks = np.array([
        (counted * clock.seconds(each.placement, windows, dispatch)).sum(axis=0) for each in plans
    ])  # fmt: skip
    layers = np.arange(peaks.shape[1])
    best = peaks.argmin(axis=0)
    if moving:
        best[:] = peaks.sum(axis=1).argmin()
        made = plans[best[0]]
    else:
        rows = np.stack([each.placement.phy2log for each in plans])[best, layers]
        placement = Placement(rows, made.placement.num_experts, clock.cluster)
        made = replace(made, placement=placement)
    peak = peaks[best, layers]
    bound = np.minimum((counted * clock.least(windows)).sum(axis=0), peak)
    for array in (peak, bound):
        array.flags.writeable = False
    notes = (*made.notes, clock.note)
    return replace(made, peak=peak, bound=bound, objective="time", notes=notes)


def _at_layers_of(trace: LoadTrace, current: Placement | None) -> Placement | None:
    """What runs, its rows at the layers of the loads, by the numbers that both may have."""
    if not isinstance(current, Placement) or trace.layers is None or current.layers is None:
        return current
    row_of = {layer: row for row, layer in enumerate(current.layers)}
    idle = dict(zip(trace.layers, trace.dense, strict=True))
    missing = [layer for layer in trace.layers if layer not in row_of and not idle[layer]]
    if missing:
        raise PlacementError(
            f"current has layers {ranges(current.layers)}, the loads {ranges(trace.layers)}, and "
            f"it has none for layer {ranges(missing)}: give the placement of this model"
        )
    # A layer without load that it does not have is as engines start.
    start = Placement.contiguous(1, current.num_experts, current.cluster).phy2log
    rows = np.concatenate([current.phy2log, start])[[row_of.get(each, -1) for each in idle]]
    return Placement(rows, current.num_experts, current.cluster, trace.layers)


def _plan_of(
    problem: Problem,
    bounds: F64,
    phy2log: I64,
    peaks: F64,
    moved: int,
    dispatch: str,
    objective: str,
    traffic: Traffic | None,
) -> Plan:
    """The plan of slots [L, P], with the other nodes of a token where the traffic is known."""
    peaks = peaks / problem.speed
    # Rounding may leave a proven bound above the peak that attains it.
    bounds = np.minimum(np.ldexp(bounds / problem.speed, problem.exponent), peaks)
    placement, others = problem.placement(phy2log), None
    if traffic is not None:
        at = problem.num_groups, problem.whole.num_nodes
        others = others_of(problem.loads, placement.phy2log, traffic, *at)
    for array in (peaks, bounds, others):
        if array is not None:
            array.flags.writeable = False
    return Plan(
        placement, peaks, bounds, moved, problem.notes, dispatch,
        other_nodes=others, objective=objective,
    )  # fmt: skip


def warmup(dispatch: str = "even") -> None:
    """Compile every kernel of plans, or load it from disk, so that no later plan waits for that.

    Servers call this when they start. What is compiled is kept beside the package, or in the
    user's cache where that cannot be written, so only the first process on a machine compiles.

    Args:
        dispatch: the rule that plans and figures are made under: `"even"`, `"best"`, `"sglang"` or
            `"ascend"`. The kernels of every other rule, and those for GPUs that differ, for pins
            and for a price of nodes, are compiled when they are first used, and kept too.

    Raises:
        OptionError: an unknown rule.

    Example:
        >>> import eplb
        >>> eplb.warmup()
    """
    from eplb.solver.jit import compiling

    # Two slots on a GPU and loads this uneven need every pass.
    loads = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
    both = np.stack([loads, loads[:, ::-1]])
    cluster = Cluster(num_gpus=8, num_nodes=2, slots_per_gpu=2)
    smaller = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=4)
    with compiling():
        for num_groups in (1, 4):
            made = plan(loads, cluster, num_groups=num_groups)
            plan(both, cluster, num_groups=num_groups)
            plan(both, cluster, num_groups=num_groups, current=made.placement)
            plan(both, cluster, num_groups=num_groups, current=made.placement, max_moves=1)
            plan(loads, smaller, num_groups=num_groups, current=made.placement)
        plan(loads, cluster.without([0]), current=made.placement)
        if dispatch != "even":
            for windows in (loads, both):
                plan(windows, cluster, dispatch=dispatch)
                if dispatch in WALKED:
                    plan(windows, cluster, dispatch=dispatch, current=made.placement)
