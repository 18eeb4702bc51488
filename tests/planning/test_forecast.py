"""Forecasts against plain formulas, and the backtest that chooses one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorded import GPT_OSS, load_windows
from workloads import CLUSTER, write_workloads

import eplb
from eplb import Cluster, LoadsError, LoadTrace, OptionError
from eplb.planning.backtest import expected_of
from eplb.planning.forecast import (
    FORECASTS,
    Clusters,
    Decay,
    Deviation,
    Extended,
    Last,
    Mean,
    Recent,
    Scenarios,
    Smoothed,
    changed_at,
    in_no_order,
    named_forecast,
)

Loads = NDArray[np.float64]


def made(num_windows: int, seed: int = 0) -> Loads:
    """Windows of different totals; a dense layer, and one with no load now and then."""
    random = np.random.default_rng(seed)
    loads = random.lognormal(size=(num_windows, 4, 6)) * random.lognormal(size=(num_windows, 1, 1))
    loads[:, 0] = 0.0
    loads[1::3, 2] = 0.0
    return loads


def shares(loads: Loads) -> Loads:
    total = loads.sum(axis=-1, keepdims=True)
    share: Loads = np.divide(loads, total, out=np.zeros_like(loads), where=total > 0.0)
    return share


@given(st.sampled_from(sorted(FORECASTS)), st.integers(1, 40), st.integers(0, 5))
def test_scenarios_are_windows_of_one_total(name: str, num_windows: int, seed: int) -> None:
    loads = made(num_windows, seed)
    before = loads.copy()
    expected = FORECASTS[name](loads)
    assert np.array_equal(loads, before)
    assert expected.loads.shape[1:] == loads.shape[1:]
    assert expected.weights.shape == expected.loads.shape[:1]
    assert expected.weights.sum() == pytest.approx(1.0)
    assert (expected.loads >= 0.0).all()
    assert not expected.loads[:, 0].any()
    total = expected.loads.sum(axis=2)
    for layer in (1, 3):
        assert total[:, layer] == pytest.approx(np.full(len(total), total[0, layer]))
    eplb.plan(expected.loads, Cluster(3, 1, 3), weights=expected.weights, effort="fast")


def test_of_one_window_all_are_that_window() -> None:
    loads = made(1)
    for name, forecast in FORECASTS.items():
        expected = forecast(loads)
        assert len(expected.loads) == 1, name
        np.testing.assert_allclose(expected.loads, loads, rtol=1e-12)


def test_one_scenario_rules_are_their_formulas() -> None:
    loads = made(20)
    of_windows = shares(loads)[-5:, 3]
    for forecast, expected in (
        (Last(), of_windows[-1]),
        (Mean(5), of_windows.mean(axis=0)),
        (Deviation(2.0, 5), of_windows.mean(axis=0) + 2.0 * of_windows.std(axis=0)),
    ):
        found = forecast(loads).loads
        assert found.shape == (1, 4, 6)
        np.testing.assert_allclose(shares(found)[0, 3], shares(expected), rtol=1e-9)
    age = np.arange(20)[::-1]
    weighted = (shares(loads)[:, 3] * 0.5 ** (age / 3.0)[:, None]).sum(axis=0)
    np.testing.assert_allclose(shares(Decay(3.0)(loads).loads)[0, 3], shares(weighted), rtol=1e-9)


def test_windows_are_smoothed_as_far_as_they_are_noise() -> None:
    """All count where loads stay, the last alone where they wander without noise, and some where
    they do both; a layer without load lately is as it was.
    """
    random = np.random.default_rng(5)

    def away(loads: Loads, share: Loads) -> list[float]:
        rules = (Smoothed(), Mean(), Last())
        return [float(((shares(rule(loads).loads[0]) - share) ** 2).sum()) for rule in rules]

    logs = np.broadcast_to(random.normal(size=(3, 16)), (20, 3, 16))
    smoothed, mean, last = away(counted(logs, 2000, 6), shares(np.exp(logs[0])))
    assert smoothed < min(2.0 * mean, last / 8)
    logs = np.cumsum(random.normal(size=(20, 3, 16)) * 0.15, axis=0)
    wandering = np.exp(logs)
    assert away(wandering, shares(wandering[-1]))[0] < 1e-20
    smoothed, mean, last = away(counted(logs, 300, 7), shares(wandering[-1]))
    assert smoothed < min(mean, last)
    wandering[-3:, 1] = 0.0
    idle = Smoothed()(wandering).loads[0]
    np.testing.assert_allclose(shares(idle)[1], shares(wandering[16])[1], rtol=1e-9)


def test_windows_as_scenarios() -> None:
    loads = made(20)
    recent = Recent(5)(loads)
    np.testing.assert_allclose(shares(recent.loads), shares(loads[-5:]), rtol=1e-9)
    assert recent.weights.tolist() == [0.2] * 5
    extended = shares(Extended(5)(loads).loads)[:, 3]
    mean = shares(loads)[-5:, 3].mean(axis=0)
    further = np.maximum(mean + np.sqrt(6 / 4) * (shares(loads)[-5:, 3] - mean), 0.0)
    np.testing.assert_allclose(extended, shares(further), rtol=1e-9)


def test_kinds_of_windows_are_found_and_old_ones_kept() -> None:
    random = np.random.default_rng(3)
    kinds = random.lognormal(size=(3, 1, 2, 16))
    which = np.array([0] * 10 + [1] * 4 + [2] * 6)
    loads = np.concatenate([kinds[kind] for kind in which])
    loads = loads * random.lognormal(0.0, 0.02, size=loads.shape)
    expected = Clusters(3)(loads)
    assert sorted(expected.weights) == pytest.approx([0.2, 0.3, 0.5])
    for kind in range(3):
        away = np.abs(shares(expected.loads) - shares(kinds[kind])).max(axis=(1, 2))
        assert away.min() < 0.01
        assert expected.weights[away.argmin()] == pytest.approx((which == kind).mean())
    assert len(Clusters(8)(np.repeat(loads[:1], 12, axis=0)).loads) == 1


def counted(logs: Loads, tokens: int, seed: int) -> Loads:
    share = np.exp(logs)
    share /= share.sum(axis=-1, keepdims=True)
    return np.random.default_rng(seed).poisson(share * tokens).astype(np.float64)


@pytest.mark.parametrize("tokens", [500, 5_000, 50_000])
def test_a_clear_change_is_told_from_drift(tokens: int) -> None:
    for seed in range(6):
        random = np.random.default_rng(seed)
        first, second, third = random.normal(size=(3, 4, 32))
        time = np.arange(24)[:, None, None]
        jump = np.where(time < 18, first, second)
        mixed = jump.copy()
        mixed[17] = 0.5 * (first + second)
        walk = first + 0.1 * np.cumsum(random.normal(size=(24, 4, 32)), axis=0)
        for logs, found in (
            (jump, 18),
            (mixed, 18),
            (np.where(time == 23, second, first), 0),  # one window may be an accident
            (np.where(time == 12, second, first), 0),
            (np.where(time // 3 % 2 == 0, first, second), 0),
            (np.where(time < 6, second, np.where(time < 22, first, second)), 0),  # it was there
            (np.where(time < 6, second, np.where(time < 18, first, third)), 0),  # as much before
            (first + time / 24.0 * second, 0),
            (walk, 0),
            (first + 0.0 * time, 0),
        ):
            loads = counted(logs, tokens, seed)
            assert changed_at(loads) == found
            loads[::5, 0] = 0.0  # a layer has no load now and then
            assert changed_at(loads) == found


def test_rules_pass_over_what_was_before_a_clear_change() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 3, 16))
    loads = counted(np.where(np.arange(20)[:, None, None] < 16, first, second), 4000, 2)
    for rule in (Smoothed(), Mean(), Decay(), Deviation(), Recent(), Extended(), Last()):
        for each in (rule, FORECASTS["recent"]):
            assert np.array_equal(each(loads).loads, each(loads[16:]).loads)
    assert len(Clusters()(loads).loads) > len(Clusters()(loads[16:]).loads)
    # Where the change is far back, all windows since it are there.
    late = np.concatenate([loads, *[loads[16:]] * 9])
    assert np.array_equal(Mean()(late).loads, Mean()(late[-32:]).loads)


def test_a_change_that_comes_late_is_planned_for() -> None:
    random = np.random.default_rng(4)
    first, second = random.normal(size=(2, 3, 32)) * 0.7
    loads = counted(np.where(np.arange(60)[:, None, None] < 56, first, second), 20_000, 5)
    trace = LoadTrace(loads)
    after = LoadTrace(counted(np.broadcast_to(second, (8, 3, 32)), 20_000, 6))
    cluster = Cluster(8, 1, 5)
    found = expected_of(trace, cluster, effort="fast")
    made = eplb.plan(found.scenarios.loads, cluster, weights=found.scenarios.weights)
    whole = eplb.plan(loads.sum(axis=0), cluster)
    assert made.placement.balancedness(after.loads) > 0.96
    assert whole.placement.balancedness(after.loads) < 0.7
    assert found.words is not None
    assert "Loads changed clearly at window 56" in found.words


def test_names() -> None:
    assert named_forecast("recent") is FORECASTS["recent"]
    with pytest.raises(OptionError, match="no forecast is called 'luck': give smoothed, last"):
        named_forecast("luck")


def test_on_recorded_windows_scenarios_win(traces: Path) -> None:
    trace = LoadTrace(load_windows(traces, GPT_OSS)).pick(range(70))
    cluster = Cluster(num_gpus=8, slots_per_gpu=5)
    tried = eplb.backtest(trace, cluster, every=2, first=30)
    scores = tried.scores
    assert list(scores) == list(FORECASTS)
    assert tried.top == max(scores, key=lambda name: scores[name])
    assert scores[tried.best] > max(scores[name] for name in ("last", "mean", "decay")) + 0.03
    alone = eplb.replay(trace, cluster, "recent", every=2, first=30)
    assert scores["recent"] == alone.average()


def test_a_simple_rule_that_ties_is_chosen() -> None:
    random = np.random.default_rng(0)
    share = random.lognormal(size=(1, 2, 8))
    still = LoadTrace(random.poisson(10_000 * np.repeat(share, 40, axis=0)).astype(np.float64))
    cluster = Cluster(num_gpus=4, slots_per_gpu=3)
    tried = eplb.backtest(still, cluster, {"first": Mean(), "second": Mean()}, effort="fast")
    assert (tried.best, tried.top) == ("first", "first")
    assert tried.schedule.first == 20
    few = eplb.backtest(still.pick(range(4)), cluster, ["last", "recent"], effort="fast")
    assert few.best == "last"  # nothing can be said of so few, and they are alike


def test_a_rule_that_is_worse_is_not_chosen() -> None:
    random = np.random.default_rng(0)
    share = random.lognormal(0.0, 1.0, size=(1, 2, 8))
    still = LoadTrace(random.poisson(10_000 * np.repeat(share, 120, axis=0)).astype(np.float64))

    def wrong(loads: Loads) -> Scenarios:
        return Scenarios(loads[-1:, :, ::-1].copy(), np.ones(1))

    cluster = Cluster(num_gpus=4, slots_per_gpu=3)
    tried = eplb.backtest(still, cluster, {"wrong": wrong, "mean": Mean()}, effort="fast")
    assert (tried.best, tried.top) == ("mean", "mean")


def test_what_is_wrong_is_told() -> None:
    cluster = Cluster(num_gpus=4, slots_per_gpu=3)
    with pytest.raises(LoadsError, match="the trace has 1 window: 2 are needed to try a forecast"):
        eplb.backtest(LoadTrace(np.ones((1, 2, 8))), cluster)
    with pytest.raises(OptionError, match="no forecast is called 'luck'"):
        eplb.backtest(LoadTrace(np.ones((3, 2, 8))), cluster, ["luck"])


def held_out_in_turn(trace: LoadTrace) -> float:
    """Balancedness of plans for all windows but one on that one, mean over windows and layers."""
    found = []
    for window in range(len(trace)):
        others = np.delete(trace.loads, window, axis=0)
        expected = Recent(None)(others)
        placed = eplb.plan(expected.loads, CLUSTER, weights=expected.weights).placement
        found.append(placed.balancedness(trace.loads[window]))
    return float(np.mean(found))


def test_workloads_in_no_order_are_each_held_out(tmp_path: Path) -> None:
    """And all are planned for, in whatever order their names put them."""
    trace = eplb.load_trace(write_workloads(tmp_path))
    found = expected_of(trace, CLUSTER)
    score = held_out_in_turn(trace)
    assert found.tried is not None
    assert found.tried.windows == 5
    assert found.tried.scores == {"recent": pytest.approx(score, abs=1e-12)}
    assert found.words == (
        "Planned for: 5 workloads in no order, all alike. Each of 5 workloads held out in turn, "
        f"plans for the others gave {score:.4f}"
    )
    assert found.scenarios.weights.tolist() == [0.2] * 5
    assert shares(found.scenarios.loads) == pytest.approx(shares(trace.loads))
    turned = expected_of(trace.pick([3, 1, 4, 0, 2]), CLUSTER).scenarios
    again = eplb.plan(turned.loads, CLUSTER, weights=turned.weights)
    assert again == eplb.plan(found.scenarios.loads, CLUSTER, weights=found.scenarios.weights)
    tried = eplb.backtest(trace, CLUSTER)
    assert list(tried.scores) == ["mean", "deviation", "recent", "extended", "clusters"]


def test_windows_in_no_order_have_no_last_one_and_no_change() -> None:
    before, after = np.array([[4e6, 2e6, 1e6]]), np.array([[1e6, 2e6, 4e6]])
    loads = np.array([before] * 40 + [after] * 2)
    assert changed_at(loads) == 40
    assert len(in_no_order(Recent())(loads).loads) == 42
    assert len(in_no_order(Clusters(clusters=50))(loads).loads) == 42
    for name in ("smoothed", "last", "decay"):
        with pytest.raises(OptionError, match=f"forecast {name} goes by the order of windows"):
            in_no_order(FORECASTS[name])
    trace = LoadTrace(loads, ordered=False)
    words = expected_of(trace, Cluster(2, 1, 2), "recent").words
    assert words == "Planned for: recent, 42 scenarios of 42 workloads in no order"
