"""Replica counts: Adams' apportionment against the plain one, its ties, its limits."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import replicate
from strategies import layer_loads, loads

pytestmark = pytest.mark.oracle


@given(st.data())
def test_counts_are_those_of_the_plain_method(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 12))
    max_copies = data.draw(st.integers(1, 9))
    num_slots = data.draw(st.integers(num_experts, num_experts * max_copies))
    layers = data.draw(loads(num_experts))
    counts = replicate(layers, num_slots, max_copies)
    expected = [naive.adams(layer, num_slots, max_copies) for layer in layers.tolist()]
    assert counts.dtype == np.int64
    assert counts.tolist() == expected


@given(st.data())
def test_no_counts_have_a_smaller_largest_replica(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 5))
    max_copies = data.draw(st.integers(1, 4))
    num_slots = data.draw(st.integers(num_experts, min(9, num_experts * max_copies)))
    layer = data.draw(layer_loads(num_experts))

    def largest(counts: tuple[int, ...]) -> float:
        return max(load / count for load, count in zip(layer, counts, strict=True))

    counts = replicate([layer], num_slots, max_copies)[0]
    every = naive.replica_counts(num_experts, num_slots, max_copies)
    assert largest(tuple(counts.tolist())) == min(map(largest, every))


@pytest.mark.parametrize(
    ("layer", "num_slots", "max_copies", "expected"),
    [
        # Ties go to the lowest index ...
        ([5.0, 5.0, 5.0, 5.0], 6, 4, [2, 2, 1, 1]),
        # ... but first to the expert with fewer replicas: 6 / 2 and 3 / 1 tie.
        ([6.0, 3.0], 4, 4, [2, 2]),
        ([3.0, 6.0], 3, 4, [1, 2]),
        # Experts without load share what is left evenly.
        ([0.0, 0.0, 0.0], 7, 7, [3, 2, 2]),
        ([0.0, 8.0, 0.0], 7, 3, [2, 3, 2]),
        # -0 is no load either.
        ([-0.0, 0.0], 3, 3, [2, 1]),
        # One expert, and as many slots as experts.
        ([7.0], 4, 4, [4]),
        ([9.0, 1.0], 2, 1, [1, 1]),
    ],
)
def test_ties_and_limits(
    layer: list[float], num_slots: int, max_copies: int, expected: list[int]
) -> None:
    assert replicate([layer], num_slots, max_copies).tolist() == [expected]
