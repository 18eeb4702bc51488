"""Moving little: balancedness by moves on recorded loads, beside those who plan afresh.

    python bench/moves.py --traces ../shared/traces --peer path/to/eplb.py --check

A peer is a file with `rebalance_experts` as DeepSeek's, or with `rebalance_from`, which gets
phy2log of what runs as its sixth argument; or a wheel of vLLM. `--check` judges the bars; the waves
of a migration are judged by bench/migrate.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar
from moves_peers import Replanner, best_within, built_in, load_replanner, point_of
from numpy.typing import NDArray
from options import OneLineParser, positive
from race import Load
from tables import show_bars

import eplb
from eplb import Cluster, Frontier, Placement, Plan, synthetic
from eplb.planning.plan import DEFAULT_MOVE_COST

_CLUSTER = Cluster(num_gpus=32, slots_per_gpu=9)
_FROM, _PREFILL, _DECODE = "prefill_in512", "prefill_in2048", "decode_in500out1500"
_BALANCED = 0.98
_POINTS, _MANY_POINTS = 20, 200
_MOST_PLAN, _MOST_FRONTIER = 0.025, 0.150
_REPEATS = 7
_ROUNDING = 1e-12
_SPLIT_BEST = {288: (0.02, 0.04), 320: (0.0, 0.01)}
"""Slots, and the shares of them that may be moved at each change where batches are split best."""

_GPT_OSS, _SMALL, _EVERY = "gptoss20b_domains_2048.npz", Cluster(num_gpus=8, slots_per_gpu=5), 4
_LEAST_BALANCE, _MOST_MOVES = 0.98, 0.15

_MANY_GPUS = Cluster(num_gpus=256, slots_per_gpu=2)
_MOST_GPUS = Cluster(num_gpus=1024, slots_per_gpu=4)
_MANY_LAYERS, _MANY_WINDOWS, _FEW_WINDOWS = 8, 16, (1, 4)
_MOST_WORK, _MOST_ABOVE = 3.0, 1.005
_WITHOUT_LIMIT = 1.5474
"""Peak and price of the moves there, in mean GPU loads, when a walk had no limit of work and took
30 times as long as a plan from scratch."""


@dataclass(frozen=True)
class Change:
    """Loads that have become others.

    Attributes:
        name: of the change.
        loads: [L, E] the loads now.
        share: of all slots, that may be moved.
    """

    name: str
    loads: NDArray[np.float64]
    share: float


def changes(traces: Path | None, cluster: Cluster = _CLUSTER) -> tuple[Placement, list[Change]]:
    """The placement that runs, and what the loads become: recorded, or made."""
    if traces is None:
        first, prefill, decode = (synthetic.deepseek_v3(seed=seed) for seed in (1, 2, 3))
    else:
        first, prefill, decode = (_loads(traces, name) for name in (_FROM, _PREFILL, _DECODE))
    noise = np.random.default_rng(0).lognormal(0.0, 0.05, first.shape)
    return eplb.plan(first, cluster).placement, [
        Change(f"to {_PREFILL}", prefill, 0.09),
        Change(f"to {_DECODE}", decode, 0.12),
        Change("5 % noise", first * noise, 0.025),
        Change("unchanged", first, 0.0),
    ]


def _loads(traces: Path, name: str) -> NDArray[np.float64]:
    trace = eplb.load_trace(traces / "deepseek_v3" / f"{name}.json")
    loads: NDArray[np.float64] = trace.loads[0][~trace.dense]
    return loads


def least_moves(old: Placement, change: Change, *, judged: bool) -> Iterator[Bar]:
    """The least share of slots that reaches the balance, and what the share allowed reaches."""
    slots = old.phy2log.size
    curve = eplb.frontier(change.loads, _CLUSTER, old, points=_MANY_POINTS)
    enough = curve.reach(_BALANCED)
    share = None if enough is None else float(curve.moves[enough]) / slots
    yield Bar(
        f"{change.name}: least share of slots for {_BALANCED}",
        f"at most {change.share:.1%}",
        "not reached" if share is None else f"{share:.2%}",
        share is not None and share <= change.share,
        judged=judged,
    )
    made = eplb.plan(change.loads, _CLUSTER, current=old, max_moves=int(change.share * slots))
    balance = made.placement.balancedness(change.loads)
    yield Bar(
        f"{change.name}: plan with {change.share:.1%} of slots to move",
        f"at least {_BALANCED}",
        f"{balance:.4f}, {made.moves} moves ({made.moves / slots:.2%})",
        balance >= _BALANCED,
        judged=judged,
    )


def split_best(traces: Path | None) -> Iterator[Bar]:
    """The least share of slots that reaches the balance where each batch is split best."""
    for slots, shares in _SPLIT_BEST.items():
        cluster = Cluster(num_gpus=32, slots_per_gpu=slots // 32)
        old, changed = changes(traces, cluster)
        for change, share in zip(changed, shares, strict=False):
            curve = eplb.frontier(change.loads, cluster, old, points=_MANY_POINTS, dispatch="best")
            enough = curve.reach(_BALANCED)
            least = None if enough is None else float(curve.moves[enough]) / old.phy2log.size
            kept = ", ".join(
                f"{rule} {old.balancedness(change.loads, rule):.4f}" for rule in ("even", "best")
            )
            yield Bar(
                f"{change.name}, {slots} slots, split best: least share of slots for {_BALANCED}",
                f"at most {share:.1%}",
                f"{'not reached' if least is None else f'{least:.2%}'} (kept: {kept})",
                least is not None and least <= share,
                judged=traces is not None,
            )


def times(old: Placement, change: Change) -> Iterator[Bar]:
    """Of a plan with that share to move, and of a frontier, on two threads."""
    budget = int(change.share * old.phy2log.size)
    for what, most, call in (
        (
            f"plan with {change.share:.1%} to move",
            _MOST_PLAN,
            lambda: eplb.plan(change.loads, _CLUSTER, current=old, max_moves=budget, threads=2),
        ),
        (
            f"frontier of {_POINTS} points",
            _MOST_FRONTIER,
            lambda: eplb.frontier(change.loads, _CLUSTER, old, points=_POINTS, threads=2),
        ),
    ):
        seconds = _seconds(call)
        yield Bar(
            f"{change.name}: time of a {what}, two threads",
            f"at most {most * 1e3:g} ms",
            f"{min(seconds) * 1e3:.1f} ms at best, {np.median(seconds) * 1e3:.1f} median",
            min(seconds) <= most,
        )


def _seconds(
    call: Callable[[], Any],
    repeats: int = _REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    seconds = []
    for _ in range(repeats):
        begin = clock()
        call()
        seconds.append(clock() - begin)
    return seconds


def beside_peers(old: Placement, change: Change, peers: Sequence[Replanner]) -> Iterator[Bar]:
    """At the moves of each peer, the frontier of 20 points is no worse than it."""
    curve = eplb.frontier(change.loads, _CLUSTER, old, points=_POINTS)
    points = _points(curve)
    for peer in peers:
        point = point_of(peer, change.loads, old)
        what = f"{change.name}: frontier at the moves of {peer.name}"
        if point.failed is not None:
            yield Bar(what, "-", f"{peer.name} failed: {point.failed}", met=False)
            continue
        ours = best_within(points, point.moves)
        fewest = curve.reach(point.balancedness - _ROUNDING)
        share = "-" if fewest is None else f"{curve.moves[fewest] / old.phy2log.size:.1%}"
        yield Bar(
            what,
            f"{point.balancedness:.4f} at {point.moves / old.phy2log.size:.1%} of slots",
            f"{ours:.4f}; as good at {share}",
            ours >= point.balancedness - _ROUNDING,
        )


def _points(curve: Frontier) -> list[tuple[int, float]]:
    return list(zip(curve.moves.tolist(), curve.balancedness.tolist(), strict=True))


def windows(traces: Path | None, number: int | None) -> Iterator[Bar]:
    """gpt-oss's windows: what moving little, seldom, keeps of re-planning at each of them."""
    if traces is None:
        trace = synthetic.trace("gpt-oss-20b", num_windows=number or 105, tokens_per_window=2048)
    else:
        trace = eplb.load_trace(traces / _GPT_OSS)
        trace = trace.pick(range(min(number or trace.num_windows, trace.num_windows)))
    each = eplb.replay(trace, _SMALL, "eplb")
    moves = int(each.moves[1:].sum())
    for policy in ("moving", "deciding"):
        found = eplb.replay(trace, _SMALL, policy, every=_EVERY)
        balance = found.average() / each.average()
        share = int(found.moves[1:].sum()) / max(moves, 1)
        judged = policy == "moving" and traces is not None and number is None
        met = balance >= _LEAST_BALANCE and share <= _MOST_MOVES
        yield Bar(
            f"{trace.num_windows} windows of gpt-oss, {policy} every {_EVERY} windows, of afresh "
            "every window",
            f"{_LEAST_BALANCE:.0%} of balance, {_MOST_MOVES:.0%} of moves" if judged else "-",
            f"{balance:.2%} ({found.average():.4f} of {each.average():.4f}), {share:.2%} of "
            f"{moves:,} moves",
            met,
            judged=judged,
        )


def without_a_budget() -> Iterator[Bar]:
    """Two slots on each of many GPUs, and a load that has become another; with few windows and
    other clusters, whose plans from scratch take very little, beside it.
    """
    yield from _of_work(_MANY_GPUS, 256, _MANY_LAYERS, _MANY_WINDOWS, _WITHOUT_LIMIT)
    for num_windows in _FEW_WINDOWS:
        yield from _of_work(_MANY_GPUS, 256, _MANY_LAYERS, num_windows)
        yield from _of_work(_CLUSTER, 256, 2 * _MANY_LAYERS, num_windows)
        yield from _of_work(_MOST_GPUS, 1024, 1, num_windows)


def _of_work(
    cluster: Cluster, num_experts: int, num_layers: int, num_windows: int, limit: float = np.inf
) -> Iterator[Bar]:
    """The work of a plan from what runs, and its peak and the price of its moves beside those who
    move all or nothing; judged where what it was without a limit of work is known.
    """
    rng = np.random.default_rng(0)
    shape = (num_layers, num_experts)
    loads = rng.lognormal(0.0, 0.8, shape) * rng.lognormal(0.0, 0.3, (num_windows, *shape))
    old = eplb.plan(rng.lognormal(0.0, 0.8, shape), cluster, effort="fast").placement
    windows = "1 window" if num_windows == 1 else f"{num_windows} windows"
    what = f"{windows}, {cluster.num_slots:,} slots on {cluster.num_gpus:,} GPUs"
    judged = bool(np.isfinite(limit))

    def scratch() -> Plan:
        return eplb.plan(loads, cluster, threads=1)

    def moving() -> Plan:
        return eplb.plan(loads, cluster, current=old, threads=1)

    # Processor time: other programs do not count.
    both = [_seconds(call, 3, time.process_time) for call in (scratch, moving)]
    ratio = min(both[1]) / min(both[0])
    yield Bar(
        f"{what}: work of a plan without a budget, of a plan from scratch",
        f"at most {_MOST_WORK:g} times",
        f"{ratio:.2f} times",
        ratio <= _MOST_WORK,
        judged=judged,
    )
    unit = loads.sum(axis=2).mean(axis=0) / cluster.num_gpus

    def cost(made: Plan) -> float:
        moves = made.placement.moves_from(old) / num_layers
        return float((made.peak / unit).mean()) + DEFAULT_MOVE_COST * moves

    keeping = eplb.plan(loads, cluster, current=old, max_moves=0, effort="fast")
    most = _MOST_ABOVE * min(cost(keeping), cost(scratch()), limit)
    yield Bar(
        f"{what}: peak and price of the moves, in mean GPU loads",
        f"at most {most:.4f}",
        f"{cost(moving()):.4f}",
        cost(moving()) <= most,
        judged=judged,
    )


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/moves.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--peer", action="append", type=Path, default=[], metavar="FILE", help="beside ours")
    add("--traces", type=Path, metavar="DIR", help="recorded loads; made ones without")
    add("--windows", type=positive, help="only so many windows of gpt-oss")
    add("--only", choices=["moves", "best", "times", "peers", "work", "windows"], help="one part")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    load = Load()
    try:
        bars = list(_bars(options))
    except eplb.EplbError as error:
        parser.error(str(error))
    others = load.others()
    if options.json:
        print(json.dumps({"others_busy": others, "bars": [asdict(bar) for bar in bars]}))
    else:
        show_bars(bars)
        if others is not None:
            print(f"processors that other programs kept busy meanwhile: {others:.2f}")
    return 1 if options.check and any(bar.missed for bar in bars) else 0


def _bars(options: argparse.Namespace) -> Iterator[Bar]:
    wanted = options.only
    peers = [*built_in(), *(load_replanner(path) for path in options.peer)]
    if wanted in (None, "best"):
        yield from split_best(options.traces)
    if wanted not in ("best", "work", "windows"):
        old, changed = changes(options.traces)
        for change in changed:
            if wanted in (None, "moves"):
                yield from least_moves(old, change, judged=options.traces is not None)
            if wanted in (None, "times"):
                yield from times(old, change)
            if wanted in (None, "peers"):
                yield from beside_peers(old, change, peers)
    if wanted in (None, "work"):
        yield from without_a_budget()
    if wanted in (None, "windows"):
        yield from windows(options.traces, options.windows)


if __name__ == "__main__":
    sys.exit(main())
