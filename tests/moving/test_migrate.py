"""Migrations: carried out piece by piece on weights, within their limits, from nearest sources."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from recorded import load_recorded
from simulator import carry_out, check_limits, held_at_every_instant

import eplb
from eplb import Cluster, Placement
from eplb.moving.migrate import Migration, migrate


class Case(NamedTuple):
    old: Placement
    new: Placement
    per_node: int
    limits: dict[str, int]

    @property
    def node(self) -> NDArray[np.int64]:
        gpus = max(self.old.cluster.num_gpus, self.new.cluster.num_gpus)
        return np.arange(gpus) // self.per_node


@st.composite
def placements(draw: st.DrawFn, num_layers: int, num_experts: int, cluster: Cluster) -> Placement:
    """Any placement, second copies of an expert on a GPU and all."""
    rows = []
    for _ in range(num_layers):
        more = cluster.num_slots - num_experts
        spare = draw(st.lists(st.integers(0, num_experts - 1), min_size=more, max_size=more))
        rows.append(draw(st.permutations([*range(num_experts), *spare])))
    return Placement(np.array(rows), num_experts, cluster)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Two placements, of as many nodes or of others, and limits."""
    num_layers, num_experts = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    per_node = draw(st.integers(1, 3))
    nodes = st.integers(1, 3)
    first, second = (
        Cluster(each * per_node, each, -(-num_experts // (each * per_node)) + more)
        for each, more in draw(st.tuples(*[st.tuples(nodes, st.integers(0, 2))] * 2))
    )
    old = draw(placements(num_layers, num_experts, first))
    if draw(st.booleans()):
        new = draw(placements(num_layers, num_experts, second))
    else:
        # A few swaps, as planners that start from the current placement make.
        phy2log = old.phy2log.copy()
        slots = st.integers(0, first.num_slots - 1)
        for layer in range(num_layers):
            for one, other in draw(st.lists(st.tuples(slots, slots), max_size=3)):
                phy2log[layer, [one, other]] = phy2log[layer, [other, one]]
        new = Placement(phy2log, num_experts, first)
    names = ("experts_at_once", "uplink_share", "spare_slots")
    limits = {name: draw(st.integers(1, 3)) for name in names if draw(st.booleans())}
    # A cluster of one node does not say how many GPUs of the other's are on a node.
    if max(old.cluster.num_nodes, new.cluster.num_nodes) == 1:
        per_node = max(old.cluster.num_gpus, new.cluster.num_gpus)
    return Case(old, new, per_node, limits)


def holders(placement: Placement, layer: int, expert: int) -> set[int]:
    slots = np.flatnonzero(placement.phy2log[layer] == expert)
    return {int(slot) // placement.cluster.slots_per_gpu for slot in slots}


def received(old: Placement, new: Placement) -> set[tuple[int, int, int]]:
    return {
        (layer, expert, gpu)
        for layer in range(old.num_layers)
        for expert in range(old.num_experts)
        for gpu in holders(new, layer, expert) - holders(old, layer, expert)
    }


def transfers(migration: Migration) -> list[tuple[int, int, int]]:
    columns = (migration.layer, migration.expert, migration.target)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def bound(case: Case, migration: Migration) -> int:
    """Waves that some GPU or uplink needs, counted one by one."""
    at_once = case.limits.get("experts_at_once", 1)
    received_at_once = min(at_once, case.limits.get("spare_slots", at_once))
    share = case.limits.get("uplink_share", 10**9)
    pairs = list(zip(migration.source.tolist(), migration.target.tolist(), strict=True))
    needed = [0]
    for gpu in range(len(case.node)):
        needed.append(-(-sum(source == gpu for source, _ in pairs) // at_once))
        needed.append(-(-sum(target == gpu for _, target in pairs) // received_at_once))
    for node in set(case.node.tolist()):
        ends = [(case.node[source] == node, case.node[target] == node) for source, target in pairs]
        needed.append(-(-sum(out and not into for out, into in ends) // share))
        needed.append(-(-sum(into and not out for out, into in ends) // share))
    return max(needed)


@given(cases())
def test_every_expert_is_held_at_every_instant_and_arrives(case: Case) -> None:
    migration = migrate(case.old, case.new, **case.limits)
    held_at_every_instant(case.old, case.new, migration)
    found = transfers(migration)
    assert len(found) == len(set(found)) == case.new.moves_from(case.old)
    assert set(found) == received(case.old, case.new)


@given(cases())
def test_waves_keep_their_limits(case: Case) -> None:
    migration = migrate(case.old, case.new, **case.limits)
    at_once = case.limits.get("experts_at_once", 1)
    share, spare = case.limits.get("uplink_share"), case.limits.get("spare_slots")
    check_limits(migration, case.node, at_once, share, spare)
    assert migration.num_waves >= migration.fewest_waves == bound(case, migration)
    if share is None and spare is None:
        assert migration.num_waves == migration.fewest_waves


@given(cases())
def test_sources_are_nearest_and_the_busiest_sends_least(case: Case) -> None:
    limits = {name: most for name, most in case.limits.items() if name != "spare_slots"}
    migration = migrate(case.old, case.new, **limits)
    choices = []
    for (layer, expert, target), source in zip(
        transfers(migration), migration.source.tolist(), strict=True
    ):
        able = holders(case.old, layer, expert)
        near = {gpu for gpu in able if case.node[gpu] == case.node[target]}
        assert source in (near or able)
        choices.append(near or able)
    sends = np.bincount(migration.source, minlength=len(case.node))
    assert migration.num_between_nodes == sum(
        case.node[target] not in {case.node[gpu] for gpu in able}
        for able, (_, _, target) in zip(choices, transfers(migration), strict=True)
    )
    # Hall: whatever sources are chosen, transfers that only some GPUs can send are shared by them.
    least = 0
    for chosen in range(1, 2 ** len(case.node)):
        group = {gpu for gpu in range(len(case.node)) if chosen >> gpu & 1}
        inside = sum(able <= group for able in choices)
        least = max(least, -(-inside // len(group)))
    assert sends.max(initial=0) == least


@given(cases())
def test_the_same_input_gives_the_same_migration(case: Case) -> None:
    first, second = (migrate(case.old, case.new, **case.limits) for _ in range(2))
    for name in ("layer", "expert", "source", "target", "slot", "source_slot", "buffer", "wave"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
        assert not getattr(first, name).flags.writeable


def test_an_unchanged_placement_needs_nothing() -> None:
    old = Placement.contiguous(2, 6, Cluster(4, 2, 2))
    migration = migrate(old, old, spare_slots=0, bytes_per_expert=7, bandwidth_within=1.0)
    assert (migration.num_transfers, migration.num_waves, migration.fewest_waves) == (0, 0, 0)
    assert (migration.total_bytes, migration.seconds) == (0, 0.0)
    assert len(migration.copies.wave) == 0


def test_other_slots_of_the_same_gpu_take_copies_and_no_transfer() -> None:
    cluster = Cluster(1, 1, 4)
    old = Placement(np.array([[0, 1, 2, 2]]), 3, cluster)
    new = Placement(np.array([[1, 0, 0, 2]]), 3, cluster)
    migration = migrate(old, new, spare_slots=1)
    assert migration.num_transfers == migration.num_waves == 0
    held_at_every_instant(old, new, migration)


def test_a_circle_of_slots_takes_one_buffer() -> None:
    cluster = Cluster(1, 1, 3)
    old, new = (Placement(np.array([row]), 3, cluster) for row in ([0, 1, 2], [1, 2, 0]))
    migration = migrate(old, new, spare_slots=1)
    assert migration.spare_slots.tolist() == [1]
    assert len(migration.copies.wave) == 4
    held_at_every_instant(old, new, migration)
    with pytest.raises(eplb.OptionError, match="spare_slots is 0: give 1 or more"):
        migrate(old, new, spare_slots=0)


def test_a_swap_of_single_copies_takes_one_wave_and_a_buffer_each() -> None:
    cluster = Cluster(2, 1, 1)
    old, new = (Placement(np.array([row]), 2, cluster) for row in ([0, 1], [1, 0]))
    migration = migrate(old, new, spare_slots=1)
    assert migration.num_waves == 1
    assert migration.spare_slots.tolist() == [1, 1]


def test_a_ring_of_swaps_gets_by_with_one_buffer() -> None:
    cluster = Cluster(4, 1, 3)
    old = Placement(np.arange(12)[None], 12, cluster)
    new = Placement(np.arange(12).reshape(4, 3).T.reshape(1, 12).copy(), 12, cluster)
    for spare in (1, 2, 3):
        migration = migrate(old, new, spare_slots=spare)
        assert migration.spare_slots.max() <= spare
        held_at_every_instant(old, new, migration)


def test_figures_are_the_formulas() -> None:
    cluster = Cluster(4, 2, 2)
    old = Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7]]), 8, cluster)
    new = Placement(np.array([[2, 1, 0, 3, 4, 7, 6, 5]]), 8, cluster)
    figures = {"bytes_per_expert": 2 * 10**9, "bandwidth_within": 4.0, "bandwidth_between": 1.0}
    near = migrate(old, new, **figures)  # type: ignore[arg-type]
    assert (near.total_bytes, near.bytes_between_nodes, near.seconds) == (8 * 10**9, 0, 0.5)
    far = Placement(np.array([[4, 5, 2, 3, 0, 1, 6, 7]]), 8, cluster)
    moved = migrate(old, far, **figures)  # type: ignore[arg-type]
    assert (moved.num_waves, moved.bytes_between_nodes) == (2, 8 * 10**9)
    assert moved.seconds == 2 * 2.0
    both = migrate(old, far, experts_at_once=2, **figures)  # type: ignore[arg-type]
    assert (both.num_waves, both.seconds) == (1, 4.0)
    unknown = migrate(old, far, bytes_per_expert=1, bandwidth_within=4.0)
    assert unknown.seconds is None
    assert migrate(old, far).total_bytes is None


def test_layers_that_gain_most_for_their_bytes_go_first() -> None:
    cluster = Cluster(2, 1, 2)
    old = Placement(np.tile([0, 1, 2, 3], (3, 1)), 4, cluster)
    new = Placement(np.tile([0, 2, 1, 3], (3, 1)), 4, cluster)
    loads = np.array([[5.0, 5, 1, 1], [9, 9, 1, 1], [7, 7, 1, 1]])
    assert migrate(old, new).layer.tolist() == [0, 0, 1, 1, 2, 2]
    assert migrate(old, new, loads=loads).layer.tolist() == [1, 1, 2, 2, 0, 0]
    windows = np.stack([loads, loads[::-1] * 10])
    assert migrate(old, new, loads=windows).layer.tolist() == [1, 1, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"experts_at_once": 0}, eplb.OptionError, "experts_at_once is 0: give 1 or more"),
        ({"experts_at_once": 1.5}, eplb.OptionError, "experts_at_once is 1.5: give a whole"),
        ({"uplink_share": 0}, eplb.OptionError, "uplink_share is 0: give 1 or more"),
        ({"spare_slots": -1}, eplb.OptionError, "spare_slots is -1: give 0 or more"),
        ({"spare_slots": 0}, eplb.OptionError, "spare_slots is 0: give 1 or more"),
        ({"bytes_per_expert": 0}, eplb.OptionError, "expert_bytes is 0: give 1 or more"),
        (
            {"bandwidth_within": 0.0},
            eplb.OptionError,
            "bandwidth_within is 0.0: give a number of GB/s, above 0",
        ),
        (
            {"bandwidth_between": "5"},
            eplb.OptionError,
            "bandwidth_between is '5': give a number of GB/s",
        ),
        (
            {"bandwidth_between": float("nan")},
            eplb.OptionError,
            "is nan: give a number of GB/s, above 0",
        ),
        ({"loads": np.ones((1, 3))}, eplb.LoadsError, r"loads have shape \(1, 1, 3\)"),
        ({"loads": -np.ones((1, 4))}, eplb.LoadsError, r"is -1.0: loads are numbers of tokens"),
    ],
)
def test_what_is_wrong_is_named(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    old = Placement(np.array([[0, 1, 2, 3]]), 4, Cluster(2, 1, 2))
    new = Placement(np.array([[0, 2, 1, 3]]), 4, Cluster(2, 1, 2))
    with pytest.raises(error, match=message):
        migrate(old, new, **wrong)


def test_other_models_and_other_nodes_are_refused() -> None:
    old = Placement.contiguous(1, 4, Cluster(4, 2, 2))
    with pytest.raises(eplb.PlacementError, match="are of different models"):
        migrate(old, Placement.contiguous(2, 4, Cluster(4, 2, 2)))
    with pytest.raises(eplb.ClusterError, match="4 GPUs on 2 nodes become 6 GPUs on 2 nodes"):
        migrate(old, Placement.contiguous(1, 4, Cluster(6, 2, 2)))


def test_nodes_are_known_where_one_cluster_is_uneven() -> None:
    # 3 GPUs are left of 2 nodes of 2: the cluster of one node says nothing of nodes.
    old = Placement(np.array([[0, 1, 2, 3, 2, 0, 4, 5]]), 6, Cluster(4, 2, 2))
    new = Placement(np.array([[0, 1, 2, 3, 4, 5]]), 6, Cluster(3, 1, 2))
    migration = migrate(old, new)
    assert migration.num_between_nodes == 0
    assert migration.source.tolist() == [3, 3]
    held_at_every_instant(old, new, migration)
    back = migrate(new, old)
    assert back.num_between_nodes == 2
    held_at_every_instant(new, old, back)


@pytest.fixture(scope="module")
def plans(traces: Path) -> list[Placement]:
    cluster = Cluster(32, 4, 9)
    names = ("prefill_in512", "decode_in500out1500")
    return [eplb.plan(load_recorded(traces, name), cluster).placement for name in names]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"experts_at_once": 3},
        {"experts_at_once": 2, "uplink_share": 10},
        {"spare_slots": 9},
    ],
)
def test_recorded_deepseek_from_one_load_to_another(
    plans: list[Placement], limits: dict[str, int]
) -> None:
    """All layers where nothing is limited, and every fourth otherwise."""
    step = 4 if limits else 1
    old, new = (Placement(each.phy2log[::step], each.num_experts, each.cluster) for each in plans)
    migration = migrate(old, new, **limits)
    node = np.arange(32) // 8
    at_once, share = limits.get("experts_at_once", 1), limits.get("uplink_share")
    check_limits(migration, node, at_once, share, limits.get("spare_slots"))
    assert migration.num_waves <= migration.fewest_waves + 1
    # It ends where it should, and nothing is sent or copied that is not there at that time.
    for step, memory in enumerate(carry_out(old, new, migration)):
        if step % 10_000 == 0:
            assert not memory.missing()
