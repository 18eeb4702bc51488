"""Placements that are broken, contradict themselves, or are for another model or other GPUs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eplb

yaml = pytest.importorskip("yaml", reason="PyYAML reads TensorRT-LLM's placements")

SGLANG = {"physical_to_logical_map": [[0, 1, 2, 0], [2, 0, 1, 2]]}
OWN = {
    "eplb_placement": 1,
    "engine": "vllm",
    "num_gpus": 2,
    "num_nodes": 1,
    "num_experts": 3,
    "layers": [3, 4],
    **SGLANG,
}
DEEPSEEK = {
    "phy2log": [[0, 1, 2, 0]],
    "log2phy": [[[0, 3], [1, -1], [2, -1]]],
    "logcnt": [[2, 1, 1]],
}


def devices(*experts: Any, count: Any = 2) -> dict[str, Any]:
    held = [{"device_id": gpu, "device_expert": each} for gpu, each in enumerate(experts)]
    return {"layer_id": 0, "device_count": count, "device_list": held}


def ascend(*layers: Any, count: Any = None) -> dict[str, Any]:
    return {
        "moe_layer_count": len(layers) if count is None else count,
        "layer_list": list(layers),
    }


TENSORRT = {
    "num_slots": 4,
    "layer_updates_per_iter": 0,
    "initial_global_assignments": {3: [0, 1, 2, 0]},
}
GOOD = devices([0, 1], [2, 0])

WRONG: dict[str, tuple[Any, str]] = {
    "extra key": ({**SGLANG, "ep_size": 2}, "has the key 'ep_size' beside 'physical_to_logical_m"),
    "no rows": ({"physical_to_logical_map": 3}, "physical_to_logical_map is int, expected a list"),
    "ragged": (
        {"physical_to_logical_map": [[0, 1], [1]]},
        "physical_to_logical_map[1] has 1 slots, physical_to_logical_map[0] has 2: each layer",
    ),
    "no number": (
        {"physical_to_logical_map": [[0, 1], [1, "x"]]},
        "physical_to_logical_map[1][1] is 'x', expected a number from 0 on",
    ),
    "truth": (
        {"physical_to_logical_map": [[0, True]]},
        "physical_to_logical_map[0][1] is True, expected a number from 0 on",
    ),
    "empty slot": (
        {"physical_to_logical_map": [[0, 1], [1, -1]]},
        "physical_to_logical_map[1][1] is -1, expected a number from 0 on",
    ),
    "float": (
        {"physical_to_logical_map": [[0, 1.0]]},
        "physical_to_logical_map[0][1] is 1.0, expected a number from 0 on",
    ),
    "lost expert": (
        {"physical_to_logical_map": [[0, 1, 2, 0], [0, 1, 1, 0]]},
        "physical_to_logical_map[1] has no slot for expert 2, and 4 slots for experts 0 to 2",
    ),
    "huge expert": (
        {"physical_to_logical_map": [[0, 1, 2, 2**31 - 1]]},
        "physical_to_logical_map[0] has no slot for expert 3, and 4 slots for experts 0 to 2147483",
    ),
    "own version": ({**OWN, "eplb_placement": 2}, "eplb_placement is '2', known is version 1"),
    "own layers": ({**OWN, "layers": [4, 3]}, "layers are no 2 rising numbers, one for each row"),
    "own GPUs": ({**OWN, "num_gpus": 4}, "is for 4 GPUs, but 2 are given"),
    "own no number": ({**OWN, "num_gpus": 0}, "num_gpus is 0, expected a number of 1 or more"),
    "own experts": (
        {**OWN, "num_experts": 4},
        "num_experts is 4, and physical_to_logical_map has experts up to 2",
    ),
    "ascend count": (ascend(GOOD, count=2), "moe_layer_count is 2, and layer_list has 1 layer"),
    "ascend devices": (
        ascend(GOOD, devices([0, 1], count=1)),
        "layer_list[1] has 1 devices, layer_list[0] has 2",
    ),
    "ascend device_count": (
        ascend(devices([0, 1], [2, 0], count=3)),
        "layer_list[0] has device_count 3, and 2 devices",
    ),
    "ascend uneven": (
        ascend(devices([0, 1], [2])),
        "layer_list[0].device_list[1].device_expert has 1 slots, layer_list[0].device_list[0]",
    ),
    "ascend hole": (
        ascend(GOOD, devices([0, 1], None)),
        "layer_list[1].device_list[1].device_expert is None, expected a list of experts",
    ),
    "ascend GPUs": (
        ascend(devices([0], [1], [2], [0], count=4)),
        "is for 4 GPUs, but 2 are given",
    ),
    "ascend nothing": ({"moe_layer_count": 3}, "has no layer_list with layers in it"),
    "TensorRT slots": (
        {**TENSORRT, "num_slots": 8},
        "initial_global_assignments[3] has 4 slots, and num_slots is 8",
    ),
    "TensorRT no slots": (
        {"initial_global_assignments": {3: [0, 1, 2, 0]}},
        "has no num_slots, which TensorRT-LLM needs",
    ),
    "TensorRT live": (
        {"num_slots": 4, "layer_updates_per_iter": 1},
        "has no initial_global_assignments by layer: the engine lays experts out by itself",
    ),
    "TensorRT key": ({**TENSORRT, "ep_size": 2}, "has the key 'ep_size': TensorRT-LLM takes ["),
    "TensorRT layer": (
        {**TENSORRT, "initial_global_assignments": {"x": [0, 1, 2, 0]}},
        "initial_global_assignments has 'x', expected layer numbers",
    ),
    "TensorRT updates": (
        {**TENSORRT, "layer_updates_per_iter": "no"},
        "layer_updates_per_iter is no number from 0 on",
    ),
    "TensorRT elsewhere": (
        {"moe_config": {"load_balancer": "./other.yaml"}},
        "names another file in moe_config.load_balancer: give that one",
    ),
    "TensorRT nowhere": ({"moe_config": {}}, "has no moe_config.load_balancer"),
    "TensorRT size": (
        {"moe_expert_parallel_size": 4, "moe_config": {"load_balancer": TENSORRT}},
        "is for 4 GPUs, but 2 are given",
    ),
    "DeepSeek logcnt": (
        {**DEEPSEEK, "logcnt": [[1, 2, 1]]},
        "logcnt is not how often phy2log has each expert",
    ),
    "DeepSeek log2phy": (
        {**DEEPSEEK, "log2phy": [[[0, 3], [2, -1], [1, -1]]]},
        "log2phy[0][1] has other slots than phy2log[0] has for expert 1",
    ),
    "DeepSeek twice": (
        {**DEEPSEEK, "log2phy": [[[0, 0], [1, -1], [2, -1]]]},
        "log2phy[0][0] has other slots than phy2log[0] has for expert 0",
    ),
    "DeepSeek beyond": (
        {**DEEPSEEK, "log2phy": [[[0, 9], [1, -1], [2, -1]]]},
        "log2phy[0][0] has other slots than phy2log[0] has for expert 0",
    ),
    "DeepSeek shape": (
        {**DEEPSEEK, "log2phy": [[[0, 3], [1, -1]]]},
        "log2phy has shape (1, 2, 2), phy2log has 1 layer and 3 experts",
    ),
    "loads": ({"logical_count": [[1, 2]]}, "holds loads, and no placement"),
    "unknown": ({"layers": 3}, "is no placement: expected a key as 'physical_to_logical_map'"),
    "a number": (3, "is no placement, but int"),
    "an empty list": ([], "phy2log is list, expected a list of rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_content_names_the_place_and_what_was_expected(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    path = tmp_path / "placement.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(eplb.FormatError, match=re.escape(f"{path}: {message}")):
        eplb.load_placement(path, 2)
    if case.startswith("TensorRT") or not isinstance(content, dict | list):
        return
    path = tmp_path / "placement.json"
    path.write_text(json.dumps(content))
    with pytest.raises(eplb.FormatError, match=re.escape(f"{path}: {message}")):
        eplb.load_placement(path, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"phy2log": [[0]], "phy2log": [[0]]}', "not a whole JSON file (the key 'phy2l"),
        ('{"phy2log": [[0, 1', "not a whole JSON file (Expecting ',' delimiter"),
        ("[" * 100_000, "not a whole JSON file (nested too deep)"),
        (f"[[{'9' * 5000}]]", "not a whole JSON file (Exceeds the limit"),
        (f"[[{'9' * 4000}]]", "phy2log[0][0] is "),
        ("num_slots: 4\nnum_slots: 8\n", "not a whole YAML file (the key 'num_slots'"),
        ("num_slots: [4", "not a whole YAML file ("),
        ("a: !!python/object/apply:os.system ['true']", "not a whole YAML file (could "),
        ("- " * 50_000 + "1", "not a whole YAML file (exceeded maximum nesting depth, line 1)"),
        ("? [1, 2]\n: 3\n", "not a whole YAML file (found unhashable key, line 1)"),
        ("2026-99-99", "not a whole YAML file (month must be in 1..12"),
        ("\x00", "not a whole YAML file"),
        ('{"physical_to_logical_map": []}', "physical_to_logical_map is empty, expected a list"),
        ("", "is no placement, but NoneType"),
    ],
)
def test_text_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "placement"
    path.write_text(text)
    with pytest.raises(eplb.FormatError, match=re.escape(f"{path}: {message}")) as caught:
        eplb.load_placement(path, 2)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("tag", ["", "!!int ", "!!float "])
def test_yaml_with_numbers_of_base_60(tmp_path: Path, tag: str) -> None:
    """As YAML 1.1 has them: reading these would take hours."""
    path = tmp_path / "placement.yaml"
    number = tag + "1" + ":59" * 4_000_000
    path.write_text(f"num_slots: 2\ninitial_global_assignments: {{0: [0, {number}]}}\n")
    with pytest.raises(eplb.FormatError, match=r"initial_global_assignments\[0\]\[1\] is '1:59"):
        eplb.load_placement(path, 2)


def test_yaml_that_repeats_one_row_takes_no_memory_for_it(tmp_path: Path) -> None:
    row = ", ".join(["0"] * 60_000)
    lines = [f"num_slots: 60000\ninitial_global_assignments:\n  0: &row [{row}]"]
    lines += [f"  {layer}: *row" for layer in range(1, 20_000)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(eplb.FormatError, match="the placement claims 1200000000 values"):
        eplb.load_placement(path, 2)


def test_another_model_and_other_gpus(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(SGLANG))
    for options, kind, message in (
        ({}, eplb.OptionError, "a file of sglang does not say how many GPUs it is for: give num_"),
        ({"num_gpus": 3}, eplb.ClusterError, "4 slots do not divide over 3 GPUs: 2 or 4 GPUs"),
        ({"num_gpus": 0}, eplb.ClusterError, "num_gpus is 0: give 1 or more"),
        (
            {"num_gpus": 4, "num_nodes": 3},
            eplb.ClusterError,
            "4 GPUs do not divide over 3 nodes: 3 or 6 GPUs would",
        ),
        (
            {"num_gpus": 2, "num_experts": 4},
            eplb.FormatError,
            "has experts 0 to 2, expected 0 to 3: it is of another model",
        ),
        (
            {"num_gpus": 2, "dense": np.array([True, False, False])},
            eplb.FormatError,
            "has 2 layers, the loads have 3 (1 of them without load): it is of another model",
        ),
        (
            {"num_gpus": 2, "dense": np.zeros(3, np.bool_), "first_layer": 1},
            eplb.FormatError,
            "has 2 layers (0-1), the loads have 3 (1-3), and it has none for layer 2-3",
        ),
        ({"num_gpus": 2, "first_layer": 2}, eplb.FormatError, "has no layer from 2 on"),
    ):
        with pytest.raises(kind, match=re.escape(f"{path}: {message}")):
            eplb.load_placement(path, **options)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(eplb.FormatError, match="does not exist"):
        eplb.load_placement(tmp_path / "nothing.json")
    with pytest.raises(eplb.FormatError, match="is a folder, expected a file"):
        eplb.load_placement(tmp_path)
    for name, arrays, message in (
        ("a.npz", {"x": np.zeros(2)}, "is no placement: expected an array 'phy2log'"),
        ("b.npz", {"phy2log": np.zeros(2)}, "phy2log has shape (2,), expected 2 axes"),
        ("c.npz", {"phy2log": np.full((1, 2), 0.5)}, "phy2log has what is no whole number"),
        ("d.npz", {"phy2log": np.full((1, 2), np.nan)}, "phy2log has what is no whole number"),
        (
            "e.npz",
            {"phy2log": np.array([[0, 1]]), "num_gpus": np.array(0)},
            "num_gpus is 0, expected a number of 1 or more",
        ),
    ):
        path = tmp_path / name
        np.savez(path, **arrays)
        with pytest.raises(eplb.FormatError, match=re.escape(f"{path}: {message}")):
            eplb.load_placement(path, 1)


def test_too_long_a_text(tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    path.write_bytes(b" " * (17 << 20))
    with pytest.raises(
        eplb.FormatError, match="has 17825792 bytes, at most 16777216 are read as text"
    ):
        eplb.load_placement(path, 1)
