"""The search under a split that is best in every window: placements of which GPUs are as evenly
loaded as can be when the tokens of an expert may go to its copies in any parts.

A state is what the slots of one layer hold, and for each window the loads of GPUs that levelling
leaves. Two changes lead from state to state: two copies *swap* their GPUs, or a copy is *given* to
another expert. What falls is the norm of the loads of GPUs, a smooth peak:

    sum over windows t of  weight[t] * (mean over GPUs g of pace[g] * level[t, g]^p)^(1/p)

The level of a GPU is its load over its pace, which is 1 on average; so a token more raises the norm
as much on any GPU of a level.

Few windows are soon perfect, and then nothing says which placement bends well. So what is planned
for is wider than what was seen: each window, and copies of it in which every expert's load is
multiplied by exp(width * normal), each window then scaled to one total. Copies of one window alone
are drawn anew now and then, each expert has some load more in them, and the window counts ever more
beside them.

A change is proposed from a GPU that is busiest in some window to another. Which of the slots there
are changed is read off the slopes of the norm. The change is then made, and levelled by sweeps over
all pairs of copies of an expert: each moves load between the two until their GPUs are level, or one
of them has none left. Sweeps go through many windows at once, which processors do several at a
time. Windows stand in blocks; a change that is for the worse after the first blocks is dropped.

Random numbers are made from whole numbers, and powers and roots by squaring and by square roots,
so a search is the same on every host.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.arrays import F64, I32, I64, B, Task
from eplb.solver.bounds import _least_peak
from eplb.solver.draw import _below, _draw
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import FORBIDDEN, _copy, _keep_apart, _write_rules
from eplb.solver.share import _exponential

__all__: list[str] = []

# `int(...)` around these, in calls, keeps a kernel from being compiled once for each literal.
_BLOCK = 16
"""Windows in a block."""
_ALONE = 0
"""So many copies of windows count where the windows count alone."""
_SIDES = 2
"""Of a coin."""
_DOUBLINGS = 4
"""The norm has the power 2 ** doublings, or where it is steep twice that: in searches of what is
nearly level. With so high a power, changes of what is far from level are priced too high."""
_STEEP = True
_FIRST_SWEEPS = 12
"""Sweeps that level a placement from an even split."""
_SWEEPS = 2
"""Sweeps that level a change."""
_JOINED = 4.0
"""GPUs that share what is moved to or from one, as prices of changes assume."""
_LEVEL = 1e-7
"""The norm of what is as level as can be is 1, and no more than this above it."""
_BOLD = 4
"""One in so many changes is drawn, and not the one of the lowest price."""
_HEAT = 0.3
"""What a change may be for the worse at first, as a share of what the norm is above its least, in
searches for the windows alone."""
_SMALL = 64
"""Layers of fewer slots are searched longer for the windows alone, as many times as they fit."""
_ANEW = 350
"""After so many steps for one window and copies of it, those are drawn anew."""
_MORE = 0.2
"""What each expert has more in copies of one window, as a share of the mean load of experts."""
_SHARE = 0.3
"""What one window counts at last, of all that counts."""
_AS_EACH = 0.0
"""Where windows count as much as each of their copies."""
_NOT_MORE = 0.0
_UNIFORM = 8
_DEVIATION = 0.816496580927726
"""Uniform numbers whose sum is nearly normal, and the standard deviation of it: the root of their
number / 12."""
_TIGHT = 1e-3
"""What is nearer to the peak than this, as a share of it, is as busy."""


class Levelled(NamedTuple):
    """Where the search through a layer stands: P copies of E experts on G GPUs of S slots at most,
    and windows in K blocks of W. Loads are in units of the mean GPU's.
    """

    steep: bool
    """Whether the norm has the higher power."""
    load: F64
    """[K, E, W] load of an expert."""
    flow: F64
    """[K, P, W] what a copy takes of it."""
    level: F64
    """[K, G, W] load of a GPU over its pace."""
    new_flow: F64
    """The same after a change, as far as it differs."""
    new_level: F64
    weight: F64
    """[K, W] what a window counts."""
    part: F64
    """[K] norms of a block, as they are."""
    norm: F64
    """[W] scratch."""
    slope: F64
    """[K, G, W] slope of the norm by the load of a GPU, and half its curvature in the next."""
    curve: F64
    first: I64
    """[G + 1] first slot of a GPU, and the end."""
    pace: F64
    """[G] how fast a GPU is, 1 on average, and 1 over that in the next."""
    rate: F64
    expert: I64
    """[P] expert of a copy."""
    gpu: I64
    """[P] where it is."""
    on: I64
    """[G, S] the copies on a GPU, as many as it has slots."""
    number: I64
    """[E] copies of an expert, and which they are in the next, [E, P]."""
    copies: I64
    holds: I32
    """[G, E] copies of an expert on a GPU, and `FORBIDDEN` for each reason why it may not come."""
    rules: I64
    """[E, 2 + D] as `_write_rules` has them."""
    node_gpus: int
    """GPUs of a node."""
    links: I64
    """[3 P, 2] pairs of copies between which load is levelled, and how many in the next, [1]."""
    num_links: I64
    best: I64
    """[P] the best placement so far."""
    random: I64
    """[1] state of the random numbers."""


@allocating
def _new_levelled(task: Task, num_blocks: int, steep: bool) -> Levelled:
    gpus, num_gpus, num_experts = task.gpus, task.gpus.pace.shape[0], task.windows.shape[2]
    num_slots, size = gpus.first[num_gpus], 0
    for gpu in range(num_gpus):
        size = max(size, gpus.first[gpu + 1] - gpus.first[gpu])
    return Levelled(
        steep,
        np.empty((num_blocks, num_experts, _BLOCK)),
        np.empty((num_blocks, num_slots, _BLOCK)),
        np.empty((num_blocks, num_gpus, _BLOCK)),
        np.empty((num_blocks, num_slots, _BLOCK)),
        np.empty((num_blocks, num_gpus, _BLOCK)),
        np.empty((num_blocks, _BLOCK)),
        np.empty(num_blocks),
        np.empty(_BLOCK),
        np.empty((num_blocks, num_gpus, _BLOCK)),
        np.empty((num_blocks, num_gpus, _BLOCK)),
        gpus.first,
        gpus.pace,
        1.0 / gpus.pace,
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty((num_gpus, size), np.int64),
        np.empty(num_experts, np.int64),
        np.empty((num_experts, num_slots), np.int64),
        np.empty((num_gpus, num_experts), np.int32),
        np.empty((num_experts, 2 + task.wishes.apart.shape[2]), np.int64),
        num_gpus // task.num_nodes,
        np.empty((3 * num_slots, 2), np.int64),
        np.zeros(1, np.int64),
        np.empty(num_slots, np.int64),
        np.zeros(1, np.int64),
    )


@kernel
def _place_layers(
    layers: I64,
    task: Task,
    width: float,
    num_wide: int,
    steps: int,
    heat: float,
    enough: F64,
    narrow: I64,
    wide: I64,
) -> None:
    """Search from `narrow` [L, P] through `layers`, each of which has some load. Leave there what
    is found for the windows, and in `wide` [L, P] what is found for them and `num_wide` copies of
    each, which are of this `width`.

    The wishes that `narrow` keeps stay kept. Each search makes so many `steps`, changes that are
    tried; the wide one begins with some `heat`, and ends with as many steps for the windows alone,
    until their expected peak is at or under `enough` [L], in mean loads of a GPU.
    """
    windows, weights, num_windows = task.windows, task.weights, task.windows.shape[0]
    num_blocks = (num_windows * (1 + num_wide) + _BLOCK - 1) // _BLOCK
    few = (num_windows + _BLOCK - 1) // _BLOCK
    longer = max(1, _SMALL // narrow.shape[1]) * steps
    at = _new_levelled(task, num_blocks, bool(_STEEP))
    rounds, more, share = 1, _NOT_MORE, _AS_EACH
    if num_windows == 1:
        rounds, more, share = max(1, steps // _ANEW), _MORE, _SHARE
    for layer in layers:
        row = layer % task.wishes.least.shape[0]
        _write_rules(at.rules, task.wishes, row)
        barred = task.wishes.barred[row]
        loads, weight = windows[:, layer], weights[:, layer]
        at.random[0] = 0
        _widen(at, loads, width, more, num_wide)
        _weigh(at, weight, int(_ALONE), _AS_EACH)
        _begin(at, barred, narrow[layer])
        _search(at, few, longer, _HEAT, num_windows, 0.0)
        _copy(at.best, narrow[layer])
        _copy(at.best, wide[layer])
        for number in range(1, rounds + 1):
            if number > 1:
                _widen(at, loads, width, more, num_wide)
            _weigh(at, weight, num_wide, share * number / rounds)
            _begin(at, barred, wide[layer])
            _search(at, num_blocks, steps // rounds, heat, num_windows, 0.0)
            _copy(at.best, wide[layer])
        _weigh(at, weight, int(_ALONE), _AS_EACH)
        _begin(at, barred, wide[layer])
        _search(at, few, longer, 0.0, num_windows, enough[layer])
        _copy(at.best, wide[layer])


@kernel
def _bound_levelled(layers: I64, task: Task, bounds: F64) -> None:
    """Raise the proven `bounds` [L] of the expected peak, of loads over paces, in `layers`: a
    window's is no lower than the mean, or than what the fastest GPU takes for the largest part of
    an expert where each copy takes as much.
    """
    windows, weights, gpus = task.windows, task.weights, task.gpus
    num_windows, _, num_experts = windows.shape
    num_gpus, fastest = gpus.pace.shape[0], gpus.pace.max()
    slots_per_gpu = (gpus.first[num_gpus] + num_gpus - 1) // num_gpus
    count, heap = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    share = np.empty(num_experts)
    for layer in layers:
        bound = 0.0
        for window in range(num_windows):
            if weights[window, layer] > 0.0:
                load = windows[window, layer]
                least = _least_peak(load, num_gpus, slots_per_gpu, count, share, heap)
                if fastest > 1.0:
                    total = 0.0
                    for expert in range(num_experts):
                        total += load[expert]
                    least = max(total / num_gpus, least / fastest)
                bound += weights[window, layer] * least
        bounds[layer] = max(bounds[layer], bound)


@inner
def _normal(random: I64) -> float:
    """Nearly a normal number: the sum of 8 uniform ones."""
    total = 0
    for _ in range(_UNIFORM):
        total += _draw(random)
    return (total / 16777216.0 - 0.5 * _UNIFORM) / _DEVIATION


@inner
def _widen(at: Levelled, windows: F64, width: float, more: float, num_wide: int) -> None:
    """Fill the loads with the windows [T, E] and copies of them, of a mean GPU load of 1. In copies
    each expert has the mean load of experts times `more` more, if any.
    """
    num_windows, num_experts = windows.shape
    num_gpus = at.level.shape[1]
    for i in range(at.load.shape[0] * _BLOCK):
        block, place = i // _BLOCK, i % _BLOCK
        window = i % num_windows
        added, total = 0.0, 0.0
        if more > 0.0 and i >= num_windows:
            for expert in range(num_experts):
                added += windows[window, expert]
            added *= more / num_experts
        for expert in range(num_experts):
            load = windows[window, expert] + added
            if i >= num_windows:
                exponent = width * _normal(at.random)
                factor = _exponential(-abs(exponent))
                load = load * factor if exponent < 0.0 else load / factor
            at.load[block, expert, place] = load
            total += load
        scale = num_gpus / total if total > 0.0 else 0.0
        for expert in range(num_experts):
            at.load[block, expert, place] *= scale


@inner
def _weigh(at: Levelled, weight: F64, num_wide: int, share: float) -> None:
    """Let the windows, of this weight [T], and so many copies of them count, and no others; the
    windows this `share` of it, or as much as each copy.
    """
    num_windows = weight.shape[0]
    at.weight[:] = 0.0
    for i in range(num_windows * (1 + num_wide)):
        each = weight[i % num_windows]
        if share == _AS_EACH:
            each /= 1 + num_wide
        elif i < num_windows:
            each *= share
        else:
            each *= (1.0 - share) / num_wide
        at.weight[i // _BLOCK, i % _BLOCK] = each


@inner
def _write(at: Levelled, row: I64) -> None:
    """Fill the slots [P] with what they hold."""
    for gpu in range(at.on.shape[0]):
        begin = at.first[gpu]
        for slot in range(begin, at.first[gpu + 1]):
            row[slot] = at.expert[at.on[gpu, slot - begin]]


@inner
def _begin(at: Levelled, barred: B, row: I64) -> None:
    """Take up a placement [P], split evenly; `barred` [G, E] is what GPUs may not hold, [0, 0] for
    nothing.
    """
    at.number[:] = 0
    at.holds[:] = 0
    for gpu in range(barred.shape[0]):
        for expert in range(barred.shape[1]):
            at.holds[gpu, expert] = FORBIDDEN if barred[gpu, expert] else 0
    at.level[:] = 0.0
    for gpu in range(at.on.shape[0]):
        begin = at.first[gpu]
        for copy in range(begin, at.first[gpu + 1]):
            at.gpu[copy] = gpu
            at.on[gpu, copy - begin] = copy
            _add(at, row[copy], copy)
    for block in range(at.load.shape[0]):
        for copy in range(row.shape[0]):
            expert, gpu = row[copy], at.gpu[copy]
            for t in range(_BLOCK):
                at.flow[block, copy, t] = at.load[block, expert, t] / at.number[expert]
                at.level[block, gpu, t] += at.flow[block, copy, t] * at.rate[gpu]


@inner
def _add(at: Levelled, expert: int, copy: int) -> None:
    """Make a copy one of an expert."""
    at.copies[expert, at.number[expert]] = copy
    at.number[expert] += 1
    at.expert[copy] = expert
    _hold(at, at.gpu[copy], expert, np.int64(1))


@inner
def _hold(at: Levelled, gpu: int, expert: int, by: int) -> None:
    """Count a copy of an expert on a GPU, or no longer; what must be apart from it may not come."""
    at.holds[gpu, expert] += by
    _keep_apart(at.holds, at.rules, gpu, expert, by * FORBIDDEN)


@inner
def _drop(at: Levelled, copy: int) -> None:
    """Take a copy away from its expert."""
    expert = at.expert[copy]
    at.number[expert] -= 1
    last = at.number[expert]
    for i in range(last):
        if at.copies[expert, i] == copy:
            at.copies[expert, i] = at.copies[expert, last]
    _hold(at, at.gpu[copy], expert, np.int64(-1))


@inner
def _exchange(at: Levelled, copy: int, other: int) -> None:
    """Two copies change their GPUs; `on` is left to the caller."""
    gpu, host = at.gpu[copy], at.gpu[other]
    at.gpu[copy], at.gpu[other] = host, gpu
    _hold(at, gpu, at.expert[copy], np.int64(-1))
    _hold(at, host, at.expert[copy], np.int64(1))
    _hold(at, host, at.expert[other], np.int64(-1))
    _hold(at, gpu, at.expert[other], np.int64(1))


@inner
def _find_links(at: Levelled) -> None:
    """Find the pairs between which load is levelled."""
    links = at.links
    found = 0
    for expert in range(at.number.shape[0]):
        number = at.number[expert]
        if number < 2:
            continue
        copies = at.copies[expert]
        if number <= 5:
            for i in range(number):
                for j in range(i):
                    links[found, 0], links[found, 1] = copies[i], copies[j]
                    found += 1
            continue
        # All pairs of many would be too many.
        for i in range(number):
            for away in range(1, 4):
                links[found, 0], links[found, 1] = copies[i], copies[(i + away) % number]
                found += 1
    at.num_links[0] = found


@inner
def _sweep(at: Levelled, flow: F64, level: F64, sweeps: int) -> None:
    """Level all pairs in a block, forwards and backwards in turn."""
    num_links = at.num_links[0]
    for sweep in range(sweeps):
        for i in range(num_links):
            link = i if sweep % 2 == 0 else num_links - 1 - i
            one, two = at.links[link, 0], at.links[link, 1]
            mine, theirs = flow[one], flow[two]
            gpu, host = at.gpu[one], at.gpu[two]
            here, there = level[gpu], level[host]
            down, up = at.rate[gpu], at.rate[host]
            share = 0.5
            if down != 1.0 or up != 1.0:
                share = 1.0 / (down + up)
            for t in range(_BLOCK):
                shift = share * (here[t] - there[t])
                most, least = mine[t], -theirs[t]
                shift = shift if shift < most else most
                shift = shift if shift > least else least
                mine[t] = most - shift
                theirs[t] = shift - least
                here[t] -= shift * down
                there[t] += shift * up


@inner
def _norms(at: Levelled, level: F64, weight: F64) -> float:
    """Weighted sum of the norms of a block; leaves the sums of powers, over GPUs, in `norm`."""
    norm, steep = at.norm, at.steep
    num_gpus = level.shape[0]
    for t in range(_BLOCK):
        norm[t] = 0.0
    for gpu in range(num_gpus):
        row, pace = level[gpu], at.pace[gpu]
        for t in range(_BLOCK):
            value = row[t]
            for _ in range(_DOUBLINGS):
                value *= value
            norm[t] += pace * (value * value if steep else value)
    total = 0.0
    for t in range(_BLOCK):
        value = norm[t] / num_gpus
        for _ in range(_DOUBLINGS):
            value = np.sqrt(value)
        total += weight[t] * (np.sqrt(value) if steep else value)
    return total


@inner
def _settle(at: Levelled, num_blocks: int, sweeps: int) -> float:
    """Level what stands, renew norms and slopes, and return the weighted sum of norms."""
    steep = at.steep
    power = float(2**_DOUBLINGS) * (2.0 if steep else 1.0)
    num_gpus = at.level.shape[1]
    total = 0.0
    for block in range(num_blocks):
        level, norm = at.level[block], at.norm
        _sweep(at, at.flow[block], level, sweeps)
        at.part[block] = _norms(at, level, at.weight[block])
        total += at.part[block]
        for t in range(_BLOCK):
            value = norm[t] / num_gpus
            for _ in range(_DOUBLINGS):
                value = np.sqrt(value)
            value = np.sqrt(value) if steep else value
            norm[t] = at.weight[block, t] * value / (norm[t] + 1e-300)
        for gpu in range(num_gpus):
            slope, curve, row = at.slope[block, gpu], at.curve[block, gpu], level[gpu]
            bend = 0.5 * (power - 1.0) / _JOINED * at.rate[gpu]
            for t in range(_BLOCK):
                value = row[t]
                for _ in range(_DOUBLINGS):
                    value *= value
                value *= value if steep else 1.0
                now = row[t] + 1e-300
                slope[t] = norm[t] * value / now
                curve[t] = bend * slope[t] / now
    return total


@inner
def _price_of_swap(at: Levelled, block: int, copy: int, other: int) -> float:
    """What a swap adds to the sum of norms of a block, to the second order."""
    gpu, host = at.gpu[copy], at.gpu[other]
    total = 0.0
    mine, theirs = at.flow[block, copy], at.flow[block, other]
    steep, steep_there = at.slope[block, gpu], at.slope[block, host]
    bent, bent_there = at.curve[block, gpu], at.curve[block, host]
    for t in range(_BLOCK):
        shift = mine[t] - theirs[t]
        total += shift * (steep_there[t] - steep[t] + shift * (bent_there[t] + bent[t]))
    return total


@inner
def _price_of_gift(at: Levelled, block: int, copy: int, slot: int, heir: int) -> float:
    """The same where the copy `slot` becomes one of the expert of `copy`, and what it took goes to
    `heir`, another copy of the expert that it was of.
    """
    gpu, host, third = at.gpu[copy], at.gpu[slot], at.gpu[heir]
    total = 0.0
    mine, theirs = at.flow[block, copy], at.flow[block, slot]
    steep, bent = at.slope[block, gpu], at.curve[block, gpu]
    steep_there, bent_there = at.slope[block, host], at.curve[block, host]
    steep_heir, bent_heir = at.slope[block, third], at.curve[block, third]
    for t in range(_BLOCK):
        lost = theirs[t]
        total += lost * (steep_heir[t] - steep_there[t])
        total += lost * lost * (bent_heir[t] + bent_there[t])
        apart, sum_bent = steep[t] - steep_there[t], bent[t] + bent_there[t]
        shift = 0.5 * apart / (sum_bent + 1e-300)
        shift = shift if shift < mine[t] else mine[t]
        shift = shift if shift > 0.0 else 0.0
        total += shift * (shift * sum_bent - apart)
    return total


@inner
def _propose(at: Levelled, num_blocks: int) -> tuple[int, int, int]:
    """A copy on a GPU that is busiest in some window, one elsewhere to swap with it, and -1; or to
    give to its expert, and then the copy that takes over what that one took. -1 for none.
    """
    num_gpus, node_gpus = at.on.shape[0], at.node_gpus
    none = np.int64(-1)
    block = _below(at.random, num_blocks)
    level = at.level[block, :, _below(at.random, int(_BLOCK))]
    peak = 0.0
    for gpu in range(num_gpus):
        peak = max(peak, level[gpu])
    gpu = _below(at.random, num_gpus)
    for _ in range(num_gpus):
        if level[gpu] > peak * (1.0 - _TIGHT):
            break
        gpu = (gpu + 1) % num_gpus
    host = gpu
    for _ in range(2):
        # One that is as busy is drawn again, once.
        if level[host] > peak * (1.0 - _TIGHT):
            host = gpu // node_gpus * node_gpus + _below(at.random, node_gpus)
    copy = at.on[gpu, _below(at.random, at.first[gpu + 1] - at.first[gpu])]
    if at.holds[host, at.expert[copy]] > 0:
        return copy, none, none
    more = at.number[at.expert[copy]] < at.rules[at.expert[copy], 1]
    best, found, heir = np.inf, none, none
    size = at.first[host + 1] - at.first[host]
    if _below(at.random, int(_BOLD)) == 0:
        other = at.on[host, _below(at.random, size)]
        expert = at.expert[other]
        number = at.number[expert]
        if more and number > at.rules[expert, 0] and _below(at.random, int(_SIDES)) == 0:
            third = at.copies[expert, _below(at.random, number)]
            if third != other:
                return copy, other, third
        elif at.holds[gpu, expert] == 0:
            return copy, other, none
    for i in range(size):
        other = at.on[host, i]
        expert = at.expert[other]
        if at.holds[gpu, expert] == 0:
            price = _price_of_swap(at, block, copy, other)
            if price < best:
                best, found, heir = price, other, none
        if more and at.number[expert] > at.rules[expert, 0]:
            for j in range(at.number[expert]):
                third = at.copies[expert, j]
                if third != other:
                    price = _price_of_gift(at, block, copy, other, third)
                    if price < best:
                        best, found, heir = price, other, third
    return copy, found, heir


@inner
def _peak(at: Levelled, num_windows: int) -> float:
    """The expected peak over windows that alone count."""
    expected = 0.0
    for window in range(num_windows):
        block, place = window // _BLOCK, window % _BLOCK
        peak = 0.0
        for gpu in range(at.level.shape[1]):
            peak = max(peak, at.level[block, gpu, place])
        expected += at.weight[block, place] * peak
    return expected


@inner
def _search(
    at: Levelled, num_blocks: int, steps: int, heat: float, num_windows: int, enough: float
) -> None:
    """Make changes that lower the weighted sum of norms in the first blocks, until the expected
    peak of the windows is at or under `enough`, and leave the best placement in `best`.

    With some `heat`, changes may be a little for the worse, ever less so.
    """
    _find_links(at)
    now = _settle(at, num_blocks, int(_FIRST_SWEEPS))
    best = now
    _write(at, at.best)
    for step in range(steps):
        if best <= 1.0 + _LEVEL or (enough > 0.0 and _peak(at, num_windows) <= enough):
            break
        copy, other, heir = _propose(at, num_blocks)
        if other < 0:
            continue
        gpu, host = at.gpu[copy], at.gpu[other]
        expert, partner = at.expert[copy], at.expert[other]
        _make(at, copy, other, heir, expert)
        cold = step / steps
        worse = -heat * (1.0 - cold) * (1.0 - cold) * max(0.0, now - 1.0)
        if _gain_of(at, num_blocks, copy, other, heir, int(_SWEEPS), worse) > worse:
            _keep(at, num_blocks, partner, heir)
            if heir < 0:
                at.on[gpu, _place_of(at, gpu, copy)] = other
                at.on[host, _place_of(at, host, other)] = copy
            now = _settle(at, num_blocks, int(_SWEEPS))
            if now < best:
                best = now
                _write(at, at.best)
        else:
            _make(at, copy, other, heir, partner)


@inner
def _make(at: Levelled, copy: int, other: int, heir: int, expert: int) -> None:
    """Exchange two copies, which a second time takes that back, or where there is an heir give
    `other` to an expert.
    """
    if heir < 0:
        _exchange(at, copy, other)
    else:
        _drop(at, other)
        _add(at, expert, other)
        _find_links(at)


@inner
def _gain_of(
    at: Levelled, num_blocks: int, copy: int, other: int, heir: int, sweeps: int, worse: float
) -> float:
    """What a change that is made takes off the norms, levelled; no further counted than to where it
    is as bad as `worse`.
    """
    gain = 0.0
    for block in range(num_blocks):
        _change(at, block, copy, other, heir, sweeps)
        gain += at.part[block] - _norms(at, at.new_level[block], at.weight[block])
        if gain <= worse:
            break
    return gain


@inner
def _place_of(at: Levelled, gpu: int, copy: int) -> int:
    """Which of the slots of a GPU a copy is in."""
    place = 0
    while at.on[gpu, place] != copy:
        place += 1
    return place


@inner
def _change(at: Levelled, block: int, copy: int, other: int, heir: int, sweeps: int) -> None:
    """Level a block as it is after a change that is made."""
    flow, new_flow = at.flow[block], at.new_flow[block]
    level, new_level = at.level[block], at.new_level[block]
    for i in range(level.shape[0]):
        for t in range(_BLOCK):
            new_level[i, t] = level[i, t]
    for i in range(at.num_links[0]):
        for side in range(2):
            linked = at.links[i, side]
            for t in range(_BLOCK):
                new_flow[linked, t] = flow[linked, t]
    if heir < 0:
        gpu, host = at.gpu[other], at.gpu[copy]
        down, up = at.rate[gpu], at.rate[host]
        for t in range(_BLOCK):
            shift = flow[copy, t] - flow[other, t]
            new_level[gpu, t] -= shift * down
            new_level[host, t] += shift * up
    else:
        host, third = at.gpu[other], at.gpu[heir]
        up, up_there = at.rate[host], at.rate[third]
        for t in range(_BLOCK):
            lost = flow[other, t]
            new_flow[heir, t] = flow[heir, t] + lost
            new_flow[other, t] = 0.0
            new_level[host, t] -= lost * up
            new_level[third, t] += lost * up_there
    _sweep(at, new_flow, new_level, sweeps)


@inner
def _keep(at: Levelled, num_blocks: int, partner: int, heir: int) -> None:
    """Take over what a change has made."""
    for block in range(num_blocks):
        flow, new_flow = at.flow[block], at.new_flow[block]
        for gpu in range(at.level.shape[1]):
            for t in range(_BLOCK):
                at.level[block, gpu, t] = at.new_level[block, gpu, t]
        for i in range(at.num_links[0]):
            for side in range(2):
                linked = at.links[i, side]
                for t in range(_BLOCK):
                    flow[linked, t] = new_flow[linked, t]
        if heir >= 0 and at.number[partner] == 1:
            for t in range(_BLOCK):
                flow[heir, t] = at.load[block, partner, t]
