"""Placements that keep wishes, from any placement, with few changes.

What breaks a wish leaves its slot. Then each expert that has too few copies comes to a GPU, and
each slot that is empty gets an expert. Where there is no room for it, others give way along an
*augmenting path*: an expert comes to a GPU in the place of one that comes to the next GPU, and so
on, until one of them has a copy to spare. Where no such path is left, there is no such placement
(Ford and Fulkerson, 1956): it is a flow from experts to GPUs, whose bounds are the numbers of
copies and of slots. Pairs that are to be apart are no flow; with these, layers for which it fails
are tried again from other orders of the experts.

What is chosen among is chosen for even loads, or where weights are received, for few of them.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.draw import _below
from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, HISTOGRAM, I64, B, Gpus, Wishes, _descending

__all__: list[str] = []

_TRIES = 60
"""Orders of the experts that are tried, where some are to be apart."""
_ONE = 1


class Heeding(NamedTuple):
    """A layer whose slots come to keep wishes: P slots on G GPUs, E experts."""

    first: I64
    """[G + 1] first slot of a GPU, and the end."""
    pace: F64
    node_gpus: int
    """GPUs of a node, on which experts stay, and the node of each in the next, [E]."""
    home: I64
    slots: I64
    """[P] expert in a slot, -1 for none."""
    copies: I64
    """[E] GPUs that hold an expert."""
    holds: B
    """[G, E] whether a GPU holds it."""
    clash: I64
    """[G, E] how many experts of a GPU it is to be apart from, many more where it may not come."""
    free: I64
    """[G] empty slots of a GPU."""
    total: F64
    """[G] its load."""
    load: F64
    """[E] load of an expert."""
    held: B
    """[G, E] what GPUs held before, so that it costs nothing."""
    least: I64
    most: I64
    apart: I64
    """[E, D]"""
    queue: I64
    """[E] scratch: experts that look for room, the slot that each would leave in the next, for whom
    in the one after that, and [G] the GPUs that have been looked at.
    """
    leaves: I64
    whom: I64
    looked: B


@kernel
def _heed_layers(
    loads: F64,
    layers: I64,
    num_nodes: int,
    gpus: Gpus,
    wishes: Wishes,
    held: B,
    frugal: bool,
    phy2log: I64,
    kept: B,
) -> None:
    """Change rows of `phy2log` [L, P] of `layers` so that they keep the wishes, and say in `kept`
    [L] whether they do; rows that keep them stay as they are.

    `loads` [L, E] say what is even, `held` [L, G, E] or [1, G, E] what GPUs held before. Experts
    stay on the node where they are first found. If `frugal`, slots that are left over get second
    copies of what their GPU holds, rather than what it would have to receive.
    """
    num_experts, num_gpus, num_slots = loads.shape[1], gpus.pace.shape[0], phy2log.shape[1]
    num_apart = wishes.apart.shape[2]
    order, random = np.empty(num_experts, np.int64), np.zeros(1, np.int64)
    home, slots = np.empty(num_experts, np.int64), np.empty(num_slots, np.int64)
    copies, holds = np.empty(num_experts, np.int64), np.empty((num_gpus, num_experts), np.bool_)
    clash, free = np.empty((num_gpus, num_experts), np.int64), np.empty(num_gpus, np.int64)
    total, load = np.empty(num_gpus), np.empty(num_experts)
    queue, leaves = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    whom, looked = np.empty(num_experts, np.int64), np.empty(num_gpus, np.bool_)
    histogram = np.empty(HISTOGRAM, np.int64)
    node_gpus = num_gpus // num_nodes
    for layer in layers:
        row = layer % wishes.least.shape[0]
        for expert in range(num_experts):
            load[expert] = loads[layer, expert]
            home[expert] = 0
        for gpu in range(num_gpus - 1, -1, -1):
            for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
                home[phy2log[layer, slot]] = gpu // node_gpus
        at = Heeding(
            gpus.first, gpus.pace, node_gpus, home, slots, copies, holds, clash, free, total, load,
            held[layer % held.shape[0]], wishes.least[row], wishes.most[row], wishes.apart[row],
            queue, leaves, whom, looked,
        )  # fmt: skip
        if _keeps(at, wishes.barred[row], phy2log[layer]):
            kept[layer] = True
            continue
        _descending(load, order, queue, histogram)
        random[0] = 0
        for number in range(_TRIES if num_apart > 0 else 1):
            if number > 0:
                for i in range(num_experts - 1, 0, -1):
                    other = _below(random, i + int(_ONE))
                    order[i], order[other] = order[other], order[i]
            _clear(at, wishes.barred[row])
            if number == 0:
                _keep_legal(at, phy2log[layer])
            kept[layer] = _heed(at, order, frugal)
            if kept[layer]:
                for slot in range(num_slots):
                    phy2log[layer, slot] = slots[slot]
                break


@inner
def _keeps(at: Heeding, barred: B, row: I64) -> bool:
    """Whether slots [P] keep the wishes; all scratch is overwritten."""
    _clear(at, barred)
    count = at.queue
    count[:] = 0
    twice = False
    for gpu in range(at.free.shape[0]):
        for slot in range(at.first[gpu], at.first[gpu + 1]):
            expert = row[slot]
            count[expert] += 1
            if at.holds[gpu, expert]:
                twice = twice or at.least[expert] > 1
                continue
            if at.clash[gpu, expert] > 0:
                return False
            _put(at, gpu, slot, expert)
    for expert in range(at.copies.shape[0]):
        if at.copies[expert] < at.least[expert] or count[expert] > at.most[expert]:
            return False
    return not twice


@inner
def _clear(at: Heeding, barred: B) -> None:
    """Take everything out of all slots."""
    at.slots[:] = -1
    at.copies[:] = 0
    at.holds[:] = False
    at.total[:] = 0.0
    for gpu in range(at.free.shape[0]):
        at.free[gpu] = at.first[gpu + 1] - at.first[gpu]
        for expert in range(at.copies.shape[0]):
            away = at.home[expert] != gpu // at.node_gpus
            never = away or (barred.shape[0] > 0 and barred[gpu, expert])
            at.clash[gpu, expert] = at.slots.shape[0] if never else 0


@inner
def _keep_legal(at: Heeding, row: I64) -> None:
    """Put what slots [P] hold there, as far as that breaks no wish."""
    for gpu in range(at.free.shape[0]):
        for slot in range(at.first[gpu], at.first[gpu + 1]):
            expert = row[slot]
            if _may_come(at, gpu, expert, np.int64(-1)) and at.copies[expert] < at.most[expert]:
                _put(at, gpu, slot, expert)


@inner
def _may_come(at: Heeding, gpu: int, expert: int, leaving: int) -> bool:
    """Whether an expert may come to a GPU that another leaves, or none where that is -1."""
    if at.holds[gpu, expert]:
        return False
    clash = at.clash[gpu, expert]
    if clash > 0 and leaving >= 0:
        for i in range(at.apart.shape[1]):
            clash -= int(at.apart[leaving, i] == expert)
    return bool(clash == 0)


@inner
def _put(at: Heeding, gpu: int, slot: int, expert: int) -> None:
    """Put an expert into an empty slot."""
    at.slots[slot] = expert
    at.copies[expert] += 1
    at.holds[gpu, expert] = True
    at.free[gpu] -= 1
    for i in range(at.apart.shape[1]):
        if at.apart[expert, i] >= 0:
            at.clash[gpu, at.apart[expert, i]] += 1


@inner
def _take(at: Heeding, slot: int) -> None:
    """Take what is in a slot out of it."""
    gpu, expert = _gpu_of(at, slot), at.slots[slot]
    at.slots[slot] = -1
    at.copies[expert] -= 1
    at.holds[gpu, expert] = False
    for other in range(at.first[gpu], at.first[gpu + 1]):
        at.holds[gpu, expert] |= at.slots[other] == expert
    at.free[gpu] += 1
    for i in range(at.apart.shape[1]):
        if at.apart[expert, i] >= 0:
            at.clash[gpu, at.apart[expert, i]] -= 1


@inner
def _gpu_of(at: Heeding, slot: int) -> int:
    gpu: int = np.searchsorted(at.first, slot, side="right") - 1
    return gpu


@inner
def _empty_slot(at: Heeding, gpu: int) -> int:
    slot: int = at.first[gpu]
    while at.slots[slot] >= 0:
        slot += 1
    return slot


@inner
def _weigh(at: Heeding) -> None:
    """Renew the loads of GPUs, over their paces."""
    for gpu in range(at.free.shape[0]):
        total = 0.0
        for slot in range(at.first[gpu], at.first[gpu + 1]):
            expert = at.slots[slot]
            if expert >= 0:
                total += at.load[expert] / max(at.copies[expert], at.least[expert])
        at.total[gpu] = total / at.pace[gpu]


@inner
def _heed(at: Heeding, order: I64, frugal: bool) -> bool:
    """Give every expert its fewest copies, in this order, and every slot an expert."""
    for expert in order:
        while at.copies[expert] < at.least[expert]:
            if not _bring(at, expert):
                return False
    while True:
        # The empty slot of the GPU with least load.
        _weigh(at)
        target = np.int64(-1)
        for gpu in range(at.free.shape[0]):
            if at.free[gpu] > 0 and (target < 0 or at.total[gpu] < at.total[target]):
                target = gpu
        if target < 0:
            return True
        if not _fill(at, target, frugal):
            return False


@inner
def _bring(at: Heeding, coming: int) -> bool:
    """Bring a copy of an expert to some GPU."""
    _weigh(at)
    share = at.load[coming] / max(at.copies[coming] + 1, at.least[coming])
    lowest, place = np.inf, np.int64(-1)
    cheapest = False
    for gpu in range(at.free.shape[0]):
        if at.holds[gpu, coming]:
            continue
        for slot in range(at.first[gpu], at.first[gpu + 1]):
            expert = at.slots[slot]
            if not _may_come(at, gpu, coming, expert):
                continue
            total = at.total[gpu] + share / at.pace[gpu]
            if expert >= 0:
                if at.copies[expert] <= at.least[expert]:
                    continue
                total -= at.load[expert] / at.copies[expert] / at.pace[gpu]
                # The copies that are left get that load.
                total += at.load[expert] / (at.copies[expert] - 1) / at.copies[expert]
            cheap = at.held[gpu, coming]
            if (cheap and not cheapest) or (cheap == cheapest and total < lowest):
                lowest, place, cheapest = total, slot, cheap
    if place >= 0:
        if at.slots[place] >= 0:
            _take(at, place)
        _put(at, _gpu_of(at, place), place, coming)
        return True
    return _make_room(at, coming)


@inner
def _make_room(at: Heeding, missing: int) -> bool:
    """Bring a copy of an expert to some GPU along an augmenting path."""
    at.leaves[:] = -1
    at.looked[:] = False
    at.queue[0] = missing
    begin, end = 0, 1
    while begin < end:
        coming = at.queue[begin]
        begin += 1
        for gpu in range(at.free.shape[0]):
            if at.looked[gpu] or at.holds[gpu, coming]:
                continue
            if at.free[gpu] > 0 and _may_come(at, gpu, coming, np.int64(-1)):
                _shift(at, missing, coming, _empty_slot(at, gpu))
                return True
            for slot in range(at.first[gpu], at.first[gpu + 1]):
                expert = at.slots[slot]
                if expert < 0 or expert == missing or at.leaves[expert] >= 0:
                    continue
                if not _may_come(at, gpu, coming, expert):
                    continue
                at.looked[gpu] = True
                at.leaves[expert], at.whom[expert] = slot, coming
                if at.copies[expert] > at.least[expert]:
                    _take(at, slot)
                    _shift(at, missing, coming, slot)
                    return True
                at.queue[end] = expert
                end += 1
    return False


@inner
def _shift(at: Heeding, missing: int, coming: int, slot: int) -> None:
    """Let an expert come into an empty slot, another into the slot that it leaves, and so on."""
    while coming != missing:
        left = at.leaves[coming]
        _take(at, left)
        _put(at, _gpu_of(at, slot), slot, coming)
        coming, slot = at.whom[coming], left
    _put(at, _gpu_of(at, slot), slot, coming)


@inner
def _fill(at: Heeding, gpu: int, frugal: bool) -> bool:
    """Fill an empty slot of a GPU: with the largest copy that may come, of experts that it held
    before if there are any.
    """
    slot = _empty_slot(at, gpu)
    best, found, cheapest = -1.0, np.int64(-1), False
    for expert in range(at.copies.shape[0]):
        if at.copies[expert] < at.most[expert] and _may_come(at, gpu, expert, np.int64(-1)):
            share = at.load[expert] / (at.copies[expert] + 1)
            cheap = at.held[gpu, expert]
            if (cheap and not cheapest) or (cheap == cheapest and share > best):
                best, found, cheapest = share, expert, cheap
    if frugal and not cheapest:
        # A second copy here costs nothing; the walk makes something else of it.
        for other in range(at.first[gpu], at.first[gpu + 1]):
            expert = at.slots[other]
            if expert >= 0 and at.least[expert] <= 1 and at.copies[expert] < at.most[expert]:
                share = at.load[expert] / (at.copies[expert] + 1)
                if not cheapest or share > best:
                    best, found, cheapest = share, expert, True
    if found >= 0:
        _put(at, gpu, slot, found)
        return True
    return _pull(at, gpu)


@allocating
def _pull(at: Heeding, gpu: int) -> bool:
    """Fill an empty slot of a GPU along an augmenting path: with an expert of another GPU, whose
    place is taken by one of a third, and so on, until one comes that has fewer copies than it may.
    """
    # Of each GPU that is looked at, the slot that is to be filled, and where what it has would go.
    num_gpus = at.free.shape[0]
    empty, goes = np.full(num_gpus, -1), np.full(num_gpus, -1)
    line = np.empty(num_gpus, np.int64)
    at.looked[:] = False
    empty[gpu], line[0], at.looked[gpu] = _empty_slot(at, gpu), gpu, True
    begin, end = 0, 1
    while begin < end:
        here = line[begin]
        begin += 1
        leaving = at.slots[empty[here]]
        for expert in range(at.copies.shape[0]):
            if at.copies[expert] < at.most[expert] and _may_come(at, here, expert, leaving):
                _pass_on(at, here, expert, empty, goes)
                return True
        for there in range(num_gpus):
            for slot in range(at.first[there], at.first[there + 1]):
                expert = at.slots[slot]
                if at.looked[there] or expert < 0 or not _may_come(at, here, expert, leaving):
                    continue
                at.looked[there] = True
                empty[there], goes[there], line[end] = slot, here, there
                end += 1
    return False


@inner
def _pass_on(at: Heeding, here: int, expert: int, empty: I64, goes: I64) -> None:
    """Let an expert come to a GPU, and what it has in the slot that is to be filled to the next."""
    while here >= 0:
        slot = empty[here]
        moved = at.slots[slot]
        if moved >= 0:
            _take(at, slot)
        _put(at, here, slot, expert)
        expert, here = moved, goes[here]
