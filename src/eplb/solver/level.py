"""The most even loads of GPUs that a placement allows, when the tokens of an expert may be split
over its copies in any parts.

Of all splits one makes the loads of GPUs as even as can be; it minimises every convex function of
them at once, so the peak too, and it is the optimum of the linear programme that minimises the
peak. Water-filling comes near it: each copied expert in turn is spread over its GPUs so that their
levels are alike. It is slow to end where copies join GPUs of nearly one level, so two rounds of it
are only the start. Then a block of GPUs, at first all of them, is brought to its mean: load is
pushed along paths of copies, from a GPU above the mean to one below. Where no path is left, the
GPUs that can be reached from those above the mean hold nothing that could be anywhere else: they
are a block of their own, and so are the others. A block that is level is done; the level of the
highest one is the peak, and what it holds proves it.

Where GPUs are not as fast, the level of one is its load over its pace: a block holds load as its
GPUs are fast together, and what is pushed lowers the level of a fast GPU less than it raises that
of a slow one.

Source: decomposition of a base polytope (S. Fujishige, "Lexicographically optimal base of a
polymatroid with respect to a weight vector", 1980), here with augmenting paths for the flow.
"""

from typing import NamedTuple

import numpy as np

from eplb.solver.jit import allocating, inner, kernel
from eplb.solver.packing import F64, I64, Gpus

__all__: list[str] = []

_ROUNDS = 2
"""Rounds of water-filling before paths are looked for (docs/experiments.md, dispatch)."""
_ROUNDING = 1e-13
"""Of the mean: loads nearer to each other than this are the same."""


class Edges(NamedTuple):
    """Who is where in one layer: an edge is an expert on a GPU, however many copies of it are
    there. Those of an expert stand together, by GPU.
    """

    first: I64
    """[E + 1] where an expert's edges begin."""
    number: I64
    """[E] GPUs that hold an expert."""
    gpu_of: I64
    """[P] GPU of an edge."""
    expert_of: I64
    """[P] expert of an edge."""
    copies: I64
    """[P] slots of an edge."""
    of_slot: I64
    """[P] edge of a slot that is not empty."""
    copied: I64
    """[E] experts that are on several GPUs, as many as `_find_edges` says."""


class Levelling(NamedTuple):
    """What levelling a layer takes."""

    edges: Edges
    gpu_first: I64
    """[G + 1] where a GPU's edges of experts on several GPUs begin in the next, [P]."""
    gpu_edges: I64
    flow: F64
    """[P] what goes over an edge."""
    alive: I64
    """[G] the GPUs that hold anything, as many as `_take_up` says."""
    scratch: I64
    """[7, G]"""
    blocks: I64
    """[G + 1, 2] scratch: blocks that are not done."""
    pace: F64
    """[G] how fast a GPU is, 1 on average, and 1 over that in the next."""
    rate: F64


@allocating
def _new_edges(num_experts: int, num_slots: int) -> Edges:
    return Edges(
        np.empty(num_experts + 1, np.int64),
        np.empty(num_experts, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_experts, np.int64),
    )


@allocating
def _new_levelling(num_experts: int, gpus: Gpus) -> Levelling:
    num_gpus, num_slots = gpus.pace.shape[0], gpus.first[-1]
    return Levelling(
        _new_edges(num_experts, num_slots),
        np.empty(num_gpus + 1, np.int64),
        np.empty(num_slots, np.int64),
        np.empty(num_slots),
        np.empty(num_gpus, np.int64),
        np.empty((7, num_gpus), np.int64),
        np.empty((num_gpus + 1, 2), np.int64),
        gpus.pace,
        1.0 / gpus.pace,
    )


@inner
def _take_up(by: Levelling, row: I64, gpu_slots: I64) -> tuple[int, int]:
    """Take up the slots [P] of a layer, those of GPU g from `gpu_slots[g]` [G + 1] on; return how
    many experts are on several GPUs, and how many GPUs hold anything.
    """
    num_copied = _find_edges(row, gpu_slots, by.edges)
    num_alive = _edges_of_gpus(row, gpu_slots, by.edges, by.gpu_first, by.gpu_edges, by.alive)
    return num_copied, num_alive


@inner
def _level_window(
    by: Levelling, load: F64, num_copied: int, num_alive: int, only_peak: bool, level: F64
) -> float:
    """Level a window of loads [E]: fill the flows and the `level` [G] of GPUs, load over pace, and
    return what is proven of the peak.
    """
    _fill(by, load, num_copied, level)
    return _level(by, load, by.alive[:num_alive], only_peak, level)


@kernel
def _level_layers(
    layers: I64,
    loads: F64,
    phy2log: I64,
    gpus: Gpus,
    only_peak: bool,
    levels: F64,
    split: F64,
    bounds: F64,
) -> None:
    """Level `layers` of `loads` [T, L, E], each window for itself.

    It fills `levels` [T, L, G], loads over paces, `bounds` [T, L], proven to be no higher than the
    highest of these, and `split` [T, L, P], or nothing of it where its first axis is 0. With
    `only_peak`, GPUs below the peak are left as they are then. Slots of -1 hold nothing, and a GPU
    of such slots takes part in nothing.
    """
    num_windows, _, num_experts = loads.shape
    num_slots = phy2log.shape[1]
    by = _new_levelling(num_experts, gpus)
    edges, flow = by.edges, by.flow
    first = edges.first
    for layer in layers:
        row = phy2log[layer]
        num_copied, num_alive = _take_up(by, row, gpus.first)
        for window in range(num_windows):
            bounds[window, layer] = _level_window(
                by, loads[window, layer], num_copied, num_alive, only_peak,
                levels[window, layer],
            )  # fmt: skip
            if split.shape[0] > 0:
                for slot in range(num_slots):
                    expert = row[slot]
                    if expert < 0:
                        split[window, layer, slot] = 0.0
                        continue
                    edge = edges.of_slot[slot]
                    total = 0.0
                    slots = 0
                    for other in range(first[expert], first[expert + 1]):
                        total += flow[other]
                        slots += edges.copies[other]
                    part = flow[edge] / total / edges.copies[edge] if total > 0.0 else 1.0 / slots
                    split[window, layer, slot] = part


@inner
def _find_edges(row: I64, gpu_slots: I64, edges: Edges) -> int:
    """Fill the edges of a layer from its slots [P], -1 where a slot is empty, those of GPU g from
    `gpu_slots[g]` on; return how many experts are on several GPUs.
    """
    first, filled, gpu_of, expert_of, copies, edge_of_slot, copied = edges
    num_experts, num_gpus = filled.shape[0], gpu_slots.shape[0] - 1
    for expert in range(num_experts):
        filled[expert] = 0
        first[expert] = -1  # the GPU that an edge was last counted on
    for gpu in range(num_gpus):
        for slot in range(gpu_slots[gpu], gpu_slots[gpu + 1]):
            expert = row[slot]
            if expert >= 0 and first[expert] != gpu:
                first[expert] = gpu
                filled[expert] += 1
    num_copied = 0
    start = 0
    for expert in range(num_experts):
        if filled[expert] > 1:
            copied[num_copied] = expert
            num_copied += 1
        first[expert] = start
        start += filled[expert]
        filled[expert] = 0
    first[num_experts] = start
    for gpu in range(num_gpus):
        for slot in range(gpu_slots[gpu], gpu_slots[gpu + 1]):
            expert = row[slot]
            if expert < 0:
                continue
            edge = first[expert] + filled[expert] - 1
            if filled[expert] == 0 or gpu_of[edge] != gpu:
                edge += 1
                filled[expert] += 1
                gpu_of[edge] = gpu
                expert_of[edge] = expert
                copies[edge] = 0
            copies[edge] += 1
            edge_of_slot[slot] = edge
    return num_copied


@inner
def _edges_of_gpus(
    row: I64, gpu_slots: I64, edges: Edges, gpu_first: I64, gpu_edges: I64, alive: I64
) -> int:
    """Edges of experts on several GPUs, those of GPU g at `gpu_first[g]` to `gpu_first[g + 1]`; and
    the GPUs that hold anything, in `alive`.
    """
    num_alive = 0
    number = 0
    for gpu in range(gpu_first.shape[0] - 1):
        gpu_first[gpu] = number
        holds = False
        for slot in range(gpu_slots[gpu], gpu_slots[gpu + 1]):
            expert = row[slot]
            if expert < 0:
                continue
            holds = True
            edge = edges.of_slot[slot]
            if edges.number[expert] < 2:
                continue
            seen = False
            for i in range(gpu_first[gpu], number):
                seen = seen or gpu_edges[i] == edge
            if not seen:
                gpu_edges[number] = edge
                number += 1
        if holds:
            alive[num_alive] = gpu
            num_alive += 1
    gpu_first[gpu_first.shape[0] - 1] = number
    return num_alive


@inner
def _fill(by: Levelling, load: F64, num_copied: int, level: F64) -> None:
    """Rounds of water-filling, from nothing."""
    first, gpu_of, flow, order = by.edges.first, by.edges.gpu_of, by.flow, by.scratch[0]
    pace, rate = by.pace, by.rate
    level[:] = 0.0
    for expert in range(load.shape[0]):
        if first[expert + 1] - first[expert] == 1:
            flow[first[expert]] = load[expert]
            gpu = gpu_of[first[expert]]
            level[gpu] += load[expert] * rate[gpu]
        else:
            for edge in range(first[expert], first[expert + 1]):
                flow[edge] = 0.0
    for _ in range(_ROUNDS):
        for i in range(num_copied):
            expert = by.edges.copied[i]
            begin, end = first[expert], first[expert + 1]
            n = 0
            for edge in range(begin, end):
                gpu = gpu_of[edge]
                level[gpu] -= flow[edge] * rate[gpu]
                j = n
                while j > 0 and level[gpu_of[order[j - 1]]] > level[gpu]:
                    order[j] = order[j - 1]
                    j -= 1
                order[j] = edge
                n += 1
            total = load[expert]
            height, width = 0.0, 0.0
            wet = 0
            for j in range(n):
                gpu = gpu_of[order[j]]
                total += level[gpu] * pace[gpu]
                width += pace[gpu]
                wet = j + 1
                height = total / width
                if wet < n and height <= level[gpu_of[order[wet]]]:
                    break
            for j in range(n):
                edge = order[j]
                gpu = gpu_of[edge]
                flow[edge] = max(0.0, (height - level[gpu]) * pace[gpu]) if j < wet else 0.0
                level[gpu] += flow[edge] * rate[gpu]


@inner
def _level(by: Levelling, load: F64, alive: I64, only_peak: bool, level: F64) -> float:
    """Level blocks of GPUs until each is one; return what the highest block proves."""
    first, gpu_of, expert_of = by.edges.first, by.edges.gpu_of, by.edges.expert_of
    gpu_first, gpu_edges, flow, blocks = by.gpu_first, by.gpu_edges, by.flow, by.blocks
    pace, rate = by.pace, by.rate
    member, block_of, seen, from_edge, to_edge, queue, moved = by.scratch
    total = 0.0
    for i in range(alive.shape[0]):
        member[i] = alive[i]
        total += level[alive[i]] * pace[alive[i]]
    block_of[:] = -1
    for i in range(alive.shape[0]):
        block_of[alive[i]] = 0
    if total == 0.0:
        return 0.0
    rounding = _ROUNDING * total / alive.shape[0]
    num_blocks = 1
    waiting = 1
    blocks[0, 0], blocks[0, 1] = 0, alive.shape[0]
    highest = -1.0
    proven = 0.0
    while waiting > 0:
        waiting -= 1
        begin, end = blocks[waiting]
        block = block_of[member[begin]]
        total, width = 0.0, 0.0
        for i in range(begin, end):
            total += level[member[i]] * pace[member[i]]
            width += pace[member[i]]
            seen[member[i]] = -1
        mean = total / width
        num_dead = 0
        for i in range(begin, end):
            source = member[i]
            while level[source] > mean + rounding and seen[source] != -2:
                # Breadth first, so that paths are short. GPUs that were found to lead nowhere are
                # marked -2: no push along other paths opens a way out of them.
                head, tail = 0, 1
                queue[0] = source
                seen[source] = i
                sink = -1
                while head < tail and sink < 0:
                    gpu = queue[head]
                    head += 1
                    for j in range(gpu_first[gpu], gpu_first[gpu + 1]):
                        edge = gpu_edges[j]
                        if flow[edge] <= rounding:
                            continue
                        expert = expert_of[edge]
                        for other in range(first[expert], first[expert + 1]):
                            target = gpu_of[other]
                            if block_of[target] != block or seen[target] == i or seen[target] == -2:
                                continue
                            seen[target] = i
                            from_edge[target] = edge
                            to_edge[target] = other
                            queue[tail] = target
                            tail += 1
                            if level[target] < mean - rounding:
                                sink = target
                                break
                        if sink >= 0:
                            break
                if sink < 0:
                    for j in range(tail):
                        seen[queue[j]] = -2
                    num_dead += tail
                    break
                amount = min(
                    (level[source] - mean) * pace[source], (mean - level[sink]) * pace[sink]
                )
                gpu = sink
                while gpu != source:
                    amount = min(amount, flow[from_edge[gpu]])
                    gpu = gpu_of[from_edge[gpu]]
                gpu = sink
                while gpu != source:
                    flow[from_edge[gpu]] -= amount
                    flow[to_edge[gpu]] += amount
                    gpu = gpu_of[from_edge[gpu]]
                level[source] -= amount * rate[source]
                level[sink] += amount * rate[sink]
                for j in range(tail):
                    seen[queue[j]] = -1
        if num_dead == 0 or num_dead == end - begin:
            if mean > highest:
                highest = mean
                proven = _held_by(load, first, gpu_of, block_of, block) / width
            continue
        # The GPUs that hold too much first, in a block of their own; the others after them.
        kept = 0
        place = begin
        for i in range(begin, end):
            if seen[member[i]] == -2:
                member[place] = member[i]
                place += 1
            else:
                moved[kept] = member[i]
                kept += 1
        for i in range(kept):
            member[place + i] = moved[i]
        for i in range(begin, place):
            block_of[member[i]] = num_blocks
        num_blocks += 1
        if not only_peak:
            blocks[waiting, 0], blocks[waiting, 1] = place, end
            waiting += 1
        blocks[waiting, 0], blocks[waiting, 1] = begin, place
        waiting += 1
    return proven


@inner
def _held_by(load: F64, first: I64, gpu_of: I64, block_of: I64, block: int) -> float:
    """Load of the experts that are on GPUs of a block and on no others."""
    held = 0.0
    for expert in range(load.shape[0]):
        inside = first[expert] < first[expert + 1]
        for edge in range(first[expert], first[expert + 1]):
            inside = inside and block_of[gpu_of[edge]] == block
        if inside:
            held += load[expert]
    return held
