"""From the placement that runs, step by step towards balance, each step by what it gains a move.

A *move* is an expert's weights received by a GPU that did not hold them at the start. A step takes
the GPU with the most load above what can be reached and makes the change that takes off most for
each move: swap one of its replicas with another GPU's, give an expert of it one more replica in a
slot elsewhere, or hand one of its slots to another expert. Every state on the way is a placement
that could be chosen, and how far to walk is left to who knows the price of a move.

What falls is the *excess*: the sum over windows and GPUs of (load above the least peak)^2. Each
step lowers it, so the walk ends.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import inner, kernel
from eplb.solver.packing import F64, I64, B, _excess
from eplb.solver.trail import Trail, _begin, _expected, _new_trail, _renew, _sum_up
from eplb.solver.windows import _expected as _peak_over_windows
from eplb.solver.windows import _least_peak, _scale

__all__ = ["Steps"]

_FREE = 0.1
"""The moves that a step counts for which costs none, or takes some back."""

_ROUNDING = 1e-9
"""What is nearer than this is the same."""


class Steps(NamedTuple):
    """The steps of L layers, of K at most in each.

    A swap changes two slots; a hand-over has its one slot twice.
    """

    length: I64
    """[L] steps made."""
    tidy: I64
    """[L] how many of the first of them only make second copies on a GPU into something else."""
    moves: I64
    """[L, K + 1] moves away from what GPUs held, after so many steps."""
    peaks: F64
    """[L, K + 1] the expected peak then."""
    slots: I64
    """[L, K, 2] slots that a step changes."""
    experts: I64
    """[L, K, 2] what they hold after it."""


class Change(NamedTuple):
    """A step: what it takes off the excess for each move, and what it does."""

    worth: float
    slot: int
    expert: int
    other: int
    """The second slot of a swap and what it gets; the first ones again if it is none."""
    partner: int


@kernel
def _walk_layers(
    loads: F64,
    weights: F64,
    layers: I64,
    num_nodes: int,
    num_gpus: int,
    start: I64,
    held: B,
    near: float,
    enough: F64,
    most_moves: I64,
    steps: Steps,
) -> None:
    """Walk from `start` [L, P] through `layers` of `loads` [T, L, E], each of which has some load,
    until the expected peak is at or under `enough` [L], there are `most_moves` [L], no step helps
    or there is no memory for more; fill the rows of `steps`, or go on where they end.

    Loads up to `near` above the least peak are no excess. `weights` [T] add up to 1, `held`
    [L, G, E] is what GPUs held before. Experts stay on the node
    where they are.
    """
    num_windows, _, num_experts = loads.shape
    num_slots = start.shape[1]
    slots_per_gpu = num_slots // num_gpus
    trail = _new_trail(num_experts, num_gpus, num_slots, num_windows)
    count, heap = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    share, slots = np.empty(num_experts), np.empty(num_slots, np.int64)
    for layer in layers:
        unit = _scale(loads, layer, weights, trail.loads, trail.weight) / num_gpus
        for window in range(num_windows):
            for expert in range(num_experts):
                trail.loads[window, expert] /= unit
            trail.target[window] = 0.0
            if trail.weight[window] > 0.0:
                least = _least_peak(
                    trail.loads[window], num_gpus, slots_per_gpu, count, share, heap
                )
                trail.target[window] = least * (1.0 + near)
        for slot in range(num_slots):
            slots[slot] = start[layer, slot]
        done = steps.length[layer]
        _follow(steps, layer, done, slots)
        _begin(trail, slots, num_nodes)
        goal = enough[layer] / unit
        _walk(trail, held[layer], num_nodes, goal, most_moves[layer], layer, steps)
        for step in range(done, steps.length[layer] + 1):
            steps.peaks[layer, step] *= unit


@inner
def _walk(
    trail: Trail,
    held: B,
    num_nodes: int,
    enough: float,
    most_moves: int,
    layer: int,
    steps: Steps,
) -> None:
    """Walk through one layer from where its steps end, and keep the further ones."""
    num_gpus = trail.above.shape[0]
    most = steps.slots.shape[1]
    length = steps.length[layer]
    steps.peaks[layer, length] = _expected(trail)
    slots_per_gpu = trail.slots.shape[0] // num_gpus
    for slot in range(trail.slots.shape[0]):
        gpu = slot // slots_per_gpu
        if length < most and trail.holds[gpu, trail.slots[slot]] > 1:
            _sum_up(trail, gpu, num_nodes)
            worst = Change(-np.inf, -1, 0, 0, 0)
            change = _best_of_taking(trail, slot, held, num_nodes, worst)
            if change.slot >= 0:
                length = _make(trail, change, held, layer, length, steps)
                steps.tidy[layer] = length
    while length < most and steps.peaks[layer, length] > enough * (1.0 + _ROUNDING):
        if steps.moves[layer, length] >= most_moves:
            break
        excess = 0.0
        for gpu in range(num_gpus):
            excess += trail.above[gpu]
        change = _best_change(trail, held, num_nodes, excess)
        if change.slot < 0:
            break
        length = _make(trail, change, held, layer, length, steps)
    steps.length[layer] = length


@inner
def _best_change(trail: Trail, held: B, num_nodes: int, excess: float) -> Change:
    """The change that takes most off the excess for each move, of the GPU with the most excess for
    which there is one; slot is -1 where there is none.
    """
    num_gpus = trail.above.shape[0]
    slots_per_gpu = trail.slots.shape[0] // num_gpus
    last = np.inf
    before = -1
    for _ in range(num_gpus):
        # The GPUs by falling excess, ties by index.
        gpu = -1
        for i in range(num_gpus):
            later = trail.above[i] < last or (trail.above[i] == last and i > before)
            if later and (gpu < 0 or trail.above[i] > trail.above[gpu]):
                gpu = i
        if gpu < 0 or trail.above[gpu] <= 0.0:
            break
        last, before = trail.above[gpu], gpu
        givers = _sum_up(trail, gpu, num_nodes)
        best = Change(_ROUNDING * excess, -1, 0, 0, 0)
        best = _best_of_giving(trail, gpu, givers, held, best)
        for slot in range(gpu * slots_per_gpu, (gpu + 1) * slots_per_gpu):
            if trail.copies[trail.slots[slot]] > 1:
                best = _best_of_taking(trail, slot, held, num_nodes, best)
        best = _best_of_swapping(trail, gpu, held, num_nodes, best)
        if best.slot >= 0:
            return best
    return Change(0.0, -1, 0, 0, 0)


@inner
def _best_of_giving(trail: Trail, gpu: int, givers: int, held: B, best: Change) -> Change:
    """The best of that and one more replica of an expert of a GPU in another GPU's slot."""
    gain, kept = trail.gain, trail.kept
    slots_per_gpu = trail.slots.shape[0] // trail.above.shape[0]
    worth, given, found = best.worth, -1, -1
    for slot in range(gpu * slots_per_gpu, (gpu + 1) * slots_per_gpu):
        expert = trail.slots[slot]
        relief = trail.all_relief[expert]
        if relief <= 0.0:
            continue
        for i in range(givers):
            gain[i] = relief + kept[i]
        for window in range(trail.part.shape[0]):
            new, weight, left = trail.more[window, expert], trail.weight[window], trail.left[window]
            for i in range(givers):
                gain[i] -= weight * _excess(left[i] + new)
        for i in range(givers):
            target = trail.givers[i]
            giver = trail.slots[target]
            if trail.holds[gpu, giver] > 0:
                # Sums of relief and burden leave out that both are on this GPU: never below 0, the
                # excess being convex.
                count = trail.copies[giver]
                for window in range(trail.part.shape[0]):
                    over = trail.load[window, gpu] - trail.target[window]
                    less = trail.part[window, slot] - trail.more[window, expert]
                    more = trail.loads[window, giver] * (1.0 / (count - 1) - 1.0 / count)
                    both = _excess(over - less) + _excess(over + more) - _excess(over)
                    gain[i] += trail.weight[window] * (both - _excess(over - less + more))
            if gain[i] <= _FREE * worth:
                continue
            other = target // slots_per_gpu
            if trail.holds[other, expert] > 0:
                continue
            moves = int(not held[other, expert]) - int(not held[other, giver])
            each = gain[i] / (moves if moves > 0 else _FREE)
            if each > worth:
                worth, given, found = each, expert, target
    if found < 0:
        return best
    return Change(worth, found, given, found, given)


@inner
def _best_of_taking(trail: Trail, slot: int, held: B, num_nodes: int, best: Change) -> Change:
    """The best of that and another expert in a slot whose expert has replicas to spare."""
    expert = trail.slots[slot]
    gain, count = trail.gain, trail.copies
    num_experts, num_gpus = count.shape[0], trail.above.shape[0]
    gpu = slot // (trail.slots.shape[0] // num_gpus)
    left = trail.burden[slot] - trail.all_burden[expert] + trail.above[gpu]
    for other in range(num_experts):
        gain[other] = left + trail.all_relief[other]
    for window in range(trail.part.shape[0]):
        over = trail.room[window, slot] - trail.part[window, slot]
        weight, more = trail.weight[window], trail.more[window]
        for other in range(num_experts):
            gain[other] -= weight * _excess(over + more[other])
    back = int(not held[gpu, expert]) if trail.holds[gpu, expert] == 1 else 0
    node = gpu // (num_gpus // num_nodes)
    worth, found = best.worth, -1
    for other in range(num_experts):
        if gain[other] <= _FREE * worth or trail.holds[gpu, other] > 0:
            continue
        if trail.home[other] != node:
            continue
        moves = int(not held[gpu, other]) - back
        each = gain[other] / (moves if moves > 0 and gain[other] > 0.0 else _FREE)
        if each > worth:
            worth, found = each, other
    if found < 0:
        return best
    return Change(worth, slot, found, slot, found)


@inner
def _best_of_swapping(trail: Trail, gpu: int, held: B, num_nodes: int, best: Change) -> Change:
    """The best of that and a swap of a slot of a GPU with another's."""
    num_slots, num_gpus = trail.slots.shape[0], trail.above.shape[0]
    slots_per_gpu, slots_per_node = num_slots // num_gpus, num_slots // num_nodes
    begin = gpu * slots_per_gpu // slots_per_node * slots_per_node
    gain, both = trail.gain, trail.above_of[begin : begin + slots_per_node]
    _rate(trail, gpu, begin, slots_per_node, held)
    worth, first, second = best.worth, -1, -1
    for slot in range(gpu * slots_per_gpu, (gpu + 1) * slots_per_gpu):
        expert = trail.slots[slot]
        for i in range(slots_per_node):
            gain[i] = trail.above[gpu] + both[i]
        for window in range(trail.part.shape[0]):
            part = trail.part[window, begin : begin + slots_per_node]
            room = trail.room[window, begin : begin + slots_per_node]
            mine, weight = trail.part[window, slot], trail.weight[window]
            over = trail.room[window, slot] - mine
            for i in range(slots_per_node):
                here = _excess(over + part[i])
                there = _excess(room[i] - part[i] + mine)
                gain[i] -= weight * (here + there)
        back = int(not held[gpu, expert])
        least = 1
        for host in range(begin // slots_per_gpu, (begin + slots_per_node) // slots_per_gpu):
            if held[host, expert] and trail.holds[host, expert] == 0:
                least = 0
        rate = trail.rate[1 + least - back]
        for i in range(slots_per_node):
            # At most what it is worth, and hardly ever more than the best, as a processor foresees.
            if not gain[i] * rate[i] > worth:
                continue
            host = (begin + i) // slots_per_gpu
            if trail.holds[host, expert] == 0:
                coming = int(not held[host, expert]) - back
                each = gain[i] * trail.rate[1 + coming, i]
                if each > worth:
                    worth, first, second = each, slot, begin + i
    if first < 0:
        return best
    return Change(worth, first, trail.slots[second], second, trail.slots[first])


@inner
def _rate(trail: Trail, gpu: int, begin: int, num_slots: int, held: B) -> None:
    """Fill `rate` for swaps of a GPU with the slots from `begin` on."""
    slots_per_gpu = trail.slots.shape[0] // trail.above.shape[0]
    for i in range(num_slots):
        partner, host = trail.slots[begin + i], (begin + i) // slots_per_gpu
        moves = int(not held[gpu, partner]) - int(not held[host, partner])
        way = 0.0 if trail.holds[gpu, partner] > 0 else 1.0
        free = way / _FREE
        trail.rate[0, i] = free
        trail.rate[1, i] = way if moves == 1 else free
        trail.rate[2, i] = free if moves < 0 else way / (1 + moves)


@inner
def _make(trail: Trail, change: Change, held: B, layer: int, length: int, steps: Steps) -> int:
    """Make a change, keep it as a step, and return the steps that there are now."""
    moves = steps.moves[layer, length]
    num_gpus = trail.above.shape[0]
    slots_per_gpu = trail.slots.shape[0] // num_gpus
    swap = change.slot != change.other
    steps.slots[layer, length, 0] = change.slot
    steps.slots[layer, length, 1] = change.other
    steps.experts[layer, length, 0] = change.expert
    steps.experts[layer, length, 1] = change.partner
    for i in range(1 + int(swap)):
        slot = steps.slots[layer, length, i]
        new = steps.experts[layer, length, i]
        gpu, old = slot // slots_per_gpu, trail.slots[slot]
        trail.slots[slot] = new
        trail.holds[gpu, old] -= 1
        trail.holds[gpu, new] += 1
        moves += int(trail.holds[gpu, new] == 1 and not held[gpu, new])
        moves -= int(trail.holds[gpu, old] == 0 and not held[gpu, old])
        if not swap:
            trail.copies[old] -= 1
            trail.copies[new] += 1
            for window in range(trail.part.shape[0]):
                trail.more[window, old] = trail.loads[window, old] / (trail.copies[old] + 1)
                trail.more[window, new] = trail.loads[window, new] / (trail.copies[new] + 1)
            for host in range(num_gpus):
                if trail.holds[host, old] > 0 or trail.holds[host, new] > 0:
                    _renew(trail, host)
        _renew(trail, gpu)
    length += 1
    steps.moves[layer, length] = moves
    steps.peaks[layer, length] = _expected(trail)
    return length


@inner
def _follow(steps: Steps, layer: int, length: int, slots: I64) -> None:
    """Make the first steps of a layer in `slots` [P]."""
    for step in range(length):
        for i in range(2):
            slots[steps.slots[layer, step, i]] = steps.experts[layer, step, i]


@kernel
def _follow_layers(steps: Steps, chosen: I64, phy2log: I64) -> None:
    """Make the first `chosen` [L] steps of each layer in `phy2log` [L, P], none where below 0."""
    for layer in range(chosen.shape[0]):
        _follow(steps, layer, chosen[layer], phy2log[layer])


@kernel
def _peak_layers(
    loads: F64, weights: F64, layers: I64, slots_per_gpu: int, phy2log: I64, peaks: F64
) -> None:
    """Fill `peaks` [L] of `layers` with the expected peak, as a plan for `loads` [T, L, E] does."""
    num_windows, _, num_experts = loads.shape
    scaled, weight = np.empty((num_windows, num_experts)), np.empty(num_windows)
    count, share = np.empty(num_experts, np.int64), np.empty(num_experts)
    for layer in layers:
        _scale(loads, layer, weights, scaled, weight)
        peaks[layer] = _peak_over_windows(
            scaled, weight, phy2log[layer], slots_per_gpu, count, share
        )
