"""Kernels are compiled once: a literal where others pass a variable would be another type."""

import subprocess
import sys

CODE = """
import gc
import eplb
eplb.warmup()
from numba.core.dispatcher import Dispatcher
for each in gc.get_objects():
    if isinstance(each, Dispatcher) and each.py_func.__module__.startswith("eplb."):
        print(each.py_func.__name__, len(each.signatures))
"""


def test_every_kernel_has_one_signature() -> None:
    """After `warmup`, in a process that reads none from disk: those have forgotten their parts."""
    made = subprocess.run(
        [sys.executable, "-c", CODE.replace("import eplb\n", "import eplb\n" + NO_CACHE, 1)],
        capture_output=True,
        text=True,
        check=True,
    )
    signatures = dict(line.split() for line in made.stdout.splitlines())
    assert len(signatures) > 40
    assert {name: each for name, each in signatures.items() if each not in "01"} == {}


NO_CACHE = """
import os, tempfile
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
import eplb.solver.jit
from numba.core.caching import NullCache
eplb.solver.jit._SolverCache = lambda function: NullCache()
"""
