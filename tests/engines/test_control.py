"""EPLB_CONTROL: a running engine is paused, goes on, or goes to a placement that a file names."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="vLLM shows tensors")

import eplb  # noqa: E402
from eplb.engines import log, vllm  # noqa: E402
from eplb.engines.rebalances import Rebalance, Rebalances  # noqa: E402
from eplb.engines.settings import Settings  # noqa: E402

LAYERS, EXPERTS, SLOTS, RANKS = 3, 16, 20, 4


class Theirs:
    """The policy of an engine that must not be needed."""

    @classmethod
    def rebalance_experts(cls, *_: Any) -> Any:
        raise AssertionError("the engine's own policy answered")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine whose file is `asks`; `step` is a rebalance, `maps` what ran from then on."""
    monkeypatch.setattr(log, "_told", set())
    settings = Settings(control=tmp_path / "asks")
    told = Rebalances(logging.getLogger("vllm.eplb"), settings, "its own")
    rebalances: list[Rebalance] = []
    told.observers.append(rebalances.append)
    policy = vllm.make_policy(Theirs, settings, told)
    maps = [(torch.arange(SLOTS) % EXPERTS).repeat(LAYERS, 1)]

    def step(number: int) -> Any:
        loads = torch.from_numpy(np.random.default_rng(number).integers(1, 1000, (LAYERS, EXPERTS)))
        maps.append(policy.rebalance_experts(loads, SLOTS, 1, 1, RANKS, maps[-1]))
        return maps[-1]

    return SimpleNamespace(asks=tmp_path / "asks", step=step, maps=maps, told=rebalances)


def test_it_pauses_and_goes_on(engine: Any) -> None:
    for number in range(6):
        if number in {2, 4}:
            engine.asks.write_text({2: "pause\n", 4: "resume\n"}[number])
        engine.step(number)
    stayed = [
        torch.equal(old, new) for old, new in zip(engine.maps[:-1], engine.maps[1:], strict=True)
    ]
    assert stayed == [False, False, True, True, False, False]
    assert [str(each.reason) for each in engine.told[2:4]] == ["paused, by EPLB_CONTROL"] * 2
    assert engine.told[4].windows == 5  # windows are remembered meanwhile


def test_it_goes_to_a_placement_and_stays_there(
    engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = eplb.Cluster(RANKS, 1, SLOTS // RANKS)
    loads = np.random.default_rng(9).lognormal(5.0, 1.0, (LAYERS, EXPERTS))
    named = eplb.plan(loads, cluster).placement
    eplb.save_placement(named, engine.asks.with_name("tuesday.json"), to="vllm")
    engine.step(0)
    engine.asks.write_text("tuesday.json")
    for number in (1, 2):
        assert engine.step(number).tolist() == named.phy2log.tolist()
    assert str(engine.told[1].reason) == "asked, tuesday.json by EPLB_CONTROL"
    assert (engine.told[1].moves > 0, engine.told[2].moves) == (True, 0)
    few = eplb.plan(loads[:2], cluster).placement
    eplb.save_placement(few, engine.asks.with_name("few.json"), to="vllm")
    for text, said in (
        ("few.json", "few.json: has 2 layers of 20 slots, and the engine runs 3 of 20"),
        ("nowhere.json", "nowhere.json"),
        ("pause\nresume", "has several lines"),
        ("\udcff", "EPLB_CONTROL"),
    ):
        engine.asks.write_text(text, errors="surrogateescape")
        caplog.clear()
        assert engine.step(3).tolist() == named.phy2log.tolist()
        (line,) = [record.message for record in caplog.records if "asked before" in record.message]
        assert said in line
    engine.asks.unlink()
    assert engine.step(4).tolist() != named.phy2log.tolist()


def test_another_number_of_ranks_is_planned_for(engine: Any) -> None:
    engine.asks.write_text("pause")
    engine.step(0)
    assert torch.equal(*engine.maps[:2])
    policy = vllm.make_policy(Theirs, Settings(control=engine.asks))
    grown = torch.cat([engine.maps[1], torch.full((LAYERS, 5), -1)], dim=1)
    loads = torch.from_numpy(np.random.default_rng(0).integers(1, 1000, (LAYERS, EXPERTS)))
    assert int(policy.rebalance_experts(loads, SLOTS + 5, 1, 1, RANKS + 1, grown).min()) >= 0
