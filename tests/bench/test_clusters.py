"""The benchmark of clusters that change: its bars on made loads, and wrong arguments."""

import json
from pathlib import Path

import pytest
from command_line import run_script

pytestmark = pytest.mark.long


def test_bars(tmp_path: Path) -> None:
    done = run_script(
        "clusters.py", "--cases", "3", "--layers", "2", "--json", "--check", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    bars = json.loads(done.stdout)["bars"]
    assert len(bars) == 38
    assert all(bar["met"] or not bar["judged"] for bar in bars)
    assert "16 slots are missing" in bars[15]["found"]


def test_wrong_arguments(tmp_path: Path) -> None:
    done = run_script("clusters.py", "--cases", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "'0' is not a whole number of 1 or more" in done.stderr
    done = run_script("clusters.py", "--traces", tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
