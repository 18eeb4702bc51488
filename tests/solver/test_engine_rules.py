"""Rules of engines: parts of experts, and SGLang's table, against what they are defined by."""

from collections.abc import Callable

import naive_rules
import numpy as np
import pytest

from eplb import Cluster, Placement
from eplb.dispatching.rules import TABLES
from eplb.solver.engine_rules import ASCEND, SGLANG, expected_parts

SHAPES = [
    # GPUs, nodes, slots of a GPU, experts
    (8, 2, 5, 12),
    (6, 3, 4, 5),
    (4, 1, 4, 3),
    (4, 4, 3, 2),
    (9, 3, 2, 18),
    (1, 1, 3, 3),
    # So many copies that samples are drawn by remembering what was drawn.
    (40, 2, 2, 2),
    (48, 1, 1, 2),
]


def made(
    shape: tuple[int, int, int, int], placing: Callable[[np.random.Generator, int], np.ndarray]
) -> Placement:
    num_gpus, num_nodes, slots_per_gpu, num_experts = shape
    cluster = Cluster(num_gpus, num_nodes, slots_per_gpu)
    rng = np.random.default_rng(num_gpus)
    rows = []
    for _ in range(5):
        others = placing(rng, cluster.num_slots - num_experts) % num_experts
        rows.append(rng.permutation(np.concatenate([np.arange(num_experts), others])))
    return Placement(np.array(rows), num_experts, cluster)


def skewed(rng: np.random.Generator, number: int) -> np.ndarray:
    return np.floor(rng.random(number) ** 3 * 1000.0 / 83.0).astype(np.int64)


@pytest.mark.parametrize("shape", SHAPES)
def test_parts_are_what_sources_send(shape: tuple[int, int, int, int]) -> None:
    placement = made(shape, skewed)
    cluster = placement.cluster
    for name, rule in (("sglang", SGLANG), ("ascend", ASCEND)):
        split = expected_parts(
            placement.phy2log, shape[3], cluster.num_gpus, cluster.num_nodes, rule
        )
        for layer, row in enumerate(placement.log2phy):
            for padded in row:
                slots = padded[padded >= 0]
                parts = naive_rules.expected_parts(
                    name, tuple(slots.tolist()), *(cluster.num_gpus, cluster.slots_per_gpu),
                    cluster.num_gpus // cluster.num_nodes,
                )  # fmt: skip
                assert split[layer, slots] == pytest.approx([float(part) for part in parts])


@pytest.mark.parametrize("shape", SHAPES)
def test_sglangs_table_draws_as_python_does(shape: tuple[int, int, int, int]) -> None:
    placement = made(shape, skewed)
    cluster = placement.cluster
    expected = naive_rules.sglang_table(
        placement.log2phy.tolist(), *(cluster.num_gpus, cluster.slots_per_gpu),
        cluster.num_gpus // cluster.num_nodes,
    )  # fmt: skip
    assert TABLES["sglang"](placement.log2phy, cluster).transpose(0, 2, 1).tolist() == expected


def test_words_that_are_used_up_are_not_read() -> None:
    from eplb.solver.engine_rules import _sglang_layers

    placement = made(SHAPES[0], skewed)
    table = np.empty((5, 8, 12), np.int64)
    slots = np.array(placement.log2phy)
    assert not _sglang_layers(slots, 5, 4, np.zeros(3, np.int64), table)
