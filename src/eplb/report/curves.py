"""Curves of a report: balancedness against spare slots, windows planned for, moves, and nodes.

Each is a sample of bounded size, so that a long trace costs as much as one of some tens of windows.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eplb.cost.models import Model
from eplb.dispatching.rules import TABLES
from eplb.moving.frontier import frontier
from eplb.placement import Placement
from eplb.planning.backtest import HELD_OUT
from eplb.planning.forecast import HISTORY, Forecast, Recent, in_no_order
from eplb.planning.plan import plan
from eplb.planning.traffic import Traffic, mean_other_nodes
from eplb.replaying.compare import compare
from eplb.replaying.policies import Forecasted
from eplb.replaying.sizing import SPARE, evenly, fewest_slots, size
from eplb.report.figures import (
    Missing,
    MoveCurve,
    Moved,
    NodeCurve,
    NodePoint,
    Spare,
    Splits,
    Windows,
)
from eplb.report.sample import Asked

_PLANS = 8
"""Plans of each point of a curve, at most."""
_SCORED = 64
"""Windows that a placement is scored on, where there are more."""
_HELD_OUT = 16
"""Windows up to which each is held out in turn."""
_SPLIT_PLANS = 4
"""Plans of each figure on rules of dispatch, at most."""
_POINTS = 16
_ENOUGH = 0.9
_PRICES = (0.0, 0.01, 0.1, 1.0)
"""Of a node: from what costs no balance to where balance gives way (docs/nodes.md)."""


def measure_splits(asked: Asked, rule: Forecast) -> Splits | Missing:
    """What each rule of dispatch makes of plans, and of plans that are made for it."""
    trace = asked.trace
    if len(trace) == 1:
        return Missing("the trace has one window")
    if not asked.cluster.even:
        return Missing("the GPUs differ, and plans for them are for an even split alone")
    engine = asked.dispatch if asked.dispatch in TABLES else next(iter(TABLES))
    found = compare(
        trace,
        asked.cluster,
        {"plan": Forecasted(rule, threads=asked.threads)},
        num_groups=asked.num_groups,
        every=-(-(len(trace) - 1) // _SPLIT_PLANS) if trace.ordered else -(-len(trace) // HELD_OUT),
        dispatch=["even", engine, "best"],
    )
    placed = {name: values[0] for name, values in found.placed_for.items()}
    return Splits(
        found.scores[0].plans,
        engine,
        *(values[0] for values in found.balancedness_under.values()),
        *(value for value in placed.values() if value is not None),
    )


def measure_spare(
    asked: Asked, rule: Forecast, model: Model | None, progress: Callable[[int, int], object]
) -> Spare:
    """Balancedness against spare slots on each GPU, those of the cluster among them."""
    trace, cluster = asked.trace, asked.cluster
    least = fewest_slots(trace.num_experts, cluster)
    chosen = cluster.slots_per_gpu - least
    # More slots than experts gain nothing, but may be what was asked for.
    within = {number for number in SPARE if least + number <= trace.num_experts}
    found = size(
        trace,
        cluster,
        sorted(within | {chosen}),
        num_groups=asked.num_groups,
        dispatch=asked.dispatch,
        forecast=rule,
        model=model,
        threads=asked.threads,
        progress=progress,
    )
    return Spare(**vars(found), chosen=[each.spare for each in found.points].index(chosen))


def measure_windows(asked: Asked, progress: Callable[[int, int], object]) -> Windows | Missing:
    """Balancedness on a window that was not planned for, against the windows planned for."""
    trace = asked.trace
    total = trace.num_windows
    if total < 3:
        return Missing(
            "the trace has one window"
            if total == 1
            else "3 windows are needed to hold one out and plan for two"
        )
    in_order = trace.ordered and total > _HELD_OUT
    if in_order:
        longest = min(HISTORY, total // 2)
        held = [longest + each for each in evenly(total - longest, _PLANS)]
    elif total > _HELD_OUT:
        longest, held = min(HISTORY, total - 1), evenly(total, _PLANS).tolist()
    else:
        longest, held = total - 1, list(range(total))
    numbers = [1 << power for power in range(longest.bit_length()) if 1 << power < longest]
    points = []
    rule = Recent(longest) if trace.ordered else in_no_order(Recent())
    for done, number in enumerate([*numbers, longest]):
        scores = []
        for window in held:
            # Held out in turn, the windows before the first are the last ones.
            before = [(window - back) % total for back in range(number, 0, -1)]
            made = asked.plan(rule(trace.loads[before])).placement
            if trace.loads[window].any():
                scores.append(made.balancedness(trace.loads[window], asked.dispatch))
        points.append((number, float(np.mean(scores)) if scores else 1.0))
        progress(done + 1, len(numbers) + 1)
    return Windows(tuple(points), len(held), in_order)


def measure_moves(
    asked: Asked, current: Placement | None, rule: Forecast, command: Callable[[int], str]
) -> MoveCurve | Missing:
    """Balancedness against moves from the placement that runs; `command` makes so many."""
    if current is None:
        return Missing("no placement that runs was given (give --current)")
    loads = asked.trace.loads
    moe = ~asked.trace.dense
    most = int(np.count_nonzero(moe)) * asked.cluster.num_held
    placements = _frontier(asked, loads, current, rule)
    if not placements:
        return Missing("the windows to plan for have no load")
    unseen: list[float | None] = [None] * len(placements)
    moves = [int(each.moves_by_layer(current)[moe].sum()) for each in placements]
    if len(loads) > 1:
        half = len(loads) // 2
        # Of workloads by name, the second half would be those of other names.
        shown, held = loads[:half], loads[half:]
        if not asked.trace.ordered:
            shown, held = loads[1::2], loads[::2]
        earlier = _frontier(asked, shown, current, rule)
        later = held[evenly(len(held), _SCORED)]
        # Of two frontiers the points differ: read off the other one at the same moves.
        heights = [each.balancedness(later, asked.dispatch) for each in earlier]
        at = [int(each.moves_by_layer(current)[moe].sum()) for each in earlier]
        if earlier:
            unseen = [float(np.interp(each, at, heights)) for each in moves]
    points = [
        Moved(number, number / max(1, most), each.balancedness(asked.seen, asked.dispatch), other)
        for number, each, other in zip(moves, placements, unseen, strict=True)
    ]
    # What plans gain on windows that they have seen chooses no moves, but of one window.
    reached = [each.seen if each.unseen is None else each.unseen for each in points]
    goal = reached[0] + _ENOUGH * (max(reached) - reached[0])
    enough = next(index for index, each in enumerate(reached) if each >= goal)
    return MoveCurve(tuple(points), enough, command(points[enough].moves))


def measure_nodes(
    asked: Asked, traffic: Traffic, rule: Forecast, named: dict[str, Placement]
) -> NodeCurve:
    """Balancedness against other nodes of a token: of placements by name, and of fast plans with
    experts anywhere, with groups on nodes and at rising prices.
    """
    cluster = asked.cluster
    expected = rule(asked.trace.loads)

    def point(name: str, placement: Placement) -> NodePoint:
        others = mean_other_nodes(placement, asked.seen, traffic, num_groups=asked.num_groups)
        score = placement.balancedness(asked.seen, asked.dispatch)
        return NodePoint(name, score, others)

    def planned(name: str, num_groups: int, price: float | None) -> NodePoint:
        made = plan(
            expected.loads,
            cluster,
            num_groups=num_groups,
            weights=expected.weights,
            traffic=None if price is None else replace(traffic, price=price),
            effort="fast",
            threads=asked.threads,
        )
        return point(name, made.placement)

    others = [point(*each) for each in named.items()]
    if not expected.loads.any():
        return NodeCurve(tuple(others), ())
    others.append(planned("experts anywhere", 1, None))
    if asked.num_groups > 1 and asked.num_groups % cluster.num_nodes == 0 and cluster.even:
        others.append(planned("groups on nodes", asked.num_groups, None))
    alike = cluster.even and not cluster.dead
    priced = [planned(f"price {price:g}", asked.num_groups, price) for price in _PRICES if alike]
    return NodeCurve(tuple(others), tuple(priced))


def _frontier(
    asked: Asked, loads: NDArray[np.float64], current: Placement, rule: Forecast
) -> tuple[Placement, ...]:
    """Placements from no moves to all that gain; none where there is no load to plan for."""
    expected = rule(loads)
    if not expected.loads.any():
        return ()
    return frontier(
        expected.loads,
        asked.cluster,
        current,
        num_groups=asked.num_groups,
        weights=expected.weights,
        points=_POINTS,
        dispatch=asked.dispatch,
        threads=asked.threads,
    ).placements
