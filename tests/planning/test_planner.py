"""`plan`: what holds of every plan, edge shapes, groups on nodes, and what a Plan holds."""

import dataclasses
import doctest
import json
from pathlib import Path

import naive
import numpy as np
import pytest
from command_line import run
from hypothesis import given
from strategies import Cell, cells, grouped_cells

import eplb
from eplb import Cluster, Placement, Plan, plan, synthetic


def check(made: Plan, cell: Cell) -> None:
    """What holds of every plan."""
    num_layers, num_experts = cell.loads.shape
    placement = made.placement
    # The planner's own placement is trusted: here it is checked.
    assert placement == Placement(placement.phy2log, num_experts, cell.cluster)
    assert placement.phy2log.shape == (num_layers, cell.cluster.num_slots)
    assert (placement.logcnt.sum(axis=1) == cell.cluster.num_slots).all()
    for layer, slots, peak in zip(
        cell.loads.tolist(), placement.phy2log.tolist(), made.peak.tolist(), strict=True
    ):
        assert peak == max(naive.gpu_loads(slots, layer, cell.cluster.num_gpus))
    assert np.array_equal(made.peak, placement.gpu_load(cell.loads).max(axis=-1))
    assert (made.bound <= made.peak).all()
    total = cell.loads.sum(axis=1)
    assert (made.bound >= total / cell.cluster.num_gpus * (1.0 - 1e-12)).all()
    assert ((made.bound > 0.0) == (total > 0.0)).all()


def check_even(slots: list[int], num_experts: int, num_gpus: int) -> None:
    """No expert has two replicas more than another, in all or on any GPU."""
    counts = naive.logcnt(slots, num_experts)
    assert max(counts) - min(counts) <= 1
    size = len(slots) // num_gpus
    for begin in range(0, len(slots), size):
        assert max(naive.logcnt(slots[begin : begin + size], num_experts)) <= -(
            -size // num_experts
        )


@given(cells())
def test_every_plan(cell: Cell) -> None:
    made = plan(cell.loads, cell.cluster)
    check(made, cell)
    assert made.placement.num_duplicates == 0


@given(grouped_cells())
def test_every_plan_with_groups_on_nodes(cell: Cell) -> None:
    made = plan(cell.loads, cell.cluster, num_groups=cell.num_groups)
    check(made, cell)
    assert made.placement.num_duplicates == 0
    num_nodes, num_groups = cell.cluster.num_nodes, cell.num_groups
    group_size = cell.loads.shape[1] // num_groups
    for layer, slots, bound in zip(
        cell.loads, made.placement.phy2log, made.bound.tolist(), strict=True
    ):
        nodes = [set(node) for node in (slots // group_size).reshape(num_nodes, -1).tolist()]
        # Each group is on one node, and equally many on each.
        assert sorted(group for node in nodes for group in node) == list(range(num_groups))
        assert {len(node) for node in nodes} == {num_groups // num_nodes}
        group_loads = layer.reshape(num_groups, group_size).sum(axis=1).tolist()
        busiest = max(sum(group_loads[group] for group in node) for node in nodes)
        best = naive.busiest_node(group_loads, num_nodes)
        # In small layers groups trade places where that lowers the peak.
        if cell.cluster.num_slots > 16:
            assert busiest == pytest.approx(best, rel=1e-9)
        assert bound >= best / (cell.cluster.num_gpus // num_nodes) * (1.0 - 1e-12)


def test_bound_holds_for_every_way_to_put_groups_on_nodes() -> None:
    rng = np.random.default_rng(3)
    cluster = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=2)
    loads = np.vstack([rng.lognormal(size=(10, 6)), rng.integers(1, 9, (10, 6))])
    made = plan(loads, cluster, num_groups=6)
    for layer, peak, bound in zip(loads.tolist(), made.peak, made.bound, strict=True):
        best = min(
            max(naive.optimum([layer[expert] for expert in node], 2, 2) for node in nodes)
            for nodes in naive.on_nodes(range(6), 2)
        )
        assert bound * (1.0 - 1e-12) <= best <= peak * (1.0 + 1e-12)


@pytest.mark.parametrize("num_groups", [1, 3, 9])
def test_groups_that_nodes_do_not_divide_go_anywhere(num_groups: int) -> None:
    loads = np.random.default_rng(0).lognormal(size=(3, 9))
    two_nodes, one_node = Cluster(4, 2, 3), Cluster(4, 1, 3)
    made = plan(loads, two_nodes, num_groups=num_groups)
    anywhere = plan(loads, one_node)
    assert np.array_equal(made.placement.phy2log, anywhere.placement.phy2log)
    assert np.array_equal(made.bound, anywhere.bound)
    assert made.placement.cluster == two_nodes


def test_groups_on_one_node_ask_nothing() -> None:
    loads = np.random.default_rng(0).lognormal(size=(3, 9))
    cluster = Cluster(4, 1, 3)
    assert plan(loads, cluster, num_groups=3).placement == plan(loads, cluster).placement


@pytest.mark.parametrize(
    ("num_experts", "cluster", "num_groups"),
    [
        (6, Cluster(4, 1, 2), 1),
        (7, Cluster(5, 1, 3), 1),
        (8, Cluster(4, 2, 3), 4),
        (5, Cluster(3, 1, 5), 1),
    ],
)
def test_no_load_and_equal_loads_are_spread_evenly(
    num_experts: int, cluster: Cluster, num_groups: int
) -> None:
    loads = np.zeros((4, num_experts))
    loads[1] = -0.0
    loads[2] = 3.0
    loads[3] = 0.1
    made = plan(loads, cluster, num_groups=num_groups)
    for slots in made.placement.phy2log.tolist():
        check_even(slots, num_experts, cluster.num_gpus)
    for values in (made.peak, made.bound, made.gap):
        assert values[:2].tolist() == [0.0, 0.0]
    check(made, Cell(loads, cluster))


@pytest.mark.parametrize("slots_per_gpu", [4, 5, 8, 11])
@pytest.mark.parametrize("num_groups", [1, 2])
def test_more_slots_on_a_gpu_than_experts(slots_per_gpu: int, num_groups: int) -> None:
    """Second copies cannot be helped, but every GPU holds each expert, none much more often."""
    loads = np.array([[8.0, 4.0, 2.0, 1.0], [0.0, 0.0, 5.0, 0.0]])
    cluster = Cluster(3, 1, slots_per_gpu)
    made = plan(loads, cluster, num_groups=num_groups)
    check(made, Cell(loads, cluster))
    for gpu in made.placement.phy2log.reshape(-1, slots_per_gpu).tolist():
        check_even(gpu, 4, 1)
    assert made.gap == pytest.approx([0.0, 0.0], abs=1e-12)
    assert made.placement.num_duplicates == 2 * 3 * (slots_per_gpu - 4)


def test_more_slots_on_a_gpu_than_experts_of_its_node() -> None:
    loads = np.array([[8.0, 4.0, 2.0, 1.0, 3.0, 9.0]])
    cluster = Cluster(6, 3, 3)
    made = plan(loads, cluster, num_groups=3)
    check(made, Cell(loads, cluster, 3))
    for gpu in made.placement.phy2log.reshape(-1, 3).tolist():
        assert len(set(gpu)) == 2
        assert len({expert // 2 for expert in gpu}) == 1


def test_one_gpu() -> None:
    made = plan([[3.0, 1.0, 2.0]], Cluster(1, 1, 3))
    assert sorted(made.placement.phy2log[0].tolist()) == [0, 1, 2]
    assert (made.peak[0], made.bound[0], made.gap[0]) == (6.0, 6.0, 0.0)


def test_one_expert() -> None:
    made = plan([[7.0], [0.0]], Cluster(4, 2, 2))
    assert made.placement.phy2log.tolist() == [[0] * 8] * 2
    assert made.peak.tolist() == [1.75, 0.0]
    assert made.bound.tolist() == [1.75, 0.0]


def test_no_spare_slots() -> None:
    """Every expert once; the two heaviest apart, each beside the lightest that are left."""
    made = plan([[5.0, 4.0, 1.0, 2.0]], Cluster(2, 1, 2))
    assert made.placement.logcnt.tolist() == [[1, 1, 1, 1]]
    gpus = {frozenset(gpu) for gpu in made.placement.phy2log.reshape(2, 2).tolist()}
    assert gpus == {frozenset({0, 2}), frozenset({1, 3})}
    assert made.gap.tolist() == [0.0]


def test_fields_are_read_only() -> None:
    made = plan([[5.0, 4.0, 1.0, 2.0], [0.0] * 4], Cluster(3, 1, 2))
    names = [field.name for field in dataclasses.fields(made)]
    assert names == [
        "placement", "peak", "bound", "moves", "notes", "dispatch", "lost", "other_nodes",
        "objective",
    ]  # fmt: skip
    assert (made.moves, made.notes) == (0, ())
    placement = made.placement
    for figures in (made.peak, made.bound, made.gap):
        assert figures.shape == (2,)
        assert figures.dtype == np.float64
    for array in (
        made.peak,
        made.bound,
        made.gap,
        placement.phy2log,
        placement.logcnt,
        placement.log2phy,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.peak = made.bound  # type: ignore[misc]
    assert np.array_equal(made.gap, [made.peak[0] / made.bound[0] - 1.0, 0.0])


def test_no_load_is_spread_evenly_where_slots_outnumber_experts() -> None:
    for num_gpus, slots_per_gpu in [(2, 5), (3, 4), (4, 8)]:
        made = plan(np.zeros((1, 3)), Cluster(num_gpus, 1, slots_per_gpu))
        assert np.ptp(made.placement.logcnt) <= 1
        assert (np.sort(made.placement.phy2log.reshape(num_gpus, -1))[:, 0] == 0).all()


def test_a_trace_is_planned_for_as_the_command_does(tmp_path: Path) -> None:
    """By the best forecast, tried on its windows; an array is planned for as it is given."""
    trace = synthetic.trace(
        "gpt-oss-20b", num_windows=12, tokens_per_window=2048, num_layers=3, seed=4
    )
    cluster = Cluster(8, 1, 5)
    made = eplb.plan(trace, cluster)
    eplb.save_trace(trace, tmp_path / "loads.npz")
    out = tmp_path / "placement.json"
    done = run("plan", tmp_path / "loads.npz", "--gpus", 8, "--slots", 40, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert made.notes[0] == figures["planned_for"]
    assert made.placement == eplb.load_placement(out, 8, num_experts=32)
    rule = eplb.forecast.FORECASTS[figures["backtest"]["best"]]
    expected = rule(trace.loads)
    same = eplb.plan(expected.loads, cluster, weights=expected.weights)
    assert same.placement == made.placement
    later = eplb.plan(trace, cluster, current=made.placement, max_moves=0)
    assert (later.moves, later.placement) == (0, made.placement)


def test_a_trace_of_one_window_is_that_window() -> None:
    loads = np.random.default_rng(0).lognormal(size=(2, 16))
    cluster = Cluster(4, 1, 5)
    made = eplb.plan(eplb.LoadTrace(loads), cluster)
    assert (made.placement, made.notes) == (eplb.plan(loads, cluster).placement, ())


def test_weights_go_with_arrays() -> None:
    trace = eplb.LoadTrace(np.ones((2, 1, 4)))
    with pytest.raises(eplb.OptionError, match="weights go with arrays"):
        eplb.plan(trace, Cluster(2, 1, 2), weights=[1.0, 2.0])


def test_the_example_is_true() -> None:
    from eplb.planning import plan as module

    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)
