"""Small layers, planned and solved: how far plans and bounds are from the true optimum.

The optimum is found by going through every way to put groups on nodes, every choice of replica
counts and every packing of each, with no expert twice on a GPU, in branch and bound. It shares
nothing with the planner. `python bench/small.py` prints how often plans of each effort are optimal,
for one window and several, and with groups on nodes. With `--dispatch best` it does so where each
window is split best, `--check` judges the bar of that, and every placement is gone through.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray
from options import OneLineParser, positive

import eplb
from eplb.planning.problem import Effort

__all__ = ["EXAMPLE", "Rate", "Small", "optimum", "rates", "solve"]

EXAMPLE = (600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0)
"""FlashLB's example, for 8 GPUs of 2 slots, where greedy counts cannot be packed well."""

_MOST_SLOTS = 12
_EXACT = 1e-9
"""Difference, of 1, that is rounding."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Small:
    """Plans of small layers against their optimum.

    Attributes:
        layers: how many there were.
        within_1_percent: share of them whose peak is at most 1 % above the optimum.
        optimal: share whose peak is the optimum.
        worst: largest peak / optimum - 1.
        peaks_below: peaks below the optimum: the planner or the optimum would be wrong.
        bounds_above: bounds above the optimum: they would not be bounds.
        example_peak: peak of the plan of FlashLB's example.
        example_optimum: its optimum.
    """

    layers: int
    within_1_percent: float
    optimal: float
    worst: float
    peaks_below: int
    bounds_above: int
    example_peak: float
    example_optimum: float


def solve(number: int) -> Small:
    """Plan and solve `number` random small layers, and FlashLB's example."""
    ratio = np.empty(number)
    bound_ratio = np.empty(number)
    for i, (loads, num_gpus, slots_per_gpu) in enumerate(_random_layers(number)):
        plan = eplb.plan([loads], eplb.Cluster(num_gpus, slots_per_gpu=slots_per_gpu), threads=1)
        least = optimum(loads, num_gpus, slots_per_gpu)
        ratio[i] = _peak(loads, plan.placement.phy2log[0], num_gpus) / least
        bound_ratio[i] = plan.bound[0] / least
    return Small(
        layers=number,
        within_1_percent=float((ratio <= 1.01).mean()),
        optimal=float((ratio <= 1.0 + _EXACT).mean()),
        worst=float(ratio.max() - 1.0),
        peaks_below=int((ratio < 1.0 - _EXACT).sum()),
        bounds_above=int((bound_ratio > 1.0 + _EXACT).sum()),
        example_peak=_example_peak(),
        example_optimum=optimum(np.array(EXAMPLE), 8, 2),
    )


def _example_peak() -> float:
    """Peak of the plan of FlashLB's example."""
    plan = eplb.plan([EXAMPLE], eplb.Cluster(8, slots_per_gpu=2), threads=1)
    return _peak(np.array(EXAMPLE), plan.placement.phy2log[0], 8)


def optimum(
    loads: NDArray[np.float64],
    num_gpus: int,
    slots_per_gpu: int,
    num_nodes: int = 1,
    num_groups: int = 1,
) -> float:
    """Least load of the busiest GPU over every plan of `loads` [E] with no expert twice on a GPU;
    of windows [T, E] of one total, the least mean of it.

    `slots_per_gpu` is at most E / `num_nodes`. Time grows steeply: meant for a dozen slots.
    """
    windows = np.ascontiguousarray(np.atleast_2d(loads), np.float64)
    best = np.inf
    for node_of_group in _ways(num_groups, num_nodes):
        node_of = np.repeat(node_of_group, windows.shape[1] // num_groups)
        best = _optimum(windows, node_of, num_nodes, num_gpus, slots_per_gpu, best)
    return best


def _ways(num_groups: int, num_nodes: int) -> Iterator[tuple[int, ...]]:
    """Every way to put groups on nodes, equally many on each, whatever the nodes are called."""
    for way in itertools.product(range(num_nodes), repeat=num_groups):
        even = all(way.count(node) * num_nodes == num_groups for node in range(num_nodes))
        if even and list(dict.fromkeys(way)) == list(range(num_nodes)):
            yield way


def _random_layers(number: int) -> Iterator[tuple[NDArray[np.float64], int, int]]:
    """Loads of 2 to 8 experts for up to 12 slots, of four kinds, some with ties."""
    generator = np.random.default_rng(0)
    made = 0
    while made < number:
        num_experts = int(generator.integers(2, 9))
        num_gpus = int(generator.integers(2, 9))
        slots_per_gpu = int(generator.integers(1, 7))
        num_slots = num_gpus * slots_per_gpu
        if not num_experts <= num_slots <= _MOST_SLOTS or slots_per_gpu > num_experts:
            continue
        kinds = (
            generator.lognormal(0.0, 1.0, num_experts),
            generator.lognormal(0.0, 2.0, num_experts),
            generator.exponential(1.0, num_experts),
            generator.integers(1, 20, num_experts).astype(np.float64),
        )
        yield kinds[made % len(kinds)], num_gpus, slots_per_gpu
        made += 1


def _peak(loads: NDArray[np.float64], phy2log: NDArray[np.int64], num_gpus: int) -> float:
    share = loads / np.bincount(phy2log, minlength=loads.size)
    return float(share[phy2log].reshape(num_gpus, -1).sum(axis=1).max())


def _compiled(function: _Function) -> _Function:
    compiled: Any = njit(cache=True)(function)
    return compiled  # type: ignore[no-any-return]


@_compiled
def _optimum(
    loads: NDArray[np.float64],
    node_of: NDArray[np.int64],
    num_nodes: int,
    num_gpus: int,
    slots_per_gpu: int,
    best: float,
) -> float:
    """Go through the replica counts like an odometer, each expert's from 1 to the most it can; the
    least peak of `loads` [T, E], if below `best`.
    """
    num_windows, num_experts = loads.shape
    num_slots = num_gpus * slots_per_gpu
    slots_per_node = num_slots // num_nodes
    most = min(num_gpus, num_slots - num_experts + 1)
    count = np.ones(num_experts, np.int64)
    total = num_experts
    share = np.empty((num_slots, num_windows))
    mean = np.empty(num_experts)
    expert_of = np.empty(num_slots, np.int64)
    on_node = np.empty(num_nodes, np.int64)
    while True:
        if total == num_slots:
            on_node[:] = 0
            for expert in range(num_experts):
                on_node[node_of[expert]] += count[expert]
                mean[expert] = loads[:, expert].sum() / count[expert]
            if on_node.max() == slots_per_node:
                replica = 0
                for expert in np.argsort(-mean):
                    for _ in range(count[expert]):
                        share[replica] = loads[:, expert] / count[expert]
                        expert_of[replica] = expert
                        replica += 1
                best = _pack(share, expert_of, node_of, num_nodes, num_gpus, slots_per_gpu, best)
        digit = 0
        while digit < num_experts and (count[digit] == most or total == num_slots):
            total -= count[digit] - 1
            count[digit] = 1
            digit += 1
        if digit == num_experts:
            return best
        count[digit] += 1
        total += 1


@_compiled
def _pack(
    share: NDArray[np.float64],
    expert_of: NDArray[np.int64],
    node_of: NDArray[np.int64],
    num_nodes: int,
    num_gpus: int,
    slots_per_gpu: int,
    best: float,
) -> float:
    """The least peak of a packing of replicas [P, T], sorted from large to small, if below `best`.

    An expert's replicas stand together and go to GPUs of its node in rising order, and a GPU is
    begun only when those before it on the node have been: each packing is met once, whatever the
    GPUs are called.
    """
    num_slots = share.shape[0]
    gpus_per_node = num_gpus // num_nodes
    load = np.zeros((num_gpus, share.shape[1]))
    held = np.zeros(num_gpus, np.int64)
    holds = np.zeros((node_of.shape[0], num_gpus), np.bool_)
    at = np.full(num_slots, -1)
    replica = 0
    while replica >= 0:
        expert = expert_of[replica]
        first = node_of[expert] * gpus_per_node
        gpu = at[replica]
        if gpu >= 0:
            load[gpu] -= share[replica]
            held[gpu] -= 1
            holds[expert, gpu] = False
        elif replica > 0 and expert_of[replica - 1] == expert:
            gpu = at[replica - 1]
        else:
            gpu = first - 1
        found = False
        while gpu + 1 < first + gpus_per_node and not found:
            gpu += 1
            if gpu > first and held[gpu - 1] == 0:
                break
            if held[gpu] < slots_per_gpu and not holds[expert, gpu]:
                load[gpu] += share[replica]
                found = _expected(load) < best * (1.0 - 1e-12)
                if not found:
                    load[gpu] -= share[replica]
        if not found:
            at[replica] = -1
            replica -= 1
            continue
        at[replica] = gpu
        held[gpu] += 1
        holds[expert, gpu] = True
        if replica < num_slots - 1:
            replica += 1
        else:
            best = _expected(load)
    return best


@_compiled
def _expected(load: NDArray[np.float64]) -> float:
    """The mean over windows of the busiest GPU's load [G, T]."""
    total = 0.0
    for window in range(load.shape[1]):
        total += load[:, window].max()
    mean: float = total / load.shape[1]
    return mean


@dataclass(frozen=True)
class Rate:
    """How near plans of one kind of small layers are to their optimum.

    Attributes:
        num_windows: windows of each layer.
        num_nodes: nodes that groups of experts are kept on.
        effort: of the plans.
        layers: how many there were.
        optimal: share whose peak is the optimum.
        above_10_percent: share whose peak is more than 10 % above it, and 15 % in the next.
        worst: largest peak / optimum - 1.
    """

    num_windows: int
    num_nodes: int
    effort: str
    layers: int
    optimal: float
    above_10_percent: float
    above_15_percent: float
    worst: float


def rates(seed: int, each: int) -> Iterator[Rate]:
    """Plan and solve `each` layers of every small shape, of 1 to 3 windows, on one node and two."""
    draw = np.random.default_rng(seed)
    for num_nodes, num_windows in itertools.product((1, 2), (1, 2, 3)):
        efforts = get_args(Effort)
        above: dict[str, list[float]] = {effort: [] for effort in efforts}
        for num_experts, num_groups, num_gpus, slots_per_gpu in _shapes(num_nodes):
            loads = _some_windows(draw, num_windows, each, num_experts)
            cluster = eplb.Cluster(num_gpus, num_nodes, slots_per_gpu)
            scaled = loads / loads.sum(axis=2, keepdims=True)
            shape = num_gpus, slots_per_gpu, num_nodes, num_groups
            least = np.array([optimum(scaled[:, layer], *shape) for layer in range(each)])
            for effort in efforts:
                made = eplb.plan(loads, cluster, num_groups=num_groups, effort=effort)
                peak = made.peak / loads.sum(axis=2).mean(axis=0)
                above[effort].extend(peak / least - 1.0)
        for effort in efforts:
            ratio = np.array(above[effort])
            yield Rate(
                num_windows,
                num_nodes,
                effort,
                layers=ratio.size,
                optimal=float((ratio <= _EXACT).mean()),
                above_10_percent=float((ratio > 0.10).mean()),
                above_15_percent=float((ratio > 0.15).mean()),
                worst=float(ratio.max()),
            )


def _shapes(num_nodes: int) -> Iterator[tuple[int, int, int, int]]:
    """Experts, groups, GPUs and slots on a GPU of small layers with more than one placement."""
    sizes = itertools.product(range(2, 9), range(2, 7), range(1, 6))
    for num_experts, num_gpus, slots_per_gpu in sizes:
        num_slots = num_gpus * slots_per_gpu
        fits = num_experts <= num_slots <= _MOST_SLOTS
        if num_experts % num_nodes or num_gpus % num_nodes or not fits:
            continue
        if slots_per_gpu >= num_experts // num_nodes + (num_nodes > 1):
            continue
        for num_groups in range(2 * num_nodes, num_experts + 1, num_nodes):
            if num_nodes > 1 and num_experts % num_groups == 0:
                yield num_experts, num_groups, num_gpus, slots_per_gpu
        if num_nodes == 1:
            yield num_experts, 1, num_gpus, slots_per_gpu


def _some_windows(
    draw: np.random.Generator, num_windows: int, each: int, num_experts: int
) -> NDArray[np.float64]:
    """[T, L, E] windows of four kinds of loads, one layer after the other."""
    shape = (num_windows, each, num_experts)
    kinds = (
        draw.lognormal(0.0, 1.0, shape),
        draw.integers(0, 10, shape) + 1e-6,
        draw.pareto(1.0, shape),
        draw.random(shape),
    )
    return np.stack([kinds[layer % len(kinds)][:, layer] for layer in range(each)], axis=1)


_FEW_EXPERTS, _FEW_SLOTS, _NEAR = 6, 10, 0.97


@dataclass(frozen=True)
class NearBest:
    """How near plans for a best split are to the best of all placements.

    Attributes:
        num_windows: windows of each layer.
        layers: how many there were.
        within_1_percent: share whose expected peak is at most 1 % above the least of all.
        worst: largest peak / least - 1; below: of peaks below it, which would be a fault.
    """

    num_windows: int
    layers: int
    within_1_percent: float
    worst: float
    below: int


def near_best(seed: int, number: int, effort: Effort) -> Iterator[NearBest]:
    """Plan about `number` layers of up to 6 experts and 10 slots for a best split, half of them of
    three windows, and go through all placements of each.
    """
    draw = np.random.default_rng(seed)
    shapes = [
        (num_experts, num_gpus, size)
        for num_experts, num_gpus, size in itertools.product(
            range(2, _FEW_EXPERTS + 1), range(2, _FEW_SLOTS + 1), range(1, _FEW_EXPERTS)
        )
        if num_experts <= num_gpus * size <= _FEW_SLOTS and size < num_experts
    ]
    each = -(-number // (2 * len(shapes)))
    for num_windows in (1, 3):
        above: list[float] = []
        for num_experts, num_gpus, size in shapes:
            loads = _some_windows(draw, num_windows, each, num_experts)
            scaled = loads / loads.sum(axis=2, keepdims=True)
            within = _held_within(num_experts, num_gpus, size)
            least = np.array([_least_levelled(scaled[:, layer], within) for layer in range(each)])
            cluster = eplb.Cluster(num_gpus, slots_per_gpu=size)
            made = eplb.plan(loads, cluster, dispatch="best", effort=effort)
            above.extend(made.peak / loads.sum(axis=2).mean(axis=0) / least - 1.0)
        ratio = np.array(above)
        yield NearBest(
            num_windows,
            layers=ratio.size,
            within_1_percent=float((ratio <= 0.01).mean()),
            worst=float(ratio.max()),
            below=int((ratio < -_EXACT).sum()),
        )


def _held_within(num_experts: int, num_gpus: int, size: int) -> NDArray[np.float64]:
    """[N, S, E] for every placement and every set of GPUs, the experts that those alone hold, each
    over the number of GPUs of the set. GPUs are alike, so their order does not count.
    """
    sets = 1 + np.arange((1 << num_gpus) - 1)
    over = np.array([number.bit_count() for number in sets.tolist()])[:, None]
    held = itertools.combinations(range(num_experts), size)
    found = []
    for on_gpus in itertools.combinations_with_replacement(list(held), num_gpus):
        gpus_of = np.zeros(num_experts, np.int64)
        for gpu, experts in enumerate(on_gpus):
            gpus_of[list(experts)] |= 1 << gpu
        if gpus_of.all():
            found.append(((gpus_of & ~sets[:, None]) == 0) / over)
    return np.array(found)


def _least_levelled(windows: NDArray[np.float64], within: NDArray[np.float64]) -> float:
    """The least mean peak of windows [T, E] over all placements, each window split best.

    Split best, the busiest GPU has the most that any set of GPUs must share among them: the loads
    of experts that these alone hold, over their number (P. Hall, 1935).
    """
    peaks = sum((within @ window).max(axis=1) for window in windows)
    return float(np.min(peaks)) / len(windows)


def _print_near_best(seed: int, number: int, effort: Effort) -> bool:
    """Print the shares, and say whether the bar is met."""
    print("windows  layers  within 1 %   worst")
    rows = []
    for row in near_best(seed, number, effort):
        rows.append(row)
        below = f"  {row.below} below the least" if row.below else ""
        shares = f"{row.within_1_percent:10.2%} {row.worst:7.1%}"
        print(f"{row.num_windows:7} {row.layers:7}  {shares}{below}", flush=True)
    share = sum(row.within_1_percent for row in rows) / len(rows)
    print(f"all: {share:.2%}, at least {_NEAR:.0%} wanted")
    return share >= _NEAR and not any(row.below for row in rows)


def main() -> int:
    """Print the rates; return the exit code."""
    parser = OneLineParser(prog="bench/small.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of the loads")
    add("--each", type=positive, default=20, metavar="N", help="layers of each shape")
    add("--dispatch", choices=("even", "best"), default="even", help="how windows are split")
    add("--number", type=positive, default=500, metavar="N", help="layers, with --dispatch best")
    add("--effort", choices=get_args(Effort), default="default", help="with --dispatch best")
    add("--check", action="store_true", help="with --dispatch best: exit with 1 if it is missed")
    options = parser.parse_args()
    if options.dispatch == "best":
        met = _print_near_best(options.seed, options.number, options.effort)
        return int(options.check and not met)
    print("windows  nodes  effort     layers  optimal  > 10 %  > 15 %   worst")
    for rate in rates(options.seed, options.each):
        print(
            f"{rate.num_windows:7}  {rate.num_nodes:5}  {rate.effort:9} {rate.layers:7}"
            f"  {rate.optimal:7.2%} {rate.above_10_percent:7.2%} {rate.above_15_percent:7.2%}"
            f" {rate.worst:7.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
