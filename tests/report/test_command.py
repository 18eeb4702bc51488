"""`eplb report` as a user meets it: real processes, real files, wrong arguments."""

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
from command_line import run, run_process
from report_traces import CLUSTER, HOSTILE, hostile_trace, small_trace
from workloads import write_workloads

import eplb

ON = ("--gpus", 8, "--nodes", 2, "--slots", 40)


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("traces") / "trace.npz"
    eplb.save_trace(small_trace(), path)
    return path


def test_report_writes_one_page(trace_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = run("report", trace_file, *ON, "-o", page)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "The report is in" in done.stdout
    assert list(tmp_path.iterdir()) == [page]
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert str(trace_file) in text
    again = run(
        "report", trace_file, *ON, "--text", "-o", page, PYTHONHASHSEED="7", NUMBA_NUM_THREADS="1"
    )
    assert again.returncode == 0, again.stderr
    assert page.read_text("utf-8") == text


def test_text_is_printed_and_writes_nothing(
    trace_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_process("report", trace_file, *ON, "--text", COLUMNS="60", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "up to" in done.stdout
    assert f"eplb plan {trace_file} --gpus 8 --slots 40 --nodes 2" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_runs_is_read_from_its_file(trace_file: Path, tmp_path: Path) -> None:
    running = eplb.plan(small_trace().loads[0], CLUSTER).placement
    current = tmp_path / "current.json"
    eplb.save_placement(running, current, to="sglang", dense=small_trace().dense)
    words = ("--gpus", 8, "--nodes", 2, "--current", current)
    done = run("report", trace_file, *words, "--text", "--model", "gpt-oss-20b", "--gpu", "MI300X")
    assert done.returncode == 0, done.stderr
    assert "With the placement that runs" in done.stdout
    assert "moves (" in done.stdout
    assert "MI300X" in done.stdout
    assert f"--current {current} --max-moves" in done.stdout


def test_names_from_files_do_nothing_to_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "hostile.npz"
    eplb.save_trace(hostile_trace(2), path)
    done = run("report", path, *ON, "--text", "--model", HOSTILE)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "the model <script>" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*ON, "-o", "no/such/folder/page.html"), "page.html cannot be written"),
        ((*ON, "-o", "."), "cannot be written: it is a folder"),
        ((*ON, "-o", "TRACE"), "this is the input"),
        (("--gpus", 8, "--slots", 42), "42 slots do not divide over 8 GPUs"),
        (("--gpus", 8, "--slots", 24), "24 slots do not hold 32 experts"),
        ((*ON, "--gpu", "H1000"), "the GPU 'H1000' is not known"),
        ((*ON, "--tokens-per-gpu", 0), "--tokens-per-gpu is 0"),
        ((*ON, "--window-seconds", -1), "--window-seconds is -1"),
        ((*ON, "--merge", 13), "windows to add up is 13: give 1 to 12"),
        ((*ON, "--current", "absent.json"), "absent.json"),
        (("--gpus", 8, "--groups", 5), "32 experts do not divide into 5 groups"),
    ],
)
def test_wrong_arguments_are_one_line(
    trace_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [trace_file if word == "TRACE" else word for word in words]
    before = trace_file.read_bytes()
    done = run("report", trace_file, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert trace_file.read_bytes() == before


def test_a_placement_for_another_shape_is_refused(trace_file: Path, tmp_path: Path) -> None:
    rows = np.resize(np.arange(32), (6, 48))
    wide = eplb.Placement(rows, 32, eplb.Cluster(8, 2, 6))
    path = tmp_path / "wide.json"
    eplb.save_placement(wide, path, to="sglang")
    done = run("report", trace_file, *ON, "--current", path)
    assert done.returncode == 2
    assert "48 slots on 8 GPUs, but the cluster given has 40 on 8" in done.stderr
    other = eplb.Placement.contiguous(6, 64, eplb.Cluster(8, 2, 10))
    eplb.save_placement(other, path, to="sglang")
    done = run("report", trace_file, "--gpus", 8, "--current", path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "long.npz"
    eplb.save_trace(small_trace(400), path)
    command = [sys.executable, "-m", "eplb.cli", "report", path, *map(str, ON)]
    process = subprocess.Popen(
        [*map(str, command), "-o", str(tmp_path / "page.html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + error
    assert [each.name for each in tmp_path.iterdir()] == ["long.npz"]


def test_figures_are_json_and_follow_the_size_and_bandwidths_given(trace_file: Path) -> None:
    def figures(*more: object) -> dict[str, Any]:
        done = run("report", trace_file, *ON, "--model", "gpt-oss-20b", "--json", *more)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        assert found["version"] == 1
        return found

    plain = figures("--window-seconds", 1)
    rates = ("--expert-bytes", 10**9, "--bandwidth-within", 0.1, "--bandwidth-between", 0.1)
    slow = figures(*rates, "--window-seconds", 1, "--engine", "sglang")
    assert slow["estimated"]["step_before"] > 10 * plain["estimated"]["step_before"]
    assert (plain["through"]["engine"], slow["through"]["engine"]) == (None, "sglang")
    for moment in slow["through"]["moments"]:
        assert moment["lost_seconds"] > 0.017 or not moment["moves"]
    done = run("report", trace_file, *ON, "--engine", "none")
    assert (done.returncode, "the engine 'none' is not known" in done.stderr) == (2, True)
    done = run("report", trace_file, *ON, "--gpu", "H1000")
    assert done.returncode == 2
    assert "--bandwidth-within" in done.stderr
    unknown = run("report", trace_file, *ON, "--model", "none", "--expert-bytes", 1)
    assert "--expert-bytes changes one figure of a model" in unknown.stderr


def test_a_report_on_workloads_says_nothing_of_time(tmp_path: Path) -> None:
    folder, page = write_workloads(tmp_path / "loads"), tmp_path / "page.html"
    done = run("report", folder, "--gpus", 4, "--slots", 20, "--text", "-o", page)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    text = page.read_text("utf-8")
    for each in (told, text):
        assert "5 workloads in no order" in each
        assert "each is held out in turn and scored by a plan for the others" in each
        for word in ("Through time", "Drift", "it lasts", "it ages", "persist", "apart"):
            assert word not in each
    trace = eplb.load_trace(folder)
    found = eplb.compare(trace, eplb.Cluster(4, 1, 5), "eplb").scores[0].balancedness
    assert f"a plan for 20 slots {found:.4f}" in told
    planned = run("plan", folder, "--gpus", 4, "--slots", 20)
    assert f"plans for the others gave {found:.4f}" in " ".join(planned.stdout.split())
