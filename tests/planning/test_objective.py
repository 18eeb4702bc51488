"""Plans for the experts that a GPU touches in a step, or for its time, rather than for tokens."""

import itertools
from dataclasses import replace
from typing import Any

import naive
import numpy as np
import pytest
from numpy.typing import NDArray

from eplb import (
    Batch,
    Cluster,
    ClusterError,
    LoadTrace,
    OptionError,
    Pins,
    Placement,
    Traffic,
    plan,
)
from eplb.cost import estimate, find_model
from eplb.planning.objectives import clock_of
from eplb.synthetic import trace as made_trace


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


def decoding(tokens: int) -> tuple[NDArray[np.float64], Cluster, Batch]:
    """Loads of gpt-oss-20b, and steps of so many tokens on each of 8 GPUs."""
    loads = made_trace("gpt-oss-20b", num_windows=2, tokens_per_window=9000, num_layers=3).loads
    return loads, Cluster(8, 1, 5), Batch(tokens, 4, 8)


@pytest.mark.parametrize("dispatch", ["even", "best"])
def test_time_is_that_of_the_estimate_and_no_longer_than_of_a_plan_for_tokens(
    dispatch: str,
) -> None:
    def seconds(placement: Placement, tokens: int) -> float:
        found = estimate(
            placement, loads, "H100", "gpt-oss-20b", tokens_per_gpu=tokens, dispatch=dispatch
        )
        return float(found.layer_seconds.sum())

    shorter = 0
    for tokens in (1, 4, 4096):
        loads, cluster, batch = decoding(tokens)
        made = plan(loads, cluster, objective="time", batch=batch, dispatch=dispatch)
        assert made.objective == "time"
        of_tokens = seconds(plan(loads, cluster, dispatch=dispatch).placement, tokens)
        # With few tokens, that a token takes no expert twice makes a little difference.
        assert made.peak.sum() == pytest.approx(seconds(made.placement, tokens), rel=0.02)
        assert (made.bound <= made.peak).all()
        assert (made.bound > 0.7 * made.peak).all()
        assert seconds(made.placement, tokens) <= of_tokens * (1.0 + 1e-3)
        shorter += seconds(made.placement, tokens) < of_tokens * (1.0 - 2e-3)
    assert shorter >= 2


def test_small_layers_against_the_time_of_all_placements() -> None:
    rng = np.random.default_rng(5)
    cluster, figures = Cluster(3, 1, 2), replace(find_model("Mixtral-8x7B"), num_experts=4)
    pairs = list(itertools.combinations(range(4), 2))
    above = []
    for _ in range(8):
        loads = rng.gamma(1.0, 100.0, (1, 4)) + 1.0
        batch = Batch(int(rng.integers(1, 60)), 2, 3)
        made = plan(loads, cluster, objective="time", batch=batch, model=figures, gpu="H200")
        clock = clock_of(batch, "H200", figures, cluster, 4)
        times = []
        for held in itertools.product(pairs, repeat=3):
            slots = np.array(held).reshape(1, -1)
            if np.unique(slots).size == 4:
                placed = Placement(slots, 4, cluster)
                times.append(float(clock.seconds(placed, loads[None], "even")[0, 0]))
        assert made.bound[0] <= min(times)
        above.append(made.peak[0] / min(times) - 1.0)
    assert min(above) > -1e-9
    assert sum(each < 1e-9 for each in above) >= 6
    # Experts as large as these make each copy more dear.
    assert max(above) < 0.25


def test_time_from_what_runs_and_after_deaths() -> None:
    loads, cluster, batch = decoding(4)
    running = Placement.contiguous(3, 32, cluster)
    made = plan(loads, cluster, objective="time", batch=batch, current=running, max_moves=12)
    assert 0 < made.moves == made.placement.moves_from(running) <= 12
    left = plan(loads, cluster.without([3]), objective="time", batch=batch)
    assert (left.placement.phy2log.reshape(3, 8, 5)[:, 3] == -1).all()
    assert (left.bound <= left.peak).all()
    of_tokens = plan(loads, cluster.without([3])).placement
    clock = clock_of(batch, "H100", None, cluster.without([3]), 32)
    assert (left.peak <= clock.seconds(of_tokens, loads, "even").mean(axis=0) + 1e-12).all()


def test_time_of_a_trace_is_that_of_the_model_that_it_names() -> None:
    loads = np.arange(1.0, 257.0)[None, None]

    def note(model: str) -> str:
        named = LoadTrace(loads, top_k=8, model=model)
        cluster, batch = Cluster(8, 1, 33), Batch(4, None, 8)
        return plan(named, cluster, objective="time", batch=batch, effort="fast").notes[-1]

    with pytest.raises(
        OptionError, match=r"Qwen3.5-397B-A17B has 512 experts in a layer, the load"
    ):
        note("Qwen3.5-397B-A17B")
    assert note("GLM-5") == "times are those that eplb.cost estimates for GLM-5 on H100"
    assert note("mine").endswith("for DeepSeek-V3 on H100")


def test_no_time_for_what_has_none() -> None:
    """A layer without load takes none, and a window without load does not count."""
    loads = np.zeros((3, 2, 32))
    loads[:2, 0] = np.arange(1.0, 33.0)
    batch = Batch(4, 4, 8)
    made = plan(loads, Cluster(8, 1, 5), objective="time", batch=batch)
    alone = plan(loads[0], Cluster(8, 1, 5), objective="time", batch=batch)
    assert made.peak == pytest.approx(alone.peak)
    assert made.peak[1] == made.bound[1] == 0.0


@pytest.mark.parametrize("objective", ["activated", "time"])
@pytest.mark.parametrize("as_trace", [False, True])
def test_the_hottest_are_those_with_the_most_load(objective: str, as_trace: bool) -> None:
    """Not the first of those that a large step touches for sure."""
    loads = np.arange(1.0, 33.0)[None]
    how = {"objective": objective, "batch": Batch(10_000, 4, 8), "pins": Pins(hottest=2)}
    given: Any = LoadTrace(loads[None], top_k=4) if as_trace else loads
    made = plan(given, Cluster(8, 1, 7), **how)  # type: ignore[arg-type]
    assert np.flatnonzero(made.placement.logcnt[0] == 8).tolist() == [30, 31]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"batch": None}, OptionError, 'objective="time" needs the size of a step'),
        ({"dispatch": "sglang"}, OptionError, "goes with dispatch=.even. or .best., and dispatch"),
        ({"traffic": Traffic(4)}, OptionError, "does not count the nodes that tokens cross"),
        ({"batch": Batch(4, 3, 8)}, OptionError, "none that is known routes to 3 of 32 experts"),
        ({"gpu": "H1000"}, OptionError, "the GPU 'H1000' is not known"),
        ({"model": "DeepSeek-V3"}, OptionError, "DeepSeek-V3 has 256 experts in a layer, the load"),
        ({"gpu": 3}, OptionError, "gpu and model are names that eplb.cost knows, or figures"),
        ({"cluster": Cluster(2, 1, 20, speed=[1, 2])}, ClusterError, "is for GPUs that are alike"),
    ],
)
def test_time_that_is_not_known(how: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"cluster": Cluster(2, 1, 20), "batch": Batch(4, 4, 8), **how}
    with pytest.raises(error, match=message):
        plan(np.ones((1, 32)), objective="time", **given)
