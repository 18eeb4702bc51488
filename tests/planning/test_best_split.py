"""`plan(..., dispatch="best")`: placements for windows of which each is split best."""

from functools import partial
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from strategies import COMPILED, Cell, cells, grouped_cells

from eplb import Cluster, OptionError, Placement, Plan, plan

plan_best = partial(plan, dispatch="best", effort="fast")


def check(made: Plan, loads: NDArray[np.float64], num_groups: int) -> None:
    """What holds of every plan for windows [T, L, E] that are split best."""
    placement, cluster = made.placement, made.placement.cluster
    assert made.dispatch == "best"
    assert placement == Placement(placement.phy2log, loads.shape[2], cluster)
    assert (made.bound <= made.peak).all()
    even = plan(loads, cluster, num_groups=num_groups, effort="fast").placement
    total = loads.sum(axis=2)
    counted = np.maximum((total > 0.0).sum(axis=0), 1)
    scale = np.divide(
        total.sum(axis=0) / counted, total, out=np.zeros_like(total), where=total > 0.0
    )
    peaks = [
        (each.gpu_load(loads, "best").max(axis=2) * scale).sum(axis=0) / counted
        for each in (placement, even)
    ]
    assert made.peak == pytest.approx(peaks[0], rel=1e-9)
    assert (made.peak <= peaks[1] * (1.0 + 1e-9)).all()
    if cluster.num_nodes > 1 and num_groups % cluster.num_nodes == 0:
        node = np.arange(cluster.num_slots) // (cluster.num_slots // cluster.num_nodes)
        group = placement.phy2log // (loads.shape[2] // num_groups)
        for layer in np.flatnonzero(total.any(axis=0)):
            assert len({*zip(group[layer], node, strict=True)}) == num_groups


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
@settings(max_examples=20)
@given(st.one_of(cells(), grouped_cells()), st.integers(1, 3))
def test_plans_are_valid_and_no_worse_than_for_an_even_split(cell: Cell, number: int) -> None:
    loads = np.stack([np.roll(cell.loads, 3 * t, axis=1) * (t + 1.0) for t in range(number)])
    assume(loads.any())
    made = plan_best(loads, cell.cluster, num_groups=cell.num_groups)
    check(made, loads, cell.num_groups)
    again = plan_best(loads[::-1], cell.cluster, num_groups=cell.num_groups, threads=3)
    assert again.placement == made.placement
    assert again.peak.tobytes() == made.peak.tobytes()


def test_small_layers_are_near_the_best_of_all_placements() -> None:
    rng = np.random.default_rng(3)
    near = []
    shapes = [(2, 2, 3), (3, 2, 4), (2, 4, 6), (4, 2, 5), (3, 3, 5), (5, 2, 6)]
    for number in range(48):
        num_gpus, slots_per_gpu, num_experts = shapes[number % len(shapes)]
        windows = rng.lognormal(0.0, 1.0, (1 + number % 2 * 2, 1, num_experts))
        windows /= windows.sum(axis=2, keepdims=True)
        made = plan(windows, Cluster(num_gpus, 1, slots_per_gpu), dispatch="best")
        best = naive.levelled_optimum(windows[:, 0].tolist(), num_gpus, slots_per_gpu)
        assert made.bound[0] <= best * (1.0 + 1e-9) <= made.peak[0] * (1.0 + 2e-9)
        near.append(made.peak[0] <= 1.01 * best)
    assert sum(near) >= 0.97 * len(near)


def test_one_window_is_proven_best_where_slots_leave_room() -> None:
    loads = np.random.default_rng(7).lognormal(0.0, 1.0, (4, 64))
    made = plan(loads, Cluster(16, 1, 5), dispatch="best")
    assert (made.gap <= 1e-3).all()
    # The heaviest expert is in as many parts as there are GPUs, and each GPU takes one.
    loads[:, 5] = 64.0 * loads.sum(axis=1)
    made = plan(loads, Cluster(16, 1, 5), dispatch="best")
    assert (made.gap <= 1e-3).all()


def test_few_experts_with_load_fill_every_gpu() -> None:
    rng = np.random.default_rng(5)
    for num_gpus, num_experts, loaded in ((12, 30, 12), (12, 30, 5), (9, 6, 4), (8, 16, 1)):
        loads = np.zeros((2, num_experts))
        for layer in loads:
            layer[rng.permutation(num_experts)[:loaded]] = rng.lognormal(0.0, 1.0, loaded)
        cluster = Cluster(num_gpus, 1, -(-(num_experts + num_gpus) // num_gpus))
        made = plan_best(loads, cluster)
        assert made.peak == pytest.approx(made.bound, rel=1e-9)


def test_layers_do_not_depend_on_each_other_or_on_threads() -> None:
    loads = np.random.default_rng(8).lognormal(0.0, 0.8, (3, 4, 32))
    made = plan_best(loads, Cluster(8, 1, 5), threads=2)
    for layer in range(4):
        alone = plan_best(loads[:, layer : layer + 1], Cluster(8, 1, 5), threads=1)
        assert np.array_equal(alone.placement.phy2log[0], made.placement.phy2log[layer])


def test_placed_for_a_best_split_is_better_on_loads_not_seen() -> None:
    rng = np.random.default_rng(9)
    base = rng.normal(0.0, 0.8, (6, 64))
    loads = np.exp(base + rng.normal(0.0, 0.2, (8, 6, 64)))
    cluster = Cluster(16, 1, 5)
    seen, unseen = loads[:4], loads[4:]
    even, best = (plan(seen, cluster, dispatch=rule).placement for rule in ("even", "best"))
    assert best.balancedness(unseen, "best") > even.balancedness(unseen, "best") + 0.003


@pytest.mark.parametrize(
    ("dispatch", "message"),
    [
        ("bets", "dispatch is 'bets': give one of 'even', 'sglang', 'ascend', 'best'"),
        (None, "dispatch is None: give one of 'even', 'sglang', 'ascend', 'best'"),
    ],
)
def test_other_rules_are_refused(dispatch: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan(np.ones((1, 4)), Cluster(2, 1, 3), dispatch=dispatch)
