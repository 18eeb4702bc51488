"""The parts of plans for windows: spreading, descents under a norm, and kicks out of dead ends."""

import itertools
from typing import NamedTuple

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eplb.solver.convex import _descend, _forget, _new_hosts
from eplb.solver.jit import kernel
from eplb.solver.kicks import _kick_and_descend
from eplb.solver.packing import F64, I64
from eplb.solver.spread import _spread

pytestmark = pytest.mark.oracle


class Layer(NamedTuple):
    """Loads [E, T] of one layer, replicas [E] that fill the slots, and windows' weights [T]."""

    loads: NDArray[np.float64]
    copies: NDArray[np.int64]
    weights: NDArray[np.float64]
    num_gpus: int
    slots_per_gpu: int


class Found(NamedTuple):
    """What GPUs hold: experts [G, S], their loads [G, S, T], those of GPUs, the first
    again as [T, G * S], and which are held.
    """

    slots: NDArray[np.int64]
    part: NDArray[np.float64]
    load: NDArray[np.float64]
    lanes: NDArray[np.float64]
    holds: NDArray[np.bool_]
    copies: NDArray[np.int64]


@kernel
def _search(
    loads: F64,
    count: I64,
    weights: F64,
    order: I64,
    doublings: int,
    tolerance: float,
    most_sweeps: int,
    num_kicks: int,
    found: Found,
) -> None:
    """Spread; then descend, where there are to be sweeps."""
    num_experts, num_windows = loads.shape
    num_gpus, slots_per_gpu = found.slots.shape
    hosts = _new_hosts(num_gpus, slots_per_gpu, num_experts, num_windows)
    share = np.empty((num_experts, num_windows))
    for expert in range(num_experts):
        for window in range(num_windows):
            share[expert, window] = loads[expert, window] / count[expert]
    _spread(hosts, share, count, order, weights, np.empty(num_gpus, np.int64))
    if num_kicks > 0:
        kept = _new_hosts(num_gpus, slots_per_gpu, num_experts, num_windows)
        _kick_and_descend(
            hosts,
            kept,
            loads,
            count,
            np.empty(num_experts, np.int64),
            weights,
            doublings,
            tolerance,
            most_sweeps,
            num_kicks,
        )
    elif most_sweeps > 0:
        _forget(hosts)
        _descend(hosts, weights, doublings, tolerance, most_sweeps)
    found.slots[:] = hosts.slots
    found.part[:] = hosts.part
    found.load[:] = hosts.load.T
    found.lanes[:] = hosts.lanes
    found.holds[:] = hosts.holds
    found.copies[:] = count


def by_share(layer: Layer) -> NDArray[np.int64]:
    return np.array(naive.falling((layer.loads.sum(axis=1) / layer.copies).tolist()))


def search(
    layer: Layer,
    doublings: int = 1,
    tolerance: float = 0.0,
    most_sweeps: int = 0,
    num_kicks: int = 0,
) -> Found:
    shape = (layer.num_gpus, layer.slots_per_gpu)
    num_experts, num_windows = layer.loads.shape
    found = Found(
        np.empty(shape, np.int64),
        np.empty((*shape, num_windows)),
        np.empty((layer.num_gpus, num_windows)),
        np.empty((num_windows, layer.num_gpus * layer.slots_per_gpu)),
        np.empty((layer.num_gpus, num_experts), np.bool_),
        np.empty(num_experts, np.int64),
    )
    arguments = (layer.loads, layer.copies.copy(), layer.weights, by_share(layer))
    _search(*arguments, doublings, tolerance, most_sweeps, num_kicks, found)
    return found


def check(found: Found, layer: Layer) -> None:
    """No expert twice on a GPU, each as often as it is to be, and loads that are theirs."""
    num_experts = len(layer.loads)
    counts = np.bincount(found.slots.ravel(), minlength=num_experts)
    assert np.array_equal(counts, found.copies)
    assert counts.min() >= 1
    share = layer.loads / found.copies[:, None]
    assert np.array_equal(found.part, share[found.slots])
    assert np.array_equal(found.lanes, share[found.slots.ravel()].T)
    assert found.load == pytest.approx(found.part.sum(axis=1), rel=1e-9, abs=1e-9)
    for held, slots in zip(found.holds, found.slots.tolist(), strict=True):
        assert np.flatnonzero(held).tolist() == sorted(slots)


def norm(found: Found, layer: Layer, doublings: int) -> float:
    """The weighted sum over windows of the norm of GPU loads."""
    load = found.part.sum(axis=1)
    norms = (load ** float(2**doublings)).sum(axis=0) ** (0.5**doublings)
    return float(layer.weights @ norms)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    num_gpus, slots_per_gpu = draw(st.integers(2, 7)), draw(st.integers(1, 4))
    num_slots = num_gpus * slots_per_gpu
    num_experts = draw(st.integers(slots_per_gpu + 1, max(slots_per_gpu + 1, num_slots)))
    num_windows = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (num_experts, num_windows)
    loads = draw(st.sampled_from([rng.lognormal(size=size), rng.integers(0, 3, size) + 0.0]))
    # Of the order that the planner brings them to.
    loads /= max(1.0, loads.sum()) / (num_gpus * num_windows)
    weights = rng.integers(1, 4, num_windows).astype(np.float64)
    weights /= weights.sum()
    if num_slots < num_experts:
        num_gpus = -(-num_experts // slots_per_gpu)
        num_slots = num_gpus * slots_per_gpu
    counts = naive.adams(loads.sum(axis=1).tolist(), num_slots, num_gpus)
    return Layer(loads, np.array(counts), weights, num_gpus, slots_per_gpu)


@given(layers())
def test_spread(layer: Layer) -> None:
    found = search(layer)
    check(found, layer)
    shares = (layer.loads / layer.copies[:, None]).tolist()
    counts, order, weights = layer.copies.tolist(), by_share(layer).tolist(), layer.weights.tolist()
    expected = naive.spread(shares, counts, order, weights, layer.num_gpus)
    assert found.slots.tolist() == expected


def test_spread_makes_room() -> None:
    """The last expert has a replica for each GPU: some of them are full when it comes."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        loads = rng.lognormal(size=(6, 2))
        loads[5] = 1e-3
        layer = Layer(loads, np.array([1, 1, 1, 1, 1, 4]), np.array([0.5, 0.5]), 3, 3)
        layer = layer._replace(copies=np.array([2, 1, 1, 1, 1, 3]))
        found = search(layer)
        check(found, layer)
        assert found.holds[:, 5].all()


@given(layers(), st.integers(1, 5), st.sampled_from([0.0, 1e-4, 1e-2]))
def test_no_sweep_raises_the_norm(layer: Layer, doublings: int, tolerance: float) -> None:
    """Each sweep goes on where the last one ended: more of them are never worse."""
    before = np.inf
    for most_sweeps in (0, 1, 2, 3, 30):
        found = search(layer, doublings, tolerance, most_sweeps)
        check(found, layer)
        assert np.array_equal(found.copies, layer.copies)
        after = norm(found, layer, doublings)
        assert after <= before * (1.0 + 1e-9)
        before = after


@given(layers())
def test_descent_of_one_window_under_squares_ends_where_no_swap_gains(layer: Layer) -> None:
    """Of squares, the expansion that swaps are compared by is exact."""
    layer = layer._replace(loads=layer.loads[:, :1].copy(), weights=np.array([1.0]))
    found = search(layer, doublings=1, most_sweeps=1000)
    load = found.part.sum(axis=1)[:, 0]
    least = 1e-9 * float(load @ load)
    for one, other in itertools.combinations(range(layer.num_gpus), 2):
        for i, j in itertools.product(range(layer.slots_per_gpu), repeat=2):
            if found.holds[other, found.slots[one, i]] or found.holds[one, found.slots[other, j]]:
                continue
            change = found.part[one, i, 0] - found.part[other, j, 0]
            after = (load[one] - change) ** 2 + (load[other] + change) ** 2
            assert load[one] ** 2 + load[other] ** 2 - after <= least


def test_descent_finds_swaps() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(20):
        loads = rng.lognormal(size=(24, 3)) / 5.0
        layer = Layer(loads, np.ones(24, np.int64), np.full(3, 1.0 / 3.0), 6, 4)
        gains.append(norm(search(layer, 3), layer, 3) / norm(search(layer, 3, 0.0, 30), layer, 3))
    assert np.mean(gains) > 1.02


@settings(max_examples=30)
@given(layers(), st.integers(1, 12))
def test_kicks_keep_the_best(layer: Layer, num_kicks: int) -> None:
    alone = norm(search(layer, 4, 1e-4, 30), layer, 4)
    found = search(layer, 4, 1e-4, 30, num_kicks)
    check(found, layer)
    assert found.copies.sum() == layer.copies.sum()
    assert found.copies.max() <= layer.num_gpus
    assert norm(found, layer, 4) <= alone * (1.0 + 1e-9)


def test_kicks_gain_and_hand_slots_over() -> None:
    rng = np.random.default_rng(1)
    gains, handed = [], 0
    for _ in range(10):
        loads = rng.lognormal(size=(12, 3)) / 4.0
        counts = np.array([2] * 6 + [1] * 6)
        layer = Layer(loads, counts, np.full(3, 1.0 / 3.0), 6, 3)
        found = search(layer, 4, 1e-4, 30, 60)
        gains.append(norm(search(layer, 4, 1e-4, 30), layer, 4) / norm(found, layer, 4))
        handed += int(not np.array_equal(found.copies, counts))
    assert np.mean(gains) > 1.01
    assert handed > 0
