"""Small layers, planned and solved: how far plans and bounds are from the true optimum.

The optimum is found by going through every choice of replica counts and every packing of each, with
no expert twice on a GPU, in branch and bound. It shares nothing with the planner.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

import eplb

__all__ = ["EXAMPLE", "Small", "optimum", "solve"]

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


def optimum(loads: NDArray[np.float64], num_gpus: int, slots_per_gpu: int) -> float:
    """Least load of the busiest GPU over every plan of `loads` [E] with no expert twice on a GPU.

    `slots_per_gpu` is at most E. Time grows steeply: meant for a dozen slots.
    """
    return _optimum(np.ascontiguousarray(loads, np.float64), num_gpus, slots_per_gpu)


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
def _optimum(loads: NDArray[np.float64], num_gpus: int, slots_per_gpu: int) -> float:
    """Go through the replica counts like an odometer, each expert's from 1 to the most it can."""
    num_experts = loads.shape[0]
    num_slots = num_gpus * slots_per_gpu
    most = min(num_gpus, num_slots - num_experts + 1)
    count = np.ones(num_experts, np.int64)
    total = num_experts
    share = np.empty(num_slots)
    expert_of = np.empty(num_slots, np.int64)
    best = np.inf
    while True:
        if total == num_slots:
            replica = 0
            for expert in np.argsort(-loads / count):
                for _ in range(count[expert]):
                    share[replica] = loads[expert] / count[expert]
                    expert_of[replica] = expert
                    replica += 1
            best = _pack(share, expert_of, num_experts, num_gpus, slots_per_gpu, best)
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
    num_experts: int,
    num_gpus: int,
    slots_per_gpu: int,
    best: float,
) -> float:
    """The least peak of a packing of replicas [P], sorted from large to small, if below `best`.

    An expert's replicas stand together and go to GPUs in rising order, and a GPU is begun only
    when those before it have been: each packing is met once, whatever the GPUs are called.
    """
    num_slots = share.shape[0]
    load = np.zeros(num_gpus)
    held = np.zeros(num_gpus, np.int64)
    holds = np.zeros((num_experts, num_gpus), np.bool_)
    at = np.full(num_slots, -1)
    replica = 0
    while replica >= 0:
        expert = expert_of[replica]
        gpu = at[replica]
        if gpu >= 0:
            load[gpu] -= share[replica]
            held[gpu] -= 1
            holds[expert, gpu] = False
        elif replica > 0 and expert_of[replica - 1] == expert:
            gpu = at[replica - 1]
        found = False
        while gpu + 1 < num_gpus and not found:
            gpu += 1
            if gpu > 0 and held[gpu - 1] == 0:
                break
            found = (
                held[gpu] < slots_per_gpu
                and not holds[expert, gpu]
                and load[gpu] + share[replica] < best * (1.0 - 1e-12)
            )
        if not found:
            at[replica] = -1
            replica -= 1
            continue
        at[replica] = gpu
        load[gpu] += share[replica]
        held[gpu] += 1
        holds[expert, gpu] = True
        if replica < num_slots - 1:
            replica += 1
        else:
            best = load.max()
    return best
