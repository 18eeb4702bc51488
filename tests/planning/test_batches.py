"""`plan(..., batch=)`: placements for the batches that are split, thinned from windows."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from strategies import COMPILED

from eplb import Batch, Cluster, LoadTrace, OptionError, Placement, plan
from eplb.planning.batches import draw_batches
from eplb.planning.problem import check_problem

CLUSTER = Cluster(8, 1, 5)
DECODE = Batch(tokens_per_rank=16, top_k=4, num_ranks=8, together=True)
LOADS = np.random.default_rng(0).lognormal(0.0, 0.8, (2, 3, 32)) * 1000.0


def batches(number: int) -> NDArray[np.float64]:
    """[number, R, L, E] batches whose tokens choose about as the windows say, ranks apart."""
    rng = np.random.default_rng(1)
    found = []
    for each in range(number):
        shares = LOADS[each % 2] * rng.lognormal(0.0, 0.3, LOADS.shape[1:])
        shares /= shares.sum(axis=1, keepdims=True)
        found.append(rng.multinomial(64, shares, (8, 3)))
    return np.stack(found).astype(float)


def each_for_itself(placement: Placement, parts: NDArray[np.float64]) -> float:
    """Balancedness where every rank of [B, R, L, E] levels its own tokens."""
    load = placement.gpu_load(parts.reshape(-1, *parts.shape[2:]), "best")
    load = load.reshape(*parts.shape[:3], -1).sum(axis=1)
    return float((load.mean(axis=2) / load.max(axis=2)).mean())


def test_draws_have_the_windows_shares_and_no_expert_twice_in_a_token() -> None:
    problem = check_problem(LOADS, CLUSTER, 1, None, 1)
    drawn = draw_batches(problem, DECODE)
    assert drawn.parts is None
    windows, weight = drawn.problem.windows, drawn.problem.weight
    assert windows.shape[0] == 96
    assert weight.sum(axis=0) == pytest.approx(1.0)
    assert windows.sum(axis=2) == pytest.approx(problem.windows.sum(axis=2).repeat(48, axis=0))
    shares = windows[:48].mean(axis=0) / windows[:48].mean(axis=0).sum(axis=1, keepdims=True)
    wanted = problem.windows[0] / problem.windows[0].sum(axis=1, keepdims=True)
    assert shares == pytest.approx(wanted, abs=0.01)
    # 128 tokens that choose somewhat alike differ as 36 that do not. In units of their choices
    # these are whole numbers, none above the number of tokens.
    choices = windows / windows.sum(axis=2, keepdims=True) * 36 * 4
    assert choices == pytest.approx(np.round(choices), abs=1e-6)
    assert choices.max() <= 36
    # Smaller batches differ more, by the root of the size.
    small = draw_batches(problem, Batch(1, 4, 8, together=True)).problem.windows
    small_spread, spread = (each[:48].std(axis=0).mean() for each in (small, windows))
    assert small_spread == pytest.approx(spread * (36 / 7) ** 0.5, rel=0.1)


def test_ranks_apart_make_up_the_batch() -> None:
    problem = check_problem(LOADS, CLUSTER, 1, None, 1)
    drawn = draw_batches(problem, Batch(16, 4, 8))
    assert drawn.parts is not None
    parts = drawn.parts.reshape(96, 8, *LOADS.shape[1:])
    assert parts.sum(axis=1) == pytest.approx(drawn.problem.windows)
    assert parts[:, 0] != pytest.approx(parts[:, 1])


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
@pytest.mark.parametrize("together", [True, False])
def test_placed_for_batches_is_better_on_batches_not_seen(together: bool) -> None:
    parts = batches(60)
    made = plan(LOADS, CLUSTER, dispatch="best", batch=Batch(16, 4, 8, together))
    even = plan(LOADS, CLUSTER).placement
    assert (made.bound <= made.peak).all()

    def score(placement: Placement) -> float:
        if together:
            return placement.balancedness(parts.sum(axis=1), "best")
        return each_for_itself(placement, parts)

    # Ranks apart have the best of what is found for ranks together.
    assert score(made.placement) > score(even) + (0.004 if together else -0.003)


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
def test_layers_threads_and_the_order_of_windows_change_nothing() -> None:
    made = plan(LOADS, CLUSTER, dispatch="best", batch=DECODE, effort="fast", threads=2)
    again = plan(LOADS[::-1], CLUSTER, dispatch="best", batch=DECODE, effort="fast", threads=1)
    assert again == made
    alone = plan(LOADS[:, 1:2], CLUSTER, dispatch="best", batch=DECODE, effort="fast")
    assert np.array_equal(alone.placement.phy2log[0], made.placement.phy2log[1])


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
def test_moves_for_batches_and_the_top_k_of_a_trace() -> None:
    current = plan(LOADS[:, :, ::-1], CLUSTER, effort="fast").placement
    how: dict[str, Any] = {"dispatch": "best", "effort": "fast", "current": current}
    made = plan(LOADS, CLUSTER, batch=DECODE, max_moves=12, **how)
    stays = plan(LOADS, CLUSTER, batch=DECODE, max_moves=0, **how)
    assert stays.placement == current
    assert 0 < made.moves <= 12
    assert made.peak.sum() < stays.peak.sum()
    trace = LoadTrace(LOADS[:1], top_k=4)
    known = plan(trace, CLUSTER, dispatch="best", batch=Batch(16, None, 8), effort="fast")
    given = plan(LOADS[0], CLUSTER, dispatch="best", batch=Batch(16, 4, 8), effort="fast")
    assert np.array_equal(known.placement.phy2log, given.placement.phy2log)


def test_a_layer_with_no_load_stays() -> None:
    loads = np.array([[4.0, 3.0, 2.0, 1.0], [0.0] * 4])
    made = plan(loads, Cluster(2, 1, 3), dispatch="best", batch=DECODE, effort="fast")
    assert made.peak[1] == 0.0


@pytest.mark.parametrize(
    ("batch", "how", "message"),
    [
        ("32", {}, "batch is '32': give an eplb.Batch, or None for whole windows"),
        (DECODE, {"dispatch": "even"}, "batch goes with dispatch=\"best\", and dispatch is 'even'"),
        (Batch(4, 5, 2), {}, "top_k of batch is 5: give 1 to 4"),
        (Batch(4, None, 2), {}, "batch has no top_k, and the loads tell none"),
        (
            Batch(4, 2, 2),
            {"current": Placement.contiguous(1, 4, Cluster(2, 1, 3))},
            "batch is of ranks that split for themselves, with a current placement: give together",
        ),
    ],
)
def test_batches_that_are_refused(batch: Any, how: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        plan(np.ones((1, 4)), Cluster(2, 1, 3), batch=batch, **{"dispatch": "best"} | how)


def test_numbers_that_are_refused() -> None:
    with pytest.raises(OptionError, match="tokens_per_rank is 0: give 1 or more"):
        Batch(0, 4, 8)
    with pytest.raises(OptionError, match="num_ranks is 'all': give a whole number"):
        Batch(1, 4, "all")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="together is 1: give True or False"):
        Batch(1, 4, 8, 1)  # type: ignore[arg-type]
