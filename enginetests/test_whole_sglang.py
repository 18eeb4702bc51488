"""SGLang's server of two ranks on CPUs: what it answers stays the same while experts move."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import RANKS, TOKENS, Server, assert_seen, prompts, sglang_server
from tiny_model import EXPERTS, LAYERS, SPARE

from eplb import Cluster, Placement

_ROUNDS = 4
_ENGINES = Path(os.environ.get("ENGINES", ".venv/engines")).resolve()

pytestmark = pytest.mark.skipif(
    not (_ENGINES / "site" / "uvicorn").is_dir(),
    reason="SGLang's server does not run here: this environment was made without its packages",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that rebalances after each 12 passes."""
    folder = tmp_path_factory.mktemp("server")
    with sglang_server(_ENGINES, folder, "--enable-metrics") as running:
        yield running


def expected(model: Path) -> list[list[int]]:
    """What the model answers by itself, in transformers."""
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    given = torch.tensor(prompts())
    with torch.inference_mode():
        for _ in range(TOKENS):
            next_tokens = alone(given).logits[:, -1].argmax(dim=1)
            given = torch.cat([given, next_tokens[:, None]], dim=1)
    return given[:, -TOKENS:].tolist()


def test_answers_stay_while_experts_move(server: Server) -> None:
    rounds = [server.answers() for _ in range(_ROUNDS)]
    assert rounds == [expected(server.model)] * _ROUNDS
    ranks = server.ranks()
    maps = [np.array(phy2log) for phy2log, _ in ranks[0]]
    assert [phy2log for phy2log, _ in ranks[1]] == [each.tolist() for each in maps]
    assert maps[0].shape == (LAYERS, EXPERTS + SPARE)
    first: dict[tuple[int, int], str] = {}
    for step, phy2log in enumerate(maps):
        weights = np.hstack([rank[step][1] for rank in ranks])
        for layer, slot in np.ndindex(phy2log.shape):
            key = layer, int(phy2log[layer, slot])
            assert weights[layer, slot] == first.setdefault(key, weights[layer, slot])
    assert len(set(first.values())) == len(first) == LAYERS * EXPERTS
    cluster = Cluster.with_slots(EXPERTS + SPARE, RANKS)
    placements = [Placement(each, EXPERTS, cluster) for each in maps]
    moves = [new.moves_from(old) for old, new in itertools.pairwise(placements)]
    assert moves
    lines = server.lines("eplb: ")
    told = [line for line in lines if "eplb: rebalance " in line]
    assert len(told) >= _ROUNDS * TOKENS // 12 - 1
    assert "first plan, from a layout that knows no loads" in told[0]
    for line, number in zip(
        [line for line in told if " experts move " in line], moves, strict=False
    ):
        assert f" {number} of {maps[0].size} experts move " in line
    assert all(number <= 0.1 * maps[0].size for number in moves[1:])
    assert sum("this planner replaces SGLang's algorithms" in line for line in lines) == 1
    assert not any("answers" in line or "disagree" in line for line in lines)
    server.settle()
    assert_seen(server.series(), server)
