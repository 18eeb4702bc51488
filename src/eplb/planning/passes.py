"""The planner's passes over layers, each over threads: a problem in, plans of its layers out.

Each pass is compiled when it is first needed.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from eplb.planning.pinned import heed, must_heed, pinned_bounds
from eplb.planning.problem import Effort, Layers, Problem
from eplb.solver.arrays import F64, I64, B
from eplb.solver.threads import run_kernel

if TYPE_CHECKING:  # numba is loaded when it is needed
    from eplb.solver.search import Drive, Steps

_STEPS = {"fast": 0, "default": 20, "thorough": 300}
"""Steps of the search for each effort."""
_MOST_LOOKS = 200_000
"""Looks at a slot or an expert in a window, for each step of the effort, that a search of a layer
may take, so that its time is bounded whatever the size."""
_MOST_LOOKS_ALONE = 16_000
"""The same for one window, by default: else a search on 1,024 GPUs takes four times as long as all
before, for .0003 of balancedness (docs/experiments.md, the search)."""
_FEW_LOOKS = 13_000
_MORE_STEPS = 60
"""Where a layer is small or windows are few, there are more steps, as many as take so many looks
for each step of the effort, up to so many times as many, divided by the windows."""
_SMALL = 16
"""Layers of at most so many slots are searched from many starts, since from one a search soon finds
no more (docs/experiments.md, the search)."""
_STEPS_FROM_A_START = 20
_MOST_STARTS = {"fast": 0, "default": 24, "thorough": 200}
"""Steps of such a search, and most starts: fewer where there would be more steps in all than one
search from one start may make."""
_MOST_GROUPED_STARTS = {"fast": 0, "default": 60, "thorough": 200}
_GROUPED_ROUNDS = 3
"""The same with groups on nodes, where most starts are of other groups on a node, and rounds of
starts, each from the best of the rounds before (docs/experiments.md, the search)."""
_FEWEST_STEPS = 8
"""Where the looks allow fewer steps than this, they would change little: none is made."""
_WORTH_A_SEARCH = 1.5e-3
"""Peak over bound, less 1, from which a layer is searched: a search takes many times as long as
all before, and gains little below that (docs/experiments.md, replica counts)."""
_WORTH_A_SHORT_SEARCH = 1e-3
"""The same where a step of the search is at most so many looks that it hardly takes longer."""
_SHORT_LOOKS = 1000
_WORTH_A_SEARCH_UNEVEN = 4e-3
_LONGER_UNEVEN = 15
"""The same where GPUs differ in slots or speed, and how many times as many steps such a search of
one window has: few layers need it (docs/experiments.md, GPUs that differ)."""
_STEPS_FROM_PINS = 2
_PATIENCE_FROM_PINS = 0.25
"""Most steps from plans that came to keep pins, in slots of a layer, and the share of them for
which they go on without a gain."""

_ROUNDING = 1e-9
"""Peaks of small layers that are nearer to each other than this, as a share, are the same."""
_QUICK = (4, 8)
"""Layers that a thread takes at a time, least and most, where each takes microseconds."""
_FEW = (1, 4)
"""The same where each takes less than a millisecond."""
_SLOW = (1, 1)
"""The same where each takes longer than starting on it."""


def solve(problem: Problem, effort: Effort) -> Layers:
    """Plan every layer, for all windows."""
    layers = solve_mean(problem, effort)
    if problem.windows.shape[0] > 1:
        _solve_windows(problem, layers, effort)
    elif effort != "fast":
        _search(problem, layers, np.flatnonzero(_above(layers, _worth(problem, effort))), effort)
    if _is_small(problem):
        _restart(problem, layers, effort)
    return layers


def peaks_of(problem: Problem, layers: I64, phy2log: I64) -> F64:
    """[L] the expected peak of slots [L, P] in some layers, 0 in others."""
    from eplb.solver.layers import _peak_layers

    peaks = np.zeros(phy2log.shape[0])
    _peak_layers(layers, problem.task, phy2log, peaks)
    return peaks


def step_memory(num_layers: int, most_steps: int) -> Steps:
    """Memory for the steps of a search."""
    from eplb.solver.search import Steps

    return Steps(
        np.zeros(num_layers, np.int64),
        np.zeros(num_layers, np.int64),
        np.zeros((num_layers, most_steps + 1), np.int64),
        np.full((num_layers, most_steps + 1), np.inf),
        np.empty((num_layers, most_steps, 2), np.int64),
        np.empty((num_layers, most_steps, 2), np.int64),
    )


def _of_mean(problem: Problem) -> Problem:
    """The same for the mean of the windows."""
    num_layers = problem.loads.shape[0]
    return replace(problem, windows=problem.loads[None], weight=np.ones((1, num_layers)))


def solve_mean(problem: Problem, effort: Effort) -> Layers:
    """Plan every layer for the mean of the windows, and those again that are far from their bound,
    without a search; peaks are the mean's.
    """
    from eplb.solver.bounds import _raise_bounds
    from eplb.solver.recount import FEW_SLOTS, _recount_layers

    num_layers = problem.loads.shape[0]
    layers = Layers.of_slots((num_layers, problem.cluster.num_held))
    expert_of = gather(_of_mean(problem), layers.bounds)
    _first_pass(problem, layers, expert_of)
    if problem.pinned is not None:
        must_heed(problem, layers.phy2log)
        mean = _of_mean(problem)
        np.maximum(layers.bounds, pinned_bounds(mean), out=layers.bounds)
        _descend(mean, layers)
        return layers
    far = _above(layers, FEW_SLOTS)
    if far.any() and problem.cluster.even and effort != "fast":
        run_kernel(
            _raise_bounds, np.flatnonzero(far), _SLOW, problem.threads, problem.loads,
            problem.cluster.num_gpus, problem.cluster.slots_per_gpu, layers.peaks, layers.bounds,
        )  # fmt: skip
        run_kernel(
            _recount_layers, np.flatnonzero(far & _above(layers, _near_enough(problem))), _SLOW,
            problem.threads, problem.loads, problem.nodes, problem.gpus, *layers.filled,
        )  # fmt: skip
    return layers


def _descend(problem: Problem, layers: Layers) -> None:
    """Go on from plans by changes that lower the excess, as long as there are any."""
    from eplb.solver.layers import NEAR_ENOUGH
    from eplb.solver.search import Drive

    num_layers, num_slots = layers.phy2log.shape
    drive = Drive(False, False, NEAR_ENOUGH, _PATIENCE_FROM_PINS)
    enough, most = layers.bounds * (1.0 + NEAR_ENOUGH), np.full(num_layers, num_slots)
    limits = np.zeros(num_layers), enough, most
    _go_on(problem, layers, problem.loaded, drive, _STEPS_FROM_PINS * num_slots, limits)


def _go_on(
    problem: Problem,
    layers: Layers,
    which: I64,
    drive: Drive,
    most_steps: int,
    limits: tuple[F64, F64, I64],
) -> None:
    """Search from the plans of some layers, and take the best state of all; `limits` are the bounds
    [L], the peaks [L] that are enough, and the most moves or steps [L].
    """
    from eplb.solver.search import _follow_layers, _search_layers

    num_layers, num_experts = problem.loads.shape
    anywhere = np.ones((1, problem.cluster.num_gpus, num_experts), np.bool_)
    steps, free = step_memory(num_layers, most_steps), np.zeros(num_layers)
    run_kernel(
        _search_layers, which, _FEW, problem.threads, problem.task, layers.phy2log, anywhere, drive,
        *limits, free, steps,
    )  # fmt: skip
    _follow_layers(steps, steps.peaks.argmin(axis=1), layers.phy2log)
    layers.peaks[which] = peaks_of(problem, which, layers.phy2log)[which]


def _solve_windows(problem: Problem, layers: Layers, effort: Effort) -> None:
    """Plan layers with any load for the windows, from a plan for more than the mean where an
    expert's load varies; keep the plan for the mean where that is better.
    """
    loaded = problem.loaded
    mean = Layers(*(each.copy() for each in layers.filled))
    layers.peaks[:] = peaks_of(problem, loaded, layers.phy2log)
    varied = Layers.of_slots(mean.phy2log.shape)
    bounds = np.zeros_like(mean.bounds)
    expert_of = gather(problem, bounds)
    np.maximum(layers.bounds, bounds, out=layers.bounds)
    _first_pass(replace(problem, loads=_varied(problem)), varied, expert_of)
    if problem.pinned is not None:
        np.maximum(layers.bounds, pinned_bounds(problem), out=layers.bounds)
        must_heed(problem, varied.phy2log)
        _descend(_of_mean(replace(problem, loads=_varied(problem))), varied)
    found = Layers(varied.phy2log, peaks_of(problem, loaded, varied.phy2log), layers.bounds)
    _search(problem, found, loaded, effort, smooth=True)
    if effort != "fast":
        # Where all that a search for the mean may gain there could be worth it.
        worth = layers.peaks * mean.bounds < found.peaks * mean.peaks
        worth &= _above(mean, _worth(problem, effort))
        _search(_of_mean(problem), mean, np.flatnonzero(worth), effort)
        keep_better(layers, mean.phy2log, peaks_of(problem, loaded, mean.phy2log))
    keep_better(layers, found.phy2log, found.peaks)


def refine(problem: Problem, phy2log: I64, bounds: F64, effort: Effort) -> None:
    """Search from slots [L, P] for better ones of which nodes hold nearly the same."""
    loaded = problem.loaded
    layers = Layers(phy2log, peaks_of(problem, loaded, phy2log), bounds)
    _search(problem, layers, loaded, effort, smooth=True)


def keep_better(layers: Layers, phy2log: I64, peaks: F64) -> None:
    """Take over the plans that are better."""
    better = peaks < layers.peaks
    layers.phy2log[better] = phy2log[better]
    layers.peaks[better] = peaks[better]


def _is_small(problem: Problem) -> bool:
    """Whether layers are searched from many starts."""
    return problem.cluster.num_held <= _SMALL


def _worth(problem: Problem, effort: Effort) -> float:
    """Peak over bound, less 1, from which a layer is searched."""
    if effort == "thorough" or _is_small(problem):
        return _near_enough(problem)
    if not problem.cluster.even:
        return _WORTH_A_SEARCH_UNEVEN
    return _WORTH_A_SHORT_SEARCH if looks(problem) <= _SHORT_LOOKS else _WORTH_A_SEARCH


def looks(problem: Problem) -> int:
    """Changes that a step of the search looks at, in each window."""
    slots_per_gpu, num_experts = problem.cluster.slots_per_gpu, int(problem.loads.shape[1])
    return problem.cluster.num_held * (2 * slots_per_gpu + 1) + slots_per_gpu * num_experts


def _search(
    problem: Problem, layers: Layers, which: I64, effort: Effort, *, smooth: bool = False
) -> None:
    """Search from the plans of some layers for better ones; with swaps under norms before it where
    `smooth`.
    """
    from eplb.solver.search import Drive

    most_steps = _most_steps(problem, effort)
    if _is_small(problem):
        np.minimum(most_steps, _STEPS_FROM_A_START, out=most_steps)
    if not which.size or not (most_steps.any() or smooth):
        return
    limits = layers.bounds, layers.bounds * (1.0 + _near_enough(problem)), most_steps
    drive = Drive(True, smooth, 0.0, 0.0)
    _go_on(problem, layers, which, drive, int(most_steps.max()), limits)


def _restart(problem: Problem, layers: Layers, effort: Effort) -> None:
    """Search small layers that are not proven best from other starts too, and keep the best. With
    groups on nodes there are more, and later ones start from the best of those before.
    """
    most, rounds = _MOST_STARTS[effort], 1
    if problem.nodes > 1:
        most, rounds = _MOST_GROUPED_STARTS[effort], _GROUPED_ROUNDS
    for number in range(rounds):
        starts = slice(most * number // rounds, most * (number + 1) // rounds)
        _search_again(problem, layers, effort, starts)


def _search_again(problem: Problem, layers: Layers, effort: Effort, starts: slice) -> None:
    """Search from the starts of some numbers, as far as they are affordable."""
    from eplb.solver.restarts import _shake_rows

    which = np.flatnonzero(_above(layers, _near_enough(problem)))
    affordable = _most_steps(problem, effort)[which] // _STEPS_FROM_A_START
    ends = np.clip(affordable, starts.start, starts.stop)
    rows = np.repeat(which, ends - starts.start)
    if not rows.size:
        return
    numbers = np.concatenate([np.arange(starts.start, end) for end in ends])
    phy2log = layers.phy2log[rows]
    # What groups trade their slots for would have other copies than were wished.
    num_groups = problem.num_groups if problem.nodes > 1 and problem.pinned is None else 1
    again = problem.of_layers(rows)
    _shake_rows(numbers, again.task, num_groups, phy2log)
    if again.pinned is not None:
        # Changes that break no pin lead to few others: half of the starts come to keep them anew.
        anew = phy2log.copy()
        _shake_rows(numbers, replace(again, pinned=None).task, num_groups, anew)
        kept = heed(again, anew, layers=np.flatnonzero(numbers % 2)) & (numbers % 2 == 1)
        phy2log[kept] = anew[kept]
    found = Layers(phy2log, np.empty(rows.size), layers.bounds[rows])
    _search(again, found, np.arange(rows.size), effort)
    for row, layer in enumerate(rows):
        if found.peaks[row] < layers.peaks[layer] * (1.0 - _ROUNDING):
            layers.phy2log[layer], layers.peaks[layer] = found.phy2log[row], found.peaks[row]


def _most_steps(problem: Problem, effort: Effort) -> I64:
    """[L] steps that a search may make, for the windows in which a layer has load."""
    steps, most_looks = _STEPS[effort], _MOST_LOOKS
    if effort == "default" and problem.windows.shape[0] == 1:
        if problem.cluster.even:
            most_looks = _MOST_LOOKS_ALONE
        else:
            steps *= _LONGER_UNEVEN
    num_windows = np.maximum((problem.weight > 0.0).sum(axis=0), 1)
    all_looks = looks(problem) * num_windows
    most = np.maximum(
        np.minimum(steps, most_looks * steps // all_looks),
        np.minimum(_MORE_STEPS * steps // num_windows, _FEW_LOOKS * steps // all_looks),
    )
    return np.where(most >= _FEWEST_STEPS, most, 0)


def gather(problem: Problem, bounds: F64) -> I64:
    """The experts of each node for the windows, [L, N, E / N], or [1, 1, E] where nodes do not
    matter; else `bounds` [L] become what that proves.
    """
    num_layers, num_experts = problem.loads.shape
    nodes = problem.nodes
    if nodes == 1:
        return np.arange(num_experts).reshape(1, 1, num_experts)
    from eplb.solver.groups import _gather_layers

    expert_of = np.empty((num_layers, nodes, num_experts // nodes), np.int64)
    run_kernel(
        _gather_layers, np.arange(num_layers), _QUICK, problem.threads, problem.windows,
        problem.weight, problem.num_groups, expert_of, bounds,
    )  # fmt: skip
    np.divide(bounds, problem.cluster.num_gpus // nodes, out=bounds)
    return expert_of


def _first_pass(problem: Problem, layers: Layers, expert_of: I64) -> None:
    every, given = np.arange(len(problem.loads)), (problem.gpus, *layers.filled)
    if problem.cluster.even:
        from eplb.solver.layers import _plan_layers

        run_kernel(_plan_layers, every, _QUICK, problem.threads, problem.loads, expert_of, *given)
    else:
        from eplb.solver.uneven import _plan_uneven_layers

        run_kernel(_plan_uneven_layers, every, _QUICK, problem.threads, problem.loads, *given)


def _above(layers: Layers, gap: float) -> B:
    """[L] whether a layer's peak is above its bound by more than a gap."""
    return layers.peaks > layers.bounds * (1.0 + gap)


def _near_enough(problem: Problem) -> float:
    """Peak over bound, less 1, at which a layer is done."""
    from eplb.solver.layers import NEAR_ENOUGH
    from eplb.solver.uneven import NEAR_ENOUGH_UNEVEN

    if _is_small(problem):
        return _ROUNDING
    return NEAR_ENOUGH if problem.cluster.even else NEAR_ENOUGH_UNEVEN


def _varied(problem: Problem) -> F64:
    """[L, E] the mean load of experts and a multiple of its standard deviation over windows: the
    largest of as many normal numbers as there are windows, as expected (Blom, 1958), to two
    decimals, so that it is the same on every host.
    """
    squares = np.zeros(problem.loads.shape[0])
    variance = np.zeros(problem.loads.shape)
    for count, window in zip(problem.weight, problem.windows, strict=True):
        squares += count**2
        variance += count[:, None] * (window - problem.loads) ** 2
    deviations = np.array([_deviations(1.0 / each) if each > 0.0 else 0.0 for each in squares])
    varied: F64 = problem.loads + deviations[:, None] * np.sqrt(variance)
    return varied


def _deviations(num_windows: float) -> float:
    """The largest of so many normal numbers."""
    largest = NormalDist().inv_cdf((num_windows - 0.375) / (num_windows + 0.25))
    return max(0.0, round(largest, 2))
