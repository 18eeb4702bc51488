"""Everybody in one cell: ours and the peers take turns, then one scorer judges what they gave."""

from typing import Any

import numpy as np
import torch
from cells import Cell, custom
from numpy.typing import NDArray
from race import Load, Runner, race
from report import CellReport, Growth, Row
from score import Score, least_node_load, score

import eplb
from eplb.checks import in_one_line
from eplb.replaying.policies import Peer, phy2log_of

__all__ = ["compare", "grow"]

_ROUNDING = 1e-9
"""Difference, of 1, that is rounding."""
_MOST_SECONDS, _SECONDS_OF_A_TRACE = 10.0, 2.0
"""Seconds of a cell that one planner may spend, so that a slow peer ends some day."""
_TURNS_OF_A_TRACE = 3


def compare(cell: Cell, peers: list[Peer], threads: list[int], turns: int) -> CellReport:
    """Let everybody plan one cell, in `turns` turns; ours on each number of `threads`.

    Recorded loads are there for balance: their times take fewer turns.
    """
    if cell.from_trace:
        turns = min(turns, _TURNS_OF_A_TRACE)
    plans = [_planner(cell, number) for number in threads]
    runners = [*plans, _drop_in(cell, "ours, drop-in", eplb.rebalance_experts, ours=True)]
    runners += [_drop_in(cell, peer.name, peer.function, ours=False) for peer in peers]
    load = Load()
    race(runners, turns, _SECONDS_OF_A_TRACE if cell.from_trace else _MOST_SECONDS)
    others = load.others()
    made = [runner.result for runner in plans if runner.failed is None]
    bound = made[0].bound if made else None
    least = None
    grouped = cell.num_nodes > 1 and cell.num_groups % cell.num_nodes == 0
    if grouped:
        least = least_node_load(cell.loads, cell.num_groups, cell.num_nodes)
    scores = [_score(cell, runner) for runner in runners]
    return CellReport(
        name=cell.name,
        layers=cell.loads.shape[0],
        experts=cell.loads.shape[1],
        slots=cell.num_slots,
        gpus=cell.num_gpus,
        groups=cell.num_groups,
        nodes=cell.num_nodes,
        others=others,
        rows=[
            Row(runner.name, runner.ours, runner.failed)
            if scored is None
            else Row(
                runner.name,
                runner.ours,
                balancedness=scored.balancedness,
                duplicates=scored.duplicates,
                groups_kept=scored.groups_kept if grouped else None,
                same_plan=np.array_equal(runner.result, runners[0].result) if runner.ours else None,
                **_times(runner, runners),
                **_gaps(scored, bound, least),
            )
            for runner, scored in zip(runners, scores, strict=True)
        ],
    )


def grow(first: str, large: str, threads: list[int], turns: int) -> list[Growth]:
    """Time ours per slot in a large cell and in the first one, on each number of `threads`."""
    found = []
    for number in threads:
        cells = custom(first), custom(large)
        runners = [_planner(cell, number) for cell in cells]
        race(runners, turns, _MOST_SECONDS)
        first_ns, large_ns = (
            runner.median * 1e9 / (cell.loads.shape[0] * cell.num_slots)
            for runner, cell in zip(runners, cells, strict=True)
        )
        ratio = large_ns / first_ns
        found.append(Growth(runners[0].name, first, large, first_ns, large_ns, ratio))
    return found


def _planner(cell: Cell, threads: int) -> Runner:
    """`eplb.plan` on some threads."""
    cluster = eplb.Cluster.with_slots(cell.num_slots, cell.num_gpus, cell.num_nodes)

    def call() -> eplb.Plan:
        return eplb.plan(cell.loads, cluster, num_groups=cell.num_groups, threads=threads)

    return Runner(f"ours, {threads} thread{'s' if threads > 1 else ''}", tuple, call, ours=True)


def _drop_in(cell: Cell, name: str, function: Any, *, ours: bool) -> Runner:
    """A function with the signature of DeepSeek's `rebalance_experts`."""
    loads = torch.from_numpy(cell.loads)
    counts = (cell.num_slots, cell.num_groups, cell.num_nodes, cell.num_gpus)
    # A new tensor for each call: a peer may write into its argument.
    return Runner(name, lambda: (loads.clone(), *counts), function, ours)


def _score(cell: Cell, runner: Runner) -> Score | None:
    """Score what a runner gave, and keep its phy2log; what is no placement counts as failed."""
    if runner.failed is not None:
        return None
    plan = runner.result if isinstance(runner.result, eplb.Plan) else None
    try:
        given = runner.result if plan is None else plan.placement.phy2log
        runner.result = phy2log_of(given, cell.loads.shape[0], cell.num_slots)
        scored = score(cell.loads, runner.result, cell.num_gpus, cell.num_groups, cell.num_nodes)
        if plan is not None and not np.allclose(plan.peak, scored.peak, rtol=_ROUNDING, atol=0.0):
            raise ValueError("the plan's peak is not that of its placement")
    except Exception as error:
        runner.failed = in_one_line(error)
        return None
    return scored


def _times(runner: Runner, runners: list[Runner]) -> dict[str, Any]:
    """The times of a row, and each peer's over them."""
    rivals = [other for other in runners if not other.ours and other.failed is None]
    return {
        "ms": runner.median * 1e3,
        "fastest_ms": runner.fastest * 1e3,
        "ratio": {rival.name: rival.median / runner.median for rival in rivals},
        "fastest_ratio": {rival.name: rival.fastest / runner.fastest for rival in rivals},
    }


def _gaps(
    scored: Score, bound: NDArray[np.float64] | None, least: NDArray[np.float64] | None
) -> dict[str, Any]:
    """The gaps of a row: to the bound of each layer, and of groups to their best place."""
    found: dict[str, Any] = {}
    loaded = scored.peak > 0.0
    if bound is not None and loaded.any():
        gap = scored.peak[loaded] / bound[loaded] - 1.0
        found.update(gap_mean=float(gap.mean()), gap_worst=float(gap.max()))
        even = gap[bound[loaded] <= scored.mean[loaded] * (1.0 + _ROUNDING)]
        if even.size:
            found.update(even_gap_mean=float(even.mean()), even_gap_worst=float(even.max()))
    if least is not None and loaded.any():
        above = scored.node_peak[loaded] / least[loaded] - 1.0
        found["node_gap"] = max(float(above.max()), 0.0)
    return found
