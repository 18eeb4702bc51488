"""Nodes as a preference: other nodes of a token against every token there is, and plans at a price
of them.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import eplb
from eplb import (
    Cluster,
    ClusterError,
    LoadsError,
    OptionError,
    Placement,
    Traffic,
    other_nodes,
    plan,
)
from eplb.solver.node_trades import _fit_odds
from eplb.synthetic import deepseek_v3

F64 = NDArray[np.float64]


def sent(copies: Sequence[int], coming: Sequence[float], near: bool) -> list[list[float]]:
    """What part of an expert's tokens from each node goes to each node, of copies on nodes."""
    room = [number / sum(copies) for number in copies]
    if not near:
        return [room for _ in copies]
    here = [min(part, of_node) for part, of_node in zip(room, coming, strict=True)]
    left = [part - mine for part, mine in zip(room, here, strict=True)]
    parts = []
    for node, of_node in enumerate(coming):
        away = of_node - here[node]
        row = [away * other / sum(left) / of_node if away > 1e-9 else 0.0 for other in left]
        row[node] += here[node] / of_node
        parts.append(row)
    return parts


def others_of_every_token(
    row: Sequence[int],
    by_node: F64,
    odds: Sequence[Sequence[float]],
    num_groups: int,
    groups: int,
    picks: int,
    near: bool,
) -> float:
    """Other nodes of a token, over all sources, sets of groups and experts in them."""
    num_nodes, num_experts = by_node.shape
    size, per_node = num_experts // num_groups, len(row) // num_nodes
    parts = {}
    for expert in range(num_experts):
        copies = [row[n * per_node : (n + 1) * per_node].count(expert) for n in range(num_nodes)]
        coming = by_node[:, expert] / by_node[:, expert].sum()
        parts[expert] = sent(copies, coming.tolist(), near)
    expected = 0.0
    for node in range(num_nodes):
        loads = by_node[node]
        sets = list(itertools.combinations(range(num_groups), groups))
        weight = [math.prod(odds[node][group] for group in chosen) for chosen in sets]
        for chosen, of_set in zip(sets, weight, strict=True):
            members = [range(group * size, (group + 1) * size) for group in chosen]
            every = [itertools.product(group, repeat=picks) for group in members]
            for token in itertools.product(*every):
                experts = list(itertools.chain(*token))
                chance = of_set / sum(weight) * loads.sum() / by_node.sum()
                for group, picked in zip(members, token, strict=True):
                    total = sum(loads[each] for each in group)
                    chance *= math.prod(loads[each] / total for each in picked)
                for other in range(num_nodes):
                    if other != node:
                        missed = math.prod(1 - parts[each][node][other] for each in experts)
                        expected += chance * (1 - missed)
    return expected


def some_rows(rng: np.random.Generator, num_experts: int, slots: int) -> list[int]:
    """Slots in which every expert is."""
    more = rng.integers(num_experts, size=slots - num_experts)
    row: list[int] = rng.permutation(np.concatenate([np.arange(num_experts), more])).tolist()
    return row


@pytest.mark.parametrize("copies", ["near", "any"])
@pytest.mark.parametrize("known", [False, True])
def test_without_groups(copies: str, known: bool) -> None:
    rng = np.random.default_rng(5)
    cluster = Cluster(num_gpus=6, num_nodes=3, slots_per_gpu=2)
    for _ in range(5):
        row, loads = some_rows(rng, 5, 12), rng.integers(1, 50, (1, 5)).astype(float)
        # Two ranks on each node.
        ranks = rng.integers(1, 30, (6, 1, 5)).astype(float)
        by_node = np.repeat(loads, 3, axis=0) / 3
        if known:
            counts = ranks.reshape(3, 2, 5).sum(axis=1)
            by_node = loads * counts / counts.sum(axis=0)
        traffic = Traffic(top_k=3, sources=ranks if known else None, copies=copies)
        expected = others_of_every_token(row, by_node, [[1.0]] * 3, 1, 1, 3, copies == "near")
        found = other_nodes(Placement(np.array([row]), 5, cluster), loads, traffic)
        assert found == pytest.approx([expected], rel=1e-9)


def test_with_groups() -> None:
    rng = np.random.default_rng(6)
    cluster = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)
    for _ in range(4):
        row, loads = some_rows(rng, 8, 12), rng.integers(10, 20, (1, 8)).astype(float)
        chances = 2 * loads.reshape(1, 4, 2).sum(axis=2) / loads.sum()
        odds, sums = np.empty((1, 4)), np.empty(1)
        _fit_odds(chances, 2, odds, sums)
        by_node = np.repeat(loads, 2, axis=0) / 2
        expected = others_of_every_token(row, by_node, [odds[0].tolist()] * 2, 4, 2, 2, True)
        traffic = Traffic(top_k=4, topk_groups=2)
        found = other_nodes(Placement(np.array([row]), 8, cluster), loads, traffic, num_groups=4)
        assert found == pytest.approx([expected], rel=1e-9)


def test_odds_give_each_group_its_chance() -> None:
    chances = np.array([[0.9, 0.5, 0.5, 0.1], [0.999, 0.6, 0.3, 0.101], [0.5, 0.5, 0.5, 0.5]])
    odds, sums = np.empty(chances.shape), np.empty(3)
    _fit_odds(chances, 2, odds, sums)
    for row, expected, total in zip(odds, chances, sums, strict=True):
        found = np.zeros(4)
        for pair in itertools.combinations(range(4), 2):
            found[list(pair)] += row[pair[0]] * row[pair[1]]
        assert found / total == pytest.approx(expected, abs=1e-4)


def test_a_token_stays_where_every_expert_is_and_goes_everywhere_at_most() -> None:
    cluster = Cluster(num_gpus=2, num_nodes=2, slots_per_gpu=4)
    everywhere = Placement(np.array([[0, 1, 2, 3, 0, 1, 2, 3]]), 4, cluster)
    loads = np.array([[4.0, 3.0, 2.0, 1.0]])
    assert other_nodes(everywhere, loads, Traffic(top_k=2)).tolist() == [0.0]
    assert other_nodes(everywhere, loads, Traffic(top_k=2, copies="any")) == pytest.approx(0.75)
    assert other_nodes(everywhere, np.zeros((1, 4)), Traffic(top_k=2)).tolist() == [0.0]
    one = Placement(everywhere.phy2log, 4, Cluster(2, 1, 4))
    assert other_nodes(one, loads, Traffic(top_k=2)).tolist() == [0.0]
    # Twice the windows, and loads that are seen beside sources, change nothing.
    assert other_nodes(everywhere, [loads, loads], Traffic(top_k=2, copies="any")) == pytest.approx(
        0.75
    )


LOADS = deepseek_v3(seed=3)[:2]
CLUSTER = Cluster(num_gpus=16, num_nodes=4, slots_per_gpu=18)


def routed(price: float | None = None) -> Traffic:
    return Traffic(top_k=8, topk_groups=4, price=price)


def test_no_price_no_change_and_no_price_for_what_is_free() -> None:
    bare = plan(LOADS, CLUSTER)
    counted = plan(LOADS, CLUSTER, traffic=routed(), num_groups=8)
    grouped = plan(LOADS, CLUSTER, num_groups=8)
    assert counted.placement == grouped.placement
    assert counted.other_nodes is not None
    assert grouped.other_nodes is None
    free = plan(LOADS, CLUSTER, num_groups=8, traffic=routed(0))
    # The GPUs hold what they held, and stand on other nodes.
    for held, named in zip(bare.placement.phy2log, free.placement.phy2log, strict=True):
        assert sorted(held.reshape(16, 18).tolist()) == sorted(named.reshape(16, 18).tolist())
    before = other_nodes(bare.placement, LOADS, routed(), num_groups=8)
    assert free.other_nodes is not None
    assert (free.other_nodes < before).all()


def test_gpus_are_named_as_well_as_can_be() -> None:
    rng = np.random.default_rng(8)
    cluster = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=3)
    for _ in range(10):
        loads = rng.integers(1, 50, (1, 8)).astype(float)
        held = plan(loads, cluster).placement.phy2log.reshape(4, 3)
        each = [[0, other, *({1, 2, 3} - {other})] for other in (1, 2, 3)]
        rows = [Placement(held[order].reshape(1, 12), 8, cluster) for order in each]
        traffic = Traffic(top_k=2, price=0)
        least = min(other_nodes(row, loads, traffic)[0] for row in rows)
        made = plan(loads, cluster, traffic=traffic)
        assert made.other_nodes == pytest.approx([least])


@pytest.mark.parametrize("windows", [LOADS, np.stack([LOADS, LOADS[:, ::-1] + LOADS])])
def test_price(windows: F64) -> None:
    """Each layer has the least of what its peak and its nodes cost, beside plans with and without
    groups on nodes; and the higher the price, the fewer the nodes.
    """

    def planned(price: float | None = None, threads: int = 1) -> eplb.Plan:
        traffic = routed(price)
        return plan(windows, CLUSTER, num_groups=8, traffic=traffic, effort="fast", threads=threads)

    apart, strict = plan(windows, CLUSTER, effort="fast"), planned()
    unit = windows.reshape(-1, *LOADS.shape).mean(axis=0).sum(axis=1) / 16
    anywhere = other_nodes(apart.placement, windows, routed(), num_groups=8)
    assert strict.other_nodes is not None
    last = anywhere
    for price in (0.05, 5.0):
        made = planned(price)
        assert made.other_nodes is not None
        cost = made.peak / unit + price * made.other_nodes
        assert (cost <= apart.peak / unit + price * anywhere + 1e-9).all()
        assert (cost <= strict.peak / unit + price * strict.other_nodes + 1e-9).all()
        assert (made.other_nodes <= last + 1e-9).all()
        assert made.placement.num_duplicates == 0
        assert (made.peak >= made.bound).all()
        last = made.other_nodes
        if price < 1.0:
            # Between the two: nearly as even as with experts anywhere, and fewer nodes by far.
            assert made.other_nodes.mean() < 0.98 * anywhere.mean()
            assert made.peak.sum() < 1.02 * apart.peak.sum()
            assert planned(price, threads=2) == made


@pytest.mark.parametrize("num_windows", [1, 2])
def test_price_from_what_runs(num_windows: int) -> None:
    """More moves never cost more, peak and price together, and no more than a plan for peaks alone;
    with moves enough and for nothing a plan is as good as one from scratch.
    """
    first = LOADS[:1]
    windows = np.stack([first + number * first[:, ::-1] for number in range(num_windows)])
    old, price = plan(LOADS[1:], CLUSTER, effort="fast").placement, 0.5
    unit = windows.mean(axis=0).sum(axis=1) / 16

    def cost(made: eplb.Plan) -> float:
        nodes = other_nodes(made.placement, windows, routed(), num_groups=8)
        return float((made.peak / unit + price * nodes).sum())

    def planned(price: float | None, most: int | None, **asked: float) -> eplb.Plan:
        made = plan(windows, CLUSTER, num_groups=8 if price else 1,
                    traffic=routed(price) if price else None,
                    current=old, max_moves=most, effort="fast", **asked)  # type: ignore[arg-type] # fmt: skip
        assert made.moves == made.placement.moves_from(old)
        assert made.moves <= (most if most is not None else 288)
        assert Placement(made.placement.phy2log, 256, CLUSTER) == made.placement
        return made

    last = np.inf
    for most in (0, 20, 75, 288):
        made = planned(price, most)
        assert cost(made) <= min(last, cost(planned(None, most))) + 1e-9
        last = cost(made)
    afresh = plan(windows, CLUSTER, num_groups=8, traffic=routed(price), effort="fast")
    assert last <= cost(afresh) + 1e-9
    assert cost(planned(price, None, move_cost=0.0)) == pytest.approx(last)
    # At the usual price of a move it makes fewer, and is still better than what runs.
    usual = planned(price, None)
    assert usual.moves <= made.moves
    assert cost(usual) < cost(planned(price, 0))


def test_sources_decide_which_node() -> None:
    """Where each node asks for experts of its own, they come to it."""
    loads = np.array([[30.0, 20.0, 20.0, 30.0, 30.0, 20.0, 20.0, 30.0]])
    sources = np.zeros((2, 1, 8))
    sources[0, 0, ::2] = loads[0, ::2]
    sources[1, 0, 1::2] = loads[0, 1::2]
    cluster = Cluster(num_gpus=4, num_nodes=2, slots_per_gpu=2)
    made = plan(loads, cluster, traffic=Traffic(top_k=2, price=0.5, sources=sources))
    assert made.other_nodes == pytest.approx([0.0])
    assert sorted(made.placement.phy2log[0, :4]) == [0, 2, 4, 6]


def test_sources_of_a_trace_are_those_of_its_plans(tmp_path: Path) -> None:
    """As if they had been given; not where the nodes do not divide them, or others are given."""
    rng = np.random.default_rng(3)
    ranks = rng.poisson(50.0, (4, 2, 16)) * rng.choice([1, 9], (4, 2, 16))
    np.save(tmp_path / "a.npy", ranks)
    trace = eplb.load_trace(tmp_path / "a.npy", axes="ranks,layers,experts")
    eplb.save_trace(trace, tmp_path / "a.npz")
    trace = eplb.load_trace(tmp_path / "a.npz")
    loads = ranks.sum(axis=0)
    for num_nodes, of_trace, given in (
        (2, Traffic(2, price=0.1), Traffic(2, price=0.1, sources=ranks)),
        (2, Traffic(2), Traffic(2, sources=ranks)),
        (3, Traffic(2, price=0.1), Traffic(2, price=0.1)),
        (2, Traffic(2, sources=ranks[:2]), Traffic(2, sources=ranks[:2])),
    ):
        cluster = Cluster(num_gpus=6, num_nodes=num_nodes, slots_per_gpu=3)
        made, expected = plan(trace, cluster, traffic=of_trace), plan(loads, cluster, traffic=given)
        assert made.other_nodes is not None
        assert expected.other_nodes is not None
        assert made.other_nodes.tolist() == expected.other_nodes.tolist()
        assert np.array_equal(made.placement.phy2log, expected.placement.phy2log)


def refused(error: type[eplb.EplbError], message: str, **asked: object) -> None:
    with pytest.raises(error, match=message):
        plan(LOADS, CLUSTER, **{"num_groups": 8, **asked})  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    for error, message, given in (
        (OptionError, "top_k of traffic is 0: give 1 or more", {"top_k": 0}),
        (OptionError, "topk_groups is 3, which does not divide top_k, 8", {"topk_groups": 3}),
        (OptionError, "the price of a node is -1: give 0 or more", {"price": -1}),
        (OptionError, "copies is 'far': give 'near' or 'any'", {"copies": "far"}),
        (LoadsError, r"sources have shape \(2, 3\)", {"sources": np.ones((2, 3))}),
        (LoadsError, "-1", {"sources": np.full((2, 3, 3), -1.0)}),
    ):
        with pytest.raises(error, match=message):
            Traffic(**{"top_k": 8, **given})  # type: ignore[arg-type]
    price = Traffic(top_k=8, price=0.1)
    refused(OptionError, "traffic is 3: give an eplb.Traffic", traffic=3)
    refused(OptionError, "top_k is 300: a layer has 256 experts", traffic=Traffic(top_k=300))
    refused(OptionError, "topk_groups is 4, and the model routes by 1",
            traffic=routed(), num_groups=1)  # fmt: skip
    refused(OptionError, "top_k is 80: 2 groups have 64 experts", traffic=Traffic(80, 2))
    refused(LoadsError, "sources have 3 layers of 256 experts, the loads have 2 of 256",
            traffic=Traffic(8, sources=np.ones((4, 3, 256))))  # fmt: skip
    refused(LoadsError, "sources are of 3 ranks, which do not divide over 4 nodes",
            traffic=Traffic(8, sources=np.ones((3, 2, 256))))  # fmt: skip
    refused(OptionError, 'dispatch is "best" with a price of nodes', traffic=price, dispatch="best")
    running = plan(LOADS, CLUSTER).placement
    with pytest.raises(ClusterError, match="GPUs are alike and alive"):
        plan(LOADS, CLUSTER.without([3]), traffic=price)
    # Counting is for every cluster and every plan.
    from_running = plan(LOADS, CLUSTER.without([3]), current=running, traffic=Traffic(top_k=8))
    assert from_running.other_nodes is not None
    assert (from_running.other_nodes > 1.0).all()
