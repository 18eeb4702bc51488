"""`eplb.Balancer`: what a sequence of loads makes of it, and that two of them agree."""

import copy
import pickle
import runpy

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import ROOT

import eplb

CLUSTER = eplb.Cluster(4, 2, 5)
RNG = np.random.default_rng(0)
POPULAR = RNG.lognormal(0.0, 1.0, (3, 16))


def windows(number: int, seed: int = 1) -> NDArray[np.int64]:
    return np.random.default_rng(seed).poisson(300.0 * POPULAR, (number, *POPULAR.shape))


def test_it_moves_at_first_and_then_waits_while_nothing_changes() -> None:
    balancer = eplb.Balancer(16, CLUSTER)
    assert balancer.current is None
    shown = windows(1).repeat(4, axis=0)
    first = balancer.step(shown[0])
    assert first is not None
    start = eplb.Placement.contiguous(3, 16, CLUSTER)
    assert first.moves == first.placement.moves_from(start)
    assert first.before == start.balancedness(shown[:1])
    assert first.after == first.placement.balancedness(shown[:1]) > first.before
    for window in shown[1:]:
        assert balancer.step(window) is None
    assert balancer.current is first.placement
    assert np.array_equal(balancer.windows, shown)


def test_it_keeps_its_budget_and_its_memory() -> None:
    balancer = eplb.Balancer(16, CLUSTER, windows=2, max_moves=4)
    balancer.step(windows(1)[0])
    current = balancer.current
    assert current is not None
    answer = balancer.step(windows(1)[0][:, ::-1])
    assert answer is not None
    assert 0 < answer.moves == answer.placement.moves_from(current) <= 4
    balancer.step(windows(1)[0][:, ::-1])
    assert len(balancer.windows) == 2
    balancer.forget()
    with pytest.raises(eplb.LoadsError, match="no window is remembered yet"):
        balancer.windows  # noqa: B018


def test_an_idle_window_is_not_remembered() -> None:
    balancer = eplb.Balancer(16, CLUSTER)
    assert balancer.step(np.zeros((3, 16))) is None
    assert balancer.step(windows(1)[0]) is not None
    assert len(balancer.windows) == 1


def test_a_gain_too_small_is_left() -> None:
    balancer = eplb.Balancer(16, CLUSTER, least_gain=1.0)
    assert balancer.step(windows(1)[0]) is None
    assert balancer.current == eplb.Placement.contiguous(3, 16, CLUSTER)


def test_a_plan_that_is_worse_in_two_windows_is_taken_back() -> None:
    first, after = np.full((2, 3, 16), 1000)
    first[:, :4] *= 10  # half of these begin on the first GPU
    after[:, ::5] *= 10  # and each of these on a GPU of its own
    start = eplb.Placement.contiguous(3, 16, CLUSTER)
    balancer = eplb.Balancer(16, CLUSTER)
    planned = balancer.step(first)
    assert planned is not None
    # One that begins with the plan knows nothing better.
    other = eplb.Balancer(16, CLUSTER, current=planned.placement)
    assert other.step(first) is None
    assert np.array_equal(other.windows, balancer.windows)
    assert other.current == balancer.current
    assert other.digest != balancer.digest
    assert balancer.step(after) is None
    assert balancer.current is planned.placement
    back = balancer.step(after)
    assert back is not None
    assert back.taken_back
    assert not planned.taken_back
    assert balancer.current is back.placement
    assert np.array_equal(back.placement.phy2log, start.phy2log)
    assert back.moves == start.moves_from(planned.placement)
    assert np.array_equal(balancer.windows, [after, after])
    assert back.before == planned.placement.balancedness(balancer.windows) < back.after
    again = balancer.step(after)
    assert again is not None
    assert not again.taken_back
    # Nor does one that has been told to forget.
    forgetful = eplb.Balancer(16, CLUSTER)
    forgetful.step(first)
    forgetful.forget()
    for each in (other, forgetful):
        moved = [each.step(after) for _ in range(2)]
        assert not any(answer is not None and answer.taken_back for answer in moved)


def test_balancers_shown_the_same_agree_and_their_digest_says_so() -> None:
    one, other = (eplb.Balancer(16, CLUSTER, threads=threads) for threads in (1, 2))
    for window in windows(3):
        assert one.digest == other.digest
        before = one.digest
        mine, theirs = one.step(window), other.step(window.tolist())
        assert (mine is None) == (theirs is None)
        assert one.current == other.current
        assert one.digest != before
    other.current = eplb.Placement.contiguous(3, 16, CLUSTER)
    assert one.digest != other.digest
    assert eplb.Balancer(16, CLUSTER).digest != eplb.Balancer(16, CLUSTER, windows=4).digest


def test_what_does_not_fit_is_named() -> None:
    balancer = eplb.Balancer(16, CLUSTER)
    with pytest.raises(eplb.LoadsError, match=r"\(3, 8\): give \[L, 16\]"):
        balancer.step(np.ones((3, 8)))
    balancer.step(windows(1)[0])
    with pytest.raises(eplb.LoadsError, match=r"\(2, 16\): give \[3, 16\]"):
        balancer.step(np.ones((2, 16)))
    for wrong in (eplb.Placement.contiguous(2, 16, CLUSTER), "what runs"):
        with pytest.raises(eplb.PlacementError, match="current is"):
            balancer.current = wrong  # type: ignore[assignment]
    with pytest.raises(eplb.OptionError, match="max_moves is 'few'"):
        eplb.Balancer(16, CLUSTER, max_moves="few")
    with pytest.raises(eplb.ClusterError):
        eplb.Balancer(32, CLUSTER)


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples" / "engine.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 24
    found = [float(line.split("balancedness ")[1][:5]) for line in lines]
    assert np.mean(found[4:]) > np.mean(found[:4])
    assert "moves" in lines[3]


def test_a_plan_equals_its_copy_and_is_told_in_a_line() -> None:
    made = eplb.plan(windows(2), CLUSTER)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied == made
        assert hash(copied) == hash(made)
        assert not copied.peak.flags.writeable
    assert made != eplb.plan(windows(2, 5), CLUSTER)
    assert made != made.placement
    assert repr(made).startswith("Plan(3 layers, 20 slots on 4 GPUs, largest gap ")
    assert "\n" not in repr(made)
