"""The same maps on every host, whatever its processor; the GIL free while a rank plans."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import in_processes
from vllm.distributed.eplb.policy import DefaultEplbPolicy

from eplb.engines.settings import Settings
from eplb.engines.vllm import make_policy

HERE = Path(__file__).parent


def elsewhere(traces: Path, **environment: str) -> list[str]:
    """What a process with these variables answers to 200 calls."""
    path = os.pathsep.join([str(HERE), *sys.path])
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_calls.py"), str(traces)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_every_processor_answers_alike(traces: Path) -> None:
    (here,) = in_processes("vllm_loaded", "vllm_calls.send", (traces,))
    assert len(here) == 200
    assert len(set(here)) > 100
    # Another test of the project has compiled most of these kernels, where all tests are run.
    kernels = HERE.parent / "build" / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    old = {"NUMBA_CPU_NAME": "generic", "OPENBLAS_CORETYPE": "Prescott"}
    assert elsewhere(traces, **old, NUMBA_CACHE_DIR=str(kernels)) == here


def test_other_threads_run_while_a_rank_plans(caplog: pytest.LogCaptureFixture) -> None:
    policy = make_policy(DefaultEplbPolicy, Settings(windows=4, effort="thorough"))
    rng = np.random.default_rng(0)
    loads = torch.from_numpy(rng.integers(1, 1000, (4, 58, 256)))
    running = (torch.arange(288) % 256).repeat(58, 1)
    for window in loads[:3]:  # compiles all that is needed
        running = policy.rebalance_experts(window, 288, 1, 1, 32, running)
    ended = threading.Event()
    counted = 0

    def count() -> None:
        nonlocal counted
        while not ended.is_set():
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    before, begin = counted, time.perf_counter()
    with caplog.at_level(logging.WARNING):
        policy.rebalance_experts(loads[3], 288, 1, 1, 32, running)
    during, seconds = counted - before, time.perf_counter() - begin
    ended.set()
    thread.join()
    # A thread that waits for the GIL gets it every 5 ms; one that need not wait counts on.
    assert during > 4.0 * seconds / sys.getswitchinterval()
    assert not caplog.text
