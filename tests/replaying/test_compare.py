"""Comparisons and sweeps: the same figures as single replays, wherever the work is done."""

import errno
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from command_line import run

import eplb
from eplb import Cluster, LoadTrace, PolicyError
from eplb.errors import OptionError
from eplb.replaying.compare import score
from eplb.replaying.policies import POLICIES
from eplb.replaying.sweep import SweepRow

CLUSTER = Cluster(num_gpus=4, slots_per_gpu=3)
LOADS = np.random.default_rng(0).lognormal(size=(1, 2, 8)) * np.random.default_rng(1).lognormal(
    0.0, 0.3, size=(41, 2, 8)
)
TRACE = LoadTrace(LOADS, model="gpt-oss-20b")


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from run to run."""
    return {name: value for name, value in row.items() if not name.endswith("_ms")}


def test_each_policy_as_alone() -> None:
    found = eplb.compare(TRACE, CLUSTER, ["contiguous", "deepseek", "eplb"], every=2, history=3)
    assert (found.windows, found.wanted) == (40, 40)
    for row in found.scores:
        alone = eplb.replay(TRACE, CLUSTER, row.policy, every=2, history=3)
        assert row.balancedness == alone.average()
        assert row.pooled == alone.pooled()
        assert row.worst_window == pytest.approx(np.nanmean(alone.balancedness, axis=1).min())
        assert row.plans == 20
        assert row.moved == pytest.approx(alone.moves[2::2].sum() / 19 / (2 * 12))
        assert row.bytes_per_plan is not None
        assert alone.bytes_moved is not None
        assert row.bytes_per_plan == pytest.approx(alone.bytes_moved[2::2].sum() / 19)
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
    assert (found.windows, found.wanted) == (3, 40)
    assert [replay.windows.tolist() for replay in found.replays] == [[1, 2, 3]] * 2
    first = eplb.compare(TRACE.pick(range(4)), CLUSTER, ["contiguous", "eplb"])
    for part, whole in zip(found.scores, first.scores, strict=True):
        assert part.balancedness == whole.balancedness
        assert part.balancedness_interval is None  # three windows are too few


def test_only_false_stops() -> None:
    told: list[int] = []
    found = eplb.compare(
        TRACE, CLUSTER, "contiguous", progress=lambda done, _wanted: told.append(done)
    )
    assert found.windows == len(told) == 40


def failing_at(window: int) -> Any:
    asked: list[int] = []

    def policy(*_: Any, **__: Any) -> None:
        asked.append(1)
        if len(asked) == window:
            raise ValueError("late")

    return policy


def test_a_late_failure_keeps_what_was_done() -> None:
    failures: list[eplb.EplbError] = []
    policies = {"contiguous": POLICIES["contiguous"], "late": failing_at(5)}
    found = eplb.compare(TRACE, CLUSTER, policies, failed=failures.append)
    assert [replay.windows.tolist() for replay in found.replays] == [[1, 2, 3, 4]] * 2
    assert [str(error) for error in failures] == [
        "the policy fails before window 5: ValueError: late"
    ]
    with pytest.raises(PolicyError, match="before window 5"):
        eplb.compare(TRACE, CLUSTER, {"late": failing_at(5)})
    with pytest.raises(PolicyError, match="before window 1"):
        eplb.compare(TRACE, CLUSTER, {"late": failing_at(1)}, failed=failures.append)


def test_one_cadence_is_one_block() -> None:
    for every, known in ((10, True), (11, False)):
        (row,) = eplb.compare(TRACE, CLUSTER, ["deepseek"], every=every).scores
        assert (row.balancedness_interval is not None) == known


def test_the_first_plan_is_timed_apart() -> None:
    def policy(loads: Any, *_: Any, **__: Any) -> None:
        time.sleep(0.05 if len(loads) == 1 else 0.0)

    row = score(eplb.replay(TRACE.pick(range(4)), CLUSTER, policy))
    assert row.first_plan_ms == row.longest_plan_ms >= 50.0
    assert row.plan_ms < 25.0


def test_json_has_the_figures_and_no_records() -> None:
    found = eplb.compare(TRACE, CLUSTER, {"mine": lambda *_, **__: None}, num_groups=2)
    told = json.loads(json.dumps(found.to_json()))
    assert "replays" not in told
    (windows,) = told["by_window"]
    assert windows["window"] == list(range(1, 41))
    assert np.mean(windows["balancedness"]) == pytest.approx(found.scores[0].balancedness)
    assert windows["moves"] == [0] * 40
    assert len(windows["plan_ms"]) == 40
    assert told["scores"][0]["policy"] == "mine"
    assert told["scores"][0]["balancedness"] == found.scores[0].balancedness
    assert (told["gpus"], told["slots"], told["groups"], told["experts"]) == (4, 12, 2, 8)


def test_of_one_plan_nothing_can_be_said_of_moves() -> None:
    assert score(eplb.replay(TRACE, CLUSTER, "deepseek", every=40)).moved is None


CLUSTERS = [Cluster(gpus, 1, 8 // gpus + more) for gpus in (2, 4) for more in (1, 2)]
NAMES = ["deepseek", "eplb"]


@pytest.fixture(scope="module")
def expected() -> list[dict[str, Any]]:
    rows = []
    for cluster in CLUSTERS:
        for every in (1, 4):
            found = eplb.compare(TRACE, cluster, NAMES, every=every)
            for row in found.scores:
                place = {
                    "gpus": cluster.num_gpus,
                    "nodes": 1,
                    "slots": cluster.num_slots,
                    "spare": cluster.num_slots - 8,
                    "every": every,
                    "dispatch": "even",
                    "ordered": True,
                }
                rows.append({**place, **timeless(json.loads(json.dumps(vars(row), default=vars)))})
    return rows


def swept(**options: Any) -> list[dict[str, Any]]:
    rows = eplb.sweep(TRACE, CLUSTERS, NAMES, every=(1, 4), **options)
    return [timeless(row.to_json()) for row in rows]


@pytest.mark.parametrize("jobs", [None, 1, 2])
def test_sweep_is_the_comparisons(expected: list[dict[str, Any]], jobs: int | None) -> None:
    assert swept(jobs=jobs) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["multiprocessing", "threading"])
def test_sweep_on_backends_of_other_kinds(expected: list[dict[str, Any]], backend: str) -> None:
    with joblib.parallel_config(backend=backend, n_jobs=2):
        assert swept() == expected


@pytest.fixture(scope="module")
def dask() -> Iterator[Any]:
    """A real Dask cluster of two processes on this machine."""
    distributed = pytest.importorskip("distributed", reason="Dask runs the sweep")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sweep_on_a_dask_cluster(expected: list[dict[str, Any]], dask: Any) -> None:
    with joblib.parallel_config(backend="dask", scatter=[TRACE]):
        assert swept() == expected
    ran = dask.run(lambda: "eplb.replaying.sweep" in __import__("sys").modules)
    assert any(ran.values()), "a worker did the work"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sweep_by_the_address_of_a_dask_scheduler(
    expected: list[dict[str, Any]], dask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = dask.scheduler.address
    assert swept(scheduler=address) == expected
    path = tmp_path / "trace.npz"
    eplb.save_trace(TRACE, path)
    asked = ("sweep", path, "--gpus", 4, "--policy", "deepseek,eplb", "--json")
    there, here = (
        [timeless(row) for row in json.loads(run(*asked, *where).stdout)]
        for where in (("--scheduler", address), ("--jobs", 1))
    )
    assert there == here
    monkeypatch.setattr("eplb.replaying.sweep.__version__", "0.0.9")
    with pytest.raises(OptionError, match=r"says 'eplb .*': install eplb 0\.0\.9 with its extra"):
        swept(scheduler=address)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:1", "ConnectionRefusedError"),
        ("host", "missing port number"),
        ("carrier://pigeon:1", "unknown address scheme 'carrier'"),
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_told(address: str, why: str) -> None:
    pytest.importorskip("distributed", reason="Dask runs the sweep")
    with pytest.raises(OptionError, match=f"no Dask scheduler answers at '{address}' .*{why}"):
        swept(scheduler=address)
    with pytest.raises(OptionError, match="jobs is for this machine's cores"):
        swept(scheduler=address, jobs=2)


PEER = """
import os
def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    with open(os.environ["EPLB_TEST_LOG"], "a") as log:
        log.write(f"{os.getpid()}\\n")
    return (weight.new_zeros(weight.shape[0], num_replicas).long()
            + (weight.new_ones(num_replicas).cumsum(0).long() - 1) % weight.shape[1])
"""


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
    with pytest.raises(OptionError, match="jobs is 0: give 1 or more"):
        swept_one(["eplb"], jobs=0)


def test_what_is_wrong_with_the_last_replay_is_told_before_the_first() -> None:
    asked: list[int] = []
    policies = {"mine": lambda *_, **__: asked.append(1)}
    for wrong in (
        {"clusters": [CLUSTER, Cluster(4, 1, 1)]},
        {"every": (1, 0)},
        {"num_groups": 3},
        {"first": 41},
        {"expert_bytes": 0},
        {"clusters": 4},
    ):
        options: Any = {"clusters": [CLUSTER], "policies": policies, **wrong}
        with pytest.raises(eplb.EplbError):
            eplb.sweep(TRACE, **options)
    assert asked == []


def test_rows_before_a_failure_are_given() -> None:
    policies = {"contiguous": POLICIES["contiguous"], "late": failing_at(5)}
    rows: list[SweepRow] = []
    failures: list[eplb.EplbError] = []
    given: Any = {"progress": rows.append, "failed": failures.append}
    assert eplb.sweep(TRACE, CLUSTER, policies, **given) == rows
    assert [row.score.policy for row in rows] == ["contiguous"]
    (failure,) = failures
    with pytest.raises(PolicyError, match="before window 5") as raised:
        eplb.sweep(TRACE, CLUSTER, {**policies, "late": failing_at(5)}, progress=rows.append)
    assert str(raised.value) == str(failure)


def test_a_sweep_ends_where_progress_says_so() -> None:
    (only,) = eplb.sweep(TRACE, CLUSTER, ["contiguous", "deepseek"], progress=lambda _: False)
    assert only.score.policy == "contiguous"


def test_lone_values_and_callables() -> None:
    (one,) = eplb.sweep(TRACE, CLUSTER, "deepseek", every=4, expert_bytes=1000)
    (own,) = eplb.sweep(TRACE, CLUSTER, {"own": POLICIES["deepseek"]}, every=[4], expert_bytes=1000)
    assert own.score.bytes_per_plan == one.score.bytes_per_plan
    (score_,) = eplb.compare(TRACE, CLUSTER, "deepseek", every=4, expert_bytes=1000).scores
    assert one.score.bytes_per_plan == score_.bytes_per_plan
    assert one.score.moved is not None
    assert one.score.bytes_per_plan == pytest.approx(1000 * 24 * one.score.moved)
    callables: Any = [len]
    with pytest.raises(PolicyError, match="give callables by name"):
        eplb.compare(TRACE, CLUSTER, callables)


def swept_one(policies: list[str], **options: Any) -> None:
    eplb.sweep(TRACE, [CLUSTER], policies, **options)


@pytest.mark.parametrize("rule", ["sglang", "ascend", "best"])
def test_every_figure_is_under_the_rule(rule: str) -> None:
    """Each window by the placement that served it, whatever calls it."""
    trace, cluster = TRACE.pick(range(9)), Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)
    even = eplb.replay(trace, cluster, "eplb", every=3)
    found = eplb.replay(trace, cluster, "eplb", every=3, dispatch=rule)
    assert (even.dispatch, found.dispatch) == ("even", rule)
    assert found.placements != even.placements
    expected = [
        placement.balancedness(trace.loads[window], rule)
        for placement, window in zip(found.placements, found.windows, strict=True)
    ]
    assert found.by_window() == pytest.approx(expected, rel=1e-12)
    assert even.under(trace, rule).peak.sum() > found.peak.sum()
    compared = eplb.compare(
        trace, cluster, ["contiguous", "eplb"], every=3, dispatch=[rule, "even"]
    )
    assert compared.scores[1].balancedness == found.average()
    assert compared.dispatch == compared.to_json()["dispatch"] == rule
    under = compared.balancedness_under
    assert list(under) == [rule, "even"]
    evenly = found.under(trace, "even").average()
    assert [values[1] for values in under.values()] == [found.average(), evenly]
    assert compared.placed_for == {"even": [None, even.average()]}
    row = eplb.sweep(trace, cluster, ["contiguous", "eplb"], every=3, dispatch=rule)[1]
    assert (row.score.balancedness, row.to_json()["dispatch"]) == (found.average(), rule)
    assert row.score.gain == compared.scores[1].gain != even.average() - under["even"][0]


def test_a_split_stays_the_same_in_every_window() -> None:
    placement = eplb.Placement.contiguous(2, 8, CLUSTER)
    split = eplb.dispatch(placement, TRACE.loads[0])
    found = eplb.replay(TRACE, CLUSTER, "contiguous", dispatch=split)
    assert found.dispatch == "split"
    assert found.average() == placement.balancedness(TRACE.loads[1:], split)
    with pytest.raises(OptionError, match="are to sum to 1"):
        eplb.replay(TRACE, CLUSTER, "eplb", dispatch=split)


def test_rules_that_are_unknown_or_given_twice_are_refused_before_any_plan() -> None:
    def policy(*_: Any, **__: Any) -> None:
        raise AssertionError

    known = "give one of even, sglang, ascend, best"
    for call in (eplb.replay, eplb.compare, eplb.sweep):
        given: Any = policy if call is eplb.replay else {"mine": policy}
        for rule in ("nearest", None):
            with pytest.raises(OptionError, match=known):
                call(TRACE, CLUSTER, given, dispatch=rule)
    with pytest.raises(OptionError, match="each once"):
        eplb.compare(TRACE, CLUSTER, {"mine": policy}, dispatch=["even", "even"])


def test_a_sweep_under_a_limit_of_processes_is_told_what_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.resource_tracker.ensure_running", refused)
    monkeypatch.setattr("joblib.externals.loky.backend.resource_tracker.ensure_running", refused)
    trace = eplb.LoadTrace(np.ones((3, 2, 8)))
    clusters = [eplb.Cluster(2, 1, 5), eplb.Cluster(4, 1, 3)]
    with pytest.raises(OptionError, match=r"no process can be started \(.*\): give jobs=1"):
        list(eplb.sweep(trace, clusters, ["contiguous"], jobs=2))
    assert len(list(eplb.sweep(trace, clusters, ["contiguous"], jobs=1))) == 2
