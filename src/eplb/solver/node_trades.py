"""Fewer nodes for a token: replicas trade places between nodes, under a limit of a node's load.

A token is sent to every node that holds what it is routed to, apart from the one where it is. How
many these are, as expected, follows from where the replicas stand. A token chooses `m` groups of
experts, any set of them as likely as the product of its groups' odds, and `p` experts in each, by
their loads (one group and p = top_k where the model routes by none). With Q[s, n, g] the part of a
group's tokens from node s that is sent to node n, a token from s misses n with the chance

    e_m(odds[g] * (1 - Q[s, n, g])^p) / e_m(odds[g])

where e_m is the elementary symmetric polynomial: the sum over all sets of m groups of the product
over the set. Odds are such that each group is chosen as often as its load says.

Two passes lower the number of other nodes. The first names GPUs anew: whole GPUs trade places, and
no load changes. The second makes two changes while no node's load passes a limit: replicas of two
nodes trade places, or a slot of an expert with replicas to spare goes to another expert. At first
it makes some for the worse, and soon only those that gain (threshold accepting); then each node is
packed like a cluster of its own. Limits are the rungs of a ladder, each from where the last ended.

Sources: Chen, Dempster and Liu, "Weighted finite population sampling to maximize entropy", 1994
(odds for given chances); Dueck and Scheuer, "Threshold accepting", 1990.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.draw import _below, _draw
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, I64, Packing, _copy
from eplb.solver.swap import Packer, _new_packer, _packed, _swap_to, _write_out

__all__ = ["Routes"]

_FITS = 60
"""Rounds in which odds are fitted to chances: far more than they take to settle."""
_OVERLOAD = 20.0
"""What load of a node above its limit counts for, in other nodes for each mean load of a node."""
_NEAR = 4e-4
"""Peak over bound, less 1, at which a node is packed well enough."""
_GAIN = 1e-9
"""Other nodes that a trade of GPUs is to save at least: the rest is rounding."""
_HEAVIEST = 2.0
"""Mean loads of a slot that the replicas of an expert may reach which hands one over: heavier ones
are hard to pack."""
_BITS = 1 << 24
_ONE = 1
_SIDES = 2
"""Replicas, and sides of a coin; `int(...)` around them keeps kernels from being compiled once for
each literal."""


class Routes(NamedTuple):
    """Where the tokens of L layers come from and how they are routed, for K kinds of source among
    which tokens go the same ways: the nodes, or one kind where all of them are alike.
    """

    loads: F64
    """[L, E] load of an expert, all sources together; adds up to 1 in a layer."""
    inside: F64
    """[L, K, E] its part of its group's load."""
    origin: F64
    """[L, N, E] part of its tokens that come from a node."""
    odds: F64
    """[L, K, G] odds of a group."""
    sets: F64
    """[L, K] sum over all sets of groups that a token may choose of the products of their odds."""
    counts: F64
    """[L, K, N] tokens of a kind that a node is another one for, as a share of all tokens."""
    groups: int
    """m, groups that a token chooses."""
    picks: int
    """p, experts that it chooses in each."""
    near: bool
    """Whether copies take tokens of their own node first, as far as their share of the load goes;
    else tokens go to any copy alike."""


class _Where(NamedTuple):
    """Where replicas of one layer stand, and what follows."""

    copies: I64
    """[E, N] replicas of an expert on a node."""
    replicas: I64
    """[E] replicas."""
    sent: F64
    """[K, N, G] part of a group's tokens from a kind of source that is sent to a node."""
    trial: F64
    """[K, N, G] the same after a trade that is looked at."""
    missed: F64
    """[K, N] chance that a token misses a node."""
    mist: F64
    """[K, N] the same after that trade."""
    old: F64
    """[K, N] scratch: parts of an expert's tokens that are sent to a node."""
    new: F64
    symmetric: F64
    """[m + 1] scratch."""
    load: F64
    """[N] load of a node, 1 on average."""


@kernel
def _fit_odds(chances: F64, number: int, odds: F64, sets: F64) -> None:
    """Fill `odds` [J, G] so that sets of `number`, drawn with chances in proportion to the products
    of their odds, hold each of G with its chance [J, G], below 1; these add up to `number`. `sets`
    [J] become the sums over all sets of those products.
    """
    num_rows, num = chances.shape
    without = np.empty(number + 1)
    for row in range(num_rows):
        for i in range(num):
            odds[row, i] = chances[row, i] / (1.0 - chances[row, i])
        for _ in range(_FITS):
            for i in range(num):
                odds[row, i], held = 0.0, odds[row, i]
                _symmetric_of(odds[row], without)
                odds[row, i] = held
                # Sets with i are to be to those without it as their chances are.
                if without[number - 1] > 0.0:
                    fitting = without[number] / without[number - 1]
                    odds[row, i] = fitting * chances[row, i] / (1.0 - chances[row, i])
        _symmetric_of(odds[row], without)
        sets[row] = without[number]


@inner
def _symmetric_of(values: F64, symmetric: F64) -> None:
    """Fill `symmetric` [m + 1] with the elementary symmetric polynomials of `values`."""
    symmetric[:] = 0.0
    symmetric[0] = 1.0
    for i in range(values.shape[0]):
        for j in range(symmetric.shape[0] - 1, 0, -1):
            symmetric[j] += values[i] * symmetric[j - 1]


@allocating
def _new_where(routes: Routes) -> _Where:
    _, num_kinds, num_experts = routes.inside.shape
    num_nodes, num_groups = routes.origin.shape[1], routes.odds.shape[2]
    return _Where(
        np.empty((num_experts, num_nodes), np.int64),
        np.empty(num_experts, np.int64),
        np.empty((num_kinds, num_nodes, num_groups)),
        np.empty((num_kinds, num_nodes, num_groups)),
        np.empty((num_kinds, num_nodes)),
        np.empty((num_kinds, num_nodes)),
        np.empty((num_kinds, num_nodes)),
        np.empty((num_kinds, num_nodes)),
        np.empty(routes.groups + 1),
        np.empty(num_nodes),
    )


@inner
def _parts(routes: Routes, layer: int, where: _Where, expert: int, parts: F64) -> None:
    """Fill `parts` [K, N] of an expert's tokens that are sent from a kind of source to a node."""
    num_kinds, num_nodes = parts.shape
    count = where.replicas[expert]
    if not routes.near or count == 1:
        for node in range(num_nodes):
            part = where.copies[expert, node] / count
            for kind in range(num_kinds):
                parts[kind, node] = part
        return
    rest = 0.0
    for node in range(num_nodes):
        part = where.copies[expert, node] / count
        rest += max(0.0, part - routes.origin[layer, node, expert])
    for kind in range(num_kinds):
        coming = routes.origin[layer, kind, expert]
        here = min(coming, where.copies[expert, kind] / count)
        away = (coming - here) / coming if coming > 0.0 else 1.0
        for node in range(num_nodes):
            room = max(0.0, where.copies[expert, node] / count - routes.origin[layer, node, expert])
            parts[kind, node] = away * room / rest if rest > 0.0 else 0.0
        parts[kind, kind] += 1.0 - away


@inner
def _chance(routes: Routes, layer: int, kind: int, sent: F64, symmetric: F64) -> float:
    """Chance that a token of a kind of source misses a node that is sent the parts `sent` [G] of
    its groups.
    """
    symmetric[:] = 0.0
    symmetric[0] = 1.0
    for group in range(sent.shape[0]):
        left = max(0.0, 1.0 - sent[group])
        value = routes.odds[layer, kind, group]
        for _ in range(routes.picks):
            value *= left
        for j in range(symmetric.shape[0] - 1, 0, -1):
            symmetric[j] += value * symmetric[j - 1]
    return float(symmetric[routes.groups] / routes.sets[layer, kind])


@inner
def _stand(routes: Routes, layer: int, phy2log: I64, where: _Where) -> float:
    """Take up where the replicas of `phy2log` [P] stand; return the other nodes of a token."""
    num_kinds, num_nodes = where.missed.shape
    num_experts, num_groups = where.replicas.shape[0], where.sent.shape[2]
    size = num_experts // num_groups
    slots_per_node = phy2log.shape[0] // num_nodes
    where.copies[:] = 0
    where.replicas[:] = 0
    where.load[:] = 0.0
    for slot in range(phy2log.shape[0]):
        if phy2log[slot] >= 0:
            where.copies[phy2log[slot], slot // slots_per_node] += 1
            where.replicas[phy2log[slot]] += 1
    for slot in range(phy2log.shape[0]):
        expert = phy2log[slot]
        if expert < 0:
            continue
        part = routes.loads[layer, expert] / where.replicas[expert]
        where.load[slot // slots_per_node] += part * num_nodes
    where.sent[:] = 0.0
    for expert in range(num_experts):
        _parts(routes, layer, where, expert, where.old)
        for kind in range(num_kinds):
            inside = routes.inside[layer, kind, expert]
            for node in range(num_nodes):
                where.sent[kind, node, expert // size] += inside * where.old[kind, node]
    others = 0.0
    for kind in range(num_kinds):
        for node in range(num_nodes):
            missed = _chance(routes, layer, kind, where.sent[kind, node], where.symmetric)
            where.missed[kind, node] = missed
            others += routes.counts[layer, kind, node] * (1.0 - missed)
    return others


@inner
def _look(
    routes: Routes, layer: int, where: _Where, expert: int, go: int, gone: int, come: int, came: int
) -> None:
    """Add to `trial` what it does that node `go` has `gone` replicas of an expert fewer, and node
    `come` has `came` more.
    """
    num_kinds, num_nodes = where.missed.shape
    group = expert // (where.replicas.shape[0] // where.sent.shape[2])
    _parts(routes, layer, where, expert, where.old)
    where.copies[expert, go] -= gone
    where.copies[expert, come] += came
    where.replicas[expert] += came - gone
    _parts(routes, layer, where, expert, where.new)
    where.copies[expert, go] += gone
    where.copies[expert, come] -= came
    where.replicas[expert] -= came - gone
    for kind in range(num_kinds):
        inside = routes.inside[layer, kind, expert]
        for node in range(num_nodes):
            where.trial[kind, node, group] += inside * (
                where.new[kind, node] - where.old[kind, node]
            )


@inner
def _copy_all(source: F64, target: F64) -> None:
    """Copy an array [K, N, G]."""
    for kind in range(source.shape[0]):
        for node in range(source.shape[1]):
            _copy(source[kind, node], target[kind, node])


@inner
def _change(
    routes: Routes, layer: int, where: _Where, expert: int, node: int, partner: int, other: int
) -> float:
    """What it adds to the other nodes of a token that a slot of `node` has `partner` in place of
    `expert`, and one of node `other` the other way round if that is another node; `trial` and
    `mist` have what follows from it.
    """
    num_kinds, num_nodes = where.missed.shape
    size = where.replicas.shape[0] // where.sent.shape[2]
    first, second = expert // size, partner // size
    _copy_all(where.sent, where.trial)
    swap = int(node != other)
    _look(routes, layer, where, expert, node, int(_ONE), other, swap)
    _look(routes, layer, where, partner, other, swap, node, int(_ONE))
    more = 0.0
    for kind in range(num_kinds):
        for at in range(num_nodes):
            trial, sent = where.trial[kind, at], where.sent[kind, at]
            where.mist[kind, at] = where.missed[kind, at]
            if trial[first] != sent[first] or trial[second] != sent[second]:
                chance = _chance(routes, layer, kind, trial, where.symmetric)
                where.mist[kind, at] = chance
                more += routes.counts[layer, kind, at] * (where.missed[kind, at] - chance)
    return more


@inner
def _make(where: _Where, expert: int, node: int, partner: int, other: int) -> None:
    """Make the change that was looked at last."""
    size = where.replicas.shape[0] // where.sent.shape[2]
    first, second = expert // size, partner // size
    where.copies[expert, node] -= 1
    where.copies[partner, node] += 1
    if node != other:
        where.copies[expert, other] += 1
        where.copies[partner, other] -= 1
    else:
        where.replicas[expert] -= 1
        where.replicas[partner] += 1
    num_kinds, num_nodes = where.missed.shape
    for kind in range(num_kinds):
        for at in range(num_nodes):
            where.missed[kind, at] = where.mist[kind, at]
            where.sent[kind, at, first] = where.trial[kind, at, first]
            where.sent[kind, at, second] = where.trial[kind, at, second]


@kernel
def _count_nodes(routes: Routes, phy2log: I64, others: F64) -> None:
    """Fill `others` [L] with the other nodes of a token, of slots [L, P]."""
    where = _new_where(routes)
    for layer in range(others.shape[0]):
        others[layer] = _stand(routes, layer, phy2log[layer], where)


@kernel
def _name_layers(layers: I64, routes: Routes, num_gpus: int, phy2log: I64) -> None:
    """Let GPUs of `layers` trade places between nodes in `phy2log` [L, P] while a token goes to
    fewer nodes for it.
    """
    num_nodes = routes.origin.shape[1]
    per_gpu, per_node = phy2log.shape[1] // num_gpus, num_gpus // num_nodes
    where = _new_where(routes)
    for layer in layers:
        slots = phy2log[layer]
        _stand(routes, layer, slots, where)
        better = True
        while better:
            better = False
            for gpu in range(num_gpus):
                node = gpu // per_node
                for host in range((node + 1) * per_node, num_gpus):
                    mine = slots[gpu * per_gpu : (gpu + 1) * per_gpu]
                    theirs = slots[host * per_gpu : (host + 1) * per_gpu]
                    more = _trade_gpus(routes, layer, where, mine, node, theirs, host // per_node)
                    if more < -_GAIN:
                        for i in range(per_gpu):
                            mine[i], theirs[i] = theirs[i], mine[i]
                        _stand(routes, layer, slots, where)
                        better = True


@inner
def _trade_gpus(
    routes: Routes, layer: int, where: _Where, mine: I64, node: int, theirs: I64, other: int
) -> float:
    """What it adds to the other nodes of a token that the GPUs with these slots [S] trade places
    between two nodes.
    """
    num_kinds, num_nodes = where.missed.shape
    _copy_all(where.sent, where.trial)
    for i in range(mine.shape[0]):
        # An expert that both hold goes only as often as one has more of it.
        if _number_of(mine[:i], mine[i]) == 0:
            going = _number_of(mine, mine[i]) - _number_of(theirs, mine[i])
            if going != 0:
                _look(routes, layer, where, mine[i], node, going, other, going)
        if _number_of(theirs[:i], theirs[i]) + _number_of(mine, theirs[i]) == 0:
            coming = _number_of(theirs, theirs[i])
            _look(routes, layer, where, theirs[i], other, coming, node, coming)
    more = 0.0
    for kind in range(num_kinds):
        for at in range(num_nodes):
            chance = _chance(routes, layer, kind, where.trial[kind, at], where.symmetric)
            more += routes.counts[layer, kind, at] * (where.missed[kind, at] - chance)
    return more


@inner
def _number_of(slots: I64, expert: int) -> int:
    """How many of the slots hold an expert."""
    number = 0
    for i in range(slots.shape[0]):
        number += int(slots[i] == expert)
    return number


@kernel
def _trade_rungs(
    layers: I64,
    routes: Routes,
    num_gpus: int,
    limits: F64,
    looks: int,
    heat: float,
    start: I64,
    phy2log: I64,
) -> None:
    """Change what nodes hold in `layers`, from `start` [L, P], under one limit [J] after the other
    of the load of a node, 1 on average; fill `phy2log` [J, L, P]. For each limit there are `looks`
    looks at a change, and what it may be for the worse falls from `heat` to 0.
    """
    num_experts, num_nodes = routes.loads.shape[1], routes.origin.shape[1]
    num_slots = start.shape[1]
    per_gpu, per_node = num_slots // num_gpus, num_gpus // num_nodes
    node_slots = per_gpu * per_node
    where = _new_where(routes)
    by, local = _new_packer(num_experts, per_node, per_gpu), np.empty(num_experts)
    experts, count = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    slots, random = np.empty(num_slots, np.int64), np.empty(1, np.int64)
    load = np.empty(num_nodes)
    for layer in layers:
        random[0] = layer
        # The first draws of small numbers are much alike.
        _draw(random)
        _copy(start[layer], slots)
        for rung in range(limits.shape[0]):
            # Anew for each, so that rounding does not add up.
            _stand(routes, layer, slots, where)
            for step in range(looks):
                allowed = heat * (1.0 - step / looks) * _draw(random) / _BITS
                _try_change(
                    routes, layer, where, slots, node_slots, per_node, limits[rung], allowed, load,
                    random,
                )  # fmt: skip
            for node in range(num_nodes):
                on_node = slots[node * node_slots : (node + 1) * node_slots]
                _pack_node(by, routes.loads[layer], where, node, local, experts, count, on_node)
            _copy(slots, phy2log[rung, layer])


@inner
def _try_change(
    routes: Routes,
    layer: int,
    where: _Where,
    slots: I64,
    node_slots: int,
    per_node: int,
    limit: float,
    allowed: float,
    load: F64,
    random: I64,
) -> None:
    """Draw a change of `slots` [P], and make it if no node that is over the limit becomes busier
    and it adds no more than is allowed to the other nodes of a token. `load` [N] is scratch.
    """
    num_slots, num_experts = slots.shape[0], where.replicas.shape[0]
    slot = _below(random, num_slots)
    node, expert = slot // node_slots, slots[slot]
    target, partner = slot, _below(random, num_experts)
    hand_over = where.replicas[expert] > 1 and _below(random, int(_SIDES)) == 0
    if not hand_over:
        beyond = (node + 1) * node_slots + _below(random, num_slots - node_slots)
        target = beyond % num_slots
        partner = slots[target]
    other = target // node_slots
    if expert == partner or where.copies[partner, node] >= per_node:
        return
    if not hand_over and where.copies[expert, other] >= per_node:
        return
    of_expert, of_partner = routes.loads[layer, expert], routes.loads[layer, partner]
    count, more = where.replicas[expert], where.replicas[partner]
    if hand_over and of_expert / (count - 1) > _HEAVIEST / num_slots:
        return
    over = 0.0
    for at in range(load.shape[0]):
        mine, theirs = where.copies[expert, at], where.copies[partner, at]
        left, come = mine - int(at == node), theirs + int(at == node)
        load[at] = where.load[at]
        if hand_over:
            change = of_expert * (left / (count - 1) - mine / count)
            change += of_partner * (come / (more + 1) - theirs / more)
            load[at] += change * load.shape[0]
        elif at in (node, other):
            change = of_partner / more - of_expert / count
            load[at] += (change if at == node else -change) * load.shape[0]
        over += max(0.0, load[at] - limit) - max(0.0, where.load[at] - limit)
    if over > 0.0:
        return
    # What brings a node nearer to the limit is worth something too.
    worse = _OVERLOAD * over
    worse += _change(routes, layer, where, expert, node, partner, other)
    if worse > allowed:
        return
    _make(where, expert, node, partner, other)
    _copy(load, where.load)
    slots[slot] = partner
    if not hand_over:
        slots[target] = expert


@inner
def _pack_node(
    by: Packer,
    loads: F64,
    where: _Where,
    node: int,
    local: F64,
    experts: I64,
    count: I64,
    slots: I64,
) -> None:
    """Pack what a node holds of experts of `loads` [E] onto its GPUs, in its `slots`."""
    num, total, packing = 0, 0.0, by.packing
    for expert in range(where.replicas.shape[0]):
        copies = where.copies[expert, node]
        if copies > 0:
            experts[num], count[num] = expert, copies
            local[num] = loads[expert] / where.replicas[expert] * copies
            total += local[num]
            num += 1
    some = Packing(
        packing.weight[:num],
        packing.copies[:num],
        packing.share[:num],
        packing.first[:num],
        packing.gpu_of,
        packing.slots,
        packing.load,
    )
    of_some = Packer(some, by.order[:num], by.spare[:num], by.scratch, by.swaps)
    _packed(of_some, local[:num], count[:num])
    _swap_to(of_some, max(total / packing.load.shape[0], some.share[0]) * (1.0 + _NEAR))
    _write_out(of_some, experts, slots)
