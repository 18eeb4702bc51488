"""Carries a migration out on arrays of weights, piece by piece, and checks it after every piece.

It knows nothing of how migrations are made. Weights of an expert are numbers that no other has;
what is written halfway is neither the one nor the other.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eplb import Placement
from eplb.moving.migrate import Migration

__all__ = ["PIECES", "carry_out", "check_limits", "held_at_every_instant"]

PIECES = 3
"""Numbers that an expert's weights are made of: each is sent on its own."""


def _weights(layer: int, expert: int) -> NDArray[np.int64]:
    return np.arange(PIECES) + PIECES * (1000 * layer + expert + 1)


class _Memory:
    """Slots and buffers of every GPU; whatever a GPU has not is 0."""

    def __init__(self, old: Placement, new: Placement, buffers: NDArray[np.int64]) -> None:
        clusters = (old.cluster, new.cluster)
        num_gpus = max(cluster.num_gpus for cluster in clusters)
        slots = max(cluster.slots_per_gpu for cluster in clusters)
        self.slots = np.zeros((old.num_layers, num_gpus, slots, PIECES), np.int64)
        self.buffers = [np.zeros((int(number), PIECES), np.int64) for number in buffers]
        for layer, row in enumerate(old.phy2log.tolist()):
            for place, expert in enumerate(row):
                gpu, slot = divmod(place, old.cluster.slots_per_gpu)
                self.slots[layer, gpu, slot] = _weights(layer, expert)
        self.num_experts = old.num_experts

    def at(self, layer: int, gpu: int, place: int) -> NDArray[np.int64]:
        """The memory of a slot, or of buffer -1 - place."""
        cells = self.slots[layer, gpu, place] if place >= 0 else self.buffers[gpu][-1 - place]
        assert isinstance(cells, np.ndarray)
        return cells

    def missing(self) -> set[tuple[int, int]]:
        """Layers and experts that no slot and no buffer holds whole."""
        cells = np.concatenate([self.slots.reshape(-1, PIECES), *self.buffers])
        whole = (cells - np.arange(PIECES) == cells[:, :1]).all(axis=1) & (cells[:, 0] > 0)
        keys = set((cells[whole, 0] // PIECES - 1).tolist())
        return {
            (layer, expert)
            for layer in range(len(self.slots))
            for expert in range(self.num_experts)
            if 1000 * layer + expert not in keys
        }


def carry_out(
    old: Placement, new: Placement, migration: Migration, seed: int = 0
) -> Iterator[_Memory]:
    """The memory after every piece that is sent or copied; transfers of a wave run mixed.

    In the end all slots are compared with the new placement, and every transfer with what its
    source had all the time that it ran.
    """
    rng = np.random.default_rng(seed)
    memory = _Memory(old, new, migration.spare_slots)
    copies = migration.copies
    yield memory
    for wave in range(migration.num_waves + 1):
        for row in np.flatnonzero(copies.wave == wave):
            layer, gpu = copies.layer[row], copies.gpu[row]
            origin = memory.at(layer, gpu, copies.origin[row])
            expected = _weights(layer, copies.expert[row])
            assert np.array_equal(origin, expected), "a copy of what is not there"
            for piece in range(PIECES):
                memory.at(layer, gpu, copies.slot[row])[piece] = origin[piece]
                yield memory
        rows = np.flatnonzero(migration.wave == wave)
        steps = np.repeat(rows, PIECES)
        rng.shuffle(steps)
        sent: Counter[int] = Counter()
        for row in steps.tolist():
            layer, source = migration.layer[row], migration.source[row]
            origin = memory.at(layer, source, migration.source_slot[row])
            expected = _weights(layer, migration.expert[row])
            assert np.array_equal(origin, expected), "a transfer of what is not there"
            buffer = memory.at(layer, migration.target[row], -1 - migration.buffer[row])
            buffer[sent[row]] = origin[sent[row]]
            sent[row] += 1
            yield memory
    for layer, row_of_experts in enumerate(new.phy2log.tolist()):
        for place, expert in enumerate(row_of_experts):
            gpu, slot = divmod(place, new.cluster.slots_per_gpu)
            assert np.array_equal(memory.at(layer, gpu, slot), _weights(layer, expert))


def held_at_every_instant(old: Placement, new: Placement, migration: Migration) -> None:
    """Stop after every piece: each expert is whole in some slot or buffer."""
    for memory in carry_out(old, new, migration):
        assert not memory.missing()


def check_limits(
    migration: Migration,
    node: NDArray[np.int64],
    experts_at_once: int,
    uplink_share: int | None,
    spare_slots: int | None,
) -> None:
    """Count, wave by wave, what GPUs and nodes send and receive, and which buffers are in use."""
    assert sorted(set(migration.wave.tolist())) == list(range(migration.num_waves))
    for wave in range(migration.num_waves):
        rows = migration.wave == wave
        source, target = migration.source[rows], migration.target[rows]
        assert (source != target).all()
        for ends in (source, target):
            assert np.bincount(ends).max() <= experts_at_once
            if uplink_share is not None:
                far = node[source] != node[target]
                assert np.bincount(node[ends[far]], minlength=1).max() <= uplink_share
    if spare_slots is not None:
        assert migration.spare_slots.max(initial=0) <= spare_slots
