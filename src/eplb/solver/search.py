"""The search: from any placement of a layer, change by change, to a better one.

A state is what the slots of one layer hold. Three changes lead from state to state: *swap* two
replicas of different GPUs, *give* an expert of a GPU one more replica in a slot elsewhere, or
*take* one of its replicas away in favour of another expert. What falls is the *excess*, the
expected square of what GPUs have above a target:

    excess = sum over t and g of  weight[t] * max(0, load[t, g] - target[t] * pace[g])^2

over windows t and GPUs g, each of which is to have load as it is fast. Each step looks at the GPU
with the most excess and makes the change that takes off most for each *move*, an expert's weights
received by a GPU that did not hold them at the start. Two drivers make the steps. *descend* makes
those that lower the excess, a few moves in all, and every state on the way may be chosen: how far
to go is left to who knows the price of a move. *tabu* starts a plan afresh, where moves cost
nothing: it makes the best change even where that is for the worse, bars what has left a GPU from it
for some steps, and leaves the caller the best state of all.

What a change gains is put together from sums that are kept for each slot and expert. With e(x) =
max(0, x)^2, and o the load of a GPU above the target:

    swap a on g for b on h    e(o_g) + e(o_h) - e(o_g - a + b) - e(o_h - b + a)
    one more replica of x     relief[x] = sum over its GPUs of e(o) - e(o - less), where
                              less = load / n - load / (n + 1)
    one fewer of x            burden[x] = sum over its GPUs of e(o + more) - e(o), where
                              more = load / (n - 1) - load / n
    give: a slot of y to x    relief[x] - burden[y], with the slot's own GPU put right
    take: the same, where the slot is on the GPU that is looked at

Source of the second driver: Glover, "Tabu search, part I", 1989.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.arrays import F64, I64, B, Task, Wishes
from eplb.solver.bounds import _least_peak
from eplb.solver.jit import inner, kernel
from eplb.solver.packing import FORBIDDEN, _copy, _excess, _keep_apart, _write_rules
from eplb.solver.state import State, _new_state
from eplb.solver.window_swaps import _swap_under_norms

__all__ = ["Drive", "Steps"]

_FREE = 0.1
"""The moves that a step counts for which costs none, or takes some back."""

_ROUNDING = 1e-9
"""What is nearer than this is the same."""

_AIM = 0.6
"""The target of tabu, as a share of the way from the bound to the lowest peak so far."""
_AIM_AGAIN = 0.9
"""It is renewed when the rest of that way has shrunk to this share."""
_LONGEST_BAR = 24
"""Most steps for which an expert may not return to a GPU that it left."""
_PATIENCE = 0.25
_LEAST_PATIENCE = 10
"""Tabu ends where it has found no lower peak for this share of its steps, and so many."""
_PERSISTENCE = 800_000
"""Descend ends where the peak and the price of the moves together have not fallen for a share of
its steps, and for the same share of so many looks, or `_LEAST_PATIENCE` steps; small layers are
walked to the end."""
_PROMISING = 0.5
"""Tabu swaps with GPUs that promise at least this share of what the most promising one does."""


_NEVER = 1 << 30
"""A bar that no step and no change takes away."""


class Drive(NamedTuple):
    """How to search."""

    tabu: bool
    """The driver: tabu, or descend."""
    smooth: bool
    """Whether to begin with swaps under norms."""
    near: float
    """For descend: loads up to this above the least peak, as a share, are no excess."""
    patience: float
    """For descend: the share of its steps for which it goes on without a gain; 0 for to the end."""


class Steps(NamedTuple):
    """The steps of L layers, of K at most in each.

    A swap changes two slots; a hand-over, which is a give or a take, has its one slot twice.
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


@inner
def _wish(state: State, wishes: Wishes, layer: int) -> None:
    """Take up the wishes of a layer, before a placement that keeps them."""
    row = layer % wishes.least.shape[0]
    _write_rules(state.rules, wishes, row)
    some = wishes.barred.shape[1] > 0
    if some or wishes.apart.shape[2] > 0:
        for gpu in range(state.barred.shape[0]):
            for expert in range(state.copies.shape[0]):
                never = some and wishes.barred[row, gpu, expert]
                state.barred[gpu, expert] = _NEVER if never else 0


@inner
def _makes_room(state: State, gpu: int, expert: int, leaving: int) -> bool:
    """Whether nothing but an expert that leaves a GPU keeps another from it."""
    bar = state.barred[gpu, expert]
    for i in range(2, state.rules.shape[1]):
        if state.rules[leaving, i] == expert:
            bar -= FORBIDDEN
    return bool(bar < state.clock[0])


@inner
def _begin(state: State, start: I64) -> None:
    """Take up a placement."""
    num_gpus = state.above.shape[0]
    state.copies[:] = 0
    for slot in range(start.shape[0]):
        expert, gpu = start[slot], state.gpu_of[slot]
        state.slots[slot] = expert
        state.copies[expert] += 1
        state.holds[gpu, expert] += 1
        _keep_apart(state.barred, state.rules, gpu, expert, np.int64(FORBIDDEN))
        state.home[expert] = gpu // state.node_gpus
    for expert in range(state.copies.shape[0]):
        _recount_one(state, expert)
    for gpu in range(num_gpus):
        _renew(state, gpu)


@inner
def _compare(state: State, held: B) -> None:
    """Note what GPUs held before, what of that they hold, and what they do not."""
    for slot in range(state.slots.shape[0]):
        state.own[slot] = held[state.gpu_of[slot], state.slots[slot]]
    state.absent[:] = 0
    for gpu in range(held.shape[0]):
        for expert in range(held.shape[1]):
            state.held[gpu, expert] = held[gpu, expert]
            state.absent[expert] += int(held[gpu, expert] and state.holds[gpu, expert] == 0)


@inner
def _leave(state: State) -> None:
    """Leave a placement, for another layer."""
    for slot in range(state.slots.shape[0]):
        state.holds[state.gpu_of[slot], state.slots[slot]] = 0


@inner
def _recount_one(state: State, expert: int) -> None:
    """Renew what is known of an expert after a change of its replicas."""
    count = state.copies[expert]
    for window in range(state.loads.shape[0]):
        load = state.loads[window, expert]
        state.fewer[window, expert] = load / max(count - 1, 1)
        state.more[window, expert] = load / (count + 1)


@inner
def _renew(state: State, gpu: int) -> None:
    """Renew what is known of a GPU after a change on it."""
    slots = range(state.first[gpu], state.first[gpu + 1])
    above = 0.0
    state.settled[gpu] = False
    for slot in slots:
        state.relief[slot] = 0.0
        state.burden[slot] = 0.0
    for window in range(state.load.shape[0]):
        load = 0.0
        for slot in slots:
            expert = state.slots[slot]
            state.part[window, slot] = state.loads[window, expert] / state.copies[expert]
            load += state.part[window, slot]
        state.load[window, gpu] = load
        over = load - state.target[window] * state.pace[gpu]
        here = _excess(over)
        above += here
        for slot in slots:
            expert = state.slots[slot]
            without = over - state.part[window, slot]
            state.without[window, slot] = without
            if over > 0.0:
                state.relief[slot] += here - _excess(without + state.more[window, expert])
            state.burden[slot] += _excess(without + state.fewer[window, expert]) - here
    state.above[gpu] = above


@inner
def _expected(state: State) -> float:
    """The expected peak, of loads over paces."""
    expected = 0.0
    for window in range(state.load.shape[0]):
        peak = 0.0
        for gpu in range(state.load.shape[1]):
            peak = max(peak, state.load[window, gpu] / state.pace[gpu])
        expected += state.root[window] * peak
    return expected


@inner
def _sum_up(state: State) -> None:
    """Renew what adds up over the slots of an expert."""
    for expert in range(state.copies.shape[0]):
        state.all_relief[expert] = 0.0
        state.all_burden[expert] = 0.0
    for slot in range(state.slots.shape[0]):
        state.all_relief[state.slots[slot]] += state.relief[slot]
        state.all_burden[state.slots[slot]] += state.burden[slot]


@kernel
def _search_layers(
    layers: I64,
    task: Task,
    start: I64,
    held: B,
    drive: Drive,
    bounds: F64,
    enough: F64,
    most: I64,
    price: F64,
    steps: Steps,
) -> None:
    """Search from `start` [L, P] through `layers`, each of which has some load, and fill their rows
    of `steps`; descend goes on where they end.

    Both drivers end where the expected peak is at or under `enough` [L], or there is no memory for
    more steps; descend also after `most` [L] moves and where no step helps, tabu after `most` steps
    and when its patience is over. Where the search begins with swaps under norms, `start` becomes
    what they make of it.

    `held` [L, G, E] is what GPUs held before, or [1, G, E] for all layers alike. `start` keeps the
    wishes, and so does every state. `bounds` [L] are proven, and become what the windows prove.
    Peaks, bounds and `enough` are of loads over paces.
    """
    windows, weights, gpus = task.windows, task.weights, task.gpus
    num_windows, _, num_experts = windows.shape
    num_slots, num_gpus = start.shape[1], gpus.pace.shape[0]
    slots_per_gpu = num_slots // num_gpus
    alike = True
    for gpu in range(num_gpus):
        of_gpu = gpus.first[gpu + 1] - gpus.first[gpu]
        alike = alike and of_gpu == slots_per_gpu and gpus.pace[gpu] == 1.0
    state = _new_state(task)
    count, heap = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    share, slots = np.empty(num_experts), np.empty(num_slots, np.int64)
    for layer in layers:
        unit = 0.0
        for window in range(num_windows):
            total = 0.0
            for expert in range(num_experts):
                total += windows[window, layer, expert]
            unit += weights[window, layer] * total
        unit /= num_gpus
        bound = 0.0
        for window in range(num_windows):
            root = np.sqrt(weights[window, layer])
            state.root[window] = root
            for expert in range(num_experts):
                state.loads[window, expert] = windows[window, layer, expert] * (root / unit)
            least = root if root > 0.0 else 0.0
            if root > 0.0 and alike:
                least = _least_peak(
                    state.loads[window], num_gpus, slots_per_gpu, count, share, heap
                )
            state.target[window] = least * (1.0 + drive.near)
            bound += root * least
        # What no plan for the mean goes below, none for the windows does: a maximum is convex.
        bounds[layer] = max(bounds[layer], bound * unit)
        _copy(start[layer], slots)
        done = steps.length[layer]
        _follow(steps, layer, done, slots)
        _wish(state, task.wishes, layer)
        _begin(state, slots)
        _compare(state, held[layer % held.shape[0]])
        goal = enough[layer] / unit * (1.0 + _ROUNDING)
        if not drive.tabu:
            each = price[layer] / unit
            _descend(state, drive.patience, goal, most[layer], each, layer, steps)
        else:
            if drive.smooth:
                _swap_under_norms(state, gpus)
                for gpu in range(num_gpus):
                    _renew(state, gpu)
                _copy(state.slots, start[layer])
            _tabu(state, bounds[layer] / unit, goal, most[layer], layer, steps)
        for step in range(done, steps.length[layer] + 1):
            steps.peaks[layer, step] *= unit
        _leave(state)


@inner
def _descend(
    state: State,
    patience: float,
    enough: float,
    most_moves: int,
    price: float,
    layer: int,
    steps: Steps,
) -> None:
    """Go on from where the steps of a layer end, each step lowering the excess; before the first,
    make second copies on a GPU into something else.
    """
    num_gpus = state.above.shape[0]
    most = steps.slots.shape[1]
    length = steps.length[layer]
    steps.peaks[layer, length] = _expected(state)
    slots_per_gpu = state.slots.shape[0] // num_gpus
    for slot in range(state.slots.shape[0]):
        gpu, expert = state.gpu_of[slot], state.slots[slot]
        spare = state.copies[expert] > state.rules[expert, 0]
        if length < most and state.holds[gpu, expert] > 1 and spare:
            _sum_up(state)
            change = _best_of_taking(state, slot, _none(-np.inf))
            if change.slot >= 0:
                length = _make(state, change, layer, length, steps)
                steps.tidy[layer] = length
    looks = state.part.size * (2 * slots_per_gpu + 1) + slots_per_gpu * state.loads.size
    long = max(_LEAST_PATIENCE, int(patience * _PERSISTENCE / looks))
    cheapest, lowest = length, np.inf
    for step in range(steps.tidy[layer], length + 1):
        cost = steps.peaks[layer, step] + price * steps.moves[layer, step]
        if cost < lowest:
            cheapest, lowest = step, cost
    while length < most and steps.peaks[layer, length] > enough:
        if steps.moves[layer, length] >= most_moves:
            break
        if patience > 0.0 and length - cheapest >= long + patience * cheapest:
            break
        excess = 0.0
        for gpu in range(num_gpus):
            excess += state.above[gpu]
        change = _best_change(state, _ROUNDING * excess, 0.0)
        if change.slot < 0:
            break
        length = _make(state, change, layer, length, steps)
        cost = steps.peaks[layer, length] + price * steps.moves[layer, length]
        if cost < lowest:
            cheapest, lowest = length, cost
    steps.length[layer] = length


@inner
def _tabu(state: State, bound: float, enough: float, most: int, layer: int, steps: Steps) -> None:
    """Make the best change, step by step, for better or worse."""
    num_gpus = state.above.shape[0]
    bar = min(_LONGEST_BAR - 4, 3 + num_gpus // 3)
    lowest = _expected(state)
    steps.peaks[layer, 0] = lowest
    length, last = np.int64(0), np.int64(0)
    aimed_at = np.inf
    state.clock[0] += _LONGEST_BAR  # no bar of the layer before holds
    patience = max(_LEAST_PATIENCE, int(_PATIENCE * most))
    for tried in range(most):
        if lowest <= enough or tried - last >= patience:
            break
        state.clock[0] += 1
        if lowest - bound < _AIM_AGAIN * aimed_at:
            aimed_at = lowest - bound
            for window in range(state.target.shape[0]):
                state.target[window] = state.root[window] * (bound + _AIM * aimed_at)
            for gpu in range(num_gpus):
                _renew(state, gpu)
        change = _best_change(state, -np.inf, _PROMISING)
        if change.slot < 0:
            continue
        # Bars of changing length keep the search from going round in circles.
        until = state.clock[0] + bar + 7 * tried % 5
        state.barred[state.gpu_of[change.slot], state.slots[change.slot]] = until
        if change.other != change.slot:
            state.barred[state.gpu_of[change.other], state.slots[change.other]] = until
        length = _make(state, change, layer, length, steps)
        if steps.peaks[layer, length] < lowest * (1.0 - 1e-12):
            lowest = steps.peaks[layer, length]
            last = tried
    steps.length[layer] = length


@inner
def _none(worth: float) -> Change:
    """No change, which another has to be worth more than."""
    return Change(worth, np.int64(-1), np.int64(0), np.int64(0), np.int64(0))


@inner
def _best_change(state: State, floor: float, share: float) -> Change:
    """The change that takes most off the excess for each move, of the GPU with the most excess for
    which there is one; slot is -1 where there is none.
    """
    num_gpus = state.above.shape[0]
    _sum_up(state)
    last = np.inf
    before = np.int64(-1)
    for _ in range(num_gpus):
        # The GPUs by falling excess, ties by index.
        gpu = np.int64(-1)
        for i in range(num_gpus):
            later = state.above[i] < last or (state.above[i] == last and i > before)
            if later and not state.settled[i] and (gpu < 0 or state.above[i] > state.above[gpu]):
                gpu = i
        if gpu < 0 or state.above[gpu] <= 0.0:
            break
        last, before = state.above[gpu], gpu
        best = _best_of_giving(state, gpu, _none(floor))
        for slot in range(state.first[gpu], state.first[gpu + 1]):
            if state.copies[state.slots[slot]] > state.rules[state.slots[slot], 0]:
                best = _best_of_taking(state, slot, best)
        best = _best_of_swapping(state, gpu, share, best)
        if best.slot >= 0 or share > 0.0:
            return best
        state.settled[gpu] = True
    return _none(floor)


@inner
def _best_of_giving(state: State, gpu: int, best: Change) -> Change:
    """The best of that and one more replica of an expert of a GPU in another GPU's slot."""
    gain, kept, rest, clock = state.gain, state.fixed, state.their_rest, state.clock[0]
    held, node_gpus = state.held, state.node_gpus
    # For each giver the least moves, and whether this GPU holds it too.
    fewest, both_here = state.rate[0], state.rate[1]
    begin = gpu // node_gpus * node_gpus
    givers = np.int64(0)
    for slot in range(state.first[begin], state.first[begin + node_gpus]):
        expert, host = state.slots[slot], state.gpu_of[slot]
        if state.copies[expert] > state.rules[expert, 0] and host != gpu:
            state.listed[givers] = slot
            kept[givers] = state.burden[slot] - state.all_burden[expert] + state.above[host]
            for window in range(state.part.shape[0]):
                rest[window, givers] = state.without[window, slot]
            fewest[givers] = 1.0 if state.own[slot] else _FREE
            both_here[givers] = 1.0 if state.holds[gpu, expert] > 0 else 0.0
            givers += 1
    worth, given, found = best.worth, np.int64(-1), np.int64(-1)
    for slot in range(state.first[gpu], state.first[gpu + 1]):
        expert = state.slots[slot]
        relief = state.all_relief[expert]
        if relief <= 0.0 or state.copies[expert] >= state.rules[expert, 1]:
            continue
        for i in range(givers):
            gain[i] = relief + kept[i]
        for window in range(state.part.shape[0]):
            new, left = state.more[window, expert], rest[window]
            for i in range(givers):
                gain[i] -= _excess(left[i] + new)
        # Only what returns, or takes the place of what came, costs less than a move.
        least = _FREE if state.absent[expert] > 0 else 1.0
        hits = 0
        for i in range(givers):
            hits += int(gain[i] > worth * min(least, fewest[i])) + int(both_here[i] > 0.0)
        if hits == 0:
            continue
        for i in range(givers):
            if not gain[i] > worth * min(least, fewest[i]) and both_here[i] == 0.0:
                continue
            target = state.listed[i]
            giver = state.slots[target]
            if both_here[i] > 0.0:
                # Sums of relief and burden leave out that both are on this GPU: never below 0, the
                # excess being convex.
                for window in range(state.part.shape[0]):
                    over = state.load[window, gpu] - state.target[window] * state.pace[gpu]
                    less = state.part[window, slot] - state.more[window, expert]
                    more = state.fewer[window, giver]
                    more -= state.loads[window, giver] / state.copies[giver]
                    both = _excess(over - less) + _excess(over + more) - _excess(over)
                    gain[i] += both - _excess(over - less + more)
                if not gain[i] > worth * min(least, fewest[i]):
                    continue
            other = state.gpu_of[target]
            if state.holds[other, expert] > 0:
                continue
            barred = state.barred[other, expert] >= clock
            if barred and not _makes_room(state, other, expert, giver):
                continue
            moves = int(not held[other, expert]) - int(not held[other, giver])
            each = gain[i] / (moves if moves > 0 else _FREE)
            if each > worth:
                worth, given, found = each, expert, target
    if found < 0:
        return best
    return Change(worth, found, given, found, given)


@inner
def _best_of_taking(state: State, slot: int, best: Change) -> Change:
    """The best of that and another expert in a slot whose expert has replicas to spare."""
    expert = state.slots[slot]
    gain, count, held, clock = state.gain, state.copies, state.held, state.clock[0]
    num_experts = count.shape[0]
    gpu = state.gpu_of[slot]
    left = state.burden[slot] - state.all_burden[expert] + state.above[gpu]
    for other in range(num_experts):
        gain[other] = left + state.all_relief[other]
    for window in range(state.part.shape[0]):
        over, more = state.without[window, slot], state.more[window]
        for other in range(num_experts):
            gain[other] -= _excess(over + more[other])
    back = int(not held[gpu, expert]) if state.holds[gpu, expert] == 1 else 0
    node = gpu // state.node_gpus
    worth, found = best.worth, np.int64(-1)
    for other in range(num_experts):
        if gain[other] <= _FREE * worth or state.holds[gpu, other] > 0:
            continue
        if state.home[other] != node or count[other] >= state.rules[other, 1]:
            continue
        if state.barred[gpu, other] >= clock and not _makes_room(state, gpu, other, expert):
            continue
        moves = int(not held[gpu, other]) - back
        each = gain[other] / (moves if moves > 0 and gain[other] > 0.0 else _FREE)
        if each > worth:
            worth, found = each, other
    if found < 0:
        return best
    return Change(worth, slot, found, slot, found)


@inner
def _best_of_swapping(state: State, gpu: int, share: float, best: Change) -> Change:
    """The best of that and a swap of a slot of a GPU with another's."""
    fixed, part, rest, clock = state.fixed, state.their_part, state.their_rest, state.clock[0]
    num, held = _list_partners(state, gpu, share, best.worth), state.held
    gain = state.gain[:num]
    worth, first, second = best.worth, np.int64(-1), np.int64(-1)
    for slot in range(state.first[gpu], state.first[gpu + 1]):
        expert = state.slots[slot]
        for i in range(gain.shape[0]):
            gain[i] = fixed[i]
        for window in range(state.part.shape[0]):
            theirs, others = part[window, :num], rest[window, :num]
            mine, over = state.part[window, slot], state.without[window, slot]
            for i in range(gain.shape[0]):
                gain[i] -= _excess(over + theirs[i]) + _excess(others[i] + mine)
        back = int(not held[gpu, expert])
        least = int(state.absent[expert] == 0)
        rate = state.rate[1 + least - back, :num]
        # At most what they are worth: hardly ever more than the best.
        hits = 0
        for i in range(gain.shape[0]):
            hits += int(gain[i] * rate[i] > worth)
        if hits == 0:
            continue
        for i in range(gain.shape[0]):
            if not gain[i] * rate[i] > worth:
                continue
            target = state.listed[i]
            host = state.gpu_of[target]
            partner = state.slots[target]
            if state.holds[host, expert] > 0 or state.holds[gpu, partner] > 0:
                continue
            if (
                state.barred[host, expert] < clock or _makes_room(state, host, expert, partner)
            ) and (state.barred[gpu, partner] < clock or _makes_room(state, gpu, partner, expert)):
                coming = int(not held[host, expert]) - back
                each = gain[i] * state.rate[1 + coming, i]
                if each > worth and (share == 0.0 or _relieves(state, gpu, slot, target)):
                    worth, first, second = each, slot, target
    if first < 0:
        return best
    return Change(worth, first, state.slots[second], second, state.slots[first])


@inner
def _list_partners(state: State, gpu: int, share: float, worth: float) -> int:
    """List the slots of GPUs on the node that swaps with one may be worth something with, and fill
    `rate`; return how many.

    A swap with another GPU takes off at most what evening out the two would: the excess is convex.
    """
    node_gpus = state.node_gpus
    begin = gpu // node_gpus * node_gpus
    most = state.most[:node_gpus]
    for i in range(node_gpus):
        most[i] = state.above[gpu] + state.above[begin + i]
    for window in range(state.part.shape[0]):
        half, target = 0.5 * state.load[window, gpu], state.target[window]
        load = state.load[window, begin : begin + node_gpus]
        for i in range(node_gpus):
            pace = 0.5 * (state.pace[gpu] + state.pace[begin + i])
            even = _excess(half - target * pace + 0.5 * load[i])
            most[i] -= even + even
    highest = 0.0
    for i in range(node_gpus):
        highest = max(highest, most[i])
    num = np.int64(0)
    for i in range(node_gpus):
        host = begin + i
        if host == gpu or most[i] < share * highest or most[i] < _FREE * worth:
            continue
        first = state.first[host]
        slots_per_gpu = state.first[host + 1] - first
        fixed = state.fixed[num : num + slots_per_gpu]
        listed = state.listed[num : num + slots_per_gpu]
        both = state.above[gpu] + state.above[host]
        for k in range(slots_per_gpu):
            listed[k] = first + k
            fixed[k] = both
        for window in range(state.part.shape[0]):
            their_part = state.their_part[window, num : num + slots_per_gpu]
            their_rest = state.their_rest[window, num : num + slots_per_gpu]
            part = state.part[window, first : first + slots_per_gpu]
            rest = state.without[window, first : first + slots_per_gpu]
            for k in range(slots_per_gpu):
                their_part[k] = part[k]
                their_rest[k] = rest[k]
        num += slots_per_gpu
    if share > 0.0:
        for kind in range(3):
            rate = state.rate[kind, :num]
            for k in range(num):
                rate[k] = 1.0 / _FREE
    else:
        for k in range(num):
            target = state.listed[k]
            moves = int(not state.held[gpu, state.slots[target]]) - int(not state.own[target])
            state.rate[0, k] = 1.0 / _FREE
            state.rate[1, k] = 1.0 if moves == 1 else 1.0 / _FREE
            state.rate[2, k] = 1.0 / _FREE if moves < 0 else 1.0 / (1 + moves)
    return num  # type: ignore[no-any-return]


@inner
def _relieves(state: State, gpu: int, slot: int, other: int) -> bool:
    """Whether a GPU itself has less excess with what is in another's slot; among changes for the
    worse, swaps of what is alike would win and lead nowhere.
    """
    here = 0.0
    for window in range(state.part.shape[0]):
        here += _excess(state.without[window, slot] + state.part[window, other])
    return bool(here < state.above[gpu])


@inner
def _make(state: State, change: Change, layer: int, length: int, steps: Steps) -> int:
    """Make a change, keep it as a step, and return the steps that there are now."""
    moves, held = steps.moves[layer, length], state.held
    swap = change.slot != change.other
    steps.slots[layer, length, 0] = change.slot
    steps.slots[layer, length, 1] = change.other
    steps.experts[layer, length, 0] = change.expert
    steps.experts[layer, length, 1] = change.partner
    for i in range(1 + int(swap)):
        slot = steps.slots[layer, length, i]
        new = steps.experts[layer, length, i]
        gpu, old = state.gpu_of[slot], state.slots[slot]
        state.slots[slot] = new
        state.holds[gpu, old] -= 1
        state.holds[gpu, new] += 1
        _keep_apart(state.barred, state.rules, gpu, old, np.int64(-FORBIDDEN))
        _keep_apart(state.barred, state.rules, gpu, new, np.int64(FORBIDDEN))
        state.own[slot] = held[gpu, new]
        if state.holds[gpu, new] == 1:
            moves += int(not held[gpu, new])
            state.absent[new] -= int(held[gpu, new])
        if state.holds[gpu, old] == 0:
            moves -= int(not held[gpu, old])
            state.absent[old] += int(held[gpu, old])
        if not swap:
            state.copies[old] -= 1
            state.copies[new] += 1
            _recount_one(state, old)
            _recount_one(state, new)
            last = np.int64(-1)
            for place in range(state.slots.shape[0]):
                if state.slots[place] == old or state.slots[place] == new:
                    host = state.gpu_of[place]
                    if host != last:
                        _renew(state, host)
                    last = host
        _renew(state, gpu)
    length += 1
    steps.moves[layer, length] = moves
    steps.peaks[layer, length] = _expected(state)
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
