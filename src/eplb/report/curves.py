"""Curves of a report: balancedness against spare slots, windows planned for, and moves.

Each is a sample of bounded size, so that a long trace costs as much as one of some tens of windows.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Served
from eplb.cluster import Cluster
from eplb.moving.frontier import frontier
from eplb.placement import Placement
from eplb.planning.backtest import Schedule
from eplb.planning.forecast import HISTORY, Forecast, Recent
from eplb.report.figures import Missing, MoveCurve, Moved, Slots, Spare, Windows
from eplb.report.sample import Asked, evenly

__all__ = ["KNEE", "measure_moves", "measure_spare", "measure_windows"]

KNEE = 0.01
"""Balancedness that one more spare slot on each GPU is to gain."""

_SPARE = range(5)
_PLANS = 8
"""Plans of each point of a curve, at most, and windows that each is scored on."""
_SCORED = 64
"""Windows that a placement is scored on, where there are more."""
_HELD_OUT = 16
"""Windows up to which each is held out in turn."""
_POINTS = 16
_ENOUGH = 0.9


def measure_spare(
    asked: Asked, rule: Forecast, expert_bytes: int | None, progress: Callable[[int, int], object]
) -> Spare:
    """Balancedness against spare slots on each GPU, on the windows planned for and on others."""
    trace, cluster = asked.trace, asked.cluster
    experts = trace.num_experts
    least = next(size for size in count(1) if _of_size(cluster, size).num_held >= experts)
    # More slots than experts gain nothing, but may be what was asked for.
    within = {least + each for each in _SPARE if least + each <= trace.num_experts}
    sizes = sorted(within | {cluster.slots_per_gpu})
    points = []
    for number, size in enumerate(sizes):
        spared = _of_size(cluster, size)
        expected = rule(trace.loads)
        made = asked.plan(expected.loads, spared, expected.weights)
        unseen, served, plans = _served(asked, spared, rule)
        seen = made.balancedness(asked.seen, asked.dispatch)
        points.append(Slots(size - least, spared.num_held, seen, unseen))
        progress(number + 1, len(sizes))
    heights = [each.seen if each.unseen is None else each.unseen for each in points]
    layers = int(np.count_nonzero(~trace.dense))
    return Spare(
        tuple(points),
        sizes.index(cluster.slots_per_gpu),
        knee_of([each.spare for each in points], heights),
        served,
        plans,
        None if expert_bytes is None else expert_bytes * layers,
    )


def _of_size(cluster: Cluster, size: int) -> Cluster:
    """The same GPUs with other slots: so many on the largest, and as many more or fewer on each."""
    if cluster.slots is None:
        return replace(cluster, slots_per_gpu=size)
    more = size - cluster.slots_per_gpu
    return replace(cluster, slots=tuple(max(1, each + more) for each in cluster.slots))


def _served(asked: Asked, cluster: Cluster, rule: Forecast) -> tuple[float | None, int, int]:
    """Balancedness on windows after a few plans, each made from those before it and scored on a
    sample of those that it serves; how many windows and plans.
    """
    loads = asked.trace.loads
    if len(loads) == 1:
        return None, 0, 0
    every = -(-(len(loads) - 1) // _PLANS)
    found = []
    for before, after in Schedule(every).plans(len(loads)):
        expected = rule(loads[before])
        made = asked.plan(expected.loads, cluster, expected.weights)
        some = loads[after][evenly(after.stop - after.start, _PLANS)]
        found.append(made.serve(some, asked.dispatch))
    served = Served.joined(found)
    return served.average(), len(served.peak), len(found)


def knee_of(numbers: list[int], heights: list[float]) -> int:
    """The index after which no further point rises by `KNEE` for each slot more."""
    knee = 0
    for index in range(1, len(numbers)):
        rise = heights[index] - heights[knee]
        if rise >= KNEE * (numbers[index] - numbers[knee]):
            knee = index
    return knee


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
    in_order = total > _HELD_OUT
    if in_order:
        longest = min(HISTORY, total // 2)
        held = [longest + each for each in evenly(total - longest, _PLANS)]
    else:
        longest, held = total - 1, list(range(total))
    numbers = [1 << power for power in range(longest.bit_length()) if 1 << power < longest]
    points = []
    for done, number in enumerate([*numbers, longest]):
        scores = []
        for window in held:
            # Held out in turn, the windows before the first are the last ones.
            before = [(window - back) % total for back in range(number, 0, -1)]
            expected = Recent(number)(trace.loads[before])
            made = asked.plan(expected.loads, asked.cluster, expected.weights)
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
        earlier = _frontier(asked, loads[:half], current, rule)
        later = loads[half:][evenly(len(loads) - half, _SCORED)]
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
