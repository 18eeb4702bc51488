"""`eplb plan --to` and `eplb evaluate`: real processes, and figures against a plain oracle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from numpy.typing import NDArray

import eplb
from eplb.balance import ratio_interval
from eplb.planning.forecast import Recent
from eplb.replaying.evaluate import evaluate_placement
from eplb.solver.greedy import greedy
from eplb.synthetic import deepseek_v3


def trace_of(windows: int, layers: int = 4, dense: int = 1) -> eplb.LoadTrace:
    """Loads that drift; the first layers are dense."""
    rng = np.random.default_rng(windows)
    loads = rng.lognormal(size=(windows, layers, 16)).cumsum(axis=0)
    loads[:, :dense] = 0.0
    return eplb.LoadTrace(loads)


def gpu_loads(placement: eplb.Placement, window: NDArray[np.float64]) -> list[list[float]]:
    """[L][G] loads, one slot after the other."""
    rows = []
    size = placement.cluster.slots_per_gpu
    for layer, row in enumerate(placement.phy2log.tolist()):
        load = [0.0] * placement.cluster.num_gpus
        for slot, expert in enumerate(row):
            load[slot // size] += window[layer, expert] / row.count(expert)
        rows.append(load)
    return rows


def held(placement: eplb.Placement, layer: int) -> list[set[int]]:
    size = placement.cluster.slots_per_gpu
    row = placement.phy2log[layer].tolist()
    return [set(row[start : start + size]) for start in range(0, len(row), size)]


@pytest.mark.parametrize("windows", [1, 2, 40])
def test_figures_are_those_of_a_plain_oracle(windows: int) -> None:
    trace = trace_of(windows)
    cluster = eplb.Cluster(4, 1, 5)
    # The loads of a GPU come from many experts, and one of its slots is wasted.
    rows = np.resize(np.arange(16)[::-1], (4, 20)).copy()
    rows[2, :5] = [0, 0, 1, 2, 3]
    rows[2, 5:] = np.resize(np.arange(4, 16), 15)
    placement = eplb.Placement(rows, 16, cluster)
    found = evaluate_placement(placement, trace)

    loads = [gpu_loads(placement, window)[1:] for window in trace.loads]
    means = [[sum(row) / 4 for row in window] for window in loads]
    peaks = [[max(row) for row in window] for window in loads]
    ratio = np.array(means) / np.array(peaks)
    this = found.standings[0]
    assert (this.placement, this.gain, this.duplicates) == ("this", 0.0, 1)
    assert this.balancedness == pytest.approx(ratio.mean())
    assert this.pooled == pytest.approx(np.sum(means) / np.sum(peaks))
    assert this.worst_window == pytest.approx(ratio.mean(axis=1).min())
    wanted = ratio_interval(ratio.sum(axis=1), np.full(windows, 3.0))
    assert (this.interval is None) == (wanted is None) == (windows < 40)
    if this.interval is not None and wanted is not None:
        assert this.interval.low == pytest.approx(wanted.low)
        assert this.interval.low < this.balancedness < this.interval.high
    by_layer = ratio.mean(axis=0)
    order = np.argsort(by_layer, kind="stable")
    assert [figures.layer for figures in found.worst_layers] == (order + 1).tolist()
    assert [figures.this for figures in found.worst_layers] == pytest.approx(by_layer[order])
    total = np.array(loads).sum(axis=(0, 1))
    busiest = [row.index(max(row)) for window in loads for row in window]
    assert found.hottest is not None
    assert found.hottest.gpu == total.argmax()
    assert found.hottest.load == pytest.approx(total.max() / total.mean())
    assert found.hottest.busiest == busiest.count(found.hottest.gpu) / len(busiest)

    expected = Recent()(trace.loads)
    single = trace.loads if windows == 1 else expected.loads
    moved = eplb.plan(single, cluster, current=placement).placement
    made = eplb.plan(single, cluster).placement
    from_this, afresh, engine, contiguous = found.standings[1:]
    assert from_this.balancedness == pytest.approx(moved.balancedness(trace.loads))
    assert afresh.balancedness == pytest.approx(made.balancedness(trace.loads))
    assert from_this.duplicates == afresh.duplicates == 0
    by_engine = greedy(trace.loads[-32:].sum(axis=0), cluster, 1, swaps=False)
    own = eplb.Placement(by_engine, 16, cluster)
    assert engine.balancedness == pytest.approx(own.balancedness(trace.loads))
    start = eplb.Placement.contiguous(4, 16, cluster)
    assert contiguous.balancedness == pytest.approx(start.balancedness(trace.loads))
    assert contiguous.gain == pytest.approx(contiguous.balancedness - this.balancedness)
    pairs = ((from_this, moved), (afresh, made), (engine, own), (contiguous, start))
    for standing, other in pairs:
        moves = sum(
            len(after - before)
            for layer in (1, 2, 3)
            for after, before in zip(held(other, layer), held(placement, layer), strict=True)
        )
        assert (standing.moves, standing.moved) == (moves, moves / 60)
    assert from_this.moves < afresh.moves
    assert this.moves == 0
    assert found.dense_layers == [0]


def test_unseen_is_a_plan_from_before_scored_on_what_came_after() -> None:
    trace = trace_of(5)
    cluster = eplb.Cluster(4, 1, 5)
    placement = eplb.Placement.contiguous(4, 16, cluster)
    unseen = evaluate_placement(placement, trace).unseen
    assert unseen is not None
    assert (unseen.seen, unseen.windows) == (2, 3)
    made = eplb.plan(Recent()(trace.loads[:2]).loads, cluster, current=placement).placement
    later = trace.loads[2:]
    assert unseen.plan == pytest.approx(made.balancedness(later))
    assert unseen.this == pytest.approx(placement.balancedness(later))
    assert unseen.gain == pytest.approx(unseen.plan - unseen.this)
    assert evaluate_placement(placement, trace.pick([0])).unseen is None


def test_no_load_at_all() -> None:
    cluster = eplb.Cluster(2, 1, 3)
    placement = eplb.Placement.contiguous(2, 4, cluster)
    found = evaluate_placement(placement, eplb.LoadTrace(np.zeros((3, 2, 4))))
    assert [standing.balancedness for standing in found.standings] == [1.0] * 5
    assert (found.hottest, found.worst_layers) == (None, [])
    assert [standing.moves for standing in found.standings] == [0] * 5


def test_another_model() -> None:
    placement = eplb.Placement.contiguous(3, 16, eplb.Cluster(4, 1, 5))
    with pytest.raises(eplb.LoadsError, match=r"4 layers, 16 experts\) is of another model than"):
        evaluate_placement(placement, trace_of(1))


@pytest.fixture
def loads_file(tmp_path: Path) -> Path:
    """One window: two dense layers, then MoE layers."""
    path = tmp_path / "loads.npz"
    loads = np.vstack([np.zeros((2, 256)), np.floor(1e4 * deepseek_v3()[:4])])
    eplb.save_trace(eplb.LoadTrace(loads), path)
    return path


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("tensorrt-llm", "p.yaml"),
        ("ascend", "p.json"),
    ],
)
def test_a_plan_for_each_engine_is_scored_as_the_plan(
    loads_file: Path, tmp_path: Path, to: str, name: str
) -> None:
    path = tmp_path / name
    done = run("plan", loads_file, "--gpus", 32, "-o", path, "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert (figures["to"], figures["output"]) == (to, str(path))
    gpus = [] if to == "ascend" else ["--gpus", 32]
    done = run("evaluate", path, loads_file, *gpus, "--json", "--dispatch", figures["dispatch"])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["gpus"], found["slots"], found["layers"]) == (32, 288, 6)
    assert found["dense_layers"] == [0, 1]
    this, from_this, afresh = found["standings"][:3]
    assert this["balancedness"] == figures["plan"]
    # One is made for an even split whatever the engine, the other for the rule.
    even = figures["dispatch"] == "even"
    assert (afresh["balancedness"] == this["balancedness"]) == even
    assert (afresh["moves"] == 0) == even
    assert (from_this["moves"], this["duplicates"]) == (0, 0)


def test_text_for_a_person(loads_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    done = run("plan", loads_file, "--gpus", 32, "-o", path, "--to", "tensorrt-llm")
    said = " ".join(done.stdout.split())
    assert f"Placement written to {path} for tensorrt-llm, without the layers that" in said
    assert "have no load (0-1)." in said
    done = run("evaluate", path, loads_file, "--gpus", 32, "--nodes", 4)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = " ".join(done.stdout.split())
    assert "4 MoE layers (and 2 with no load) of 256 experts in 288 slots on 32 GPUs" in said
    assert "on 4 nodes; 1 window" in said
    for text in (
        "this placement",
        "a plan from it",
        "a plan from scratch",
        "the engine's own",
        "contiguous",
        "layer 5",
    ):
        assert text in said
    assert "scored on the one window that they were computed from" in said
    assert "0 (0.0%)" in said


def test_several_windows_and_duplicates(tmp_path: Path) -> None:
    trace = trace_of(60)
    eplb.save_trace(trace, tmp_path / "loads.npz")
    cluster = eplb.Cluster(4, 1, 5)
    rows = np.tile([0, 0, *range(16), 1, 2], (4, 1))
    placement = eplb.Placement(rows, 16, cluster)
    eplb.save_placement(placement, tmp_path / "p.json", to="sglang")
    arguments = ("evaluate", tmp_path / "p.json", tmp_path / "loads.npz", "--gpus", 4)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "On the last 30 windows, this placement gives" in said
    assert "and a plan from it for the 30 windows before gives" in said
    assert "± is half a 95 % confidence interval." in said
    assert "6 slots hold an expert that its GPU already holds" in said
    merged = json.loads(run(*arguments, "--merge", 30, "--json").stdout)
    assert merged["windows"] == 2
    wanted = placement.balancedness(trace.merged(30).loads)
    assert merged["standings"][0]["balancedness"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "ascend"], "--to is the format of the file of --output: give --output too"),
        (["--to", "ascend", "-o", "p.yaml"], "p.yaml: a placement for ascend ends with .json"),
        (["--first-layer", "-1", "-o", "p.json"], "--first-layer is -1: give 0 to 9999"),
    ],
)
def test_plan_refuses_before_it_plans(loads_file: Path, arguments: list[str], message: str) -> None:
    done = run("plan", loads_file, "--gpus", 32, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"eplb: {message}")
    assert done.stderr.count("\n") == 1


def test_evaluate_refuses_in_one_line(loads_file: Path, tmp_path: Path) -> None:
    placement = eplb.Placement.contiguous(6, 256, eplb.Cluster(32, 1, 9))
    eplb.save_placement(placement, tmp_path / "p.json", to="sglang")
    other = eplb.Placement.contiguous(6, 128, eplb.Cluster(32, 1, 9))
    eplb.save_placement(other, tmp_path / "other.json", to="vllm")
    path = tmp_path / "p.json"
    for arguments, message in (
        ([path, loads_file], f"{path}: a file of sglang does not say how many GPUs it is for"),
        ([tmp_path / "other.json", loads_file], f"{tmp_path / 'other.json'}: has experts 0 to 127"),
        ([loads_file, loads_file], f"{loads_file}: is no placement: expected an array 'phy2log'"),
        ([path, loads_file, "--gpus", 32, "--groups", 7], "256 experts do not divide into 7"),
    ):
        done = run("evaluate", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"eplb: {message}"), done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("rule", ["sglang", "best"])
def test_every_figure_is_under_the_rule(rule: str) -> None:
    trace, cluster = trace_of(6), eplb.Cluster(8, 2, 3)
    placement = eplb.plan(trace.loads[0], cluster).placement
    found = evaluate_placement(placement, trace, dispatch=rule)
    assert found.dispatch == found.to_json()["dispatch"] == rule
    even = evaluate_placement(placement, trace)
    contiguous = eplb.Placement.contiguous(4, 16, cluster)
    for name, each in (("this", placement), ("contiguous", contiguous)):
        (standing,) = (one for one in found.standings if one.placement == name)
        assert standing.balancedness == pytest.approx(each.balancedness(trace.loads, rule))
    assert found.standings[0].balancedness != even.standings[0].balancedness
    assert found.unseen is not None
    assert found.unseen.this == pytest.approx(placement.balancedness(trace.loads[3:], rule))
    load = placement.gpu_load(trace.loads, rule).sum(axis=(0, 1))
    assert found.hottest is not None
    assert found.hottest.load == pytest.approx(load.max() / load.mean())
    split: Any = eplb.dispatch(placement, trace.loads)
    with pytest.raises(eplb.OptionError, match="a split fits one placement"):
        evaluate_placement(placement, trace, dispatch=split)


def test_figures_for_an_engine_are_under_its_rule(loads_file: Path, tmp_path: Path) -> None:
    loads = eplb.load_trace(loads_file).loads
    shape = ("--gpus", 32, "--nodes", 4, "--json")
    figures = {}
    for engine, rule in (("sglang", "sglang"), ("ascend", "ascend"), ("vllm", "even")):
        written = tmp_path / f"{engine}.json"
        done = run("plan", loads_file, *shape, "--to", engine, "-o", written)
        figures[engine] = json.loads(done.stdout)
        assert figures[engine]["dispatch"] == rule
        made = eplb.plan(loads[0], eplb.Cluster(32, 4, 9)).placement
        assert figures[engine]["plan"] == made.balancedness(loads, rule)
    evenly = figures["vllm"]["plan"]
    assert evenly == figures["sglang"]["as_planned"] > figures["sglang"]["plan"]
    text = run("plan", loads_file, *shape[:-1], "--to", "sglang", "-o", tmp_path / "x.json").stdout
    assert "Choice among copies: SGLang's rule" in text
    assert f"under which it has balancedness {evenly:.4f}." in " ".join(text.split())
    assert "proven gap" not in text
    scored = run("evaluate", tmp_path / "sglang.json", loads_file, *shape, "--dispatch", "sglang")
    assert json.loads(scored.stdout)["standings"][0]["balancedness"] == figures["sglang"]["plan"]
    ruled = json.loads(run("plan", loads_file, *shape, "--dispatch", "sglang").stdout)
    assert ruled["plan"] == ruled["as_planned"] > figures["sglang"]["plan"]
    said = run("plan", loads_file, *shape[:-1], "--dispatch", "sglang").stdout
    assert "one drawn fairly). The plan is made for this." in " ".join(said.split())
    refused = run("evaluate", tmp_path / "sglang.json", loads_file, "--dispatch", "lp")
    assert refused.returncode == 2
    assert refused.stderr == "eplb: --dispatch is 'lp': give one of even, sglang, ascend, best\n"
