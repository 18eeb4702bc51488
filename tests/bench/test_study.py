"""The study of windows, history and spare slots: its data, its figures and its arguments."""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import study
import study_loads
import study_plots

import eplb
from eplb import Cluster, LoadTrace
from eplb.planning.forecast import Mean, Recent
from eplb.replaying.policies import Forecasted

pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which dev installs")
pytestmark = pytest.mark.long

WINDOWS = 68
RECORDED = study_loads.GPT_OSS


def write_traces(folder: Path, num_windows: int = WINDOWS, workloads: int = 3) -> Path:
    """Small loads under the names of the recorded ones, a dense layer among them."""
    draw = np.random.default_rng(6)
    (folder / "deepseek_v3").mkdir(parents=True)
    for number in range(workloads):
        counts = draw.integers(1, 1000, (3, 64))
        counts[0] = 0
        text = json.dumps({"logical_count": counts.tolist()})
        (folder / "deepseek_v3" / f"{number}.json").write_text(text)
    np.savez(folder / "gptoss_small.npz", counts=draw.integers(1, 1000, (num_windows, 2, 16)))
    return folder


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["study.py", *arguments])
    try:
        return study.main()
    except SystemExit as error:
        return error.code


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One preset, of few windows."""
    monkeypatch.setattr(study_loads, "_PRESETS", (("gpt-oss-20b", 2048, 8),))


def rows_of(told: dict[str, Any], figure: str, load: str) -> dict[tuple[int, str, int], float]:
    return {
        (row["gpus"], row["line"], row["x"]): row["balancedness"]
        for row in told[figure]["rows"]
        if row["load"] == load
    }


@pytest.mark.usefixtures("small")
def test_data_are_those_of_plain_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traces, out = write_traces(tmp_path / "traces"), tmp_path / "new" / "figures"
    arguments = ["--traces", str(traces), "--out", str(out), "--quick", "--json"]
    assert run_main(arguments, monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["windows", "history", "spare"]
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.svg" for name in sorted(told)]
    for path in out.iterdir():
        assert not {"#ffffff", "#000000"} & set(re.findall(r"#\w{6}", path.read_text())), path.name
    ordered = eplb.load_trace(traces / "gptoss_small.npz")

    def replayed(first: int, history: int, rule: Any, slots: int = 3, gpus: int = 8) -> float:
        served = LoadTrace(ordered.loads[: first + 2])
        cluster = Cluster(num_gpus=gpus, slots_per_gpu=slots)
        policy = Forecasted(rule, threads=1)
        return eplb.replay(served, cluster, policy, first=first, history=history).average()

    windows = rows_of(told, "windows", RECORDED)
    assert windows[8, "scenarios", 8] == pytest.approx(replayed(32, 8, Recent(8)))
    assert windows[8, "mean", 8] == pytest.approx(replayed(32, 8, Mean(8)))
    history = rows_of(told, "history", RECORDED)
    assert history[8, "cut in 64", 64] == pytest.approx(replayed(64, 64, Recent(64)))
    assert history[8, "cut in 4", 4] == pytest.approx(replayed(64, 4, Recent(4)))
    spare = rows_of(told, "spare", RECORDED)
    assert spare[8, "unseen", 2] == pytest.approx(replayed(32, 32, Recent(32), 4))
    assert spare[16, "unseen", 1] == pytest.approx(replayed(32, 32, Recent(32), 2, 16))

    six = eplb.load_trace(traces / "deepseek_v3").loads[:, 1:]
    cluster = Cluster(num_gpus=32, slots_per_gpu=5)
    seen, unseen = [], []
    for held in range(3):
        others = np.delete(six, held, 0)
        placement = eplb.plan(others, cluster).placement
        seen.append(placement.balancedness(others))
        unseen.append(placement.balancedness(six[held]))
    spare = rows_of(told, "spare", study_loads.SIX)
    assert spare[32, "seen", 3] == pytest.approx(np.mean(seen))
    assert spare[32, "unseen", 3] == pytest.approx(np.mean(unseen))
    windows = rows_of(told, "windows", study_loads.SIX)
    assert {x for _, _, x in windows} == {1, 2}, "one of three is held out"
    assert windows[32, "scenarios", 1] == windows[32, "mean", 1]


@pytest.mark.usefixtures("small")
def test_a_figure_is_alone_the_same_bytes_and_titled_by_its_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = write_traces(tmp_path / "traces")
    drawn = []
    for name in ("one", "two"):
        out = tmp_path / name
        arguments = ["--traces", str(traces), "--figure", "spare", "--out", str(out), "--quick"]
        assert run_main(arguments, monkeypatch) == 0
        (path,) = out.iterdir()
        drawn.append(path.read_bytes())
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) < 60_000
    said = capsys.readouterr().out.splitlines()
    path_told, title = said[0].split(": ", 1)
    assert path_told.endswith("spare.svg")
    texts = [text.strip() for text in ET.fromstring(drawn[0]).itertext() if text.strip()]
    assert title in " ".join(texts)
    table = [line.split(" | ") for line in said[: said.index("", 2)] if line.startswith("|")]
    assert table[0] == ["| spare slots on each GPU", "0", "1", "2", "3", "4 |"]
    assert len(table) == 2 + 3 * 4, "three loads, on two clusters, seen and not"
    (line,) = (row for row in table if row[0] == "| DeepSeek-V3, recorded, 32 GPUs, not seen")
    assert f"balancedness {line[1]} without" in title
    assert "balancedness (mean / max GPU load)" in texts


def test_a_history_is_cut_into_windows_in_order() -> None:
    loads = np.arange(1.0, 17.0).reshape(4, 2, 2)
    cut = study.merged(2)(loads)
    sums = np.stack([loads[:2].sum(0), loads[2:].sum(0)])
    shares = sums / sums.sum(axis=2, keepdims=True)
    found = cut.loads / cut.loads.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(found, shares)


def test_the_title_states_the_numbers_of_its_rows() -> None:
    rows = [
        study_plots.Row(study_loads.SIX, 32, "unseen", spare, value, 1)
        for spare, value in enumerate((0.5, 0.75, 0.875, 0.9, 0.89))
    ]
    title = study_plots.titled("spare", rows)
    assert "0.500 without spare slots" in title
    assert title.endswith("+0.250, +0.125, +0.025, -0.010")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--traces"),
        (["--traces", "absent"], "absent/deepseek_v3: does not exist"),
        (["--traces", "one"], "has 1 workload: to hold one out takes 2"),
        (["--traces", "short"], "has 64 windows: to plan from 64 and score the next takes 65"),
        (["--traces", "none"], "none: there is no gptoss*.npz"),
        (["--traces", "short", "--figure", "slots"], "invalid choice: 'slots'"),
        (["--traces", "good", "--quick", "--out", "file/figures"], "file"),
    ],
)
@pytest.mark.usefixtures("small")
def test_bad_arguments_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_traces(tmp_path / "good")
    write_traces(tmp_path / "one", workloads=1)
    write_traces(tmp_path / "short", num_windows=64)
    (write_traces(tmp_path / "none") / "gptoss_small.npz").unlink()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    assert run_main(arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
