"""The benchmark script: its figures against plain recomputation, and how it takes bad peers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import naive
import numpy as np
import planner
import pytest
from numpy.typing import NDArray
from recorded import ROOT

import eplb

pytestmark = pytest.mark.long

FLAT, GROUPED = "3x8:16/4", "2x8:16/4:4/2"

# Prints, writes into its argument, and returns phy2log alone.
IN_ORDER = """
import torch

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    print("a peer may print")
    weight.zero_()
    return (torch.arange(num_replicas) % weight.shape[1]).repeat(len(weight), 1)
"""
# Both copies of an expert on one GPU.
IN_PAIRS = """
import torch

def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    phy2log = (torch.arange(num_replicas) * weight.shape[1] // num_replicas).repeat(len(weight), 1)
    return phy2log, None, None
"""
RAISES = """
def rebalance_experts(*_):
    raise RuntimeError("no plan\\ntoday")
"""
LEAVES_OUT = """
import torch

def rebalance_experts(weight, num_replicas, *_):
    return torch.zeros((len(weight), num_replicas), dtype=torch.int64)
"""


def run_script(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, ROOT / "bench" / "planner.py", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    folder = tmp_path_factory.mktemp("peers")
    options: list[str | Path] = []
    sources = {
        "in_order": IN_ORDER,
        "in_pairs": IN_PAIRS,
        "raises": RAISES,
        "leaves_out": LEAVES_OUT,
    }
    for name, source in sources.items():
        path = folder / f"{name}.py"
        path.write_text(source)
        options += ["--peer", path]
    return options


@pytest.fixture(scope="module")
def told(peers: list[str | Path]) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of one run."""
    done = run_script(*peers, "--cell", FLAT, "--cell", GROUPED, "--repeats", "2", "--small", "12",
                      "--check", "--json")  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def loads_of(name: str) -> NDArray[np.float64]:
    num_layers = int(name.split("x", maxsplit=1)[0])
    return np.random.default_rng(0).lognormal(0.0, 0.7, (num_layers, 8)) * 1000.0


def plan_of(name: str) -> eplb.Plan:
    groups, nodes = (4, 2) if name == GROUPED else (1, 1)
    return eplb.plan(loads_of(name), eplb.Cluster(4, nodes, 4), num_groups=groups)


def phy2log_of(who: str, name: str) -> list[list[int]]:
    num_layers = len(loads_of(name))
    if who == "in_order":
        return [[slot % 8 for slot in range(16)] for _ in range(num_layers)]
    if who == "in_pairs":
        return [[slot // 2 for slot in range(16)] for _ in range(num_layers)]
    listed: list[list[int]] = plan_of(name).placement.phy2log.tolist()
    return listed


@pytest.mark.parametrize("name", [FLAT, GROUPED])
def test_figures_are_those_of_a_plain_recomputation(
    name: str, told: tuple[int, dict[str, Any]]
) -> None:
    cell = next(cell for cell in told[1]["cells"] if cell["name"] == name)
    rows = {row["who"]: row for row in cell["rows"]}
    ours = ["ours, 1 thread", "ours, 2 threads", "ours, drop-in"]
    assert list(rows) == [*ours, "in_order", "in_pairs", "raises", "leaves_out"]
    loads, bound = loads_of(name).tolist(), plan_of(name).bound
    for who in (*ours, "in_order", "in_pairs"):
        row, phy2log = rows[who], phy2log_of(who, name)
        peaks = [
            max(naive.gpu_loads(slots, layer, 4))
            for slots, layer in zip(phy2log, loads, strict=True)
        ]
        gaps = [peak / least - 1 for peak, least in zip(peaks, bound, strict=True)]
        balancedness = naive.balancedness(phy2log, [loads], 4)
        assert row["balancedness"] == pytest.approx(balancedness, rel=1e-12)
        assert row["duplicates"] == sum(naive.num_duplicates(slots, 4) for slots in phy2log)
        assert row["gap_mean"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-9, abs=1e-12)
        assert row["gap_worst"] == pytest.approx(max(gaps), rel=1e-9, abs=1e-12)
        assert row["failed"] is None
        assert row["same_plan"] is (True if who in ours else None)
        assert set(row["ratio"]) == {"in_order", "in_pairs"}
        for peer in ("in_order", "in_pairs"):
            assert row["ratio"][peer] == pytest.approx(rows[peer]["ms"] / row["ms"])
            fastest = rows[peer]["fastest_ms"] / row["fastest_ms"]
            assert row["fastest_ratio"][peer] == pytest.approx(fastest)
        assert 0.0 < row["fastest_ms"] <= row["ms"]
    assert rows["in_pairs"]["duplicates"] > rows["in_order"]["duplicates"] == 0


def test_groups_are_judged_against_every_way_to_place_them(
    told: tuple[int, dict[str, Any]],
) -> None:
    flat, grouped = ({row["who"]: row for row in cell["rows"]} for cell in told[1]["cells"])
    assert flat["in_pairs"]["node_gap"] is None
    assert flat["in_pairs"]["groups_kept"] is None
    group_load = loads_of(GROUPED).reshape(2, 4, 2).sum(axis=-1)
    least = [naive.busiest_node(load, 2) for load in group_load.tolist()]
    # In pairs, groups 0 and 1 are on the first node, 2 and 3 on the second.
    busiest = group_load.reshape(2, 2, 2).sum(axis=-1).max(axis=-1)
    assert grouped["in_pairs"]["node_gap"] == pytest.approx(max(busiest / least) - 1, abs=1e-12)
    assert grouped["in_pairs"]["groups_kept"] is True
    assert grouped["in_order"]["groups_kept"] is False
    assert grouped["ours, 1 thread"]["groups_kept"] is True
    assert grouped["ours, 1 thread"]["node_gap"] == pytest.approx(0.0, abs=1e-9)


def test_peers_that_fail_are_told_with_their_message(told: tuple[int, dict[str, Any]]) -> None:
    for cell in told[1]["cells"]:
        rows = {row["who"]: row for row in cell["rows"]}
        assert rows["raises"]["failed"] == "RuntimeError: no plan today"
        assert "no slot for expert 1" in rows["leaves_out"]["failed"]
        for who in ("raises", "leaves_out"):
            assert rows[who]["ms"] is rows[who]["balancedness"] is None
            assert rows[who]["ratio"] == {}


def test_exit_code_follows_the_bars(told: tuple[int, dict[str, Any]]) -> None:
    code, found = told
    assert code == (0 if all(bar["met"] for bar in found["bars"]) else 1)
    balance = next(bar for bar in found["bars"] if bar["what"] == "balancedness")
    assert balance["needed"].startswith("in_order's")
    assert found["small"]["layers"] == 12
    assert found["small"]["peaks_below"] == found["small"]["bounds_above"] == 0


def test_table_has_the_figures(peers: list[str | Path]) -> None:
    done = run_script(*peers, "--cell", FLAT, "--repeats", "2", "--threads", "1")
    assert done.returncode == 0, done.stderr
    loads = loads_of(FLAT).tolist()
    lines = {}
    for line in done.stdout.splitlines():
        columns = [part.strip() for part in line.strip("│ ").split("│")]
        lines[columns[1 if columns[0] == FLAT else 0]] = columns
    assert "ours, 2 threads" not in lines
    for who in ("ours, 1 thread", "ours, drop-in", "in_order", "in_pairs"):
        phy2log = phy2log_of(who, FLAT)
        balancedness = naive.balancedness(phy2log, [loads], 4)
        duplicates = sum(naive.num_duplicates(slots, 4) for slots in phy2log)
        assert [f"{balancedness:.4f}", f"{duplicates}"] == lines[who][-4:-2]
    assert lines["raises"][1] == "failed"
    assert f"failed: {FLAT}, raises: RuntimeError: no plan today" in done.stdout


def test_bad_peer_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run_script("--peer", tmp_path / "absent.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'absent.py'}: there is no such file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "empty.py"], "empty.py: it has no function rebalance_experts"),
        (["--peer", "broken.py"], "importing it raises ZeroDivisionError"),
        (["--peer", "notes.txt"], "notes.txt: not a Python file"),
        (["--cell", "3x8"], "'3x8' is no cell"),
        (["--cell", "3x8:18/4"], "18 slots do not divide over 4 GPUs: 16 or 20"),
        (["--cell", "3x8:4/4"], "4 slots do not hold 8 experts"),
        (["--cell", "3x8:16/4:3/1"], "8 experts do not divide into 3 groups"),
        (["--cells", "58x256*,nonesuch"], "no cell is called 'nonesuch'"),
        (["--traces", "."], "has no recorded loads"),
        (["--repeats", "0"], "'0' is not a whole number of 1 or more"),
        (["--check"], "give --peer"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "notes.txt").write_text("none")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["planner.py", *arguments])
    with pytest.raises(SystemExit) as error:
        planner.main()
    said = capsys.readouterr()
    assert error.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
