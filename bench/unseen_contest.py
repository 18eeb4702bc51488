"""Everybody in one cell of several windows: ours, the sum of the windows and peers take turns."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from race import Runner
from score import score
from unseen_cells import Cell, Loads

import eplb
from eplb import Cluster
from eplb.checks import in_one_line
from eplb.planning.problem import Effort
from eplb.replaying.policies import Peer, load_peer, phy2log_of

__all__ = [
    "DEFAULT", "THOROUGH", "Contender", "Row", "load_all", "measure", "of_ours", "of_peer",
    "references", "scaled",
]  # fmt: skip

DEFAULT, THOROUGH = "ours, default", "ours, thorough"
EVEN = "ours for an even split"
_KINDS = ("rebalance_windows", "rebalance_experts")

_MANY_CASES = 12
"""A cell with more cases than this has calls enough in one turn."""
_MOST_SECONDS = 20.0
"""A planner that has spent this in a cell has no further turn, so that a slow one ends some day."""


@dataclass(frozen=True)
class Contender:
    """A planner: `prepare` makes the arguments of `call` from [T, L, E] and a cluster, untimed."""

    name: str
    prepare: Callable[[Loads, Cluster], tuple[Any, ...]]
    call: Callable[..., Any]
    ours: bool


@dataclass(frozen=True)
class Row:
    """One planner in one cell; where `failed` says why it gave nothing, the rest is None.

    Attributes:
        part: of the cell; so are `cell`, `gpus`, `slots` and `recorded`.
        windows: T of its cases.
        who: the planner.
        ours: whether it is this project's.
        failed: the error that it raised.
        balancedness: mean GPU load / max GPU load, mean over layers and over all loads scored.
        ms: median time of a call.
        fastest_ms: least time of a call.
        duplicates: slots with a second copy of an expert on a GPU, in all plans.
    """

    part: str
    cell: str
    gpus: int
    recorded: bool
    windows: int
    who: str
    ours: bool
    failed: str | None = None
    balancedness: float | None = None
    ms: float | None = None
    fastest_ms: float | None = None
    duplicates: int | None = None
    slots: int | None = None


def scaled(windows: Loads) -> Loads:
    """[T, L, E] windows of which each has the same total in a layer: their mean total."""
    total = windows.sum(axis=2, keepdims=True)
    factor = np.divide(total.mean(axis=0), total, out=np.zeros_like(total), where=total > 0.0)
    made: Loads = windows * factor
    return made


def _sum(windows: Loads) -> Loads:
    made: Loads = scaled(windows).sum(axis=0)
    return made


def of_ours(name: str, effort: Effort, threads: int, dispatch: str = "even") -> Contender:
    """`eplb.plan` on the windows, as they are: it scales them itself."""
    call = partial(eplb.plan, effort=effort, threads=threads, dispatch=dispatch)
    return Contender(name, lambda seen, cluster: (seen, cluster), call, ours=True)


def references(threads: int, dispatch: str = "even") -> list[Contender]:
    """What a plan from the sum of the windows reaches: ours, and the version started from; where
    another rule is scored, also what our plan for an even split does.
    """
    from eplb.solver.greedy import greedy

    def seed(loads: Loads, cluster: Cluster) -> NDArray[np.int64]:
        return greedy(loads, cluster, 1, swaps=True)

    def prepare(seen: Loads, cluster: Cluster) -> tuple[Loads, Cluster]:
        return _sum(seen), cluster

    plan = partial(eplb.plan, threads=threads)
    even = [of_ours(EVEN, "default", threads)] if dispatch != "even" else []
    return [
        *even,
        Contender("ours on the sum", prepare, plan, ours=True),
        Contender("seed on the sum", prepare, seed, ours=False),
    ]


def of_peer(peer: Peer) -> Contender:
    """A peer: on the scaled windows where it takes windows, otherwise on their sum."""
    import torch

    make = scaled if peer.kind == "rebalance_windows" else _sum

    def prepare(seen: Loads, cluster: Cluster) -> tuple[Any, ...]:
        return torch.from_numpy(make(seen)), cluster.num_slots, 1, 1, cluster.num_gpus

    return Contender(peer.name, prepare, peer.function, ours=False)


def load_all(paths: Sequence[Path]) -> list[Peer]:
    """Load each file's `rebalance_windows`, or else its `rebalance_experts`.

    Raises:
        PolicyError: a file that is not there, that raises when it is imported, or has neither.
    """
    peers: list[Peer] = []
    for path in paths:
        with contextlib.redirect_stdout(sys.stderr):
            peer = load_peer(path, _KINDS)
        same = sum(other.name.split(" ")[0] == peer.name for other in peers)
        name = f"{peer.name} {same + 1}" if same else peer.name
        peers.append(Peer(name, peer.kind, peer.function))
    return peers


def measure(cell: Cell, contenders: Sequence[Contender], turns: int) -> list[Row]:
    """Let everybody plan all cases of a cell, in `turns` turns, and score what they gave.

    A contender's cases follow each other, so that at most the first call of a turn is disturbed by
    threads that the one before has left running.
    """
    if len(cell.cases) > _MANY_CASES:
        turns = 1
    lanes = [
        [Runner(who.name, partial(who.prepare, case.seen, cell.cluster), who.call, who.ours)
         for case in cell.cases]
        for who in contenders
    ]  # fmt: skip
    for lane in lanes:
        lane[0].run()  # compiled and warm
    for turn in range(turns):
        for lane in lanes:
            if turn and sum(sum(runner.seconds) for runner in lane) > _MOST_SECONDS:
                continue
            for runner in lane:
                if any(other.failed for other in lane):
                    break
                seconds, runner.result = runner.run()
                runner.seconds.append(seconds)
    return [_row(cell, lane) for lane in lanes]


def _row(cell: Cell, lane: list[Runner]) -> Row:
    seen = cell.cases[0].seen
    row = partial(
        Row, cell.part, cell.name, cell.cluster.num_gpus, cell.recorded, len(seen), lane[0].name,
        lane[0].ours,
    )  # fmt: skip
    failed = next((runner.failed for runner in lane if runner.failed is not None), None)
    if failed is not None:
        return row(failed)
    ratios, duplicates = [], 0
    try:
        for runner, case in zip(lane, cell.cases, strict=True):
            given = runner.result
            if isinstance(given, eplb.Plan):
                given = given.placement.phy2log
            phy2log = phy2log_of(given, seen.shape[1], cell.cluster.num_slots)
            scores = [score(loads, phy2log, cell.cluster.num_gpus, 1, 1) for loads in case.scored]
            duplicates += scores[0].duplicates
            peaks = [each.peak for each in scores]
            if cell.dispatch != "even":
                placement = eplb.Placement(phy2log, seen.shape[2], cell.cluster)
                peaks = list(placement.gpu_load(case.scored, cell.dispatch).max(axis=2))
            ratios += [
                each.mean[each.peak > 0.0] / peak[each.peak > 0.0]
                for each, peak in zip(scores, peaks, strict=True)
            ]
    except ValueError as error:
        return row(in_one_line(error))
    seconds = [second for runner in lane for second in runner.seconds]
    return row(
        balancedness=float(np.concatenate(ratios).mean()),
        ms=statistics.median(seconds) * 1e3,
        fastest_ms=min(seconds) * 1e3,
        duplicates=duplicates,
        slots=cell.cluster.num_slots,
    )
