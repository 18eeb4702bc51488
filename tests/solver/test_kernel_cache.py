"""Compiled kernels on disk: found by the next process, and not after any of the sources changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import eplb

pytestmark = pytest.mark.jit

# The smallest kernel, and one of those that call into other files.
RUN = """
import sys
import numpy as np
from eplb.solver import maps
assert maps.__file__.startswith(sys.argv[1]), maps.__file__
maps.fill_log2phy(np.zeros((1, 2), np.int64), np.empty((1, 1, 2), np.int64))
print(sum(maps.fill_log2phy.stats.cache_hits.values()))
"""


def cache_hits(root: Path) -> int:
    """Kernels that a process finds on disk, with the package that is in `root`."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root)],
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_kernels_are_kept_until_a_source_changes(tmp_path: Path) -> None:
    assert eplb.__file__ is not None
    shutil.copytree(
        Path(eplb.__file__).parent,
        tmp_path / "eplb",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    assert cache_hits(tmp_path) == 0
    assert cache_hits(tmp_path) == 1
    # Not the kernel's own file: numba alone would not notice.
    changed = tmp_path / "eplb" / "solver" / "packing.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert cache_hits(tmp_path) == 0
    assert cache_hits(tmp_path) == 1
