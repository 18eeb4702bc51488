"""What the command line says of itself, and what all its commands have in common."""

import gzip
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from command_line import run, run_process

import eplb
from eplb.cli.commands import STORY, app

NAMES = [name for commands in STORY.values() for name in commands]
COMMANDS = {name: each for commands in STORY.values() for name, each in commands.items()}
ALONE = ("--jobs", 1, "--json")
"""A sweep in this process."""
WINDOWS = np.random.default_rng(0).poisson(400.0, (3, 2, 16)).astype(float)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with loads and a placement that runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loads.json").write_text(json.dumps({"logical_count": WINDOWS.tolist()}))
    running = eplb.plan(WINDOWS[0, :, ::-1], eplb.Cluster(4, 1, 5)).placement
    eplb.save_placement(running, tmp_path / "running.json", to="sglang")
    return tmp_path


def test_commands_stand_in_the_order_of_the_story() -> None:
    done = run("--help", COLUMNS="80")
    assert done.returncode == 0
    assert "..." not in done.stdout.replace("ARGS]...", "")
    said = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [word for word in said if word in NAMES] == NAMES
    assert {command.name for command in app.registered_commands} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_is_one_and_fits_the_terminal(name: str) -> None:
    done = run(name, "-h", COLUMNS="80")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "…" not in done.stdout
    example = COMMANDS[name].example
    for line in example.splitlines():
        assert f"\n    {line.rstrip()}" in done.stdout
    program, command, *words = shlex.split(example.replace("\\\n", " "))
    assert (program, command) == ("eplb", name)
    # It is read without an error: every option is there, and no argument is missing.
    typer.main.get_command(app).commands[name].make_context(name, words)  # type: ignore[attr-defined]


def test_every_option_says_what_it_is() -> None:
    """Docstrings say it of most, by their names: one that is misspelt is an option without help."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    silent = [
        f"{name}: {each.name}"
        for name, command in commands.items()
        for each in command.params
        if not each.help
    ]
    assert silent == []


def figures_of(*words: object) -> dict[str, Any]:
    done = run(*words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("place")
def test_json_has_a_version_everywhere() -> None:
    on = ("loads.json", "--gpus", 4)
    service = ("--expert-bytes", 1000, "--bandwidth-within", 1)
    asked: list[tuple[object, ...]] = [
        ("inspect", "loads.json"),
        ("convert", "loads.json", "loads.npz"),
        ("synthesize", "gpt-oss-20b", "made.npz", "--windows", 2, "--tokens", 100),
        ("plan", *on, "-o", "next.json"),
        ("evaluate", "running.json", *on),
        ("compare", *on, "--policy", "contiguous,deepseek"),
        ("frontier", *on, "--current", "running.json"),
        ("decide", *on, "--current", "running.json", "--seconds", 60, *service),
        ("migrate", "running.json", "next.json", "--gpus", 4),
    ]
    for words in asked:
        assert figures_of(*words)["version"] == 1, words
    rows = json.loads(run("sweep", *on, "--policy", "contiguous", *ALONE).stdout)
    assert [row["version"] for row in rows] == [1]
    assert figures_of("convert", "loads.json", "again.npz")["windows"] == 3


def test_what_standard_input_has_is_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = io.BytesIO()
    np.save(array, WINDOWS)
    text = (place / "loads.json").read_bytes()
    expected = figures_of("inspect", "loads.json")
    for given in (text, gzip.compress(text), b"\n" + text, array.getvalue()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert figures_of("inspect", "-") == expected
    for given, said in (
        (b"", "eplb: standard input has nothing to read\n"),
        (text[:-9], "eplb: standard input: "),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        done = run("inspect", "-")
        assert (done.returncode, done.stderr.startswith(said)) == (2, True), done.stderr
    # An option that does not fit is told without the file that stands for it meanwhile.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    done = run("inspect", "-", "--axes", "windows,layers,experts")
    assert (done.returncode, done.stderr.startswith("eplb: standard input: says")) == (2, True)


@pytest.mark.usefixtures("place")
def test_several_files_are_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """By every command that reads loads, which tells their order."""
    np.save("later.npy", WINDOWS[::-1])
    eplb.save_trace(eplb.load_trace(["loads.json", "later.npy"], merge="none"), "whole.npz")
    on = ("--gpus", 4)
    asked: list[tuple[tuple[object, ...], tuple[object, ...], str]] = [
        (("inspect",), (), "load_per_layer"),
        (("plan",), on, "verdict"),
        (("evaluate", "running.json"), on, "windows"),
        (("compare",), (*on, "--policy", "contiguous"), "balancedness_under"),
    ]
    for begin, end, key in asked:
        whole = figures_of(*begin, "whole.npz", *end)
        assert figures_of(*begin, "loads.json", "later.npy", *end)[key] == whole[key], begin
    command = figures_of("report", "loads.json", "later.npy", *on)["choice"]["compare"]
    assert command.startswith("eplb compare loads.json later.npy --gpus 4")
    done = run("inspect", "loads.json", "later.npy")
    assert done.stdout.startswith("2 sources follow each other as given: loads.json, later.npy.\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path("later.npy").read_bytes())))
    assert figures_of("inspect", "loads.json", "-")["windows"] == 6
    for words, said in (
        (("inspect", "-", "-"), "standard input can be read once: give - once"),
        (("convert", "loads.json", "later.npy", "later.npy"), "would be overwritten"),
    ):
        done = run(*words)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.usefixtures("place")
def test_compressed_json_is_read_alone_and_in_a_folder(place: Path) -> None:
    text = (place / "loads.json").read_bytes()
    folder = place / "dumps"
    folder.mkdir()
    for number in (2, 1):
        (folder / f"step{number}.json.gz").write_bytes(gzip.compress(text))
    assert np.array_equal(eplb.load_trace(folder / "step1.json.gz", merge="none").loads, WINDOWS)
    assert len(eplb.load_trace(folder, merge="none").loads) == 6
    for name, content in (("cut", gzip.compress(text)[:-20]), ("plain", text)):
        path = place / f"{name}.json.gz"
        path.write_bytes(content)
        with pytest.raises(eplb.FormatError, match=f"{name}.json.gz: not a whole gzip file"):
            eplb.load_trace(path)


@pytest.mark.usefixtures("place")
def test_lists_stand_between_commas() -> None:
    words = ("sweep", "loads.json", "--policy", "contiguous,deepseek", "--spare", "1,2")
    apart = run(*words, "--gpus", 2, "--gpus", "4", *ALONE)
    together = run(*words, "--gpus", "2,4", *ALONE)
    rows, others = json.loads(apart.stdout), json.loads(together.stdout)
    keys = ("policy", "gpus", "slots", "balancedness")
    of_both = [[[row[key] for key in keys] for row in each] for each in (rows, others)]
    assert of_both[0] == of_both[1]
    assert len(rows) == 8
    done = run(*words, "--gpus", "2,x")
    assert done.returncode == 2
    assert done.stderr == "eplb: --gpus is 'x': give a whole number, or several as 32,64\n"
    for option, value in (("--threads", "1e3"), ("--gpus", "")):
        done = run("plan", "loads.json", "--gpus", "4", option, value)
        assert done.returncode == 2
        assert done.stderr.startswith(f"eplb: {option} is {value!r}: give a whole number")
    found = figures_of("compare", "loads.json", "--gpus", 4, "--dispatch", "even,best")
    assert list(found["balancedness_under"]) == ["even", "best"]
    assert list(found["placed_for"]) == ["best"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_scripts_can_ask_whether_to_move(seconds: float) -> None:
    service = ("--expert-bytes", 10**9, "--bandwidth-within", 1, "--seconds", seconds)
    words = ("decide", "loads.json", "--gpus", 4, "--current", "running.json", *service)
    waits = figures_of(*words)["action"] == "wait"
    assert run(*words).returncode == 0
    assert run(*words, "--exit-code").returncode == int(waits)
    assert waits or seconds > 1.0


@pytest.mark.usefixtures("place")
def test_a_terminal_without_utf_8_is_told_in_plain_characters() -> None:
    words = ("frontier", "loads.json", "--gpus", 4, "--current", "running.json", "--merge", "none")
    done = run_process(*words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"balancedness 0\.\d+ -> 0\.\d+", done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_help_breaks_no_name_at_its_hyphens(name: str) -> None:
    said = run(name, "--help", COLUMNS="80").stdout
    assert not re.search(r"\w-\n +\w", said)
    assert "\u2011" not in said


def test_values_are_completed() -> None:
    for words, found in (
        ("eplb plan --to as", ["ascend"]),
        ("eplb decide --gpu H2", ["H200", "H20"]),
        ("eplb size --model Kimi-K2", ["Kimi-K2", "Kimi-K2.5"]),
        ("eplb decide --engine sg", ["sglang", "sglang-chunks"]),
    ):
        asked = {"_EPLB_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3"}
        done = run(**asked)
        assert done.stdout.split() == found


@pytest.mark.usefixtures("place")
def test_the_locale_of_c_is_told_in_ascii() -> None:
    np.save("loads.npy", WINDOWS)
    of_c = {"LC_ALL": "C", "PYTHONUTF8": "", "PYTHONIOENCODING": ""}
    assert run_process("inspect", "loads.npy", **of_c).stdout.isascii()
    shown = run_process("inspect", "loads.npy", **{**of_c, "LC_ALL": "C.UTF-8"}).stdout
    assert not shown.isascii()


@pytest.mark.usefixtures("place")
def test_what_is_wrong_is_named_as_it_was_typed() -> None:
    for option in ("--gpus", "--nodes", "--threads"):
        words = {"--gpus": "4", option: "0"}
        done = run("plan", "loads.json", *(word for pair in words.items() for word in pair))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"eplb: {option} is 0: give 1 or more")


@pytest.mark.usefixtures("place")
def test_figures_of_machines_are_options_wherever_a_model_or_a_gpu_is_asked_for() -> None:
    np.save("eight.npy", WINDOWS[..., :8])
    timed = ("plan", "eight.npy", "--gpus", 4, "--objective", "time", "--batch", "2,2,4")
    assert run(*timed, "--model", "Mixtral-8x7B", "--bandwidth-within", 1, "-h").returncode == 0
    for command, options in (
        (("size", "loads.json", "--gpus", 4, "--model", "none"), "--expert-bytes and --kv-bytes"),
        ((*timed, "--model", "none"), "--expert-bytes"),
        ((*timed, "--gpu", "none"), "--bandwidth-within and --bandwidth-between"),
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "is not known: " in done.stderr
        assert done.stderr.rstrip().endswith(options)
    slow = run(*timed, "--model", "Mixtral-8x7B", "--bandwidth-within", 1e-3, "--json")
    fast = run(*timed, "--model", "Mixtral-8x7B", "--expert-bytes", 1000, "--json")
    assert slow.returncode == fast.returncode == 0, slow.stderr + fast.stderr
    assert slow.stdout != fast.stdout
