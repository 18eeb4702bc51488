"""`plan(..., dispatch="sglang" | "ascend")`: placements for rules by which engines dispatch."""

from functools import partial
from typing import Any

import naive_rules
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import COMPILED, Cell, cells, grouped_cells

from eplb import Cluster, OptionError, Placement, plan
from eplb.solver.engine_rules import SGLANG, expected_parts

RULES = ("sglang", "ascend")

plan_fast = partial(plan, effort="fast")


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
@settings(max_examples=12)
@given(st.one_of(cells(), grouped_cells()), st.integers(1, 3), st.sampled_from(RULES))
def test_plans_are_valid_and_no_worse_than_for_an_even_split(
    cell: Cell, number: int, rule: str
) -> None:
    loads = np.stack([np.roll(cell.loads, 3 * t, axis=1) for t in range(number)])
    assume(loads.any())
    cluster, num_groups = cell.cluster, cell.num_groups
    made = plan_fast(loads, cluster, num_groups=num_groups, dispatch=rule)
    placement = made.placement
    assert made.dispatch == rule
    assert placement == Placement(placement.phy2log, loads.shape[2], cluster)
    assert (made.bound <= made.peak).all()
    even = plan_fast(loads, cluster, num_groups=num_groups).placement
    peaks = [each.gpu_load(loads, rule).max(axis=2).mean(axis=0) for each in (placement, even)]
    assert made.peak == pytest.approx(peaks[0], rel=1e-9)
    assert peaks[0].sum() <= peaks[1].sum() * (1.0 + 1e-9)
    if rule == "ascend":
        assert (peaks[0] <= peaks[1] * (1.0 + 1e-9)).all()
    if cluster.num_nodes > 1 and num_groups % cluster.num_nodes == 0:
        node = np.arange(cluster.num_slots) // (cluster.num_slots // cluster.num_nodes)
        group = placement.phy2log // (loads.shape[2] // num_groups)
        for layer in np.flatnonzero(loads.any(axis=(0, 2))):
            assert len({*zip(group[layer], node, strict=True)}) == num_groups
    again = plan_fast(loads[::-1], cluster, num_groups=num_groups, dispatch=rule, threads=3)
    assert again.placement == placement
    assert again.peak.tobytes() == made.peak.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_small_layers_are_near_the_best_of_all_placements(rule: str) -> None:
    rng = np.random.default_rng(1)
    shapes = [(3, 2, 4), (2, 3, 5), (3, 2, 5)]
    near = []
    for number in range(9):
        num_gpus, slots_per_gpu, num_experts = shapes[number % len(shapes)]
        loads = rng.lognormal(0.0, 0.7, num_experts)
        cluster = Cluster(num_gpus, 1, slots_per_gpu)
        row = plan(loads[None], cluster, dispatch=rule).placement.phy2log[0].tolist()
        peak = max(naive_rules.gpu_loads(rule, row, loads.tolist(), num_gpus, 1))
        best = naive_rules.rule_optimum(rule, loads.tolist(), num_gpus, slots_per_gpu)
        near.append(peak <= 1.01 * best)
    assert sum(near) >= len(near) - 1


@pytest.mark.parametrize("rule", RULES)
def test_a_plan_for_a_rule_is_better_under_it(rule: str) -> None:
    rng = np.random.default_rng(9)
    loads = np.exp(rng.normal(0.0, 0.8, (6, 64)))
    cluster = Cluster(16, 4, 5)
    even, ruled = (plan(loads, cluster, dispatch=each).placement for each in ("even", rule))
    found = ruled.balancedness(loads, rule)
    assert found > 0.98
    assert found > even.balancedness(loads, rule) + 0.01


@pytest.mark.parametrize("rule", RULES)
def test_peaks_are_those_where_gpus_are_dead(rule: str) -> None:
    loads = np.random.default_rng(5).lognormal(0.0, 0.8, (2, 24))
    cluster = Cluster(8, 2, 4).without([3])
    made = plan_fast(loads, cluster, dispatch=rule)
    assert made.placement.cluster == cluster
    assert made.peak == pytest.approx(made.placement.gpu_load(loads, rule).max(axis=1))
    even = plan_fast(loads, cluster).placement
    assert made.peak.sum() <= even.gpu_load(loads, rule).max(axis=1).sum()


def test_more_effort_is_better() -> None:
    rng = np.random.default_rng(2)
    loads = np.exp(rng.normal(0.0, 0.8, (4, 3, 64)) * 0.3 + rng.normal(0.0, 0.8, (3, 64)))
    found = [
        float(plan(loads, Cluster(16, 4, 5), dispatch="sglang", effort=effort).peak.sum())
        for effort in ("fast", "default", "thorough")
    ]
    assert found == sorted(found, reverse=True)


def test_parts_are_those_that_no_draw_decides() -> None:
    """As expected, and by the table, a plan has nearly the same peaks."""
    rng = np.random.default_rng(4)
    loads = np.exp(rng.normal(0.0, 1.0, (8, 64)))
    cluster = Cluster(16, 4, 5)
    placement = plan(loads, cluster, dispatch="sglang").placement
    split = expected_parts(placement.phy2log, 64, 16, 4, SGLANG)
    expected = placement.balancedness(loads, split)
    assert placement.balancedness(loads, "sglang") > expected - 0.017


def test_layers_do_not_depend_on_threads_or_on_each_other() -> None:
    loads = np.random.default_rng(8).lognormal(0.0, 0.8, (3, 4, 32))
    made = plan_fast(loads, Cluster(8, 2, 5), dispatch="ascend", threads=2)
    for layer in range(4):
        its = loads[:, layer : layer + 1]
        alone = plan_fast(its, Cluster(8, 2, 5), dispatch="ascend", threads=1)
        assert np.array_equal(alone.placement.phy2log[0], made.placement.phy2log[layer])


@pytest.mark.parametrize("rule", ["sglang", "ascend"])
def test_a_current_placement_is_refused(rule: Any) -> None:
    made = plan(np.ones((1, 4)), Cluster(2, 1, 3))
    with pytest.raises(OptionError, match="made from scratch"):
        plan(np.ones((1, 4)), Cluster(2, 1, 3), dispatch=rule, current=made.placement)
