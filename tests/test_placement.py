"""`Placement`: what it checks, the maps, and the figures against plain loops."""

import dataclasses
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import loads as load_arrays

from eplb import Cluster, LoadsError, OptionError, Placement, PlacementError, dispatch, plan

CLUSTER = Cluster(num_gpus=2, slots_per_gpu=3)
ROWS = [[0, 1, 2, 3, 0, 1], [3, 3, 2, 1, 0, 0]]


def placed(phy2log: Any, num_experts: Any = 4, cluster: Cluster = CLUSTER) -> Placement:
    """A placement of whatever kind of map."""
    return Placement(phy2log, num_experts, cluster)


@st.composite
def placements(draw: st.DrawFn, num_experts: int, num_layers: int) -> Placement:
    """Any placement, duplicates and all."""
    num_gpus = draw(st.integers(1, 4))
    fewest = -(-num_experts // num_gpus)
    cluster = Cluster(num_gpus, 1, draw(st.integers(fewest, fewest + 2)))
    spare = cluster.num_slots - num_experts
    every = list(range(num_experts))
    rows = []
    for _ in range(num_layers):
        others = draw(st.lists(st.sampled_from(every), min_size=spare, max_size=spare))
        rows.append(draw(st.permutations(every + others)))
    return Placement(np.array(rows), num_experts, cluster)


@given(st.data())
def test_figures_are_those_of_plain_loops(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    window = data.draw(load_arrays(num_experts))
    windows = np.stack([window, window[::-1]])
    placement = data.draw(placements(num_experts, window.shape[0]))
    num_gpus = placement.cluster.num_gpus
    rows = placement.phy2log.tolist()
    assert placement.logcnt.tolist() == [naive.logcnt(row, num_experts) for row in rows]
    width = int(placement.logcnt.max())
    assert placement.log2phy.tolist() == [naive.log2phy(row, num_experts, width) for row in rows]
    assert placement.num_duplicates == sum(naive.num_duplicates(row, num_gpus) for row in rows)
    expected = [
        [naive.gpu_loads(row, layer, num_gpus) for row, layer in zip(rows, layers, strict=True)]
        for layers in windows.tolist()
    ]
    assert placement.gpu_load(windows).tolist() == expected
    assert placement.gpu_load(window).tolist() == expected[0]
    balanced = placement.balancedness(windows)
    assert balanced == pytest.approx(naive.balancedness(rows, windows.tolist(), num_gpus))
    assert 0.0 < balanced <= 1.0


@given(st.data())
def test_maps_are_inverse(data: st.DataObject) -> None:
    num_experts = data.draw(st.integers(1, 6))
    placement = data.draw(placements(num_experts, 2))
    for layer, experts in enumerate(placement.log2phy):
        rebuilt = np.full(placement.cluster.num_slots, -1)
        for expert, slots in enumerate(experts):
            used = slots[slots >= 0]
            assert used.size == placement.logcnt[layer, expert]
            assert (slots[used.size :] == -1).all()
            rebuilt[used] = expert
        assert np.array_equal(rebuilt, placement.phy2log[layer])


@given(st.data())
def test_moves_are_a_difference_of_sets(data: st.DataObject) -> None:
    """Also between clusters of other sizes, as when GPUs are added."""
    num_experts = data.draw(st.integers(1, 6))
    new, old = (data.draw(placements(num_experts, 2)) for _ in range(2))
    assert new.moves_from(old) == naive.moves(
        new.phy2log.tolist(), new.cluster.num_gpus, old.phy2log.tolist(), old.cluster.num_gpus
    )
    assert new.moves_from(new) == 0


def test_moves_by_hand() -> None:
    two_gpus = Cluster(2, 1, 2)
    old = placed([[0, 1, 2, 3]], 4, two_gpus)
    assert placed([[1, 0, 3, 2]], 4, two_gpus).moves_from(old) == 0
    assert placed([[2, 0, 3, 1]], 4, two_gpus).moves_from(old) == 2
    # A third GPU receives both; a second copy on a GPU is no second move.
    assert placed([[0, 1, 2, 3, 0, 0]], 4, Cluster(3, 1, 2)).moves_from(old) == 1


def test_balancedness_by_hand() -> None:
    placement = placed([[0, 1, 2, 1], [0, 1, 2, 1]], 3, Cluster(2, 1, 2))
    # 0 + 1/2 against 2 + 1/2 of expert 1: 5 and 3, mean 4.
    assert placement.balancedness([[4.0, 2.0, 2.0], [0.0, 0.0, 0.0]]) == 0.8
    # A window without load is left out, and where nothing has load nothing waits.
    assert placement.balancedness([[[4.0, 2.0, 2.0], [0.0] * 3], [[0.0] * 3] * 2]) == 0.8
    assert placement.balancedness(np.zeros((2, 3))) == 1.0


@pytest.mark.parametrize(("num_gpus", "load"), [(3, 0.1), (6, 0.7), (11, 0.7)])
def test_balancedness_is_never_above_one(num_gpus: int, load: float) -> None:
    """The mean of these equal loads is rounded to above each."""
    placement = Placement(np.arange(num_gpus)[None, :], num_gpus, Cluster(num_gpus, 1, 1))
    assert placement.balancedness(np.full((1, num_gpus), load)) == 1.0


def test_tensors_are_loads_and_maps_too() -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    placement = placed(torch.tensor(ROWS, dtype=torch.int32))
    assert placement == placed(ROWS)
    loads = np.array([[4, 3, 2, 1], [1, 2, 3, 4]])
    as_bfloat16 = torch.tensor(loads, dtype=torch.bfloat16, requires_grad=True)
    assert np.array_equal(placement.gpu_load(as_bfloat16), placement.gpu_load(loads))


@pytest.mark.parametrize(
    ("num_experts", "cluster", "row"),
    [
        (4, Cluster(2, 1, 3), [0, 1, 2, 3, 0, 1]),
        (6, Cluster(2, 1, 3), [0, 1, 2, 3, 4, 5]),
        (2, Cluster(2, 1, 3), [0, 1, 0, 1, 0, 1]),
    ],
)
def test_contiguous_layout(num_experts: int, cluster: Cluster, row: list[int]) -> None:
    placement = Placement.contiguous(3, num_experts, cluster)
    assert placement.phy2log.tolist() == [row] * 3
    assert (placement.num_layers, placement.num_experts) == (3, num_experts)


def test_contiguous_layout_needs_room() -> None:
    with pytest.raises(PlacementError) as raised:
        Placement.contiguous(1, 7, CLUSTER)
    assert str(raised.value) == (
        "num_experts is 7, and the cluster has 6 slots in a layer: each expert needs one"
    )


@pytest.mark.parametrize(
    ("phy2log", "message"),
    [
        ([0, 1, 2, 3, 0, 1], "phy2log has shape (6,): give two axes, layers and slots [L, P]"),
        (np.zeros((0, 6), int), "phy2log has shape (0, 6): give two axes, layers and slots [L, P]"),
        (
            [[0, 1, 2, 3]],
            "phy2log has 4 slots in a layer, the cluster has 6 (2 GPUs of 3)",
        ),
        (
            [ROWS[0], [0, 1, 2, 3, 4, 0]],
            "phy2log[1, 4] is 4: experts are numbered 0 to 3",
        ),
        ([[0, 1, 2, 3, -1, 0]], "phy2log[0, 4] is -1: experts are numbered 0 to 3"),
        (
            [ROWS[0], [0, 1, 3, 3, 0, 0]],
            "layer 1 has no slot for expert 2: each needs one",
        ),
        ([[0.0, 1.0, 2.0, 3.0, 0.0, 1.0]], "phy2log has type float64: give whole numbers"),
        ([[True] * 6], "phy2log has type bool: give whole numbers"),
        ([["0"] * 6], "phy2log has type <U1: give whole numbers"),
        ([[0, 1], [2]], "phy2log has rows of different lengths: give a full array"),
    ],
)
def test_maps_that_no_cluster_holds(phy2log: Any, message: str) -> None:
    with pytest.raises(PlacementError) as raised:
        placed(phy2log)
    assert str(raised.value) == message


def test_tensors_that_are_no_maps() -> None:
    torch = pytest.importorskip("torch", reason="tensors need torch")
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(PlacementError, match="give whole numbers"):
            placed(torch.tensor(ROWS, dtype=dtype))


@pytest.mark.parametrize("num_experts", [0, -1, 4.5, "4"])
def test_numbers_of_experts_that_cannot_be(num_experts: Any) -> None:
    with pytest.raises(PlacementError):
        placed(ROWS, num_experts)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (3, 4), (4, 2), ()])
def test_loads_of_another_shape(shape: tuple[int, ...]) -> None:
    placement = placed(ROWS)
    for figure in (placement.gpu_load, placement.balancedness):
        with pytest.raises(LoadsError) as raised:
            figure(np.ones(shape))
        assert str(raised.value) == (
            f"loads have shape {shape}: the placement has 2 layers of 4 experts"
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_balancedness_of_no_loads_is_an_error(value: float) -> None:
    """Not a number, and above all not 1."""
    with pytest.raises(LoadsError):
        placed(ROWS).balancedness(np.full((2, 4), value))


def test_placements_of_other_models_have_no_moves_between_them() -> None:
    one, other = placed(ROWS), placed(ROWS[:1])
    with pytest.raises(PlacementError) as raised:
        one.moves_from(other)
    assert str(raised.value) == (
        "Placement(1 layer, 4 experts, 6 slots on 2 GPUs) and "
        "Placement(2 layers, 4 experts, 6 slots on 2 GPUs) are of different models: "
        "no moves lead from one to the other"
    )


def test_equality_and_hash() -> None:
    placement = placed(ROWS)
    same = placed(np.array(ROWS, dtype=np.uint8), 4, Cluster(2, 1, 3))
    assert placement == same
    assert hash(placement) == hash(same)
    assert placement != placed(ROWS[::-1])
    assert placement != placed(ROWS[:1])
    assert placement != placed(ROWS, 4, Cluster(2, 2, 3))
    assert placement != ROWS


def test_nothing_can_be_changed() -> None:
    given_rows = np.array(ROWS)
    placement = placed(given_rows)
    given_rows[:] = 0
    assert placement.phy2log.tolist() == ROWS
    assert placement.phy2log.dtype == np.int64
    for array in (placement.phy2log, placement.logcnt, placement.log2phy):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        placement.num_experts = 5  # type: ignore[misc]
    assert repr(placement) == "Placement(2 layers, 4 experts, 6 slots on 2 GPUs)"


def test_dead_gpus_take_no_load() -> None:
    """A placement with dead GPUs is scored as that of the others alone, under every rule."""
    cluster = Cluster(num_gpus=4, slots_per_gpu=3)
    loads = np.random.default_rng(0).lognormal(0.0, 1.0, (5, 2, 7))
    whole = plan(loads, cluster.without([1])).placement
    alone = whole.survivors
    alive = [0, 2, 3]
    assert whole.num_duplicates == alone.num_duplicates
    assert np.array_equal(whole.logcnt, alone.logcnt)
    assert ((whole.log2phy == -1) == (alone.log2phy == -1)).all()
    for rule in ("even", "best"):
        assert np.allclose(whole.gpu_load(loads, rule)[..., alive], alone.gpu_load(loads, rule))
        assert not whole.gpu_load(loads, rule)[..., 1].any()
        assert whole.balancedness(loads, rule) == pytest.approx(alone.balancedness(loads, rule))
        served = whole.serve(loads, rule), alone.serve(loads, rule)
        assert served[0].pooled() == pytest.approx(served[1].pooled())
    split = dispatch(whole, loads)
    assert not split.split[whole.phy2log < 0].any()
    assert np.allclose(split.peak, dispatch(alone, loads).peak)
    assert whole.balancedness(loads, split) == pytest.approx(
        alone.balancedness(loads, dispatch(alone, loads))
    )
    for rule in ("sglang", "ascend"):
        load = whole.gpu_load(loads, rule)
        assert not load[..., 1].any()
        assert np.allclose(load.sum(axis=-1), loads.sum(axis=-1))
    table = split.table()
    assert (np.take_along_axis(whole.phy2log[:, None], table, 2) == np.arange(7)).all()
    held = whole.held_by(4)
    assert not held[:, 1].any()
    assert whole.moves_from(Placement.contiguous(2, 7, cluster)) >= 0
    assert whole.moves_from(whole) == 0
    start = Placement.contiguous(1, 7, cluster.without([1])).phy2log[0]
    assert start.tolist() == [0, 1, 2, -1, -1, -1, 3, 4, 5, 6, 0, 1]
    with pytest.raises(OptionError, match=r"sources\[1\] is 1, and GPU 1 is dead: give 0"):
        dispatch(whole, loads, rule="sglang", sources=[1, 1, 1, 1])
