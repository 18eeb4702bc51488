"""A batch on a CPU: whole numbers of tokens for each copy of an expert, and the copy of each token.

This does what `eplb.torch.level` and `BatchDispatch` do in some hundreds of torch operations, which
take most of their time to be started. All numbers are whole ones, so the slots are the same.
"""

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import I64

__all__: list[str] = []

# What eplb.torch.level calls so.
_BITS = 12
_TOKEN = 1 << _BITS
_NO_GPU = 1 << 50
_STEPS = 20
_ROUNDS = 3
_MASK = (1 << 31) - 1
_KNUTH = 2654435761
_PADS = -1


@kernel
def _count_batch(ids: I64, num_ids: int, counts: I64) -> int:
    """Count the first `num_ids` of ids [N] of E experts into `counts` [E]; return the place of the
    first that is no expert and does not pad, -1 where there is none.
    """
    num_experts = counts.shape[0]
    counts[:] = 0
    wrong = -1
    for i in range(num_ids):
        expert = ids[i]
        if 0 <= expert < num_experts:
            counts[expert] += 1
        elif expert != _PADS and wrong < 0:
            wrong = i
    return wrong


@kernel
def _place_batch(
    ids: I64,
    num_ids: int,
    every: I64,
    rank: int,
    gpus: I64,
    experts: I64,
    class_ends: I64,
    alone: I64,
    most: int,
    num_gpus: int,
    of_slot: I64,
    part: I64,
    parts: I64,
    slots: I64,
    first_slot: I64,
    activated: bool,
    found: I64,
) -> None:
    """Fill `found` [N] with the slots that take the first `num_ids` of ids [N], and with -1 for
    what pads. `every` [R, E] are the counts of all ranks, this one's at `rank`; the other arrays
    are those of `eplb.torch.copies.Copies`.
    """
    num_ranks, num_experts = every.shape
    num_slots = of_slot.shape[0]
    width = gpus.shape[1]
    counts, place = np.zeros(num_experts, np.int64), np.zeros(num_experts, np.int64)
    for each in range(num_ranks):
        for expert in range(num_experts):
            counts[expert] += every[each, expert]
            if each < rank:
                place[expert] += every[each, expert]
    loads = np.zeros(num_experts + 1, np.int64)
    for expert in range(num_experts):
        loads[expert] = min(counts[expert], 1) if activated else counts[expert]
    flow = _level_tokens(loads, gpus, experts, class_ends, alone, most, num_gpus)
    # Where the tokens of each slot end in the queue of all ranks' tokens of its expert.
    ends = np.zeros(num_slots, np.int64)
    for expert in range(num_experts):
        end = 0
        for slot in range(first_slot[expert], first_slot[expert + 1]):
            source = of_slot[slot]
            takes = loads[source]
            if source > num_experts:
                row = (source - num_experts - 1) // width
                takes = flow[row, source - num_experts - 1 - row * width]
            takes = takes * (part[slot] + 1) // parts[slot] - takes * part[slot] // parts[slot]
            end += takes * counts[expert] if activated else takes
            ends[slot] = end
    at = first_slot.copy()
    found[:] = -1
    for i in range(num_ids):
        expert = ids[i]
        if not 0 <= expert < num_experts:
            continue
        slot = at[expert]
        while ends[slot] <= place[expert]:
            slot += 1
        at[expert] = slot
        place[expert] += 1
        found[i] = slots[slot]


@allocating
def _level_tokens(
    loads: I64, gpus: I64, experts: I64, class_ends: I64, alone: I64, most: int, num_gpus: int
) -> I64:
    """Tokens [C, X] that each GPU of a copied expert takes, of loads [E + 1], the last one 0."""
    num_rows, width = gpus.shape
    num_experts = loads.shape[0] - 1
    base = np.zeros(num_gpus + 1, np.int64)
    for expert in range(num_experts):
        if alone[expert] < num_gpus:
            base[alone[expert]] += loads[expert] << _BITS
    total = np.zeros(num_rows, np.int64)
    flow = np.zeros((num_rows, width), np.int64)
    for row in range(num_rows):
        total[row] = loads[experts[row]] << _BITS
        number = 0
        for i in range(width):
            number += int(gpus[row, i] < num_gpus)
        for i in range(width):
            flow[row, i] = total[row] // max(number, 1) if gpus[row, i] < num_gpus else 0
    ahead = flow.copy()
    load = np.zeros(num_gpus + 1, np.int64)
    height, taken = np.zeros(width, np.int64), np.zeros(width, np.int64)
    order = np.zeros(width, np.int64)
    for step in range(_STEPS):
        _add_up(base, gpus, ahead, load)
        for gpu in range(num_gpus):
            load[gpu] //= most
        momentum = (step << 10) // (step + 3)
        for row in range(num_rows):
            for i in range(width):
                height[i] = load[gpus[row, i]] - ahead[row, i]
            _fill_level(height, total[row], order, taken)
            for i in range(width):
                ahead[row, i] = taken[i] + ((taken[i] - flow[row, i]) * momentum >> 10)
                flow[row, i] = taken[i]
    _add_up(base, gpus, flow, load)
    key = 0
    for expert in range(num_experts):
        key += loads[expert] * _odd(expert + 1)
    key &= _MASK
    number = 0
    for _ in range(_ROUNDS):
        shifts = number
        for gpu in range(num_gpus + 1):
            number += 1
            load[gpu] += _shift(key, number)
        for which in range(class_ends.shape[0] - 1):
            for row in range(class_ends[which], class_ends[which + 1]):
                _fill_whole(load, gpus[row], total[row], flow[row], height, order, taken)
        for gpu in range(num_gpus + 1):
            load[gpu] -= _shift(key, shifts + gpu + 1)
    for row in range(num_rows):
        for i in range(width):
            flow[row, i] >>= _BITS
    return flow


@inner
def _odd(number: int) -> int:
    return (number * _KNUTH & _MASK) | 1


@inner
def _shift(key: int, number: int) -> int:
    """Less than half a token, which is added to the load of a GPU in a round."""
    return key * _odd(number) >> 20 & (_TOKEN // 2 - 1)


@inner
def _add_up(base: I64, gpus: I64, flow: I64, load: I64) -> None:
    """Loads of GPUs [G + 1], the last of which is none, by what copies [C, X] take."""
    num_gpus = load.shape[0] - 1
    for gpu in range(num_gpus):
        load[gpu] = base[gpu]
    for row in range(gpus.shape[0]):
        for i in range(gpus.shape[1]):
            load[gpus[row, i]] += flow[row, i]
    load[num_gpus] = _NO_GPU


@inner
def _fill_level(height: I64, total: int, order: I64, taken: I64) -> None:
    """How much each of GPUs [X] of these heights takes of a total, so that those that take any are
    filled to one height: the least of the heights that the lowest 1, 2, ... X would have.
    """
    width = height.shape[0]
    _sort(height, order)
    lowest, level = total, np.int64(_NO_GPU)
    for i in range(width):
        lowest += height[order[i]]
        level = min(level, lowest // (i + 1))
    for i in range(width):
        taken[i] = max(level - height[i], 0)


@inner
def _fill_whole(
    load: I64, gpus: I64, total: int, flow: I64, height: I64, order: I64, taken: I64
) -> None:
    """Level an expert's copies [X] anew in whole tokens, and the loads of GPUs with them."""
    width = gpus.shape[0]
    for i in range(width):
        height[i] = load[gpus[i]] - flow[i]
    _fill_level(height, total, order, taken)
    left = total
    for i in range(width):
        taken[i] &= -_TOKEN
        left -= taken[i]
        height[i] += taken[i]
    # The tokens that are left, fewer than GPUs, go to the lowest.
    _sort(height, order)
    for i in range(width):
        taken[order[i]] += _TOKEN if i << _BITS < left else 0
    for i in range(width):
        load[gpus[i]] += taken[i] - flow[i]
        flow[i] = taken[i]


@inner
def _sort(height: I64, order: I64) -> None:
    """Fill the order [X] of heights, of equal ones that of their places."""
    for i in range(height.shape[0]):
        j = i
        while j > 0 and height[order[j - 1]] > height[i]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = i
