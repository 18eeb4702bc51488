"""What docs/placements.md says is so: its commands and Python run, its examples are read."""

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from test_cli import run

import eplb
from eplb.formats.placements import Engine
from eplb.synthetic import deepseek_v3

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "placements.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_engine_has_a_row() -> None:
    assert re.findall(r"^\| `([a-z][a-z-]+)`", PAGE, flags=re.MULTILINE) == list(get_args(Engine))


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        exec(compile(block, "placements.md", "exec"), {})
    assert eplb.load_placement("vllm.json").phy2log.shape == (2, 6)


def test_the_whole_example_is_read(tmp_path: Path) -> None:
    """Those of other engines are shortened; this one is a placement."""
    path = tmp_path / "a.json"
    text = next(block for block in blocks("json") if "moe_layer_count" in block)
    path.write_text(text)
    held = [each["device_expert"] for each in json.loads(text)["layer_list"][0]["device_list"]]
    assert eplb.load_placement(path).phy2log.tolist() == [held[0] + held[1]]


@pytest.mark.jit
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loads = np.vstack([np.zeros((1, 256)), deepseek_v3()[:2]])
    (tmp_path / "loads.json").write_text(json.dumps({"logical_count": loads.tolist()}))
    lines = "".join(blocks("console")).splitlines()
    commands = [shlex.split(line.removeprefix("$ eplb ")) for line in lines]
    assert len(commands) == 4
    for command in commands:
        done = run(*command)
        assert done.returncode == 0, done.stderr
