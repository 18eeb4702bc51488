"""Who holds which expert in one layer, as arrays for a device that levels all experts at once.

Experts on several GPUs are put into classes, so that those of a class share no GPU: a class can be
levelled at once as if its experts came one after the other. All layers of a placement get arrays of
the same shapes, so that what was compiled or captured for one serves them all.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.dispatching.dispatch import Placed
from eplb.errors import PlacementError

I64 = NDArray[np.int64]


class Room(NamedTuple):
    """Sizes of arrays that are to serve placements to come. Of an expert with more copies the first
    are used, and of one that no class has room for, a single one.
    """

    width: int
    """Most GPUs of an expert that are used."""
    classes: int
    """Most classes."""
    rows: int
    """Most experts of a class."""


def usual_room(num_experts: int, num_slots: int, num_gpus: int) -> Room:
    """Room for what plans need: 5 to 8 classes and 3 to 8 GPUs of an expert, with 40 to 320 slots
    on 8 to 64 GPUs.
    """
    spare = max(1, num_slots - num_experts)
    return Room(min(num_gpus, spare + 1, 12), min(spare, 8), min(spare, max(1, num_gpus // 2)))


@dataclass(frozen=True)
class Copies:
    """One layer of a placement. C rows for experts on several GPUs, X of which an expert has at
    most; what pads a row is on GPU G, which is none.
    """

    gpus: I64
    """[C, X] GPUs of an expert that is on several, G where there are fewer."""
    experts: I64
    """[C] that expert, E where the row is empty."""
    classes: tuple[tuple[int, int], ...]
    """First row and the row after the last of each class."""
    alone: I64
    """[E] the GPU of an expert that is on one, else G."""
    most: int
    """Most experts on several GPUs that one GPU holds."""
    slots: I64
    """[P] slots in the order of their experts, then of their GPUs; empty ones last."""
    of_slot: I64
    """[P] where a slot, in that order, finds the tokens of its expert on its GPU: the expert, or
    E + 1 + c * X + x for expert c's GPU x; E for an empty one.
    """
    expert_of_slot: I64
    """[P] expert of a slot, in that order, E where it is empty."""
    part: I64
    """[P] number of the slot among those of its expert on its GPU, from 0."""
    parts: I64
    """[P] how many there are."""


class _Layer(NamedTuple):
    """GPUs of each expert, and classes of the experts that are on several."""

    gpus: list[list[int]]
    classes: list[list[int]]


def _layer(gpus: list[list[int]], room: Room | None) -> _Layer:
    """Put an expert into the first class that has none of its GPUs, widest experts first."""
    width, num_classes, rows = room or (len(max(gpus, key=len)), len(gpus), len(gpus))
    gpus = [each[:width] for each in gpus]
    classes: list[list[int]] = []
    taken: list[set[int]] = []
    copied = [expert for expert, each in enumerate(gpus) if len(each) > 1]
    for expert in sorted(copied, key=lambda expert: -len(gpus[expert])):
        mine = set(gpus[expert])
        fits = (not held & mine and len(classes[i]) < rows for i, held in enumerate(taken))
        number = next((i for i, fit in enumerate(fits) if fit), len(taken))
        if number == num_classes:
            # Not all of them to their first: that would be low GPUs.
            gpus[expert] = [gpus[expert][expert % len(mine)]]
            continue
        if number == len(taken):
            taken.append(set())
            classes.append([])
        taken[number] |= mine
        classes[number].append(expert)
    return _Layer(gpus, classes)


def copies_of(placement: Placed, layer: int, room: Room | None = None) -> Copies:
    """The arrays of one layer; of the sizes that some layer of the placement needs, or as there is
    room.

    Raises:
        PlacementError: an expert of a layer that no slot holds.
    """
    phy2log, num_experts = np.asarray(placement.phy2log), placement.num_experts
    num_gpus = placement.cluster.num_gpus
    gpu_of = np.arange(phy2log.shape[1]) // (phy2log.shape[1] // num_gpus)
    layers = []
    for number, row in enumerate(phy2log):
        if room is not None and number != layer:
            continue
        gpus: list[set[int]] = [set() for _ in range(num_experts)]
        for gpu, expert in zip(gpu_of.tolist(), row.tolist(), strict=True):
            if expert >= 0:
                gpus[expert].add(gpu)
        if set() in gpus:
            raise PlacementError(
                f"layer {number} has no slot for expert {gpus.index(set())}: each needs one"
            )
        layers.append(_layer([sorted(each) for each in gpus], room))
    if room is None:
        width = max(len(gpus) for each in layers for gpus in each.gpus)
        sizes = [0] * max(len(each.classes) for each in layers)
        for each in layers:
            for number, members in enumerate(each.classes):
                sizes[number] = max(sizes[number], len(members))
    else:
        width, sizes = room.width, [room.rows] * room.classes
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    mine, row = layers[layer if room is None else 0], phy2log[layer]
    rows = np.full((sum(sizes), width), num_gpus)
    experts = np.full(sum(sizes), num_experts)
    alone = np.array([gpus[0] if len(gpus) == 1 else num_gpus for gpus in mine.gpus])
    source = np.full((num_experts + 1, num_gpus), num_experts)
    for expert, of_expert in enumerate(mine.gpus):
        source[expert, of_expert] = expert
    for end, size, members in zip(ends, sizes, mine.classes, strict=False):
        for i, expert in enumerate(members, end - size):
            number = len(mine.gpus[expert])
            rows[i, :number], experts[i] = mine.gpus[expert], expert
            source[expert, mine.gpus[expert]] = num_experts + 1 + i * width + np.arange(number)
    held = np.bincount(rows.ravel(), minlength=num_gpus + 1)[:num_gpus]
    named = np.where(row < 0, num_experts, row)
    slots = np.lexsort((gpu_of, named))
    pair = named[slots] * num_gpus + gpu_of[slots]
    begin = np.searchsorted(pair, pair)
    return Copies(
        rows,
        experts,
        tuple((end - size, end) for end, size in zip(ends, sizes, strict=True)),
        alone,
        max(1, int(held.max())),
        slots,
        source[named[slots], gpu_of[slots]],
        named[slots],
        np.arange(len(slots)) - begin,
        np.searchsorted(pair, pair, side="right") - begin,
    )
