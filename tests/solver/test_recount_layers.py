"""The improved plan: near the true optimum, never worse than its start, free of units."""

from collections.abc import Callable, Iterator

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from parts import pack, replicate
from strategies import COMPILED, Cell, cells

from eplb import Cluster, Placement, plan

pytestmark = pytest.mark.oracle


def small_layers(number: int) -> Iterator[tuple[NDArray[np.float64], Cluster]]:
    """Random layers of up to 8 experts in up to 12 slots, with a GPU's worth of experts or more."""
    rng = np.random.default_rng(0)
    kinds: tuple[Callable[[int], NDArray[np.float64]], ...] = (
        lambda size: rng.lognormal(0.0, 1.0, size),
        lambda size: rng.lognormal(0.0, 2.0, size),
        lambda size: rng.exponential(1.0, size),
        lambda size: rng.integers(1, 20, size).astype(float),
    )
    while number:
        num_gpus, slots_per_gpu, num_experts = rng.integers((2, 1, 2), (9, 7, 9)).tolist()
        if slots_per_gpu <= num_experts <= num_gpus * slots_per_gpu <= 12:
            number -= 1
            layer = kinds[number % len(kinds)](num_experts)
            yield layer[None, :], Cluster(num_gpus, 1, slots_per_gpu)


def test_flashlb_example() -> None:
    """Counts and packing have to be searched together: greedy counts stay at 232."""
    loads = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
    made = plan(loads, Cluster(num_gpus=8, slots_per_gpu=2))
    # An expert of 560 in thirds, each beside one of 10.
    assert made.peak[0] == pytest.approx(560.0 / 3.0 + 10.0, rel=1e-9)
    assert made.placement.num_duplicates == 0


@given(cells(max_gpus=4, max_slots=2, max_experts=6))
def test_the_optimum_is_between_bound_and_peak(cell: Cell) -> None:
    made = plan(cell.loads, cell.cluster)
    for layer, peak, bound in zip(cell.loads.tolist(), made.peak, made.bound, strict=True):
        best = naive.optimum(layer, cell.cluster.num_gpus, cell.cluster.slots_per_gpu)
        assert bound * (1.0 - 1e-12) <= best <= peak * (1.0 + 1e-12)


def test_small_layers_are_within_a_percent_of_the_optimum() -> None:
    above = []
    for loads, cluster in small_layers(500 if COMPILED else 50):
        made = plan(loads, cluster, threads=1)
        best = naive.optimum(loads[0].tolist(), cluster.num_gpus, cluster.slots_per_gpu)
        assert made.bound[0] * (1.0 - 1e-12) <= best <= made.peak[0] * (1.0 + 1e-12)
        above.append(made.peak[0] / best - 1.0)
    assert np.mean(np.array(above) <= 0.01) >= 0.95


def not_worse_than_packing(cell: Cell) -> None:
    num_gpus, num_experts = cell.cluster.num_gpus, cell.loads.shape[1]
    packed = pack(cell.loads, replicate(cell.loads, cell.cluster.num_slots, num_gpus), num_gpus)
    start = Placement(packed, num_experts, cell.cluster).gpu_load(cell.loads).max(axis=-1)
    # Other orders of adding give other last bits.
    assert (plan(cell.loads, cell.cluster).peak <= start * (1.0 + 1e-12)).all()


@given(cells())
def test_never_worse_than_replicate_and_pack(cell: Cell) -> None:
    not_worse_than_packing(cell)


@pytest.mark.jit
def test_never_worse_than_replicate_and_pack_at_odd_shapes() -> None:
    """Shapes at which a search over counts loses its way now and then."""
    rng = np.random.default_rng(1)
    for _ in range(300):
        num_gpus, num_experts, spare = rng.integers((2, 2, 0), (33, 100, 5)).tolist()
        slots_per_gpu = -(-num_experts // num_gpus) + spare
        if slots_per_gpu < num_experts:
            even = rng.lognormal(0.0, 1.0, (2, num_experts))
            rare = (rng.random((2, num_experts)) < 0.2) * rng.exponential(1.0, (2, num_experts))
            cluster = Cluster(num_gpus, 1, slots_per_gpu)
            not_worse_than_packing(Cell(np.vstack([even, rare]), cluster))


@given(cells(), st.integers(-40, 40))
def test_unit_of_the_loads_does_not_matter(cell: Cell, power: int) -> None:
    """Powers of two scale floats without rounding, so all that is decided stays the same."""
    unit = 2.0**power
    made, scaled = plan(cell.loads, cell.cluster), plan(cell.loads * unit, cell.cluster)
    assert scaled.placement == made.placement
    assert np.array_equal(scaled.peak, made.peak * unit)
    assert np.array_equal(scaled.bound, made.bound * unit)


@given(cells())
def test_layers_do_not_touch_each_other(cell: Cell) -> None:
    made = plan(cell.loads, cell.cluster)
    for layer in range(cell.loads.shape[0]):
        alone = plan(cell.loads[layer : layer + 1], cell.cluster)
        assert np.array_equal(alone.placement.phy2log[0], made.placement.phy2log[layer])
        assert alone.peak[0] == made.peak[layer]
        assert alone.bound[0] == made.bound[layer]
