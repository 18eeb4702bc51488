"""Synthetic loads: their parameters do what they say, and the same seed gives the same loads."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb import LoadTrace
from eplb.describe import drift, skew
from eplb.errors import LoadsError
from eplb.synthetic import PRESETS, Phase, Workload, deepseek_v3, trace, workloads

SMALL = Workload(model="small", num_layers=12, num_experts=64, top_k=4, skew=(0.6, 0.8))


# --- the process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_shape_and_totals(name: str) -> None:
    preset = PRESETS[name]
    made = trace(name, num_windows=2, tokens_per_window=3_000)
    dense = preset.num_dense_layers
    assert made.loads.shape == (2, dense + preset.num_layers, preset.num_experts)
    assert made.dense.tolist() == [True] * dense + [False] * preset.num_layers
    assert (made.loads[:, dense:].sum(axis=-1) == 3_000 * preset.top_k).all()
    assert (made.loads == made.loads.round()).all()
    assert (made.top_k, made.model) == (preset.top_k, preset.model)


workload_strategy = st.builds(
    Workload,
    model=st.just("any"),
    num_layers=st.integers(1, 3),
    num_experts=st.integers(4, 12),
    top_k=st.integers(1, 4),
    skew=st.tuples(st.floats(1.0, 3.0), st.floats(3.0, 6.0)),
    num_dense_layers=st.integers(0, 2),
    tail=st.floats(-0.8, 0.3),
    num_topics=st.integers(1, 4),
    topic_spread=st.floats(0.0, 1.4),
    topics_at_once=st.integers(1, 3),
    topic_tokens=st.floats(1.0, math.inf),
    burst_spread=st.floats(0.0, 3.0),
    burst_tokens=st.floats(50.0, 1e4),
    burst_gap=st.floats(0.0, math.inf),
)


@given(workload_strategy, st.integers(1, 5), st.integers(1, 300), st.integers(0, 2**40))
def test_every_token_goes_to_top_k_different_experts(
    workload: Workload, num_windows: int, tokens: int, seed: int
) -> None:
    made = trace(workload, num_windows=num_windows, tokens_per_window=tokens, seed=seed)
    loads = made.loads[:, workload.num_dense_layers :]
    assert loads.shape == (num_windows, workload.num_layers, workload.num_experts)
    assert (loads.sum(axis=-1) == tokens * workload.top_k).all()
    assert loads.max() <= tokens


@given(workload_strategy, st.integers(1, 5), st.integers(0, 3))
def test_fewer_windows_are_the_beginning_of_more(workload: Workload, few: int, more: int) -> None:
    short = trace(workload, num_windows=few, tokens_per_window=100, seed=5)
    long = trace(workload, num_windows=few + more, tokens_per_window=100, seed=5)
    assert short.loads.tobytes() == long.loads[:few].tobytes()


@pytest.mark.parametrize("name", PRESETS)
def test_seed_decides(name: str) -> None:
    def made(seed: int) -> bytes:
        return trace(name, num_windows=2, tokens_per_window=1_000, seed=seed).loads.tobytes()

    assert made(3) == made(3)
    assert made(3) != made(4)


def test_size_of_windows_does_not_change_the_process() -> None:
    """Small windows added up are the large ones but for the noise of counting."""
    changes: dict[str, Any] = {
        "num_topics": 4, "topic_spread": 0.8, "topic_tokens": 150_000.0,
        "burst_spread": 0.5, "burst_tokens": 30_000.0, "burst_gap": 60_000.0,
    }  # fmt: skip
    small = trace(SMALL, num_windows=160, tokens_per_window=10_000, **changes)
    large = trace(SMALL, num_windows=10, tokens_per_window=160_000, **changes)
    merged = small.merged(16)
    assert drift(large).spread[0] > 0.2
    for one, other in zip(merged.loads, large.loads, strict=True):
        apart = drift(LoadTrace(np.stack([one, other])))
        # 10,000 selections an expert, drawn twice.
        assert apart.spread[0] < 0.03
    still: dict[str, Any] = {"num_topics": 1, "burst_spread": 0.0}
    small = trace(SMALL, num_windows=8, tokens_per_window=10_000, **still)
    large = trace(SMALL, num_windows=1, tokens_per_window=80_000, **still)
    difference = small.total() - large.total()
    # Both are drawn, so the variance of the difference is twice the mean.
    assert (difference**2 / (small.total() + large.total())).mean() == pytest.approx(1.0, abs=0.2)


# --- what parameters say -------------------------------------------------------------------------


def mean_spread(**changes: Any) -> tuple[float, float]:
    """Least and greatest spread of layers, of shares that stand still."""
    made = trace(SMALL, num_windows=1, tokens_per_window=10**7, num_experts=4000, **changes)
    spread = skew(made.loads).spread
    return float(spread.min()), float(spread.max())


@pytest.mark.parametrize("tail", [0.0, 0.1, -0.3])
def test_skew_is_the_deviation_of_the_log_of_shares(tail: float) -> None:
    assert mean_spread(skew=(0.5, 1.0), tail=tail) == pytest.approx((0.5, 1.0), rel=0.07)


def test_tail_makes_experts_idle_or_hot() -> None:
    found = {}
    for tail in (-0.3, 0.0, 0.1):
        made = trace(SMALL, num_windows=1, tokens_per_window=10**7, num_layers=100, tail=tail,
                     skew=(1.5, 1.5))  # fmt: skip
        found[tail] = skew(made.loads)
    assert found[-0.3].idle.mean() > 1.5 * found[0.0].idle.mean()
    assert found[-0.3].hottest.mean() < 0.8 * found[0.0].hottest.mean()
    assert found[0.1].hottest.mean() > 1.1 * found[0.0].hottest.mean()


@pytest.mark.parametrize("spread", [0.2, 0.4, 0.8])
def test_topic_spread_is_the_deviation_of_the_log_ratio(spread: float) -> None:
    """With topics about as long as a window, of many topics, one at a time."""
    made = trace(SMALL, num_windows=60, tokens_per_window=10**6, num_topics=50,
                 topic_spread=spread, topic_tokens=2e7)  # fmt: skip
    found = drift(made)
    assert found.spread_of_pairs is not None
    most = np.quantile(found.spread_of_pairs, 0.9)
    assert most == pytest.approx(spread, rel=0.1)


def correlation(lag: int = 1, **changes: Any) -> float:
    """Between windows so far apart, with topics and bursts."""
    usual: dict[str, Any] = {
        "num_topics": 8, "topic_spread": 0.6, "topic_tokens": 500_000.0,
        "num_windows": 200, "tokens_per_window": 50_000,
    }  # fmt: skip
    found = drift(trace(SMALL, **(usual | changes)))
    return float(found.correlation[found.lags.index(lag)])


def test_more_spread_and_shorter_topics_lower_the_correlation() -> None:
    usual = correlation(8)
    assert correlation(8, topic_spread=0.3) > usual + 0.05
    assert correlation(8, topic_spread=0.84) < usual - 0.05
    assert correlation(8, topic_tokens=5e6) > usual + 0.05
    assert correlation(8, topics_at_once=8) > usual + 0.05
    assert correlation(1) > usual + 0.05


def test_topics_return() -> None:
    """Of two topics, windows far apart are alike half the time; of many, hardly ever."""
    few, many = (
        trace(SMALL, num_windows=64, tokens_per_window=10**6, num_topics=count,
              topic_spread=0.8, topic_tokens=2e6)
        for count in (2, 64)
    )  # fmt: skip
    alike = []
    for made in (few, many):
        pairs = drift(made).spread_of_pairs
        assert pairs is not None
        alike.append((pairs[np.triu_indices(64, 16)] < 0.1).mean())
    assert alike[0] > 0.15
    assert alike[1] < 0.05


def test_bursts_raise_the_hottest_and_pass() -> None:
    bursts: dict[str, Any] = {"burst_spread": 1.0, "burst_tokens": 1e5, "burst_gap": 3e5}
    made = {
        name: trace(SMALL, num_windows=400, tokens_per_window=10_000, **changes)
        for name, changes in (("plain", {}), ("bursts", bursts))
    }
    hottest = {
        name: skew(one.loads).hottest.reshape(400, -1).mean(axis=1) for name, one in made.items()
    }
    ratio = hottest["bursts"] / hottest["plain"]
    # A quarter of the tokens is within bursts.
    assert 0.1 < (ratio > 1.15).mean() < 0.5
    assert 0.5 < (np.abs(ratio - 1.0) < 0.05).mean() < 0.9
    stronger = trace(SMALL, num_windows=400, tokens_per_window=10_000,
                     **(bursts | {"burst_spread": 2.0}))  # fmt: skip
    assert skew(stronger.loads).hottest.mean() > 1.1 * hottest["bursts"].mean()


def test_fewer_tokens_are_noisier() -> None:
    """Neighbours of a process that stands still differ as counts do that are drawn."""
    spreads = {}
    for tokens in (1_000, 100_000):
        made = trace(SMALL, num_windows=50, tokens_per_window=tokens, skew=(0.0, 0.0))
        spreads[tokens] = drift(made).spread[0]
        mean = tokens * SMALL.top_k / SMALL.num_experts
        assert spreads[tokens] == pytest.approx(math.sqrt(2.0 / mean), rel=0.05)


def test_phases_have_their_skew_and_correlation() -> None:
    phases = (Phase("a"), Phase("b", 0.5, (0.6, 0.8)), Phase("c", 2.0, (0.0, 3.0)))
    made = workloads(SMALL, tokens=10**7, phases=phases, num_experts=2000, skew=(0.4, 0.4))
    assert made.names == ("a", "b", "c")
    logs = np.log(made.loads)
    assert logs.std(axis=-1).mean(axis=-1) == pytest.approx([0.4, 0.2, 0.8], rel=0.05)
    found = np.mean([np.corrcoef(layer) for layer in logs.swapaxes(0, 1)], axis=0)
    np.testing.assert_allclose(
        found, [[1.0, 0.6, 0.0], [0.6, 1.0, 0.8], [0.0, 0.8, 1.0]], atol=0.05
    )


def test_a_trace_shows_the_first_phase() -> None:
    """The same seed is the same model: the experts that are hot in the one are in the other."""
    whole = workloads("deepseek-v3")
    window = trace("deepseek-v3", num_windows=1, tokens_per_window=10**6)
    found = drift(LoadTrace(np.concatenate([window.loads, whole.loads])))
    assert found.correlation_of_pairs is not None
    first = found.correlation_of_pairs[0, 1:]
    assert first[0] > 0.9
    assert (np.diff(first) < 0.0).all()


def test_deepseek_v3() -> None:
    loads = deepseek_v3(tokens=1_000)
    assert loads.shape == (58, 256)
    assert (loads.sum(axis=1) == 8_000).all()
    assert np.array_equal(deepseek_v3(seed=3), deepseek_v3(seed=3))
    assert not np.array_equal(deepseek_v3(seed=3), deepseek_v3(seed=4))


def test_a_thousand_windows() -> None:
    made = trace("deepseek-v3", num_windows=1000, tokens_per_window=100_000)
    assert made.num_windows == 1000
    assert (made.loads[:, 3:].sum(axis=2) == 800_000).all()


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0: give 1 or more"),
        ({"num_experts": 2.5}, "num_experts is 2.5: give a whole number, 1 or more"),
        ({"num_dense_layers": -1}, "num_dense_layers is -1: give 0 or more"),
        ({"top_k": 65}, "top_k is 65: a token goes to 1 to 64 experts"),
        ({"skew": (0.8, 0.6)}, r"skew is \(0.8, 0.6\): give the least and the greatest, from 0 to"),
        ({"skew": 0.7}, "skew is 0.7: give the least and the greatest"),
        ({"tail": math.nan}, "tail is nan: give -1 to 1"),
        ({"num_topics": 0}, "num_topics is 0: give 1 or more"),
        ({"topic_spread": 0.9}, r"topic_spread is 0.9: give at most .* least skew, 0.8485"),
        ({"topic_spread": -1.0}, "topic_spread is -1.0: give 0 or more"),
        ({"topics_at_once": 0}, "topics_at_once is 0: give 1 or more"),
        ({"topic_tokens": 0.0}, "topic_tokens is 0.0: give 1 or more or infinity"),
        ({"burst_spread": 2.5}, "burst_spread is 2.5: give at most 4 times the least skew, 2.4"),
        ({"burst_spread": math.inf}, "burst_spread is inf: give 0 or more"),
        ({"burst_tokens": "long"}, "burst_tokens is 'long': give 1 or more or infinity"),
        ({"burst_gap": -1.0}, "burst_gap is -1.0: give 0 or more or infinity"),
        ({"phases": ()}, r"phases are \(\): give 1 Phase or more"),
        ({"layers": 3}, "a workload has no 'layers': it has model, num_layers, "),
        ({"num_windows": 0}, "num_windows is 0: give 1 or more"),
        ({"tokens_per_window": 1.5}, "tokens_per_window is 1.5: give a whole number, 1 or more"),
        ({"seed": -1}, "seed is -1: give 0 or more"),
    ],
)
def test_wrong_values(wrong: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"num_windows": 1, "tokens_per_window": 10}
    with pytest.raises(LoadsError, match=f"^{message}"):
        trace(SMALL, **(usual | wrong))


def test_wrong_presets_and_phases() -> None:
    with pytest.raises(
        LoadsError, match="there is no preset 'deepseek-v4': give one of deepseek-v3, "
    ):
        workloads("deepseek-v4")
    with pytest.raises(LoadsError, match="tokens is 0: give 1 or more"):
        workloads(SMALL, tokens=0)
    with pytest.raises(LoadsError, match="tokens is 0: give"):
        deepseek_v3(tokens=0)
    with pytest.raises(LoadsError, match=r"direction is \(0.0,\): give a vector"):
        Phase("still", direction=(0.0,))
    with pytest.raises(LoadsError, match=r"skew is -1.0: give 0 or more"):
        Phase("still", skew=-1.0)


@pytest.mark.parametrize(
    ("preset", "windows", "tokens", "message"),
    [
        ("deepseek-v3", 10**9, 1, "1,000,000,000 windows .* 116,348 GiB.*: give 34,379 w"),
        ("deepseek-v3", 1, 10**18, "a window has 1,0.* tokens: give 576,460,752,303,423,488 or"),
        ("deepseek-v3", 100, 10**13, ".* topics or bursts .*: give 6,250,000,000,000 tokens or"),
        ("gpt-oss-20b", 4, 10**9, "4 windows of 1,0.* tokens hold more .*: give 900,000,000"),
    ],
)
def test_traces_too_large_to_draw(preset: str, windows: int, tokens: int, message: str) -> None:
    with pytest.raises(LoadsError, match=f"^{message}"):
        trace(preset, num_windows=windows, tokens_per_window=tokens)
