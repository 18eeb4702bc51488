"""The verdict: right on loads whose future is known, the same from every command, and in words."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import advice
import numpy as np
import pytest
from workloads import CLUSTER, write_workloads

import eplb
from eplb.moving.verdict import Verdict, judge

KINDS = {"steady": False, "changed": True, "drifting": True, "swinging": False, "noise": False}


@pytest.fixture(scope="module")
def pairs() -> dict[str, advice.Pair]:
    return {each.kind: each for each in advice.pairs(5, 5)}


def judged(pair: advice.Pair, **more: Any) -> Verdict:
    return judge(pair.seen, advice.CLUSTER, pair.current, threads=1, **more)


def test_every_command_advises_what_truly_gains(pairs: dict[str, advice.Pair]) -> None:
    for kind, pair in pairs.items():
        assert (advice.worth(pair.gains) is True) == KINDS[kind]
        assert judged(pair).advised == KINDS[kind]
    # A report takes a second, so two kinds are asked for all four.
    for kind in ("steady", "changed"):
        assert set(advice.advice(pairs[kind]).values()) == {KINDS[kind]}


def test_words_and_moves_follow_the_verdict(pairs: dict[str, advice.Pair]) -> None:
    for kind, pair in pairs.items():
        found = judged(pair)
        assert found.windows == len(pair.seen)
        assert found.interval is not None
        assert found.interval.low < found.gain < found.interval.high
        gains = f"lose {-found.gain:.4f}" if found.gain < 0.0 else f"gain {found.gain:.4f}"
        assert f"plans {gains} ±" in found.words
        assert re.search(r"[+-]\d", found.evidence) is None
        assert found.advised == (found.moves > 0) == KINDS[kind]
        assert found.words.startswith("Keep what runs") != KINDS[kind]
        if found.action == "unpredictable":
            assert "cannot be predicted" in found.words
            assert found.seen_gain > 0.02
        if found.advised:
            assert found.plan.placement.moves_from(pair.current) == found.moves
            assert f"{found.moves:,} experts" in found.words


def test_layers_that_fare_alike_make_no_gain_surer(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["noise"]
    widths = []
    for layers in (1, 4):
        same = np.zeros(layers, dtype=np.int64)
        running = eplb.Placement(pair.current.phy2log[same], 128, advice.CLUSTER)
        interval = judge(pair.seen[:, same], advice.CLUSTER, running, threads=1).interval
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[1] == pytest.approx(widths[0])


def test_layers_without_load_change_nothing(pairs: dict[str, advice.Pair]) -> None:
    for kind in ("changed", "noise"):
        pair = pairs[kind]
        seen = np.concatenate([pair.seen, np.zeros_like(pair.seen)], axis=1)
        rows = np.concatenate([pair.current.phy2log] * 2)
        running = eplb.Placement(rows, 128, advice.CLUSTER)
        with_them, without = judged(replace(pair, seen=seen, current=running)), judged(pair)
        assert with_them.interval is not None
        assert without.interval is not None
        assert with_them.gain == pytest.approx(without.gain)
        assert with_them.interval.low == pytest.approx(without.interval.low)
        assert with_them.advice == without.advice


def test_windows_that_are_alike_leave_little_in_doubt(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["changed"]
    share = pair.seen.sum(axis=0) / pair.seen.sum(axis=(0, 2))[:, None]
    rng = np.random.default_rng(0)
    seen = rng.poisson(share * 500_000.0, (12, *share.shape)).astype(np.float64)
    found = judged(replace(pair, seen=seen))
    assert found.gain > 0.1
    assert found.interval is not None
    assert found.interval.high - found.interval.low < 0.05 * found.gain


def test_fewer_moves_do_where_they_keep_the_gain(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["changed"]
    found = judged(pair)
    whole = eplb.plan(pair.seen, advice.CLUSTER, current=pair.current, effort="fast")
    assert found.action == "move n"
    assert 0 < found.moves <= whole.moves / 2 + 1
    gained, most = (
        np.mean([each.balancedness(later) for later in pair.later])
        - np.mean([pair.current.balancedness(later) for later in pair.later])
        for each in (found.plan.placement, whole.placement)
    )
    assert gained >= 0.8 * most > 0.0


def test_less_is_asked_where_loads_drift_away_from_what_runs() -> None:
    (pair,) = advice.pairs(1, 162)
    assert pair.kind == "drifting"
    found, back = (judge(seen, pair.cluster, pair.current) for seen in (pair.seen, pair.seen[::-1]))
    # Back in time the gain is as large, and the loads come towards those that it was made for.
    assert 0.0 < found.gain < back.gain
    assert found.advised
    assert not back.advised


def test_thresholds_can_be_set(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["changed"]
    gain = judged(pair).gain
    assert judged(pair, least_gain=0.9 * gain).advised
    # Fewer moves keep nine tenths or more of what the whole plan gains.
    assert not judged(pair, least_gain=1.2 * gain).advised
    drifting = pairs["drifting"]
    assert not judged(drifting, confidence=1.0).advised
    with pytest.raises(eplb.OptionError, match=r"confidence is 0.4: give a share, from 0.5 to 1"):
        judged(pair, confidence=0.4)
    with pytest.raises(eplb.OptionError, match="least_gain is -1"):
        judged(pair, least_gain=-1.0)


def test_one_window_shows_nothing_unseen(pairs: dict[str, advice.Pair]) -> None:
    pair = replace(pairs["changed"], seen=pairs["changed"].seen[:1])
    found = judged(pair)
    assert (found.windows, found.interval, found.action) == (0, None, "re-plan")
    assert found.gain == found.seen_gain
    assert "One window cannot show whether that lasts" in found.words


def test_idle_windows_change_nothing(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["changed"]
    idle = np.zeros_like(pair.seen)
    spread = np.concatenate([idle[:3], pair.seen, idle])
    assert judged(replace(pair, seen=spread)).words == judged(pair).words
    nothing = judged(replace(pair, seen=idle))
    assert (nothing.action, nothing.moves, nothing.gain) == ("keep what runs", 0, 0.0)


def test_without_a_placement_it_is_compared_with_the_start(
    pairs: dict[str, advice.Pair],
) -> None:
    pair = pairs["steady"]
    found = judge(pair.seen, advice.CLUSTER)
    assert found.action == "switch it on"
    start = eplb.Placement.contiguous(6, 128, advice.CLUSTER)
    assert found.now == pytest.approx(start.balancedness(pair.seen))
    even = judge(np.ones((4, 6, 128)), eplb.Cluster(16, 2, 8))
    assert (even.action, even.moves) == ("keep what runs", 0)


def test_the_same_for_any_number_of_threads(pairs: dict[str, advice.Pair]) -> None:
    pair = pairs["drifting"]
    assert judge(pair.seen, advice.CLUSTER, pair.current, threads=2).words == judged(pair).words


def test_groups_on_several_nodes_are_told() -> None:
    loads = np.random.default_rng(3).lognormal(size=(2, 16))
    cluster = eplb.Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=5)
    anywhere = eplb.plan(loads, cluster).placement
    split = 0
    for layer in anywhere.phy2log.reshape(2, 2, 10):
        on_node = [{int(expert) // 4 for expert in node} for node in layer]
        split += len(on_node[0] & on_node[1])
    found = judge(loads, cluster, anywhere, num_groups=4)
    assert found.split_groups == split > 0
    assert f"What runs has {split} expert groups on more nodes than one" in found.evidence
    for running, groups in ((anywhere, 1), (found.plan.placement, 4)):
        found = judge(loads, cluster, running, num_groups=groups)
        assert found.split_groups == 0
        assert "more nodes than one" not in found.evidence
    with pytest.raises(
        eplb.OptionError, match=r"max_moves is 0: \d+ are enough to put each expert"
    ):
        eplb.plan(loads, cluster, num_groups=4, current=anywhere, max_moves=0)


def test_of_workloads_in_no_order_nothing_is_said_of_time(tmp_path: Path) -> None:
    trace = eplb.load_trace(write_workloads(tmp_path))
    running = eplb.Placement.contiguous(3, 16, CLUSTER)
    found = judge(trace.loads, CLUSTER, running, ordered=trace.ordered)
    assert found.lasting is None
    assert "each held out in turn" in found.words
    assert "persist" not in found.words
    assert "earlier" not in found.words
    gains = []
    for held, window in enumerate(trace.loads):
        others = np.delete(trace.loads, held, axis=0)
        made = eplb.plan(others, CLUSTER, current=running, effort="fast").placement
        gains.append(made.balancedness(window) - running.balancedness(window))
    if found.action != "move n":
        assert found.gain == pytest.approx(np.mean(gains))
