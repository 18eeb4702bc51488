"""Clusters as they are: what plans reach where GPUs die, come and go, or differ.

    python bench/clusters.py --traces ../shared/traces --check

Where GPUs die, the plan that runs is for 32 GPUs of 10 slots and the same load, and the dead are
drawn at random. Where they come and go, each step begins where the one before ended. Where they
differ, slots and speeds are drawn, and the time is that of an even cluster of as many GPUs and, to
the next multiple, slots, planned in turn.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import OneLineParser, positive
from tables import show_bars

import eplb
from eplb import Cluster, Placement, synthetic

_RECORDED = (
    "decode_in500out1500",
    "decode_in1800out100",
    "prefill_in512",
    "prefill_in2048",
    "prefill_in500out1500",
    "prefill_in2000out100",
)
_CLUSTER = Cluster(num_gpus=32, slots_per_gpu=10)
_DEATHS = {1: 0.975, 2: 0.99, 4: 0.998}
"""GPUs that die, and the least balancedness after that."""
_BEST, _MOST_MOVES = 0.997, 1.5
_EVERY = 10
"""Of so many deaths, one is planned for the best split too, which takes seconds."""
_TOO_MANY, _MISSING = 8, "16 slots are missing"
_POINTS = 10

_SIZES, _SLOTS = (32, 40, 24, 32), 12
"""GPUs, step by step, and the slots of each."""
_MOST_ABOVE = 1.1
"""Moves of a step, in the least possible: the experts that no GPU left holds, and the slots that
are new."""
_RESIZED, _RESIZED_BEST = 0.99, 0.998

_UNEVEN_GPUS, _OF_SLOTS, _OF_SPEEDS = 32, (4, 16), (0.5, 2.0)
_UNEVEN, _UNEVEN_SMALL, _UNEVEN_TIME = 1.005, 1.02, 3.0
"""Peak over the mean, and over the optimum of a small layer, and time of an even cluster's plan."""
_SMALL_CASES = 200
_REPEATS = 3


def layers_of(traces: Path | None) -> list[NDArray[np.float64]]:
    """Loads [L, E] of DeepSeek-V3's MoE layers: recorded, or made."""
    if traces is None:
        return [synthetic.deepseek_v3(seed=seed) for seed in (1, 2)]
    found = (eplb.load_trace(traces / "deepseek_v3" / f"{name}.json") for name in _RECORDED)
    return [trace.loads[0][~trace.dense] for trace in found]


def deaths(loads: list[NDArray[np.float64]], cases: int, *, judged: bool) -> Iterator[Bar]:
    """GPUs die at random: every expert lives on, those that died are listed, and so many moves
    balance the rest so far, of the worst case and on average.
    """
    running = [eplb.plan(load, _CLUSTER).placement for load in loads]
    rng = np.random.default_rng(0)
    for died, least in _DEATHS.items():
        scores = np.array(
            [
                _one_death(loads, running, died, rng, for_best=not case % _EVERY)
                for case in range(-(-cases // len(_DEATHS)))
            ]
        )
        what = f"{died} of {_CLUSTER.num_gpus} GPUs die, {len(scores)} cases"
        for column, (name, bar, sign) in enumerate(
            (
                ("even split", least, 1.0),
                ("the same, split best", _BEST, 1.0),
                (f"planned for the best split, every {_EVERY}th", _BEST, 1.0),
                ("moves for each slot lost, of both", _MOST_MOVES, -1.0),
                ("experts lost and not listed, or without a slot", 0.0, -1.0),
            )
        ):
            values = scores[~np.isnan(scores[:, column]), column]
            worst = sign * float((sign * values).min())
            yield Bar(
                f"{what}: {name}",
                f"at {'least' if sign > 0.0 else 'most'} {bar:g}",
                f"{worst:.4f} in the worst, {values.mean():.4f} on average",
                sign * worst >= sign * bar - 1e-12,
                judged=judged,
            )


def _one_death(
    loads: list[NDArray[np.float64]],
    running: list[Placement],
    died: int,
    rng: np.random.Generator,
    *,
    for_best: bool,
) -> tuple[float, float, float, float, float]:
    """Balancedness of a plan for an even split, under it and split best, and of one for the best
    split, NaN where there is none; moves a slot lost, and experts amiss.
    """
    case = int(rng.integers(len(loads)))
    load, old = loads[case], running[case]
    dead = rng.choice(_CLUSTER.num_gpus, died, replace=False)
    cluster = _CLUSTER.without(dead)
    plans = [
        eplb.plan(load, cluster, current=old, dispatch=rule)
        for rule in ("even", "best")[: 1 + for_best]
    ]
    by_gpu = old.phy2log.reshape(len(load), _CLUSTER.num_gpus, -1)
    left = np.delete(by_gpu, dead, axis=1).reshape(len(load), -1)
    lost = {
        (layer, expert)
        for layer, row in enumerate(left)
        for expert in np.setdiff1d(np.arange(load.shape[1]), row).tolist()
    }
    amiss = 0
    for each in plans:
        new = each.placement.phy2log.reshape(len(load), _CLUSTER.num_gpus, -1)
        amiss += len(lost ^ set(map(tuple, each.lost.tolist())))
        amiss += int((new[:, dead] != -1).sum())
        amiss += sum(load.shape[1] - np.unique(row[row >= 0]).size for row in new)
    lost_slots = died * _CLUSTER.slots_per_gpu * len(load)
    even, best = (plans[0].placement.balancedness(load, rule) for rule in ("even", "best"))
    moves = max(each.placement.moves_from(old) for each in plans)
    return (
        even,
        best,
        plans[1].placement.balancedness(load, "best") if for_best else np.nan,
        moves / lost_slots,
        float(amiss),
    )


def too_many(load: NDArray[np.float64]) -> Iterator[Bar]:
    """So many die that the rest has too few slots."""
    old = eplb.plan(load, _CLUSTER).placement
    said = "a plan"
    try:
        eplb.plan(load, _CLUSTER.without(range(_TOO_MANY)), current=old)
    except eplb.ClusterError as error:
        said = str(error)
    yield Bar(f"{_TOO_MANY} GPUs die", _MISSING, said, _MISSING in said)


def curve(load: NDArray[np.float64]) -> Iterator[Bar]:
    """The frontier after a death begins at the fewest moves: the experts lost."""
    old, cluster = eplb.plan(load, _CLUSTER).placement, _CLUSTER.without([13])
    found = eplb.frontier(load, cluster, old, points=_POINTS)
    least = len(old.lost_on(cluster))
    ends = [
        f"{balance:.4f} at {moves}"
        for moves, balance in zip(found.moves[[0, -1]], found.balancedness[[0, -1]], strict=True)
    ]
    yield Bar(
        f"frontier of {len(found.moves)} points after GPU 13 died",
        f"from {least} moves on",
        " to ".join(ends),
        int(found.moves[0]) == least,
    )


def resizes(loads: list[NDArray[np.float64]], *, anywhere: bool, judged: bool) -> Iterator[Bar]:
    """GPUs come and go, the last ones, or those that are drawn, with hardly a move more than there
    must be.
    """
    every = Cluster(num_gpus=max(_SIZES), slots_per_gpu=_SLOTS)
    rng = np.random.default_rng(1)
    names = [rng.permutation(max(_SIZES)) if anywhere else np.arange(max(_SIZES)) for _ in _SIZES]
    running: list[Placement] = []
    for step, (size, order) in enumerate(zip(_SIZES, names, strict=True)):
        cluster = every.without(order[size:])
        found = []
        for case, load in enumerate(loads):
            if not step:
                running.append(eplb.plan(load, cluster).placement)
                continue
            old = running[case]
            least = _least_moves(old, cluster)
            made = eplb.plan(load, cluster, current=old, max_moves=int(_MOST_ABOVE * least))
            running[case] = Placement(made.placement.phy2log, load.shape[1], cluster)
            even, best = (running[case].balancedness(load, rule) for rule in ("even", "best"))
            found.append((even, best, running[case].moves_from(old) / least))
        if not step:
            continue
        which = "any" if anywhere else "the last"
        what = f"{_SIZES[step - 1]} to {size} GPUs, {which} ones, {len(loads)} loads"
        evens, bests, moves = (list(column) for column in zip(*found, strict=True))
        for name, worst, sign, bar in (
            ("even split", min(evens), "least", _RESIZED),
            ("split best", min(bests), "least", _RESIZED_BEST),
            ("moves of the least possible", max(moves), "most", _MOST_ABOVE),
        ):
            met = worst >= bar if sign == "least" else worst <= bar + 1e-12
            yield Bar(f"{what}: {name}", f"at {sign} {bar:g}", f"{worst:.4f}", met, judged=judged)


def uneven(loads: list[NDArray[np.float64]], cases: int, *, judged: bool) -> Iterator[Bar]:
    """GPUs of random slots and speeds: load over speed of the busiest against the mean."""
    rng = np.random.default_rng(2)
    over, spent, even_spent = [], 0.0, 0.0
    for case in range(cases):
        load = loads[case % len(loads)]
        cluster = _random_cluster(rng, _UNEVEN_GPUS, _OF_SLOTS, load.shape[1])
        even = Cluster(_UNEVEN_GPUS, slots_per_gpu=-(-cluster.num_held // _UNEVEN_GPUS))
        made = eplb.plan(load, cluster, threads=1)
        eplb.plan(load, even, threads=1)
        spent += _seconds(load, cluster)
        even_spent += _seconds(load, even)
        mean = load.sum(axis=1) / sum(cluster.speed or ())
        over.append((made.placement.peaks(load) / mean)[made.bound <= mean * (1.0 + 1e-9)])
    peaks = np.concatenate(over)
    what = f"{cases} clusters of {_UNEVEN_GPUS} GPUs, 4 to 16 slots and speeds .5 to 2"
    yield Bar(
        f"{what}: max / mean of load over speed, where the mean may be reached",
        f"at most {_UNEVEN:g}",
        f"{peaks.max():.4f} in the worst layer, {peaks.mean():.4f} on average, "
        f"{np.mean(peaks > _UNEVEN):.2%} of {len(peaks)} layers above",
        bool((peaks <= _UNEVEN).all()),
        judged=judged,
    )
    yield Bar(
        f"{what}: time, in that of even clusters",
        f"at most {_UNEVEN_TIME:g}",
        f"{spent / even_spent:.2f}",
        spent <= _UNEVEN_TIME * even_spent,
        judged=judged,
    )
    worst = max(_above_optimum(rng) for _ in range(_SMALL_CASES))
    yield Bar(
        f"{_SMALL_CASES} layers of 4 or 5 experts on 3 GPUs that differ: peak / optimum",
        f"at most {_UNEVEN_SMALL:g}",
        f"{worst:.4f} in the worst",
        worst <= _UNEVEN_SMALL,
        judged=judged,
    )


def _random_cluster(
    rng: np.random.Generator, num_gpus: int, slots: tuple[int, int], num_experts: int
) -> Cluster:
    """GPUs of random slots and speeds, with a slot for each expert."""
    while True:
        of_gpus = rng.integers(slots[0], slots[1] + 1, num_gpus)
        if of_gpus.sum() >= num_experts:
            return Cluster(num_gpus, 1, of_gpus, speed=rng.uniform(*_OF_SPEEDS, num_gpus))


def _seconds(load: NDArray[np.float64], cluster: Cluster) -> float:
    """Processor time of a plan, the least of a few."""
    found = []
    for _ in range(_REPEATS):
        begin = time.process_time()
        eplb.plan(load, cluster, threads=1)
        found.append(time.process_time() - begin)
    return min(found)


def _above_optimum(rng: np.random.Generator) -> float:
    """Peak of a plan for a small layer over the least of every way to fill the slots."""
    num_experts = int(rng.integers(4, 6))
    cluster = _random_cluster(rng, 3, (1, 4), num_experts)
    load = rng.lognormal(0.0, 0.7, num_experts)
    best = np.inf
    choices = [itertools.combinations(range(num_experts), size) for size in cluster.capacity]
    for held in itertools.product(*choices):
        copies = np.bincount(list(itertools.chain(*held)), minlength=num_experts)
        if copies.min() > 0:
            times = [
                (load / copies)[list(gpu)].sum() / speed
                for gpu, speed in zip(held, cluster.speed or (), strict=True)
            ]
            best = min(best, max(times))
    return float(eplb.plan(load[None], cluster, threads=1).peak[0] / best)


def _least_moves(old: Placement, cluster: Cluster) -> int:
    """Experts that must be received: those that no GPU left holds, and one for each new slot."""
    held = old.held_by(cluster.num_gpus)[:, list(cluster.alive)]
    new = sum(gpu not in old.cluster.alive for gpu in cluster.alive)
    filled = new * cluster.slots_per_gpu * old.num_layers
    return max(int((~held.any(axis=1)).sum()), filled)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/clusters.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", help="recorded loads; made ones without")
    add("--cases", type=positive, default=1000, help="deaths that are drawn [1000]")
    add("--only", choices=["deaths", "resizes", "uneven"], help="one part")
    add("--layers", type=positive, help="only so many layers of the loads")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    try:
        bars = list(_bars(options))
    except eplb.EplbError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps({"bars": [asdict(bar) for bar in bars]}))
    else:
        show_bars(bars)
    return 1 if options.check and any(bar.missed for bar in bars) else 0


def _bars(options: argparse.Namespace) -> Iterator[Bar]:
    judged = options.traces is not None and options.layers is None
    loads = [load[: options.layers] for load in layers_of(options.traces)]
    if options.only in (None, "deaths"):
        yield from deaths(loads, options.cases, judged=judged)
        yield from too_many(loads[0])
        yield from curve(loads[0])
    if options.only in (None, "resizes"):
        for anywhere in (False, True):
            yield from resizes(loads, anywhere=anywhere, judged=judged)
    if options.only in (None, "uneven"):
        yield from uneven(loads, -(-options.cases // 25), judged=judged)


if __name__ == "__main__":
    sys.exit(main())
