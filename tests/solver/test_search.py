"""The search: what changes are worth, every state of both drivers, and the curve that they make."""

from unittest import mock

import naive
import naive_moves
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from parts import task_of

from eplb import Cluster
from eplb.planning.passes import step_memory
from eplb.planning.problem import Problem, check_problem
from eplb.solver.curve import AFRESH, choose, hulls
from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I64, B, Gpus, Task
from eplb.solver.search import (
    Drive,
    Steps,
    _begin,
    _best_of_giving,
    _best_of_swapping,
    _best_of_taking,
    _compare,
    _follow_layers,
    _none,
    _search_layers,
    _sum_up,
)
from eplb.solver.state import _new_state

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
    task: Task,
    target: F64,
    start: I64,
    held: B,
    gpu: int,
    worth: F64,
    found: I64,
) -> None:
    """Fill the rows of `worth` and `found` (slot, expert, slot, expert) by the best change of each
    kind: swaps, gives, and takes slot by slot.
    """
    size = start.shape[0] // held.shape[0]
    state = _new_state(task)
    for window in range(task.windows.shape[0]):
        state.root[window] = np.sqrt(task.weights[window, 0])
        state.loads[window] = task.windows[window, 0] * state.root[window]
        state.target[window] = target[window] * state.root[window]
    _begin(state, start)
    _compare(state, held)
    _sum_up(state)
    for kind in range(2 + size):
        change = _none(0.0)
        if kind == 0:
            change = _best_of_swapping(state, gpu, 0.0, change)
        elif kind == 1:
            change = _best_of_giving(state, gpu, change)
        elif state.copies[start[gpu * size + kind - 2]] > 1:
            change = _best_of_taking(state, gpu * size + kind - 2, change)
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
    assume(part_copies(slots, num_gpus, num_nodes))
    loads = some_loads(rng, num_windows, num_experts) + 1e-3
    weight = rng.random(num_windows) + 0.1
    target = loads.sum(axis=1) / num_gpus * rng.uniform(0.5, 1.2)
    before = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    held = held_by(np.where(rng.random(slots.size) < 0.5, slots, before), num_gpus, num_experts)
    of_gpus = np.array([naive.gpu_loads(slots.tolist(), each, num_gpus) for each in loads.tolist()])
    gpu = int(of_gpus[0].argmax())
    pace = rng.uniform(0.5, 2.0, num_gpus) if rng.random() < 0.5 else np.ones(num_gpus)
    target[0] = min(target[0], 0.9 * of_gpus[0, gpu] / pace[gpu])
    worth, found = np.empty(2 + size), np.empty((2 + size, 4), np.int64)
    gpus = Gpus(np.arange(num_gpus + 1) * size, pace)
    task = task_of(loads[:, None], weight[:, None], num_nodes, gpus)
    _best_changes(task, target, slots, held, gpu, worth, found)

    before_hand = tuple(slots.tolist())
    measures = (loads.tolist(), weight.tolist(), target.tolist(), num_gpus, pace.tolist())
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


def searched(
    problem: Problem,
    start: I64,
    held: B,
    drive: Drive,
    most: int,
    most_moves: list[int],
    enough: F64,
) -> Steps:
    """The steps of a search through the one layer of a problem, which stops at each of `most_moves`
    and goes on.
    """
    steps = step_memory(1, most)
    steps.moves[0, 0] = naive_moves.received(start[0].tolist(), sets_of(held[0]))
    for moves in most_moves:
        _search_layers(
            np.arange(1), problem.task, start, held, drive, np.zeros(1), enough, np.array([moves]),
            np.zeros(1), steps,
        )  # fmt: skip
    return steps


def after(start: I64, steps: Steps, step: int) -> list[int]:
    """The slots after so many steps."""
    slots = start.copy()
    _follow_layers(steps, np.array([step]), slots)
    state: list[int] = slots[0].tolist()
    return state


@given(seeds)
def test_every_state_of_a_descent(seed: int) -> None:
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
    cluster = Cluster(num_gpus, num_nodes, size)
    problem = check_problem(windows, cluster, num_nodes, weight, 1)
    descend = Drive(False, False, 4e-4, 0.0)
    stops = [most_moves // 2, most_moves]
    steps = searched(problem, start[None], held[None], descend, 2 * start.size, stops, enough)

    scaled, weights = problem.windows[:, 0].tolist(), problem.weight[:, 0].tolist()
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
        state = after(start[None], steps, step)
        check_state(steps, step, state, held, windows, weight, num_nodes)
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


def check_state(
    steps: Steps, step: int, state: list[int], held: B, windows: F64, weight: F64, num_nodes: int
) -> None:
    """A state is valid, and its moves and its peak are what they are said to be."""
    num_gpus, num_experts = held.shape
    assert naive_moves.valid(state, num_experts, num_nodes)
    assert steps.moves[0, step] == naive_moves.received(state, sets_of(held))
    peak = naive.expected_peak(state, windows[:, 0].tolist(), weight.tolist(), num_gpus)
    assert steps.peaks[0, step] == pytest.approx(peak, rel=1e-9)


@given(seeds, st.booleans())
def test_every_state_of_a_tabu_search(seed: int, smooth: bool) -> None:
    """It is valid, has no second copies on a GPU, and its moves and peak are what they are said to
    be, whether or not swaps under norms come first.
    """
    rng = np.random.default_rng(seed)
    num_nodes = int(rng.integers(1, 3))
    num_gpus = num_nodes * int(rng.integers(2, 5))
    size = int(rng.integers(1, 4))
    node_slots = num_gpus // num_nodes * size
    node_experts = int(rng.integers(max(size, node_slots // 2), node_slots + 1))
    num_experts = num_nodes * node_experts
    start = some_slots(rng, num_gpus, size, node_experts, num_nodes)
    assume(part_copies(start, num_gpus, num_nodes))
    windows = some_loads(rng, int(rng.integers(1, 4)), 1, num_experts) + 1e-3
    weight: F64 = np.array(rng.uniform(0.1, 1.1, (windows.shape[0],)))
    held = held_by(start, num_gpus, num_experts)
    begun, cluster = start[None].copy(), Cluster(num_gpus, num_nodes, size)
    problem = check_problem(windows, cluster, num_nodes, weight, 1)
    drive = Drive(True, smooth, 0.0, 0.0)
    steps = searched(problem, begun, held[None], drive, 40, [40], np.zeros(1))
    if not smooth:
        assert np.array_equal(begun[0], start)
    for step in range(int(steps.length[0]) + 1):
        state = after(begun, steps, step)
        assert naive.num_duplicates(state, num_gpus) == 0
        if smooth:
            steps.moves[0, step] = naive_moves.received(state, sets_of(held))
        check_state(steps, step, state, held, windows, weight, num_nodes)


@given(seeds, st.sampled_from([0, 1_000_000]))
def test_choice_against_every_choice(seed: int, looks: int) -> None:
    """A price is answered by the least of peak and price; a budget is never passed, and is spent
    best: at the corners of the curve and beyond them, or everywhere where layers are small.
    """
    rng = np.random.default_rng(seed)
    num_layers, most = int(rng.integers(1, 4)), 6
    length = rng.integers(0, most + 1, num_layers)
    moves = rng.integers(0, 9, (num_layers, most + 1))
    peaks = rng.integers(1, 12, (num_layers, most + 1)).astype(np.float64)
    slots = np.zeros((num_layers, most, 2), np.int64)
    steps = Steps(length, np.zeros_like(length), moves, peaks, slots, slots)
    afresh_moves = rng.integers(-1, 12, num_layers)
    afresh_peaks = rng.integers(1, 12, num_layers).astype(np.float64)
    pieces = hulls(steps, afresh_moves, afresh_peaks)
    states = []
    for layer, end in enumerate((length + 1).tolist()):
        walked = zip(moves[layer, :end].tolist(), peaks[layer, :end].tolist(), strict=True)
        named = (int(afresh_moves[layer]), float(afresh_peaks[layer]))
        states.append([*walked, *([named] if named[0] >= 0 else [])])

    def measured(chosen: I64) -> tuple[list[int], list[float]]:
        taken, reached = [], []
        for layer, step in enumerate(chosen.tolist()):
            if step == AFRESH:
                assert afresh_moves[layer] >= 0
            else:
                assert 0 <= step <= length[layer]
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
    price = np.full(num_layers, rng.choice([0.0, 0.1, 1.0]))
    costs = [[(count, peak + price[0] * count) for count, peak in each] for each in states]
    least = naive_moves.least_sums(costs, top)
    corners = set((base + np.cumsum(np.append(0, pieces.moves))).tolist())
    last = np.inf
    for budget in range(base, top + 1):
        with mock.patch("eplb.solver.curve._LOOKS", looks):
            taken_all, peaks_all = measured(choose(pieces, budget, price, steps))
        assert sum(taken_all) <= budget
        cost = sum(peaks_all) + price[0] * sum(taken_all)
        assert least[budget] - NEAR <= cost <= last + NEAR
        if looks or budget in corners:
            assert cost <= least[budget] + NEAR
        last = cost
