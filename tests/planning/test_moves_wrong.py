"""`plan` from the placement that runs: what is refused."""

from typing import Any

import numpy as np
import pytest

from eplb import Cluster, OptionError, Placement, PlacementError, plan

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
