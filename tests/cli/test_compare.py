"""`eplb inspect`, `convert`, `synthesize`, `compare` and `sweep` as a user meets them."""

import contextlib
import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import run
from rich.console import Console
from workloads import write_workloads

import eplb
from eplb import synthetic
from eplb.cli.terminal import print_inspection
from eplb.describe import heat, inspect_trace


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
    expected = eplb.compare(trace, cluster, ["deepseek", "eplb", "contiguous", "oracle"], every=2)
    for row, score in zip(told["scores"], expected.to_json()["scores"], strict=True):
        for name in row:
            assert row[name] == score[name] or name.endswith("_ms")
    assert [len(row["moves"]) for row in told["by_window"]] == [11] * 4
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
import pathlib, time
served = 0
def policy(loads, cluster, *, current, num_groups):
    global served
    served += 1
    if served == 3:
        pathlib.Path("working").touch()
    time.sleep(0.05)
"""


def wait_until(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    """However busy the machine is: a number of seconds would be too few on some."""
    while process.poll() is None and not happened():
        time.sleep(0.002)


def test_moves_of_windows_without_load_are_written_too(tmp_path: Path) -> None:
    loads = np.random.default_rng(0).lognormal(size=(12, 3, 8))
    loads[:, 0] = 0.0
    loads[5] = 0.0
    loads[8:, 1] = 0.0
    eplb.save_trace(eplb.LoadTrace(loads), tmp_path / "trace.npz")
    output = tmp_path / "windows.csv"
    done = run("compare", tmp_path / "trace.npz", "--gpus", 4, "--policy", "seed", "-o", output)
    assert done.returncode == 0, done.stderr
    with output.open() as file:
        rows = list(csv.DictReader(file))
    alone = eplb.replay(eplb.load_trace(tmp_path / "trace.npz"), eplb.Cluster(4, 1, 3), "seed")
    assert sum(int(row["moves"]) for row in rows) == alone.moves.sum()
    assert {row["layer"] for row in rows} == {"1", "2"}
    assert [row["balancedness"] for row in rows if row["window"] == "5"] == ["", ""]
    assert len(rows) == 2 * 11


LATE = """
print("said while imported")
asked = []
def policy(loads, cluster, *, current, num_groups):
    print("said while asked")
    asked.append(1)
    if len(asked) == 4:
        raise ValueError("late")
"""


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_a_late_failure_keeps_what_was_done(trace_file: Path, tmp_path: Path, command: str) -> None:
    late = tmp_path / "late.py"
    late.write_text(LATE)
    output = tmp_path / "done.csv"
    policies = ("--policy", "contiguous", "--policy", late)
    done = run(command, trace_file, "--gpus", 8, *policies, "-o", output)
    assert done.returncode == 2
    failure = "eplb: the policy fails before window 4: ValueError: late"
    assert done.stderr.splitlines()[-1] == failure
    assert "said while" in done.stderr
    assert "said while" not in done.stdout
    stopped = {"compare": "Stopped after 3 of 11 windows.", "sweep": "Stopped after 1 of 2 replays"}
    assert stopped[command] in done.stdout
    with output.open() as file:
        assert len(list(csv.DictReader(file))) == {"compare": 2 * 3 * 24, "sweep": 1}[command]


def test_expert_bytes_of_a_sweep(trace_file: Path) -> None:
    arguments = ("sweep", trace_file, "--gpus", 8, "--policy", "seed", "--expert-bytes", 10)
    (row,) = figures_of(*arguments)
    assert row["bytes_per_plan"] == pytest.approx(10 * 24 * 40 * row["moved"])


def test_names_cannot_command_a_terminal(tmp_path: Path) -> None:
    loads = np.random.default_rng(0).lognormal(size=(3, 2, 4))
    names = ["\x1b]0;taken\x07", "b", "c"]
    path = tmp_path / "trace.npz"
    eplb.save_trace(eplb.LoadTrace(loads, names, model="M\x1b[31m"), path)
    (tmp_path / "p\x1b.py").write_text("def policy(*_, **__): pass")
    for arguments in (
        ("inspect", path),
        ("convert", path, tmp_path / "a\x1b.csv"),
        ("compare", path, "--gpus", 2, "--policy", tmp_path / "p\x1b.py"),
        ("compare", path, "--gpus", 2, "--policy", tmp_path / "none\x1b.py"),
    ):
        done = run(*arguments)
        assert done.returncode == (2 if "none" in str(arguments) else 0), done.stderr
        assert "\\x1b" in done.stdout + done.stderr
        assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
"""Where output is kept back, that it cannot be written is found only at the end."""


@pytest.mark.skipif(sys.platform == "win32", reason="a pipe that nobody reads")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_who_reads_may_go(trace_file: Path, more: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "eplb.cli", "inspect", str(trace_file), *more],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            timeout=120,
            env=BUFFERED,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_disk_is_one_line(trace_file: Path, more: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "eplb.cli", "inspect", str(trace_file), *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=120,
            env=BUFFERED,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("eplb: ")
    assert done.stderr.rstrip().endswith("No space left on device")
    assert done.stderr.count("\n") == 1


def has_worker(process: subprocess.Popen[str]) -> bool:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in children.read_text().split():
        with contextlib.suppress(OSError):
            if b"LokyProcess" in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
    return False


def imports(process: subprocess.Popen[str]) -> bool:
    """Whether it has come to the packages that the command imports."""
    return "numpy" in Path(f"/proc/{process.pid}/maps").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("when", ["imports", "workers start", "work"])
def test_interrupt_from_a_terminal_reaches_workers_too(tmp_path: Path, when: str) -> None:
    # As a terminal does it: every process of the group gets the signal.
    (tmp_path / "slow.py").write_text(SLOW)
    loads = np.random.default_rng(0).lognormal(size=(41, 2, 8))
    eplb.save_trace(eplb.LoadTrace(loads), tmp_path / "trace.npz")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "eplb.cli", "sweep", "trace.npz", "--gpus", "2", "--jobs", "2"),
            *("--policy", "slow.py", "--policy", "contiguous", "-o", "sweep.csv"),
            *(word for every in range(1, 20) for word in ("--every", str(every))),
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if when != "work" and not Path("/proc/self/task").exists():
        process.kill()
        pytest.skip("only Linux tells what a process does")
    happened = {
        "imports": lambda: imports(process),
        "workers start": lambda: has_worker(process),
        "work": (tmp_path / "working").exists,
    }
    wait_until(process, happened[when])
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}
    if "GPUs" not in out:  # it had not begun
        assert (out, err) == ("", "")
        assert when == "imports"
        return
    assert err == "eplb: stopping; Ctrl-C again quits at once\n"
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 0 < len(rows) < 38
    assert f"Stopped after {len(rows)} of 38 replays." in out


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
    wait_until(process, (tmp_path / "working").exists)  # all windows take more than 100 s
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


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_interrupted_in_the_middle_of_a_write_to_standard_error() -> None:
    # Nobody reads it yet, so a write of more than a pipe holds is not done when Ctrl-C comes.
    script = """
import os, signal, sys, threading
from rich.console import Console
from eplb.cli.interrupts import stopping_on_interrupt
def press():
    os.kill(os.getpid(), signal.SIGINT)
    print("pressed", flush=True)
with stopping_on_interrupt(Console(stderr=True)) as stopped:
    threading.Timer(0.2, press).start()
    while not stopped():
        sys.stderr.write("." * 1_000_000 + chr(10))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=BUFFERED,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "pressed\n"
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err[-500:]
    assert "eplb: stopping; Ctrl-C again quits at once\n" in err


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
    hot = told["hottest_experts"][0]
    assert f"{hot['expert']} of layer {hot['layer']} ({hot['times_mean']:.1f})" in done.stdout


def test_heat_is_drawn_with_what_the_terminal_has(trace_file: Path) -> None:
    trace = eplb.load_trace(trace_file)
    drawn = {}
    for encoding in ("utf-8", "ascii"):
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        print_inspection(
            Console(file=file, width=80),
            "t",
            inspect_trace(trace),
            heat(trace),
            trace.layer_numbers,
        )
        file.seek(0)
        lines = file.read().splitlines()
        end = next(n for n, line in enumerate(lines) if line.startswith("Hottest experts"))
        drawn[encoding] = lines[end - 17 : end - 1]
    assert {len(line) for line in drawn["utf-8"]} == {5 + 1 + 1 + 32 + 1}
    assert drawn["utf-8"][0].split()[0] == "1-2"  # behind a dense layer
    other = str.maketrans("░▒▓█", ".:*#")
    assert [line.translate(other) for line in drawn["utf-8"]] == drawn["ascii"]


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
        (["compare", "TRACE", "--gpus", 8, "-o", "TRACE"], "TRACE: records end with .csv"),
        (["compare", "TRACE", "--gpus", 8, "-o", "/proc/x.csv"], "/proc/x.csv cannot be written"),
        (["convert", "TRACE", "TRACE"], "TRACE: this is the input, which would be overwritten"),
        (["compare", "TRACE", "--gpus", 8, "--expert-bytes", 10**19], "--expert-bytes is 1000000"),
        (
            ["compare", "TRACE", "--gpus", 8, "--merge", 12],
            "the trace has 1 window, and plans are scored",
        ),
        (
            ["compare", "TRACE", "--gpus", 8, "--merge", 0],
            "the number of windows to add up is 0: give 1",
        ),
        (["compare", "TRACE", "--gpus", 8, "--slots", 24], "24 slots do not hold 32 experts"),
        (["compare", "TRACE", "--gpus", 0], "--gpus is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 0], "--gpus is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 8, "--every", 0], "--every is 0: give 1 or more"),
        (["sweep", "TRACE", "--gpus", 8, "--jobs", 0], "--jobs is 0: give 1 or more"),
        (["convert", "TRACE", "a.txt"], "a.txt: the ending tells the format"),
        (["synthesize", "gpt-5", "a.npz"], "there is no preset 'gpt-5': give one of deepseek-v3"),
        (["synthesize", "gpt-oss-20b", "a.npz", "--windows", 0], "--windows is 0"),
    ],
)
def test_wrong_arguments_are_one_line(
    trace_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*(trace_file if each == "TRACE" else each for each in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"eplb: {message.replace('TRACE', str(trace_file))}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_output(trace_file: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    done = run("sweep", trace_file, "--gpus", 8, "-o", tmp_path / "a.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a.csv cannot be written: it is a folder" in done.stderr


def test_wide_tables_are_printed_in_parts_and_whole(trace_file: Path) -> None:
    words = ("--gpus", 8, "--slots", 40, "--every", 8)
    timed = ("--window-seconds", 5, "--model", "gpt-oss-20b", "--gpu", "H100")
    done = run(
        "compare", trace_file, *words, *timed, "--policy", "contiguous,mean,moving,deciding",
        COLUMNS="64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 64
    assert "…" not in done.stdout
    for heading in ("balancedness", "weighted", "worst", "window", "moved", "bytes", "plan", "net"):
        assert any(re.search(rf"\b{heading}\b", line) for line in lines), heading
    # How long plans take says how wide the last column is.
    parts = sum(line.startswith("policy ") for line in lines)
    assert parts >= 2
    assert sum(line.startswith("deciding ") for line in lines) == parts
    sweep = ("sweep", trace_file, "--gpus", "8,16", "--every", 8, "--policy", "mean", "--jobs", 1)
    assert "…" not in run(*sweep, COLUMNS="60").stdout


def test_workloads_are_said_to_be_in_no_order(tmp_path: Path) -> None:
    folder = write_workloads(tmp_path / "loads")
    on = ("--gpus", 4, "--slots", 20)
    told = run("inspect", folder).stdout
    assert "5 workloads, in no order (chat to prose)" in told
    assert "correlate by" in told
    assert "first and last" not in told
    assert "windows apart" not in told
    figures = figures_of("inspect", folder)
    assert (figures["ordered"], figures["drift"], figures["first_last"]) == (False, [], None)
    pairs = [
        np.mean([np.corrcoef(one[layer], other[layer])[0, 1] for layer in (1, 2)])
        for one, other in itertools.combinations(eplb.load_trace(folder).loads, 2)
    ]
    assert figures["alike"]["mean"] == pytest.approx(np.mean(pairs))
    in_turn = "workloads in no order, each held out in turn and served by a plan for the others"
    done = " ".join(run("compare", folder, *on, "--policy", "deepseek,eplb").stdout.split())
    assert in_turn in done
    done = " ".join(
        run("sweep", folder, "--gpus", 4, "--policy", "deepseek", "--jobs", 1).stdout.split()
    )
    assert in_turn.replace("w", "W", 1) in done
    done = " ".join(run("size", folder, "--gpus", 4, "--spare", "0,1").stdout.split())
    assert "held out in turn: workloads in no order" in done
    assert run("compare", folder, *on, "--policy", "last").returncode == 2
    # As given, they follow each other.
    files = sorted(folder.iterdir())
    assert "windows apart" in run("inspect", *files).stdout
