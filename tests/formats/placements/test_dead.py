"""Placements with dead GPUs, as each engine's form has them."""

import json
from pathlib import Path

import numpy as np
import pytest

import eplb
from eplb import Cluster, Placement
from eplb.formats.placements import Engine

yaml = pytest.importorskip("yaml", reason="PyYAML reads TensorRT-LLM's placements")

CLUSTER = Cluster(num_gpus=3, slots_per_gpu=2).without([1])
ROWS = np.array([[0, 1, -1, -1, 2, 0], [2, 1, -1, -1, 1, 0]])
PLACEMENT = Placement(ROWS, 3, CLUSTER)


@pytest.mark.parametrize(
    ("to", "ending"), [("vllm", "json"), ("deepseek", "json"), ("deepseek", "npz")]
)
def test_empty_slots_say_who_is_dead(tmp_path: Path, to: Engine, ending: str) -> None:
    path = tmp_path / f"placement.{ending}"
    eplb.save_placement(PLACEMENT, path, to=to)
    assert eplb.load_placement(path) == PLACEMENT


def test_bare_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "bare.npy", ROWS)
    (tmp_path / "bare.json").write_text(json.dumps(ROWS.tolist()))
    for name in ("bare.npy", "bare.json"):
        assert eplb.load_placement(tmp_path / name, 3) == PLACEMENT


def test_sglang_has_expert_0_in_the_slots_of_dead_ranks(tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    eplb.save_placement(PLACEMENT, path, to="sglang")
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert rows == np.where(ROWS < 0, 0, ROWS).tolist()


@pytest.mark.parametrize(("to", "ending"), [("tensorrt-llm", "yaml"), ("ascend", "json")])
def test_those_alive_alone(tmp_path: Path, to: Engine, ending: str) -> None:
    path = tmp_path / f"placement.{ending}"
    eplb.save_placement(PLACEMENT, path, to=to)
    alive = eplb.load_placement(path, 2)
    assert alive == PLACEMENT.survivors == Placement(ROWS[:, [0, 1, 4, 5]], 3, Cluster(2, 1, 2))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[0, 1, -1, 2, 2, 0]],
            r"phy2log\[0\]\[2\] is -1, expected a number from 0 on: empty slots",
        ),
        (
            [[0, 1, -1, -1, 2, 0], [0, 1, 2, 1, -1, -1]],
            r"phy2log\[0\]\[2\] is -1, expected a number from 0 on: empty slots",
        ),
        ([[-1] * 6], "bare.json: "),
        ([[0, 1, -2, -1, 2, 0]], r"phy2log\[0\]\[2\] is -2, expected a number from"),
    ],
)
def test_empty_slots_of_the_living(tmp_path: Path, rows: list[list[int]], message: str) -> None:
    path = tmp_path / "bare.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(eplb.EplbError, match=message):
        eplb.load_placement(path, 3)
