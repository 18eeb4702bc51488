"""Intervals: as wide as they should be, by drawing many series whose mean is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from eplb.balance import block_length, difference_interval, ratio_interval


def series(rng: np.random.Generator, length: int, memory: float) -> NDArray[np.float64]:
    """A series around 0.9 whose neighbours are alike to the degree `memory`."""
    noise = rng.normal(size=length + 50)
    values = np.empty_like(noise)
    values[0] = noise[0]
    for step in range(1, noise.size):
        values[step] = memory * values[step - 1] + np.sqrt(1.0 - memory**2) * noise[step]
    return 0.9 + 0.02 * values[50:]


@pytest.mark.parametrize(("memory", "least"), [(0.0, 0.9), (0.5, 0.88), (0.8, 0.84)])
def test_holds_the_mean_about_as_often_as_it_says(memory: float, least: float) -> None:
    rng = np.random.default_rng(1)
    ones = np.ones(120)
    held = 0
    for _ in range(150):
        found = ratio_interval(series(rng, 120, memory), ones)
        assert found is not None
        held += found.low <= 0.9 <= found.high
    assert least <= held / 150 <= 0.99


def test_holds_it_where_each_placement_serves_many_windows() -> None:
    rng = np.random.default_rng(7)
    every = 16
    held = unaware = 0
    for _ in range(150):
        plans = np.repeat(rng.normal(size=9), every)[rng.integers(every) :][:120]
        values = 0.9 + 0.02 * plans + 0.006 * rng.normal(size=120)
        found = ratio_interval(values, np.ones(120), every)
        assert found is not None
        held += found.low <= 0.9 <= found.high
        found = ratio_interval(values, np.ones(120))
        assert found is not None
        unaware += found.low <= 0.9 <= found.high
    assert held / 150 >= 0.82
    assert held >= unaware


def test_few_blocks_widen_it() -> None:
    values = series(np.random.default_rng(8), 400, 0.0)
    few, many = (ratio_interval(values, np.ones(400), every) for every in (100, 30))
    assert few is not None
    assert many is not None
    assert few.high - few.low > 1.3 * (many.high - many.low)


def test_likeness_of_neighbours_widens_it() -> None:
    ones = np.ones(1000)
    ordered = np.sort(series(np.random.default_rng(2), 1000, 0.0))
    mixed = np.random.default_rng(3).permutation(ordered)
    widths = []
    for values in (mixed, ordered):
        found = ratio_interval(values, ones)
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] > 2.0 * widths[0]


def test_windows_count_by_their_denominator() -> None:
    found = ratio_interval(
        np.array([1.0, 1.0, 0.0, 50.0] * 10), np.array([1.0, 1.0, 0.0, 100.0] * 10)
    )
    assert found is not None
    assert found.low < 52.0 / 102.0 < found.high
    assert found.high < 0.6


def test_what_is_hard_for_both_does_not_blur_the_difference() -> None:
    rng = np.random.default_rng(4)
    one = series(rng, 60, 0.8)
    ones = np.ones(60)
    alone, together = ratio_interval(one, ones), difference_interval(one, ones, one - 0.01, ones)
    assert alone is not None
    assert together is not None
    assert together.low == pytest.approx(0.01)
    assert together.high == pytest.approx(0.01)
    assert alone.high - alone.low > 0.001


def test_nothing_is_said_of_few_windows_or_of_no_load() -> None:
    assert ratio_interval(np.ones(15), np.ones(15)) is None
    assert ratio_interval(np.ones(36), np.ones(36)) is not None
    assert ratio_interval(np.ones(63), np.ones(63), 16) is None  # fewer than 4 blocks
    assert ratio_interval(np.ones(64), np.ones(64), 16) is not None
    assert ratio_interval(np.zeros(40), np.zeros(40)) is None
    ones = np.ones(15)
    assert difference_interval(ones, ones, ones, ones) is None


def test_the_same_every_time() -> None:
    values = series(np.random.default_rng(5), 40, 0.3)
    assert ratio_interval(values, np.ones(40)) == ratio_interval(values, np.ones(40))
    assert [block_length(n) for n in (1, 16, 100, 1600)] == [2, 6, 15, 60]
    assert block_length(100, every=32) == 32
