"""Plans for windows of which each is split best: placements that leave a split much freedom."""

import numpy as np

from eplb.cluster import check_pairs
from eplb.planning.batches import Batch, draw_batches
from eplb.planning.passes import gather, keep_better, solve
from eplb.planning.pinned import pinned_bounds
from eplb.planning.problem import Effort, Layers, Problem
from eplb.solver.arrays import F64, I64
from eplb.solver.threads import run_kernel

_EFFORT = {"fast": 0.3, "default": 1.0, "thorough": 8.0}
_EFFORT_ALONE = {"fast": 0.9, "default": 3.0, "thorough": 12.0}
"""The same where one window is all there is."""
_STEPS, _MORE_STEPS = 350, 50_000
"""Changes that the search tries in a layer, the second number divided by its slots, times the
effort (docs/experiments.md, dispatch)."""
_HEAT, _HEATED = 0.04, 1000
"""What a change may be for the worse at first, as a share of what is left to gain, in searches of
so many steps for several windows: copies of one alone would be fitted too well."""
_WINDOWS = {"fast": 48, "default": 128, "thorough": 128}
"""Windows that are planned for, about: those that there are, and wider copies of them."""
_SLACK = 0.005
"""What the expected peak may be above the lowest that was found, as a share of it, for the sake of
windows that were not seen."""
_SLACK_ALONE = 0.0005
"""The same of one window, whose bound is met where slots are enough."""
_ROUNDING = 1e-10
"""Peaks nearer to each other than this, as a share, are the same."""

_AT_ONCE = (1, 1)
"""Layers that a thread takes at a time, least and most."""
_LEVELLED_AT_ONCE = (1, 8)
"""The same where they are only levelled."""


def solve_best_split(problem: Problem, effort: Effort, batch: Batch | None = None) -> Layers:
    """Plan every layer for windows of which each is split best, or for batches of that kind drawn
    from them, from the plans for an even split, and never worse than those.

    Raises:
        ClusterError: so many slots and experts that the search's tables would not fit memory.
    """
    check_pairs(problem.loads.shape[1], problem.cluster.num_held, "slots")
    return bend(problem, solve(problem, effort), effort, batch)


def bend(problem: Problem, even: Layers, effort: Effort, batch: Batch | None = None) -> Layers:
    """Change plans for an even split so that they suit the best one."""
    from eplb.solver.level_search import _place_layers

    parts = None
    whole = planned = problem
    if batch is not None:
        drawn = draw_batches(problem, batch)
        problem = planned = drawn.problem
        if not batch.together:
            # The search levels all ranks together, so whether ranks apart gain is for other
            # batches to say.
            drawn = draw_batches(whole, batch, again=True)
            problem, parts = drawn.problem, drawn.parts
    cluster, num_windows = problem.cluster, problem.windows.shape[0]
    bounds = split_bounds(problem)
    alone = num_windows == 1
    times = _EFFORT_ALONE[effort] if alone else _EFFORT[effort]
    steps = int(times * (_STEPS + _MORE_STEPS // cluster.num_held))
    heat = _HEAT if steps >= _HEATED and not alone else 0.0
    num_wide = max(1, round(_WINDOWS[effort] / num_windows))
    narrow, wide = even.phy2log.copy(), even.phy2log.copy()
    mean = np.einsum("tl,tle->l", problem.weight, planned.windows) / cluster.num_gpus
    enough = levelled_peaks(planned, narrow) / np.maximum(mean, np.finfo(float).tiny)
    run_kernel(
        _place_layers, problem.loaded, _AT_ONCE, problem.threads, planned.task, _width(problem),
        num_wide, steps, heat, enough, narrow, wide,
    )  # fmt: skip
    even_peaks = levelled_peaks(problem, even.phy2log, parts)
    layers = Layers(even.phy2log, even_peaks.copy(), bounds)
    keep_better(layers, narrow, levelled_peaks(problem, narrow, parts))
    if alone:
        full = _fill(problem, layers)
        keep_better(layers, full, levelled_peaks(problem, full))
    peaks = levelled_peaks(problem, wide, parts)
    # What bends better may be a little worse for what was seen, but no plan for an even split is
    # better.
    slack = 0.0 if parts is not None else _SLACK_ALONE if alone else _SLACK
    kept = peaks <= np.minimum(layers.peaks * (1.0 + slack), even_peaks * (1.0 + _ROUNDING))
    layers.phy2log[kept], layers.peaks[kept] = wide[kept], peaks[kept]
    return layers


def _fill(problem: Problem, layers: Layers) -> I64:
    """[L, P] plans that fill every GPU to the mean, in layers of which no more experts have load
    than there are GPUs, and a slot on each GPU is to spare; the plans there are in all others, and
    in those that are filled already.

    Each GPU takes the lightest of the experts that are left, and as much of the heaviest as it has
    room for: two slots (A. J. Walker, "An efficient method for generating discrete random
    variables with general distributions", 1977).
    """
    cluster, (num_layers, num_experts) = problem.cluster, problem.loads.shape
    num_gpus, num_slots = cluster.num_gpus, cluster.num_held
    full: I64 = layers.phy2log.copy()
    free = problem.nodes == 1 and problem.pinned is None and cluster.speed is None
    size = num_slots // num_gpus
    if not free or set(cluster.capacity) != {size} or num_slots < num_experts + num_gpus:
        return full
    for layer in range(num_layers):
        load = problem.windows[0, layer].copy()
        if not 0 < np.count_nonzero(load) <= num_gpus:
            continue
        if layers.peaks[layer] <= layers.bounds[layer] * (1.0 + _ROUNDING):
            continue
        mean = load.sum() / num_gpus
        order: list[int] = np.argsort(load, kind="stable").tolist()
        left, on = order[-num_gpus:], []
        for _ in range(num_gpus):
            left.sort(key=load.__getitem__)
            light = [left.pop(0)] if len(left) > 1 and load[left[0]] <= mean else []
            on.append([left[-1], *light])
            load[left[-1]] = max(0.0, load[left[-1]] - (mean - load[light].sum()))
        held = {expert for gpu in on for expert in gpu}
        rest = [expert for expert in order if expert not in held]
        for gpu in on:
            while len(gpu) < size and rest:
                gpu.append(rest.pop())
            others = [expert for expert in order[::-1] if expert not in gpu]
            gpu.extend((others + gpu)[: size - len(gpu)])
        full[layer] = np.concatenate(on)
    return full


def split_bounds(problem: Problem) -> F64:
    """[L] proven: no plan has a lower expected peak, however tokens are split."""
    from eplb.solver.level_search import _bound_levelled

    bounds = np.zeros(problem.loads.shape[0])
    gather(problem, bounds)
    _bound_levelled(problem.loaded, problem.task, bounds)
    return np.maximum(bounds, pinned_bounds(problem))


def _width(problem: Problem) -> float:
    """How wide the copies of windows are that are planned for: the wider, the more slots there are
    to spare, .15 with one on a GPU, or .25 of a window alone, and .5 with two (docs/experiments.md,
    dispatch).
    """
    cluster, (num_windows, _, num_experts) = problem.cluster, problem.windows.shape
    spare: float = (cluster.num_held - num_experts) / cluster.num_gpus
    return min(0.5, max(0.25 if num_windows == 1 else 0.15, 0.35 * spare - 0.2))


def levelled_peaks(problem: Problem, phy2log: I64, parts: F64 | None = None) -> F64:
    """[L] the expected peak of slots [L, P] where each window is split best, or each of the `parts`
    [T * R, L, E] that make up the windows.
    """
    from eplb.solver.level import _level_layers

    windows = problem.windows if parts is None else parts
    num_windows, num_layers, _ = windows.shape
    load = np.empty((num_windows, num_layers, problem.cluster.num_gpus))
    split, bounds = np.empty((0, *phy2log.shape)), np.empty((num_windows, num_layers))
    run_kernel(
        _level_layers, np.arange(num_layers), _LEVELLED_AT_ONCE, problem.threads, windows, phy2log,
        problem.gpus, parts is None, load, split, bounds,
    )  # fmt: skip
    load = load.reshape(len(problem.windows), -1, num_layers, problem.cluster.num_gpus).sum(axis=1)
    peaks = np.zeros(num_layers)
    for weight, peak in zip(problem.weight, load.max(axis=2), strict=True):
        peaks += weight * peak
    return peaks
