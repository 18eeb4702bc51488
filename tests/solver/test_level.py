"""The most even loads of GPUs, against a plain oracle that tries every set of GPUs."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import layer_loads

from eplb.solver.level import _level_layers
from eplb.solver.packing import Gpus

pytestmark = pytest.mark.oracle


@given(st.data())
def test_gpus_are_as_even_as_a_placement_allows(data: st.DataObject) -> None:
    num_gpus = data.draw(st.integers(1, 5))
    slots_per_gpu = data.draw(st.integers(1, 4))
    num_slots = num_gpus * slots_per_gpu
    num_experts = data.draw(st.integers(1, num_slots))
    others = st.integers(-1, num_experts - 1)
    more = data.draw(st.lists(others, min_size=num_slots, max_size=num_slots))
    row = data.draw(st.permutations([*range(num_experts), *more][:num_slots]))
    load = data.draw(layer_loads(num_experts))
    only_peak = data.draw(st.booleans())
    levels, split = np.empty((1, 1, num_gpus)), np.empty((1, 1, num_slots))
    bounds = np.empty((1, 1))
    loads, rows = np.array([[load]]), np.array([row])
    pace = np.array([1.0 if data.draw(st.booleans()) else 0.25 + gpu for gpu in range(num_gpus)])
    gpus = Gpus(np.arange(num_gpus + 1) * slots_per_gpu, pace)
    _level_layers(np.arange(1), loads, rows, gpus, only_peak, levels, split, bounds)

    expected = naive.most_even(load, row, pace.tolist())
    peak = max(expected.values())
    by_split = np.zeros(num_gpus)
    shares = np.zeros(num_experts)
    for slot, expert in enumerate(row):
        if expert >= 0:
            by_split[slot // slots_per_gpu] += load[expert] * split[0, 0, slot]
            shares[expert] += split[0, 0, slot]
        else:
            assert split[0, 0, slot] == 0.0
    assert split.min() >= 0.0
    assert shares == pytest.approx(np.ones(num_experts), abs=1e-12)
    by_split /= pace
    assert by_split == pytest.approx(levels[0, 0], rel=1e-12, abs=1e-12 * peak)
    assert by_split.max() == pytest.approx(peak, rel=1e-11)
    assert bounds[0, 0] == pytest.approx(peak, rel=1e-11)
    if not only_peak:
        level = [expected.get(gpu, 0.0) for gpu in range(num_gpus)]
        assert by_split == pytest.approx(level, rel=1e-11, abs=1e-11 * peak)
