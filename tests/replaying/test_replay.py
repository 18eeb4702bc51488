"""Replay: what a policy is shown, what it is scored on, and what is recorded of it."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorded import GPT_OSS, load_windows
from workloads import CLUSTER as WORKLOADS
from workloads import write_workloads

import eplb
from eplb import Cluster, ClusterError, LoadsError, LoadTrace, OptionError, Placement, PolicyError
from eplb.planning.backtest import expected_of
from eplb.replaying.compare import score
from eplb.replaying.policies import POLICIES, named_policies

CLUSTER = Cluster(num_gpus=4, slots_per_gpu=3)


def made(num_windows: int, seed: int = 0) -> LoadTrace:
    """Loads whose first layer is dense, with a window of none."""
    loads = np.random.default_rng(seed).lognormal(size=(num_windows, 3, 8))
    loads[:, 0] = 0.0
    loads[num_windows // 2] = 0.0
    return LoadTrace(loads)


class Recorder:
    """Plans at random, and remembers what it was asked."""

    def __init__(self, *, sees_next: bool = False) -> None:
        self.sees_next = sees_next
        self.shown: list[NDArray[np.float64]] = []
        self.current: list[Placement] = []
        self.answers: list[Placement] = []
        self._random = np.random.default_rng(0)

    def __call__(
        self, loads: NDArray[np.float64], cluster: Cluster, *, current: Placement, num_groups: int
    ) -> Placement:
        assert num_groups == 2
        self.shown.append(loads)
        self.current.append(current)
        row = np.arange(cluster.num_slots) % current.num_experts
        phy2log = np.array([self._random.permutation(row) for _ in range(current.num_layers)])
        self.answers.append(Placement(phy2log, current.num_experts, cluster))
        return self.answers[-1]


@given(
    num_windows=st.integers(2, 12),
    every=st.integers(1, 5),
    history=st.integers(1, 6),
    first=st.integers(1, 11),
    sees_next=st.booleans(),
)
def test_never_scored_on_what_was_seen(
    num_windows: int, every: int, history: int, first: int, sees_next: bool
) -> None:
    first = min(first, num_windows - 1)
    trace = made(num_windows)
    policy = Recorder(sees_next=sees_next)
    found = eplb.replay(
        trace, CLUSTER, policy, num_groups=2, every=every, history=history, first=first
    )
    assert found.windows.tolist() == list(range(first, num_windows))
    asked = list(range(first, num_windows, every))
    assert found.windows[found.planned].tolist() == asked
    for at, shown in zip(asked, policy.shown, strict=True):
        seen = trace.loads[at : at + every] if sees_next else trace.loads[:at][-history:]
        assert np.array_equal(shown, seen)
    running = Placement.contiguous(3, 8, CLUSTER)
    answers = iter(zip(policy.current, policy.answers, strict=True))
    for step, window in enumerate(found.windows.tolist()):
        moves = [0, 0, 0]
        if window in asked:
            current, chosen = next(answers)
            assert current == running
            moves = [
                int(
                    Placement(chosen.phy2log[[layer]], 8, CLUSTER).moves_from(
                        Placement(running.phy2log[[layer]], 8, CLUSTER)
                    )
                )
                for layer in range(3)
            ]
            moves[0] = 0  # dense: what a placement says of it is never loaded
            running = chosen
        assert found.moves[step].tolist() == moves
        load = running.gpu_load(trace.loads[window])
        assert np.array_equal(found.peak[step], load.max(axis=1))
        assert np.array_equal(found.mean[step], load.mean(axis=1))
        for layer in range(3):
            ratio = found.balancedness[step, layer]
            if load[layer].any():
                assert ratio == pytest.approx(load[layer].mean() / load[layer].max())
            else:
                assert np.isnan(ratio)


def test_averages_leave_out_what_has_no_load() -> None:
    trace = made(7)
    found = eplb.replay(trace, CLUSTER, "contiguous")
    placement = Placement.contiguous(3, 8, CLUSTER)
    assert found.average() == pytest.approx(placement.balancedness(trace.loads[1:]))
    pooled = placement.balancedness(trace.loads[1:], average="pooled")
    assert found.pooled() == pytest.approx(pooled)
    assert found.moves.sum() == 0
    empty = eplb.replay(LoadTrace(np.zeros((3, 1, 4))), Cluster(2, 1, 2), "eplb")
    assert (empty.average(), empty.pooled()) == (1.0, 1.0)


def test_bytes_are_those_of_the_model_or_as_said() -> None:
    trace = made(4)
    assert eplb.replay(trace, CLUSTER, "deepseek").bytes_moved is None
    said = eplb.replay(trace, CLUSTER, "deepseek", expert_bytes=1000)
    assert said.bytes_moved is not None
    assert np.array_equal(said.bytes_moved, 1000 * said.moves)
    assert said.moves.sum() > 0
    for wrong, message in (
        (0, "is 0: give 1 or more"),
        ("1", "is '1': give a whole number"),
        (10**19, "give 1125899906842624 or less"),
    ):
        number: Any = wrong
        with pytest.raises(OptionError, match=f"expert_bytes .*{message}"):
            eplb.replay(trace, CLUSTER, "deepseek", expert_bytes=number)
    known = LoadTrace(trace.loads, model="DeepSeek-V3")
    # Three matrices of 7168 x 2048 bytes.
    assert eplb.replay(known, CLUSTER, "deepseek").expert_bytes == 44_040_192


def test_progress_is_told_after_each_window() -> None:
    told: list[tuple[int, int]] = []
    eplb.replay(made(5), CLUSTER, "contiguous", first=2, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]


KINDS = ["plan", "placement", "array", "lists", "pair", "tensor", "tensors", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_every_kind(kind: str) -> None:
    trace = made(4)
    planned = eplb.plan(trace.loads[0], CLUSTER)

    def policy(_loads: Any, _cluster: Cluster, *, current: Placement, num_groups: int) -> Any:
        del current, num_groups
        placement = planned.placement
        phy2log = placement.phy2log
        tensor = torch.from_numpy(phy2log.copy())
        answers = {
            "plan": planned,
            "placement": placement,
            "array": phy2log,
            "lists": phy2log.tolist(),
            "pair": (phy2log.tolist(), "more"),
            "tensor": tensor,
            "tensors": [tensor, tensor],
        }
        return answers.get(kind)

    found = eplb.replay(trace, CLUSTER, policy)
    runs = planned.placement if kind != "nothing" else Placement.contiguous(3, 8, CLUSTER)
    assert found.peak[0].tolist() == runs.gpu_load(trace.loads[1]).max(axis=1).tolist()
    assert found.name == "policy"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((3, 11), int), r"before window 1: phy2log has shape \(3, 11\)"),
        (np.zeros((3, 12), int), "before window 1: layer 0 has no slot for expert 1"),
        ("keep", "before window 1: phy2log has shape"),
        ([[1, 2], [3]], "before window 1: phy2log is no array: ValueError"),
        (
            torch.ones(3, 12, requires_grad=True),
            "phy2log has shape .* type float32: expected whole",
        ),
        (torch.ones(3, 12, device="meta"), "before window 1: phy2log is no array"),
        (Placement.contiguous(3, 8, Cluster(2, 1, 6)), r"before window 1 is Placement\(.*2 GPUs"),
    ],
)
def test_what_is_no_placement(answer: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        eplb.replay(made(3), CLUSTER, lambda *_, **__: answer)


def test_a_policy_that_fails_is_told_with_its_window() -> None:
    def policy(loads: Any, _cluster: Cluster, **_: Any) -> None:
        if len(loads) == 2:
            raise ZeroDivisionError("by\nzero")

    message = "the policy fails before window 2: ZeroDivisionError: by zero"
    with pytest.raises(PolicyError, match=message):
        eplb.replay(made(4), CLUSTER, policy)


def test_a_policy_cannot_end_the_process() -> None:
    def policy(*_: Any, **__: Any) -> None:
        sys.exit(0)

    with pytest.raises(PolicyError, match="the policy fails before window 1: SystemExit: 0"):
        eplb.replay(made(4), CLUSTER, policy)
    nothing: Any = None
    with pytest.raises(
        PolicyError, match="None is not a policy: give a name, a path or a callable"
    ):
        eplb.replay(made(4), CLUSTER, nothing)


def test_kernels_are_ready_before_the_clock_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[Any] = []
    monkeypatch.setattr("eplb.replaying.replay.warm_up", ready.append)
    asked: list[int] = []

    def policy(*_: Any, **__: Any) -> None:
        asked.append(len(ready))

    eplb.replay(made(3), CLUSTER, policy)
    assert asked == [1, 1]
    assert ready == [policy]


def test_wrong_numbers_are_told_before_anything_runs() -> None:
    def asked(*_: Any, **__: Any) -> None:
        pytest.fail("the policy is asked")

    for name in ("every", "history", "first"):
        with pytest.raises(OptionError, match=f"{name} is 0: give 1 or more"):
            eplb.replay(made(4), CLUSTER, asked, **{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ClusterError, match="8 experts do not divide into 3 groups: 2 or 4 groups"):
        eplb.replay(made(4), CLUSTER, asked, num_groups=3)
    with pytest.raises(LoadsError, match="first is 4, and the trace has 4 windows: give 3 or less"):
        eplb.replay(made(4), CLUSTER, asked, first=4)
    with pytest.raises(LoadsError, match="1 window, and plans are scored on windows after"):
        eplb.replay(made(1), CLUSTER, asked)
    with pytest.raises(ClusterError, match="4 slots do not hold 8 experts"):
        eplb.replay(made(4), Cluster(4, 1, 1), asked)


PEER = """
import numpy as np
calls = []
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    calls.append(weight)
    assert type(weight).__name__ == "Tensor"
    num_layers, num_experts = weight.shape
    return np.tile(np.arange(num_replicas)[::-1] % num_experts, (num_layers, 1)), "more"
"""
OWN = """
def policy(loads, cluster, *, current, num_groups):
    import eplb
    return eplb.plan(loads[-1], cluster, num_groups=num_groups)
"""


def test_files_are_policies(tmp_path: Path) -> None:
    for name, text in (("peer.py", PEER), ("own.py", OWN)):
        (tmp_path / name).write_text(text)
    trace = made(4)
    peer = eplb.replay(trace, CLUSTER, str(tmp_path / "peer.py"))
    row = np.arange(12)[::-1] % 8
    reversed_ = Placement(np.tile(row, (3, 1)), 8, CLUSTER)
    assert np.array_equal(peer.peak[0], reversed_.gpu_load(trace.loads[1]).max(axis=1))
    own = eplb.replay(trace, CLUSTER, tmp_path / "own.py")
    assert own.name == str(tmp_path / "own.py")
    last = eplb.replay(trace, CLUSTER, "eplb", history=1)
    assert np.array_equal(own.peak, last.peak)


def test_names_of_policies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "peer.py").write_text(PEER)
    files = [str(tmp_path / folder / "peer.py") for folder in ("a", "b")]
    assert list(named_policies(["eplb", *files])) == ["eplb", "peer", "peer 2"]
    (tmp_path / "eplb.py").write_text(PEER)
    assert list(named_policies([str(tmp_path / "eplb.py"), "eplb"])) == ["eplb 2", "eplb"]
    (tmp_path / "a" / "beside_a_peer.py").write_text("policy = len")
    (tmp_path / "a" / "own.py").write_text("from beside_a_peer import policy")
    path = list(sys.path)
    assert list(named_policies(tmp_path / "a" / "own.py")) == ["own"]
    assert sys.path == path
    with pytest.raises(PolicyError, match="no policy is given"):
        named_policies([])
    with pytest.raises(PolicyError, match="no policy is called 'best': give contiguous, deepseek"):
        named_policies(["best"])
    with pytest.raises(PolicyError, match="policy eplb is given twice"):
        named_policies(["eplb", "eplb"])
    with pytest.raises(PolicyError, match=r"none\.py: there is no such file"):
        named_policies([str(tmp_path / "none.py")])
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(PolicyError, match="it has no function policy or rebalance_experts"):
        named_policies([str(tmp_path / "empty.py")])


def test_on_recorded_windows_each_policy_gives_what_it_knows(traces: Path) -> None:
    trace = LoadTrace(load_windows(traces, GPT_OSS)[:, ::4])
    cluster = Cluster(num_gpus=8, slots_per_gpu=5)
    found = {
        name: eplb.replay(trace, cluster, name, every=2, history=16, first=16).average()
        for name in POLICIES
    }
    everybody = ("deepseek", "seed", "mean")
    assert found["contiguous"] < min(found[name] for name in everybody)
    # All three plan for the same sum; packing better what will not come gains little.
    assert abs(found["mean"] - found["seed"]) < 0.03
    assert found["eplb"] > max(found[name] for name in everybody) + 0.03
    assert found["oracle"] > found["eplb"] + 0.05


@pytest.mark.parametrize("every", [1, 2, 99])
def test_windows_in_no_order_are_held_out_in_turn(every: int) -> None:
    trace = replace(made(5), ordered=False)
    policy = Recorder()
    found = eplb.replay(trace, CLUSTER, policy, num_groups=2, every=every, history=1, first=3)
    assert found.windows.tolist() == list(range(5))
    assert not found.ordered
    step = min(every, 2)
    held = [range(begin, min(begin + step, 5)) for begin in range(0, 5, step)]
    for shown, current, left_out in zip(policy.shown, policy.current, held, strict=True):
        assert shown.tolist() == np.delete(trace.loads, left_out, axis=0).tolist()
        # What served another window was made from this one.
        assert current == Placement.contiguous(3, 8, CLUSTER)
    assert score(found).moved is None


def test_policies_that_move_begin_anew_for_each_workload(tmp_path: Path) -> None:
    trace = eplb.load_trace(write_workloads(tmp_path))
    found = eplb.compare(trace, WORKLOADS, ["eplb", "moving", "recent"])
    assert (found.windows, found.wanted, found.ordered) == (5, 5, False)
    values = [each.balancedness for each in found.scores]
    assert values[1:] == [values[0]] * 2
    expected = expected_of(trace, WORKLOADS).tried
    assert expected is not None
    assert expected.scores["recent"] == values[0]
    with pytest.raises(OptionError, match="forecast last goes by the order of windows"):
        eplb.compare(trace, WORKLOADS, ["eplb", "last"])
    with pytest.raises(OptionError, match="whether moves pay is a question of time"):
        eplb.compare(trace, WORKLOADS, "eplb", service=eplb.Service(1, 1.0, 1.0))
    spare = eplb.size(trace, WORKLOADS, [1])
    assert spare.windows == 5
    assert spare.points[0].unseen == pytest.approx(values[0], abs=1e-12)
