"""`eplb watch`: what it shows of a recording and of metrics, and how it ends."""

import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import run

import eplb
from eplb.engines.recording import Recorder

METRICS = """# HELP eplb_moved_experts_total Experts that GPUs received
eplb_balancedness{layers="min",role="decode"} 0.75
eplb_balancedness{layers="min",role="prefill"} 0.5
eplb_moved_experts_total{role="decode"} 1234.0
eplb_last_plan_timestamp_seconds{role="decode"} 1e+09
vllm:num_requests_running 3.0
"""


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three windows, of which the last loads the first two experts most."""
    recorder = Recorder(tmp_path / "loads", 10, logging.getLogger("engine"))
    for window in np.concatenate(
        [np.ones((2, 3, 8)), np.tile([9.0, 7, 1, 1, 1, 1, 1, 1], (1, 3, 1))]
    ):
        recorder.add(window)
        recorder.wait(30.0)
    return tmp_path / "loads"


@pytest.fixture
def server() -> Iterator[str]:
    """The address of a server of metrics, and of an empty page."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode() if self.path == "/metrics" else b"nothing\n")

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def gpu_load(*words: object) -> list[list[float]]:
    done = run("watch", *words, "--once", "--json")
    assert not done.stderr, done.stderr
    found: list[list[float]] = json.loads(done.stdout)["gpu_load"]
    return found


def test_gpus_carry_what_the_last_windows_put_on_them(recording: Path) -> None:
    on = ("--gpus", 4, "--slots", 8)
    assert gpu_load(recording, *on) == [[16.0, 2.0, 2.0, 2.0]] * 3
    assert gpu_load(recording / "3x8", *on, "--windows", 2) == [[18.0, 4.0, 4.0, 4.0]] * 3
    spread = np.tile([0, 2, 1, 3, 4, 5, 6, 7], (3, 1))
    placement = eplb.Placement(spread, 8, eplb.Cluster(4, 1, 2))
    eplb.save_placement(placement, recording.parent / "placement.json", to="sglang")
    runs = ("--gpus", 4, "--placement", recording.parent / "placement.json")
    assert gpu_load(recording, *runs) == [[10.0, 8.0, 2.0, 2.0]] * 3


def test_a_person_sees_a_map_with_a_line_for_each_layer(recording: Path) -> None:
    done = run("watch", recording, "--gpus", 4, "--slots", 8, "--once", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0
    assert "3 MoE layers of 8 experts on 4 GPUs" in done.stdout
    assert "balancedness 0.344 mean" in done.stdout
    assert "GPU 0 has 2.91 times the mean" in done.stdout
    assert "each line: 1 layer; each column: 1 GPU" in done.stdout
    names, signs = zip(*(line.split(" ", 1) for line in done.stdout.splitlines()[-3:]), strict=True)
    assert names == ("0", "1", "2")
    assert all(line[0] != line[1] == line[2] == line[3] for line in signs)


def test_metrics_have_a_column_for_each_role(server: str) -> None:
    done = run("watch", f"{server}/metrics", "--once")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    assert rows['balancedness{layers="min"}'] == ["0.75", "0.5"]
    assert rows["moved_experts_total"] == ["1,234"]
    assert "num_requests" not in done.stdout
    assert "last answered" in done.stdout


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1"}])
def test_what_vanishes_is_one_line(
    terminal: dict[str, str], recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def vanish(_: float) -> None:
        looks.append(1)
        recording.rename(recording.with_name("elsewhere"))

    monkeypatch.setattr(time, "sleep", vanish)
    done = run("watch", recording / "3x8", "--gpus", 4, "--slots", 8, **terminal)
    assert "3 MoE layers of 8 experts on 4 GPUs" in done.stdout
    assert (done.returncode, len(looks)) == (2, 1)
    assert done.stderr == f"eplb: {recording / '3x8'}: is not there (any more)\n"


def test_what_does_not_do_is_one_line(recording: Path, server: str) -> None:
    (recording / "2x8").mkdir()
    for words, said in (
        ((recording, "--gpus", 4), "give one of 2x8, 3x8"),
        ((recording / "3x8",), "give --gpus"),
        ((recording / "3x8", "--gpus", 4, "--every", 0), "--every is 0"),
        ((f"{server}/other",), "has no metrics of eplb"),
        (("http://127.0.0.1:1/metrics",), "cannot be read"),
        (("http:///",), "cannot be read"),
    ):
        done = run("watch", *words, "--once")
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
