"""Packing: balanced largest differencing against the plain method, and experts parted on GPUs."""

import naive
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from parts import pack, replicate
from strategies import Cell, cells, layer_loads

pytestmark = pytest.mark.oracle


def on_gpus(phy2log: NDArray[np.int64], num_gpus: int) -> list[list[int]]:
    """The experts of each GPU of one layer."""
    experts: list[list[int]] = phy2log.reshape(num_gpus, -1).tolist()
    return experts


@given(cells())
def test_packing_is_the_plain_one_with_experts_parted(cell: Cell) -> None:
    num_gpus = cell.cluster.num_gpus
    counts = replicate(cell.loads, cell.cluster.num_slots, num_gpus)
    packed = pack(cell.loads, counts, num_gpus)
    assert packed.dtype == np.int64
    for layer, count, slots in zip(cell.loads.tolist(), counts.tolist(), packed, strict=True):
        expected = naive.bldm(layer, count, num_gpus)
        flat = [expert for experts in expected for expert in experts]
        twice = naive.num_duplicates(flat, num_gpus)
        found = on_gpus(slots, num_gpus)
        changed = sum(sorted(a) != sorted(b) for a, b in zip(expected, found, strict=True))
        # One swap between two GPUs parts each pair; where none can, all are dealt out afresh.
        assert changed <= 2 * twice or found == naive.dealt(layer, count, num_gpus)
        if twice == 0:
            assert found == expected
        assert naive.logcnt(slots.tolist(), len(layer)) == count
        assert naive.num_duplicates(slots.tolist(), num_gpus) == 0


@given(st.data())
def test_any_counts_are_placed_with_no_expert_twice(data: st.DataObject) -> None:
    """Counts far from Adams': many replicas of light experts, or of all of them."""
    num_gpus = data.draw(st.integers(1, 6))
    counts = data.draw(st.lists(st.integers(1, num_gpus), min_size=1, max_size=8))
    # Single replicas fill the last row.
    counts += [1] * (-sum(counts) % num_gpus)
    layer = data.draw(layer_loads(len(counts)))
    slots = pack([layer], [counts], num_gpus)[0].tolist()
    assert naive.logcnt(slots, len(layer)) == counts
    assert naive.num_duplicates(slots, num_gpus) == 0


@given(st.data())
def test_two_slots_on_a_gpu_are_packed_as_well_as_can_be(data: st.DataObject) -> None:
    """Where no expert has to be parted; alone among the packings, pairs are easy."""
    num_gpus = data.draw(st.integers(1, 4))
    layer = data.draw(layer_loads(2 * num_gpus))
    counts = [1] * (2 * num_gpus)
    slots = pack([layer], [counts], num_gpus)[0].tolist()
    peak = max(naive.gpu_loads(slots, layer, num_gpus))
    assert peak == pytest.approx(naive.fixed_counts_optimum(layer, counts, num_gpus), rel=1e-12)


ANY_LOAD = st.one_of(
    st.floats(0.0, 1e100),
    st.sampled_from([0.0, -0.0, 5e-324, 2.2e-308, 1e100, 1.0]),
    # Keys that differ in the lowest bits alone.
    st.integers(0, 9).map(lambda i: 1.0 + i * 2.0**-52),
)


@given(st.lists(ANY_LOAD, min_size=1, max_size=300))
@example([0.0, 1.0, -0.0, 0.0, -0.0])
@example([1.0, 1.0 + 2.0**-52, 1.0, 1.0 + 2.0**-51])
def test_one_slot_on_a_gpu_shows_the_order(layer: list[float]) -> None:
    """GPU i holds the i-th largest: experts by falling load, ties by lowest index."""
    counts = np.ones((1, len(layer)), np.int64)
    assert pack([layer], counts, len(layer))[0].tolist() == naive.falling(layer)


def test_many_gpus() -> None:
    """Rows longer than those that are sorted by insertion."""
    rng = np.random.default_rng(5)
    for kind in (rng.exponential(size=420), rng.integers(0, 6, 420).astype(float)):
        counts = np.ones((1, 420), np.int64)
        packed = pack([kind], counts, 140)
        assert on_gpus(packed[0], 140) == naive.bldm(kind.tolist(), [1] * 420, 140)
