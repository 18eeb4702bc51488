"""What the log says of each rebalance, against figures of placements."""

import itertools
import logging
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vLLM shows tensors")

from eplb import Cluster, Placement  # noqa: E402
from eplb.checks import Budget  # noqa: E402
from eplb.engines import live, vllm  # noqa: E402
from eplb.engines.ranks import Member  # noqa: E402
from eplb.engines.rebalances import Rebalance, Rebalances  # noqa: E402
from eplb.engines.settings import Settings  # noqa: E402

LAYERS, EXPERTS, RANKS, SLOTS = 3, 16, 4, 20
CLUSTER = Cluster(RANKS, 1, SLOTS // RANKS)


class Theirs:
    """The engine's own policy, which takes experts in order."""

    @classmethod
    def rebalance_experts(cls, *_: Any) -> Any:
        return first()


def first() -> Any:
    return (torch.arange(SLOTS) % EXPERTS).repeat(LAYERS, 1)


def loads(number: int) -> Any:
    draw = np.random.default_rng(number).lognormal(7.0, 1.0, (LAYERS, EXPERTS))
    return torch.from_numpy(np.rint(draw))


def placement(phy2log: Any) -> Placement:
    return Placement(phy2log.numpy(), EXPERTS, CLUSTER)


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> tuple[Any, list[Rebalance]]:
    """A policy as vLLM calls it, and the rebalances that are told of."""
    caplog.set_level(logging.INFO)
    settings = Settings(max_moves=Budget(moves=3), role="prefill")
    told = Rebalances(logging.getLogger("vllm.eplb"), settings, "vLLM's own policy")
    rebalances: list[Rebalance] = []
    told.observers.append(rebalances.append)
    weights = [torch.zeros((5, 8, 4)), torch.zeros((5, 2), dtype=torch.int8)]
    told.weigh(lambda: weights, (LAYERS, EXPERTS))
    policy = vllm.make_policy(Theirs, settings, told)

    def call(weight: Any, running: Any) -> Any:
        return policy.rebalance_experts(weight, SLOTS, 1, 1, RANKS, running)

    return call, rebalances


def test_figures_are_those_of_the_placements(
    seen: tuple[Any, list[Rebalance]], caplog: pytest.LogCaptureFixture
) -> None:
    call, rebalances = seen
    windows = [loads(number) for number in range(3)]
    maps = [first()]
    for window in windows:
        maps.append(call(window, maps[-1]))
    for number, told in enumerate(rebalances, start=1):
        shown = np.stack(windows[:number])
        old, new = map(placement, maps[number - 1 : number + 1])
        assert (told.number, told.decision, told.windows) == (number, "moved", number)
        counted, weights = live.windows_to_plan_for(shown)
        assert np.array_equal(counted, shown)
        for each, said in ((old, told.before), (new, told.planned)):
            assert said == pytest.approx(weights @ each.ratios(shown).mean(axis=1))
        assert told.by_layer is not None
        assert told.by_layer.mean() == pytest.approx(new.balancedness(shown))
        load = new.gpu_load(shown)
        assert told.peak == pytest.approx((load.max(axis=-1) / load.mean(axis=-1)).max())
        assert told.moves == new.moves_from(old)
        assert told.bytes == told.moves * (8 * 4 * 4 + 2)
    assert (rebalances[0].since, rebalances[0].expected) == (None, None)
    for before, told in itertools.pairwise(rebalances):
        unseen = windows[told.number - 1]
        assert told.since == pytest.approx(placement(maps[told.number - 1]).balancedness(unseen))
        assert told.expected == before.planned
    lines = [record.message for record in caplog.records if "rebalance" in record.message]
    assert [str(told) in line for told, line in zip(rebalances, lines, strict=True)] == [True] * 3
    assert re.fullmatch(
        r"eplb: prefill: rebalance 3: 3 of 60 experts move \(0.4 kB\): budget, as many as "
        r"EPLB_MAX_MOVES allows \(3\); balancedness 0.\d{3} before, 0.\d{3} planned, "
        r"on 3 windows planned for; 0.\d{3} since the last plan, 0.\d{3} expected; \d+.\d\d s",
        lines[2],
    )


def test_why_nothing_moves(seen: tuple[Any, list[Rebalance]]) -> None:
    call, rebalances = seen
    assert torch.equal(call(torch.zeros((LAYERS, EXPERTS)), first()), first())
    assert not rebalances  # the engine tries what a rebalance costs
    even = torch.full((LAYERS, EXPERTS), 50.0)
    running = call(loads(0), first())
    for _ in range(2):
        running = call(even, call(torch.zeros((LAYERS, EXPERTS)), running))
    reasons = [(told.decision, str(told.reason)) for told in rebalances]
    assert reasons[1] == ("waited", "no tokens, none came since the last rebalance")
    assert rebalances[1].planned is None
    policy = vllm.make_policy(Theirs, Settings(), told := Rebalances(vllm._logger, Settings(), ""))
    told.observers.append(rebalances.append)
    for _ in range(8):
        running = policy.rebalance_experts(loads(0), SLOTS, 1, 1, RANKS, running)
    assert rebalances[-1].decision == "waited"
    assert rebalances[-1].reason.name == "no gain"
    assert rebalances[-1].before == rebalances[-1].planned == pytest.approx(rebalances[-1].since)


def test_a_plan_that_fails_is_told_of(
    seen: tuple[Any, list[Rebalance]], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, rebalances = seen
    running = call(loads(0), first())

    def fail(*_: Any) -> None:
        raise MemoryError("none is left")

    monkeypatch.setattr(live, "next_placement", fail)
    assert torch.equal(call(loads(1), running), first())
    assert (rebalances[1].decision, str(rebalances[1].reason)) == (
        "own",
        "planning failed, vLLM's own policy answers",
    )
    assert rebalances[1].moves == placement(first()).moves_from(placement(running))


def test_other_ranks_say_nothing(
    seen: tuple[Any, list[Rebalance]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rebalances = seen
    group = SimpleNamespace()
    for rank in (1, 0):
        member = Member(group, None, "ep", rank, 1)
        monkeypatch.setattr(vllm, "_member", lambda member=member: member)
        told = Rebalances(vllm._logger, Settings(), "")
        told.observers.append(rebalances.append)
        policy = vllm.make_policy(Theirs, Settings(), told)
        policy.rebalance_experts(loads(0), SLOTS, 1, 1, RANKS, first())
        assert len(rebalances) == (rank == 0)


def test_what_cannot_be_told_changes_no_answer(
    seen: tuple[Any, list[Rebalance]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    call, rebalances = seen
    monkeypatch.setattr(Rebalances, "_of", lambda *_: 1 / 0)
    answer = call(loads(0), first())
    other = vllm.make_policy(Theirs, Settings(max_moves=Budget(moves=3)))
    assert torch.equal(answer, other.rebalance_experts(loads(0), SLOTS, 1, 1, RANKS, first()))
    assert "division by zero; the log does not say what this rebalance does" in caplog.text
    assert not rebalances
