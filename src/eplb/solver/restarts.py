"""Other starts for the search through a small layer: its plan, shaken at random.

A search finds what is near its start. In a small layer that is soon found, so many short searches
from many starts find more than a long one. A start depends on the plan and its own number alone.
"""

import numpy as np

from eplb.solver.draw import _below, _draw
from eplb.solver.jit import inner, kernel
from eplb.solver.packing import I64, Task

__all__: list[str] = []

_SHAKES = 4
"""Changes that are tried for each slot."""
_TRADES = 4
"""Starts of which groups trade places in all but one."""
_SIDES = 2
"""Of a coin; `int(...)` around it keeps a kernel from being compiled once for each literal."""


@kernel
def _shake_rows(numbers: I64, task: Task, num_groups: int, phy2log: I64) -> None:
    """Make a start of each row of `phy2log` [K, P], the one of its number in `numbers` [K].

    Slots swap their experts, and experts with replicas to spare hand slots over to others, on the
    same node. No GPU gets a second copy of an expert, and wishes that rows keep stay kept. If
    there are several groups, some trade all their slots with groups of other nodes before that, in
    three of four starts.
    """
    random, gpus = np.empty(1, np.int64), task.gpus
    num_experts, num_nodes = task.windows.shape[2], task.num_nodes
    copies = np.empty(num_experts, np.int64)
    num_gpus = gpus.pace.shape[0]
    holds = np.empty((num_gpus, num_experts), np.int64)
    gpu_of = np.empty(phy2log.shape[1], np.int64)
    for gpu in range(num_gpus):
        for slot in range(gpus.first[gpu], gpus.first[gpu + 1]):
            gpu_of[slot] = gpu
    for row in range(phy2log.shape[0]):
        random[0] = numbers[row]
        if num_groups > 1 and numbers[row] % int(_TRADES) != 0:
            _trade(random, num_experts // num_groups, num_nodes, phy2log[row])
        _shake(random, task, row, gpu_of, phy2log[row], copies, holds)


@inner
def _trade(random: I64, group_size: int, num_nodes: int, slots: I64) -> None:
    """Let two groups of different nodes trade all their `slots` [P], expert by expert, and by
    chance two more.
    """
    # The first draws of small numbers are much alike.
    _draw(random)
    num_slots = slots.shape[0]
    slots_per_node = num_slots // num_nodes
    again = True
    while again:
        slot = _below(random, num_slots)
        beyond = slots_per_node + _below(random, num_slots - slots_per_node)
        first = slot // slots_per_node * slots_per_node
        group = slots[slot] // group_size
        other = slots[(first + beyond) % num_slots] // group_size
        apart = (other - group) * group_size
        for at in range(num_slots):
            of = slots[at] // group_size
            if of == group:
                slots[at] += apart
            elif of == other:
                slots[at] -= apart
        again = _below(random, int(_SIDES)) == 0


@inner
def _shake(
    random: I64, task: Task, row: int, gpu_of: I64, slots: I64, copies: I64, holds: I64
) -> None:
    """Shake `slots` [P], on the GPUs `gpu_of` [P]; `copies` [E] and `holds` [G, E] are scratch."""
    num_slots, wishes = slots.shape[0], task.wishes
    slots_per_node = num_slots // task.num_nodes
    row %= wishes.least.shape[0]
    least, most = wishes.least[row], wishes.most[row]
    copies[:] = 0
    holds[:] = 0
    # What a GPU may not hold counts as held.
    for gpu in range(wishes.barred.shape[1]):
        for expert in range(copies.shape[0]):
            holds[gpu, expert] = np.int64(wishes.barred[row, gpu, expert])
    for slot in range(num_slots):
        copies[slots[slot]] += 1
        _hold(wishes.apart[row], holds[gpu_of[slot]], slots[slot], np.int64(1))
    for _ in range(_SHAKES * num_slots):
        slot = _below(random, num_slots)
        other = slot // slots_per_node * slots_per_node + _below(random, slots_per_node)
        gpu, host = gpu_of[slot], gpu_of[other]
        old, new = slots[slot], slots[other]
        if holds[gpu, new] > 0:
            continue
        spare = copies[old] > least[old] and copies[new] < most[new]
        if spare and _below(random, int(_SIDES)) == 0:
            copies[old] -= 1
            copies[new] += 1
        elif holds[host, old] == 0:
            slots[other] = old
            _hold(wishes.apart[row], holds[host], new, np.int64(-1))
            _hold(wishes.apart[row], holds[host], old, np.int64(1))
        else:
            continue
        slots[slot] = new
        _hold(wishes.apart[row], holds[gpu], old, np.int64(-1))
        _hold(wishes.apart[row], holds[gpu], new, np.int64(1))


@inner
def _hold(apart: I64, holds: I64, expert: int, by: int) -> None:
    """Count an expert, and those that it must be apart from, as held by a GPU, or no longer."""
    holds[expert] += by
    for i in range(apart.shape[1]):
        if apart[expert, i] >= 0:
            holds[apart[expert, i]] += by
