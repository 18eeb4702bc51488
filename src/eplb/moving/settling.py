"""When a received expert can leave its buffer for its slot, and which copies in a GPU that takes.

A slot may be overwritten once what it holds is needed no more: its GPU is to lose that expert, has
sent it to all that get it from there, and a GPU that keeps it has it whole; or another slot of the
GPU has it. Experts that stay on a GPU but change slots make chains, at whose ends such slots are.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.moving.transfers import Arrivals

_I64 = NDArray[np.int64]
_B = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Needs:
    """What stands in the way of overwriting: copies that GPUs are to lose, numbered 0 to C - 1.

    Attributes:
        number: [L, G, E] number of a copy that a GPU is to lose, -1 for any other.
        place: [C] layer and expert of such a copy, as layer * E + expert.
        safe: [L * E] whether a GPU has the expert before and after.
        blocks: [M, X] copies of which one must go before a received expert can have its slot; rows
            are filled up with their first. C stands for nothing in the way.
    """

    number: _I64
    place: _I64
    safe: _B
    blocks: _I64

    def leaving(self, change: Arrivals, source: _I64) -> _I64:
        """[M] number of the copy that is sent, -1 where the source keeps it."""
        number: _I64 = self.number[change.layer, source, change.expert]
        return number

    def gone(self, change: Arrivals, source: _I64, wave: _I64) -> _I64:
        """[C + 1] first wave before which a copy may be overwritten; 0 for the last, nothing."""
        num_copies = len(self.place)
        gone = np.zeros(num_copies + 1, np.int64)
        leaving = self.leaving(change, source)
        sent = leaving >= 0
        np.maximum.at(gone, leaving[sent], wave[sent] + 1)
        arrived = np.full(len(self.safe), np.iinfo(np.int64).max)
        np.minimum.at(arrived, change.layer * self.number.shape[2] + change.expert, wave + 1)
        arrived[self.safe] = 0
        np.maximum(gone[:-1], arrived[self.place], out=gone[:-1])
        return gone

    def until(self, gone: _I64, wave: _I64) -> _I64:
        """[M] the wave before which a received expert leaves its buffer."""
        if not len(wave):
            return wave
        until: _I64 = np.maximum(wave + 1, gone[self.blocks].min(axis=1))
        return until


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies inside GPUs, one a row, in an order in which they can be done.

    Attributes:
        wave: the wave before which it is done; the number of waves for those at the end.
        layer: its layer.
        gpu: its GPU.
        expert: what is copied.
        origin: where from: a slot of the GPU, or -1 - b for its buffer b.
        slot: where to, counted in the same way.
    """

    wave: _I64
    layer: _I64
    gpu: _I64
    expert: _I64
    origin: _I64
    slot: _I64


def needs_of(change: Arrivals) -> Needs:
    """What must go before each received expert can have its slot."""
    lost = change.had & ~change.keeps
    layer, _, expert = np.nonzero(lost)
    number = np.full(lost.shape, -1, np.int64)
    number[lost] = np.arange(len(layer))
    there = change.old[change.layer, change.target, change.slot]
    first = np.array(
        [
            number[lay, gpu, held] if held >= 0 else len(layer)
            for lay, gpu, held in zip(change.layer, change.target, there, strict=True)
        ],
        np.int64,
    ).reshape(-1)
    rows: dict[int, list[int]] = {}
    before = change.old[change.layer, change.target]
    earlier = (before == there[:, None]) & (np.arange(before.shape[1]) < change.slot[:, None])
    for row in np.flatnonzero((there >= 0) & (earlier.any(axis=1) | (first < 0))).tolist():
        at = change.layer[row], change.target[row]
        ends = _ends(
            change.old[at].tolist(), change.new[at].tolist(), number[at], int(change.slot[row])
        )
        rows[row] = [len(layer)] if -1 in ends else sorted(ends)
    blocks = np.repeat(first[:, None], max(map(len, rows.values()), default=1), axis=1)
    for row, copies in rows.items():
        blocks[row] = copies[0]
        blocks[row, : len(copies)] = copies
    place = layer * lost.shape[2] + expert
    return Needs(number, place, change.keeps.any(axis=1).ravel(), blocks)


def _homes(old: list[int], new: list[int]) -> dict[int, int]:
    """Of each expert on a GPU, the slot that is kept for it: one that it stays in, or the first."""
    homes: dict[int, int] = {}
    for slot in reversed(range(len(old))):
        held = old[slot]
        if held >= 0 and (new[slot] == held or held not in homes or new[homes[held]] != held):
            homes[held] = slot
    return homes


def _ends(old: list[int], new: list[int], number: _I64, start: int) -> set[int]:
    """Copies of which one must go before a slot can be overwritten; -1 if nothing need to."""
    homes = _homes(old, new)
    ends, slots = set(), [start]
    for slot in slots:
        held = old[slot]
        if held < 0 or homes[held] != slot:
            ends.add(-1)
        elif number[held] >= 0:
            ends.add(int(number[held]))
        else:
            # It stays on the GPU: once another slot that wants it has it, this one is free.
            slots += [other for other, wants in enumerate(new) if wants == held]
    return ends


def lay_out(target: _I64, wave: _I64, until: _I64, num_gpus: int) -> tuple[_I64, _I64]:
    """[M] buffer of each received expert, the lowest that is free, and [G] how many a GPU needs.

    Args:
        target: [M] the GPU that receives.
        wave: [M] the wave in which it does.
        until: [M] the wave before which the expert leaves the buffer.
        num_gpus: G.
    """
    buffer = np.zeros(len(target), np.int64)
    busy: list[list[int]] = [[] for _ in range(num_gpus)]
    ends, gpus, numbers = until.tolist(), target.tolist(), [0] * len(target)
    for row in np.argsort(wave, kind="stable").tolist():
        mine, begin = busy[gpus[row]], int(wave[row])
        free = next((at for at, end in enumerate(mine) if end <= begin), len(mine))
        mine[free : free + 1] = [ends[row]]
        numbers[row] = free
    buffer[:] = numbers
    return buffer, np.array([len(mine) for mine in busy], np.int64)


def copies_of(
    change: Arrivals, needs: Needs, wave: _I64, gone: _I64, buffer: _I64, num_waves: int
) -> Copies:
    """Every copy inside a GPU that leads to the new placement.

    Args:
        change: what changes.
        needs: what stands in the way.
        wave: [M] wave of each transfer.
        gone: [C + 1] first wave before which a copy may be overwritten.
        buffer: [M] buffer of each received expert.
        num_waves: how many waves there are.
    """
    row_of: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
    keys = zip(change.layer.tolist(), change.target.tolist(), change.expert.tolist(), strict=True)
    for row, (layer, gpu, expert) in enumerate(keys):
        row_of[layer, gpu][expert] = row
    changed = ((change.old != change.new) & (change.new >= 0)).any(axis=2)
    rows: list[tuple[int, ...]] = []
    waves, buffers = wave.tolist(), buffer.tolist()
    for layer, gpu in np.argwhere(changed).tolist():
        number = needs.number[layer, gpu]
        received = {
            expert: (waves[row] + 1, -1 - buffers[row])
            for expert, row in row_of.get((layer, gpu), {}).items()
        }
        old, new = change.old[layer, gpu].tolist(), change.new[layer, gpu].tolist()
        losing = {held: int(gone[number[held]]) for held in old if held >= 0 and number[held] >= 0}
        rows += [
            (when, layer, gpu, expert, origin, slot)
            for when, expert, origin, slot in _settle(old, new, received, losing, num_waves)
        ]
    table = np.array(rows, np.int64).reshape(-1, 6)
    table = table[np.argsort(table[:, 0], kind="stable")]
    np.minimum(table[:, 0], num_waves, out=table[:, 0])
    columns = np.ascontiguousarray(table.T)
    columns.flags.writeable = False
    return Copies(*columns)


def _settle(
    old: list[int],
    new: list[int],
    received: dict[int, tuple[int, int]],
    losing: dict[int, int],
    num_waves: int,
) -> list[tuple[int, int, int, int]]:
    """Copies on one GPU in one layer, each as soon as it can be: (wave, expert, origin, slot).

    The wave of those that come after all others is one more than there are.
    """
    content, homes = list(old), _homes(old, new)
    copies: list[tuple[int, int, int, int]] = []
    left = [slot for slot, wants in enumerate(new) if wants >= 0 and old[slot] != wants]

    def dead(slot: int, now: int) -> bool:
        held = content[slot]
        return held < 0 or homes.get(held) != slot or losing.get(held, now + 1) <= now

    def copy(now: int) -> bool:
        """Do the first copy that can be done."""
        for slot in left:
            wants = new[slot]
            if not dead(slot, now):
                continue
            if wants in homes:
                origin = homes[wants]
            elif wants in received and received[wants][0] <= now:
                origin = received[wants][1]
            else:
                continue
            if homes.get(content[slot]) == slot:
                del homes[content[slot]]
            copies.append((now, wants, origin, slot))
            content[slot] = wants
            homes[wants] = slot
            left.remove(slot)
            return True
        return False

    for now in sorted({0, *losing.values(), *(when for when, _ in received.values())}):
        while left and copy(now):
            pass
    # What is left changes places in circles, which a free buffer opens: all are, after the rest.
    while left:
        held = content[left[0]]
        copies.append((num_waves + 1, held, left[0], -1))
        homes[held] = -1
        while copy(num_waves + 1):
            pass
    return copies
