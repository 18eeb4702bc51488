"""Plans for GPUs that differ in slots and speed: loads count by the time that they take."""

import itertools
from collections.abc import Iterable

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import eplb
from eplb import Cluster, ClusterError, Placement, plan
from eplb.planning.passes import step_memory
from eplb.planning.problem import check_problem
from eplb.solver.search import Drive, _follow_layers, _search_layers
from eplb.synthetic import deepseek_v3, workloads

F64 = NDArray[np.float64]
seeds = st.integers(0, 2**32 - 1)


def some_cluster(
    rng: np.random.Generator, num_gpus: int, slots: tuple[int, int], least: int
) -> Cluster:
    """A random cluster with so many slots at least."""
    while True:
        of_gpus = rng.integers(slots[0], slots[1] + 1, num_gpus)
        if of_gpus.sum() >= least:
            return Cluster(num_gpus, 1, of_gpus, speed=rng.uniform(0.5, 2.0, num_gpus))


def times(held: list[list[int]], load: list[float], speed: Iterable[float]) -> list[float]:
    """Load over speed of GPUs that hold these experts."""
    count = [sum(row.count(expert) for row in held) for expert in range(len(load))]
    return [
        sum(load[expert] / count[expert] for expert in row) / of_gpu
        for row, of_gpu in zip(held, speed, strict=True)
    ]


def rows_of(placement: Placement, layer: int = 0) -> list[list[int]]:
    """What each GPU holds in the slots that it has."""
    rows = placement.phy2log[layer].reshape(placement.cluster.num_gpus, -1).tolist()
    held = []
    for row, size in zip(rows, placement.cluster.capacity, strict=True):
        assert set(row[size:]) <= {-1}
        assert -1 not in row[:size]
        held.append(row[:size])
    return held


def check(made: eplb.Plan, windows: F64, cluster: Cluster, *, afresh: bool = True) -> None:
    """Every expert has a slot, none has two on a GPU that can do without where the plan is made
    afresh, and peaks are times.
    """
    num_experts = windows.shape[2]
    for layer in range(windows.shape[1]):
        held = rows_of(made.placement, layer)
        assert set(itertools.chain(*held)) == set(range(num_experts))
        for row in held:
            assert not afresh or len(set(row)) == min(len(row), num_experts)
        totals = windows[:, layer].sum(axis=1)
        scale = totals.mean() / totals
        peak = np.mean(
            [
                max(times(held, (window * by).tolist(), cluster.speed or ()))
                for window, by in zip(windows[:, layer], scale, strict=True)
            ]
        )
        assert made.peak[layer] == pytest.approx(peak, rel=1e-9)
        assert made.bound[layer] <= made.peak[layer]
        assert made.bound[layer] >= totals.mean() / sum(cluster.speed or ()) * (1.0 - 1e-9)


@settings(max_examples=25)
@given(seeds)
def test_random_clusters(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(2, 7))
    num_experts = int(rng.integers(1, 3 * num_gpus))
    cluster = some_cluster(rng, num_gpus, (1, 6), num_experts)
    windows = rng.lognormal(0.0, 1.0, (int(rng.integers(1, 4)), 2, num_experts))
    made = plan(windows, cluster, threads=1)
    check(made, windows, cluster)
    assert made == plan(windows, cluster, threads=2)
    loads = windows.sum(axis=0)
    load = made.placement.gpu_load(loads)
    speed = np.array(cluster.speed)
    mean = loads.sum(axis=1) / speed.sum()
    peaks = (load / speed).max(axis=1)
    assert made.placement.balancedness(loads) == pytest.approx((mean / peaks).mean())


def optimum(load: list[float], cluster: Cluster) -> float:
    """The least peak of a layer, of every way to fill the slots of its GPUs."""
    experts = range(len(load))
    best = np.inf
    choices = [list(itertools.combinations(experts, size)) for size in cluster.capacity]
    for held in itertools.product(*choices):
        if len(set(itertools.chain(*held))) == len(load):
            best = min(best, max(times([list(row) for row in held], load, cluster.speed or ())))
    return float(best)


@pytest.mark.parametrize("seed", range(12))
def test_near_the_optimum_of_small_layers(seed: int) -> None:
    """Within 2 % of it, and the bound is none that it passes."""
    rng = np.random.default_rng(seed)
    num_experts = int(rng.integers(4, 6))
    cluster = some_cluster(rng, 3, (1, 4), num_experts)
    loads = rng.lognormal(0.0, 0.7, (1, num_experts))
    made = plan(loads, cluster, threads=1)
    best = optimum(loads[0].tolist(), cluster)
    assert made.bound[0] <= best * (1.0 + 1e-9)
    assert best * (1.0 - 1e-9) <= made.peak[0] <= best * 1.02


def test_made_loads_of_a_large_model() -> None:
    """Peaks are within half a per cent of the mean over speeds wherever that may be reached."""
    rng = np.random.default_rng(0)
    loads = deepseek_v3(seed=1)[:24]
    for _ in range(3):
        cluster = some_cluster(rng, 32, (4, 16), 256)
        made = plan(loads, cluster)
        check(made, loads[None], cluster)
        mean = loads.sum(axis=1) / sum(cluster.speed or ())
        assert (made.peak < 1.005 * made.bound).all()
        assert np.mean(made.bound <= mean * (1.0 + 1e-9)) > 0.9
        assert made.placement.balancedness(loads) > 0.998


@settings(max_examples=25)
@given(seeds)
def test_every_state_of_a_search(seed: int) -> None:
    """It is valid, and its peak is the load over pace of its busiest GPU."""
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(2, 5))
    num_experts = int(rng.integers(3, 2 * num_gpus + 2))
    cluster = some_cluster(rng, num_gpus, (1, 5), num_experts)
    windows = rng.lognormal(0.0, 1.0, (int(rng.integers(1, 3)), 1, num_experts))
    problem = check_problem(windows, cluster, 1, None, 1)
    start = plan(windows, cluster, effort="fast").placement.phy2log
    start = np.ascontiguousarray(start[:, start[0] >= 0])
    steps = step_memory(1, 20)
    held = np.ones((1, cluster.num_gpus, num_experts), np.bool_)
    for tabu in (False, True):
        steps = step_memory(1, 20)
        _search_layers(
            np.arange(1), problem.task, start,
            held, Drive(tabu, False, 0.0, 0.1), np.zeros(1), np.zeros(1), np.array([20]),
            np.zeros(1), steps,
        )  # fmt: skip
        for step in range(int(steps.length[0]) + 1):
            slots = start.copy()
            _follow_layers(steps, np.array([step]), slots)
            held_now = np.split(slots[0], problem.gpus.first[1:-1])
            rows = [row.tolist() for row in held_now]
            assert set(itertools.chain(*rows)) == set(range(num_experts))
            peak = sum(
                weight * max(times(rows, window.tolist(), problem.gpus.pace))
                for weight, window in zip(problem.weight[:, 0], problem.windows[:, 0], strict=True)
            )
            assert steps.peaks[0, step] == pytest.approx(peak, rel=1e-9)


def test_speeds_of_all_gpus_alike() -> None:
    """Twice as fast: the same plan, and half the time."""
    loads = deepseek_v3(seed=1)[:3]
    one, two = (plan(loads, Cluster(32, 1, 9, speed=[speed] * 32)) for speed in (1.0, 2.0))
    assert np.array_equal(one.placement.phy2log, two.placement.phy2log)
    assert np.array_equal(one.peak, 2.0 * two.peak)
    assert one.placement.balancedness(loads) == two.placement.balancedness(loads)
    assert np.array_equal(two.placement.peaks(loads), two.peak)


def test_dead_gpus_of_a_mixed_cluster() -> None:
    rng = np.random.default_rng(3)
    loads = rng.lognormal(0.0, 0.5, (2, 8))
    cluster = Cluster(4, 2, [4, 6, 3, 4], speed=[1.0, 2.0, 0.5, 1.0]).without([1])
    made = plan(loads, cluster)
    assert (made.placement.phy2log.reshape(2, 4, 6)[:, 1] == -1).all()
    alive = made.placement.survivors
    assert alive.cluster == cluster.survivors
    assert np.array_equal(alive.peaks(loads), made.placement.peaks(loads))
    assert made.placement.balancedness(loads) == pytest.approx(alive.balancedness(loads))
    assert alive.moves_from(alive) == 0
    # A GPU as fast and with as many slots as the others is no other cluster.
    even = Cluster(3, 1, [4, 9, 4], speed=[2.0, 1.0, 2.0]).without([1])
    same = plan(loads[:, :6], even)
    assert np.array_equal(same.placement.peaks(loads[:, :6]), same.peak)


def test_layers_without_load_and_experts_without() -> None:
    cluster = Cluster(3, 1, [2, 5, 1], speed=[1.0, 1.5, 0.7])
    loads = np.array([[0.0] * 5, [4.0, 0.0, 0.0, 0.0, 0.0], [1e-300] * 5])
    made = plan(loads, cluster)
    assert made.peak[0] == made.bound[0] == 0.0
    for layer in range(3):
        assert set(itertools.chain(*rows_of(made.placement, layer))) == set(range(5))
    assert np.isfinite(made.gap).all()


@settings(max_examples=25)
@given(seeds)
def test_plans_from_what_runs(seed: int) -> None:
    """Within the budget, from any cluster to any other, what stays in its slot; the frontier's
    ends are the fewest moves and a plan as good as one from scratch, or nearly.
    """
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(2, 6))
    num_experts = int(rng.integers(2, 3 * num_gpus))
    loads = rng.lognormal(0.0, 1.0, (2, num_experts))
    old, new = (some_cluster(rng, num_gpus, (1, 5), num_experts) for _ in range(2))
    if rng.random() < 0.5:
        new = old
    current = plan(rng.lognormal(0.0, 1.0, loads.shape), old).placement
    afresh = plan(loads, new)
    found = eplb.frontier(loads, new, current, points=4)
    for made, budget in (
        (plan(loads, new, current=current), None),
        (plan(loads, new, current=current, max_moves=int(found.moves[0]) + 2), found.moves[0] + 2),
    ):
        check(made, loads[None], new, afresh=False)
        moves = 0
        for layer in range(2):
            before, now = (rows_of(each, layer) for each in (current, made.placement))
            moves += sum(len(set(row) - set(was)) for row, was in zip(now, before, strict=True))
            for row, was in zip(now, before, strict=True):
                for expert in set(row) & set(was[: len(row)]):
                    assert any(is_ == old == expert for is_, old in zip(row, was, strict=False))
        assert made.moves == moves == made.placement.moves_from(current)
        assert budget is None or moves <= budget
    assert (
        found.moves[0]
        == sum(
            len(set(range(num_experts)) - set(itertools.chain(*rows_of(current, layer))))
            for layer in range(2)
        )
        or new is not old
    )
    assert found.peak[-1] <= afresh.peak.sum() * 1.001
    assert found.placements[-1].peaks(loads).sum() == pytest.approx(found.peak[-1])


@settings(max_examples=8)
@given(seeds)
def test_split_best(seed: int) -> None:
    """Each window is split so that GPUs take as even times as a placement allows; a plan for that
    is no worse than one for an even split; from what runs it goes within the budget.
    """
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(2, 6))
    num_experts = int(rng.integers(2, 3 * num_gpus))
    cluster = some_cluster(rng, num_gpus, (1, 5), num_experts)
    if rng.random() < 0.3:
        cluster = cluster.without([0]) if cluster.num_held - cluster.slots_per_gpu > 9 else cluster
    num_experts = min(num_experts, cluster.num_held)
    windows = rng.lognormal(0.0, 1.0, (int(rng.integers(1, 3)), 2, num_experts))
    windows *= 100.0 / windows.sum(axis=2, keepdims=True)
    even = plan(windows, cluster).placement
    made = plan(windows, cluster, dispatch="best", threads=1)
    assert made == plan(windows, cluster, dispatch="best", threads=2)
    peaks = made.placement.peaks(windows, "best").mean(axis=0)
    assert made.peak == pytest.approx(peaks)
    assert (made.bound <= made.peak).all()
    assert (peaks <= even.peaks(windows, "best").mean(axis=0) * (1.0 + 1e-9)).all()
    speed = [of_gpu or 1.0 for of_gpu in cluster.speeds or ()]
    for layer in range(2):
        row = made.placement.phy2log[layer].tolist()
        held = rows_of(made.placement, layer)
        assert set(itertools.chain(*held)) == set(range(num_experts))
        expected = naive.most_even(windows[0, layer].tolist(), row, speed)
        found = made.placement.gpu_load(windows[0], "best")[layer] / speed
        assert found[list(expected)] == pytest.approx(list(expected.values()))
    shared = eplb.dispatch(made.placement, windows)
    times_shared = (shared.gpu_load(windows) / speed).max(axis=2).mean(axis=0)
    assert shared.peak == pytest.approx(times_shared)
    assert (shared.bound <= shared.peak).all()
    assert (shared.bound >= made.bound * (1.0 - 1e-9)).all()
    assert (shared.peak <= made.placement.peaks(windows).mean(axis=0) * (1.0 + 1e-3)).all()
    moved = plan(windows[:1], cluster, dispatch="best", current=even, max_moves=2)
    assert moved.moves == moved.placement.moves_from(even) <= 2
    assert moved.peak == pytest.approx(moved.placement.peaks(windows[0], "best"))
    assert (moved.peak <= even.peaks(windows[0], "best") * (1.0 + 1e-9)).all()


def test_one_spare_slot_more_or_fewer_is_no_other_plan() -> None:
    """Where GPUs differ by a slot, plans for several windows suit others as where they are alike:
    there are as many replicas of each expert, and no large ones.
    """
    windows = workloads("deepseek-v3").loads[:, -4:]
    scores = []
    for slots in (287, 288, 289):
        cluster = Cluster(32, 1, [(slots + gpu) // 32 for gpu in range(32)])
        made = plan(windows[:-1], cluster).placement
        scores.append(made.balancedness(windows[-1]))
    assert min(scores[0], scores[2]) > scores[1] - 0.01


def test_groups_go_anywhere_and_it_is_said() -> None:
    cluster = Cluster(4, 2, [3, 4, 3, 4])
    made = plan(np.ones((1, 8)), cluster, num_groups=4)
    assert made.notes == ("groups are not kept on nodes: the GPUs differ in slots or speed",)


def test_what_is_not_planned_for() -> None:
    cluster = Cluster(3, 1, [2, 3, 4])
    loads = np.ones((1, 5))
    with pytest.raises(ClusterError, match="the GPUs differ in slots or speed"):
        plan(loads, cluster, dispatch="sglang")
    with pytest.raises(ClusterError, match="9 slots do not hold 10 experts"):
        plan(np.ones((1, 10)), cluster)
    fast = Cluster(2, 1, 3, speed=[1.0, 2.0])
    placement = plan(loads, fast).placement
    with pytest.raises(eplb.OptionError, match="the GPUs differ in speed"):
        eplb.dispatch(placement, loads).table()
    assert naive.num_duplicates(placement.phy2log[0].tolist(), 2) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 1, -1, -1, 2, 0], "phy2log[0, 2] is -1: experts are numbered 0 to 2"),
        ([0, 1, 2, 1, 2, 0], "phy2log[0, 5] is 0: GPU 1 has 2 slots, and the others are -1"),
    ],
)
def test_rows_of_another_shape(row: list[int], message: str) -> None:
    with pytest.raises(eplb.PlacementError) as raised:
        Placement(np.array([row]), 3, Cluster(2, 1, [3, 2]))
    assert str(raised.value) == message
