"""Figures that describe loads: equal to their definitions, blind to what does not matter."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from eplb import LoadTrace
from eplb.describe import OF_GPUS, Drift, drift, heat, heat_map, inspect_trace, skew
from eplb.errors import LoadsError

COUNTS = st.one_of(st.just(0.0), st.integers(1, 10**6).map(float))
TRACES = arrays(
    np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 12)), elements=COUNTS
)


def plain_skew(row: NDArray[np.float64]) -> tuple[float, float, float, int]:
    """Hottest, top fifth, spread and idle experts of one layer, as their names say."""
    ordered = sorted(row, reverse=True)
    mean = sum(ordered) / len(ordered)
    fifth = max(1, round(len(ordered) / 5))
    return (
        ordered[0] / mean,
        sum(ordered[:fifth]) / sum(ordered),
        float(np.std([np.log(load) for load in ordered if load])),
        sum(load < mean / 100 for load in ordered),
    )


def plain_pair(one: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[float, float]:
    """Correlation and spread of two windows [L, E], means over layers; NaN where there is none."""
    correlations, spreads = [], []
    for first, second in zip(one, other, strict=True):
        if np.ptp(first) and np.ptp(second):
            correlations.append(np.corrcoef(first, second)[0, 1])
        both = (first > 0) & (second > 0)
        if both.any():
            spreads.append(np.std(np.log(first[both]) - np.log(second[both])))
    return (
        float(np.mean(correlations)) if correlations else np.nan,
        float(np.mean(spreads)) if spreads else np.nan,
    )


@given(TRACES)
def test_skew_is_its_definition(loads: NDArray[np.float64]) -> None:
    found = skew(loads)
    rows = loads.reshape(-1, loads.shape[-1])
    loaded = [number for number, row in enumerate(rows) if row.any()]
    assert found.layer.tolist() == [number % loads.shape[1] for number in loaded]
    expected = [plain_skew(rows[number]) for number in loaded]
    got = zip(found.hottest, found.top_fifth, found.spread, found.idle, strict=True)
    for one, other in zip(got, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


@given(TRACES)
def test_drift_is_its_definition(loads: NDArray[np.float64]) -> None:
    found = drift(LoadTrace(loads))
    num_windows = len(loads)
    assert found.lags == tuple(lag for lag in (1, 2, 4, 8) if lag < num_windows)
    assert found.correlation_of_pairs is not None
    assert found.spread_of_pairs is not None
    pairs = np.array([[plain_pair(one, other) for other in loads] for one in loads])
    np.testing.assert_allclose(found.correlation_of_pairs, pairs[..., 0], atol=1e-9)
    # Where windows are equal, what is left of the difference is the root of a rounding.
    np.testing.assert_allclose(found.spread_of_pairs, pairs[..., 1], atol=1e-6)
    ends = (found.first_last_correlation, found.first_last_spread)
    np.testing.assert_allclose(ends, pairs[0, -1], atol=1e-6)


def test_lags_are_means_over_layers_and_pairs() -> None:
    loads = np.random.default_rng(0).integers(1, 100, size=(9, 4, 6)).astype(float)
    found = drift(LoadTrace(loads))
    for lag, correlation, spread in zip(found.lags, found.correlation, found.spread, strict=True):
        pairs = [plain_pair(loads[at], loads[at + lag]) for at in range(9 - lag)]
        assert (correlation, spread) == pytest.approx(np.mean(pairs, axis=0))


def test_many_windows_and_layers_are_worked_on_in_parts() -> None:
    """The same figures whether or not the trace is cut; no table of pairs above 64 windows."""
    random = np.random.default_rng(1)
    loads = random.integers(0, 50, size=(70, 80, 256)).astype(float)
    loads[:, 3] = 0.0
    found = drift(LoadTrace(loads))
    assert found.correlation_of_pairs is None
    assert found.spread_of_pairs is None
    halves = [drift(LoadTrace(loads[:, part])) for part in (slice(4), slice(4, None))]
    # The first has 3 layers with a load, the second 76.
    for name in ("correlation", "spread"):
        first, second = (getattr(half, name) for half in halves)
        np.testing.assert_allclose(getattr(found, name), (3 * first + 76 * second) / 79)
    whole = skew(loads)
    assert whole.layer.size == 70 * 79
    np.testing.assert_array_equal(skew(loads[-1]).hottest, whole.hottest[-79:])
    np.testing.assert_array_equal(skew(loads[-1]).spread, whole.spread[-79:])


@given(TRACES, st.integers(1, 1000))
def test_amount_of_load_and_order_of_experts_do_not_matter(
    loads: NDArray[np.float64], times: int
) -> None:
    changed = loads[..., ::-1] * times
    np.testing.assert_allclose(skew(loads).spread, skew(changed).spread, atol=1e-9)
    np.testing.assert_allclose(skew(loads).hottest, skew(changed).hottest)
    one, other = drift(LoadTrace(loads)), drift(LoadTrace(changed))
    np.testing.assert_allclose(one.correlation, other.correlation, atol=1e-9)
    np.testing.assert_allclose(one.spread, other.spread, atol=1e-6)


def test_even_loads() -> None:
    even = skew(np.full((2, 10), 0.1))
    assert even.hottest == pytest.approx([1.0, 1.0])
    assert even.top_fifth == pytest.approx([0.2, 0.2])
    assert even.spread == pytest.approx([0.0, 0.0])
    assert even.idle.tolist() == [0, 0]
    assert np.isnan(drift(LoadTrace(np.full((2, 1, 10), 0.1))).correlation).all()


def test_nothing_to_compare() -> None:
    assert skew(np.zeros((3, 4))).layer.size == 0
    found = drift(LoadTrace(np.zeros((2, 3, 4))))
    assert np.isnan([found.first_last_correlation, found.first_last_spread]).all()
    alone = drift(LoadTrace(np.array([[[1.0, 2.0]]])))
    assert (alone.lags, alone.correlation.size, alone.spread.size) == ((), 0, 0)
    assert alone.first_last_correlation == pytest.approx(1.0)
    assert alone.first_last_spread == 0.0


def test_wrong_loads() -> None:
    with pytest.raises(LoadsError, match="give layers and experts last"):
        skew([1.0, 2.0])
    with pytest.raises(LoadsError, match=r"loads\[1, 0\] is -1.0"):
        skew([[1.0], [-1.0]])


def test_a_thousand_windows_in_bounded_memory() -> None:
    random = np.random.default_rng(2)
    loads = random.integers(0, 1000, size=(1000, 58, 256)).astype(float)
    loads.flags.writeable = False
    trace = LoadTrace(loads)
    found: Drift = drift(trace)
    skew(trace.loads)
    assert found.lags[-1] == 512
    tracemalloc.start()
    skew(trace.loads[:200])
    drift(trace.pick(slice(200)))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 70e6


def test_heat_and_the_hottest_experts() -> None:
    loads = np.array([[[1.0, 3.0, 0.0, 0.0], [0.0] * 4, [2.0, 2.0, 2.0, 2.0]]] * 2)
    loads[1, 0] = [3.0, 1.0, 0.0, 0.0]
    trace = LoadTrace(loads)
    assert heat(trace).tolist() == [[2.0, 2.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4]
    found = inspect_trace(trace).hottest_experts
    assert [(each.layer, each.expert, each.times_mean) for each in found] == [
        (0, 0, 2.0),
        (0, 1, 2.0),
        (2, 0, 1.0),
        (2, 1, 1.0),
        (2, 2, 1.0),
    ]


def test_a_heat_map_shows_the_hottest_of_what_shares_a_sign() -> None:
    loads = np.full((40, 10), 0.5)
    loads[3, 9], loads[39, 0] = 1.05, 2.0
    legend, lines = heat_map({"": loads}, range(100, 140), "GPU", OF_GPUS, width=16)
    assert legend.startswith("Each sign is the load of the hottest of 2 or 3 layers and 2 GPUs: ")
    assert "'#'" not in legend
    assert lines[0] == "100-102 |     |"
    assert lines[1] == "103-105 |    ▒|"
    assert lines[-1] == "138-139 |█    |"
    assert len(lines) == 16


def test_heat_maps_stand_side_by_side_within_the_width() -> None:
    loads = np.array([[1.0, 2.0, 0.0], [0.95, 1.2, 0.0]])
    legend, lines = heat_map(
        {"now": loads, "later": loads[:, ::-1]}, [3, 12], "GPU", OF_GPUS, width=60, signs=" .:*#"
    )
    assert legend.startswith("Each sign is the load of one GPU of a layer: ' ' below 0.9 of the ")
    assert lines == ["layer now   later", "    3 |:# | | #:|", "   12 |.* | | *.|"]
    for width in (30, 40, 80, 200):
        _, wide = heat_map(
            {"now": np.ones((2, 72)), "later": np.ones((2, 72))}, [3, 12], "GPU", OF_GPUS, width
        )
        assert max(map(len, wide)) <= width
