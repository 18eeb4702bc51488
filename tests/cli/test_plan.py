"""The command line as a user meets it: real processes, real files, wrong arguments."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from command_line import run
from rich.console import Console

import eplb
from eplb.cli.nodes import traffic_of
from eplb.cli.objective import ObjectiveOptions
from eplb.cli.terminal import print_summary
from eplb.planning.summary import summarize
from eplb.solver.greedy import greedy
from eplb.synthetic import deepseek_v3


@pytest.fixture
def loads_file(tmp_path: Path) -> Path:
    """SGLang's JSON: two dense layers, then MoE layers."""
    loads = np.vstack([np.zeros((2, 256)), deepseek_v3()[:6]])
    path = tmp_path / "loads.json"
    path.write_text(json.dumps({"logical_count": loads.tolist()}))
    return path


def test_plan_prints_a_summary(loads_file: Path) -> None:
    done = run("plan", loads_file, "--gpus", 32, "--slots", 288)
    assert done.returncode == 0, done.stderr
    assert "6 MoE layers (and 2 with no load, spread evenly) of 256 experts" in done.stdout
    assert "288 slots on 32 GPUs" in done.stdout
    assert "proven gap" in done.stdout
    assert "Planned in" in done.stdout
    assert done.stderr == ""


def test_json_is_one_object_and_nothing_else(loads_file: Path) -> None:
    done = run("plan", loads_file, "--gpus", 32, "--slots", 288, "--json")
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    loads = np.array(json.loads(loads_file.read_text())["logical_count"])
    cluster = eplb.Cluster(num_gpus=32, slots_per_gpu=9)
    made = eplb.plan(loads, cluster)
    assert figures["plan"] == made.placement.balancedness(loads)
    contiguous = eplb.Placement.contiguous(8, 256, cluster)
    assert figures["contiguous"] == contiguous.balancedness(loads)
    engine = eplb.Placement(greedy(loads, cluster, 1, swaps=False), 256, cluster)
    assert figures["engine"] == engine.balancedness(loads)
    assert figures["running"] is None
    assert figures["gap_worst"] == made.gap.max()
    assert figures["dense_layers"] == [0, 1]
    assert figures["policy"] == "global"
    assert figures["duplicates"] == 0
    assert figures["output"] is None
    assert figures["worst_layers"][0]["layer"] >= 2


def test_groups_on_nodes(loads_file: Path) -> None:
    done = run("plan", loads_file, "--gpus", 32, "--nodes", 4, "--groups", 8, "--json")
    figures = json.loads(done.stdout)
    assert (figures["policy"], figures["slots"]) == ("hierarchical", 288)
    done = run("plan", loads_file, "--gpus", 32, "--nodes", 4, "--groups", 2)
    assert "2 expert groups do not divide over 4 nodes, so experts" in done.stdout


def test_output_is_what_sglang_loads(loads_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "placement.json"
    done = run("plan", loads_file, "--gpus", 32, "-o", output)
    assert done.returncode == 0, done.stderr
    assert f"Placement written to {output}" in done.stdout.replace("\n", "")
    written = json.loads(output.read_text())
    assert list(written) == ["physical_to_logical_map"]
    loads = np.array(json.loads(loads_file.read_text())["logical_count"])
    made = eplb.plan(loads, eplb.Cluster(num_gpus=32, slots_per_gpu=9))
    assert written["physical_to_logical_map"] == made.placement.phy2log.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loads.json", "placement.json"]


def test_narrow_terminal_without_colour(loads_file: Path) -> None:
    done = run("plan", loads_file, "--gpus", 32, COLUMNS="60", NO_COLOR="1", TERM="dumb")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    # Commands are to be copied, so they are not broken.
    lines = [each for each in done.stdout.splitlines() if not each.startswith("To do so: eplb ")]
    assert max(map(len, lines)) <= 60


def test_no_load_at_all(tmp_path: Path) -> None:
    path = tmp_path / "zero.npy"
    np.save(path, np.zeros((2, 8)))
    done = run("plan", path, "--gpus", 4)
    assert done.returncode == 0, done.stderr
    assert "No layer has any load" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "32", "--slots", "290"], "290 slots do not divide over 32 GPUs: 288 or 320"),
        (["--gpus", "32", "--slots", "224"], "224 slots do not hold 256 experts: give each"),
        (["--gpus", "32", "--nodes", "5"], "32 GPUs do not divide over 5 nodes: 30 or 35 GPUs"),
        (["--gpus", "32", "--groups", "7"], "256 experts do not divide into 7 groups: 4 or 8"),
        (["--gpus", "0"], "--gpus is 0: give 1 or more"),
        (["--gpus", "32", "--threads", "0"], "--threads is 0: give 1 or more"),
        (["--gpus", "32", "-o", "/nowhere/at/all.json"], "/nowhere/at/all.json cannot be written"),
    ],
)
def test_wrong_arguments_are_one_line(loads_file: Path, arguments: list[str], message: str) -> None:
    done = run("plan", loads_file, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"eplb: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "x", "--gpus", "four"], "--gpus is 'four': "),
        (["plan", "x", "--gpus=4x"], "--gpus is '4x': "),
        (["plan", "x", "--gpus", "4", "--effort", "hard"], "--effort is 'hard': "),
        (["plan", "x", "--gpus"], "Option '--gpus' requires an argument"),
        (["plan"], "Missing argument 'TRACE...' (eplb plan --help)"),
        (["convert", "x", "-q"], "No such option: -q"),
        (["plna"], "No such command 'plna'"),
    ],
)
def test_command_lines_that_cannot_be_parsed_are_one_line(arguments: list[str], line: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"eplb: {line}")
    assert done.stderr.count("\n") == 1


def test_placements_go_to_devices(loads_file: Path) -> None:
    done = run("plan", loads_file, "--gpus", "4", "--to", "vllm", "-o", "/dev/null")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_module() -> None:
    assert run("-h").stdout == run("--help").stdout != ""
    done = subprocess.run(
        [sys.executable, "-m", "eplb", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == run("--version").stdout


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    cut = tmp_path / "cut.json"
    cut.write_text('{"logical_count": [[1, 2], [3')
    for path, named in (
        (cut, cut),
        (tmp_path / "missing.json", tmp_path / "missing.json"),
        (tmp_path, cut),
    ):
        for command in (["plan", path, "--gpus", 2], ["inspect", path], ["convert", path, "a.csv"]):
            done = run(*command)
            assert done.returncode == 2
            assert done.stderr.startswith(f"eplb: {named}: ")
            assert done.stderr.count("\n") == 1


def test_missing_option_is_a_usage_error(loads_file: Path) -> None:
    done = run("plan", loads_file)
    assert done.returncode == 2
    assert "--gpus" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupt_while_compiling(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "eplb.cli", "demo", "-o", str(tmp_path / "placement.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
    )
    cache = tmp_path / "cache"
    while process.poll() is None and not cache.exists():
        time.sleep(0.01)  # numba makes its folder just before it compiles
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "")
    assert not (tmp_path / "placement.json").exists()


def test_version() -> None:
    assert run("--version").stdout == f"eplb {eplb.__version__}\n"


def test_second_copies_are_explained_by_what_causes_them() -> None:
    def printed(experts: int, slots: int, duplicates: int, why: str | None) -> str:
        loads = np.ones((1, 1, experts))
        made = eplb.plan(loads[0], eplb.Cluster(1, 1, experts))
        summary = summarize(loads, made, 1, 0.0)
        summary = replace(summary, slots=slots, duplicates=duplicates, busiest_gpu_saves=-0.02)
        console = Console(file=io.StringIO(), width=200)
        print_summary(console, "loads", summary, why)
        return cast(io.StringIO, console.file).getvalue()

    full = printed(4, 6, 2, "The budget of 3 moves does not replace them.")
    assert "2 slots hold an expert that its GPU already holds. A GPU has more slots than" in full
    assert "budget" not in full
    bound = printed(4, 4, 1, "The budget of 3 moves does not replace them.")
    assert "1 slot holds an expert that its GPU already holds. The budget of 3 moves" in bound
    assert "carries 2% more load than in the layout that engines start with" in bound


def test_windows_of_few_tokens_are_merged_and_that_is_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    share = rng.lognormal(0.0, 0.8, 32)
    passes = rng.multinomial(64, share / share.sum(), (200, 2))
    np.save(tmp_path / "passes.npy", passes)
    asked = ("plan", tmp_path / "passes.npy", "--gpus", 8, "--effort", "fast")
    told = "200 windows of about 64 routed tokens a layer were merged into 12 of about 1,067"
    assert told in " ".join(run(*asked).stdout.split())
    done = run(*asked, "--json")
    assert json.loads(done.stdout)["planned_for"].startswith("Planned for: the sum of 12 windows")
    assert told in " ".join(done.stderr.split())
    apart = run(*asked, "--forecast", "recent", "--merge", "none")
    assert "32 scenarios of 200 windows" in " ".join(apart.stdout.split())
    one = run(*asked, "--merge", "all", "--json")
    assert json.loads(one.stdout)["planned_for"] is None
    wrong = run(*asked, "--merge", "some")
    assert wrong.returncode == 2
    assert "--merge is 'some': give auto, none, all or a number" in " ".join(wrong.stderr.split())


def test_plan_for_batches(tmp_path: Path) -> None:
    loads = np.random.default_rng(0).poisson(300.0, (2, 1, 8)).astype(float)
    (tmp_path / "loads.json").write_text(json.dumps({"logical_count": loads.tolist()}))
    words = ("plan", tmp_path / "loads.json", "--gpus", 2, "--slots", 10, "--json")
    done = run(*words, "--dispatch", "best", "--batch", "16,2,4,together", "--effort", "fast")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    sizes = {"tokens_per_rank": 16, "top_k": 2, "num_ranks": 4, "together": True}
    assert figures["batch"] == sizes
    assert figures["planned_dispatch"] == "best"


def test_plan_for_what_is_kept_low(tmp_path: Path) -> None:
    """Figures are those of the plan, and a verdict is left to plans for tokens."""
    loads = np.random.default_rng(0).gamma(0.7, 300.0, (2, 32))
    np.save(tmp_path / "loads.npy", loads)
    words = ("plan", tmp_path / "loads.npy", "--gpus", 8, "--slots", 40, "--batch", "4,4,8")
    for objective in ("activated", "time"):
        figures = json.loads(run(*words, "--objective", objective, "--json").stdout)
        batch = eplb.Batch(4, 4, 8)
        made = eplb.plan(loads, eplb.Cluster(8, 1, 5), objective=objective, batch=batch)
        assert figures["objective"] == objective
        assert figures["peak"] == made.peak.tolist()
        assert figures["peak_mean"] == pytest.approx(made.peak.mean())
        assert figures["verdict"] is None
    done = run(*words, "--objective", "time", "--gpu", "H200")
    said = " ".join(done.stdout.split())
    assert "In a step, a layer is estimated to take" in said
    assert "Times are those that eplb.cost estimates for gpt-oss-20b on H200." in said
    for options, message in (
        (("--objective", "time"), "eplb: --objective time needs the size of a step: give --batch"),
        (
            ("--objective", "pace", "--batch", "4,4,8"),
            "eplb: --objective pace is not known: give one of tokens",
        ),
        (
            ("--objective", "time", "--batch", "4,4,8", "--speed", "1,1,1,1,1,1,1,2"),
            "eplb: --objective time is for GPUs that are alike: leave out --speed",
        ),
        (
            ("--objective", "time", "--batch", "4,4,8", "--gpu", "H900"),
            "eplb: the GPU 'H900' is not known: the nearest is 'H800'",
        ),
        (
            ("--objective", "time", "--batch", "4,3,8"),
            "eplb: no model that is known routes to 3 of 32 experts",
        ),
        (
            ("--objective", "activated", "--batch", "4,4,8", "--traffic", "4", "--nodes", "2"),
            "eplb: --objective activated does not count the nodes",
        ),
        (
            ("--objective", "activated", "--batch", "4,4,8", "--dispatch", "sglang"),
            "eplb: --objective activated goes with --dispatch even or best, and that is sglang",
        ),
        (("--batch", "4,4,8"), "eplb: --batch goes with --dispatch best"),
    ):
        done = run(*words[:6], *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(message)


@pytest.mark.parametrize(
    ("text", "rule", "message"),
    [
        ("16,2", "best", "--batch is '16,2': give tokens, top_k and ranks as 32,8,16, or 32,8"),
        ("a,b,c", "best", "--batch is 'a,b,c': give tokens"),
        ("16,2,4", "even", "--batch goes with --dispatch best"),
        ("0,2,4", "best", "tokens_per_rank is 0: give 1 or more"),
    ],
)
def test_batches_that_are_no_batches(text: str, rule: str, message: str) -> None:
    with pytest.raises(eplb.OptionError, match=message):
        ObjectiveOptions(batch=text).step(rule, weighs_nodes=False, speed=None)


def test_nodes_are_a_preference(tmp_path: Path) -> None:
    """The figures are those of the plan, and groups leave their nodes where nodes have a price."""
    loads = deepseek_v3(seed=4)[:2]
    path = tmp_path / "loads.npy"
    np.save(path, loads)
    words = ("plan", path, "--gpus", 16, "--nodes", 4, "--slots", 288, "--groups", 8,
             "--effort", "fast")  # fmt: skip
    done = run(*words, "--traffic", "8,4", "--node-price", 0.1, "--json")
    assert done.returncode == 0, done.stderr
    cluster, traffic = eplb.Cluster(16, 4, 18), eplb.Traffic(8, 4, 0.1)
    made = eplb.plan(loads, cluster, num_groups=8, traffic=traffic, effort="fast")
    figures = json.loads(done.stdout)
    assert made.other_nodes is not None
    assert figures["other_nodes"]["plan"] == pytest.approx(made.other_nodes.mean())
    assert figures["plan"] == made.placement.balancedness(loads)
    assert (figures["policy"], figures["node_price"]) == ("global", 0.1)
    anywhere = eplb.plan(loads, cluster, effort="fast").placement.balancedness(loads)
    strict = eplb.plan(loads, cluster, num_groups=8, effort="fast").placement.balancedness(loads)
    done = run(*words, "--traffic", "8,4")
    assert "Each of the 8 expert groups stays on one node." in done.stdout
    assert f"That costs {anywhere - strict:.4f} of balancedness" in done.stdout
    assert "A token is sent to 2." in done.stdout


def test_what_nodes_do_is_said() -> None:
    """Groups that cost little balance say nothing of it; nodes without a use say so."""
    rng = np.random.default_rng(2)
    even = rng.integers(90, 110, (1, 2, 64)).astype(float)

    def said(cluster: eplb.Cluster, groups: int, **asked: Any) -> list[str]:
        made = eplb.plan(even, cluster, num_groups=groups, **asked)
        found = summarize(even, made, groups, 0.0, traffic=asked.get("traffic"))
        return [*found.of_nodes(), *found.of_tokens()]

    four = eplb.Cluster(8, 4, 10)
    assert said(eplb.Cluster(8, 1, 10), 1) == []
    assert said(four, 8) == ["Each of the 8 expert groups stays on one node."]
    assert said(four, 1)[0].startswith("The 4 nodes change nothing in this plan: --groups keeps")
    assert said(four, 2)[0].startswith("2 expert groups do not divide over 4 nodes")
    assert said(four.without([3]), 8)[0].startswith("The GPUs differ, or do not divide over 4")
    assert said(four, 1, dispatch="sglang") == []
    counted = said(four, 1, traffic=eplb.Traffic(4))
    assert [line.startswith("A token is sent to ") for line in counted] == [True]
    priced = said(four, 8, traffic=eplb.Traffic(4, 4, 0.2))
    assert priced[0].endswith("one node fewer may cost 0.2 of a GPU's mean load.")


@pytest.mark.parametrize(
    ("text", "price", "nodes", "message"),
    [
        (None, 0.1, 4, "--node-price needs --traffic"),
        (None, 0.1, 1, "--node-price is for tokens that cross nodes, and there is one"),
        ("8,4", None, 1, "--traffic is for tokens that cross nodes, and there is one"),
        ("8,4,2", None, 4, "--traffic is '8,4,2': give top_k, or top_k and topk_groups as 8,4"),
        ("many", None, 4, "--traffic is 'many': give top_k, .* or the name of a model: DeepSeek"),
        ("8,3", None, 4, "topk_groups is 3, which does not divide top_k"),
        ("8", -1.0, 4, "the price of a node is -1.0: give 0 or more"),
    ],
)
def test_traffic_that_is_none(
    text: str | None, price: float | None, nodes: int, message: str
) -> None:
    with pytest.raises(eplb.OptionError, match=message):
        traffic_of(text, price, eplb.LoadTrace(np.ones((1, 8))), eplb.Cluster(8, nodes, 2))


def test_loads_may_say_how_tokens_are_routed() -> None:
    trace, cluster = eplb.LoadTrace(np.ones((1, 8)), top_k=2), eplb.Cluster(8, 2, 2)
    assert traffic_of(None, None, trace, cluster) is None
    known = traffic_of(None, 0.5, trace, cluster)
    assert known is not None
    assert (known.top_k, known.topk_groups, known.price) == (2, None, 0.5)
    v3 = eplb.LoadTrace(np.ones((1, 256)), top_k=8, model="DeepSeek-V3")
    for groups, topk_groups in ((8, 4), (1, None)):
        known = traffic_of(None, 0.5, v3, cluster, groups)
        assert known is not None
        assert (known.top_k, known.topk_groups) == (8, topk_groups)
    named = traffic_of("deepseek-ai/DeepSeek-V3", None, trace, cluster)
    assert named is not None
    assert (named.top_k, named.topk_groups, named.price) == (8, 4, None)


def test_pins(loads_file: Path, tmp_path: Path) -> None:
    """Of a file and of options: kept in what is written, and named where they conflict."""
    pins, placement = tmp_path / "pins.json", tmp_path / "placement.json"
    pins.write_text(json.dumps({"copies": {"9": 2}, "layers": {"3": {"least_copies": {"1": 4}}}}))
    what = ["plan", loads_file, "--gpus", 32, "--slots", 320, "--pins", pins]
    options = ["--pin", "3=5,6", "--pin", "4=7", "--apart", "1,2", "--most-copies", 6]
    done = run(*what, *options, "-o", placement, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["pins"]["gpus"] == {"3": [5, 6], "4": [7]}
    assert figures["verdict"]["action"] == "switch it on"
    said = run(*what, "--pin", "3=5,6", "--pin", "4=7").stdout
    assert f"--pins {pins} --pin 3=5,6 --pin 4=7" in said.replace("\n", " ")
    made = eplb.load_placement(placement, num_gpus=32)
    assert (made.logcnt[:, [9, 3, 4]] == [2, 2, 1]).all()
    assert made.logcnt[3, 1] >= 4
    assert made.logcnt.max() <= 6
    assert not any({1, 2} <= set(gpu) for gpu in made.phy2log.reshape(-1, 10).tolist())
    done = run(*what, "--hottest", 3)
    assert done.returncode == 2
    assert "no placement keeps these pins of layer 2 together: " in done.stderr
    pins.write_text('{"gpu": {}}')
    done = run(*what)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "pins.json: pins have 'gpu': give gpus, nodes, apart" in done.stderr
    done = run(*what[:-2], "--pin", "3:4")
    assert "--pin is '3:4': give numbers as 3=0,1" in done.stderr
    done = run(*what[:-2], "--apart", "5")
    assert "--apart is '5': give two experts as 1,2" in done.stderr
