"""SGLang's server of two ranks on CPUs: what it answers stays the same while experts move."""

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from tiny_model import EXPERTS, LAYERS, SPARE, WORDS, write_model

from eplb import Cluster, Placement

_RANKS = 2
_ROUNDS, _TOKENS = 4, 12
_SECONDS = 900.0
"""For the server to be ready: it imports SGLang in four processes."""
_ENGINES = Path(os.environ.get("ENGINES", ".venv/engines")).resolve()

pytestmark = pytest.mark.skipif(
    not (_ENGINES / "site" / "uvicorn").is_dir(),
    reason="SGLang's server does not run here: this environment was made without its packages",
)


def package(folder: Path) -> Path:
    """A folder with SGLang's package, and the empty folder of headers that it looks for."""
    source = _ENGINES / "sglang"
    inner = Path("sglang", "kernels", "jit")
    for outer in (*reversed(inner.parents), inner):
        (folder / outer).mkdir(exist_ok=True)
        for each in (source / outer).iterdir():
            if not inner.is_relative_to(outer / each.name):
                (folder / outer / each.name).symlink_to(each)
    (folder / inner / "include").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server that rebalances after each 12 passes: what it answers, `log` and `held` folder."""
    folder = tmp_path_factory.mktemp("server")
    for each in ("path", "held"):
        (folder / each).mkdir()
    write_model(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    here = Path(__file__).parent
    path = [package(folder / "path"), here, *sys.path, _ENGINES / "site"]
    environment = {name: value for name, value in os.environ.items() if name[:5] != "EPLB_"}
    # What the first process compiles of SGLang, the others need not.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
        "SGLANG_USE_CPU_ENGINE": "1",
        "SGLANG_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0",
        "SGLANG_HELD": str(folder / "held"),
        "HF_HUB_OFFLINE": "1",
        "EPLB_POLICY": "eplb",
        "EPLB_MAX_MOVES": "10%",
    }
    options = (
        f"--model-path {folder / 'model'} --skip-tokenizer-init --dtype float32 --device cpu "
        f"--tp-size {_RANKS} --ep-size {_RANKS} --enable-eplb --ep-num-redundant-experts {SPARE} "
        "--eplb-rebalance-num-iterations 12 --attention-backend torch_native "
        "--disable-radix-cache --max-total-tokens 2048 --context-length 128 "
        f"--max-running-requests 4 --skip-server-warmup --host 127.0.0.1 --port {port}"
    )
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [sys.executable, str(here / "whole_sglang.py"), *options.split()],
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait(process, f"http://127.0.0.1:{port}/get_model_info", log)
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{port}/generate",
            log=log,
            held=folder / "held",
            model=folder / "model",
        )
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60.0)


def wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Until the server answers."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.5)
        with contextlib.suppress(OSError, http.client.HTTPException), urlopen(url, timeout=10.0):
            return
    pytest.fail(f"the server is not ready: {log.read_text()[-3000:]}")


def prompts() -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(3, WORDS, 24).tolist() for _ in range(4)]


def answered(url: str, prompt: list[int]) -> list[int]:
    asked = {"temperature": 0.0, "max_new_tokens": _TOKENS, "ignore_eos": True}
    request = Request(
        url,
        json.dumps({"input_ids": prompt, "sampling_params": asked}).encode(),
        {"Content-Type": "application/json"},
    )
    with urlopen(request, timeout=120.0) as answer:
        tokens: list[int] = json.load(answer)["output_ids"]
    return tokens


def expected(model: Path) -> list[list[int]]:
    """What the model answers by itself, in transformers."""
    from transformers import AutoModelForCausalLM

    alone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    given = torch.tensor(prompts())
    with torch.inference_mode():
        for _ in range(_TOKENS):
            next_tokens = alone(given).logits[:, -1].argmax(dim=1)
            given = torch.cat([given, next_tokens[:, None]], dim=1)
    return given[:, -_TOKENS:].tolist()


def test_answers_stay_while_experts_move(server: Any) -> None:
    with ThreadPoolExecutor(4) as asking:
        rounds = [
            list(asking.map(lambda prompt: answered(server.url, prompt), prompts()))
            for _ in range(_ROUNDS)
        ]
    assert rounds == [expected(server.model)] * _ROUNDS
    ranks = [
        [json.loads(line) for line in (server.held / f"{rank}.jsonl").read_text().splitlines()]
        for rank in range(_RANKS)
    ]
    maps = [np.array(phy2log) for phy2log, _ in ranks[0]]
    assert [phy2log for phy2log, _ in ranks[1]] == [each.tolist() for each in maps]
    assert maps[0].shape == (LAYERS, EXPERTS + SPARE)
    first: dict[tuple[int, int], str] = {}
    for step, phy2log in enumerate(maps):
        weights = np.hstack([rank[step][1] for rank in ranks])
        for layer, slot in np.ndindex(phy2log.shape):
            key = layer, int(phy2log[layer, slot])
            assert weights[layer, slot] == first.setdefault(key, weights[layer, slot])
    assert len(set(first.values())) == len(first) == LAYERS * EXPERTS
    cluster = Cluster.with_slots(EXPERTS + SPARE, _RANKS)
    placements = [Placement(each, EXPERTS, cluster) for each in maps]
    moves = [new.moves_from(old) for old, new in itertools.pairwise(placements)]
    assert moves
    lines = [line for line in server.log.read_text().splitlines() if "eplb: " in line]
    told = [line for line in lines if "eplb: rebalance " in line]
    assert len(told) >= _ROUNDS * _TOKENS // 12 - 1
    assert "the first plan, from a layout that knows no loads" in told[0]
    for line, number in zip(
        [line for line in told if " experts move " in line], moves, strict=False
    ):
        assert f" {number} of {maps[0].size} experts move " in line
    assert all(number <= 0.1 * maps[0].size for number in moves[1:])
    assert sum("this planner replaces SGLang's algorithms" in line for line in lines) == 1
    assert not any("answers" in line or "disagree" in line for line in lines)
