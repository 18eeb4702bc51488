"""The exact optimum of small layers, against the plain one that tries everything."""

import sys
from typing import Any

import naive
import numpy as np
import pytest

from eplb import Cluster, ClusterError, LoadsError, MissingExtraError, UnsolvedError, plan
from eplb.planning.exact import exact

pytest.importorskip("highspy", reason="the exact optimum needs highspy")


def test_peaks_are_optimal() -> None:
    rng = np.random.default_rng(4)
    shapes = [(4, 2, 3), (6, 4, 2), (5, 3, 3), (3, 3, 1), (6, 2, 4), (3, 2, 3)]
    for num_experts, num_gpus, slots_per_gpu in shapes:
        cluster = Cluster(num_gpus, 1, slots_per_gpu)
        loads = np.vstack(
            [
                rng.lognormal(0.0, 1.0, (2, num_experts)) * 1e6,
                rng.integers(0, 5, (1, num_experts)),
                np.ones((1, num_experts)),
            ]
        )
        placement = exact(loads, cluster)
        assert placement.num_duplicates == 0
        assert placement.cluster == cluster
        peaks = placement.gpu_load(loads).max(axis=-1)
        for layer, peak in zip(loads.tolist(), peaks, strict=True):
            best = naive.optimum(layer, num_gpus, slots_per_gpu)
            assert peak == pytest.approx(best, rel=1e-6)


def test_optimum_is_between_bound_and_plan() -> None:
    rng = np.random.default_rng(0)
    loads = rng.lognormal(0.0, 1.0, (12, 6))
    cluster = Cluster(4, 1, 2)
    peaks = exact(loads, cluster).gpu_load(loads).max(axis=-1)
    made = plan(loads, cluster)
    assert (peaks <= made.peak * (1.0 + 1e-6)).all()
    assert (peaks >= made.bound * (1.0 - 1e-6)).all()


def test_no_load() -> None:
    placement = exact(np.zeros((1, 4)), Cluster(3, 1, 2))
    assert sorted(placement.logcnt[0].tolist()) == [1, 1, 2, 2]


def test_nodes_are_kept_in_the_cluster() -> None:
    cluster = Cluster(4, 2, 1)
    assert exact([[3.0, 2.0]], cluster).cluster == cluster


def test_time_limit() -> None:
    loads = np.random.default_rng(1).lognormal(0.0, 1.0, (1, 40))
    with pytest.raises(UnsolvedError) as raised:
        exact(loads, Cluster(16, 1, 4), time_limit=0.05)
    assert str(raised.value) == (
        "no proven optimum of a layer of 40 experts in 64 slots within 0.05 s: "
        "raise time_limit, or use the bound of eplb.plan"
    )


@pytest.mark.parametrize(
    ("loads", "cluster", "error", "message"),
    [
        (
            [[1.0, 2.0]],
            Cluster(2, 1, 3),
            ClusterError,
            "3 slots on a GPU are more than 2 experts: "
            "at most 2 can be filled with no expert twice",
        ),
        (
            [[1.0] * 5],
            Cluster(2, 1, 2),
            ClusterError,
            "4 slots do not hold 5 experts: give each of the 2 GPUs at least 3 slots, 6 in all",
        ),
        (
            [[1.0, -1.0]],
            Cluster(2, 1, 1),
            LoadsError,
            "loads[0, 1] is -1.0: loads are numbers of tokens, from 0 to 1e+100",
        ),
    ],
)
def test_what_cannot_be_solved(
    loads: Any, cluster: Cluster, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        exact(loads, cluster)
    assert str(raised.value) == message


def test_without_highspy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtraError) as raised:
        exact([[1.0, 2.0]], Cluster(2, 1, 1))
    assert (
        str(raised.value)
        == "the exact optimum needs highspy: pip install highspy, or eplb with its extra 'exact'"
    )
