"""The proven bound: never above the true optimum, and as tight as its three facts make it."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import lower_bound
from strategies import Cell, cells, layer_loads

from eplb import plan

pytestmark = pytest.mark.oracle


@given(st.data())
def test_bound_is_never_above_the_optimum(data: st.DataObject) -> None:
    num_gpus = data.draw(st.integers(1, 4))
    slots_per_gpu = data.draw(st.integers(1, min(6, 8 // num_gpus)))
    num_experts = data.draw(st.integers(slots_per_gpu, min(6, num_gpus * slots_per_gpu)))
    layer = data.draw(layer_loads(num_experts))
    best = naive.optimum(layer, num_gpus, slots_per_gpu)
    assert lower_bound([layer], num_gpus, slots_per_gpu)[0] <= best * (1.0 + 1e-12)


@given(cells())
def test_bound_is_at_least_the_mean_and_the_largest_replica(cell: Cell) -> None:
    num_gpus, num_slots = cell.cluster.num_gpus, cell.cluster.num_slots
    bounds = lower_bound(cell.loads, num_gpus, cell.cluster.slots_per_gpu)
    for layer, bound in zip(cell.loads.tolist(), bounds, strict=True):
        counts = naive.adams(layer, num_slots, num_slots)
        assert bound >= sum(layer) / num_gpus * (1.0 - 1e-12)
        assert bound >= max(load / count for load, count in zip(layer, counts, strict=True))


@given(cells())
def test_bound_is_never_above_a_plan(cell: Cell) -> None:
    made = plan(cell.loads, cell.cluster)
    bounds = lower_bound(cell.loads, cell.cluster.num_gpus, cell.cluster.slots_per_gpu)
    assert (bounds <= made.peak * (1.0 + 1e-12)).all()


@pytest.mark.parametrize(
    ("layer", "num_gpus", "slots_per_gpu"),
    [
        # Two of three heavy experts must meet.
        ([10.0, 10.0, 10.0, 1.0], 2, 2),
        ([9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0], 4, 2),
        ([10.0] * 4 + [1.0] * 5, 3, 3),
    ],
)
def test_company_of_large_replicas_counts(
    layer: list[float], num_gpus: int, slots_per_gpu: int
) -> None:
    counts = naive.adams(layer, num_gpus * slots_per_gpu, num_gpus)
    largest = max(load / count for load, count in zip(layer, counts, strict=True))
    simple = max(sum(layer) / num_gpus, largest)
    bound = lower_bound([layer], num_gpus, slots_per_gpu)[0]
    best = naive.optimum(layer, num_gpus, slots_per_gpu)
    assert 1.05 * simple < bound <= best * (1.0 + 1e-12)


def test_no_load_bounds_nothing() -> None:
    assert lower_bound(np.zeros((2, 5)), 3, 2).tolist() == [0.0, 0.0]
