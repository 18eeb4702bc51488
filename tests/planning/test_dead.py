"""Plans where GPUs have died, come back, or never ran: the living hold every expert."""

from typing import Any

import naive
import numpy as np
import pytest
from numpy.typing import NDArray

import eplb
from eplb import Cluster, Placement, PlacementError, Plan, frontier, migrate, plan
from eplb.moving.verdict import judge
from eplb.planning.passes import solve
from eplb.planning.plan import what_is_left
from eplb.planning.problem import check_problem
from eplb.planning.relocate import relocate
from eplb.solver.curve import _alone_layers
from eplb.solver.search import Steps, _follow_layers

F64 = NDArray[np.float64]

CLUSTER = Cluster(num_gpus=6, num_nodes=2, slots_per_gpu=4)
LOADS = np.random.default_rng(0).lognormal(0.0, 0.8, (3, 14))


def hosts(placement: Placement, layer: int) -> list[set[int]]:
    """What each GPU holds."""
    rows = placement.phy2log[layer].reshape(placement.cluster.num_gpus, -1).tolist()
    return [set(row) - {-1} for row in rows]


def check(made: Plan, loads: F64, cluster: Cluster, current: Placement) -> None:
    """What holds of every plan from a current placement of as many GPUs."""
    placement = made.placement
    assert placement == Placement(placement.phy2log, loads.shape[1], cluster)
    by_gpu = placement.phy2log.reshape(len(loads), cluster.num_gpus, -1)
    assert (by_gpu[:, list(cluster.dead)] == -1).all()
    assert (by_gpu[:, list(cluster.alive)] >= 0).all()
    load = placement.gpu_load(loads)
    assert not load[:, list(cluster.dead)].any()
    moves, lost = 0, []
    for layer in range(len(loads)):
        now, before = hosts(placement, layer), hosts(current, layer)
        assert set().union(*now) == set(range(loads.shape[1]))
        kept = [before[gpu] if gpu in cluster.alive else set() for gpu in range(cluster.num_gpus)]
        moves += sum(len(mine - theirs) for mine, theirs in zip(now, kept, strict=True))
        lost += [(layer, expert) for expert in sorted(set().union(*before) - set().union(*kept))]
        for gpu in cluster.alive:
            old = current.phy2log[layer].reshape(cluster.num_gpus, -1)[gpu].tolist()
            new = by_gpu[layer, gpu].tolist()
            for expert in (now[gpu] & before[gpu]) - {-1}:
                assert any(was == is_ == expert for was, is_ in zip(old, new, strict=True))
        peak = max(
            naive.gpu_loads(
                placement.survivors.phy2log[layer].tolist(),
                loads[layer].tolist(),
                len(cluster.alive),
            )
        )
        assert made.peak[layer] == pytest.approx(peak, rel=1e-9)
    assert made.moves == moves == placement.moves_from(current)
    assert list(map(tuple, made.lost.tolist())) == lost
    assert (made.bound <= made.peak).all()


@pytest.mark.parametrize("dead", [[0], [5], [1, 4], [2, 3]])
def test_a_plan_for_those_alive_is_that_of_as_many_gpus(dead: list[int]) -> None:
    cluster = CLUSTER.without(dead)
    for options in ({}, {"num_groups": 2}, {"dispatch": "best"}):
        made = plan(LOADS, cluster, **options)
        alone = plan(LOADS, cluster.survivors, **options)
        assert made.placement.survivors == alone.placement
        assert made.placement.cluster == cluster
        assert np.array_equal(made.peak, alone.peak)
        assert len(made.lost) == 0


@pytest.mark.parametrize("seed", range(12))
def test_from_what_runs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loads = rng.lognormal(0.0, 0.8, (3, 12))
    before, after = (
        CLUSTER.without(rng.choice(6, rng.integers(0, 3), replace=False)) for _ in range(2)
    )
    current = plan(rng.permuted(loads, axis=1), before).placement
    check(plan(loads, after, current=current), loads, after, current)
    least = plan(loads, after, current=current, max_moves=1000, move_cost=1e9)
    check(least, loads, after, current)
    held = current.held_by(6)[:, list(after.alive)]
    if set(before.dead) <= set(after.dead):
        assert least.moves == len(least.lost) == sum((~held.any(axis=1)).sum(axis=1))
    with pytest.raises(eplb.OptionError, match="are the least that give every expert a slot"):
        plan(loads, after, current=current, max_moves=least.moves - 1)
    curve = frontier(loads, after, current)
    assert curve.moves[0] == least.moves
    for moves, balance, placement in zip(
        curve.moves, curve.balancedness, curve.placements, strict=True
    ):
        assert placement.cluster == after
        assert (placement.moves_from(current), placement.balancedness(loads)) == (moves, balance)


def test_the_budget_where_gpus_have_died() -> None:
    current = plan(LOADS, CLUSTER).placement
    dead = CLUSTER.without([3])
    made = plan(LOADS[:, ::-1].copy(), dead, current=current)
    assert made.moves == int(1.5 * 4 * 3)
    given = plan(LOADS[:, ::-1].copy(), dead, current=current, max_moves=18)
    assert given.peak.sum() <= made.peak.sum() <= given.peak.sum() * 1.05
    # A price that is given is the only limit, and where a GPU comes too there is none.
    dear = plan(LOADS[:, ::-1].copy(), dead, current=current, move_cost=0.0)
    assert dear.moves > 18
    again = plan(LOADS, CLUSTER.without([2]), current=made.placement)
    usual = 5e-4 * LOADS.sum(axis=1) / 5
    assert again.moves >= 3  # the GPU that is back holds something in each layer
    assert again.peak.sum() + usual.mean() * again.moves <= again.peak.sum() * 1.2


def test_moves_after_a_death_leave_freedom_to_other_splits() -> None:
    """What experts without another copy load a GPU with falls, and even peaks hardly rise."""
    loads = eplb.synthetic.deepseek_v3(seed=3)[:12]
    cluster = Cluster(32, 1, 10)
    current = plan(loads, cluster).placement
    even, best = np.zeros(2), np.zeros(2)
    for gpu in (5, 17, 30):
        dead = cluster.without([gpu])
        made = plan(loads, dead, current=current)
        given = plan(loads, dead, current=current, max_moves=int(1.5 * 10 * 12))
        assert made.moves <= given.moves
        for i, each in enumerate((made, given)):
            even[i] += each.placement.balancedness(loads)
            best[i] += each.placement.balancedness(loads, "best")
    assert even[0] > even[1] - 3 * 0.001
    assert best[0] > best[1] + 3 * 0.0002


def test_what_no_split_takes_off_a_gpu() -> None:
    problem = check_problem(LOADS, CLUSTER.without([3]), 1, None, None)
    layers = solve(problem, "default")
    walked = relocate(problem, plan(LOADS, CLUSTER).placement, layers, afresh=False, budget=30)
    alone = np.empty(walked.steps.peaks.shape)
    _alone_layers(problem.loads, walked.start, problem.gpus, walked.steps, alone)
    for layer, load in enumerate(LOADS):
        for step in range(walked.steps.length[layer] + 1):
            slots = walked.start[[layer]].copy()
            _follow_layers(_of_layer(walked.steps, layer), np.array([step]), slots)
            held = slots.reshape(5, 4)
            single = [[e for e in row if np.count_nonzero(held == e) == 1] for row in held]
            assert alone[layer, step] == pytest.approx(max(load[row].sum() for row in single))
        assert np.isinf(alone[layer, walked.steps.length[layer] + 1 :]).all()


def _of_layer(steps: Steps, layer: int) -> Steps:
    arrays: Any = [each[[layer]] for each in steps]
    return Steps(*arrays)


def test_layers_without_load_lose_experts_too() -> None:
    loads = LOADS.copy()
    loads[1] = 0.0
    current = plan(LOADS, CLUSTER).placement
    after = CLUSTER.without([0, 4])
    check(plan(loads, after, current=current), loads, after, current)


def test_groups_that_no_longer_divide_over_nodes() -> None:
    made = plan(LOADS, CLUSTER.without([3]), num_groups=2)
    assert any(note.startswith("groups are not kept on nodes") for note in made.notes)
    assert plan(LOADS, CLUSTER.without([0, 3]), num_groups=2).notes == ()


def test_what_is_left() -> None:
    current = plan(LOADS, CLUSTER).placement
    dead = CLUSTER.without([3])
    left = what_is_left(current, dead, LOADS)
    lost = current.lost_on(dead)
    assert len(lost)
    assert left.moves_from(current) == len(lost)
    with pytest.raises(PlacementError, match=f"^{len(lost)} experts have no copy on the GPUs"):
        current.without([3])
    rich = plan(LOADS[:, :6], CLUSTER).placement
    assert what_is_left(rich, dead, LOADS[:, :6]) == rich.without([3])
    assert what_is_left(current, CLUSTER, LOADS) is current


def test_advice_compares_with_what_is_left() -> None:
    windows = np.stack([LOADS, 1.1 * LOADS[:, ::-1]])
    current = plan(windows, CLUSTER).placement
    dead = CLUSTER.without([3])
    found = judge(windows, dead, current)
    left = what_is_left(current, dead, windows)
    assert found.action == "re-plan"
    assert found.now == pytest.approx(left.balancedness(windows))
    assert found.now < current.balancedness(windows)
    assert found.moves == found.plan.moves


def test_the_dead_send_nothing_but_what_the_checkpoint_gives() -> None:
    current = plan(LOADS, CLUSTER).placement
    dead = CLUSTER.without([3])
    made = plan(LOADS, dead, current=current)
    found = migrate(current, made.placement)
    assert found.num_transfers == made.moves
    from_dead = found.source == 3
    again = zip(found.layer[from_dead].tolist(), found.expert[from_dead].tolist(), strict=True)
    assert {tuple(pair) for pair in made.lost.tolist()} == set(again)
    assert found.num_lost == from_dead.sum()
    assert not (found.target == 3).any()


def test_gpus_that_leave_can_send() -> None:
    current = plan(LOADS, CLUSTER).placement
    made = plan(LOADS, CLUSTER.without([3, 5]), current=current)
    found = migrate(current, made.placement, leaving=[3])
    by_both = migrate(current, made.placement, leaving=[3, 5])
    dead = CLUSTER.without([5])
    assert (found.num_transfers, found.num_lost) == (made.moves, len(current.lost_on(dead)))
    assert found.num_lost == (found.source == 5).sum()
    assert (found.source == 3).any()
    assert by_both.num_lost == 0
    held = current.held_by(6)
    mine = by_both.source_slot >= 0
    assert held[by_both.layer, by_both.source, by_both.expert][mine].all()
    with pytest.raises(
        eplb.OptionError, match="GPU 2 is leaving, and the new placement has experts on it: give"
    ):
        migrate(current, made.placement, leaving=[2])


WRONG: list[tuple[Any, str]] = [
    (
        lambda: Placement(np.zeros((1, 24), int), 1, CLUSTER.without([1])),
        r"phy2log\[0, 4\] is 0: GPU 1 is dead",
    ),
    (lambda: Placement(np.full((1, 24), -1), 1, CLUSTER), r"phy2log\[0, 0\] is -1: experts are"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_slots_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        make()
