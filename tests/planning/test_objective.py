"""Plans for the experts that a GPU touches in a step, rather than for its tokens."""

import itertools

import naive
import numpy as np
import pytest

from eplb import Batch, Cluster, LoadTrace, OptionError, plan


def chance(share: list[float], top_k: int, tokens: int) -> list[float]:
    """That any of so many tokens chooses an expert."""
    return [1.0 - (1.0 - min(1.0, top_k * each)) ** tokens for each in share]


def test_an_expert_is_touched_by_any_token_of_a_step() -> None:
    """By all that two tokens of one expert each may choose."""
    share = [0.5, 0.3, 0.2]
    touched = [0.0] * 3
    for one, two in itertools.product(range(3), repeat=2):
        for expert in {one, two}:
            touched[expert] += share[one] * share[two]
    made = plan([[50.0, 30.0, 20.0]], Cluster(3, 1, 1), objective="activated", batch=Batch(1, 1, 2))
    assert made.peak[0] == pytest.approx(max(touched))
    assert chance(share, 1, 2) == pytest.approx(touched)


def test_small_layers_against_all_placements() -> None:
    rng = np.random.default_rng(3)
    above = []
    for _ in range(20):
        loads = rng.gamma(0.5, 100.0, (1, 6)) + 0.01
        tokens = int(rng.integers(1, 30))
        touched = chance((loads[0] / loads.sum()).tolist(), 2, tokens)
        made = plan(loads, Cluster(3, 1, 3), objective="activated", batch=Batch(tokens, 2, 1))
        lowest = naive.optimum(touched, 3, 3)
        assert made.bound[0] <= lowest * (1.0 + 1e-9)
        above.append(made.peak[0] / lowest - 1.0)
    assert min(above) > -1e-9
    assert max(above) < 0.02
    assert sum(each < 1e-9 for each in above) >= 18


def test_large_steps_touch_every_expert_alike() -> None:
    """Where all are touched, no expert needs more copies than others."""
    loads = np.array([[1000.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]])
    cluster, batch = Cluster(4, 1, 4), Batch(10_000, 2, 4)
    made = plan(loads, cluster, objective="activated", batch=batch)
    assert made.placement.logcnt.tolist() == [[2] * 8]
    trace = LoadTrace(loads[None], top_k=2)
    of_trace = plan(trace, cluster, objective="activated", batch=Batch(10_000, None, 4))
    assert of_trace.placement.logcnt.tolist() == [[2] * 8]
    assert plan(loads, cluster).placement.logcnt[0, 0] > 2
    moved = plan(
        loads, cluster, objective="activated", batch=batch, current=plan(loads, cluster).placement
    )
    assert moved.peak[0] == pytest.approx(2.0, rel=0.01)


def test_what_needs_a_step() -> None:
    loads, cluster = np.ones((1, 4)), Cluster(2, 1, 3)
    with pytest.raises(OptionError, match='"activated" needs the size of a step: give batch'):
        plan(loads, cluster, objective="activated")
    with pytest.raises(OptionError, match="top_k of batch is 5: give 1 to 4"):
        plan(loads, cluster, objective="activated", batch=Batch(1, 5, 1))
    with pytest.raises(OptionError, match="objective is 'speed': give one of 'tokens'"):
        plan(loads, cluster, objective="speed")
    with pytest.raises(OptionError, match='batch goes with dispatch="best"'):
        plan(loads, cluster, batch=Batch(1, 1, 1))
