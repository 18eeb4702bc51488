"""vLLM's policy as the engine calls it, from call to call, without the engine."""

import importlib
import logging
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vLLM shows tensors")

from eplb.engines import live, log, recording, sglang, start, vllm  # noqa: E402
from eplb.engines.settings import Settings  # noqa: E402

LAYERS, EXPERTS, SLOTS = 3, 16, 5  # slots of a rank


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_told", set())


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The windows of each plan."""
    seen: list[Any] = []

    def spy(windows: Any, *rest: Any) -> Any:
        seen.append(windows)
        return next_placement(windows, *rest)

    next_placement = live.next_placement
    monkeypatch.setattr(live, "next_placement", spy)
    return seen


OWN = (torch.arange(4 * SLOTS) % EXPERTS).repeat(LAYERS, 1)


class Theirs:
    """The policy of an engine that must not be needed."""

    @classmethod
    def rebalance_experts(cls, *_: Any) -> Any:
        return OWN


def loads(number: int, shape: tuple[int, int] = (LAYERS, EXPERTS)) -> Any:
    return torch.from_numpy(np.random.default_rng(number).integers(1, 1000, shape))


def first(ranks: int, shape: tuple[int, int] = (LAYERS, EXPERTS), slots: int = SLOTS) -> Any:
    return (torch.arange(ranks * slots) % shape[1]).repeat(shape[0], 1)


def rebalanced(policy: Any, weight: Any, old: Any, ranks: int = 4) -> Any:
    """A call for ranks of `SLOTS` slots; the map, of which each layer holds every expert."""
    answer = policy.rebalance_experts(weight, ranks * SLOTS, 1, 1, ranks, old)
    assert answer is not OWN, "the engine's own policy answered"
    assert answer.shape == (LAYERS, ranks * SLOTS)
    assert all(set(row.tolist()) == set(range(EXPERTS)) for row in answer)
    return answer


@pytest.mark.parametrize("fault", ["thread", "copy", "group", "made"])
def test_a_recorder_that_fails_changes_no_plan(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    group = SimpleNamespace(ranks=[0, 1], rank_in_group=0)
    state = ModuleType("vllm.distributed.parallel_state")
    state.get_ep_group = fail if fault == "group" else lambda: group  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, state.__name__, state)
    where, what = {
        "thread": (threading.Thread, "start"),
        "copy": (recording.Recorder, "add"),
        "made": (recording.Recorder, "__init__"),
    }.get(fault, (None, ""))
    expected = vllm.make_policy(Theirs, Settings())
    with monkeypatch.context() as patched:
        # Threads of the planner have started by then.
        old = rebalanced(expected, loads(0), first(4))
        if where is not None:
            patched.setattr(where, what, fail)
        policy = vllm.make_policy(Theirs, Settings(record=tmp_path))
        assert torch.equal(rebalanced(policy, loads(0), first(4)), old)
        assert torch.equal(rebalanced(policy, loads(1), old), rebalanced(expected, loads(1), old))
    said = [record.message for record in caplog.records if "recorded" in record.message]
    assert len(said) == 1
    assert "planning goes on" in said[0]


@pytest.mark.parametrize(("before", "after"), [(4, 6), (6, 4)])
def test_ranks_come_and_go_while_the_start_layout_runs(before: int, after: int) -> None:
    for idle in (False, True):
        old = first(before)
        if after > before:
            empty = torch.full((LAYERS, (after - before) * SLOTS), -1)
            old = torch.cat([old, empty], dim=1)
        weight = loads(0)
        weight[1] *= not idle
        policy = vllm.make_policy(Theirs, Settings())
        running = rebalanced(policy, weight, old, after)
        rebalanced(policy, weight, running, after)


@pytest.mark.parametrize(
    ("shape", "slots"), [((1, 32), 5), ((1, 16), 3), ((4, 32), 6), ((4, 32), 5)]
)
def test_a_second_model_has_a_history_of_its_own(
    shape: tuple[int, int], slots: int, planned: list[Any]
) -> None:
    policy = vllm.make_policy(Theirs, Settings())
    groups = 4 if (shape, slots) == ((4, 32), 5) else 1
    models = [((4, 32), 5, 1), (shape, slots, groups)]
    maps = [first(8, shape, slots) for shape, slots, _ in models]
    for step in range(4):
        for model, (size, local, split) in enumerate(models):
            maps[model] = policy.rebalance_experts(
                loads(step, size), 8 * local, split, 1, 8, maps[model]
            )
    assert [len(windows) for windows in planned] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_window_of_no_numbers_is_left_out(
    value: float, planned: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy, expected = (vllm.make_policy(Theirs, Settings()) for _ in range(2))
    running = rebalanced(policy, loads(0), first(4))
    rebalanced(expected, loads(0), first(4))
    for layer in range(2):
        wrong = loads(1).double()
        wrong[layer, layer + 3] = value
        assert torch.equal(rebalanced(policy, wrong, running), running)
    assert len(planned) == 2
    after = rebalanced(policy, loads(2), running)
    assert torch.equal(after, rebalanced(expected, loads(2), running))
    assert [len(windows) for windows in planned] == [1, 1, 2, 2]
    # Ranks that join see the same window, and have no history either.
    wider = torch.cat([after, torch.full((LAYERS, 2 * SLOTS), -1)], dim=1)
    joining = vllm.make_policy(Theirs, Settings())
    maps = [rebalanced(each, wrong, wider, 6) for each in (policy, joining)]
    maps += [rebalanced(each, loads(3), maps[0], 6) for each in (policy, joining)]
    assert torch.equal(maps[0], maps[1])
    assert torch.equal(maps[2], maps[3])
    assert caplog.text.count("this window is left out") == 1


@pytest.mark.parametrize(("groups", "nodes"), [(0, 2), (None, 1), (3, 2)])
def test_groups_that_engines_have_none_of_leave_a_plan(groups: int | None, nodes: int) -> None:
    policy, other = (vllm.make_policy(Theirs, Settings()) for _ in range(2))
    answer = policy.rebalance_experts(loads(0), 20, groups, nodes, 4, first(4))
    assert torch.equal(answer, other.rebalance_experts(loads(0), 20, 1, nodes, 4, first(4)))


def test_idle_layers_stay_and_plans_go_on(planned: list[Any]) -> None:
    policy = vllm.make_policy(Theirs, Settings())
    running = first(4)
    for step in range(3):
        weight = loads(step)
        weight[1] = 0
        running = rebalanced(policy, weight, running)
        assert torch.equal(running[1], first(4)[1])
    running = rebalanced(policy, torch.zeros_like(weight), running)
    rebalanced(policy, loads(3), running)
    assert [len(windows) for windows in planned] == [1, 2, 3, 4]


def test_each_cause_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [
        ValueError("loads[1, 2] is 3.5"),
        ValueError("loads[7, 81] is 1e-05"),
        ValueError("no such slot"),
        KeyError("no such slot"),
        OSError(28, "No space left on device", ".eplb-0a1b.part"),
        OSError(28, "No space left on device", ".eplb-other.part"),
        OSError(13, "Permission denied", ".eplb-0a1b.part"),
    ]

    def fail(*_: Any) -> None:
        raise next(raised)

    monkeypatch.setattr(live, "next_placement", fail)
    policy = vllm.make_policy(Theirs, Settings())
    raised = iter(errors * 2)
    for _ in errors * 2:
        assert policy.rebalance_experts(loads(0), 20, 1, 1, 4, first(4)) is OWN
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 5
    assert all("vLLM's own policy answers" in message for message in told)


@pytest.mark.parametrize("imported", [False, True])
def test_a_warm_up_that_fails_is_told_and_stops_no_engine(
    imported: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise MemoryError("no memory to compile in")

    monkeypatch.setattr("eplb.planning.plan.warmup", fail)
    start.compile_kernels.cache_clear()

    name = f"an_engine_{imported}"
    (tmp_path / f"{name}.py").write_text(
        "class State:\n    def add_model(self, model):\n        return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    if imported:
        importlib.import_module(name)
    before = list(sys.meta_path)
    for _ in range(2):
        start.after(
            name, "State", "add_model", lambda *_: start.compile_kernels(logging.getLogger("an"))
        )
    assert (sys.meta_path == before) == imported
    for _ in range(2):
        assert importlib.import_module(name).State().add_model("model") == "model"
    assert sys.meta_path == before
    start.compile_kernels.cache_clear()
    assert caplog.text.count("the planner is compiled at the first plan") == 1


def test_steps_of_no_numbers_are_left_out_for_sglang(caplog: pytest.LogCaptureFixture) -> None:
    steps = torch.stack([loads(number).double() for number in range(5)])
    for step, value in ((1, float("nan")), (3, -1.0), (4, float("inf"))):
        steps[step, 1, 2] = value
    expected = sglang._windows(steps[[0, 2]], 2)
    for _ in range(2):
        assert np.array_equal(sglang._windows(steps, 2), expected)
    assert not sglang._windows(steps[[1, 3]], 2).any()
    assert caplog.text.count("no numbers of tokens are left out") == 1
