"""Figures of a report against plain oracles and the commands that print the same."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from report_traces import CLUSTER, small_trace

import eplb
from eplb.cost import estimate
from eplb.errors import ClusterError, LoadsError, OptionError, PlacementError
from eplb.planning.forecast import named_forecast
from eplb.replaying.evaluate import evaluate_placement
from eplb.replaying.policies import Forecasted
from eplb.replaying.sizing import evenly
from eplb.report import Figures, Missing, measure, render_page
from eplb.report.figures import Splits
from eplb.report.story import tell
from eplb.solver.greedy import greedy


@pytest.fixture(scope="module")
def trace() -> eplb.LoadTrace:
    return small_trace()


@pytest.fixture(scope="module")
def running(trace: eplb.LoadTrace) -> eplb.Placement:
    return eplb.plan(trace.loads[0], CLUSTER).placement


@pytest.fixture(scope="module")
def figures(trace: eplb.LoadTrace) -> Figures:
    return measure(trace, CLUSTER, name="trace.npz")


@pytest.fixture(scope="module")
def moving(trace: eplb.LoadTrace, running: eplb.Placement) -> Figures:
    return measure(trace, CLUSTER, current=running, current_name="current.json")


def plans_before(trace: eplb.LoadTrace, forecast: str | None) -> list[eplb.Placement]:
    """The plan for each window after the first, made from those before it."""
    rule = named_forecast(forecast or "recent")
    expected = [rule(trace.loads[:window]) for window in range(1, len(trace))]
    return [eplb.plan(each.loads, CLUSTER, weights=each.weights).placement for each in expected]


def test_unseen_figures_are_those_of_compare(traces: Path) -> None:
    """On recorded loads, through the commands that a user would run."""
    path = traces / "deepseek_v3"
    found = measure(
        eplb.load_trace(path), eplb.Cluster.with_slots(288, 32), name=str(path), model="DeepSeek-V3"
    )
    assert found.choice.compare is not None
    words = shlex.split(found.choice.compare)
    told = run(*words[1:], "--json")
    assert told.returncode == 0, told.stderr
    scores = {each["policy"]: each for each in json.loads(told.stdout)["scores"]}
    names = {
        "plan": found.choice.forecast or "eplb",
        "contiguous": "contiguous",
        "engine": "deepseek",
    }
    for who, policy in (names | {"oracle": "oracle"}).items():
        standing, score = found.standing(who), scores[policy]  # type: ignore[arg-type]
        assert standing is not None
        assert standing.unseen == score["balancedness"]
        assert standing.engine_gain == score["gain"]
        assert standing.worst == score["worst_window"]
        assert standing.moved == score["moved"]
    default = run("compare", path, "--gpus", 32, "--slots", 288, "--json")
    again = {each["policy"]: each for each in json.loads(default.stdout)["scores"]}
    assert again["eplb"]["balancedness"] == found.plan.unseen


def test_intervals_are_those_of_compare_where_windows_are_many() -> None:
    trace = small_trace(60, 2)
    found = measure(trace, CLUSTER)
    every = found.setting.every
    assert every == 4
    names = ["contiguous", "deepseek", found.choice.forecast or "", "oracle"]
    expected = {
        each.policy: each for each in eplb.compare(trace, CLUSTER, names, every=every).scores
    }
    assert found.plan.unseen_interval == expected[names[2]].balancedness_interval is not None
    assert found.plan.gain_interval == expected[names[2]].gain_interval
    over_engine = eplb.compare(trace, CLUSTER, names[1:], every=every).scores[1]
    assert found.plan.engine_gain == over_engine.gain
    assert found.plan.engine_gain_interval == over_engine.gain_interval is not None
    assert found.unsure is None


@pytest.mark.parametrize("merge", [1, 2])
def test_the_command_makes_the_plan_that_is_scored(
    trace: eplb.LoadTrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: int
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a trace's file.npz"
    eplb.save_trace(trace, name)
    merged = trace.merged(merge)
    found = measure(merged, CLUSTER, name=name, reading=("--merge", str(merge)))
    assert found.choice.command is not None
    for line in found.choice.command.splitlines():
        done = run(*shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr
    made = eplb.load_placement("placement.json", 8, 2, num_experts=32, dense=trace.dense)
    assert made.balancedness(merged.loads) == pytest.approx(found.plan.seen, abs=1e-12)


def test_the_command_of_moves_makes_as_good_a_plan(
    trace: eplb.LoadTrace,
    running: eplb.Placement,
    moving: Figures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    eplb.save_trace(trace, "loads.npz")
    eplb.save_placement(running, "current.json", to="sglang", dense=trace.dense)
    assert not isinstance(moving.moves, Missing)
    words = shlex.split(moving.moves.command)
    words[2] = "loads.npz"
    done = run(*words[1:])
    assert done.returncode == 0, done.stderr
    made = eplb.load_placement("placement.json", 8, 2, num_experts=32, dense=trace.dense)
    point = moving.moves.points[moving.moves.enough]
    moves = made.moves_by_layer(running)[~trace.dense].sum()
    assert moves <= point.moves
    assert made.balancedness(trace.loads) == pytest.approx(point.seen, abs=0.02)


def test_comparison_is_with_what_runs_then_the_engine_then_no_balancing(
    trace: eplb.LoadTrace, running: eplb.Placement, moving: Figures
) -> None:
    expected = evaluate_placement(running, trace)
    afresh = {each.placement: each for each in expected.standings}
    named = [each.who for each in moving.standings]
    assert named == ["current", "engine", "plan", "contiguous", "oracle"]
    engine = moving.engine
    total = trace.loads.sum(axis=0)
    made = greedy(total, CLUSTER, 1, swaps=False)
    by_engine = eplb.Placement(made, trace.num_experts, CLUSTER)
    assert engine.seen == pytest.approx(by_engine.balancedness(trace.loads))
    assert engine.engine_gain == 0.0
    assert moving.plan.unseen is not None
    assert engine.unseen is not None
    assert moving.plan.engine_gain == pytest.approx(moving.plan.unseen - engine.unseen)
    assert moving.now.seen == pytest.approx(afresh["this"].balancedness)
    contiguous = moving.standing("contiguous")
    assert contiguous is not None
    assert contiguous.seen == pytest.approx(afresh["contiguous"].balancedness)
    assert moving.now.gain == 0.0
    assert moving.plan.unseen is not None
    assert moving.now.unseen is not None
    assert moving.plan.gain == pytest.approx(moving.plan.unseen - moving.now.unseen)


def test_estimates_are_of_the_plans_that_had_not_seen(
    trace: eplb.LoadTrace, figures: Figures
) -> None:
    found = figures.estimated
    assert not isinstance(found, Missing)
    start = eplb.Placement.contiguous(trace.num_layers, trace.num_experts, CLUSTER)
    steps = []
    by_engine = [
        eplb.Placement(
            greedy(trace.loads[:window].sum(axis=0), CLUSTER, 1, swaps=False),
            trace.num_experts,
            CLUSTER,
        )
        for window in range(1, len(trace))
    ]
    planned = plans_before(trace, figures.choice.forecast)
    for placements in ([start] * 11, planned, by_engine):
        each = [
            estimate(placement, window, "H100", "gpt-oss-20b", tokens_per_gpu=128.0)
            for placement, window in zip(placements, trace.loads[1:], strict=True)
        ]
        steps.append(np.mean([one.step_seconds for one in each]))
        layers = np.mean([one.layer_seconds[1:] for one in each], axis=0) * 1e6
        if len(steps) < 3:
            told = found.before_us if len(steps) == 1 else found.after_us
            np.testing.assert_allclose(told, layers)
    np.testing.assert_allclose([found.step_before, found.step_after, found.step_engine], steps)
    np.testing.assert_allclose(found.tokens_after, 128.0 * 8 / steps[1])
    np.testing.assert_allclose(found.tokens_engine, 128.0 * 8 / steps[2])
    assert found.tokens_before < found.tokens_after < found.tokens_even
    assert found.layers == (1, 2, 3, 4, 5)
    assert any("estimate" in word for word in found.words)


def test_heat_is_of_a_window_that_the_plan_had_not_seen(
    trace: eplb.LoadTrace, figures: Figures
) -> None:
    plans = plans_before(trace, figures.choice.forecast)
    heights = [
        made.balancedness(window) for made, window in zip(plans, trace.loads[1:], strict=True)
    ]
    typical = int(np.abs(np.array(heights) - np.mean(heights)).argmin())
    assert figures.heat.window == trace.names[1 + typical]
    load = plans[typical].gpu_load(trace.loads[1 + typical])[1:]
    np.testing.assert_allclose(figures.heat.after, load / load.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(np.mean(figures.heat.before, axis=1), 1.0)


def test_hottest_experts_are_those_of_windows_that_count_alike(
    trace: eplb.LoadTrace, figures: Figures
) -> None:
    for row in figures.hot:
        loads = trace.loads[:, row.layer]
        shares = (loads / loads.sum(axis=1, keepdims=True)).mean(axis=0)
        assert row.shares == pytest.approx(sorted(shares)[-3:][::-1])
        assert row.experts[0] == shares.argmax()
        assert row.times_mean == pytest.approx(shares.max() * 32)


def test_curves_meet_the_figures_where_they_are_of_the_same(
    trace: eplb.LoadTrace, moving: Figures
) -> None:
    """Each window is served by a plan of its own up to 9 windows, in the curve as in the replay."""
    some = measure(trace.pick(slice(9)), CLUSTER)
    at = some.spare.points[some.spare.chosen]
    assert (at.spare, at.num_slots) == (1, 40)
    assert at.unseen == some.plan.unseen
    assert at.seen == some.plan.seen
    assert not isinstance(moving.moves, Missing)
    points = moving.moves.points
    assert points[0].moves == 0
    assert points[0].seen == pytest.approx(moving.now.seen)
    assert [each.moves for each in points] == sorted({each.moves for each in points})
    unseen = [each.unseen or 0.0 for each in points]
    reached = (unseen[moving.moves.enough] - unseen[0]) / (max(unseen) - unseen[0])
    assert reached >= 0.9
    assert not isinstance(some.windows, Missing)
    (number, value) = some.windows.points[-1]
    held = [
        eplb.plan(trace.loads[[*range(out + 1, 9), *range(out)]], CLUSTER).placement
        for out in range(9)
    ]
    scores = [made.balancedness(trace.loads[out]) for out, made in enumerate(held)]
    assert number == 8
    assert value == pytest.approx(np.mean(scores))


def test_rules_of_dispatch_are_those_of_compare(trace: eplb.LoadTrace, figures: Figures) -> None:
    found = figures.splits
    assert isinstance(found, Splits)
    rule = named_forecast(figures.choice.forecast or "")
    compared = eplb.compare(
        trace,
        CLUSTER,
        {"plan": Forecasted(rule)},
        every=3,
        dispatch=["even", "sglang", "best"],
    )
    assert (found.plans, found.engine) == (4, "sglang")
    under, placed = compared.balancedness_under, compared.placed_for
    assert [found.even, found.by_engine, found.best] == [values[0] for values in under.values()]
    assert [found.engine_placed, found.best_placed] == [values[0] for values in placed.values()]
    assert found.best > found.even


def test_time_tells_what_keeping_a_plan_costs(trace: eplb.LoadTrace, figures: Figures) -> None:
    found = figures.through
    assert not isinstance(found, Missing)
    rule = named_forecast(figures.choice.forecast or "")
    expected = rule(trace.loads[:6])
    kept = eplb.plan(expected.loads, CLUSTER, weights=expected.weights).placement
    assert found.half == 6
    assert found.kept_mean == pytest.approx(kept.balancedness(trace.loads[6:]))
    plans = plans_before(trace, figures.choice.forecast)[5:]
    replanned = [
        made.balancedness(window) for made, window in zip(plans, trace.loads[6:], strict=True)
    ]
    assert found.replanned_mean == pytest.approx(np.mean(replanned))
    assert not isinstance(found.moments, Missing)
    assert found.moments[0].window == 6
    assert {each.action for each in found.moments} <= {"move", "move layers", "wait"}


def test_one_window_says_nothing_of_unseen_loads() -> None:
    trace = small_trace(1)
    found = measure(trace, CLUSTER)
    assert found.plan.unseen is None
    assert found.unseen_windows == 0
    assert found.choice.forecast is None
    assert found.choice.compare is None
    assert found.heat.seen
    for part in (found.windows, found.through, found.moves):
        assert isinstance(part, Missing)
    made = eplb.plan(trace.loads, CLUSTER)
    assert found.plan.seen == pytest.approx(made.placement.balancedness(trace.loads))
    assert found.estimated != Missing("")
    assert found.spare.points[1].unseen is None
    assert found.splits == Missing("the trace has one window")


def test_one_layer_is_reported() -> None:
    found = measure(small_trace(3, 1), CLUSTER)
    assert len(found.heat.layers) == len(found.hot) == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("MyModel-9000", "the model MyModel-9000 is not known, .*hidden size"),
        ("DeepSeek-V3", "256 experts in a layer, but the loads have 32"),
        (None, "does not name its model"),
    ],
)
def test_a_model_that_is_not_known_leaves_time_out(model: str | None, said: str) -> None:
    trace = eplb.LoadTrace(small_trace(3, 2).loads)
    found = measure(trace, CLUSTER, model=model)
    assert isinstance(found.estimated, Missing)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(found.estimated.why)
    assert found.plan.unseen is not None


def test_windows_without_load_count_for_nothing() -> None:
    trace = small_trace(9)
    loads = trace.loads.copy()
    loads[[0, 4, 8]] = 0.0
    found = measure(eplb.LoadTrace(loads, model="gpt-oss-20b"), CLUSTER)
    shown = [value for each in found.standings for value in (each.seen, each.unseen, each.worst)]
    assert all(0.0 < value <= 1.0 for value in shown if value is not None)
    assert not isinstance(found.estimated, Missing)
    assert found.heat.window not in {"0", "4", "8"}


@pytest.mark.parametrize(
    ("num_gpus", "slots", "num_experts"), [(1, 3, 2), (2, 6, 4), (4, 1, 3), (2, 1, 1), (3, 9, 20)]
)
def test_odd_clusters_are_reported(num_gpus: int, slots: int, num_experts: int) -> None:
    """More slots than experts, one GPU, fewer experts than GPUs."""
    loads = np.random.default_rng(num_gpus).lognormal(size=(6, 1, num_experts))
    cluster = eplb.Cluster(num_gpus, 1, slots)
    running = eplb.Placement.contiguous(1, num_experts, cluster)
    found = measure(eplb.LoadTrace(loads), cluster, current=running)
    assert found.spare.points[found.spare.chosen].num_slots == num_gpus * slots
    page = render_page(found)
    assert ">nan<" not in page


def test_a_placement_runs_on_while_there_is_no_load() -> None:
    """What to plan for has no load, where the rule is to plan for the last windows."""
    loads = np.zeros((9, 1, 4))
    loads[5, 0, 2] = 12.0
    cluster = eplb.Cluster(2, 1, 3)
    found = measure(
        eplb.LoadTrace(loads), cluster, current=eplb.Placement.contiguous(1, 4, cluster)
    )
    assert found.plan.unseen is not None
    assert isinstance(found.moves, Missing) or found.moves.points[0].moves == 0


def test_what_cannot_be_reported_is_refused(trace: eplb.LoadTrace) -> None:
    with pytest.raises(LoadsError, match="no layer of the trace has any load"):
        measure(eplb.LoadTrace(np.zeros((2, 3, 32))), CLUSTER)
    other = eplb.Placement.contiguous(trace.num_layers, 40, CLUSTER)
    with pytest.raises(PlacementError, match="layers of 32 experts"):
        measure(trace, CLUSTER, current=other)
    wider = eplb.Cluster(8, 2, 6)
    wide = eplb.Placement.contiguous(trace.num_layers, 32, wider)
    with pytest.raises(
        PlacementError, match="48 slots on 8 GPUs, but the cluster given has 40 on 8"
    ):
        measure(trace, CLUSTER, current=wide)
    with pytest.raises(ClusterError, match="do not hold 32 experts"):
        measure(trace, eplb.Cluster(2, 1, 8))
    with pytest.raises(OptionError, match="the GPU 'H1000' is not known"):
        measure(trace, CLUSTER, gpu="H1000")


def test_nodes_are_reported_where_traffic_is_known(trace: eplb.LoadTrace) -> None:
    """Each point is that of the placement it names; nodes have no section otherwise."""
    cluster = eplb.Cluster(8, 4, -(-trace.num_experts // 8) + 1)
    traffic = eplb.Traffic(top_k=2)
    found = measure(trace, cluster, num_groups=4, traffic=traffic)
    assert found.nodes is not None
    start = eplb.Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
    now = found.nodes.others[0]
    assert now.name == "now"
    assert now.balancedness == start.balancedness(trace.loads)
    others = eplb.other_nodes(start, trace.loads, traffic)[~trace.dense]
    assert now.other_nodes == pytest.approx(others.mean())
    names = [each.name for each in found.nodes.others]
    assert names == ["now", "the engine's own", "experts anywhere", "groups on nodes"]
    free, *_, dear = found.nodes.priced
    assert free.other_nodes >= dear.other_nodes
    assert dear.other_nodes < found.nodes.others[2].other_nodes
    headings = [section.heading for section in tell(found).sections]
    assert "Nodes" in headings
    uneven = eplb.Cluster(8, 4, cluster.slots_per_gpu, speed=[1.0] * 7 + [0.5])
    counted = measure(trace.pick([0]), uneven, traffic=traffic).nodes
    assert counted is not None
    assert counted.priced == ()


def test_samples_end_with_the_last_window() -> None:
    assert evenly(5, 8).tolist() == [0, 1, 2, 3, 4]
    for total in (9, 100, 1000):
        some = evenly(total, 8)
        assert some[-1] == total - 1
        assert len(set(some.tolist())) == 8
        assert np.ptp(np.diff(some)) <= 1


def test_every_figure_is_under_the_rule() -> None:
    trace = small_trace(8, 2)
    running = eplb.plan(trace.loads[0], CLUSTER).placement
    found = measure(trace, CLUSTER, current=running, model="gpt-oss-20b", dispatch="best")
    now = running.balancedness(trace.loads[-32:], "best")
    assert found.setting.dispatch == found.verdict.dispatch == "best"
    assert found.standings[0].seen == pytest.approx(now)
    assert now > running.balancedness(trace.loads[-32:])
    assert found.choice.compare is not None
    assert "--dispatch best" in found.choice.compare
    assert "Choice among copies: best (each window is split" in " ".join(render_page(found).split())
    with pytest.raises(OptionError, match="give one of even, sglang"):
        measure(trace, CLUSTER, dispatch="nearest")
