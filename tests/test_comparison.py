"""Comparisons and sweeps: the same figures as single replays, wherever the work is done."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

import eplb
from eplb import Cluster, ClusterError, LoadTrace, PolicyError
from eplb.comparison import score

CLUSTER = Cluster(num_gpus=4, slots_per_gpu=3)
LOADS = np.random.default_rng(0).lognormal(size=(1, 2, 8)) * np.random.default_rng(1).lognormal(
    0.0, 0.3, size=(9, 2, 8)
)
TRACE = LoadTrace(LOADS, model="gpt-oss-20b")


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from run to run."""
    return {name: value for name, value in row.items() if not name.endswith("_ms")}


def test_each_policy_as_alone() -> None:
    found = eplb.compare(TRACE, CLUSTER, ["contiguous", "deepseek", "eplb"], every=2, history=3)
    assert (found.windows, found.wanted) == (8, 8)
    for row in found.scores:
        alone = eplb.replay(TRACE, CLUSTER, row.policy, every=2, history=3)
        assert row.balancedness == alone.average()
        assert row.pooled == alone.pooled()
        assert row.worst_window == pytest.approx(np.nanmean(alone.balancedness, axis=1).min())
        assert row.plans == 4
        assert row.moved == pytest.approx(alone.moves[2::2].sum() / 3 / (2 * 12))
        assert row.bytes_per_plan is not None
        assert alone.bytes_moved is not None
        assert row.bytes_per_plan == pytest.approx(alone.bytes_moved[2::2].sum() / 3)
        assert row.balancedness_interval is not None
        interval = row.balancedness_interval
        assert interval.low <= row.balancedness <= interval.high
        gain = row.balancedness - found.scores[0].balancedness
        assert row.gain == pytest.approx(gain)
        assert row.gain_interval is not None
        assert row.gain_interval.low <= gain <= row.gain_interval.high


def test_stopped_after_any_window_all_have_the_same_windows() -> None:
    found = eplb.compare(
        TRACE, CLUSTER, ["contiguous", "eplb"], progress=lambda done, wanted: done < min(3, wanted)
    )
    assert (found.windows, found.wanted) == (3, 8)
    assert [replay.windows.tolist() for replay in found.replays] == [[1, 2, 3]] * 2
    first = eplb.compare(TRACE.pick(range(4)), CLUSTER, ["contiguous", "eplb"])
    for part, whole in zip(found.scores, first.scores, strict=True):
        assert part.balancedness == whole.balancedness
        assert part.balancedness_interval is None  # three windows are too few


def test_json_has_the_figures_and_no_records() -> None:
    found = eplb.compare(TRACE, CLUSTER, {"mine": lambda *_, **__: None}, num_groups=2)
    told = json.loads(json.dumps(found.to_json()))
    assert "replays" not in told
    assert told["scores"][0]["policy"] == "mine"
    assert told["scores"][0]["balancedness"] == found.scores[0].balancedness
    assert (told["gpus"], told["slots"], told["groups"], told["experts"]) == (4, 12, 2, 8)


def test_of_one_plan_nothing_can_be_said_of_moves() -> None:
    assert score(eplb.replay(TRACE, CLUSTER, "deepseek", every=8)).moved is None


CLUSTERS = [Cluster(gpus, 1, 8 // gpus + more) for gpus in (2, 4) for more in (1, 2)]
POLICIES = ["deepseek", "eplb"]


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    rows = []
    for cluster in CLUSTERS:
        for every in (1, 4):
            found = eplb.compare(TRACE, cluster, POLICIES, every=every)
            for row in found.scores:
                place = {
                    "gpus": cluster.num_gpus,
                    "nodes": 1,
                    "slots": cluster.num_slots,
                    "spare": cluster.num_slots - 8,
                    "every": every,
                }
                rows.append({**place, **timeless(json.loads(json.dumps(vars(row), default=vars)))})
    return rows


def swept(**options: Any) -> list[dict[str, Any]]:
    rows = eplb.sweep(TRACE, CLUSTERS, POLICIES, every=(1, 4), **options)
    return [timeless(row.to_json()) for row in rows]


@pytest.mark.jit
@pytest.mark.parametrize("jobs", [None, 1, 2])
def test_sweep_is_the_comparisons(expected: list[dict[str, Any]], jobs: int | None) -> None:
    assert swept(jobs=jobs) == expected


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A real Dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="Dask runs the sweep")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.jit
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sweep_on_a_dask_cluster(expected: list[dict[str, Any]], dask: Any) -> None:
    with joblib.parallel_config(backend="dask"):
        assert swept() == expected
    ran = dask.run(lambda: "eplb.sweeps" in __import__("sys").modules)
    assert any(ran.values()), "a worker did the work"


PEER = """
import os
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    with open(os.environ["EPLB_TEST_LOG"], "a") as log:
        log.write(f"{os.getpid()}\\n")
    return (weight.new_zeros(weight.shape[0], num_replicas).long()
            + (weight.new_ones(num_replicas).cumsum(0).long() - 1) % weight.shape[1])
"""


@pytest.mark.jit
def test_files_are_loaded_where_the_work_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPLB_TEST_LOG", str(tmp_path / "log"))
    (tmp_path / "peer.py").write_text(PEER)
    joblib.externals.loky.get_reusable_executor().shutdown()  # workers keep their environment
    rows = eplb.sweep(TRACE, CLUSTERS[:2], [str(tmp_path / "peer.py"), "contiguous"], jobs=2)
    assert [row.score.policy for row in rows] == ["peer", "contiguous"] * 2
    assert rows[0].score.balancedness == rows[1].score.balancedness
    assert str(__import__("os").getpid()) not in (tmp_path / "log").read_text().split()


def test_what_is_wrong_is_told_before_the_work() -> None:
    with pytest.raises(PolicyError, match="no policy is called 'best'"):
        swept_one(["eplb", "best"])
    with pytest.raises(ClusterError, match="jobs is 0: give 1 or more"):
        swept_one(["eplb"], jobs=0)


def swept_one(policies: list[str], **options: Any) -> None:
    eplb.sweep(TRACE, [CLUSTER], policies, **options)
