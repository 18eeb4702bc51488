"""`eplb inspect`, `convert`, `synthesize`, `compare` and `sweep` as a user meets them."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run

import eplb
from eplb import synthetic

pytestmark = pytest.mark.jit


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "trace.npz"
    made = synthetic.trace(
        "gpt-oss-20b", num_windows=12, tokens_per_window=2048, num_dense_layers=1
    )
    eplb.save_trace(made, path)
    return path


def figures_of(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_compare_prints_what_the_library_gives(trace_file: Path) -> None:
    told = figures_of("compare", trace_file, "--gpus", 8, "--slots", 40, "--every", 2)
    trace = eplb.load_trace(trace_file)
    cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
    expected = eplb.compare(trace, cluster, ["contiguous", "seed", "eplb", "oracle"], every=2)
    for row, score in zip(told["scores"], expected.to_json()["scores"], strict=True):
        for name in row:
            assert row[name] == score[name] or name.endswith("_ms")
    done = run("compare", trace_file, "--gpus", 8, "--slots", 40, "--every", 2)
    assert "24 MoE layers (and 1 with no load) of 32 experts in 40 slots on 8 GPUs" in done.stdout
    for score in expected.scores:
        assert f"{score.balancedness:.4f}" in done.stdout
    assert done.stderr == ""


def test_compare_writes_every_window_and_layer(trace_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "windows.csv"
    done = run(
        *("compare", trace_file, "--gpus", 8, "--policy", "seed", "--policy", "eplb"),
        *("-o", output, "--expert-bytes", 10, "--first", 4),
    )
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 8 * 24
    cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
    alone = eplb.replay(eplb.load_trace(trace_file), cluster, "seed", first=4)
    for row in rows[: 8 * 24]:
        step, layer = int(row["window"]) - 4, int(row["layer"])
        assert row["policy"] == "seed"
        assert layer >= 1
        assert float(row["balancedness"]) == alone.balancedness[step, layer]
        assert float(row["peak"]) == alone.peak[step, layer]
        assert int(row["bytes"]) == 10 * int(row["moves"]) == 10 * alone.moves[step, layer]
    scores = tmp_path / "scores.json"
    run("compare", trace_file, "--gpus", 8, "--policy", "seed", "-o", scores)
    assert json.loads(scores.read_text())["scores"][0]["policy"] == "seed"


def test_merged_windows(trace_file: Path) -> None:
    told = figures_of("compare", trace_file, "--gpus", 8, "--merge", 3, "--policy", "contiguous")
    assert told["wanted"] == 3
    assert figures_of("inspect", trace_file, "--merge", 5)["windows"] == 2


SLOW = """
import time
def policy(loads, cluster, *, current, num_groups):
    time.sleep(0.05)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupted_what_was_done_is_written(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    loads = np.random.default_rng(0).lognormal(size=(2000, 2, 8))
    eplb.save_trace(eplb.LoadTrace(loads), tmp_path / "trace.npz")
    output = tmp_path / "windows.csv"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "eplb.cli", "compare", "trace.npz", "--gpus", "2"),
            *("--policy", "slow.py", "--policy", "contiguous", "-o", str(output)),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    time.sleep(3.0)  # imports take one of them, and all windows more than a hundred
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "eplb: stopping; Ctrl-C again quits at once\n"
    with output.open() as file:
        rows = list(csv.DictReader(file))
    served = len({row["window"] for row in rows})
    assert 0 < served < 1999
    assert len(rows) == 2 * 2 * served  # of each policy and layer
    assert f"Stopped after {served} of 1,999 windows." in out


def test_sweep_is_a_line_a_replay(trace_file: Path, tmp_path: Path) -> None:
    arguments = ("sweep", trace_file, "--gpus", 4, "--gpus", 8, "--spare", 1, "--spare", 2)
    output = tmp_path / "sweep.csv"
    done = run(*arguments, "--every", 3, "--policy", "seed", "--policy", "eplb", "-o", output)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["gpus"], row["slots"], row["policy"]) for row in rows] == [
        (gpus, slots, policy)
        for gpus, slots in (("4", "36"), ("4", "40"), ("8", "40"), ("8", "48"))
        for policy in ("seed", "eplb")
    ]
    trace = eplb.load_trace(trace_file)
    alone = eplb.replay(trace, eplb.Cluster(8, 1, 6), "eplb", every=3)
    assert float(rows[-1]["balancedness"]) == alone.average()
    for row in rows:
        assert f"{float(row['balancedness']):.4f}" in done.stdout


def test_what_a_trace_holds(trace_file: Path) -> None:
    told = figures_of("inspect", trace_file)
    trace = eplb.load_trace(trace_file)
    assert (told["windows"], told["layers"], told["experts"]) == trace.loads.shape
    assert told["dense_layers"] == [0]
    assert (told["model"], told["top_k"]) == ("gpt-oss-20b", 4)
    loads = trace.loads[:, 1:]
    hottest = loads.max(axis=2) / loads.mean(axis=2)
    assert told["hottest"]["most"] == pytest.approx(hottest.max())
    assert [row["lag"] for row in told["drift"]] == [1, 2, 4, 8]
    done = run("inspect", trace_file)
    assert "24 MoE layers of 32 experts, and 1 with no load (0)" in done.stdout
    assert f"{hottest.mean():.2f}" in done.stdout


def test_one_window_and_no_load_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((2, 4)))
    told = figures_of("inspect", tmp_path / "one.npy")
    assert (told["windows"], told["drift"], told["first_last"]) == (1, [], None)
    np.save(tmp_path / "none.npy", np.zeros((3, 2, 4)))
    done = run("inspect", tmp_path / "none.npy")
    assert done.returncode == 0, done.stderr
    assert "No layer has any load." in done.stdout


def test_converted_there_and_back(trace_file: Path, tmp_path: Path) -> None:
    before = trace_file
    for name in ("a.csv", "b.parquet", "c.npz"):
        done = run("convert", before, tmp_path / name)
        assert done.returncode == 0, done.stderr
        before = tmp_path / name
    assert eplb.load_trace(before) == eplb.load_trace(trace_file)


def test_synthesized(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    done = run("synthesize", "gpt-oss-20b", path, "--windows", 3, "--tokens", 500, "--seed", 7)
    assert done.returncode == 0, done.stderr
    made = synthetic.trace("gpt-oss-20b", num_windows=3, tokens_per_window=500, seed=7)
    assert eplb.load_trace(path) == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "TRACE", "--gpus", 8, "--policy", "best"], "no policy is called 'best'"),
        (["compare", "TRACE", "--gpus", 8, "--policy", "no.py"], "no.py: there is no such file"),
        (["compare", "TRACE", "--gpus", 8, "-o", "a.txt"], "a.txt: records end with .csv or .json"),
        (["compare", "TRACE", "--gpus", 8, "-o", "no/a.csv"], "no/a.csv: there is no folder no"),
        (["compare", "TRACE", "--gpus", 8, "--merge", 12], "the trace has 1 windows: to serve"),
        (["compare", "TRACE", "--gpus", 8, "--merge", 0], "0 windows cannot be added up"),
        (["compare", "TRACE", "--gpus", 8, "--slots", 24], "24 slots do not hold 32 experts"),
        (["compare", "TRACE", "--gpus", 0], "num_gpus is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 0], "num_gpus is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 8, "--every", 0], "every is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 8, "--jobs", 0], "jobs is 0: give 1 or more"),
        (["convert", "TRACE", "a.txt"], "a.txt: the ending tells the format"),
        (["synthesize", "gpt-5", "a.npz"], "no preset 'gpt-5': there are deepseek-v3"),
        (["synthesize", "gpt-oss-20b", "a.npz", "--windows", 0], "num_windows is 0"),
    ],
)
def test_wrong_arguments_are_one_line(
    trace_file: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    named = [trace_file if each == "TRACE" else each for each in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "eplb.cli", *map(str, named)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"eplb: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
