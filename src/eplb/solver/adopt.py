"""The placement that runs, taken over by the cluster that is planned for, with the fewest moves.

GPUs may have been added or taken away, and the slots of each may be more or fewer; a model's groups
may have to come together on nodes. What can stay stays; an expert that no GPU holds any more must
be received by one, and a GPU that holds nothing must receive something. Slots that are left over
get second copies of what their GPU holds, which cost no move and which the walk replaces.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.match import assign
from eplb.solver.packing import F64, I64, B, Gpus

__all__ = ["homes"]


def homes(held: B, num_groups: int, num_nodes: int) -> I64:
    """[L, E] the node that each expert is to be on, whole groups on a node, equally many on each,
    so that as few experts as can be have to come to theirs.

    Args:
        held: [L, G, E] what GPUs hold.
        num_groups: groups of experts, which the nodes divide.
        num_nodes: nodes.
    """
    num_layers, num_gpus, num_experts = held.shape
    on_node = held.reshape(num_layers, num_nodes, num_gpus // num_nodes, num_experts).any(axis=2)
    there = on_node.reshape(num_layers, num_nodes, num_groups, -1).sum(axis=3).transpose(0, 2, 1)
    share = num_groups // num_nodes
    home = np.empty((num_layers, num_groups), np.int64)
    for layer in range(num_layers):
        home[layer] = assign(np.repeat(there[layer], share, axis=1)) // share
    return np.repeat(home, num_experts // num_groups, axis=1)


class Adopted(NamedTuple):
    """A layer that is taken over: P slots on G GPUs, E experts."""

    loads: F64
    """[E] load of an expert."""
    home: I64
    """[E] the node that it is to be on."""
    node_gpus: int
    """GPUs of a node."""
    copies: I64
    """[E] GPUs that keep an expert, or held it on its node at first."""
    first: I64
    """[G + 1] first slot of a GPU, and the end."""
    slots: I64
    """[P] expert in a slot, -1 for none."""
    filled: I64
    """[G] slots of a GPU that hold any."""


@kernel
def _adopt_layers(
    loads: F64, held: B, before: I64, home: I64, num_nodes: int, first: I64, start: I64
) -> None:
    """Fill `start` [L, P] from what GPUs hold, `held` [L, G, E], in their slots `before` [L, P],
    where -1 is none; a GPU has those from `first` [G + 1] on. `loads` [L, E] say which experts
    matter, `home` [L, E] the node of each.
    """
    num_layers, num_gpus, num_experts = held.shape
    copies = np.empty(num_experts, np.int64)
    filled = np.empty(num_gpus, np.int64)
    for layer in range(num_layers):
        slots, node_gpus = start[layer], num_gpus // num_nodes
        at = Adopted(loads[layer], home[layer], node_gpus, copies, first, slots, filled)
        copies[:] = 0
        slots[:] = -1
        for gpu in range(num_gpus):
            for expert in range(num_experts):
                here = home[layer, expert] == gpu // node_gpus
                copies[expert] += held[layer, gpu, expert] and here
        for gpu in range(num_gpus):
            _keep(at, held[layer, gpu], before[layer], gpu)
        _make_room(at, held[layer])
        _bring_missing(at)
        _fill_up(at)


@kernel
def _fill_new(loads: F64, layers: I64, came: B, gpus: Gpus, start: I64) -> None:
    """Put experts where GPUs that held nothing, `came` [L, G], have second copies, in some layers
    of `start` [L, P]: one by one that of which the fourth powers of all loads over paces then add
    up to least.
    """
    num_gpus, num_experts = came.shape[1], loads.shape[1]
    first, pace = gpus.first, gpus.pace
    replicas, free = np.empty(num_experts, np.int64), np.empty(num_gpus, np.int64)
    holds, load = np.empty((num_gpus, num_experts), np.bool_), np.empty(num_gpus)
    for layer in layers:
        slots, total, left = start[layer], 0.0, 0
        for expert in range(num_experts):
            replicas[expert] = 0
            total += loads[layer, expert]
        for gpu in range(num_gpus):
            free[gpu] = 0
            load[gpu] = 0.0
            for expert in range(num_experts):
                holds[gpu, expert] = False
            for slot in range(first[gpu], first[gpu + 1]):
                if came[layer, gpu] and holds[gpu, slots[slot]]:
                    slots[slot] = -1
                    free[gpu] += 1
                    left += 1
                else:
                    replicas[slots[slot]] += 1
                    holds[gpu, slots[slot]] = True
        for gpu in range(num_gpus):
            for slot in range(first[gpu], first[gpu + 1]):
                expert = slots[slot]
                if expert >= 0:
                    load[gpu] += loads[layer, expert] / total * num_gpus / replicas[expert]
        for _ in range(left):
            least, target, chosen = np.inf, -1, -1
            for expert in range(num_experts):
                of_expert = loads[layer, expert] / total * num_gpus
                share = of_expert / (replicas[expert] + 1)
                falls = of_expert / replicas[expert] - share
                change = 0.0
                for gpu in range(num_gpus):
                    if holds[gpu, expert]:
                        change += ((load[gpu] - falls) / pace[gpu]) ** 4
                        change -= (load[gpu] / pace[gpu]) ** 4
                for gpu in range(num_gpus):
                    if free[gpu] > 0 and not holds[gpu, expert]:
                        more = ((load[gpu] + share) / pace[gpu]) ** 4 - (load[gpu] / pace[gpu]) ** 4
                        if change + more < least:
                            least, target, chosen = change + more, gpu, expert
            if target < 0:
                break
            of_expert = loads[layer, chosen] / total * num_gpus
            falls = of_expert / replicas[chosen] - of_expert / (replicas[chosen] + 1)
            for gpu in range(num_gpus):
                if holds[gpu, chosen]:
                    load[gpu] -= falls
            replicas[chosen] += 1
            load[target] += of_expert / replicas[chosen]
            holds[target, chosen] = True
            free[target] -= 1
            for slot in range(first[target], first[target + 1]):
                if slots[slot] < 0:
                    slots[slot] = chosen
                    break
        # A GPU that holds every expert has second copies.
        for gpu in range(num_gpus):
            for slot in range(first[gpu], first[gpu + 1]):
                if slots[slot] < 0:
                    slots[slot] = slots[first[gpu]]


@allocating
def _keep(at: Adopted, held: B, before: I64, gpu: int) -> None:
    """Keep what a GPU holds and may, in its slots; where that is too much, leave out experts with
    the most other copies, the least load first.
    """
    copies, loads, slots = at.copies, at.loads, at.slots
    num, begin = 0, at.first[gpu]
    size = at.first[gpu + 1] - begin
    keeps = np.zeros(held.shape[0], np.bool_)
    for expert in range(held.shape[0]):
        keeps[expert] = held[expert] and at.home[expert] == gpu // at.node_gpus
        num += keeps[expert]
    while num > size:
        worst = -1
        for expert in range(held.shape[0]):
            if keeps[expert] and (
                worst < 0
                or copies[expert] > copies[worst]
                or (copies[expert] == copies[worst] and loads[expert] < loads[worst])
            ):
                worst = expert
        keeps[worst] = False
        copies[worst] -= 1
        num -= 1
    at.filled[gpu] = num
    for slot in range(begin, begin + size):
        expert = before[slot]
        if expert >= 0 and keeps[expert]:
            slots[slot] = expert
            keeps[expert] = False
    place = begin
    for expert in range(held.shape[0]):
        if keeps[expert]:
            while slots[place] >= 0:
                place += 1
            slots[place] = expert


@allocating
def _make_room(at: Adopted, held: B) -> None:
    """Put experts that every GPU left out back on one that held them, where others can give way to
    GPUs that held them too: by augmenting paths, so that the fewest are missing.
    """
    copies, first, slots = at.copies, at.first, at.slots
    num_experts = copies.shape[0]
    queue, taken = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    for missing in range(num_experts):
        if copies[missing] > 0:
            continue
        # The slot that each expert in the queue gives way in; the first of them has none.
        for expert in range(num_experts):
            taken[expert] = -1
        queue[0] = missing
        next_one, last, found = 0, 1, -1
        while next_one < last and found < 0:
            coming = queue[next_one]
            begin = at.home[coming] * at.node_gpus
            for gpu in range(begin, begin + at.node_gpus):
                if not held[gpu, coming] or at.filled[gpu] < first[gpu + 1] - first[gpu]:
                    continue
                for slot in range(first[gpu], first[gpu + 1]):
                    expert = slots[slot]
                    if found >= 0 or expert == missing or taken[expert] >= 0:
                        continue
                    taken[expert] = slot * num_experts + coming
                    if copies[expert] > 1:
                        found = expert
                    else:
                        queue[last] = expert
                        last += 1
            next_one += 1
        if found >= 0:
            copies[found] -= 1
            copies[missing] = 1
        while found >= 0 and found != missing:
            slot, coming = taken[found] // num_experts, taken[found] % num_experts
            slots[slot] = coming
            found = coming


@inner
def _bring_missing(at: Adopted) -> None:
    """Put experts that no GPU holds, heaviest first, where most slots are free, or else in the
    place of the expert whose replicas have the least load.
    """
    copies, loads, first, slots = at.copies, at.loads, at.first, at.slots
    while True:
        missing = -1
        for expert in range(copies.shape[0]):
            if copies[expert] == 0 and (missing < 0 or loads[expert] > loads[missing]):
                missing = expert
        if missing < 0:
            return
        begin = at.home[missing] * at.node_gpus
        target, free = begin, 0
        for gpu in range(begin, begin + at.node_gpus):
            if first[gpu + 1] - first[gpu] - at.filled[gpu] > free:
                target, free = gpu, first[gpu + 1] - first[gpu] - at.filled[gpu]
        place = -1
        if free > 0:
            place = first[target]
            while slots[place] >= 0:
                place += 1
            at.filled[target] += 1
        else:
            for slot in range(first[begin], first[begin + at.node_gpus]):
                expert = slots[slot]
                if copies[expert] > 1 and (
                    place < 0
                    or loads[expert] * copies[slots[place]] < loads[slots[place]] * copies[expert]
                ):
                    place = slot
            copies[slots[place]] -= 1
        slots[place] = missing
        copies[missing] = 1


@inner
def _fill_up(at: Adopted) -> None:
    """Give GPUs that hold nothing the largest replica, and fill all up with what they hold."""
    copies, loads, first, slots = at.copies, at.loads, at.first, at.slots
    for gpu in range(at.filled.shape[0]):
        begin = first[gpu]
        if at.filled[gpu] == 0:
            largest = -1
            for expert in range(copies.shape[0]):
                if at.home[expert] == gpu // at.node_gpus and (
                    largest < 0 or loads[expert] * copies[largest] > loads[largest] * copies[expert]
                ):
                    largest = expert
            slots[begin] = largest
            copies[largest] += 1
        source = begin
        for slot in range(begin, first[gpu + 1]):
            if slots[slot] >= 0:
                continue
            while slots[source] < 0:
                source += 1
            slots[slot] = slots[source]
            copies[slots[slot]] += 1
            source = source + 1 if source + 1 < slot else begin
