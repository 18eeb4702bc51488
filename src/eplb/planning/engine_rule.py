"""Plans for the rules by which engines dispatch: which GPUs stand on which node, and the order of
slots, decide what part of an expert's tokens each of its copies takes.
"""

import numpy as np

from eplb.placement import Placement, spread
from eplb.planning.best_split import split_bounds
from eplb.planning.passes import solve
from eplb.planning.problem import Effort, Layers, Problem
from eplb.solver.arrays import F64, I64
from eplb.solver.threads import run_kernel

_EFFORT = {"fast": 0.25, "default": 1.0, "thorough": 10.0}
_STEPS, _MORE_STEPS = 4000, 8
"""Changes that the search tries in a layer, the second number for each slot, times the effort
(docs/experiments.md, dispatch)."""
_WINDOWS = 32
"""Windows for which a search tries so many changes; it tries fewer for more, in as much time."""
_CAUTION = 0.75
"""Standard deviations by which a copy's part that SGLang draws counts as more than expected
(docs/experiments.md, dispatch)."""

_AT_ONCE = (1, 1)
"""Layers that a thread takes at a time, least and most."""


def solve_engine_rule(problem: Problem, effort: Effort, rule: str) -> Layers:
    """Plan every layer for an engine's rule, from the plans for an even split, and over all layers
    never worse than those by the engine's own table. Peaks are the table's.
    """
    from eplb.solver.engine_rules import ASCEND, SGLANG
    from eplb.solver.rule_search import _rule_layers

    even = solve(problem, effort)
    number = {"sglang": SGLANG, "ascend": ASCEND}[rule]
    steps = int(_EFFORT[effort] * (_STEPS + _MORE_STEPS * problem.cluster.num_slots))
    steps = min(steps, _WINDOWS * steps // problem.windows.shape[0])
    found = even.phy2log.copy()
    run_kernel(
        _rule_layers, problem.loaded, _AT_ONCE, problem.threads, problem.task, number, _CAUTION,
        problem.cluster.num_nodes, steps, found,
    )  # fmt: skip
    bounds = split_bounds(problem)
    even_peaks = _peaks(problem, even.phy2log, rule)
    peaks = _peaks(problem, found, rule)
    worse = peaks > even_peaks
    if worse.any():
        found[worse] = even.phy2log[worse]
        # What SGLang draws for a layer depends on those before it.
        peaks = _peaks(problem, found, rule)
    if peaks.sum() > even_peaks.sum():
        found, peaks = even.phy2log, even_peaks
    return Layers(found, peaks, bounds)


def _peaks(problem: Problem, phy2log: I64, rule: str) -> F64:
    """[L] the expected peak of slots [L, P] by the engine's own table, as many tokens coming from
    each GPU that is alive.
    """
    whole = problem.whole
    placement = Placement._trusted(spread(phy2log.copy(), whole), problem.loads.shape[1], whole)
    peaks = np.zeros(len(phy2log))
    for weight, window in zip(problem.weight, problem.windows, strict=True):
        peaks += weight * placement.gpu_load(window, rule).max(axis=1)
    return peaks
