"""Small layers against all their placements: plans are optimal, or hardly above."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from eplb import Cluster, plan
from eplb.planning.problem import Effort

ROUNDING = 1e-9


def shares(num_experts: int, num_gpus: int, size: int) -> NDArray[np.float64]:
    """[N, G, E] the part of each expert's load on each GPU, of every placement with all experts and
    none twice on a GPU.
    """
    every = []
    subsets = list(itertools.combinations(range(num_experts), size))
    for on_gpus in itertools.combinations_with_replacement(subsets, num_gpus):
        held = np.zeros((num_gpus, num_experts))
        for gpu, experts in enumerate(on_gpus):
            held[gpu, list(experts)] = 1.0
        if held.any(axis=0).all():
            every.append(held / held.sum(axis=0))
    return np.array(every)


def least_peaks(loads: NDArray[np.float64], every: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L] the least expected peak of `loads` [T, L, E] over `every` placement."""
    total = loads.sum(axis=2, keepdims=True)
    scaled = loads * (total.mean(axis=0) / total)
    peaks = [(every @ window.T).max(axis=1) for window in scaled]
    least: NDArray[np.float64] = np.mean(peaks, axis=0).min(axis=0)
    return least


def some_loads(num_windows: int, each: int, num_experts: int) -> NDArray[np.float64]:
    """[T, L, E] loads of several kinds, ties and zeros among them."""
    rng = np.random.default_rng(num_experts)
    shape = (num_windows, each, num_experts)
    kinds = [rng.lognormal(size=shape), rng.pareto(1.0, shape), rng.integers(0, 10, shape)]
    loads = np.concatenate(kinds, axis=1)
    loads[..., 0] += 1e-3
    return loads


@pytest.mark.parametrize(
    ("num_windows", "effort", "optimal"),
    [(1, "default", 0.99), (2, "thorough", 0.99), (3, "default", 0.94)],
)
def test_most_plans_are_optimal(num_windows: int, effort: Effort, optimal: float) -> None:
    """And the others hardly above: a search from one start alone finds the optimum of .875 to .9375
    of these, and is up to 10 % above.
    """
    ratios = []
    for num_experts, num_gpus, size in ((5, 3, 2), (4, 3, 3), (6, 5, 2), (6, 2, 4)):
        loads = some_loads(num_windows, 8, num_experts)
        made = plan(loads, Cluster(num_gpus, 1, size), effort=effort)
        ratios.append(made.peak / least_peaks(loads, shares(num_experts, num_gpus, size)))
        assert (made.bound <= made.peak / ratios[-1] * (1.0 + ROUNDING)).all()
    ratio = np.concatenate(ratios)
    assert (ratio >= 1.0 - ROUNDING).all()
    assert (ratio <= 1.0 + ROUNDING).mean() >= optimal
    assert (ratio <= 1.02).all()


def least_peaks_on_nodes(
    loads: NDArray[np.float64], num_groups: int, every: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[L] the same on two nodes alike, whatever groups each has, `every` placement on one of them;
    windows have one total.
    """
    _, num_layers, num_experts = loads.shape
    least = np.full(num_layers, np.inf)
    groups = set(range(num_groups))
    for others in itertools.combinations(range(1, num_groups), num_groups // 2 - 1):
        first = {0, *others}
        nodes = [
            [expert for expert in range(num_experts) if expert * num_groups // num_experts in node]
            for node in (first, groups - first)
        ]
        # [T, placements, L] of each node.
        one, other = (
            np.array([(every @ window[:, node].T).max(axis=1) for window in loads])
            for node in nodes
        )
        peaks = np.maximum(one[:, :, None], other[:, None]).mean(axis=0)
        least = np.minimum(least, peaks.min(axis=(0, 1)))
    return least


@pytest.mark.parametrize(("num_windows", "optimal"), [(1, 0.95), (2, 0.85)])
def test_groups_are_on_the_best_nodes(num_windows: int, optimal: float) -> None:
    """Most plans are optimal, and the others not far above. With groups on the best nodes for the
    mean of two windows, a third of them are, and some are 50 % above.
    """
    ratios = []
    for num_experts, num_groups, num_gpus, size in ((8, 4, 4, 3), (6, 6, 4, 2), (8, 8, 2, 4)):
        loads = some_loads(num_windows, 12, num_experts)
        loads /= loads.sum(axis=2, keepdims=True)
        made = plan(loads, Cluster(num_gpus, 2, size), num_groups=num_groups)
        every = shares(num_experts // 2, num_gpus // 2, size)
        ratios.append(made.peak / least_peaks_on_nodes(loads, num_groups, every))
        assert (made.bound <= made.peak / ratios[-1] * (1.0 + ROUNDING)).all()
    ratio = np.concatenate(ratios)
    assert (ratio >= 1.0 - ROUNDING).all()
    assert (ratio <= 1.0 + ROUNDING).mean() >= optimal
    assert (ratio <= 1.1).all()


@pytest.mark.parametrize("num_windows", [1, 3])
def test_layers_do_not_depend_on_each_other(num_windows: int) -> None:
    """Nor on threads: starts are of a layer's plan and their number."""
    loads = some_loads(num_windows, 3, 6)
    loads[0, 1] = 0.0
    cluster = Cluster(5, 1, 2)
    together = plan(loads, cluster, threads=3)
    for layer in range(loads.shape[1]):
        if loads[:, layer].any():
            alone = plan(loads[:, layer : layer + 1], cluster, threads=1)
            assert np.array_equal(alone.placement.phy2log[0], together.placement.phy2log[layer])
