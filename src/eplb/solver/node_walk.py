"""From a walk to lower peaks on to fewer nodes for a token, swap by swap.

Each step is the best of some that are drawn: two replicas of nearly the same load, on two nodes,
trade places, and what the peak and the price of the other nodes fall by together is the most for
each move. So the states of a walk have a cost, from which a budget of moves or a price of a move
picks (`solver.curve`), as it does from peaks.
"""

import numpy as np

from eplb.solver.draw import _below, _draw
from eplb.solver.jit import inner, kernel
from eplb.solver.node_trades import Routes, _change, _make, _new_where, _number_of, _stand
from eplb.solver.packing import F64, HISTOGRAM, I64, B, Task, _copy, _descending
from eplb.solver.search import Steps

__all__ = ["DRAWN"]

DRAWN = 200
"""Swaps of which a step is the best."""
_NEAREST = 24
"""How far apart in the order of their load two replicas may be that trade places."""
_ENOUGH_FAILURES = 4
"""Draws in a row without a gain after which a walk ends."""
_GAIN = 1e-9
"""What a step is to gain at least, in mean loads of a GPU: the rest is rounding."""


@kernel
def _walk_nodes(
    rows: I64,
    layers: I64,
    routes: Routes,
    task: Task,
    held: B,
    price: F64,
    most_moves: I64,
    draws: int,
    start: I64,
    steps: Steps,
    costs: F64,
) -> None:
    """Fill `costs` [L, K + 1], peak and price [L] of the other nodes together, for the steps of
    `layers` [J] in some `rows` of it from `start` [L, P], and add steps that lower them, of at most
    `most_moves` [L] moves in all away from what GPUs held, `held` [L, G, E].

    `routes` are of these J layers; swaps are drawn for at most `draws` steps.
    """
    windows, weight = task.windows, task.weights
    num_windows, _, num_experts = windows.shape
    num_gpus, num_slots = held.shape[1], start.shape[1]
    per_gpu, node_slots = num_slots // num_gpus, num_slots // routes.origin.shape[1]
    where = _new_where(routes)
    slots, random = np.empty(num_slots, np.int64), np.empty(1, np.int64)
    size, histogram = np.empty(num_slots), np.empty(HISTOGRAM, np.int64)
    order, scratch = np.empty(num_slots, np.int64), np.empty(num_slots, np.int64)
    share, load = np.empty((num_windows, num_experts)), np.empty((num_windows, num_gpus))
    for at in rows:
        layer = layers[at]
        random[0] = layer
        # The first draws of small numbers are much alike.
        _draw(random)
        _copy(start[layer], slots)
        length = steps.length[layer]
        for step in range(length + 1):
            for i in range(2 * int(step > 0)):
                slots[steps.slots[layer, step - 1, i]] = steps.experts[layer, step - 1, i]
            others = _stand(routes, at, slots, where)
            costs[layer, step] = steps.peaks[layer, step] + price[layer] * others
        peak, mean = 0.0, 0.0
        load[:] = 0.0
        for window in range(num_windows):
            for expert in range(num_experts):
                share[window, expert] = windows[window, layer, expert] / where.replicas[expert]
            for slot in range(num_slots):
                load[window, slot // per_gpu] += share[window, slots[slot]]
            highest = 0.0
            for gpu in range(num_gpus):
                highest = max(highest, load[window, gpu])
                mean += weight[window, layer] * load[window, gpu] / num_gpus
            peak += weight[window, layer] * highest
        for slot in range(num_slots):
            size[slot] = routes.loads[at, slots[slot]] / where.replicas[slots[slot]]
        _descending(size, order, scratch, histogram)
        failures = 0
        for _ in range(draws):
            if length == steps.slots.shape[1] or failures == _ENOUGH_FAILURES:
                break
            most = most_moves[layer] - steps.moves[layer, length]
            best, chosen = -_GAIN * mean, (-1, -1, 0, 0.0, 0.0)
            for _ in range(DRAWN):
                i = _below(random, num_slots)
                j = i + 1 + _below(random, int(_NEAREST))
                if j >= num_slots:
                    continue
                slot, target = order[i], order[j]
                node, other = slot // node_slots, target // node_slots
                gpu, host = slot // per_gpu, target // per_gpu
                expert, partner = slots[slot], slots[target]
                if node == other or expert == partner:
                    continue
                mine = slots[gpu * per_gpu : (gpu + 1) * per_gpu]
                theirs = slots[host * per_gpu : (host + 1) * per_gpu]
                if _number_of(mine, partner) > 0 or _number_of(theirs, expert) > 0:
                    continue
                moves = 2 - int(held[layer, gpu, partner]) - int(held[layer, host, expert])
                if not held[layer, gpu, expert] and _number_of(mine, expert) == 1:
                    moves -= 1
                if not held[layer, host, partner] and _number_of(theirs, partner) == 1:
                    moves -= 1
                if moves > most:
                    continue
                raised = _peak_after(load, share, weight, layer, gpu, host, expert, partner) - peak
                # A swap seldom saves a tenth of a node.
                if raised > 0.1 * price[layer]:
                    continue
                more = _change(routes, at, where, expert, node, partner, other)
                gain = (raised + price[layer] * more) / max(moves, 1)
                if gain < best:
                    best, chosen = gain, (i, j, moves, raised, more)
            if chosen[0] < 0:
                failures += 1
                continue
            failures = 0
            i, j, moves, raised, more = chosen
            slot, target = order[i], order[j]
            expert, partner = slots[slot], slots[target]
            gpu, host = slot // per_gpu, target // per_gpu
            node, other = slot // node_slots, target // node_slots
            _change(routes, at, where, expert, node, partner, other)
            _make(where, expert, node, partner, other)
            for window in range(num_windows):
                change = share[window, partner] - share[window, expert]
                load[window, gpu] += change
                load[window, host] -= change
            slots[slot], slots[target] = partner, expert
            order[i], order[j] = target, slot
            peak += raised
            steps.slots[layer, length, 0], steps.slots[layer, length, 1] = slot, target
            steps.experts[layer, length, 0], steps.experts[layer, length, 1] = partner, expert
            steps.moves[layer, length + 1] = steps.moves[layer, length] + moves
            steps.peaks[layer, length + 1] = peak
            costs[layer, length + 1] = costs[layer, length] + raised + price[layer] * more
            length += 1
        steps.length[layer] = length


@inner
def _peak_after(
    load: F64, share: F64, weight: F64, layer: int, gpu: int, host: int, expert: int, partner: int
) -> float:
    """The expected peak after an expert of a GPU and a partner of its host have traded places."""
    peak = 0.0
    for window in range(load.shape[0]):
        change = share[window, partner] - share[window, expert]
        highest = max(load[window, gpu] + change, load[window, host] - change)
        for other in range(load.shape[1]):
            if other not in (gpu, host):
                highest = max(highest, load[window, other])
        peak += weight[window, layer] * highest
    return peak
