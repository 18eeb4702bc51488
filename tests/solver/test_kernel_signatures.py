"""Kernels are compiled once: a literal where others pass a variable would be another type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import gc
import eplb
import numpy as np
for rule in ("even", "best", "sglang", "ascend"):
    eplb.warmup(rule)
placement = eplb.plan(np.ones((1, 4)), eplb.Cluster(2, 1, 3)).placement
eplb.plan(np.ones((1, 4)), eplb.Cluster(2, 1, 3), dispatch="best")
eplb.plan(np.ones((2, 1, 4)), eplb.Cluster(2, 1, 3), dispatch="best")
for rule in ("sglang", "ascend"):
    eplb.plan(np.ones((1, 4)), eplb.Cluster(2, 1, 3), dispatch=rule)
    placement.gpu_load(np.ones((2, 1, 4)), rule)
eplb.dispatch(placement, np.ones((2, 1, 4))).table()
placement.gpu_load(np.ones((2, 1, 4)), "best")
from numba.core.dispatcher import Dispatcher
for each in gc.get_objects():
    if isinstance(each, Dispatcher) and each.py_func.__module__.startswith("eplb."):
        print(each.py_func.__name__, len(each.signatures))
"""


@pytest.mark.long
def test_every_kernel_has_one_signature(tmp_path: Path) -> None:
    """After `warmup`, in a process that reads no kernel from disk: those come without their
    parts, which only what compiles them knows.
    """
    made = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    signatures = dict(line.split() for line in made.stdout.splitlines())
    assert len(signatures) > 40
    assert {name: each for name, each in signatures.items() if each not in "01"} == {}
