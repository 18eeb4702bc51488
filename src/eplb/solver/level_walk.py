"""The walk under a split that is best in every window: from what runs, step by step, to placements
that leave a best split more freedom.

A step is a change of `level_search`: two copies swap their GPUs, or a slot is given to another
expert. It is the one that lowers the norm of the loads of GPUs most for each *move*, an expert's
weights received by a GPU that did not hold them at the start, of those that take load off the
busiest GPU; of the next one where there is none. What a change would do is
read off the slopes of the norm; the few that promise most are made and levelled, and the best of
those is kept. GPUs joined by copies act as one, so an expert is looked at where it is first found.

Every state on the way may be chosen: how far to go is left to who knows the price of a move.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.level import Levelling, _level_window, _new_levelling, _take_up
from eplb.solver.level_search import (
    Levelled,
    _begin,
    _change,
    _find_links,
    _gain_of,
    _keep,
    _make,
    _new_levelled,
    _place_of,
    _price_of_swap,
    _settle,
    _weigh,
    _widen,
)
from eplb.solver.packing import F64, I64, B, Task, _copy, _write_rules
from eplb.solver.search import Steps

__all__: list[str] = []

_BLOCK = 16
"""Windows in a block, as in `level_search`."""
_TRIED = 24
"""Changes that are made and levelled in each step, those that promise most."""
_SWEEPS = 6
"""Sweeps that level such a change."""
_LAST_SWEEPS = 12
"""Sweeps that level the one that is kept."""
_FREE = 0.1
"""The moves that a step counts for which costs none, or takes some back."""
_LEAST_GAIN = 1e-6
"""What a step takes off the norm at least, in mean loads of a GPU."""
_IDLE = 1e-3
"""GPUs that make up less of the norm than this share are not busy."""
_JOINED = 1e-3
"""A GPU whose level is no further below another's than this share may be joined to it."""
_PATIENCE = 0.25
_LEAST_PATIENCE = 10
"""A walk ends where the peak and the price of the moves together have not fallen for this share of
its steps, and so many."""
_ROUNDING = 1e-9
# `int(...)` and `bool(...)` around these, in calls, keep a kernel from being compiled once for each
# literal.
_BEGIN = 0
_ALONE = 0
_NO_WIDTH = 0.0
_NOT_MORE = 0.0
_AS_EACH = 0.0
_ONLY_PEAK = True
_STEEP = False


class Looks(NamedTuple):
    """What is known of changes before a step, and the best K of those on a GPU."""

    urgency: F64
    """[G] what a GPU makes up of the norm."""
    seen: I64
    """[E] 1 for experts that were looked at."""
    removal: F64
    """[P] what the norm rises by if a copy is taken away, and the copy that then takes over what it
    took where that is least in the next; inf and -1 for one that must stay."""
    heir_of: I64
    own: F64
    """[P] how steep the norm is in what a copy takes, and how steep it would be on the GPU that is
    looked at in the next."""
    here: F64
    price: F64
    """[K] price of a change for each move, the lowest first; 0 for none."""
    changes: I64
    """[K, 4] its two copies, the heir or -1, and its moves."""


@allocating
def _new_looks(num_experts: int, num_slots: int, num_gpus: int) -> Looks:
    return Looks(
        np.empty(num_gpus),
        np.empty(num_experts, np.int64),
        np.empty(num_slots),
        np.empty(num_slots, np.int64),
        np.empty(num_slots),
        np.empty(num_slots),
        np.empty(_TRIED),
        np.empty((_TRIED, 4), np.int64),
    )


@kernel
def _walk_levelled(
    layers: I64,
    task: Task,
    start: I64,
    held: B,
    patience: bool,
    enough: F64,
    most: I64,
    price: F64,
    steps: Steps,
) -> None:
    """Walk from `start` [L, P] through `layers`, each of which has some load, and fill their rows
    of `steps`, whose peaks are those of windows split best.

    A walk ends where the expected peak is at or under `enough` [L], after `most` [L] moves, where
    no step helps, where there is no memory for more steps, and with some `patience` where steps
    have not been worth their `price` [L] for long. `held` [L, G, E] is what GPUs held before. The
    wishes that `start` keeps stay kept.
    """
    num_windows, _, num_experts = task.windows.shape
    num_gpus, num_slots = task.gpus.pace.shape[0], start.shape[1]
    at = _new_levelled(task, (num_windows + _BLOCK - 1) // _BLOCK, bool(_STEEP))
    by, known = _new_levelling(num_experts, task.gpus), _new_looks(num_experts, num_slots, num_gpus)
    level, slots = np.empty(num_gpus), np.empty(num_slots, np.int64)
    limit = steps.slots.shape[1]
    for layer in layers:
        row = layer % task.wishes.least.shape[0]
        loads, weight = task.windows[:, layer], task.weights[:, layer]
        _copy(start[layer], slots)
        _write_rules(at.rules, task.wishes, row)
        _widen(at, loads, _NO_WIDTH, _NOT_MORE, int(_ALONE))
        _weigh(at, weight, int(_ALONE), _AS_EACH)
        _begin(at, task.wishes.barred[row], slots)
        _find_links(at)
        _settle(at, at.load.shape[0], int(_LAST_SWEEPS))
        peak = _expected_peak(by, task, layer, slots, at.first, level)
        steps.peaks[layer, 0] = peak
        length, cheapest = int(_BEGIN), int(_BEGIN)
        lowest = peak + price[layer] * steps.moves[layer, 0]
        while length < limit and peak > enough[layer] * (1.0 + _ROUNDING):
            moves = steps.moves[layer, length]
            if moves >= most[layer]:
                break
            if patience and length - cheapest >= _LEAST_PATIENCE + _PATIENCE * cheapest:
                break
            found = _best_step(at, held[layer], known)
            if found < 0:
                break
            copy, other, heir, cost = known.changes[found]
            _step(at, copy, other, heir, slots, layer, length, steps)
            length += 1
            peak = _expected_peak(by, task, layer, slots, at.first, level)
            steps.moves[layer, length] = moves + cost
            steps.peaks[layer, length] = peak
            if peak + price[layer] * (moves + cost) < lowest:
                cheapest, lowest = length, peak + price[layer] * (moves + cost)
        steps.length[layer] = length


@inner
def _expected_peak(
    by: Levelling, task: Task, layer: int, slots: I64, gpu_slots: I64, level: F64
) -> float:
    """The expected peak over the windows of a layer, of slots [P]."""
    num_copied, num_alive = _take_up(by, slots, gpu_slots)
    expected = 0.0
    for window in range(task.windows.shape[0]):
        weight = task.weights[window, layer]
        if weight > 0.0:
            load = task.windows[window, layer]
            _level_window(by, load, num_copied, num_alive, bool(_ONLY_PEAK), level)
            peak = 0.0
            for gpu in range(level.shape[0]):
                peak = max(peak, level[gpu])
            expected += weight * peak
    return expected


@inner
def _step(
    at: Levelled,
    copy: int,
    other: int,
    heir: int,
    slots: I64,
    layer: int,
    length: int,
    steps: Steps,
) -> None:
    """Make a change for good, and keep it as a step."""
    gpu, host = at.gpu[copy], at.gpu[other]
    expert, partner = at.expert[copy], at.expert[other]
    place, there = _place_of(at, gpu, copy), _place_of(at, host, other)
    slot = at.first[host] + there
    steps.slots[layer, length, 0] = steps.slots[layer, length, 1] = slot
    steps.experts[layer, length, 0] = steps.experts[layer, length, 1] = expert
    slots[slot] = expert
    if heir < 0:
        steps.slots[layer, length, 1] = at.first[gpu] + place
        steps.experts[layer, length, 1] = partner
        slots[at.first[gpu] + place] = partner
        at.on[gpu, place], at.on[host, there] = other, copy
    _make(at, copy, other, heir, expert)
    for block in range(at.load.shape[0]):
        _change(at, block, copy, other, heir, int(_SWEEPS))
    _keep(at, at.load.shape[0], partner, heir)
    _settle(at, at.load.shape[0], int(_LAST_SWEEPS))


@inner
def _best_step(at: Levelled, held: B, known: Looks) -> int:
    """The row of `changes` that lowers the norm most for each move, of those on the busiest GPU
    that has any; -1 for none. `held` [G, E] is what GPUs held before.
    """
    num_gpus, urgency, total = at.on.shape[0], known.urgency, 0.0
    for gpu in range(num_gpus):
        urgency[gpu] = 0.0
        for block in range(at.load.shape[0]):
            slope, level = at.slope[block, gpu], at.level[block, gpu]
            for t in range(_BLOCK):
                urgency[gpu] += slope[t] * level[t]
        urgency[gpu] *= at.pace[gpu]
        total += urgency[gpu]
    _price_removals(at, known.removal, known.heir_of)
    for copy in range(known.own.shape[0]):
        known.own[copy] = _steepness(at, copy, at.gpu[copy])
    known.seen[:] = 0
    for _ in range(num_gpus):
        busiest = int(np.argmax(urgency))
        if urgency[busiest] <= _IDLE * total:
            break
        urgency[busiest] = 0.0
        known.price[:] = 0.0
        _list_changes(at, held, busiest, known)
        found = _try_changes(at, known)
        if found >= 0:
            return found
    return -1


@inner
def _price_removals(at: Levelled, removal: F64, heir_of: I64) -> None:
    """Fill what `Looks` has of copies [P] that are taken away."""
    for copy in range(removal.shape[0]):
        removal[copy], heir_of[copy] = np.inf, -1
        expert, gpu = at.expert[copy], at.gpu[copy]
        if at.number[expert] <= at.rules[expert, 0]:
            continue
        for i in range(at.number[expert]):
            heir = at.copies[expert, i]
            if heir == copy:
                continue
            third, price = at.gpu[heir], 0.0
            for block in range(at.load.shape[0]):
                flow = at.flow[block, copy]
                steep, steep_heir = at.slope[block, gpu], at.slope[block, third]
                bent, bent_heir = at.curve[block, gpu], at.curve[block, third]
                for t in range(_BLOCK):
                    lost = flow[t]
                    price += lost * (steep_heir[t] - steep[t] + lost * (bent_heir[t] + bent[t]))
            if price < removal[copy]:
                removal[copy], heir_of[copy] = price, heir


@inner
def _list_changes(at: Levelled, held: B, gpu: int, known: Looks) -> None:
    """Put the changes that take load off a GPU among the best of all, in `changes`.

    A swap costs no less than `own` and `here`, which is filled, say, for the norm is convex: most
    need no price.
    """
    seen, own, here = known.seen, known.own, known.here
    begin = gpu // at.node_gpus * at.node_gpus
    none = np.int64(-1)
    for copy in range(here.shape[0]):
        here[copy] = _steepness(at, copy, gpu)
    for place in range(at.first[gpu + 1] - at.first[gpu]):
        copy = at.on[gpu, place]
        expert = at.expert[copy]
        again = seen[expert] == 1
        seen[expert] = 1
        for host in range(begin, begin + at.node_gpus):
            if at.holds[host, expert] > 0:
                continue
            relief = 0.0 if again else _price_of_room(at, copy, host)
            there = _steepness(at, copy, host) - own[copy]
            for i in range(at.first[host + 1] - at.first[host]):
                other = at.on[host, i]
                partner = at.expert[other]
                back = 0
                if at.holds[host, partner] == 1 and not held[host, partner]:
                    back = 1
                cost = int(not held[host, expert]) - back
                more = at.number[expert] < at.rules[expert, 1]
                if not again and more and known.heir_of[other] >= 0:
                    price = (known.removal[other] + relief) / max(np.float64(cost), _FREE)
                    _list(known, price, copy, other, known.heir_of[other], cost)
                if at.holds[gpu, partner] > 0:
                    continue
                cost += int(not held[gpu, partner])
                if at.holds[gpu, expert] == 1 and not held[gpu, expert]:
                    cost -= 1
                each = max(np.float64(cost), _FREE)
                if there + here[other] - own[other] >= known.price[-1] * each:
                    continue
                price = 0.0
                for block in range(at.load.shape[0]):
                    price += _price_of_swap(at, block, copy, other)
                _list(known, price / each, copy, other, none, cost)


@inner
def _steepness(at: Levelled, copy: int, gpu: int) -> float:
    """How steep the norm would be in what a copy takes, were it on this GPU."""
    total = 0.0
    for block in range(at.load.shape[0]):
        flow, slope = at.flow[block, copy], at.slope[block, gpu]
        for t in range(_BLOCK):
            total += flow[t] * slope[t]
    return total


@inner
def _price_of_room(at: Levelled, copy: int, host: int) -> float:
    """What the norm changes by if a GPU may take load of a copy's expert: from GPUs of the copy's
    level as much as they have, until both are as steep.
    """
    expert, gpu = at.expert[copy], at.gpu[copy]
    price, most = 0.0, at.norm
    for block in range(at.load.shape[0]):
        level = at.level[block, gpu]
        steep, steep_there = at.slope[block, gpu], at.slope[block, host]
        bent, bent_there = at.curve[block, gpu], at.curve[block, host]
        for t in range(_BLOCK):
            most[t] = 0.0
        for i in range(at.number[expert]):
            each = at.copies[expert, i]
            flow, level_there = at.flow[block, each], at.level[block, at.gpu[each]]
            for t in range(_BLOCK):
                most[t] += flow[t] if level_there[t] >= level[t] * (1.0 - _JOINED) else 0.0
        for t in range(_BLOCK):
            apart, sum_bent = steep[t] - steep_there[t], bent[t] + bent_there[t]
            shift = 0.5 * apart / (sum_bent + 1e-300)
            shift = shift if shift < most[t] else most[t]
            shift = shift if shift > 0.0 else 0.0
            price += shift * (shift * sum_bent - apart)
    return price


@inner
def _list(known: Looks, price: float, copy: int, other: int, heir: int, cost: int) -> None:
    """Keep a change if its price for each move is among the lowest; they stand in their order."""
    prices, changes = known.price, known.changes
    last = prices.shape[0] - 1
    if not price < prices[last]:
        return
    while last > 0 and price < prices[last - 1]:
        prices[last] = prices[last - 1]
        _copy(changes[last - 1], changes[last])
        last -= 1
    prices[last] = price
    changes[last, 0], changes[last, 1], changes[last, 2] = copy, other, heir
    changes[last, 3] = cost


@inner
def _try_changes(at: Levelled, known: Looks) -> int:
    """Make and level each of the changes that promise anything, and take it back; the one that
    lowers the norm most for each move, -1 if none does.
    """
    best, found = 0.0, -1
    for i in range(known.price.shape[0]):
        if not known.price[i] < 0.0:
            break
        copy, other, heir, cost = known.changes[i]
        partner = at.expert[other]
        _make(at, copy, other, heir, at.expert[copy])
        gain = _gain_of(at, at.load.shape[0], copy, other, heir, int(_SWEEPS), -np.inf)
        _make(at, copy, other, heir, partner)
        if gain > _LEAST_GAIN and gain / max(np.float64(cost), _FREE) > best:
            best, found = gain / max(np.float64(cost), _FREE), i
    return found
