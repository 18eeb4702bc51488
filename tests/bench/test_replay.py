"""The field's benchmark and that of replays: their scores, their tables, wrong arguments."""

import json
from pathlib import Path
from typing import Any

import adrs
import numpy as np
import pytest
import torch
from command_line import run_script

import eplb
from eplb import Cluster, Placement
from eplb.balance import balancedness
from eplb.synthetic import deepseek_v3

pytestmark = pytest.mark.long


def test_scores_are_the_formulas() -> None:
    planned, scored = deepseek_v3(seed=1)[:6], deepseek_v3(seed=2)[:6]
    scored[2, 7] = 0.0
    phy2log, log2phy, logcnt = eplb.rebalance_experts(torch.from_numpy(planned), 288, 8, 4, 32)
    placement = Placement(phy2log.numpy(), 256, Cluster(32, 4, 9))
    gpu, expert = adrs.scores(log2phy, logcnt, torch.from_numpy(scored).long())
    assert gpu == pytest.approx(placement.balancedness(scored, average="pooled"), abs=1e-9)
    of_slots = balancedness(placement.slot_load(scored), "pooled")
    assert expert == pytest.approx(of_slots, abs=1e-9)


def test_windows_are_sums_of_steps_with_the_rest_at_the_end() -> None:
    steps = np.arange(2.0 * 3 * 5).reshape(5, 2, 3)
    windows = adrs.windows_of(steps, 2)
    assert [window.dtype for window in windows] == [torch.int64] * 3
    expected = [steps[:2].sum(0), steps[2:4].sum(0), steps[4]]
    assert all(map(np.array_equal, windows, expected))


def test_each_window_is_planned_and_the_next_scored() -> None:
    shown, scored = [], []

    def planner(weight: torch.Tensor, *shape: int) -> Any:
        assert shape == (288, 8, 4, 32)
        shown.append(weight[0, 0].item())
        return eplb.rebalance_experts(weight, *shape)

    windows = [torch.full((1, 256), load) for load in (1, 2, 3)]
    for number, window in enumerate(windows):
        window[0, 5] = 100 * (number + 1)
    result = adrs.evaluate("mine", planner, windows)
    assert result.failed is None
    assert shown[1:] == [1, 2]  # the first call of all warms up
    maps = [eplb.rebalance_experts(window, 288, 8, 4, 32) for window in windows[:2]]
    scored = [adrs.scores(*maps[i][1:], windows[i + 1]) for i in range(2)]
    assert result.balancedness_gpu == pytest.approx(np.mean([gpu for gpu, _ in scored]))
    assert result.balancedness_expert == pytest.approx(np.mean([expert for _, expert in scored]))
    assert result.scored_ms > result.algorithm_ms > 0.0


PEERS = {
    "good.py": "from eplb import rebalance_experts",
    "bad.py": "def rebalance_experts(*_):\n    raise ZeroDivisionError('by zero')",
}


def test_adrs_on_a_file_beside_peers(tmp_path: Path) -> None:
    for name, text in PEERS.items():
        (tmp_path / name).write_text(text)
    steps = [{"logical_expert_load": deepseek_v3(seed=seed)[:2].tolist()} for seed in range(5)]
    (tmp_path / "expert-load.json").write_text(json.dumps({"load_history": steps}))
    arguments = ("--loads", "expert-load.json", "--steps", 2)
    done = run_script("adrs.py", *arguments, "--peer", "good.py", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ours, peer = told["results"]
    assert (told["windows"], ours["who"], peer["who"]) == (3, "eplb", "good")
    assert ours["balancedness_gpu"] == peer["balancedness_gpu"]
    done = run_script("adrs.py", *arguments, "--peer", "bad.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "ZeroDivisionError: by zero" in done.stdout
    for wrong, message in (
        (("--loads", "none.json"), "none.json: does not exist"),
        (("--loads", "expert-load.json"), "has 5 steps: to score a window after the first takes"),
        (("--peer", "none.py"), "none.py: there is no such file"),
        (("--windows", "0"), "'0' is not a whole number of 1 or more"),
    ):
        done = run_script("adrs.py", *wrong, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert message in done.stderr


def test_replays_are_timed_beside_each_other(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(PEERS["good.py"])
    arguments = ("--only", "replay", "--windows", 6)
    done = run_script("replay.py", *arguments, "--peer", "good.py", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    bars = json.loads(done.stdout)["bars"]
    names = ("mean", "eplb", "seed", "deepseek", "good")
    assert [bar["what"].split(", ")[-1] for bar in bars] == list(names)
    done = run_script("replay.py", *arguments, "--peer", "none.py", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
