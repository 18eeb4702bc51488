"""How many spare slots to buy: `eplb.size`, and the command of its name."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from report_traces import small_trace

import eplb
from eplb.cost.models import MODELS
from eplb.planning.forecast import Recent
from eplb.replaying.sizing import knee_of

GPUS = eplb.Cluster(num_gpus=8, slots_per_gpu=4)
TRACE = small_trace(6)


@pytest.mark.parametrize("rule", ["even", "best"])
def test_every_point_is_plans_that_had_not_seen_what_they_are_scored_on(rule: str) -> None:
    found = eplb.size(TRACE, GPUS, [1, 0], dispatch=rule, effort="fast")
    assert (found.dispatch, found.plans, found.windows) == (rule, 5, 5)
    for number, point in enumerate(found.points):
        cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=4 + number)
        assert (point.spare, point.num_slots) == (number, cluster.num_slots)
        expected = [Recent()(TRACE.loads[:end]) for end in range(1, 7)]
        made = [
            eplb.plan(
                each.loads, cluster, weights=each.weights, dispatch=rule, effort="fast"
            ).placement
            for each in expected
        ]
        scores = [
            each.balancedness(window, dispatch=rule)
            for each, window in zip(made[:-1], TRACE.loads[1:], strict=True)
        ]
        assert point.unseen == pytest.approx(np.mean(scores))
        assert point.seen == pytest.approx(made[-1].balancedness(TRACE.loads, dispatch=rule))
    assert found.points[0].gain is None
    unseen = [point.unseen or 0.0 for point in found.points]
    assert found.points[1].gain == pytest.approx(unseen[1] - unseen[0])


def test_a_long_trace_takes_eight_plans_and_starts_from_a_history() -> None:
    trace = eplb.LoadTrace(np.tile(TRACE.loads[:, 1:2], (15, 1, 1)))
    found = eplb.size(trace, GPUS, 0, effort="fast")
    assert (found.plans, found.windows) == (8, 58)
    assert len(found.points) == 1
    assert found.points[0].interval is not None


def test_one_window_has_no_unseen() -> None:
    found = eplb.size(TRACE.pick(slice(1)), GPUS)
    assert (found.windows, found.plans) == (0, 0)
    assert [point.unseen for point in found.points] == [None] * 5
    assert [point.spare for point in found.points] == [0, 1, 2, 3, 4]
    assert all(point.gain is not None for point in found.points[1:])


def test_memory_is_that_of_the_model_and_of_its_cache() -> None:
    """Of all its layers, though the loads have some; a token of gpt-oss takes 24,576 bytes."""
    model = MODELS["gpt-oss-20b"]
    found = eplb.size(TRACE, GPUS, [0, 2], model="gpt-oss-20b", effort="fast")
    assert found.bytes_each == 24 * model.expert_bytes
    assert (found.points[1].bytes, found.kv_bytes) == (2 * found.bytes_each, 24576)
    assert found.points[1].kv_tokens == 2 * found.bytes_each // 24576
    nameless = eplb.LoadTrace(TRACE.loads)
    said = eplb.size(nameless, GPUS, 1, expert_bytes=1000, kv_bytes=300, effort="fast")
    assert (said.points[0].bytes, said.points[0].kv_tokens) == (5000, 16)
    unknown = eplb.size(nameless, GPUS, 1, effort="fast")
    assert (unknown.bytes_each, unknown.points[0].kv_tokens) == (None, None)


def test_gpus_that_differ_have_more_slots_each() -> None:
    cluster = eplb.Cluster(num_gpus=4, slots_per_gpu=[12, 12, 4, 4])
    found = eplb.size(TRACE, cluster, [0, 1], effort="fast")
    assert [point.num_slots for point in found.points] == [32, 36]


def test_the_knee_is_the_last_slot_worth_its_place() -> None:
    assert knee_of([0, 1, 2, 3], [0.80, 0.90, 0.905, 0.906]) == 1
    assert knee_of([0, 1, 2], [0.95, 0.951, 0.952]) == 0
    # A step that gains little hides one after it that gains much.
    assert knee_of([0, 1, 2], [0.80, 0.805, 0.83]) == 2
    assert knee_of([0, 2, 8], [0.80, 0.83, 0.88]) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"spare": -1}, "spare is -1: give 0 or more"),
        ({"spare": [1, 1]}, r"spare \(--spare\) is \[1, 1\]: give each number of slots once"),
        ({"spare": []}, "give each number of slots once"),
        ({"spare": 1.5}, "spare is 1.5: give a whole number"),
        ({"dispatch": "worst"}, "worst"),
        ({"forecast": "tarot"}, "tarot"),
        ({"kv_bytes": 0}, "kv_bytes is 0: give 1 or more"),
        ({"expert_bytes": 0}, "expert_bytes is 0: give 1 or more"),
        ({"model": "DeepSeek-V3"}, "32 experts in a layer, DeepSeek-V3 has 256"),
        ({"num_groups": 5}, "5"),
        ({"effort": "much"}, "much"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(eplb.EplbError, match=said):
        eplb.size(TRACE, GPUS, **wrong)  # type: ignore[arg-type]


def test_loads_of_nothing_have_no_size() -> None:
    with pytest.raises(eplb.LoadsError, match="nothing to size"):
        eplb.size(eplb.LoadTrace(np.zeros((2, 2, 8))), eplb.Cluster(2, 1, 4))


def test_the_command_prints_what_the_function_gives(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    eplb.save_trace(eplb.LoadTrace(TRACE.loads), path)
    asked = ("size", path, "--gpus", 8, "--spare", "0,1", "--dispatch", "best", "--effort", "fast")
    priced = (*asked, "--model", "gpt-oss-20b")
    found = json.loads(run(*priced, "--json").stdout)
    expected = eplb.size(
        eplb.load_trace(path), GPUS, [0, 1], dispatch="best", effort="fast", model="gpt-oss-20b"
    )
    assert found == {"version": 1, **json.loads(json.dumps(expected.to_json()))}
    text = run(*priced, COLUMNS="120").stdout
    assert "each batch" in text or "best" in text
    for point in expected.points:
        assert f"{point.unseen:.4f}" in text
        assert f"{point.kv_tokens:,}" in text
    assert f"{expected.points[expected.knee].spare} (knee)" in text
    assert "Give --model or --expert-bytes" in run(*asked).stdout
    alone = tmp_path / "one.npz"
    eplb.save_trace(eplb.LoadTrace(TRACE.loads[:1]), alone)
    done = run("size", alone, "--gpus", 8, "--spare", 1, "--expert-bytes", 10)
    assert "There is one window" in done.stdout
    assert "Give --kv-bytes" in done.stdout
    for words, said in (
        (("--spare", "x"), "--spare is 'x'"),
        (("--gpus", 0), "--gpus is 0"),
        (("--model", "DeepSeek-V3"), "256"),
    ):
        done = run("size", path, "--gpus", 8, *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
