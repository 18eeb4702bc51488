"""The search under the rule of an engine, which sends each source's tokens of an expert to a copy.

What part of an expert's tokens a copy takes follows from which GPUs hold the others, and on which
node: `_parts` has the rules. A state is what the slots of one layer hold, and the loads of GPUs in
each window that the rule then makes. Two changes lead from state to state: two copies *swap* their
GPUs, or a slot is *given* to another expert. What falls is the norm of the loads of GPUs, a smooth
peak:

    sum over windows t of  weight[t] * (mean over GPUs g of level[t, g]^p)^(1/p)

A change is proposed from a GPU that is busiest in some window. Which slot of another GPU is best to
swap with is read off the slopes of the norm, as if parts stayed the same; then the change is
computed. Only the loads of GPUs that hold one of its two experts differ after it, so the sums of
powers are corrected there alone.

Of tokens that SGLang draws a copy for, each copy takes the same part as expected; where the sources
that draw are no multiple of the copies, some copies get one source more, and nobody knows which
until all layers are planned. The search counts them a little heavier, so that it looks for
placements whose parts are certain.

Random numbers are made from whole numbers, and powers and roots by squaring and by square roots,
so a search is the same on every host.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.draw import _below
from eplb.solver.engine_rules import _parts
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, I32, I64, Task

__all__: list[str] = []

_DOUBLINGS = 5
"""The norm has the power 2 ** doublings."""
_BOLD = 16
"""One in so many changes is drawn, and not one of the lowest price from a GPU that is busiest."""
_WAYS, _SWAPS, _ONLY_THERE = 8, 6, 7
"""Ways to change two slots: so many swap what the two hold; of the others, the last gives the
second slot to the expert of the first, and the one before the first to that of the second."""
_TIGHT = 1e-3
"""What is nearer to the peak than this, as a share of it, is as busy."""
_LEVEL = 1e-7
"""The norm of what is as level as can be is 1, and no more than this above it."""


class Ruled(NamedTuple):
    """Where the search through a layer stands: P slots on G GPUs, T windows. Loads are in units of
    the mean GPU's.
    """

    load: F64
    """[E, T] load of an expert."""
    level: F64
    """[G, T] load of a GPU, and the same to the power of the norm in the next."""
    raised: F64
    new_level: F64
    """[G, T] both after a change, as far as they differ."""
    new_raised: F64
    slope: F64
    """[G, T] slope of the norm by the load of a GPU, and half its curvature in the next."""
    curve: F64
    sums: F64
    """[T] sums of powers over GPUs, and the same after a change in the next."""
    new_sums: F64
    number: I64
    """[E + 2] copies of an expert; at the end those of the two of a change, as after it."""
    hosts: I64
    """[E + 2, P] their GPUs in rising order, and the parts that they take in the next."""
    parts: F64
    holds: I32
    """[G, E] copies of an expert on a GPU."""
    touched: I64
    """[G] GPUs whose load a change alters."""
    mark: I64
    """[G] the last change that altered the load of a GPU."""
    random: I64
    """[1] state of the random numbers."""
    rule: int
    """The rule and the caution of `_parts`."""
    caution: float
    node_gpus: int
    """GPUs of a node, and GPUs that experts may go to from one of them in the next."""
    home_gpus: int


@allocating
def _new_ruled(task: Task, rule: int, caution: float, num_nodes: int) -> Ruled:
    num_windows, _, num_experts = task.windows.shape
    num_gpus, num_slots = task.gpus.pace.shape[0], task.gpus.first[-1]
    return Ruled(
        np.empty((num_experts, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty((num_gpus, num_windows)),
        np.empty(num_windows),
        np.empty(num_windows),
        np.empty(num_experts + 2, np.int64),
        np.empty((num_experts + 2, num_slots), np.int64),
        np.empty((num_experts + 2, num_slots)),
        np.empty((num_gpus, num_experts), np.int32),
        np.empty(num_gpus, np.int64),
        np.empty(num_gpus, np.int64),
        np.empty(1, np.int64),
        rule,
        caution,
        num_gpus // num_nodes,
        num_gpus // task.num_nodes,
    )


@kernel
def _rule_layers(
    layers: I64, task: Task, rule: int, caution: float, num_nodes: int, steps: int, phy2log: I64
) -> None:
    """Search from `phy2log` [L, P] through `layers`, each of which has some load, and leave there
    what so many `steps`, changes that are tried, find.

    The GPUs, which are alike, stand on `num_nodes` nodes, whatever those that experts stay on.
    """
    windows, num_gpus = task.windows, task.gpus.pace.shape[0]
    num_windows, _, num_experts = windows.shape
    at = _new_ruled(task, rule, caution, num_nodes)
    for layer in layers:
        for window in range(num_windows):
            total = 0.0
            for expert in range(num_experts):
                total += windows[window, layer, expert]
            scale = num_gpus / total if total > 0.0 else 0.0
            for expert in range(num_experts):
                at.load[expert, window] = windows[window, layer, expert] * scale
        _begin(at, phy2log[layer])
        _search(at, phy2log[layer], task.weights[:, layer], steps)


@inner
def _begin(at: Ruled, row: I64) -> None:
    """Take up a placement [P]."""
    num_gpus, num_windows = at.level.shape
    slots_per_gpu = row.shape[0] // num_gpus
    at.random[0] = 0
    at.number[:] = 0
    at.holds[:] = 0
    at.mark[:] = -1
    at.level[:] = 0.0
    at.sums[:] = 0.0
    for slot in range(row.shape[0]):
        expert, gpu = row[slot], slot // slots_per_gpu
        at.hosts[expert, at.number[expert]] = gpu
        at.number[expert] += 1
        at.holds[gpu, expert] += 1
    for expert in range(at.load.shape[0]):
        hosts, number, parts = at.hosts[expert], at.number[expert], at.parts[expert]
        _parts(at.rule, hosts, number, num_gpus, at.node_gpus, at.caution, parts)
        for i in range(number):
            for t in range(num_windows):
                at.level[hosts[i], t] += parts[i] * at.load[expert, t]
    for gpu in range(num_gpus):
        for t in range(num_windows):
            at.raised[gpu, t] = _raised(at.level[gpu, t])
            at.sums[t] += at.raised[gpu, t]


@inner
def _raised(value: float) -> float:
    """A load to the power of the norm."""
    for _ in range(_DOUBLINGS):
        value *= value
    return value


@inner
def _norm(sums: F64, weight: F64, num_gpus: int) -> float:
    """Weighted sum of norms, from sums of powers [T]."""
    total = 0.0
    for t in range(sums.shape[0]):
        total += weight[t] * _rooted(sums[t] / num_gpus)
    return total


@inner
def _rooted(value: float) -> float:
    """The root of a mean of powers, which rounding may leave a little below 0."""
    value = max(value, 0.0)
    for _ in range(_DOUBLINGS):
        value = np.sqrt(value)
    return value


@inner
def _slope(at: Ruled, weight: F64) -> None:
    """Renew the slopes of the norm by the loads of GPUs."""
    num_gpus, num_windows = at.level.shape
    power = float(2**_DOUBLINGS)
    for t in range(num_windows):
        scale = weight[t] * _rooted(at.sums[t] / num_gpus) / (at.sums[t] + 1e-300)
        for gpu in range(num_gpus):
            level = at.level[gpu, t] + 1e-300
            at.slope[gpu, t] = scale * at.raised[gpu, t] / level
            at.curve[gpu, t] = 0.5 * (power - 1.0) * at.slope[gpu, t] / level


@inner
def _propose(at: Ruled, row: I64) -> tuple[int, int, int]:
    """A slot on a GPU that is busiest in some window; a slot on one of the GPUs that experts may go
    to from there, itself for none; and in which way to change them. Of two that are to swap, the
    second is the one of the lowest price. Some are drawn from any GPU, whatever the price.
    """
    num_gpus, num_windows = at.level.shape
    home = at.home_gpus
    slots_per_gpu = row.shape[0] // num_gpus
    gpu = _below(at.random, num_gpus)
    bold = _below(at.random, int(_BOLD)) == 0
    if not bold:
        t = _below(at.random, num_windows)
        peak = 0.0
        for each in range(num_gpus):
            peak = max(peak, at.level[each, t])
        while at.level[gpu, t] < peak * (1.0 - _TIGHT):
            gpu = (gpu + 1) % num_gpus
    host = gpu // home * home + _below(at.random, home)
    slot = gpu * slots_per_gpu + _below(at.random, slots_per_gpu)
    other = host * slots_per_gpu + _below(at.random, slots_per_gpu)
    way = _below(at.random, int(_WAYS))
    if bold or way >= _SWAPS:
        return slot, other, way
    one = row[slot]
    mine = _part_on(at, one, gpu)
    best, found = 0.0, slot
    for each in range(host * slots_per_gpu, (host + 1) * slots_per_gpu):
        two = row[each]
        if at.holds[gpu, two] > 0:
            continue
        theirs = _part_on(at, two, host)
        price = 0.0
        for t in range(num_windows):
            shift = mine * at.load[one, t] - theirs * at.load[two, t]
            bent = at.curve[host, t] + at.curve[gpu, t]
            price += shift * (at.slope[host, t] - at.slope[gpu, t] + shift * bent)
        if price < best:
            best, found = price, each
    return slot, found, way


@inner
def _part_on(at: Ruled, expert: int, gpu: int) -> float:
    """The part of an expert's tokens that its copy on a GPU takes."""
    i = 0
    while at.hosts[expert, i] != gpu:
        i += 1
    part: float = at.parts[expert, i]
    return part


@inner
def _search(at: Ruled, row: I64, weight: F64, steps: int) -> None:
    """Try so many changes of the slots `row` [P], and make those that lower the weighted sum of
    norms.
    """
    num_gpus, num_experts = at.level.shape[0], at.load.shape[0]
    slots_per_gpu = row.shape[0] // num_gpus
    now = _norm(at.sums, weight, num_gpus)
    _slope(at, weight)
    for step in range(steps):
        if now <= 1.0 + _LEVEL:
            return
        slot, other, way = _propose(at, row)
        gpu, host = slot // slots_per_gpu, other // slots_per_gpu
        one, two = row[slot], row[other]
        here, there = way < _ONLY_THERE, way != _SWAPS
        if gpu == host or one == two:
            continue
        if (here and at.holds[gpu, two] > 0) or (there and at.holds[host, one] > 0):
            continue
        if (not there and at.number[one] == 1) or (not here and at.number[two] == 1):
            continue
        for which in range(2):
            expert = one if which == 0 else two
            mine, theirs = gpu if here else -1, host if there else -1
            if which == 1:
                mine, theirs = theirs, mine
            new = num_experts + which
            _rehost(at, expert, new, mine, theirs)
            hosts, number, parts = at.hosts[new], at.number[new], at.parts[new]
            _parts(at.rule, hosts, number, num_gpus, at.node_gpus, at.caution, parts)
        found = _change(at, one, two, step)
        new = _norm(at.new_sums, weight, num_gpus)
        if new < now:
            now = new
            _keep(at, one, two, found)
            _slope(at, weight)
            if here:
                row[slot] = two
                at.holds[gpu, one] -= 1
                at.holds[gpu, two] += 1
            if there:
                row[other] = one
                at.holds[host, two] -= 1
                at.holds[host, one] += 1


@inner
def _rehost(at: Ruled, expert: int, new: int, leaves: int, comes: int) -> None:
    """Fill the GPUs of an expert after a copy leaves one and a copy comes to one, -1 for none."""
    found = 0
    for i in range(at.number[expert]):
        host = at.hosts[expert, i]
        if host == leaves:
            leaves = -1
            continue
        if 0 <= comes < host:
            at.hosts[new, found] = comes
            found += 1
            comes = -1
        at.hosts[new, found] = host
        found += 1
    if comes >= 0:
        at.hosts[new, found] = comes
        found += 1
    at.number[new] = found


@inner
def _change(at: Ruled, one: int, two: int, step: int) -> int:
    """Fill the loads of GPUs, and sums of powers, after a change of two experts, and return how
    many GPUs it touches.
    """
    num_experts, num_windows = at.load.shape
    found = 0
    for i in range(4):
        expert = one if i % 2 == 0 else two
        held = expert if i < 2 else num_experts + i - 2
        for j in range(at.number[held]):
            gpu = at.hosts[held, j]
            if at.mark[gpu] != step:
                at.mark[gpu] = step
                at.touched[found] = gpu
                found += 1
                for t in range(num_windows):
                    at.new_level[gpu, t] = at.level[gpu, t]
            part = -at.parts[held, j] if i < 2 else at.parts[held, j]
            for t in range(num_windows):
                at.new_level[gpu, t] += part * at.load[expert, t]
    for t in range(num_windows):
        at.new_sums[t] = at.sums[t]
    for i in range(found):
        gpu = at.touched[i]
        for t in range(num_windows):
            at.new_raised[gpu, t] = _raised(at.new_level[gpu, t])
            at.new_sums[t] += at.new_raised[gpu, t] - at.raised[gpu, t]
    return found


@inner
def _keep(at: Ruled, one: int, two: int, found: int) -> None:
    """Take over what a change has made of two experts and of the GPUs that it touches."""
    num_experts, num_windows = at.load.shape
    for i in range(found):
        gpu = at.touched[i]
        for t in range(num_windows):
            at.level[gpu, t] = at.new_level[gpu, t]
            at.raised[gpu, t] = at.new_raised[gpu, t]
    for t in range(num_windows):
        at.sums[t] = at.new_sums[t]
    for which in range(2):
        expert, new = one if which == 0 else two, num_experts + which
        at.number[expert] = at.number[new]
        for i in range(at.number[new]):
            at.hosts[expert, i] = at.hosts[new, i]
            at.parts[expert, i] = at.parts[new, i]
