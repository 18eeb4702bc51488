"""Walks from a placement, and the curve that they make."""

import naive
import naive_moves
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.solver.curve import AFRESH, choose, hulls
from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I64, B
from eplb.solver.trail import _begin, _new_trail, _sum_up
from eplb.solver.walk import (
    Change,
    Steps,
    _best_of_giving,
    _best_of_swapping,
    _best_of_taking,
    _follow_layers,
    _walk_layers,
)

pytestmark = pytest.mark.oracle

NEAR = 1e-9
seeds = st.integers(0, 2**32 - 1)


def held_by(slots: I64, num_gpus: int, num_experts: int) -> B:
    """[G, E] what GPUs have in their slots."""
    held = np.zeros((num_gpus, num_experts), np.bool_)
    held[np.arange(num_gpus)[:, None], slots.reshape(num_gpus, -1)] = True
    return held


def sets_of(held: B) -> list[set[int]]:
    return [set(np.flatnonzero(row).tolist()) for row in held]


def some_slots(
    rng: np.random.Generator, num_gpus: int, size: int, node_experts: int, num_nodes: int
) -> I64:
    """[P] random slots with every expert in one, those of a node on it."""
    node_slots = num_gpus * size // num_nodes
    nodes = []
    for node in range(num_nodes):
        more = rng.integers(0, node_experts, node_slots - node_experts)
        slots = np.concatenate([np.arange(node_experts), more])
        nodes.append(rng.permutation(slots) + node * node_experts)
    return np.concatenate(nodes)


def part_copies(slots: I64, num_gpus: int, num_nodes: int) -> bool:
    """Part second copies on GPUs by swaps within nodes; return whether that was done."""
    size, node_size = slots.size // num_gpus, slots.size // num_nodes
    for _ in range(50):
        clean = True
        for slot in range(slots.size):
            gpu = slot // size
            if slots[slot] not in slots[gpu * size : slot]:
                continue
            clean = False
            begin = slot // node_size * node_size
            for other in range(begin, begin + node_size):
                host = other // size
                mine, theirs = slots[gpu * size : (gpu + 1) * size], slots[host * size :][:size]
                if slots[other] not in mine and slots[slot] not in theirs:
                    slots[slot], slots[other] = slots[other], slots[slot]
                    break
        if clean:
            return True
    return False


def some_loads(rng: np.random.Generator, *shape: int) -> F64:
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(0, 5, shape).astype(np.float64)
    if kind == 1:
        return np.where(rng.random(shape) < 0.3, 0.0, rng.lognormal(0.0, 1.0, shape))
    return rng.lognormal(0.0, 0.5 * kind, shape)


@kernel
def _best_changes(
    loads: F64,
    weight: F64,
    target: F64,
    start: I64,
    held: B,
    gpu: int,
    num_nodes: int,
    worth: F64,
    found: I64,
) -> None:
    """Fill the rows of `worth` and `found` (slot, expert, slot, expert) by the best change of each
    kind: swaps, gives, and takes slot by slot.
    """
    num_windows, num_experts = loads.shape
    num_gpus, num_slots = held.shape[0], start.shape[0]
    size = num_slots // num_gpus
    trail = _new_trail(num_experts, num_gpus, num_slots, num_windows)
    trail.loads[:] = loads
    trail.weight[:] = weight
    trail.target[:] = target
    _begin(trail, start, num_nodes)
    givers = _sum_up(trail, gpu, num_nodes)
    none = Change(0.0, -1, 0, 0, 0)
    for kind in range(2 + size):
        if kind == 0:
            change = _best_of_swapping(trail, gpu, held, num_nodes, none)
        elif kind == 1:
            change = _best_of_giving(trail, gpu, givers, held, none)
        elif trail.copies[start[gpu * size + kind - 2]] > 1:
            change = _best_of_taking(trail, gpu * size + kind - 2, held, num_nodes, none)
        else:
            change = none
        worth[kind] = change.worth
        found[kind, 0], found[kind, 1] = change.slot, change.expert
        found[kind, 2], found[kind, 3] = change.other, change.partner


def a_move(gain: float, moves: int) -> float:
    """What a step of so many moves gains for each; one of none counts as a tenth."""
    return gain / (moves if moves > 0 else 0.1)


@given(seeds)
def test_no_change_takes_off_less_than_is_said(seed: int) -> None:
    """Of each kind, what the best change is said to gain for each move is never more than the
    excess falls by, and never less than any change gains whose experts share no third GPU.

    Experts that have load in every window: of others it is not asked to give more replicas.
    """
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 3))
    num_gpus = num_nodes * int(rng.integers(2, 5))
    size = int(rng.integers(1, 4))
    node_slots = num_gpus // num_nodes * size
    node_experts = int(rng.integers(max(size, node_slots // 2), node_slots + 1))
    num_experts = num_nodes * node_experts
    num_windows = int(rng.integers(1, 4))
    slots = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    if not part_copies(slots, num_gpus, num_nodes):
        return
    loads = some_loads(rng, num_windows, num_experts) + 1e-3
    weight = rng.random(num_windows) + 0.1
    target = loads.sum(axis=1) / num_gpus * rng.uniform(0.5, 1.2)
    before = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    held = held_by(np.where(rng.random(slots.size) < 0.5, slots, before), num_gpus, num_experts)
    of_gpus = np.array([naive.gpu_loads(slots.tolist(), each, num_gpus) for each in loads.tolist()])
    gpu = int(of_gpus[0].argmax())
    target[0] = min(target[0], 0.9 * of_gpus[0, gpu])
    worth, found = np.empty(2 + size), np.empty((2 + size, 4), np.int64)
    _best_changes(loads, weight, target, slots, held, gpu, num_nodes, worth, found)

    before_hand = tuple(slots.tolist())
    measures = (loads.tolist(), weight.tolist(), target.tolist(), num_gpus)
    excess = naive_moves.excess(before_hand, *measures)
    taken = naive_moves.received(before_hand, sets_of(held))
    near = NEAR * (excess + 1e-9)

    def measured(after: tuple[int, ...]) -> tuple[float, int]:
        gain = excess - naive_moves.excess(after, *measures)
        return gain, naive_moves.received(after, sets_of(held)) - taken

    for kind in range(2 + size):
        if found[kind, 0] < 0:
            continue
        after = list(before_hand)
        after[found[kind, 0]], after[found[kind, 2]] = found[kind, 1], found[kind, 3]
        assert naive_moves.valid(after, num_experts, num_nodes)
        assert naive.num_duplicates(after, num_gpus) == 0
        gain, moves = measured(tuple(after))
        assert worth[kind] <= a_move(gain + near, moves)
        assert kind or worth[kind] >= a_move(gain - near, moves)

    best = {"swap": worth[0], "give": worth[1], "take": worth[2:].max()}
    for kind_of, after_it, entangled in naive_moves.changes(before_hand, gpu, num_gpus, num_nodes):
        gain, moves = measured(after_it)
        if not entangled:
            assert best[kind_of] >= a_move(gain - near, moves)


def walked(
    windows: F64, weight: F64, start: I64, held: B, num_nodes: int, most_moves: int, enough: F64
) -> Steps:
    """The steps of walks through all layers, which stop on half their way and go on."""
    num_layers, num_slots = start.shape
    most = 2 * num_slots
    steps = Steps(
        np.zeros(num_layers, np.int64),
        np.zeros(num_layers, np.int64),
        np.zeros((num_layers, most + 1), np.int64),
        np.zeros((num_layers, most + 1)),
        np.empty((num_layers, most, 2), np.int64),
        np.empty((num_layers, most, 2), np.int64),
    )
    layers, num_gpus = np.arange(num_layers), held.shape[1]
    for layer, (slots, of_gpus) in enumerate(zip(start.tolist(), held, strict=True)):
        steps.moves[layer, 0] = naive_moves.received(slots, sets_of(of_gpus))
    for moves in (most_moves // 2, most_moves):
        most_of = np.full(num_layers, moves)
        _walk_layers(
            windows, weight, layers, num_nodes, num_gpus, start, held, 4e-4, enough, most_of, steps
        )
    return steps


@given(seeds)
def test_every_state_of_a_walk(seed: int) -> None:
    """It is valid, its moves and its peak are what they are said to be, second copies go first,
    and from then on every step lowers the excess.
    """
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 3))
    num_gpus = num_nodes * int(rng.integers(1, 5))
    size = int(rng.integers(1, 4))
    node_slots = num_gpus // num_nodes * size
    node_experts = int(rng.integers(1, node_slots + 1))
    num_experts = num_nodes * node_experts
    windows = some_loads(rng, int(rng.integers(1, 4)), 1, num_experts)
    windows[0, 0, 0] += 1.0
    weight: F64 = np.array(rng.uniform(0.1, 1.1, (windows.shape[0],)))
    weight /= weight.sum()
    start = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    other = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    held = held_by(start if rng.random() < 0.5 else other, num_gpus, num_experts)
    most_moves = int(rng.integers(0, 2 * start.size))
    enough = np.array([float(windows.sum()) * float(rng.choice([0.0, 0.4]))])
    steps = walked(windows, weight, start[None], held[None], num_nodes, most_moves, enough)

    scaled, weights = naive.scaled(windows[:, 0].tolist(), weight.tolist())
    targets = []
    for loads in scaled:
        target = sum(loads) / num_gpus
        if size < num_experts:
            counts = naive.adams(loads, num_gpus * size, num_gpus)
            target = max(target, *(load / n for load, n in zip(loads, counts, strict=True)))
        targets.append(target * (1.0 + 4e-4))
    measures = (scaled, weights, targets, num_gpus)
    last = np.inf
    tidy, length = int(steps.tidy[0]), int(steps.length[0])
    assert tidy <= length
    for step in range(length + 1):
        slots = start[None].copy()
        _follow_layers(steps, np.array([step]), slots)
        state = slots[0].tolist()
        assert naive_moves.valid(state, num_experts, num_nodes)
        assert steps.moves[0, step] == naive_moves.received(state, sets_of(held))
        peak = naive.expected_peak(state, windows[:, 0].tolist(), weight.tolist(), num_gpus)
        assert steps.peaks[0, step] == pytest.approx(peak, rel=1e-9)
        duplicates = naive.num_duplicates(state, num_gpus)
        if step < tidy:
            assert duplicates == naive.num_duplicates(start.tolist(), num_gpus) - step
            continue
        # What is left is what cannot be helped.
        assert duplicates == num_gpus * max(0, size - node_experts)
        excess = naive_moves.excess(state, *measures)
        assert excess < last
        last = excess
        if step > tidy:
            assert steps.moves[0, step - 1] < most_moves
            assert steps.peaks[0, step - 1] > enough[0]


def states_of(
    steps: Steps, layer: int, first: int, moves: int, peak: float
) -> list[tuple[int, float]]:
    """Moves and peak of all states of a layer that may be chosen."""
    end = int(steps.length[layer]) + 1
    states = list(
        zip(
            steps.moves[layer, first:end].tolist(),
            steps.peaks[layer, first:end].tolist(),
            strict=True,
        )
    )
    return states + ([(moves, peak)] if moves >= 0 else [])


@given(seeds)
def test_choice_against_every_choice(seed: int) -> None:
    """A price is answered by the least of peak and price; a budget is never passed, and is spent
    best where it ends at a corner of the curve, and in between no worse than at the corner before.
    """
    rng = np.random.default_rng(seed)
    num_layers, most = int(rng.integers(1, 4)), 6
    length = rng.integers(0, most + 1, num_layers)
    first = rng.integers(0, length + 1)
    moves = rng.integers(0, 9, (num_layers, most + 1))
    peaks = rng.integers(1, 12, (num_layers, most + 1)).astype(np.float64)
    slots = np.zeros((num_layers, most, 2), np.int64)
    steps = Steps(length, first, moves, peaks, slots, slots)
    afresh_moves = rng.integers(-1, 12, num_layers)
    afresh_peaks = rng.integers(1, 12, num_layers).astype(np.float64)
    pieces = hulls(steps, first, afresh_moves, afresh_peaks)
    states = [
        states_of(steps, layer, first[layer], afresh_moves[layer], afresh_peaks[layer])
        for layer in range(num_layers)
    ]

    def measured(chosen: I64) -> tuple[list[int], list[float]]:
        taken, reached = [], []
        for layer, step in enumerate(chosen.tolist()):
            if step == AFRESH:
                assert afresh_moves[layer] >= 0
            else:
                assert first[layer] <= step <= length[layer]
            taken.append(int(afresh_moves[layer] if step == AFRESH else moves[layer, step]))
            reached.append(float(afresh_peaks[layer] if step == AFRESH else peaks[layer, step]))
        return taken, reached

    price = rng.choice([0.0, 0.1, 1.0, 3.7], num_layers)
    for layer, (taken, reached) in enumerate(
        zip(*measured(choose(pieces, None, price, steps)), strict=True)
    ):
        best = min(peak + price[layer] * count for count, peak in states[layer])
        assert reached + price[layer] * taken == pytest.approx(best)

    base = sum(min(count for count, _ in each) for each in states)
    top = sum(max(count for count, _ in each) for each in states)
    assert pieces.base_moves.sum() == base
    least = naive_moves.least_sums(states, top)
    corners = set((base + np.cumsum(np.append(0, pieces.moves))).tolist())
    last = np.inf
    for budget in range(base, top + 1):
        taken_all, peaks_all = measured(choose(pieces, budget, np.zeros(num_layers), steps))
        assert sum(taken_all) <= budget
        assert sum(peaks_all) >= least[budget] - NEAR
        if budget in corners:
            last = least[budget]
        assert sum(peaks_all) <= last + NEAR
