"""The benchmark of loads not seen: its figures, its bars, its peers, and the README's table."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import headline
import naive
import numpy as np
import pytest
import unseen
import unseen_cells
import unseen_contest
from numpy.typing import NDArray

import eplb
from eplb import Cluster
from eplb.solver.greedy import greedy

pytestmark = pytest.mark.long

# Wants windows of one total, and puts the first window's experts in the order of their loads.
TAKES_WINDOWS = """
import torch
def rebalance_experts(*_):
    raise RuntimeError("windows are preferred")
def rebalance_windows(windows, num_replicas, num_groups, num_nodes, num_gpus):
    print("a peer may print")
    total = windows.sum(2)
    most = total.max(0).values.expand_as(total)
    assert torch.allclose(total, torch.where(total > 0, most, 0.0))
    order = windows[0].argsort(dim=1, stable=True)
    windows.zero_()
    return order[:, torch.arange(num_replicas) % windows.shape[2]]
"""
TAKES_A_SUM = """
import torch
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    order = weight.argsort(dim=1, stable=True)
    weight.zero_()
    return order[:, torch.arange(num_replicas) % weight.shape[1]], None, None
"""
RAISES = """
calls = 0

def rebalance_experts(weight, *_):
    global calls
    calls += 1
    if calls > 2:
        raise RuntimeError("no plan\\ntoday")
    return [[slot % 8 for slot in range(12)] for _ in weight]
"""
PEERS = {
    "takes_windows": TAKES_WINDOWS,
    "takes_a_sum": TAKES_A_SUM,
    "raises": RAISES,
    "leaves_out": "def rebalance_experts(weight, p, *_):\n    return [[0] * p for _ in weight]",
    "other_shape": "def rebalance_experts(weight, *_):\n    return [[0] for _ in weight]",
}
CLUSTER = Cluster(num_gpus=4, slots_per_gpu=3)

Loads = NDArray[np.float64]


@pytest.fixture
def loads() -> Loads:
    """[4, 2, 8], windows of totals that differ a hundredfold; a layer of one has none."""
    made = np.random.default_rng(4).lognormal(0.0, 0.8, (4, 2, 8))
    made *= np.array([1.0, 30.0, 100.0, 7.0])[:, None, None]
    made[1, 1] = 0.0
    return made


@pytest.fixture
def contenders(tmp_path: Path) -> list[unseen_contest.Contender]:
    for name, source in PEERS.items():
        (tmp_path / f"{name}.py").write_text(source)
    peers = unseen_contest.load_all([tmp_path / f"{name}.py" for name in PEERS])
    return [
        unseen_contest.of_ours("ours, default", "default", 2),
        unseen_contest.of_ours("ours, thorough", "thorough", 2),
        *unseen_contest.references(2),
        *map(unseen_contest.of_peer, peers),
    ]


def one_total(windows: Loads) -> Loads:
    """Windows scaled, layer by layer, to their mean total."""
    made = np.zeros_like(windows)
    for t, layer in zip(*windows.any(axis=2).nonzero(), strict=True):
        mean = windows[:, layer].sum() / len(windows)
        made[t, layer] = windows[t, layer] * mean / windows[t, layer].sum()
    return made


def test_windows_are_scaled_to_their_mean_total(loads: Loads) -> None:
    np.testing.assert_allclose(unseen_contest.scaled(loads), one_total(loads), rtol=1e-14)


def plan_of(who: str, seen: Loads) -> list[list[int]]:
    """phy2log of a planner, each called in the plainest way."""
    # Rounding decides between plans of one peak, so that windows are scaled in the same way.
    same = unseen_contest.scaled(seen)
    if who == "takes_windows":
        made = same[0].argsort(axis=1, kind="stable")[:, np.arange(12) % 8]
    elif who == "takes_a_sum":
        made = same.sum(0).argsort(axis=1, kind="stable")[:, np.arange(12) % 8]
    elif who == "seed on the sum":
        made = greedy(same.sum(0), CLUSTER, 1, swaps=True)
    elif who == "ours on the sum":
        made = eplb.plan(same.sum(0), CLUSTER).placement.phy2log
    else:
        effort: Any = who.removeprefix("ours, ")
        made = eplb.plan(seen, CLUSTER, effort=effort).placement.phy2log
    listed: list[list[int]] = made.tolist()
    return listed


def ratios_of(phy2log: list[list[int]], scored: Loads) -> list[float]:
    """Mean GPU load / max GPU load of every layer and window that has a load."""
    found = []
    for window in scored.tolist():
        for slots, layer in zip(phy2log, window, strict=True):
            if sum(layer):
                gpus = naive.gpu_loads(slots, layer, 4)
                found.append(sum(gpus) / len(gpus) / max(gpus))
    return found


def test_figures_are_those_of_a_plain_recomputation(
    loads: Loads, contenders: list[unseen_contest.Contender]
) -> None:
    made = [
        unseen_cells.held_out(loads, 4, recorded=True),
        unseen_cells.all_seen(loads, 4, recorded=True),
        unseen_cells.in_order(loads, 4, 2, recorded=True),
    ]
    plain = [
        [(loads[[s for s in range(4) if s != t]], loads[[t]]) for t in range(4)],
        [(loads, loads)],
        [(loads[[t - 2, t - 1]], loads[[t]]) for t in (2, 3)],
    ]
    for cell, cases in zip(made, plain, strict=True):
        rows = unseen_contest.measure(cell, contenders[:6], 2)
        assert [row.who for row in rows] == [each.name for each in contenders[:6]]
        for row in rows:
            assert row.failed is None, row.failed
            plans = [plan_of(row.who, seen) for seen, _ in cases]
            ratios = [
                ratio
                for plan, (_, scored) in zip(plans, cases, strict=True)
                for ratio in ratios_of(plan, scored)
            ]
            assert row.balancedness == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)
            wasted = sum(naive.num_duplicates(slots, 4) for plan in plans for slots in plan)
            assert row.duplicates == wasted
            assert 0.0 < (row.fastest_ms or 0.0) <= (row.ms or 0.0)
            assert (row.part, row.gpus, row.windows) == (cell.part, 4, len(cases[0][0]))
            assert row.ours == row.who.startswith("ours")


def test_peers_that_fail_are_told_with_their_message(
    loads: Loads, contenders: list[unseen_contest.Contender]
) -> None:
    cell = unseen_cells.held_out(loads, 4, recorded=True)
    rows = {row.who: row for row in unseen_contest.measure(cell, contenders, 2)}
    assert rows["raises"].failed == "RuntimeError: no plan today"
    assert "no slot for expert 1" in (rows["leaves_out"].failed or "")
    assert "phy2log has shape (2, 1)" in (rows["other_shape"].failed or "")
    for who in ("raises", "leaves_out", "other_shape"):
        assert rows[who].balancedness is rows[who].ms is rows[who].duplicates is None
    assert rows["takes_a_sum"].failed is rows["ours, default"].failed is None


def test_peers_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "eplb.py" for folder in ("a", "b", "c")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(TAKES_A_SUM)
    paths[1].write_text(TAKES_WINDOWS)
    found = [(peer.name, peer.kind) for peer in unseen_contest.load_all(paths)]
    assert found == [
        ("eplb", "rebalance_experts"),
        ("eplb 2", "rebalance_windows"),
        ("eplb 3", "rebalance_experts"),
    ]


def test_growing_windows_are_one_load_with_noise() -> None:
    cells = list(unseen_cells.growing((1, 4, 400), 3, 64, 8))
    cases = [cell.cases[0] for cell in cells]
    assert [case.seen.shape for case in cases] == [(1, 3, 64), (4, 3, 64), (400, 3, 64)]
    np.testing.assert_array_equal(cases[1].seen, cases[2].seen[:4])
    for case in cases:
        np.testing.assert_array_equal(case.scored, cases[0].scored)
        assert not (case.seen == case.scored).all(axis=(1, 2)).any(), "scored on what was seen"
    logs = np.log(cases[2].seen)
    assert logs.std(axis=0).mean() == pytest.approx(0.4, rel=0.02)
    assert logs.mean(axis=0).std() == pytest.approx(0.7, rel=0.15)
    assert cells[0].cluster.num_slots == 80


def row(part: str, gpus: int, who: str, **figures: Any) -> unseen_contest.Row:
    made = unseen_contest.Row(part, part, gpus, True, 5, who, ours=True)
    slots = {8: 40, 16: 48, 32: 288, 64: 320}.get(gpus)
    usual = {"balancedness": 0.99, "ms": 5.0, "fastest_ms": 4.0, "duplicates": 0, "slots": slots}
    return replace(made, **{**usual, **figures})


def test_each_bar_is_met_at_its_figure_and_missed_past_it() -> None:
    at = [
        row("held-out", 32, "ours, default", balancedness=0.929, ms=30.0),
        row("held-out", 32, "ours, thorough", balancedness=0.931, ms=300.0),
        row("held-out", 64, "ours, default", balancedness=0.888, ms=40.0),
        row("all-six", 32, "ours, default", balancedness=0.985),
        row("all-six", 32, "ours, thorough", balancedness=0.988),
        row("in-order", 8, "ours, default", balancedness=0.822),
        row("in-order", 16, "ours, default", balancedness=0.726),
    ]
    bars = unseen.judge(at, None)
    assert len(bars) == 10
    assert all(bar.met for bar in bars)
    worse = [replace(each, balancedness=each.balancedness - 1e-6) for each in at]  # type: ignore[operator]
    assert [bar.met for bar in unseen.judge(worse, None)].count(False) == 7
    slower = [replace(each, ms=each.ms + 0.1) for each in at]  # type: ignore[operator]
    missed = [bar for bar in unseen.judge(slower, 0.7) if not bar.met]
    assert [bar.needed for bar in missed] == ["at most 30 ms", "at most 300 ms", "at most 40 ms"]
    assert all("0.70 processors busy" in bar.found for bar in missed)
    failed = [replace(each, failed="why", balancedness=None, ms=None) for each in at]
    assert {(bar.met, bar.found) for bar in unseen.judge(failed, None)} == {(False, "why")}
    # Not recorded, somebody else, another cluster: nothing to judge.
    for change in ({"recorded": False}, {"who": "ours on the sum"}, {"gpus": 4}):
        assert unseen.judge([replace(each, **change) for each in at], None) == []


@pytest.mark.parametrize(
    ("times", "last", "rise"),
    [
        ((1.0, 250.0, 500.0, 1000.0), True, True),  # one window is planned by other means
        ((1.0, 250.0, 500.0, 1001.0), False, True),
        ((1.0, 200.0, 300.0, 700.0), True, False),  # 75 ms a window, then 87.5
        ((1.0, 200.0, 250.0, 550.0), True, True),  # 62.5, then 68.75: noise
    ],
)
def test_growth_is_judged_by_time_a_window(
    times: tuple[float, ...], last: bool, rise: bool
) -> None:
    rows = [
        row("growth", 64, "ours, default", recorded=False, windows=number, ms=ms, fastest_ms=ms)
        for number, ms in zip((1, 2, 4, 8), times, strict=True)
    ]
    slow_peer = replace(rows[-1], who="peer", ours=False, ms=9e9, fastest_ms=9e9)
    assert [bar.met for bar in unseen.judge([*rows, slow_peer], None)] == [last, rise]


def write_traces(folder: Path, num_windows: int = 34) -> Path:
    """Small loads under the names of the recorded ones, a dense layer among them."""
    draw = np.random.default_rng(5)
    (folder / "deepseek_v3").mkdir(parents=True)
    for name in ("chat", "code", "long"):
        counts = draw.integers(1, 1000, (3, 16))
        counts[0] = 0
        text = json.dumps({"logical_count": counts.tolist()})
        (folder / "deepseek_v3" / f"{name}.json").write_text(text)
    np.savez(folder / "gptoss_small.npz", counts=draw.integers(1, 1000, (num_windows, 2, 32)))
    return folder


def run_main(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, module: Any = unseen
) -> int | str | None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    try:
        code: int = module.main()
    except SystemExit as error:
        return error.code
    return code


def test_a_run_on_recorded_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = write_traces(tmp_path / "traces")
    (tmp_path / "raises.py").write_text("def rebalance_experts(*_):\n    raise KeyError('none')")
    arguments = ["--traces", str(traces), "--peer", str(tmp_path / "raises.py"), "--repeats", "1"]
    code = run_main([*arguments, "--only", "held-out", "--check", "--json"], monkeypatch)
    told = json.loads(capsys.readouterr().out)
    assert code == (0 if all(bar["met"] for bar in told["bars"]) else 1)
    rows = {(each["gpus"], each["who"]): each for each in told["rows"]}
    assert rows[32, "raises"]["failed"] == "KeyError: 'none'"
    trace = eplb.load_trace(traces / "deepseek_v3")
    loads = trace.loads[:, 1:]  # without the dense layer
    for gpus, slots in ((32, 2), (64, 2)):
        plans = [eplb.plan(np.delete(loads, t, 0), Cluster(gpus, 1, slots)) for t in range(3)]
        scores = [plan.placement.balancedness(loads[t]) for t, plan in enumerate(plans)]
        found = rows[gpus, "ours, default"]["balancedness"]
        assert found == pytest.approx(np.mean(scores), rel=1e-12)
    code = run_main([*arguments, "--only", "in-order"], monkeypatch)
    out = capsys.readouterr().out
    assert code == 0, "nothing is judged without --check"
    assert "failed: gpt-oss, next window after 32, 48 slots on 16 GPUs, raises: KeyError" in out
    assert out.count("ours, thorough") == 2
    assert "are not judged" not in out


def test_made_loads_are_not_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(unseen_cells, "_ORDERED_WINDOWS", 34)
    assert run_main(["--only", "in-order", "--repeats", "1"], monkeypatch) == 0
    out = capsys.readouterr().out
    assert "made loads: bars of balance are for recorded ones, and are not judged" in out
    assert "gpt-oss, next window after 32, 40 slots on 8 GPUs" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "empty.py"], "no function rebalance_windows or rebalance_experts"),
        (["--peer", "absent.py"], "absent.py: there is no such file"),
        (["--traces", "absent"], "absent/deepseek_v3: does not exist"),
        (["--traces", "one", "--only", "held-out"], "has 1 workload: to hold one out takes 2"),
        (["--traces", "one", "--only", "in-order"], "one: there is no gptoss*.npz"),
        (["--traces", "short"], "has 32 windows: to plan from 32 and score the next takes 33"),
        (["--only", "all-six", "--check"], "judges all-six on recorded loads: give --traces"),
        (["--repeats", "0"], "'0' is not a whole number of 1 or more"),
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
    write_traces(tmp_path / "short", num_windows=32)
    write_traces(tmp_path / "one")
    for path in (*tmp_path.glob("one/deepseek_v3/[cl]o*.json"), *tmp_path.glob("one/*.npz")):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    assert run_main(arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


HEADLINE = (
    "<!-- headline: begin, written by bench/headline.py -->\nold\n<!-- headline: end -->\n",
    "<!-- unseen: begin, written by bench/headline.py -->\nstale\n<!-- unseen: end -->\n",
)


def test_headline_writes_each_table_between_its_own_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headline, "GRID", ("2x8:12/4",))
    (tmp_path / "start.py").write_text(TAKES_A_SUM)
    traces = write_traces(tmp_path / "traces")
    page = tmp_path / "page.md"
    page.write_text(f"top\n{HEADLINE[0]}middle\n{HEADLINE[1]}bottom\n")
    arguments = ["--peer", str(tmp_path / "start.py"), "--page", str(page)]
    assert run_main(arguments, monkeypatch, headline) == 0
    lines = page.read_text().splitlines()
    assert "old" not in lines
    assert "stale" in lines, "recorded loads were not given"
    assert run_main([*arguments, "--traces", str(traces)], monkeypatch, headline) == 0
    lines = page.read_text().splitlines()
    assert "stale" not in lines
    begin = lines.index(HEADLINE[1].splitlines()[0])
    assert [lines[0], lines[begin - 1], lines[-1]] == ["top", "middle", "bottom"]
    table = lines[begin + 1 : -2]
    assert [line.count("|") for line in table] == [5] * 7
    cells = unseen_cells.make_cells(traces, ["held-out"])
    fields = [part.strip() for part in table[2].split("|")[1:-1]]
    contender = unseen_contest.of_ours("ours, default", "default", 1)
    expected = unseen_contest.measure(cells[0], [contender], 1)[0].balancedness
    assert fields[0] == "DeepSeek-V3, 1 of 3 workloads held out, 64 slots on 32 GPUs"
    assert fields[2].startswith(f"{expected:.4f} in ")


def test_headline_finds_out_first_where_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "start.py").write_text(TAKES_A_SUM)
    traces = write_traces(tmp_path / "traces")
    page = tmp_path / "page.md"
    page.write_text(HEADLINE[0])
    arguments = ["--peer", str(tmp_path / "start.py"), "--page", str(page), "--traces"]
    assert run_main([*arguments, str(traces)], monkeypatch, headline) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert "page.md: write <!-- unseen: begin" in said.err
    assert page.read_text() == HEADLINE[0]
