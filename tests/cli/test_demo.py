"""`eplb demo`: what it says is what replays give, a loss as well as a gain."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from recorded import ROOT

import eplb
from eplb import synthetic
from eplb.cli import demo as command
from eplb.replaying.demo import PRESET, TOKENS, WINDOWS, Demo, demo
from eplb.solver.greedy import greedy

CLUSTER = eplb.Cluster(32, 4, 9)


@pytest.fixture(scope="module")
def found() -> Demo:
    return demo(CLUSTER)


@pytest.fixture(autouse=True)
def once(found: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replays are made once; commands print them."""
    monkeypatch.setattr(command, "demo", lambda *_, **__: found)


def test_engines_own_is_their_algorithm_on_the_window_before(found: Demo) -> None:
    loads = synthetic.trace(PRESET, num_windows=WINDOWS, tokens_per_window=TOKENS, seed=0).loads
    placements = [
        eplb.Placement(greedy(window, CLUSTER, 1, swaps=False), 256, CLUSTER)
        for window in loads[:-1]
    ]
    scores = [
        placement.balancedness(window)
        for placement, window in zip(placements, loads[1:], strict=True)
    ]
    theirs = found.ways[0]
    assert theirs.balancedness == pytest.approx(np.mean(scores))
    moves = [after.moves_from(before) for before, after in itertools.pairwise(placements)]
    assert theirs.moved == pytest.approx(np.mean(moves) / (58 * 288))
    assert theirs.bytes_moved == pytest.approx(np.mean(moves) * 44_040_192)


def test_ours_is_better_and_moves_little(found: Demo) -> None:
    theirs, even, best = found.ways
    assert theirs.balancedness < even.balancedness < best.balancedness <= 1.0
    assert theirs.tokens_per_second < even.tokens_per_second < best.tokens_per_second
    assert max(even.moved, best.moved) <= 0.05 < theirs.moved


def test_it_says_so(found: Demo) -> None:
    done = run("demo", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    for way in found.ways:
        (row,) = [line for line in lines if line.startswith(way.name)]
        assert f"{way.balancedness:.3f}" in row
        assert f"{way.moved:.1%}" in row
    assert "estimate" in done.stdout
    assert "more tokens per second" in " ".join(done.stdout.split())
    assert lines[-1].split()[:2] == ["eplb", "report"]
    assert max(map(len, lines[:-2])) <= 80
    figures = json.loads(run("demo", "--json").stdout)
    assert [way["name"] for way in figures["ways"]] == [way.name for way in found.ways]


def test_readme_has_its_figures(found: Demo) -> None:
    theirs, even, _ = (f"{way.balancedness:.3f}".lstrip("0") for way in found.ways)
    assert f"{theirs} and {even} with tokens split evenly" in (ROOT / "README.md").read_text()


def test_a_loss_is_called_one(found: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, even, best = found.ways
    worse = replace(even, tokens_per_second=0.97 * theirs.tokens_per_second)
    lost = replace(found, ways=(theirs, worse, best))
    monkeypatch.setattr(command, "demo", lambda *_, **__: lost)
    said = " ".join(run("demo").stdout.split())
    assert "serves 3.0 % fewer tokens per second with an even split" in said
    assert "-3.0%" in said


def test_it_writes_the_placement(found: Demo, tmp_path: Path) -> None:
    path = tmp_path / "placement.json"
    done = run("demo", "-o", path)
    assert done.returncode == 0, done.stderr
    written = eplb.load_placement(path, 32, num_experts=256)
    assert np.array_equal(written.phy2log, found.last.phy2log)
