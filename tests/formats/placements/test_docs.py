"""What docs/placements.md says is so: its examples are read. Its blocks run in test_docs.py."""

import json
import re
from pathlib import Path
from typing import get_args

from recorded import ROOT

import eplb
from eplb.formats.placements import Engine

PAGE = (ROOT / "docs" / "placements.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_every_engine_has_a_row() -> None:
    assert re.findall(r"^\| `([a-z][a-z-]+)`", PAGE, flags=re.MULTILINE) == list(get_args(Engine))


def test_the_whole_example_is_read(tmp_path: Path) -> None:
    """Those of other engines are shortened; this one is a placement."""
    path = tmp_path / "a.json"
    text = next(block for block in blocks("json") if "moe_layer_count" in block)
    path.write_text(text)
    held = [each["device_expert"] for each in json.loads(text)["layer_list"][0]["device_list"]]
    assert eplb.load_placement(path).phy2log.tolist() == [held[0] + held[1]]
