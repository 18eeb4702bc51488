"""Old paths of public modules import as the modules that they are now, and say so."""

import subprocess
import sys

import pytest

from eplb._moved import MOVED

SCRIPT = """
import importlib, pickle, sys, warnings
old, new = sys.argv[1:]
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    module = importlib.import_module(old)
assert [str(each.message) for each in seen] == [f"{old} is {new} now"], seen
assert seen[0].category is DeprecationWarning
assert module is importlib.import_module(new)
assert module.__name__ == module.__spec__.name == new
importlib.reload(module)
"""


@pytest.mark.parametrize("old", MOVED)
def test_old_paths(old: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, old, MOVED[old]],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
