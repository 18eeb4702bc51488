"""Placements that operators and branches of engines write in no engine's own form."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from notes import told

import eplb

ROWS = np.array([[0, 1, 2, 0], [2, 0, 1, 2], [1, 0, 2, 1]])
SMALL = eplb.Placement(ROWS, 3, eplb.Cluster(2, 1, 2))


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["map.pt", "map.npy"])
def test_arrays(tmp_path: Path, name: str) -> None:
    """Two axes, one for all layers, by GPU, and the slot of each expert on each GPU."""
    expert_map = np.full((3, 2, 3), -1, np.int32)
    for layer, gpu, slot in np.ndindex(3, 2, 2):
        expert_map[layer, gpu, ROWS[layer, 2 * gpu + slot]] = slot
    path = tmp_path / name
    for array in (ROWS, ROWS.astype(np.int32), ROWS.reshape(3, 2, 2), expert_map):
        if name == "map.npy":
            np.save(path, array)
        else:
            torch = pytest.importorskip("torch", reason="torch writes .pt files")
            torch.save(torch.tensor(array), path)
        assert eplb.load_placement(path, 2) == SMALL
    expert_map[1, 0, ROWS[1, 0]] = -1
    np.save(tmp_path / "wrong.npy", expert_map)
    with pytest.raises(eplb.FormatError, match="GPUs do not each have experts in slots 0 to 1"):
        eplb.load_placement(tmp_path / "wrong.npy", 2)


def test_what_deepseeks_eplb_returns_as_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes .pt files")
    maps = {"phy2log": ROWS, "log2phy": SMALL.log2phy, "logcnt": SMALL.logcnt}
    path = tmp_path / "maps.pt"
    torch.save({name: torch.tensor(array.copy()) for name, array in maps.items()}, path)
    assert eplb.load_placement(path, 2) == SMALL
    torch.save({"phy2log": torch.tensor(ROWS), "logcnt": torch.tensor(ROWS[:, :3])}, path)
    with pytest.raises(eplb.FormatError, match="logcnt is not how often phy2log has each expert"):
        eplb.load_placement(path, 2)


def test_one_map_for_all_layers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", ROWS[1].tolist())
    found = eplb.load_placement(path, 2, dense=[True, False, False, False])
    assert found.phy2log.tolist() == [ROWS[1].tolist()] * 4


@pytest.mark.parametrize("name", ["{}", "layer_{}", "model.layers.{}.mlp.experts"])
def test_maps_by_layer(tmp_path: Path, name: str) -> None:
    rows = {name.format(layer): row for layer, row in zip((12, 3, 7), ROWS.tolist(), strict=True)}
    found = eplb.load_placement(write(tmp_path / "a.json", rows), 2)
    assert found.layers == (3, 7, 12)
    assert found.phy2log.tolist() == ROWS[[1, 2, 0]].tolist()


def test_maps_of_two_models(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def named(*sizes: int) -> dict[str, Any]:
        maps = [{"physical_to_logical_map": ROWS[:size].tolist()} for size in sizes]
        return dict(zip(("mtp", "target"), maps, strict=True))

    for content in (named(1, 3), {"version": 2, "models": named(1, 3)}):
        path = write(tmp_path / "a.json", content)
        with told(caplog, r"mtp \(1 layer\), target \(3 layers\): that of targ"):
            assert eplb.load_placement(path, 2) == SMALL
    path = write(tmp_path / "a.json", named(3, 3))
    with pytest.raises(eplb.FormatError, match="save the one that is meant to a file of its own"):
        eplb.load_placement(path, 2)


def test_shared_expert_on_every_device(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is left out if the loads have no such expert, and stays if they have."""
    held = [[*gpu, 3] for gpu in ROWS.reshape(6, 2).tolist()]
    layers = [
        {
            "layer_id": layer,
            "device_list": [{"device_expert": each} for each in held[2 * layer :][:2]],
        }
        for layer in range(3)
    ]
    path = write(tmp_path / "a.json", {"moe_layer_count": 3, "layer_list": layers})
    with told(caplog, r"expert 3 is on every GPU.* as a shared expert"):
        assert eplb.load_placement(path, num_experts=3) == SMALL
    assert eplb.load_placement(path, num_experts=4).cluster.slots_per_gpu == 3
    layers[1]["device_list"][0]["device_expert"][2] = 0  # type: ignore[index]
    write(path, {"moe_layer_count": 3, "layer_list": layers})
    with pytest.raises(eplb.FormatError, match="has experts 0 to 3, expected 0 to 2"):
        eplb.load_placement(path, num_experts=3)


def test_snapshots_of_vllm_have_the_last_map(tmp_path: Path) -> None:
    maps = [ROWS[::-1].tolist(), ROWS.tolist()]
    content = {
        "world_size": 2,
        "snapshots": [{"step": 1, "physical_to_logical_map": each} for each in maps],
    }
    assert eplb.load_placement(write(tmp_path / "a.json", content)) == SMALL
