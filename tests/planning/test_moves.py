"""`plan` from the placement that runs: budgets, prices, slots that stay, clusters that change."""

from pathlib import Path
from random import Random
from typing import Any

import naive
import naive_moves
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorded import DEEPSEEK_V3, load_recorded
from strategies import COMPILED
from strategies import loads as some_loads

from eplb import (
    Cluster,
    LoadsError,
    LoadTrace,
    OptionError,
    Placement,
    PlacementError,
    Plan,
    frontier,
    plan,
)
from eplb.synthetic import deepseek_v3

F64 = NDArray[np.float64]


@st.composite
def cases(draw: st.DrawFn, *, same_cluster: bool = False) -> tuple[F64, Placement, dict[str, Any]]:
    """Windows [T, L, E], the placement that runs, of the cluster or another, and what to plan."""
    num_nodes = draw(st.integers(1, 3))
    gpus, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    cluster = Cluster(num_nodes * gpus, num_nodes, size)
    groups = draw(st.integers(1, 2)) if num_nodes > 1 else 1
    most = gpus * size
    if draw(st.booleans()):
        num_experts = num_nodes * groups * draw(st.integers(1, max(1, most // groups)))
        num_groups = num_nodes * groups
        if num_experts > cluster.num_slots:
            num_experts, num_groups = cluster.num_slots, num_nodes
    else:
        num_experts, num_groups = draw(st.integers(1, cluster.num_slots)), 1
    num_windows = draw(st.integers(1, 3))
    first = draw(some_loads(num_experts))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    windows = np.stack([rng.permutation(first, axis=1) for _ in range(num_windows)])
    if num_windows > 1 and draw(st.booleans()):
        windows[0] = 0.0
    old = cluster
    if not same_cluster and draw(st.booleans()):
        old_size = draw(st.integers(1, 4))
        old = Cluster(-(-num_experts // old_size) + draw(st.integers(0, 4)), 1, old_size)
    if draw(st.booleans()):
        earlier = rng.permutation(first, axis=1)
        current = plan(earlier, old, num_groups=num_groups if old == cluster else 1).placement
    else:
        more = rng.integers(0, num_experts, (first.shape[0], old.num_slots - num_experts))
        every = np.tile(np.arange(num_experts), (first.shape[0], 1))
        slots = rng.permuted(np.concatenate([every, more], axis=1), axis=1)
        current = Placement(slots, num_experts, old)
    assume(windows.any())
    return windows, current, {"cluster": cluster, "num_groups": num_groups, "threads": 1}


def held(placement: Placement, layer: int, num_gpus: int) -> list[set[int]]:
    """What so many GPUs hold of a layer, those that a placement does not have nothing."""
    rows = placement.phy2log[layer].reshape(placement.cluster.num_gpus, -1)[:num_gpus].tolist()
    return [set(row) for row in rows] + [set()] * (num_gpus - len(rows))


def check(
    made: Plan,
    windows: F64,
    current: Placement,
    cluster: Cluster,
    num_groups: int,
    threads: int = 1,
    dispatch: str = "even",
) -> None:
    """What holds of every plan from a current placement, whatever the budget and the rule."""
    placement = made.placement
    num_experts = windows.shape[2]
    assert placement == Placement(placement.phy2log, num_experts, cluster)
    num_gpus, size = cluster.num_gpus, cluster.slots_per_gpu
    old_size = min(size, current.cluster.slots_per_gpu)
    moves = 0
    for layer, slots in enumerate(placement.phy2log.tolist()):
        before = held(current, layer, num_gpus)
        moves += naive_moves.received(slots, before)
        old = current.phy2log[layer].reshape(current.cluster.num_gpus, -1).tolist()
        new = naive_moves.hosts(slots, num_gpus)
        for was, now in zip(old, new, strict=False):
            # Where slots are taken away, experts in the others keep theirs.
            for expert in set(now):
                kept = sum(now[slot] == was[slot] == expert for slot in range(old_size))
                assert kept == min(now.count(expert), was[:old_size].count(expert))
        loaded = windows[:, layer].any()
        if not loaded and cluster == current.cluster:
            assert slots == current.phy2log[layer].tolist()
        if num_groups % cluster.num_nodes == 0 and loaded:
            group_size = num_experts // num_groups
            nodes = [
                {expert // group_size for expert in node}
                for node in naive_moves.hosts(slots, cluster.num_nodes)
            ]
            assert sorted(group for node in nodes for group in node) == list(range(num_groups))
            assert {len(node) for node in nodes} == {num_groups // cluster.num_nodes}
        peak = 0.0
        if loaded and dispatch == "best":
            of_layer = windows[:, [layer]]
            of_layer = of_layer[of_layer.any(axis=(1, 2))]
            of_layer = (
                of_layer / of_layer.sum(axis=2, keepdims=True) * of_layer.sum() / len(of_layer)
            )
            one = Placement(placement.phy2log[[layer]], num_experts, cluster)
            peak = one.gpu_load(of_layer, "best").max(axis=2).mean()
        elif loaded:
            of_layer = windows[:, layer].tolist()
            peak = naive.expected_peak(slots, of_layer, [1.0] * len(of_layer), num_gpus)
        assert made.peak[layer] == pytest.approx(peak, rel=1e-9)
    assert made.moves == moves == placement.moves_from(current)
    assert (made.bound <= made.peak).all()


def least_budget(windows: F64, current: Placement, how: dict[str, Any]) -> int:
    """The least number of moves that is not refused, as the refusal of 0 names it."""
    try:
        plan(windows, current=current, max_moves=0, **how)
    except OptionError as error:
        words = str(error).split()
        assert words[:3] == ["max_moves", "is", "0:"]
        return int(words[3])
    return 0


@given(cases(), st.sampled_from(["fast", "default"]), st.data())
def test_every_budget(
    case: tuple[F64, Placement, dict[str, Any]], effort: Any, data: st.DataObject
) -> None:
    windows, current, how = case
    free = plan(windows, current=current, max_moves=10**9, effort=effort, **how)
    check(free, windows, current, **how)
    least = least_budget(windows, current, how)
    budget = data.draw(st.integers(least, max(least, free.moves)))
    for most in {least, budget}:
        made = plan(windows, current=current, max_moves=most, effort=effort, **how)
        check(made, windows, current, **how)
        assert made.moves <= most
    if least:
        grouped = how["num_groups"] % how["cluster"].num_nodes == 0 and how["cluster"].num_nodes > 1
        words = "enough to" if grouped else "the least that"
        with pytest.raises(OptionError, match=f"max_moves is {least - 1}: {least} are {words}"):
            plan(windows, current=current, max_moves=least - 1, effort=effort, **how)


@given(cases())
def test_no_budget(case: tuple[F64, Placement, dict[str, Any]]) -> None:
    """Each layer comes as near to its bound as a plan made afresh, or nearer, where moves are
    free.
    """
    windows, current, how = case
    priced = plan(windows, current=current, **how)
    free = plan(windows, current=current, move_cost=0.0, **how)
    afresh = plan(windows, **how)
    assert (free.peak <= np.maximum(afresh.peak, afresh.bound * (1.0 + 4e-4)) * (1.0 + 1e-9)).all()
    for made in (priced, free):
        check(made, windows, current, **how)


@given(cases(), st.sampled_from(["fast", "default"]))
@settings(max_examples=40 if COMPILED else 5)
def test_more_budget_is_never_worse(
    case: tuple[F64, Placement, dict[str, Any]], effort: Any
) -> None:
    """Whatever runs, second copies on a GPU too; at a price the peaks and what moves cost."""
    windows, current, how = case
    unit = windows.sum(axis=2).mean(axis=0).max() / how["cluster"].num_gpus
    least = least_budget(windows, current, how)
    for price in (None, 0.02 * unit):
        last = None
        for budget in (*range(least, least + 7), least + 12, least + 30):
            made = plan(
                windows, current=current, max_moves=budget, move_cost=price, effort=effort, **how
            )
            if last is not None:
                assert made.peak.sum() <= last.peak.sum() * (1.0 + 1e-9)
                falls = last.peak.sum() - made.peak.sum()
                paid = (price or 0.0) * (made.moves - last.moves)
                assert falls >= paid - 1e-9 * unit
            last = made


def test_a_walk_that_comes_near_hides_no_plan_of_as_few_moves() -> None:
    """Both take 12 moves; without spare ones there was no walk, and the better plan was found."""
    windows = np.array([[[0.0025, 0.0, 0.0, 0.0, 1.0, 7.389, 0.0, 1.0]]])
    current = Placement(np.array([[3, 2, 0, 1, 7, 6, 4, 5]]), 8, Cluster(8, 1, slots_per_gpu=1))
    cluster = Cluster(2, 2, slots_per_gpu=4)
    for how in ({"max_moves": 6}, {"max_moves": 7}, {}, {"move_cost": 0.0}, {"move_cost": 1e-4}):
        made = plan(windows, cluster, current=current, threads=1, **how)
        assert (made.moves, made.peak[0]) == (6, pytest.approx(7.389)), how


@given(cases())
def test_what_a_plan_made_moves_no_further(case: tuple[F64, Placement, dict[str, Any]]) -> None:
    """A second plan for the same loads leaves the first, of any budget and price, as it is."""
    windows, _, how = case
    made = plan(windows, **how)
    for more in ({}, {"max_moves": 0}, {"max_moves": 1000}, {"move_cost": 0.0}):
        again = plan(windows, current=made.placement, **more, **how)
        assert again.moves == 0
        assert again.placement == made.placement
        assert np.array_equal(again.peak, made.peak)


@given(cases())
def test_price(case: tuple[F64, Placement, dict[str, Any]]) -> None:
    """A higher price never buys more moves; each that it buys is worth it."""
    windows, current, how = case
    unit = windows.sum(axis=2).mean(axis=0).max() / how["cluster"].num_gpus
    last = None
    for price in (0.0, 1e-3, 0.02, 0.3, 10.0):
        made = plan(windows, current=current, move_cost=price * unit, **how)
        check(made, windows, current, **how)
        if last is not None:
            assert made.moves <= last.moves
            gained = made.peak.sum() - last.peak.sum()
            assert gained <= (last.moves - made.moves) * price * unit * (1.0 + 1e-9) + 1e-9 * unit
            assert gained >= -1e-9 * made.peak.sum()
        last = made


@pytest.mark.skipif(not COMPILED, reason="takes minutes without compiled kernels")
@given(cases(), st.integers(0, 9))
@settings(max_examples=3)
def test_moves_for_a_best_split(case: tuple[F64, Placement, dict[str, Any]], more: int) -> None:
    """Plans and frontiers from what runs hold to budgets, prices and what stays, split best."""
    windows, current, how = case
    how |= {"dispatch": "best", "effort": "fast"}
    least = least_budget(windows, current, how)
    unit = windows.sum(axis=2).mean(axis=0).max() / how["cluster"].num_gpus
    last = None
    for budget in (least, least + more):
        made = plan(windows, current=current, max_moves=budget, **how)
        how_checked = {name: each for name, each in how.items() if name != "effort"}
        check(made, windows, current, **how_checked)
        assert made.moves <= budget
        assert made.dispatch == "best"
        assert last is None or made.peak.sum() <= last.peak.sum() * (1.0 + 1e-9)
        last = made
    again = plan(windows[::-1], current=current, max_moves=budget, **how | {"threads": 3})
    assert again.placement == made.placement
    afresh = plan(windows, **how)
    free = plan(windows, current=current, move_cost=0.0, **how)
    dear = plan(windows, current=current, move_cost=0.1 * unit, **how)
    assert dear.moves <= free.moves
    assert dear.peak.sum() - free.peak.sum() <= 0.1 * unit * (free.moves - dear.moves) + 1e-9 * unit
    if len(windows) == 1:  # else nothing is planned from scratch
        level = np.maximum(afresh.peak, afresh.bound * (1.0 + 4e-4))
        assert (free.peak <= level * (1.0 + 1e-9)).all()
    curve = frontier(windows, current=current, **how)
    assert (np.diff(curve.moves) > 0).all()
    assert (np.diff(curve.peak) < 0.0).all()
    for moves, placement in zip(curve.moves, curve.placements, strict=True):
        assert placement.moves_from(current) == moves


@given(cases(), st.sampled_from(["fast", "default"]), st.integers(0, 9), st.randoms())
@settings(max_examples=40 if COMPILED else 5)
def test_order_and_windows_that_count_for_nothing_change_nothing(
    case: tuple[F64, Placement, dict[str, Any]], effort: Any, moves: int, random: Random
) -> None:
    windows, current, how = case
    counts = np.array([random.choice([0.5, 1.0, 2.0]) for _ in windows])
    order = random.sample(range(len(windows)), len(windows))
    at = random.randrange(len(windows) + 1)
    others = [
        (windows[order], counts[order]),
        (np.insert(windows, at, 0.0, axis=0), np.insert(counts, at, 1.0)),
        (np.insert(windows, at, windows[0, ::-1] * 1e-9, axis=0), np.insert(counts, at, 0.0)),
    ]
    budget = least_budget(windows, current, how) + moves
    for more in ({}, {"max_moves": budget}, {"move_cost": 0.1, "max_moves": budget}):
        how_all = {"current": current, "effort": effort, **more, **how}
        made = plan(windows, weights=counts, **how_all)
        for some, of_them in others:
            again = plan(some, weights=of_them, **how_all)
            assert again.placement == made.placement
            assert (again.peak.tolist(), again.moves) == (made.peak.tolist(), made.moves)


@given(cases(same_cluster=True), st.integers(0, 9))
@settings(max_examples=40 if COMPILED else 5)
def test_layers_without_load_cost_nothing(
    case: tuple[F64, Placement, dict[str, Any]], moves: int
) -> None:
    """Others are planned as if they were not there, within any budget and at any price."""
    windows, current, how = case
    loaded = np.flatnonzero(windows.any(axis=(0, 2)))
    alone = Placement(current.phy2log[loaded], current.num_experts, current.cluster)
    budget = least_budget(windows, current, how) + moves
    for more in ({}, {"max_moves": budget}, {"move_cost": 0.1}):
        made = plan(windows, current=current, **more, **how)
        assert made.moves == made.placement.moves_by_layer(current)[loaded].sum()
        wanted = plan(windows[:, loaded], current=alone, **more, **how)
        assert np.array_equal(made.placement.phy2log[loaded], wanted.placement.phy2log)
        assert (made.moves, made.peak[loaded].tolist()) == (wanted.moves, wanted.peak.tolist())


def test_moves_to_recorded_loads(traces: Path) -> None:
    """The share of all slots that GPUs receive, for a balancedness of .98 or more."""
    cluster = Cluster(32, 1, 9)
    old = load_recorded(traces, "prefill_in512")
    current = plan(old, cluster).placement
    slots = int(old.any(axis=1).sum()) * cluster.num_slots
    noisy = old * np.random.default_rng(0).lognormal(0.0, 0.05, old.shape)
    for new, share in (
        (load_recorded(traces, "prefill_in2048"), 0.09),
        (load_recorded(traces, "decode_in500out1500"), 0.12),
        (noisy, 0.025),
    ):
        made = plan(new, cluster, current=current, max_moves=int(share * slots))
        assert made.moves <= share * slots
        assert made.placement.balancedness(new) >= 0.98
        assert made.placement.num_duplicates == 0
    assert plan(old, cluster, current=current).moves == 0


def test_more_moves_never_do_worse_on_recorded_loads(traces: Path) -> None:
    cluster = Cluster(32, 1, 9)
    current = plan(load_recorded(traces, "prefill_in512"), cluster).placement
    loads = load_recorded(traces, "decode_in1800out100")
    afresh = plan(loads, cluster)
    last = current.gpu_load(loads).max(axis=1).sum()
    for budget in (*range(0, 300, 37), *range(300, 4000, 290), 20_000):
        made = plan(loads, cluster, current=current, max_moves=budget)
        assert made.moves <= budget
        assert made.peak.sum() <= last
        last = made.peak.sum()
    assert (made.peak <= np.maximum(afresh.peak, made.bound * (1.0 + 4e-4))).all()
    assert made.moves < afresh.placement.moves_from(current) / 2


def test_few_moves_are_needed_where_batches_are_split_best(traces: Path) -> None:
    """The share of all slots that GPUs receive, for a balancedness of .98 or more."""
    old = load_recorded(traces, "prefill_in512")[3::9]
    prefill, decode = (
        load_recorded(traces, name)[3::9] for name in ("prefill_in2048", "decode_in500out1500")
    )
    for slots, loads, share in ((9, prefill, 0.02), (9, decode, 0.04), (10, decode, 0.01)):
        cluster = Cluster(32, 1, slots)
        current = plan(old, cluster, effort="fast").placement
        budget = int(share * current.phy2log.size)
        made = plan(loads, cluster, current=current, max_moves=budget, dispatch="best")
        assert made.placement.balancedness(loads, "best") >= 0.98 > current.balancedness(loads)


def test_windows_of_recorded_loads(traces: Path) -> None:
    """Several windows: the expected peak comes down, by both efforts, within the budget."""
    cluster = Cluster(32, 1, 9)
    windows = np.stack([load_recorded(traces, name)[3:9] for name in DEEPSEEK_V3[:4]])
    weights = [4.0, 1.0, 2.0, 0.0]
    current = plan(windows[2], cluster).placement
    afresh = plan(windows, cluster, weights=weights)
    stays = plan(windows, cluster, weights=weights, current=current, max_moves=0)
    assert stays.placement == current
    for effort, budget in (("fast", 150), ("default", 150), ("fast", None), ("default", None)):
        made = plan(
            windows,
            cluster,
            weights=weights,
            current=current,
            max_moves=budget,
            effort=effort,  # type: ignore[arg-type]
        )
        assert made.moves <= (budget or cluster.num_slots * 6)
        assert made.peak.sum() < stays.peak.sum()
        assert made.moves < afresh.placement.moves_from(current) / 2
        for layer, slots in enumerate(made.placement.phy2log.tolist()):
            of_layer = windows[:, layer].tolist()
            peak = naive.expected_peak(slots, of_layer, weights, 32)
            assert made.peak[layer] == pytest.approx(peak, rel=1e-9)


def test_budget_goes_where_it_gains_most() -> None:
    """One layer is out of balance, the others are not: all moves are its."""
    rng = np.random.default_rng(4)
    loads = rng.lognormal(size=(5, 32))
    cluster = Cluster(8, 1, 5)
    current = plan(loads, cluster).placement
    loads[3] = loads[3][::-1].copy()
    made = plan(loads, cluster, current=current, max_moves=6)
    by_layer = made.placement.moves_by_layer(current)
    assert by_layer[3] == by_layer.sum() == made.moves > 0


def test_plan_made_afresh_is_used_where_names_make_it_near() -> None:
    """GPUs in another order and every slot in another place: nothing moves but the names."""
    rng = np.random.default_rng(1)
    loads = rng.lognormal(size=(4, 32))
    cluster = Cluster(8, 1, 5)
    made = plan(loads, cluster).placement
    gpus = rng.permuted(made.phy2log.reshape(4, 8, 5), axis=2)[:, rng.permutation(8)]
    current = Placement(gpus.reshape(4, -1), 32, cluster)
    assert plan(loads, cluster, current=current, max_moves=0).placement == current
    assert plan(loads, cluster, current=current).placement == current


def test_layers_without_load_stay() -> None:
    rng = np.random.default_rng(0)
    loads = rng.lognormal(size=(3, 8))
    cluster = Cluster(4, 1, 3)
    current = Placement.contiguous(3, 8, cluster)
    loads[1] = 0.0
    made = plan(loads, cluster, current=current)
    assert made.moves > 0
    assert made.placement.phy2log[1].tolist() == current.phy2log[1].tolist()
    assert made.peak[1] == made.bound[1] == 0.0


def test_no_load_at_all_moves_nothing() -> None:
    cluster = Cluster(4, 1, 3)
    current = Placement.contiguous(2, 8, cluster)
    made = plan(np.zeros((2, 8)), cluster, current=current)
    assert made.placement == current
    assert made.peak.tolist() == [0.0, 0.0]
    assert made.notes == ()


@pytest.mark.parametrize("weights", [None, [0.0, 0.0, 2.0]])
def test_several_windows_of_which_none_has_load(weights: list[float] | None) -> None:
    windows = np.zeros((3, 2, 8))
    windows[:2] = 0.0 if weights is None else 1.0
    message = "none of 3 windows has any load: give at least one that has"
    with pytest.raises(LoadsError, match=message):
        plan(windows, Cluster(4, 1, 3), weights=weights)


@pytest.mark.parametrize("with_current", [True, False])
def test_windows_without_load_are_said(with_current: bool) -> None:
    rng = np.random.default_rng(0)
    windows = rng.lognormal(size=(9, 2, 8))
    cluster = Cluster(4, 1, 3)
    current = Placement.contiguous(2, 8, cluster) if with_current else None
    assert plan(windows, cluster, current=current).notes == ()
    windows[[1, 4]] = 0.0
    made = plan(windows, cluster, current=current)
    assert made.notes == ("2 of 9 windows have no load and were left out: 1, 4",)
    without = plan(np.delete(windows, [1, 4], axis=0), cluster, current=current)
    assert made.peak == pytest.approx(without.peak, rel=1e-2)
    # A window that counts for nothing is not missed.
    weights = [1.0, 0.0] + [1.0] * 7
    notes = plan(windows, cluster, current=current, weights=weights).notes
    assert notes == ("1 of 9 windows have no load and were left out: 4",)
    windows[2:8] = 0.0
    notes = plan(windows, cluster, current=current).notes
    assert notes == ("7 of 9 windows have no load and were left out: 1, 2, 3, 4, 5, ...",)


def test_tiny_loads_and_the_highest_prices() -> None:
    """Squares of these loads are 0; a price is in their unit."""
    rng = np.random.default_rng(3)
    loads, cluster = rng.lognormal(size=(3, 24)), Cluster(16, 1, 2)
    current, unit = plan(rng.lognormal(size=(3, 24)), cluster).placement, 2.0**-900
    wanted = plan(loads, cluster, current=current, move_cost=0.1)
    made = plan(loads * unit, cluster, current=current, move_cost=0.1 * unit)
    assert made.placement == wanted.placement
    assert made.peak.tolist() == (wanted.peak * unit).tolist()
    for some in (loads, loads * unit):
        assert plan(some, cluster, current=current, move_cost=1e308).moves == 0
    points = frontier(loads, cluster, current)
    of_tiny = frontier(loads * unit, cluster, current)
    assert of_tiny.peak.tolist() == (points.peak * unit).tolist()


def test_second_copies_stay_where_they_cost_nothing() -> None:
    """They go where that lowers the peak by what it costs, and only there."""
    cluster = Cluster(2, 1, 3)
    current = Placement(np.array([[0, 0, 1, 2, 2, 3]]), 4, cluster)
    for more in ({}, {"max_moves": 2}, {"move_cost": 0.0}):
        assert plan([[1.0, 1.0, 1.0, 1.0]], cluster, current=current, **more).moves == 0
    made = plan([[3.0, 1.0, 2.0, 2.0]], cluster, current=current, max_moves=0)
    assert made.peak.tolist() == [4.0]
    loads = [[8.0, 1.0, 1.0, 1.0]]
    assert plan(loads, cluster, current=current, move_cost=4.0).moves == 0
    made = plan(loads, cluster, current=current, move_cost=1.0)
    assert 0 < made.moves <= 9.0 - made.peak[0]


GROWN = [
    (Cluster(8, 1, 4), Cluster(12, 1, 4)),
    (Cluster(8, 1, 4), Cluster(8, 1, 6)),
    (Cluster(8, 1, 5), Cluster(6, 1, 5)),
    (Cluster(8, 1, 5), Cluster(8, 1, 4)),
    (Cluster(8, 2, 5), Cluster(6, 3, 8)),
    (Cluster(6, 1, 6), Cluster(12, 4, 3)),
]


@pytest.mark.parametrize("num_groups", [1, 12])
@pytest.mark.parametrize(("old", "new"), GROWN)
def test_clusters_grow_and_shrink(old: Cluster, new: Cluster, num_groups: int) -> None:
    rng = np.random.default_rng(7)
    loads = rng.lognormal(size=(3, 24))
    current = plan(loads, old).placement
    how = {"cluster": new, "num_groups": num_groups}
    windows = loads[None]
    least = least_budget(windows, current, how)
    if num_groups % new.num_nodes or new.num_nodes == 1:
        by_hand = 0
        for layer in range(3):
            of_gpus = held(current, layer, new.num_gpus)
            missing = 24 - len(set().union(*of_gpus))
            by_hand += max(missing, sum(not each for each in of_gpus))
        # No bound where slots were taken away: what stays has to fit.
        assert least == by_hand or (least > by_hand and new.slots_per_gpu < old.slots_per_gpu)
    afresh = plan(loads, **how)  # type: ignore[arg-type]
    all_moves = afresh.placement.moves_from(current)
    for budget in (least, least + 3, (least + all_moves) // 2, all_moves, 10 * all_moves):
        made = plan(loads, current=current, max_moves=budget, **how)  # type: ignore[arg-type]
        check(made, windows, current, **how)  # type: ignore[arg-type]
        assert made.moves <= budget
    assert (made.peak <= np.maximum(afresh.peak, afresh.bound * (1.0 + 4e-4)) * (1.0 + 1e-9)).all()


def test_gpus_that_are_taken_away_are_the_last() -> None:
    loads = [[4.0, 3.0, 2.0, 1.0]]
    current = Placement(np.array([[0, 1, 2, 3, 0, 1]]), 4, Cluster(3, 1, 2))
    made = plan(loads, Cluster(2, 1, 2), current=current, max_moves=0)
    assert made.placement.phy2log.tolist() == [[0, 1, 2, 3]]


def test_rows_of_what_runs_are_taken_by_number() -> None:
    """The placement has a dense layer before, and one that predicts further tokens behind."""
    rng = np.random.default_rng(0)
    loads = rng.integers(1, 900, (4, 8)).astype(float)
    loads[3] = 0.0
    cluster = Cluster(4, 1, 3)
    rows = plan(rng.integers(1, 900, (5, 8)), cluster).placement.phy2log
    running = Placement(rows, 8, cluster, (0, 3, 4, 5, 61))
    trace = LoadTrace(loads, layers=(3, 4, 5, 6))
    kept = plan(trace, cluster, current=running, max_moves=0)
    start = Placement.contiguous(1, 8, cluster).phy2log
    assert kept.placement.layers == (3, 4, 5, 6)
    assert np.array_equal(kept.placement.phy2log, np.concatenate([rows[1:4], start]))
    other = LoadTrace(loads, layers=(3, 4, 7, 61))
    with pytest.raises(PlacementError, match="has none for layer 7: give the placement of this"):
        plan(other, cluster, current=running)
    # Without numbers, counts must agree.
    with pytest.raises(PlacementError, match="current has 5 layers of 8 experts, the loads have 4"):
        plan(LoadTrace(loads), cluster, current=running)


def test_a_larger_budget_after_growth_is_never_worse() -> None:
    """With few moves, with just as many as fill the GPUs that came, and with more."""
    loads = deepseek_v3(seed=6)[:2]
    old = plan(loads, Cluster(16, slots_per_gpu=18)).placement
    budgets = [part * 2 * 4 * 18 // 100 for part in (50, 99, 100, 110, 130)]
    last = np.inf
    for most in budgets:
        made = plan(loads, Cluster(20, slots_per_gpu=18), current=old, max_moves=most)
        assert made.moves == made.placement.moves_from(old) <= most
        assert made.peak.sum() <= last
        last = made.peak.sum()
