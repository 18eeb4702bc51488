"""`plan` from the placement that runs: the same bytes anywhere, and what is refused."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb import Cluster, OptionError, Placement, PlacementError, plan

PRINT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_moves_same import digest
print(digest(), end="")
"""


def digest(threads: int | None = None) -> str:
    """What plans of many kinds come to."""
    rng = np.random.default_rng(0)
    total = hashlib.sha256()
    for num_windows, num_groups, cluster, ties in (
        (1, 1, Cluster(8, 1, 5), False),
        (1, 1, Cluster(8, 1, 5), True),
        (1, 8, Cluster(8, 4, 5), False),
        (3, 1, Cluster(6, 1, 6), False),
        (2, 4, Cluster(12, 2, 3), True),
    ):
        loads = rng.lognormal(size=(num_windows + 1, 7, 32))
        if ties:
            loads = np.floor(loads)
        current = plan(loads[-1], Cluster(8, 1, 5)).placement
        for more in ({}, {"max_moves": 140}, {"max_moves": 180, "effort": "fast"}):
            how: dict[str, Any] = {"num_groups": num_groups, "threads": threads, **more}
            made = plan(loads[:-1], cluster, current=current, **how)
            for array in (made.placement.phy2log, made.peak, made.bound):
                total.update(array.tobytes())
            total.update(str(made.moves).encode())
    return total.hexdigest()


def test_any_number_of_threads() -> None:
    assert len({digest(threads) for threads in (1, 2, 5, None)}) == 1


@pytest.mark.long
def test_any_processor() -> None:
    """Compiled for every feature of this processor, and for none of them."""
    old = {"NUMBA_CPU_NAME": "generic", "OPENBLAS_CORETYPE": "Prescott"}
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", PRINT, str(here)],
        env=os.environ | old,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == digest()


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"current": 3}, PlacementError, "current is int: give a Placement"),
    ({"current": [[0, 1]]}, PlacementError, "current is list: give a Placement"),
    ({"current": np.zeros((2, 12), int)}, PlacementError, "current is ndarray: give a Placement"),
    (
        {"current": Placement.contiguous(3, 8, Cluster(4, 1, 3))},
        PlacementError,
        "current has 3 layers of 8 experts, the loads have 2 of 8",
    ),
    (
        {"current": Placement.contiguous(2, 7, Cluster(4, 1, 3))},
        PlacementError,
        "current has 2 layers of 7 experts, the loads have 2 of 8",
    ),
    ({"max_moves": -1}, OptionError, "max_moves is -1: give 0 or more"),
    ({"max_moves": 1.5}, OptionError, "max_moves is 1.5: give a whole number"),
    ({"max_moves": float("nan")}, OptionError, "max_moves is nan: give a whole number"),
    ({"max_moves": "3"}, OptionError, "max_moves is '3': give a whole number"),
    ({"move_cost": float("nan")}, OptionError, "move_cost is nan: give 0 or more"),
    ({"move_cost": float("inf")}, OptionError, "move_cost is inf: give 0 or more"),
    ({"move_cost": -0.5}, OptionError, "move_cost is -0.5: give 0 or more"),
    ({"move_cost": "much"}, OptionError, "move_cost is 'much': give 0 or more"),
    ({"move_cost": 10**400}, OptionError, "give 0 or more"),
    ({"current": None, "max_moves": 3}, OptionError, "need a current placement"),
    ({"current": None, "move_cost": 3.0}, OptionError, "need a current placement"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    cluster = Cluster(4, 1, 3)
    loads = np.random.default_rng(0).lognormal(size=(2, 8))
    how = {"current": Placement.contiguous(2, 8, cluster), **wrong}
    with pytest.raises(error, match=message) as caught:
        plan(loads, cluster, **how)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    cluster = Cluster(4, 1, 3)
    loads = np.random.default_rng(0).lognormal(size=(2, 8))
    current = Placement.contiguous(2, 8, cluster)
    made = plan(loads, cluster, current=current, max_moves=np.int64(4), move_cost=np.float32(0.1))
    assert made.moves <= 4
    assert plan(loads, cluster, current=current, max_moves=10**30).moves > 4
