"""Scores against their formulas, computed in plain Python on real loads."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded import DEEPSEEK_V3, load_recorded

from eplb import Cluster, OptionError, Placement
from eplb.balance import Average, balancedness, ratios
from eplb.solver.greedy import greedy

CLUSTER = Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)


def plain_loads(
    placement: Placement, loads: NDArray[np.float64]
) -> tuple[list[list[float]], list[list[float]]]:
    """Loads of GPUs and of slots, layer by layer, as the research evaluator adds them up."""
    of_gpus, of_slots = [], []
    slots_per_gpu = placement.cluster.slots_per_gpu
    for layer, row in enumerate(loads.tolist()):
        slots = placement.phy2log[layer].tolist()
        load = [row[expert] / slots.count(expert) for expert in slots]
        of_slots.append(load)
        of_gpus.append(
            [
                math.fsum(load[begin : begin + slots_per_gpu])
                for begin in range(0, len(load), slots_per_gpu)
            ]
        )
    return of_gpus, of_slots


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("name", DEEPSEEK_V3[:3])
def test_formulas_on_recorded_loads(traces: Path, name: str) -> None:
    loads = load_recorded(traces, name)
    placement = Placement(greedy(loads, CLUSTER, 8, swaps=False), 256, CLUSTER)
    other = loads[:, ::-1]  # what the placement was not made for
    gpus, slots = plain_loads(placement, other)
    loaded = [load for load in gpus if max(load) > 0.0]
    assert len(loaded) == 58
    expected = mean([mean(load) / max(load) for load in loaded])
    assert placement.balancedness(other) == pytest.approx(expected, abs=1e-9)
    for load, rows in ((placement.gpu_load(other), gpus), (placement.slot_load(other), slots)):
        expected = math.fsum(map(mean, rows)) / math.fsum(map(max, rows))
        assert balancedness(load, "pooled") == pytest.approx(expected, abs=1e-9)
    expected = math.fsum(map(mean, gpus)) / math.fsum(map(max, gpus))
    assert placement.balancedness(other, average="pooled") == pytest.approx(expected, abs=1e-9)


def test_layers_without_load_have_no_ratio() -> None:
    load = np.array([[0.0, 0.0], [1.0, 3.0]])
    assert np.isnan(ratios(load)[0])
    assert ratios(load)[1] == pytest.approx(2.0 / 3.0)
    assert balancedness(load) == balancedness(load, "pooled") == pytest.approx(2.0 / 3.0)


def test_where_nothing_waits_balance_is_perfect() -> None:
    averages: tuple[Average, ...] = ("mean", "pooled")
    for average in averages:
        assert balancedness(np.zeros((3, 4)), average) == 1.0
        # Their mean is a rounding away from them.
        for size in range(2, 40):
            assert 1.0 - 1e-15 <= balancedness(np.full((3, size), 0.1), average) <= 1.0


def test_other_averages() -> None:
    with pytest.raises(OptionError, match="average is 'median': give 'mean' or 'pooled'"):
        balancedness(np.ones((1, 2)), "median")  # type: ignore[arg-type]
