"""Dispatchers of an engine's layers: found by where its map is, and switched on by all ranks."""

import logging
from typing import Any

import numpy as np
import pytest
import torch

import eplb
from eplb.engines import batches
from eplb.engines.batches import Batches
from eplb.torch import BatchDispatch

CLUSTER = eplb.Cluster(2, 1, 3)
FIRST = np.array([[0, 1, 2, 0, 3, 1], [3, 2, 1, 3, 0, 2]])
SECOND = np.array([[2, 1, 0, 2, 3, 1], [0, 2, 1, 3, 0, 2]])
IDS = torch.tensor([[0, 2], [0, 1], [3, 1], [0, 2], [1, 2]], dtype=torch.int32)


@pytest.fixture
def held() -> tuple[Batches, Any]:
    made = Batches(logging.getLogger("vllm.eplb"), "its own choice")
    maps = torch.full((2, 4, 8), -1)
    made.hold(maps, FIRST, 2, [None, None])
    return made, maps


def slots(made: Batches, row: Any, ids: Any = IDS) -> Any:
    layer = made.layer_of(row)
    assert layer is not None
    return made.slots(layer, ids, None)


def expected(phy2log: np.ndarray[Any, Any], layer: int) -> Any:
    return BatchDispatch(eplb.Placement(phy2log, 4, CLUSTER), layer, lasting=True)(IDS)


def test_a_layer_is_found_by_its_row_and_follows_new_maps(held: tuple[Batches, Any]) -> None:
    made, maps = held
    assert made.layer_of(maps[0]) is None  # ranks have not agreed
    assert made.agree(lambda kind, tried: (kind, tried.shape) == ("EPLB_DISPATCH", (2 * 64 * 4,)))
    assert made.layer_of(maps.clone()[0]) is None
    for number in (0, 1):
        found = slots(made, maps[number], IDS.to(torch.uint8))
        assert found.dtype == torch.uint8
        assert torch.equal(found.to(torch.int32), expected(FIRST, number))
    made.follow([maps[1]], SECOND[1:])
    for number, now in ((0, FIRST), (1, SECOND)):
        assert torch.equal(slots(made, maps[number]), expected(now, number))


def test_nothing_is_dispatched_where_a_rank_cannot(
    held: tuple[Batches, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made, maps = held
    assert not made.agree(lambda *_: False)
    assert made.layer_of(maps[0]) is None

    def none_is_left(_: object) -> None:
        raise MemoryError("none is left")

    monkeypatch.setattr(batches, "_tried", none_is_left)
    # All ranks fail alike.
    assert not made.agree(lambda *_: True)
    assert "none is left; its own choice stays" in caplog.text


def test_a_batch_or_a_map_that_it_cannot_take_is_the_engines(
    held: tuple[Batches, Any], caplog: pytest.LogCaptureFixture
) -> None:
    made, maps = held
    made.agree(lambda *_: True)
    assert slots(made, maps[0], IDS + 4) is None
    assert "its own choice is used for that batch" in caplog.text
    made.follow(maps, np.array([[0, 0, 0, 1, 1, 1], SECOND[1].tolist()]))
    assert made.layer_of(maps[0]) is None
    assert "its own choice is used in that layer" in caplog.text
    assert torch.equal(slots(made, maps[1]), expected(SECOND, 1))
