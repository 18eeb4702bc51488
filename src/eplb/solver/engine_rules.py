"""Rules by which engines send each source's tokens of an expert to one of its copies: which copy,
and what part of the expert's tokens each copy takes of that.

SGLang's rule draws, in the order of layers and experts, for sources that have no copy near. As
expected, each copy then takes the same. What was drawn follows from words of 32 random bits, which
are read as Python's `random.Random` reads them.
"""

import numpy as np

from eplb.solver.jit import inner, kernel
from eplb.solver.packing import F64, I64, B, _copy

__all__ = ["ASCEND", "SGLANG", "expected_parts"]

SGLANG, ASCEND = 0, 1
"""Rules, as kernels know them."""

_CERTAIN = 0.0
"""Caution of what is expected, no more and no less."""
_SMALL_SAMPLE, _SMALL_POOL = 5, 21
"""Samples of at most so many are drawn from a copy of the population where that is this large, and
from a larger one by remembering what was drawn; the pool of larger samples grows by 4 ** n."""


def expected_parts(phy2log: I64, num_experts: int, num_gpus: int, num_nodes: int, rule: int) -> F64:
    """[L, P] the part of its expert's tokens that each slot of `phy2log` [L, P] takes by a rule as
    expected, where as many come from each GPU.
    """
    split = np.empty(phy2log.shape)
    _part_layers(rule, np.array(phy2log), num_experts, num_gpus, num_nodes, split)
    return split


@inner
def _parts(
    rule: int, hosts: I64, number: int, num_gpus: int, per_node: int, caution: float, parts: F64
) -> None:
    """Fill the `parts` [n] of an expert's tokens that its copies take, which are so many and on
    GPUs `hosts` [n] in rising order.

    With some `caution`, a copy that may be drawn by one source more than another takes so many
    standard deviations of what it is drawn by in addition.
    """
    if rule == ASCEND:
        distinct = 1
        for i in range(1, number):
            distinct += int(hosts[i] != hosts[i - 1])
        place = 0
        for i in range(number):
            parts[i] = 0.0
            # The engine knows one copy on a GPU, the last.
            if i + 1 == number or hosts[i + 1] != hosts[i]:
                parts[i] = ((num_gpus - place + distinct - 1) // distinct) / num_gpus
                place += 1
        return
    apart = hosts[0] // per_node != hosts[number - 1] // per_node
    drawing = num_gpus
    i = 0
    while i < number:
        node, first, left = hosts[i] // per_node, i, per_node
        while i < number and hosts[i] // per_node == node:
            parts[i] = 0.0
            if i == first or hosts[i] != hosts[i - 1]:
                parts[i] = 1.0
                left -= 1
                drawing -= 1
            i += 1
        if apart:
            parts[first] += left
            drawing -= left
    drawn = drawing / number
    chance = (drawing % number) / number
    drawn += caution * np.sqrt(chance * (1.0 - chance))
    for i in range(number):
        parts[i] = (parts[i] + drawn) / num_gpus


@kernel
def _part_layers(
    rule: int, phy2log: I64, num_experts: int, num_gpus: int, num_nodes: int, split: F64
) -> None:
    """Fill what `expected_parts` gives, `split` [L, P]."""
    num_layers, num_slots = phy2log.shape
    slots_per_gpu = num_slots // num_gpus
    per_node = num_gpus // num_nodes
    number = np.empty(num_experts, np.int64)
    slots = np.empty((num_experts, num_slots), np.int64)
    hosts, parts = np.empty(num_slots, np.int64), np.empty(num_slots)
    for layer in range(num_layers):
        number[:] = 0
        for slot in range(num_slots):
            expert = phy2log[layer, slot]
            slots[expert, number[expert]] = slot
            number[expert] += 1
        for expert in range(num_experts):
            for i in range(number[expert]):
                hosts[i] = slots[expert, i] // slots_per_gpu
            _parts(rule, hosts, number[expert], num_gpus, per_node, _CERTAIN, parts)
            for i in range(number[expert]):
                split[layer, slots[expert, i]] = parts[i]


@kernel
def _sglang_layers(log2phy: I64, slots_per_gpu: int, per_node: int, words: I64, table: I64) -> bool:
    """Fill SGLang's `table` [L, G, E] of slots `log2phy` [L, E, X], padded with -1, where a node
    has so many GPUs. Return whether the random `words` were enough.
    """
    num_layers, num_gpus, num_experts = table.shape
    most = log2phy.shape[2]
    read = np.zeros(1, np.int64)
    chosen = np.empty(num_gpus, np.int64)
    pool, drawn = np.empty(most, np.int64), np.empty(most, np.bool_)
    for layer in range(num_layers):
        for gpu in range(num_gpus):
            for expert in range(num_experts):
                table[layer, gpu, expert] = log2phy[layer, expert, 0]
        for expert in range(num_experts):
            slots = log2phy[layer, expert]
            number = 1
            while number < most and slots[number] >= 0:
                number += 1
            if number == 1:
                continue
            left = num_gpus
            for gpu in range(num_gpus):
                slot = _near_slot(slots[:number], gpu, slots_per_gpu, per_node)
                table[layer, gpu, expert] = slot
                left -= int(slot >= 0)
            if left == 0:
                continue
            if not _choose(slots[:number], left, words, read, chosen, pool, drawn):
                return False
            place = 0
            for gpu in range(num_gpus):
                if table[layer, gpu, expert] < 0:
                    table[layer, gpu, expert] = chosen[place]
                    place += 1
    return True


@inner
def _near_slot(slots: I64, gpu: int, slots_per_gpu: int, per_node: int) -> int:
    """The slot that a GPU sends an expert's tokens to without a draw, or -1: the first on the GPU
    itself, or the first on its node where others are elsewhere.
    """
    number = slots.shape[0]
    node, on_node = gpu // per_node, np.int64(-1)
    for i in range(number):
        host = slots[i] // slots_per_gpu
        if host == gpu:
            return int(slots[i])
        if on_node < 0 and host // per_node == node:
            on_node = slots[i]
    node_slots = slots_per_gpu * per_node
    return int(on_node) if slots[0] // node_slots != slots[number - 1] // node_slots else -1


@inner
def _choose(slots: I64, left: int, words: I64, read: I64, chosen: I64, pool: I64, drawn: B) -> bool:
    """Fill so many `chosen` of the slots, each as often as any other but for one, in drawn order,
    as `random.sample` of those that are once more and `random.shuffle` of all do.
    """
    number = slots.shape[0]
    whole = left // number * number
    for i in range(whole):
        chosen[i] = slots[i % number]
    more = left - whole
    limit = _SMALL_POOL
    if more > _SMALL_SAMPLE:
        power = 1
        while power < 3 * more:
            power *= 4
        limit += power
    _copy(slots, pool)
    drawn[:number] = False
    for i in range(more):
        if number <= limit:
            j = _next_below(words, read, number - i)
            if j < 0:
                return False
            chosen[whole + i] = pool[j]
            pool[j] = pool[number - i - 1]
        else:
            j = _next_below(words, read, number)
            while j >= 0 and drawn[j]:
                j = _next_below(words, read, number)
            if j < 0:
                return False
            drawn[j] = True
            chosen[whole + i] = slots[j]
    for i in range(left - 1, 0, -1):
        j = _next_below(words, read, i + 1)
        if j < 0:
            return False
        chosen[i], chosen[j] = chosen[j], chosen[i]
    return True


@inner
def _next_below(words: I64, read: I64, number: int) -> int:
    """The next random whole number below `number`, -1 where there are no more words."""
    shift = 32
    while number >> (32 - shift) > 0:
        shift -= 1
    while read[0] < words.shape[0]:
        value = words[read[0]] >> shift
        read[0] += 1
        if value < number:
            return int(value)
    return -1
