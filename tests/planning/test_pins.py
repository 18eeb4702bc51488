"""Pins: every plan keeps them, small ones are as good as the best of all placements that do, and
those that nothing keeps are refused by name.
"""

import itertools
import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import eplb
from eplb import Cluster, ClusterError, EplbError, OptionError, Pins, Placement, plan
from eplb.moving.verdict import judge
from eplb.planning.pinned import check_pins
from eplb.planning.pinned import keeps as keeps_pins
from eplb.planning.problem import check_problem
from eplb.synthetic import workloads

F64 = NDArray[np.float64]


def numbers_of(given: Any, num_experts: int) -> dict[int, int]:
    """A number of copies by expert."""
    return dict.fromkeys(range(num_experts), given) if isinstance(given, int) else dict(given)


def keeps(pins: Pins, held: list[set[int]], cluster: Cluster, load: list[float]) -> bool:
    """Whether what each GPU holds keeps pins of one layer; `load` says who is hot."""
    num_experts = len(load)
    node_gpus = cluster.num_gpus // cluster.num_nodes
    where = [{gpu for gpu, on in enumerate(held) if expert in on} for expert in range(num_experts)]
    hottest = sorted(range(num_experts), key=lambda expert: -load[expert])[: pins.hottest]
    least = numbers_of(pins.least_copies, num_experts)
    most = numbers_of(pins.most_copies, num_experts)
    return (
        all(where)
        and all(where[expert] == set(gpus) for expert, gpus in pins.gpus)
        and all({gpu // node_gpus for gpu in where[e]} <= set(nodes) for e, nodes in pins.nodes)
        and not any(set(pair) <= on for pair in pins.apart for on in held)
        and all(len(where[expert]) == number for expert, number in pins.copies)
        and all(len(where[expert]) >= number for expert, number in least.items())
        and all(len(where[expert]) <= number for expert, number in most.items())
        and all(len(where[expert]) == len(cluster.alive) for expert in hottest)
    )


def held_by(made: Placement, layer: int = 0, *, once: bool = True) -> list[set[int]]:
    """What each GPU holds, no expert twice."""
    rows = made.phy2log[layer].reshape(made.cluster.num_gpus, -1)
    held = [[int(expert) for expert in row if expert >= 0] for row in rows]
    assert not once or all(len(set(row)) == len(row) for row in held)
    return [set(row) for row in held]


def lowest_peak(pins: Pins, windows: F64, cluster: Cluster) -> float:
    """The lowest expected peak of all placements that keep pins; infinite if there are none."""
    num_experts = windows.shape[1]
    speeds = cluster.speeds or (1.0,) * cluster.num_gpus
    lowest = np.inf
    load = windows.mean(axis=0).tolist()
    choices = [
        [set(some) for some in itertools.combinations(range(num_experts), slots)]
        for slots in cluster.capacity
    ]
    for held in itertools.product(*choices):
        if set().union(*held) == set(range(num_experts)) and keeps(pins, held, cluster, load):  # type: ignore[arg-type]
            count = [sum(expert in on for on in held) for expert in range(num_experts)]
            share = windows / np.array(count)
            times = [
                share[:, sorted(on)].sum(axis=1) / speed
                for on, speed in zip(held, speeds, strict=True)
                if speed
            ]
            lowest = min(lowest, float(np.max(times, axis=0).mean()))
    return lowest


def some_pins(rng: np.random.Generator, cluster: Cluster, num_experts: int) -> Pins:
    """Pins at random, which may conflict."""
    wished: dict[str, Any] = {}
    alive = cluster.alive

    def some(number: int) -> list[int]:
        chosen: list[int] = rng.permutation(num_experts)[:number].tolist()
        return chosen

    if rng.random() < 0.4:
        wished["gpus"] = {some(1)[0]: rng.permutation(alive)[: rng.integers(1, 3)].tolist()}
    if rng.random() < 0.4:
        wished["nodes"] = dict.fromkeys(some(2), int(rng.integers(cluster.num_nodes)))
    if rng.random() < 0.5:
        wished["apart"] = [some(2) for _ in range(rng.integers(1, 4))]
    for name in ("copies", "most_copies", "least_copies"):
        if rng.random() < 0.2:
            wished[name] = {some(1)[0]: int(rng.integers(1, len(alive) + 1))}
    if rng.random() < 0.1:
        wished["most_copies"] = int(rng.integers(1, 3))
    wished["hottest"] = int(rng.random() < 0.2)
    return Pins(**wished)


def some_layer(rng: np.random.Generator) -> tuple[Cluster, int]:
    """A small cluster, of which GPUs may differ or be dead, and a number of experts."""
    while True:
        num_gpus = int(rng.integers(2, 5))
        slots: Any = rng.integers(1, {2: 4, 3: 3, 4: 3}[num_gpus], num_gpus).tolist()
        cluster = Cluster(num_gpus, 2 if num_gpus == 4 else 1, slots)
        if rng.random() < 0.3:
            cluster = Cluster(num_gpus, 1, slots, speed=rng.uniform(0.5, 2.0, num_gpus))
        if rng.random() < 0.2:
            cluster = cluster.without([int(rng.integers(num_gpus))])
        num_experts = int(rng.integers(2, 7))
        if max(cluster.capacity) <= num_experts <= cluster.num_held:
            return cluster, num_experts


def test_against_all_placements_that_keep_them() -> None:
    """From scratch and from a placement, with any budget: pins are kept, what nothing keeps is
    refused, bounds hold, and nearly all plans are optimal.
    """
    rng = np.random.default_rng(17)
    planned = optimal = refused = 0
    for number in range(80):
        cluster, num_experts = some_layer(rng)
        pins = some_pins(rng, cluster, num_experts)
        windows = rng.gamma(0.7, 10.0, (int(rng.integers(1, 3)), num_experts)) + 0.01
        windows *= (windows.sum() / len(windows) / windows.sum(axis=1))[:, None]
        load = windows.mean(axis=0).tolist()
        lowest = lowest_peak(pins, windows, cluster)
        if lowest == np.inf:
            with pytest.raises(OptionError, match="pins"):
                plan(windows[:, None], cluster, pins=pins)
            refused += 1
            continue
        made = plan(windows[:, None], cluster, pins=pins)
        assert keeps(pins, held_by(made.placement), cluster, load)
        assert made.peak[0] >= lowest * (1.0 - 1e-9)
        assert made.bound[0] <= lowest * (1.0 + 1e-9)
        assert made.peak[0] <= lowest * 1.2
        planned += 1
        optimal += made.peak[0] <= lowest * (1.0 + 1e-9)
        bare = plan(windows[:, None, ::-1], cluster).placement
        under: Any = ({}, {"move_cost": 0.0}, {"max_moves": 9}, {"dispatch": "best"})
        for settings in under[: 3 + (number % 10 == 0)]:
            moved = plan(windows[:, None], cluster, pins=pins, current=bare, **settings)
            # A second copy on a GPU, of what may have any number, costs no move.
            assert keeps(pins, held_by(moved.placement, once=False), cluster, load)
            assert moved.moves == moved.placement.moves_from(bare) <= 9
        if number % 10 == 0:
            best = plan(windows[:, None], cluster, pins=pins, dispatch="best", effort="fast")
            assert keeps(pins, held_by(best.placement), cluster, load)
            assert best.peak[0] >= best.bound[0] * (1.0 - 1e-9)
    assert planned > 30
    assert refused > 15
    assert optimal >= 0.95 * planned


@pytest.fixture(scope="module")
def loads() -> F64:
    """Three windows of six layers."""
    trace = workloads("deepseek-v3", num_layers=6, num_dense_layers=0, tokens=100_000, seed=1)
    return trace.loads[:3]


def test_a_model_of_usual_size(loads: F64) -> None:
    """Pins of several kinds, some of single layers: kept, and the plan is nearly as even."""
    cluster = Cluster(32, 4, 10)
    pins = Pins(
        gpus={0: [0, 31], 1: 5},
        nodes=dict.fromkeys(range(64, 80), 2),
        apart=[(2, 3), (3, 4), (200, 201)],
        most_copies=8,
        layers={1: Pins(copies={7: 5}), 4: Pins(hottest=1, least_copies={9: 2})},
    )
    with pytest.raises(OptionError, match=r"of layer 4 together: .*at most; the hottest expert"):
        plan(loads, cluster, pins=pins)
    pins = Pins(pins.gpus, pins.nodes, pins.apart, most_copies=32, layers=pins.layers)
    free, made = plan(loads, cluster), plan(loads, cluster, pins=pins)
    total = loads.sum(axis=2, keepdims=True)
    mean = (loads * (total.mean(axis=0) / total)).mean(axis=0)
    for at in (made.placement, plan(loads, cluster, pins=pins, current=free.placement).placement):
        for layer in range(6):
            held = held_by(at, layer, once=False)
            assert keeps(pins, held, cluster, mean[layer].tolist())
            for of, further in pins.layers:
                assert of != layer or keeps(further, held, cluster, mean[layer].tolist())
    assert made.placement.balancedness(loads) > free.placement.balancedness(loads) - 0.03


def test_moves_are_within_the_budget(loads: F64) -> None:
    """The least that keeps the pins is named, and is enough."""
    cluster = Cluster(32, 4, 10)
    running = plan(loads[0], cluster).placement
    pins = Pins(gpus={0: 3, 1: [4, 5]}, apart=[(2, 3)])
    with pytest.raises(OptionError, match=r"max_moves is 1: \d+ are enough to keep every pin"):
        plan(loads, cluster, current=running, pins=pins, max_moves=1)
    made = plan(loads, cluster, current=running, pins=pins, max_moves=25)
    assert made.moves == made.placement.moves_from(running) <= 25
    assert (np.asarray(made.placement.logcnt)[:, [0, 1]] == [1, 2]).all()
    # What keeps them already needs no move.
    again = plan(loads, cluster, current=made.placement, pins=pins, max_moves=0)
    assert again.placement == made.placement


def test_a_layer_without_load_keeps_them() -> None:
    made = plan(np.zeros((1, 6)), Cluster(3, 1, 3), pins=Pins(gpus={5: 0}, apart=[(0, 1), (0, 2)]))
    held = held_by(made.placement)
    assert [5 in on for on in held] == [True, False, False]
    assert not any({0, 1} <= on or {0, 2} <= on for on in held)


def test_layers_go_by_their_numbers(loads: F64) -> None:
    trace = eplb.LoadTrace(loads, layers=(3, 4, 5, 6, 7, 8))
    cluster = Cluster(32, 1, 9)
    made = plan(trace, cluster, pins=Pins(layers={4: Pins(copies={0: 3})}))
    assert made.placement.logcnt[1, 0] == 3
    with pytest.raises(OptionError, match="pins have layer 9: the loads have layers 3-8"):
        plan(trace, cluster, pins=Pins(layers={9: Pins(hottest=1)}))


def test_pins_keep_groups_on_nodes(loads: F64) -> None:
    """Numbers of copies and pairs go with groups on nodes; where an expert is, groups say."""
    cluster = Cluster(32, 4, 10)
    pins = Pins(most_copies=4, apart=[(2, 3), (4, 5)])
    made = plan(loads, cluster, num_groups=8, pins=pins)
    nodes = np.asarray(made.placement.phy2log).reshape(6, 4, -1) // 32
    for layer in nodes:
        assert [len(set(node.tolist())) for node in layer] == [2, 2, 2, 2]
    assert made.placement.logcnt.max() <= 4
    for layer_ in range(6):
        assert not any({2, 3} <= on or {4, 5} <= on for on in held_by(made.placement, layer_))
    with pytest.raises(OptionError, match="do not go with groups that stay on their nodes"):
        plan(loads, cluster, num_groups=8, pins=Pins(nodes={0: 1}))


@pytest.mark.parametrize(
    ("pins", "says"),
    [
        ({"gpus": {3: 2}}, "pins put expert 3 on GPU 2, which is dead"),
        ({"gpus": {3: 4}}, "the GPU of expert 3 is 4: give 0 to 3"),
        ({"gpus": {9: 0}}, "an expert of pins is 9: give 0 to 5"),
        ({"nodes": {3: 2}}, "the node of expert 3 is 2: give 0 to 1"),
        ({"copies": {3: 4}}, "pins ask for 4 copies of expert 3: 3 GPUs are alive"),
        ({"least_copies": 4}, "pins ask for 4 copies of every expert: 3 GPUs are alive"),
        ({"layers": {1: Pins(hottest=1)}}, "a layer of pins is 1: give 0 to 0"),
        ({"hottest": 7}, "pins: hottest is 7: give 0 to 6"),
        (
            {"gpus": {3: 0}, "nodes": {3: 1}, "apart": [(1, 2)], "copies": {5: 1}},
            "together: expert 3 on GPU 0 alone; expert 3 on node 1 alone (",
        ),
        (
            {"gpus": {3: 0, 4: 0, 5: 0, 2: 1}},
            "together: expert 3 on GPU 0 alone; expert 4 on GPU 0 alone; "
            "expert 5 on GPU 0 alone (3 GPUs alive have 6 slots)",
        ),
        (
            {"gpus": {3: 0, 4: 0, 2: 1}, "apart": [(2, 3), (3, 4)]},
            "together: expert 3 on GPU 0 alone; expert 4 on GPU 0 alone; experts 3 and 4 apart (",
        ),
        ({"most_copies": 1, "copies": {0: 1}}, None),
        (
            {"copies": {4: 1}, "hottest": 1},
            "the hottest expert on every GPU (they need 8",
        ),
        ({"copies": {0: 2}}, "2 copies of expert 0 (they need 7 slots, and 3 GPUs alive have 6"),
        ({"apart": [(0, e) for e in range(1, 6)]}, "was found that keeps these pins together"),
    ],
)
def test_what_cannot_be_is_named(pins: dict[str, Any], says: str | None) -> None:
    """One layer of 6 experts, on 3 GPUs alive of 2 slots; nodes 0 and 1 have two GPUs each."""
    cluster = Cluster(4, 2, 2).without([2])
    if says is None:
        plan(np.ones((1, 6)), cluster, pins=Pins(**pins))
        return
    with pytest.raises(EplbError) as error:
        plan(np.ones((1, 6)), cluster, pins=Pins(**pins))
    assert says in str(error.value)


def test_what_goes_with_pins_and_what_does_not() -> None:
    loads, cluster, pins = np.ones((1, 6)), Cluster(4, 2, 2), Pins(copies={0: 1})
    with pytest.raises(OptionError, match='dispatch is "sglang" with pins: give "even" or "best"'):
        plan(loads, cluster, pins=pins, dispatch="sglang")
    with pytest.raises(OptionError, match="a price of nodes does not go with pins"):
        plan(loads, cluster, pins=pins, traffic=eplb.Traffic(top_k=2, price=0.1))
    counted = plan(loads, cluster, pins=pins, traffic=eplb.Traffic(top_k=2))
    assert counted.other_nodes is not None
    with pytest.raises(OptionError, match=r"pins are \{\}: give eplb.Pins"):
        plan(loads, cluster, pins={})  # type: ignore[arg-type]
    two = Pins(gpus={3: [0, 1]}, copies={3: 3, 4: 1})
    with pytest.raises(OptionError, match=r"3 on GPUs 0, 1 alone; 3 copies of expert 3 \(4 GPUs"):
        plan(loads, Cluster(4, 2, 3), pins=two)
    with pytest.raises(ClusterError, match="a GPU has 7 slots for 6 experts: with pins"):
        plan(loads, Cluster(2, 1, 7), pins=pins)


@pytest.mark.parametrize(
    "given",
    [
        {"gpus": {0: []}},
        {"gpus": {-1: 0}},
        {"gpus": {0: "3"}},
        {"gpus": 3},
        {"nodes": {0: 1.5}},
        {"apart": [(1, 1)]},
        {"apart": [(1, 2, 3)]},
        {"apart": (1, 2)},
        {"copies": 2},
        {"copies": {0: 0}},
        {"most_copies": 0},
        {"most_copies": True},
        {"hottest": -1},
        {"layers": {0: {"hottest": 1}}},
        {"layers": {0: Pins(layers={0: Pins()})}},
        {"copies": [(1, 2), (1, 3)]},
    ],
)
def test_what_is_no_pin(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Pins(**given)


def test_as_json() -> None:
    """There and back; keys are numbers, and what is unknown is refused."""
    pins = Pins(
        gpus={0: [3, 1]}, nodes={4: 1}, apart=[(7, 2)], copies={5: 2}, most_copies=4,
        least_copies={1: 2}, layers={7: Pins(hottest=2)},
    )  # fmt: skip
    text = json.dumps(pins.to_json())
    assert Pins.from_json(json.loads(text)) == pins
    assert hash(Pins.from_json(json.loads(text))) == hash(pins)
    wrong: Any
    for wrong in ([], {"gpu": {}}, {"gpus": {"a": 1}}, {"layers": {"1": 3}}, {"apart": {"1": 2}}):
        with pytest.raises(OptionError, match="pins"):
            Pins.from_json(wrong)


RUNNING = Cluster(6, 2, slots_per_gpu=4)
SKEWED = np.random.default_rng(7).lognormal(0.0, 0.9, (2, 12))


def test_whether_a_placement_keeps_pins() -> None:
    """By the plain reading of them, of random placements, plans with those pins among them."""
    rng = np.random.default_rng(11)
    cluster, found = Cluster(3, 1, slots_per_gpu=4), {True: 0, False: 0}
    load = rng.lognormal(0.0, 0.9, (1, 6))
    problem = check_problem(load, cluster, 1, None, None)
    for _ in range(150):
        pins = some_pins(rng, cluster, 6)
        try:
            pinned = check_pins(problem, pins, "even")
            made = [plan(load, cluster, pins=pins).placement]
        except OptionError:
            continue
        while len(made) < 4:
            rows = np.stack([rng.permutation(6)[:4] for _ in range(3)]).reshape(1, -1)
            if np.unique(rows).size == 6:
                made.append(Placement(rows, 6, cluster))
        for each in made:
            kept = keeps(pins, held_by(each), cluster, load[0].tolist())
            assert keeps_pins(pinned, each) == kept
            found[kept] += 1
    assert min(found.values()) > 20


def test_every_point_of_a_frontier_keeps_pins() -> None:
    current = plan(SKEWED, RUNNING).placement
    pins = Pins(gpus={3: [0, 5]}, apart=[(1, 2)], most_copies=3)
    curve = eplb.frontier(SKEWED[:, ::-1].copy(), RUNNING, current, pins=pins)
    assert len(curve.placements) > 3
    assert curve.moves[0] > 0
    for placement in curve.placements:
        for layer, load in enumerate(SKEWED[:, ::-1]):
            # The fewest moves may leave second copies on a GPU.
            held = held_by(placement, layer, once=False)
            assert keeps(pins, held, RUNNING, load.tolist())
    with pytest.raises(OptionError, match='dispatch is "sglang" with pins'):
        eplb.frontier(SKEWED, RUNNING, current, pins=pins, dispatch="sglang")


def test_what_runs_must_move_where_it_breaks_pins() -> None:
    """Though a plan with pins is worse than what runs; and it waits once they are kept."""
    service = eplb.Service(10**9, 100.0, 100.0)
    current, pins = plan(SKEWED, RUNNING).placement, Pins(gpus={0: 5})
    assert eplb.decide(SKEWED, RUNNING, current, service, 60.0).action == "wait"
    found = eplb.decide(SKEWED, RUNNING, current, service, 60.0, pins=pins)
    assert found.action == "move"
    assert found.reason.startswith("what runs does not keep the pins, so its GPUs must receive")
    assert found.verdict.advice.startswith("What runs does not keep the pins: re-plan, which moves")
    assert found.placement is not None
    for layer, load in enumerate(SKEWED):
        assert keeps(pins, held_by(found.placement, layer), RUNNING, load.tolist())
    again = eplb.decide(SKEWED, RUNNING, found.placement, service, 60.0, pins=pins)
    assert again.action == "wait"
    with pytest.raises(OptionError, match=r"max_moves is 0: .* enough to keep every pin"):
        judge(SKEWED[None], RUNNING, current, max_moves=0, pins=pins)


def test_replays_and_balancers_keep_pins() -> None:
    rng = np.random.default_rng(3)
    windows = SKEWED * rng.lognormal(0.0, 0.5, (5, *SKEWED.shape))
    trace = eplb.LoadTrace(windows, layers=(4, 7))
    pins = Pins(apart=[(0, 1)], layers={7: Pins(gpus={2: 1})})
    placements = [
        placement
        for policy in ("eplb", "moving", "deciding")
        for placement in eplb.replay(trace, RUNNING, policy, pins=pins).placements
    ]
    balancer = eplb.Balancer(12, RUNNING, pins=pins.at_layers(trace.layers))
    steps = [balancer.step(window) for window in windows]
    placements += [step.placement for step in steps if step is not None]
    assert balancer.digest != eplb.Balancer(12, RUNNING).digest
    for placement in placements:
        for layer in range(2):
            wished = Pins(apart=[(0, 1)], gpus={2: 1} if layer else {})
            load = SKEWED[layer].tolist()
            assert keeps(wished, held_by(placement, layer), RUNNING, load)
    with pytest.raises(OptionError, match="pins go with the policies of this planner, and the pol"):
        eplb.replay(trace, RUNNING, "deepseek", pins=pins)
