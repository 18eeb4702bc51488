"""The same bytes from any thread count, processor and process; the GIL free while planning."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fingerprint as fingerprint_script
import numpy as np
import pytest
from fingerprint import fingerprint
from recorded import ROOT, SHARED

from eplb import Cluster, plan

TRACES = SHARED / "traces"


@pytest.fixture(scope="module")
def recorded_if_here() -> Path | None:
    """The recorded loads where they are: the other cells are compared in any case."""
    return TRACES if TRACES.exists() else None


def fingerprint_elsewhere(*arguments: str, **environment: str) -> str:
    """The fingerprint that another process prints."""
    done = subprocess.run(
        [sys.executable, fingerprint_script.__file__, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_any_number_of_threads(recorded_if_here: Path | None) -> None:
    digests = {
        fingerprint(small=False, traces=recorded_if_here, threads=threads)
        for threads in (1, 2, 5, None)
    }
    assert len(digests) == 1


def test_any_number_of_threads_on_small_layers() -> None:
    assert len({fingerprint(small=True, threads=threads) for threads in (1, 2, 5, None)}) == 1


@pytest.mark.long
def test_compiled_anew_for_another_processor(recorded_if_here: Path | None) -> None:
    """Kernels compiled for every feature of this processor, and for none of them; products of
    matrices by what numpy's library has for this processor, and for an old one. Each kernel is
    compiled once: a literal where others pass a variable would be another type.
    """
    old = {"NUMBA_CPU_NAME": "generic", "OPENBLAS_CORETYPE": "Prescott"}
    # Kernels that are read from disk come without their parts, which only what compiles them knows.
    # What is compiled here is kept for the engines' tests.
    kept = ROOT / "build" / "kernels"
    shutil.rmtree(kept, ignore_errors=True)
    old["NUMBA_CACHE_DIR"] = str(kept)
    traces = [] if recorded_if_here is None else [str(recorded_if_here)]
    digest, *signatures = fingerprint_elsewhere("signatures", *traces, **old).splitlines()
    assert digest == fingerprint(small=False, traces=recorded_if_here)
    assert len(signatures) > 40
    assert [each for each in signatures if each.split()[1] not in "01"] == []


def test_compiled_or_not() -> None:
    assert fingerprint_elsewhere("small", NUMBA_DISABLE_JIT="1") == fingerprint(small=True)


def test_several_threads_plan_at_once() -> None:
    rng = np.random.default_rng(0)
    shape = (58, 256)
    loads = [rng.lognormal(size=shape) for _ in range(6)]
    cluster = Cluster(shape[1] // 8, 1, 9)
    alone = [plan(each, cluster).placement for each in loads]
    with ThreadPoolExecutor(6) as pool:
        together = pool.map(lambda each: plan(each, cluster, threads=3).placement, loads * 3)
        assert list(together) == alone * 3


FORK = """
import multiprocessing, sys
import numpy as np
from eplb import Cluster, plan

loads = np.random.default_rng(0).lognormal(size=(12, 16))
cluster = Cluster(8, 1, 3)
here = plan(loads, cluster, threads=3)

def child():
    there = plan(loads, cluster, threads=3)
    sys.exit(0 if there.placement == here.placement else 3)

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
if process.is_alive():
    process.kill()
    sys.exit("the child hangs")
sys.exit(process.exitcode)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forked_child_can_plan() -> None:
    """It has none of its parent's threads, which had planned before."""
    done = subprocess.run(
        # Forking beside threads is what is tested here.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def ticks_during(work: Callable[[], object]) -> int:
    """How often this thread gets to run while another one works."""
    started, done = threading.Event(), threading.Event()

    def run() -> None:
        started.set()
        work()
        done.set()

    worker = threading.Thread(target=run)
    worker.start()
    started.wait()
    ticks = 0
    while not done.is_set():
        # Lets the other one run, and has to wait for it where it keeps the GIL.
        time.sleep(0)
        ticks += 1
    worker.join()
    return ticks


def test_python_runs_on_while_a_plan_is_made() -> None:
    # One layer, so that nearly all of its time is one call of a kernel.
    loads, cluster = np.random.default_rng(0).lognormal(size=(1, 30_000)), Cluster(1000, 1, 40)
    plan(loads, cluster)
    while_planning = ticks_during(lambda: plan(loads, cluster, threads=1))
    # One call into C that keeps the GIL until it is done.
    while_held = ticks_during(lambda: sum(range(20_000_000)))
    assert while_planning > 20 * (while_held + 1)
