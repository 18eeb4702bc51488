"""Policies that move little, in replays, and the net benefit that `eplb.compare` tells."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recorded import GPT_OSS, load_windows

import eplb
from eplb import Cluster, LoadTrace, OptionError, Placement, Service
from eplb.planning.forecast import Recent
from eplb.replaying.compare import Comparison
from eplb.replaying.policies import POLICIES

CLUSTER = Cluster(4, 2, 5)
RNG = np.random.default_rng(0)
LOADS = RNG.lognormal(0.0, 1.0, (1, 3, 16)) * RNG.lognormal(0.0, 0.3, (21, 3, 16))
LOADS[10:, 1] = LOADS[10:, 1, ::-1]
LOADS[:, 2] = 0.0
TRACE = LoadTrace(LOADS)
SERVICE = Service(10**9, 20.0, 10.0, expert_share=0.4, stall=0.5)


def placements(policy: str, every: int) -> list[Placement]:
    """What runs at each window from the second on, asked for as a replay asks."""
    called = POLICIES[policy]
    current = Placement.contiguous(3, 16, CLUSTER)
    ran = []
    for window in range(1, len(LOADS)):
        if (window - 1) % every == 0:
            seen = LOADS[max(0, window - 32) : window]
            answer = called(seen, CLUSTER, current=current, num_groups=1)
            if isinstance(answer, np.ndarray):
                answer = Placement(answer, 16, CLUSTER)
            current = current if answer is None else answer
        ran.append(current)
    return ran


def peak(placement: Placement, window: int) -> float:
    return float(placement.gpu_load(LOADS[window]).max(axis=1).sum())


@pytest.mark.parametrize("every", [1, 4])
def test_moving_plans_afresh_once_and_then_from_what_runs(every: int) -> None:
    found = eplb.replay(TRACE, CLUSTER, "moving", every=every)
    current = None
    for step in range(0, 20, every):
        expected = Recent()(LOADS[: step + 1])
        current = eplb.plan(
            expected.loads, CLUSTER, weights=expected.weights, current=current
        ).placement
        assert found.peak[step].sum() == pytest.approx(peak(current, step + 1))
    afresh = eplb.replay(TRACE, CLUSTER, "eplb", every=every)
    assert found.moves[1:].sum() < 0.75 * afresh.moves[1:].sum()
    assert found.average() > 0.95 * afresh.average()


def test_deciding_waits_unless_it_pays() -> None:
    trace = TRACE
    every = 4
    found = eplb.compare(
        trace,
        CLUSTER,
        ["contiguous", "deciding"],
        every=every,
        service=SERVICE,
        window_seconds=0.5,
    )
    # The time between decisions is that of four windows.
    current = eplb.plan(LOADS[:1], CLUSTER).placement
    for step in range(20):
        if step and step % every == 0:
            made = eplb.decide(LOADS[: step + 1], CLUSTER, current, SERVICE, 2.0)
            current = made.placement or current
        assert found.replays[1].peak[step].sum() == pytest.approx(peak(current, step + 1))
    dear = Service(10**12, 20.0, 10.0)
    never = eplb.compare(
        trace, CLUSTER, "deciding", every=every, service=dear, window_seconds=0.5
    ).replays[0]
    assert never.moves[1:].sum() == 0
    assert never.planned.sum() == 5


def net(found: Comparison, number: int, seconds: float, service: Service = SERVICE) -> float:
    """Share of the service's time saved against the first policy, window by window."""
    time = [0.0, 0.0]
    fall = 0.0
    for position, replay in enumerate((found.replays[0], found.replays[number])):
        assert replay.moving_seconds is not None
        for step in range(1, replay.num_steps):  # what is loaded at the start costs nothing
            time[position] += service.stall * float(replay.moving_seconds[step])
            if layers := int((replay.moves[step] > 0).sum()):
                time[position] += service.rebalance_seconds + layers * service.layer_seconds
    for step in range(found.windows):
        first, other = (found.replays[i].peak[step].sum() for i in (0, number))
        fall += (first - other) / first
    whole = found.windows * seconds + time[0]
    return float((service.expert_share * fall * seconds + time[0] - time[1]) / whole)


@pytest.mark.parametrize("every", [1, 4])
def test_net_benefit_is_what_peaks_save_less_what_transfers_cost(every: int) -> None:
    policies = ["deepseek", "contiguous", "eplb", "moving"]
    found = eplb.compare(TRACE, CLUSTER, policies, every=every, service=SERVICE, window_seconds=3.0)
    for number, score in enumerate(found.scores):
        assert score.net == pytest.approx(net(found, number, 3.0))
    assert found.scores[0].net == 0.0
    engine = replace(SERVICE, rebalance_seconds=0.2, layer_seconds=0.1)
    costly = eplb.compare(TRACE, CLUSTER, policies, every=every, service=engine, window_seconds=3.0)
    for number, score in enumerate(costly.scores):
        assert score.net == pytest.approx(net(found, number, 3.0, engine))
    assert found.to_json()["scores"][3]["net"] == found.scores[3].net
    for policy, replay in zip(policies, found.replays, strict=True):
        assert replay.moving_seconds is not None
        ran = [Placement.contiguous(3, 16, CLUSTER), *placements(policy, every)]
        for step in range(20):
            # A dense layer has nothing to receive.
            wanted = SERVICE.moving_seconds(ran[step], ran[step + 1], np.array([True, True, False]))
            assert replay.moving_seconds[step] == pytest.approx(wanted)
        if policy == "contiguous":
            assert not replay.moving_seconds.any()


def test_moving_dearly_is_no_benefit() -> None:
    dear = Service(10**11, 20.0, 10.0)
    policies = ["contiguous", "eplb", "deciding"]
    found = eplb.compare(TRACE, CLUSTER, policies, service=dear, window_seconds=1.0)
    nothing, afresh, deciding = (score.net for score in found.scores)
    assert nothing == 0.0
    assert afresh is not None
    assert deciding is not None
    assert afresh < 0.0 < deciding


def test_the_time_of_a_window_is_told_or_read() -> None:
    times = LoadTrace(LOADS, times=np.linspace(0.0, 50.0, 21))
    told = eplb.compare(
        TRACE, CLUSTER, ["contiguous", "moving"], service=SERVICE, window_seconds=2.5
    )
    read = eplb.compare(times, CLUSTER, ["contiguous", "moving"], service=SERVICE)
    assert read.scores[1].net == told.scores[1].net
    with pytest.raises(
        OptionError, match="does not say how long a window lasts: give window_seconds"
    ):
        eplb.compare(TRACE, CLUSTER, "moving", service=SERVICE)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(OptionError, match="window_seconds is"):
            eplb.compare(TRACE, CLUSTER, "moving", service=SERVICE, window_seconds=wrong)
    assert eplb.compare(TRACE, CLUSTER, "moving").scores[0].net is None


def test_recorded_windows(traces: Path) -> None:
    """Moving little, every fourth window, nearly keeps the balance of planning afresh at each."""
    trace = LoadTrace(load_windows(traces, GPT_OSS)[:60])
    cluster = Cluster(8, 1, 5)
    afresh = eplb.replay(trace, cluster, "eplb")
    moving = eplb.replay(trace, cluster, "moving", every=4)
    assert moving.average() >= 0.97 * afresh.average()
    assert moving.moves[1:].sum() <= 0.15 * afresh.moves[1:].sum()


def test_second_process_compiles_what_the_best_split_takes_and_no_more() -> None:
    script = """
import json
from eplb.planning.forecast import Recent
from eplb.replaying.policies import Moving, compile_bending, warm_up
from eplb.solver import layers, level, level_search, search

compile_bending()
own = (level_search._bound_levelled, level_search._place_layers, level._level_layers)
compiled = [each.signatures for each in own]
others = [len(each.signatures) for each in (layers._plan_layers, search._search_layers)]
warm_up(Moving(Recent(), dispatch="best"))
same = compiled == [each.signatures for each in own]
print(json.dumps([[len(each) for each in compiled], others, same]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [[1, 1, 1], [0, 0], True]
