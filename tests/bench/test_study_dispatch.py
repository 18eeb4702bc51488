"""The study of dispatch: its points against plain loops, and its command."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import study_dispatch

import eplb

pytest.importorskip("matplotlib", reason="figures are drawn by matplotlib, which dev installs")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few tokens and loads under the names of the recorded ones."""
    folder = tmp_path_factory.mktemp("traces")
    rng = np.random.default_rng(3)
    lengths = np.full(300, 40, np.int32)
    scores = rng.gumbel(size=(lengths.sum(), 2, 32)) + rng.normal(size=(2, 32))
    ids = np.argsort(-scores, axis=2)[:, :, :4].astype(np.uint8)
    np.savez(folder / "gptoss20b_tokens.npz", topk_ids=ids, lengths=lengths)
    (folder / "deepseek_v3").mkdir()
    for number in range(3):
        counts = rng.lognormal(6.0, 0.7, (2, 256)).round().tolist()
        (folder / "deepseek_v3" / f"{number}.json").write_text(
            json.dumps({"logical_count": counts})
        )
    return folder


@pytest.mark.parametrize("tokens", [64, 1024])
def test_points_are_those_of_plain_loops(traces: Path, tokens: int) -> None:
    cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
    work = study_dispatch.gpt_oss(traces / "gptoss20b_tokens.npz", cluster, tokens, slice(1, 2))
    points = {point.line: point for point in study_dispatch.points_of(work)}
    placement, steps = work.placement, work.steps(0)
    assert steps.shape[1:] == (8, tokens // 8, 4)
    hashed, even = [], []
    for step in steps.tolist():
        load = np.zeros(8)
        for rank in step:
            for index, chosen in enumerate(rank):
                for expert in chosen:
                    copies = [slot for slot in placement.log2phy[0, expert] if slot >= 0]
                    load[copies[index * 2654435769 % 2**32 % len(copies)] // 5] += 1
        hashed.append(load.mean() / load.max())
        counts = np.bincount(np.ravel(step), minlength=32).astype(float)
        even.append(placement.balancedness(counts[None]))
    assert points["vllm"].balancedness == pytest.approx(np.mean(hashed))
    assert points["even"].balancedness == pytest.approx(np.mean(even))
    assert points["own"].balancedness < points["together"].balancedness
    assert points["vllm"].balancedness < points["own"].balancedness
    assert ("activated" in points) == (tokens <= 256)
    if tokens <= 256:
        assert points["activated"].touched <= points["together"].touched


def test_the_command_draws_and_prints(
    traces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "dispatch.svg"
    monkeypatch.setattr(
        sys, "argv", ["study", "--traces", str(traces), "--quick", "--out", str(out)]
    )
    assert study_dispatch.main() == 0
    said = capsys.readouterr().out
    title = said.splitlines()[0].split(": ", 1)[1]
    texts = " ".join(" ".join(ET.fromstring(out.read_bytes()).itertext()).split())
    assert title in texts
    assert "currentColor" in out.read_text()
    assert "gpt-oss-20b: 1 of 24 layers, at most 16 steps of each size" in said
    assert "| DeepSeek-V3, 32 ranks, 288 slots: balancedness | 256 |" in said


def test_bad_arguments_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "--traces", str(tmp_path / "absent")])
    with pytest.raises(SystemExit) as error:
        study_dispatch.main()
    assert error.value.code == 2
    assert "absent" in capsys.readouterr().err
