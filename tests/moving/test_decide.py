"""Whether to move: when it pays, when it does not, and not over and over."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorded import GPT_OSS, load_windows

import eplb
from eplb import Cluster, Decision, OptionError, Placement, Service
from eplb.moving.decide import _in_words
from eplb.moving.service import OVERHEADS

CLUSTER = Cluster(8, 1, 5)
SERVICE = Service(10**9, 100.0, 100.0, expert_share=0.5)
"""A GPU receives an expert in 10 ms, while the service stands still."""

Loads = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def windows_of(loads: Loads, number: int, seed: int = 0, noise: float = 0.05) -> Loads:
    rng = np.random.default_rng(seed)
    made: Loads = loads * rng.lognormal(0.0, noise, (number, *loads.shape))
    return made


def two_states(seed: int, num_layers: int = 1) -> tuple[Loads, Loads]:
    rng = np.random.default_rng(seed)
    one, other = rng.lognormal(0.0, 1.0, (2, num_layers, 32))
    return one, other


def peaks(placement: Placement, windows: Loads) -> Loads:
    """[T] sum over layers of the busiest GPU's load."""
    made: Loads = placement.gpu_load(windows).max(axis=2).sum(axis=1)
    return made


def test_moves_when_it_pays_and_says_what_it_would() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, 80)
    found = eplb.decide(windows, CLUSTER, old, SERVICE, 60.0)
    assert (found.action, found.layers, found.verdict.windows) == ("move", (0, 1, 2), 80)
    assert found.placement is found.plan.placement
    assert found.moves == found.plan.placement.moves_from(old) > 0
    assert found.total_bytes == found.moves * 10**9
    # Each GPU receives its experts one after another.
    held = [
        [set(row) for row in placement.phy2log[layer].reshape(8, 5).tolist()]
        for placement in (old, found.plan.placement)
        for layer in range(3)
    ]
    received = [
        sum(len(held[3 + layer][gpu] - held[layer][gpu]) for layer in range(3)) for gpu in range(8)
    ]
    assert found.moving_seconds == pytest.approx(max(received) * 0.01)
    assert found.lost_seconds == pytest.approx(found.moving_seconds)
    assert found.gained_seconds == pytest.approx(0.5 * 60.0 * found.gain)
    interval = found.verdict.interval
    assert interval is not None
    assert interval.low <= found.verdict.gain <= interval.high
    truth = 1.0 - peaks(found.plan.placement, windows).sum() / peaks(old, windows).sum()
    assert found.gain == pytest.approx(truth, abs=0.05)
    assert f"lower the peaks by {100 * found.gain:.1f} %" in found.reason
    assert "on windows held out" in found.reason


def test_waits_when_nothing_is_gained() -> None:
    loads, _ = two_states(0, 3)
    old = eplb.plan(loads, CLUSTER).placement
    found = eplb.decide(loads, CLUSTER, old, SERVICE, 1e4)
    assert (found.action, found.layers, found.placement) == ("wait", (), None)
    assert (found.moves, found.gain, found.lost_seconds, found.total_bytes) == (0, 0.0, 0.0, 0)
    assert found.reason.startswith("no expert would gain 2 times the cost of its move in the 10000")
    for idle in (np.zeros((3, 32)), np.zeros((6, 3, 32))):
        assert eplb.decide(idle, CLUSTER, old, SERVICE, 1e4).action == "wait"


def test_waits_when_the_time_is_short_or_moving_dear() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, 32)
    moves = [
        eplb.decide(windows, CLUSTER, old, SERVICE, seconds).moves
        for seconds in (1e-3, 0.1, 0.3, 1.0, 10.0, 1e3)
    ]
    assert moves == sorted(moves)
    assert moves[0] == 0 < moves[-1]
    short = eplb.decide(windows, CLUSTER, old, SERVICE, 1e-3)
    assert (short.action, short.placement) == ("wait", None)
    heavy = replace(SERVICE, expert_bytes=10**14)
    assert eplb.decide(windows, CLUSTER, old, heavy, 60.0).action == "wait"
    free = replace(SERVICE, stall=0.0, expert_bytes=10**14)
    assert eplb.decide(windows, CLUSTER, old, free, 1e-3).action == "move"


@given(seeds, st.floats(0.01, 100.0), st.floats(1.0, 5.0), st.integers(1, 24))
@settings(max_examples=25)
def test_a_move_is_worth_a_margin_times_its_cost(
    seed: int, seconds: float, margin: float, number: int
) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.lognormal(0.0, 1.0, (2, 2, 16))
    cluster = Cluster(4, 2, 5)
    old = eplb.plan(before, cluster).placement
    service = Service(10**9, 100.0, 30.0)
    windows = windows_of(after, number, seed, 0.3)
    found = eplb.decide(windows, cluster, old, service, seconds, margin=margin)
    assert found.verdict.windows == (number if number > 1 else 0)
    assert found.lost_seconds == pytest.approx(found.moving_seconds)
    if found.action == "wait":
        assert found.placement is None
        assert found.layers == ()
        return
    assert found.gained_seconds >= margin * found.lost_seconds > 0.0
    assert found.verdict.advised
    changed = (found.plan.placement.phy2log != old.phy2log).any(axis=1)
    assert found.layers == tuple(np.flatnonzero(changed).tolist())


def test_waits_when_gains_do_not_last() -> None:
    """What was hot is never hot again: a plan for the windows known helps none of them later."""
    rng = np.random.default_rng(0)
    windows = rng.permuted(np.tile(np.arange(1.0, 33.0) ** 4, (32, 1, 1)), axis=2)
    old = eplb.plan(np.ones((1, 32)), CLUSTER).placement
    made = eplb.plan(windows, CLUSTER, current=old, effort="fast").placement
    assert peaks(made, windows).mean() < 0.97 * peaks(old, windows).mean()
    found = eplb.decide(windows, CLUSTER, old, replace(SERVICE, expert_bytes=10**6), 60.0)
    assert found.action == "wait"
    assert found.moves > 0
    assert found.gain < 0.01
    assert "on windows held out" in found.reason


def test_one_window_is_taken_as_it_is() -> None:
    before, after = two_states(0, 2)
    old = eplb.plan(before, CLUSTER).placement
    found = eplb.decide(after, CLUSTER, old, SERVICE, 60.0)
    assert (found.action, found.verdict.windows, found.verdict.interval) == ("move", 0, None)
    now, then = peaks(old, after[None])[0], peaks(found.plan.placement, after[None])[0]
    assert found.gain == pytest.approx((now - then) / now, abs=0.02)
    assert "if the load stays as it is" in found.reason


def test_only_the_layers_that_gain_move() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    changed = before.copy()
    changed[1] = after[1]
    found = eplb.decide(windows_of(changed, 32, noise=0.01), CLUSTER, old, SERVICE, 3.0)
    assert (found.action, found.layers) == ("move layers", (1,))
    assert found.placement is not None
    assert np.array_equal(found.placement.phy2log[[0, 2]], old.phy2log[[0, 2]])
    assert "in 1 of 3 layers" in found.reason


def test_a_budget_is_kept() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, 16)
    free = eplb.decide(windows, CLUSTER, old, SERVICE, 60.0)
    few = eplb.decide(windows, CLUSTER, old, SERVICE, 60.0, max_moves=4)
    assert 0 < few.moves <= 4 < free.moves
    assert few.gain < free.gain
    none = eplb.decide(windows, CLUSTER, old, SERVICE, 60.0, max_moves=0)
    assert (none.action, none.moves) == ("wait", 0)


def test_waits_where_the_gain_may_be_none() -> None:
    """Loads of which some windows gain much and others lose: how sure the gain is counts too."""
    rng = np.random.default_rng(1)
    before, after = two_states(1)
    old = eplb.plan(before, CLUSTER).placement
    seen = set()
    for late in (4, 24, 64):
        some = rng.permutation(96) < late
        windows = np.where(some[:, None, None], after, before)
        windows = windows * rng.lognormal(0.0, 0.3, windows.shape)
        for seconds in np.geomspace(0.05, 50.0, 6).tolist():
            found = eplb.decide(windows, CLUSTER, old, SERVICE, seconds)
            if not found.moves:
                continue
            enough = found.gained_seconds >= 2.0 * found.lost_seconds
            sure = found.verdict.advised
            assert (found.action != "wait") == (enough and sure)
            assert found.reason.endswith("it may gain nothing") == (not sure and found.gain >= 0.0)
            if sure and not enough:
                assert found.reason.endswith("the gain is not 2 times the cost")
            seen.add((enough, sure))
    assert {(True, False), (True, True)} <= seen


def test_the_confidence_asked_for_decides_where_little_is_sure() -> None:
    rng = np.random.default_rng(0)
    before, after = two_states(1)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(0.8 * before + 0.2 * after, 12) * rng.lognormal(0.0, 0.3, (12, 1, 32))
    actions = [
        eplb.decide(windows, CLUSTER, old, SERVICE, 1e4, confidence=each).action
        for each in (0.5, 1.0)
    ]
    assert actions == ["move", "wait"]
    assert eplb.decide(windows, CLUSTER, old, SERVICE, 1e4, least_gain=0.5).action == "wait"


def decisions(
    windows: Loads, first: int, every: int, seconds: float, service: Service, **more: Any
) -> list[Decision]:
    """One decision every so many windows, from up to 32 before it, each carried out."""
    current = eplb.plan(windows[:every], CLUSTER).placement
    made = []
    for window in range(first, len(windows), every):
        seen = windows[max(0, window - 32) : window]
        made.append(eplb.decide(seen, CLUSTER, current, service, seconds, **more))
        current = made[-1].placement or current
    return made


@pytest.mark.parametrize("seed", range(4))
def test_a_load_that_wobbles_between_two_states_moves_at_most_once(seed: int) -> None:
    states = np.stack(two_states(seed))
    windows = states[(np.arange(32 + 100) // 4) % 2]
    windows = windows * np.random.default_rng(seed).lognormal(0.0, 0.05, windows.shape)
    made = decisions(windows, 32, 4, 0.5, SERVICE)
    assert len(made) == 25
    assert sum(each.action != "wait" for each in made) <= 1
    # Whoever plans for what was seen last goes to and fro for ever.
    current = eplb.plan(windows[:4], CLUSTER).placement
    turns = 0
    for window in range(32, len(windows), 4):
        plan = eplb.plan(windows[window - 4 : window], CLUSTER, current=current)
        turns += plan.moves > 0
        current = plan.placement
    assert turns >= 20


@pytest.mark.parametrize("seed", range(4))
def test_a_gain_around_the_threshold_moves_at_most_once(seed: int) -> None:
    before, after = two_states(seed)
    noise = np.random.default_rng(seed).lognormal(0.0, 0.05, (100, 1, 32))
    windows = after * noise
    windows[:4] = before * noise[:4]
    times = np.geomspace(0.01, 10.0, 13)
    current = eplb.plan(windows[:4], CLUSTER).placement
    seen = windows[4:36]
    acts = [
        eplb.decide(seen, CLUSTER, current, SERVICE, float(each)).action != "wait" for each in times
    ]
    assert not acts[0]
    assert acts[-1]
    threshold = float(times[acts.index(True)])
    for factor in (0.9, 1.0, 1.1):
        made = decisions(windows, 36, 4, threshold * factor, SERVICE)
        assert sum(each.action != "wait" for each in made) <= 1


@given(seeds, st.integers(1, 9), st.booleans())
@settings(max_examples=25)
def test_windows_that_count_for_nothing_change_nothing(
    seed: int, number: int, weighted: bool
) -> None:
    """Wherever windows without load or of weight 0 stand, in the first half or all over."""
    rng = np.random.default_rng(seed)
    before, after = two_states(seed)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, number, seed)
    counts = rng.integers(1, 4, number).astype(float) if weighted else np.ones(number)
    wanted = eplb.decide(windows, CLUSTER, old, SERVICE, 60.0, weights=counts)
    for at in (np.zeros(number, int), rng.integers(0, number + 1, number)):
        more = np.insert(windows, at, 0.0, axis=0)
        found = eplb.decide(more, CLUSTER, old, SERVICE, 60.0, weights=np.insert(counts, at, 1.0))
        assert replace(found, plan=wanted.plan, verdict=wanted.verdict) == wanted
        assert replace(found.verdict, plan=wanted.plan) == wanted.verdict
        assert found.plan.placement == wanted.plan.placement
        more = np.insert(windows, at, windows_of(before, 1)[0], axis=0)
        found = eplb.decide(more, CLUSTER, old, SERVICE, 60.0, weights=np.insert(counts, at, 0.0))
        assert replace(found, plan=wanted.plan, verdict=wanted.verdict) == wanted


def test_a_changed_cluster_moves_at_once() -> None:
    loads, _ = two_states(0, 2)
    old = eplb.plan(loads, CLUSTER).placement
    for cluster in (Cluster(7, 1, 5), Cluster(10, 1, 5), Cluster(8, 1, 4), Cluster(8, 2, 5)):
        found = eplb.decide(loads, cluster, old, replace(SERVICE, expert_bytes=10**14), 1e-3)
        assert (found.action, found.layers) == ("move", (0, 1))
        assert found.placement is not None
        assert found.placement.cluster == cluster
        assert found.reason.startswith("the cluster has changed, so its GPUs must receive")
        assert found.moves == found.placement.moves_from(old)
        # Dear as it is, nothing moves that need not: new GPUs receive an expert each.
        least = eplb.frontier(loads, cluster, old, points=2).moves[0]
        assert found.moves == least
        cheap = eplb.decide(loads, cluster, old, SERVICE, 600.0)
        assert cheap.moves >= found.moves
    with pytest.raises(eplb.OptionError, match=r"max_moves is 0: \d+ are the least"):
        eplb.decide(loads, Cluster(7, 1, 5), old, SERVICE, 60.0, max_moves=0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"seconds": 0.0}, eplb.OptionError, "seconds is 0.0: give a number of seconds, above 0"),
        ({"seconds": float("nan")}, eplb.OptionError, "seconds is nan"),
        ({"seconds": "60"}, eplb.OptionError, "seconds is '60'"),
        (
            {"margin": 0.9},
            eplb.OptionError,
            "margin is 0.9: give a number of times the cost, 1 or more",
        ),
        ({"margin": float("inf")}, eplb.OptionError, "margin is inf"),
        ({"max_moves": -1}, eplb.OptionError, "max_moves is -1: give 0 or more"),
        ({"current": None}, eplb.PlacementError, "current is NoneType: give a Placement"),
        (
            {"current": Placement.contiguous(1, 32, CLUSTER)},
            eplb.PlacementError,
            "current has 1 layer of 32 experts, the loads have 2 of 32",
        ),
        ({"loads": np.full((2, 32), np.nan)}, eplb.LoadsError, "nan"),
        ({"weights": [1.0, 2.0]}, eplb.LoadsError, "weights"),
        ({"num_groups": 5}, eplb.ClusterError, "32 experts do not divide into 5 groups"),
        ({"effort": "hard"}, eplb.OptionError, "effort is 'hard'"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    made = {
        "loads": np.ones((2, 32)),
        "cluster": CLUSTER,
        "current": Placement.contiguous(2, 32, CLUSTER),
        "service": SERVICE,
        "seconds": 60.0,
    }
    with pytest.raises(error, match=message) as raised:
        eplb.decide(**{**made, **change})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1.0, 1.0), "expert_bytes is 0: give 1 or more"),
        ((1.5, 1.0, 1.0), "expert_bytes is 1.5: give a whole number"),
        ((1, 0.0, 1.0), "bandwidth_within is 0.0: give a number of GB/s, above 0"),
        ((1, 1.0, float("inf")), "bandwidth_between is inf"),
        ((1, 1.0, 1.0, 0.0), "expert_share is 0.0: give a share"),
        ((1, 1.0, 1.0, 0.5, 1.5), "stall is 1.5: give a share, from 0 to 1"),
        ((1, 1.0, 1.0, 0.5, -0.5), "stall is -0.5: give a share"),
        (
            (1, 1.0, 1.0, 0.5, 1.0, -1.0),
            "rebalance_seconds is -1.0: give a number of seconds",
        ),
        ((1, 1.0, 1.0, 0.5, 1.0, 0.0, float("inf")), "layer_seconds is inf: give a number"),
    ],
)
def test_bad_services(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(eplb.EplbError, match=message):
        Service(*arguments)


def test_an_engines_own_time_is_counted_and_paid_back_at_the_break_even() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, 32)
    engine = replace(SERVICE, rebalance_seconds=0.5, layer_seconds=0.25, layer_delay=2.0)
    found = eplb.decide(windows, CLUSTER, old, engine, 60.0)
    assert (found.action, len(found.layers)) == ("move", 3)
    assert found.lost_seconds == pytest.approx(found.moving_seconds + 0.5 + 3 * 0.25)
    # The layers serve after 2, 4 and 6 s.
    assert found.gained_seconds == pytest.approx(0.5 * found.gain * (60.0 - 4.0))
    assert found.break_even is not None
    pays = found.lost_seconds / (0.5 * found.gain) + 4.0
    assert found.break_even == pytest.approx(pays)
    assert f"(made up for after {pays:.2g} s)" in found.reason
    free = eplb.decide(windows, CLUSTER, old, replace(SERVICE, stall=0.0, layer_delay=2.0), 60.0)
    assert (free.action, free.lost_seconds, free.break_even) == ("move", 0.0, 0.0)
    # Before it has paid twice over, it is left; where moving is impossible, nothing is lost.
    assert eplb.decide(windows, CLUSTER, old, engine, pays).action == "wait"
    assert engine.lost_seconds(0.0) == engine.delay(0) == 0.0
    moves = [
        eplb.decide(windows, CLUSTER, old, replace(SERVICE, layer_seconds=each), 60.0).moves
        for each in (0.0, 0.1, 1.0, 10.0, 1e3)
    ]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > moves[-1] == 0


def test_overheads_of_engines_are_those_published() -> None:
    """vllm#43219: 0.65 to 1.70 s for 58 layers of DeepSeek-R1 in NVFP4 on 32 GB200, 288 slots."""
    cluster = Cluster(32, 1, 9)
    service = Service.of("DeepSeek-R1", "GB200", cluster, engine="vllm-sync")
    service = replace(service, expert_bytes=24_772_608)
    transfers = 0.96 * 58 * 9 * service.expert_bytes / (service.bandwidth_within * 1e9)
    assert 0.65 < service.lost_seconds(transfers, 58) < 1.70
    assert service.lost_seconds(transfers, 58) == pytest.approx(0.91, rel=0.05)
    asynchronous = service.in_engine("vllm")
    assert asynchronous.lost_seconds(transfers, 58) == 0.0
    assert asynchronous.delay(58) == pytest.approx(0.05 * 29.5)
    kept = Service.of("DeepSeek-R1", "GB200", cluster, engine="vllm", stall=0.5)
    assert (kept.stall, kept.layer_delay) == (0.5, 0.05)
    with pytest.raises(OptionError, match="the engine 'vlm' is not known: the nearest is 'vllm'"):
        service.in_engine("vlm")
    assert all("https://github.com/" in each.source for each in OVERHEADS.values())


@given(seeds)
@settings(max_examples=30)
def test_the_time_of_transfers_is_that_of_the_busiest_gpu_or_node(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cluster = Cluster(4, 2, 3)

    def some() -> Placement:
        rows = [rng.permutation([*range(8), *rng.integers(0, 8, 4)]) for _ in range(2)]
        return Placement(np.array(rows), 8, cluster)

    old, new = some(), some()
    service = Service(10**9, 4.0, 2.0)
    by_gpu, entering = [0] * 4, [0] * 2
    for layer in range(2):
        has, gets = (
            [set(row) for row in each.phy2log[layer].reshape(4, 3).tolist()] for each in (old, new)
        )
        for gpu in range(4):
            by_gpu[gpu] += len(gets[gpu] - has[gpu])
        for node in range(2):
            wanted = set().union(*(gets[gpu] - has[gpu] for gpu in (2 * node, 2 * node + 1)))
            entering[node] += len(wanted - has[2 * node] - has[2 * node + 1])
    assert service.moving_seconds(old, new) == pytest.approx(
        max(max(by_gpu) / 4.0, max(entering) / 2.0)
    )
    moved = eplb.migrate(
        old, new, bytes_per_expert=10**9, bandwidth_within=4.0, bandwidth_between=2.0
    )
    assert moved.seconds is not None
    assert service.moving_seconds(old, new) <= moved.seconds + 1e-9


def test_recorded_windows(traces: Path) -> None:
    """From the layout that engines start with it moves; soon after it waits; half-way on it pays
    less than at first.
    """
    windows = load_windows(traces, GPT_OSS)
    service = Service.of("gpt-oss-20b", "H100", CLUSTER)
    current = Placement.contiguous(24, 32, CLUSTER)
    gains, actions = [], []
    for window in range(32, len(windows), 8):
        found = eplb.decide(windows[window - 32 : window], CLUSTER, current, service, 60.0)
        gains.append(found.gain)
        actions.append(found.action)
        current = found.placement or current
    assert actions[0] != "wait"
    assert gains[0] > 0.2 > max(gains[1:])
    start = Placement.contiguous(24, 32, CLUSTER)
    assert peaks(current, windows[96:]).sum() < 0.9 * peaks(start, windows[96:]).sum()
    short = eplb.decide(windows[:32], CLUSTER, start, service, 1e-6)
    assert short.action == "wait"
    moves = [
        eplb.decide(windows[:32], CLUSTER, start, service, seconds).moves
        for seconds in (1e-3, 0.1, 60.0)
    ]
    assert all(one <= other for one, other in pairwise(moves))


@pytest.mark.parametrize("rule", ["sglang", "best"])
def test_peaks_are_under_the_rule(rule: str) -> None:
    cluster = Cluster(8, 2, 5)
    before, after = two_states(3, 3)
    old = eplb.plan(before, cluster).placement
    windows = windows_of(after, 12)
    found = eplb.decide(windows, cluster, old, SERVICE, 60.0, dispatch=rule)
    assert found.dispatch == found.verdict.dispatch == rule
    now = old.balancedness(windows, rule)
    assert found.verdict.now == pytest.approx(now)
    assert found.verdict.seen_gain == pytest.approx(
        found.verdict.plan.placement.balancedness(windows, rule) - now, abs=0.05
    )
    assert now != pytest.approx(old.balancedness(windows))
    assert found.verdict.fall == pytest.approx(found.verdict.gain / (now + found.verdict.gain))
    with pytest.raises(eplb.OptionError, match="give one of even, sglang"):
        eplb.decide(windows, cluster, old, SERVICE, 60.0, dispatch="nearest")
    split: Any = eplb.dispatch(old, windows)
    with pytest.raises(eplb.OptionError, match="a split fits one placement"):
        eplb.decide(windows, cluster, old, SERVICE, 60.0, dispatch=split)


def test_splitting_alone_is_tried_first_as_it_moves_nothing() -> None:
    before, after = two_states(0, 3)
    old = eplb.plan(before, CLUSTER).placement
    windows = windows_of(after, 12)
    even, best = (old.gpu_load(windows, rule).max(axis=2).sum() for rule in ("even", "best"))
    dear = replace(SERVICE, expert_bytes=10**12)
    for service, action in ((SERVICE, "move"), (dear, "wait")):
        found = eplb.decide(windows, CLUSTER, old, service, 60.0, dispatch="best")
        assert found.split_gain == pytest.approx(1.0 - best / even)
        words = f"lowers the peaks by {100.0 * (1.0 - best / even):.1f} % from an even split"
        assert words in found.reason
        assert found.action.startswith(action)
        assert ("and that is enough" in found.reason) == (action == "wait")
    assert eplb.decide(windows, CLUSTER, old, SERVICE, 60.0).split_gain is None


def test_words_follow_the_sign_of_the_gain() -> None:
    before, after = two_states(0, 2)
    old = eplb.plan(before, CLUSTER).placement
    verdict = eplb.decide(windows_of(after, 4), CLUSTER, old, SERVICE, 60.0).verdict
    assert _in_words(verdict, -0.005, -0.15, 0.02, 60.0) == (
        "would raise the peaks by 0.5 % on windows held out, "
        "which loses 0.15 s in 60 s and costs 0.02 s"
    )
    assert _in_words(verdict, 0.01, 0.3, 0.02, 60.0) == (
        "would lower the peaks by 1.0 % on windows held out, "
        "which gains 0.3 s in 60 s and costs 0.02 s"
    )
    assert _in_words(verdict, 0.01, 0.3, 0.0, 60.0, 0.0).endswith(
        "which gains 0.3 s in 60 s, and the service never stops for it"
    )
    # As the table beside it says it, without an exponent.
    assert "gains 1,234 s in 6000 s and costs 0.02 s (made up for after 198 s)" in _in_words(
        verdict, 0.01, 1234.4, 0.02, 6000.0, 198.4
    )
