"""Swaps and hand-overs together: the thorough part of improving, a tabu search on the busiest GPU.

A *hand-over* gives a slot from one expert to another, so replica counts change with the packing.
Each step takes the busiest GPU and makes the move that most lowers the excess, the sum over GPUs of
(load above a target)^2: swap one of its replicas with another GPU's, give an expert of it one more
replica in a slot elsewhere, or hand one of its slots to another expert. The best move is made even
where it is for the worse, and what has left a GPU may not come back for some steps, so the search
walks out of dead ends; the best packing met is kept. No randomness: the same input, the same walk.

Source: Glover, "Tabu search, part I", 1989.
"""

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.packing import F64, LONGEST_BAR, Packing, SearchScratch, _excess, _peak

__all__: list[str] = []

_AIM = 0.5
"""The target, as a share of the way from the bound to the best peak so far."""

_WORK = 200_000
"""Looks at a slot or an expert, for one layer, so that its time is bounded whatever its size."""
_FEWEST_STEPS = 8
"""Where the work allows fewer steps than this, they would change little: none is made."""

_PATIENCE = 2
"""The search ends when one part of so many of all its steps has brought no new best
(docs/experiments.md, replica counts)."""

_NONE, _SWAP, _GIVE, _TAKE = -1, 0, 1, 2


@inner
def _search(packing: Packing, bound: float, enough: float, scratch: SearchScratch) -> None:
    """Search from `packing` until no GPU is above `enough` or the work is spent.

    `packing` becomes the best found: weight, copies, share, slots and load are right after it,
    while ranks are no longer sorted. It neither reads nor keeps first and gpu_of.
    """
    count, slots, load = packing.copies, packing.slots, packing.load
    num_gpus, slots_per_gpu = slots.shape
    num_experts = count.shape[0]
    holds, best = scratch.holds, scratch.best
    for expert in range(num_experts):
        _set_count(packing, scratch, expert, count[expert])
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            holds[slots[gpu, slot], gpu] = True
            best[gpu, slot] = slots[gpu, slot]
    bar = min(LONGEST_BAR - 4, 3 + num_gpus // 3)
    scratch.step[0] += LONGEST_BAR  # no bar of the layer before holds
    lowest = _peak(load)
    target = bound + _AIM * (lowest - bound)
    steps = _affordable_steps(num_experts, num_gpus, slots_per_gpu)
    last_best = 0
    for step in range(steps):
        if lowest <= enough or step - last_best > steps // _PATIENCE:
            break
        scratch.step[0] += 1
        _weigh(packing, target, scratch)
        busiest = _busiest(load)
        move = _best_move(packing, target, busiest, scratch)
        # Bars of changing length keep the walk from going round in circles.
        _make_move(packing, busiest, move, bar + 7 * step % 5, scratch)
        peak = _peak(load)
        if peak < lowest * (1.0 - 1e-12):
            lowest = peak
            last_best = step
            target = bound + _AIM * (lowest - bound)
            for gpu in range(num_gpus):
                for slot in range(slots_per_gpu):
                    best[gpu, slot] = slots[gpu, slot]
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            holds[slots[gpu, slot], gpu] = False
            slots[gpu, slot] = best[gpu, slot]
    _recompute(packing)


@inner
def _affordable_steps(num_experts: int, num_gpus: int, slots_per_gpu: int) -> int:
    """Steps that the work allows, 0 where they are too few to change much."""
    step_work = num_gpus * slots_per_gpu * (2 * slots_per_gpu + 1) + slots_per_gpu * num_experts
    steps = _WORK // step_work
    return steps if steps >= _FEWEST_STEPS else 0


@inner
def _busiest(load: F64) -> int:
    """The busiest GPU, the first of them."""
    busiest = 0
    for gpu in range(1, load.shape[0]):
        if load[gpu] > load[busiest]:
            busiest = gpu
    return busiest


@inner
def _recompute(packing: Packing) -> None:
    """Set copies, share and load from weight and slots."""
    num_gpus, slots_per_gpu = packing.slots.shape
    for expert in range(packing.copies.shape[0]):
        packing.copies[expert] = 0
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            packing.copies[packing.slots[gpu, slot]] += 1
    for expert in range(packing.copies.shape[0]):
        packing.share[expert] = packing.weight[expert] / packing.copies[expert]
    for gpu in range(num_gpus):
        packing.load[gpu] = 0.0
        for slot in range(slots_per_gpu):
            packing.load[gpu] += packing.share[packing.slots[gpu, slot]]


@inner
def _set_count(packing: Packing, scratch: SearchScratch, expert: int, count: int) -> None:
    """Give an expert a replica count, and everything that follows from it."""
    weight = packing.weight[expert]
    packing.copies[expert] = count
    packing.share[expert] = weight / count
    scratch.more[expert] = weight / count - weight / (count + 1)
    scratch.fewer[expert] = weight / (count - 1) - weight / count if count > 1 else 0.0


@inner
def _weigh(packing: Packing, target: float, scratch: SearchScratch) -> None:
    """Fill `relief` and `burden` of every expert."""
    relief, burden = scratch.relief, scratch.burden
    for expert in range(relief.shape[0]):
        relief[expert] = 0.0
        burden[expert] = 0.0
    for gpu in range(packing.load.shape[0]):
        load = packing.load[gpu]
        now = _excess(load - target)
        for slot in range(packing.slots.shape[1]):
            expert = packing.slots[gpu, slot]
            if now > 0.0:
                relief[expert] += now - _excess(load - scratch.more[expert] - target)
            if load + scratch.fewer[expert] > target:
                burden[expert] += _excess(load + scratch.fewer[expert] - target) - now


@inner
def _best_move(
    packing: Packing, target: float, busiest: int, scratch: SearchScratch
) -> tuple[int, int, int, int]:
    """The move for the busiest GPU that leaves the least excess and is not barred.

    Returns (kind, slot of the busiest GPU, other GPU, its slot), where _TAKE has the busiest GPU
    and the receiving expert in the last two places; kind is _NONE where there is none.
    """
    count, share, slots, load = packing.copies, packing.share, packing.slots, packing.load
    holds, barred, more, fewer = scratch.holds, scratch.barred, scratch.more, scratch.fewer
    relief, burden = scratch.relief, scratch.burden
    num_gpus, slots_per_gpu = slots.shape
    step = scratch.step[0]
    here = _excess(load[busiest] - target)
    least = np.inf
    move = (_NONE, 0, 0, 0)
    for slot in range(slots_per_gpu):
        expert = slots[busiest, slot]
        new_share = share[expert] - more[expert]
        relieved = _excess(load[busiest] - more[expert] - target)
        for gpu in range(num_gpus):
            if holds[expert, gpu] or barred[expert, gpu] >= step:
                continue
            there = _excess(load[gpu] - target)
            for other in range(slots_per_gpu):
                partner = slots[gpu, other]
                change = share[expert] - share[partner]
                if change > 0.0 and not holds[partner, busiest] and barred[partner, busiest] < step:
                    value = (
                        _excess(load[busiest] - change - target)
                        + _excess(load[gpu] + change - target)
                        - here
                        - there
                    )
                    if value < least:
                        least = value
                        move = (_SWAP, slot, gpu, other)
                if count[partner] > 1:
                    value = burden[partner] - relief[expert]
                    if load[gpu] + fewer[partner] > target:
                        value -= _excess(load[gpu] + fewer[partner] - target) - there
                    value += _excess(load[gpu] - share[partner] + new_share - target) - there
                    if holds[partner, busiest]:
                        value += here - relieved
                        value += _excess(load[busiest] - more[expert] + fewer[partner] - target)
                        value -= _excess(load[busiest] + fewer[partner] - target)
                    if value < least:
                        least = value
                        move = (_GIVE, slot, gpu, other)
        if count[expert] > 1:
            left = burden[expert] - _excess(load[busiest] + fewer[expert] - target)
            for other in range(count.shape[0]):
                if holds[other, busiest] or barred[other, busiest] >= step:
                    continue
                new_load = load[busiest] - share[expert] + share[other] - more[other]
                value = left - relief[other] + _excess(new_load - target)
                if value < least:
                    least = value
                    move = (_TAKE, slot, busiest, other)
    return move


@inner
def _make_move(
    packing: Packing,
    busiest: int,
    move: tuple[int, int, int, int],
    bar: int,
    scratch: SearchScratch,
) -> None:
    """Make a move, and bar what leaves a GPU from it for `bar` steps."""
    kind, slot, gpu, other = move
    if kind == _SWAP:
        _exchange(packing, busiest, slot, gpu, other, bar, scratch)
    elif kind == _GIVE:
        _hand_over(packing, gpu, other, packing.slots[busiest, slot], bar, scratch)
    elif kind == _TAKE:
        _hand_over(packing, busiest, slot, other, bar, scratch)


@inner
def _exchange(
    packing: Packing, gpu: int, slot: int, other: int, place: int, bar: int, scratch: SearchScratch
) -> None:
    """Swap the replica in a slot of `gpu` with the one in slot `place` of `other`."""
    slots, load, holds = packing.slots, packing.load, scratch.holds
    expert, partner = slots[gpu, slot], slots[other, place]
    change = packing.share[expert] - packing.share[partner]
    slots[gpu, slot] = partner
    slots[other, place] = expert
    holds[expert, gpu] = False
    holds[expert, other] = True
    holds[partner, other] = False
    holds[partner, gpu] = True
    load[gpu] -= change
    load[other] += change
    scratch.barred[expert, gpu] = scratch.step[0] + bar
    scratch.barred[partner, other] = scratch.step[0] + bar


@inner
def _hand_over(
    packing: Packing, gpu: int, slot: int, receiver: int, bar: int, scratch: SearchScratch
) -> None:
    """Give a slot to `receiver`; every GPU that holds it or the giver gets its new load."""
    giver = packing.slots[gpu, slot]
    load, holds = packing.load, scratch.holds
    for i in range(load.shape[0]):
        if i != gpu and holds[giver, i]:
            load[i] += scratch.fewer[giver]
        if holds[receiver, i]:
            load[i] -= scratch.more[receiver]
    load[gpu] -= packing.share[giver]
    packing.slots[gpu, slot] = receiver
    holds[giver, gpu] = False
    holds[receiver, gpu] = True
    scratch.barred[giver, gpu] = scratch.step[0] + bar
    _set_count(packing, scratch, giver, packing.copies[giver] - 1)
    _set_count(packing, scratch, receiver, packing.copies[receiver] + 1)
    load[gpu] += packing.share[receiver]
