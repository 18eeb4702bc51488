"""Servers of engines of two ranks on CPUs: started, waited for, asked over HTTP, and ended."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from processes import in_processes
from tiny_model import SPARE, WORDS, write_model

__all__ = [
    "RANKS",
    "TOKENS",
    "Server",
    "assert_seen",
    "prompts",
    "sglang_server",
    "vllm_package",
    "vllm_ranks_of",
    "vllm_server",
]

RANKS = 2
TOKENS = 12
"""Of each answer."""
_INTERVAL = 12
"""Passes from one rebalance to the next."""
_SECONDS = 900.0
"""For a server to be ready: it imports an engine in several processes."""
_QUIET = 2.0
_HERE = Path(__file__).parent
_VLLM = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: of the server, without a path.
        log: what its processes write.
        held: a folder where each rank writes what it holds, a line whenever its map changes.
        model: the folder of the model.
        asks: the path that it answers at, what the prompt and the number of tokens are called.
    """

    url: str
    log: Path
    held: Path
    model: Path
    asks: tuple[str, str, str]

    def answer(self, prompt: list[int], number: int = TOKENS) -> list[int]:
        """So many tokens that the model answers."""
        path, name, most = self.asks
        sampling = {"temperature": 0.0, most: number, "ignore_eos": True}
        asked = {name: prompt, "sampling_params": sampling}
        kind = {"Content-Type": "application/json"}
        request = Request(self.url + path, json.dumps(asked).encode(), kind)
        with urlopen(request, timeout=120.0) as answered:
            said = json.load(answered)
        tokens: list[int] = said.get("output_ids") or said["choices"][0]["token_ids"]
        return tokens

    def answers(self) -> list[list[int]]:
        """The tokens that the model answers to all prompts at once."""
        with ThreadPoolExecutor(len(prompts())) as asking:
            return list(asking.map(self.answer, prompts()))

    def settle(self) -> None:
        """Wait until the ranks step no more, as they do for a while after the last answer."""
        paths = [self.log, *self.held.iterdir()]
        sizes: list[int] = []
        while sizes != (sizes := [path.stat().st_size for path in paths]):
            time.sleep(_QUIET)

    def series(self) -> dict[str, float]:
        """The metrics that it serves, by name and labels."""
        with urlopen(f"{self.url}/metrics", timeout=30.0) as answered:
            lines = answered.read().decode().splitlines()
        found = [line.rsplit(" ", 1) for line in lines if line and line[0] != "#"]
        return {name: float(value) for name, value in found}

    def lines(self, having: str) -> list[str]:
        """Lines of the log that have this in them."""
        return [line for line in self.log.read_text().splitlines() if having in line]

    def moved(self) -> int:
        """Experts that the log says have moved."""
        told = "".join(self.lines("eplb: rebalance "))
        return sum(map(int, re.findall(r"(\d+) of \d+ experts move ", told)))

    def longest_step(self) -> float:
        """Seconds of the longest step of EPLB, of any rank."""
        return max(float((self.held / f"{rank}.longest").read_text()) for rank in range(RANKS))

    def ranks(self) -> list[list[Any]]:
        """The map [L, P] and a digest of the weights in each slot of a rank, as they changed."""
        paths = [self.held / f"{rank}.jsonl" for rank in range(RANKS)]
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def assert_seen(series: dict[str, float], server: Server) -> None:
    """Metrics say what the log says."""
    ours = {name: value for name, value in series.items() if name.startswith("eplb_")}
    assert len(ours) == 31
    decided = sum(value for name, value in ours.items() if "eplb_rebalances_total" in name)
    assert decided == len(server.lines("eplb: rebalance "))
    assert ours["eplb_moved_experts_total"] == server.moved()
    assert (ours["eplb_moving_seconds_total"] > 0.0) == (server.moved() > 0)
    assert ours["eplb_interval_steps"] == _INTERVAL
    assert ours["eplb_ranks_agree"] == 1.0
    assert 0.0 < ours['eplb_balancedness{layers="avg"}'] <= 1.0


def prompts() -> list[list[int]]:
    """Four prompts of tokens."""
    draw = np.random.default_rng(1)
    return [draw.integers(3, WORDS, 24).tolist() for _ in range(4)]


def vllm_package(engines: Path, folder: Path) -> Path:
    """A folder to import vLLM from, with the kernels of its CPU backend in one package."""
    package = folder / "vllm"
    package.mkdir(parents=True)
    kernels = (engines / "vllm-cpu").glob("vllm/_C*.so")
    for each in [*(engines / "vllm" / "vllm").iterdir(), *kernels]:
        (package / each.name).symlink_to(each)
    return folder


def sglang_package(engines: Path, folder: Path) -> Path:
    """A folder with SGLang's package, and the empty folder of headers that it looks for."""
    folder.mkdir()
    source = engines / "sglang"
    inner = Path("sglang", "kernels", "jit")
    for outer in (*reversed(inner.parents), inner):
        (folder / outer).mkdir(exist_ok=True)
        for each in (source / outer).iterdir():
            if not inner.is_relative_to(outer / each.name):
                (folder / outer / each.name).symlink_to(each)
    (folder / inner / "include").mkdir()
    return folder


def vllm_ranks_of(package: Path, *cases: dict[str, Any]) -> list[Any]:
    """What each rank of a whole engine of tensor parallelism sends, of a case of whole_vllm.py."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    try:
        return in_processes(
            "whole_vllm",
            "whole_vllm.serve",
            *((rank, len(cases), port, case) for rank, case in enumerate(cases)),
            path=[package],
            environment={**_VLLM, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"},
        )
    finally:
        for left in Path("/dev/shm").glob(f"*{port}-*-cpushm_*"):
            left.unlink()


@contextlib.contextmanager
def vllm_server(
    engines: Path,
    folder: Path,
    *options: str,
    balancing: Mapping[str, Any] = MappingProxyType({}),
    environment: Mapping[str, str] = _NONE,
) -> Iterator[Server]:
    """vLLM's server of two ranks of data parallelism.

    Args:
        engines: the folder that fetch.py makes.
        folder: for what is written, which is not there yet.
        options: more of `vllm serve`.
        balancing: more of `--eplb-config`.
        environment: more variables.
    """
    config = {
        "num_redundant_experts": SPARE,
        "window_size": 8,
        "step_interval": _INTERVAL,
        "communicator": "torch_gloo",
        **balancing,
    }
    with _server(
        "served_vllm.py",
        engines,
        folder,
        vllm_package(engines, folder / "path"),
        [
            *f"--model {folder / 'model'} --skip-tokenizer-init --dtype float32".split(),
            *f"--data-parallel-size {RANKS} --distributed-executor-backend uni".split(),
            *["--enforce-eager", "--enable-scale-out", "--no-enable-prefix-caching"],
            *["--enable-expert-parallel", "--enable-eplb", "--eplb-config"],
            json.dumps(config),
            *["--max-model-len=128", "--max-num-seqs=4", "--kv-cache-memory-bytes=67108864"],
            *options,
        ],
        {
            "VLLM_HELD": str(folder / "held"),
            **_VLLM,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else each rank would have one process more
            "VLLM_CPU_SIM_MULTI_NUMA": "1",  # else the second rank wants a second NUMA node
            "OMP_NUM_THREADS": "1",
            **environment,
        },
        "/health",
        ("/inference/v1/generate", "token_ids", "max_tokens"),
    ) as server:
        yield server


@contextlib.contextmanager
def sglang_server(
    engines: Path, folder: Path, *options: str, environment: Mapping[str, str] = _NONE
) -> Iterator[Server]:
    """SGLang's server of two ranks of tensor parallelism; arguments are those of `vllm_server`."""
    with _server(
        "whole_sglang.py",
        engines,
        folder,
        sglang_package(engines, folder / "path"),
        [
            *f"--model-path {folder / 'model'} --skip-tokenizer-init --dtype float32".split(),
            *f"--tp-size {RANKS} --ep-size {RANKS} --device cpu --enable-eplb".split(),
            *f"--ep-num-redundant-experts {SPARE} --eplb-rebalance-num-iterations".split(),
            *f"{_INTERVAL} --attention-backend torch_native --disable-radix-cache".split(),
            *["--max-total-tokens=2048", "--context-length=128", "--max-running-requests=4"],
            "--skip-server-warmup",
            *options,
        ],
        {
            "SGLANG_HELD": str(folder / "held"),
            "SGLANG_USE_CPU_ENGINE": "1",
            "SGLANG_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0",
            **environment,
        },
        "/get_model_info",
        ("/generate", "input_ids", "max_new_tokens"),
    ) as server:
        yield server


@contextlib.contextmanager
def _server(
    script: str,
    engines: Path,
    folder: Path,
    package: Path,
    options: list[str],
    environment: Mapping[str, str],
    ready: str,
    asks: tuple[str, str, str],
) -> Iterator[Server]:
    (folder / "held").mkdir()
    write_model(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = [package, _HERE, *sys.path, engines / "site"]
    variables = {name: value for name, value in os.environ.items() if name[:5] != "EPLB_"}
    variables |= {
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        # What the first process compiles of the engine, the others need not.
        "PYTHONDONTWRITEBYTECODE": "",
        "HF_HUB_OFFLINE": "1",
        "EPLB_POLICY": "eplb",
        "EPLB_MAX_MOVES": "10%",
        **environment,
    }
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [
                sys.executable,
                str(_HERE / script),
                *options,
                "--host=127.0.0.1",
                f"--port={port}",
            ],
            env=variables,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", log, folder / "held", folder / "model", asks)
    try:
        _wait(process, server.url + ready, log)
        for each in server.held.glob("*.longest"):  # of steps before it was ready
            each.unlink()
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60.0)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Until the server answers."""
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.5)
        with contextlib.suppress(OSError, http.client.HTTPException), urlopen(url, timeout=10.0):
            return
    raise RuntimeError(f"the server is not ready: {log.read_text()[-3000:]}")
