"""Buffers in which received experts wait for their slots, so that no wave leaves them stuck.

After a wave no more than one GPU may have all buffers full. Then there always is a next transfer:
one that lets that GPU put an expert into its slot, and leaves at most the receiver full.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.moving.settling import Needs
from eplb.moving.transfers import Arrivals

_I64 = NDArray[np.int64]

_LOOKAHEAD = 4
"""How many times its buffers a GPU looks ahead. At 1, GPUs wait for each other at the end of layers
(6 % more waves on 9 buffers, 30 % on 4); without an end, buffers fill with what waits for long.
"""


@dataclass(frozen=True)
class Limits:
    """What a wave may do.

    Attributes:
        experts_at_once: most experts that a GPU sends, and receives.
        uplink_share: most experts that leave, and enter, a node; None for any number.
        spare_slots: buffers of a GPU; None for any number.
    """

    experts_at_once: int
    uplink_share: int | None
    spare_slots: int | None

    @property
    def received_at_once(self) -> int:
        """Most experts that a GPU receives in a wave, as each needs a buffer."""
        if self.spare_slots is None:
            return self.experts_at_once
        return min(self.experts_at_once, self.spare_slots)


class Buffers:
    """What is sent and received so far, as far as buffers depend on it."""

    def __init__(self, change: Arrivals, needs: Needs, source: _I64, limits: Limits) -> None:
        self.change, self.needs, self.source, self.limits = change, needs, source, limits
        self.room = np.full(len(change.node), limits.received_at_once)
        if limits.spare_slots is None:
            return
        copy = needs.leaving(change, source)
        self.copy = copy.tolist()
        self.place = (change.layer * needs.number.shape[2] + change.expert).tolist()
        self.place_of = needs.place.tolist()
        self.left_to_send = np.bincount(copy[copy >= 0], minlength=len(needs.place))
        self.held = needs.safe.tolist()
        self.blocks = [set(row) for row in needs.blocks.tolist()]
        self.target = change.target.tolist()
        self.waiting: list[int] = []
        self.used = np.zeros(len(change.node), np.int64)

    def near(self, left: _I64, rank: _I64) -> _I64:
        """Those transfers whose layers come early, or that can go to their slots at once.

        Later layers would fill buffers with experts that wait, and leave none to end a layer with.
        """
        spare = self.limits.spare_slots
        if spare is None:
            return left
        turn, target = rank[self.change.layer[left]], self.change.target[left]
        counts = np.zeros((len(rank), len(self.room)), np.int64)
        np.add.at(counts, (turn, target), 1)
        counts = counts.cumsum(axis=0) + self.used
        early = (counts[turn, target] <= _LOOKAHEAD * spare) | (turn == turn.min())
        near: _I64 = left[early | self._gone()[self.needs.blocks[left]].any(axis=1)]
        return near

    def _gone(self) -> NDArray[np.bool_]:
        """[C + 1] whether a copy may be overwritten."""
        gone = np.ones(len(self.place_of) + 1, np.bool_)
        held = np.array(self.held, np.bool_)
        gone[:-1] = (self.left_to_send == 0) & held[self.needs.place]
        return gone

    def worth(self, left: _I64, worth: _I64) -> _I64:
        """[M] what transfers are worth now: more if they free buffers, or need none for long."""
        if self.limits.spare_slots is None:
            return worth
        gone, most = self._gone(), int(worth.max())
        waits = np.zeros(len(gone), np.bool_)
        waits[self.needs.blocks[self.waiting].ravel()] = True
        now: _I64 = worth.copy()
        now[left] += most * gone[self.needs.blocks[left]].any(axis=1)
        now[left] += 2 * most * (waits & ~gone)[np.array(self.copy, np.int64)[left]]
        return now

    def _stay(self, chosen: list[int]) -> list[int]:
        """Received experts that would be in buffers after a wave."""
        sent = Counter(self.copy[row] for row in chosen)
        arrived = {self.place[row] for row in chosen}

        def gone(copy: int) -> bool:
            if copy == len(self.place_of):
                return True
            place = self.place_of[copy]
            return self.left_to_send[copy] == sent[copy] and (self.held[place] or place in arrived)

        return [row for row in (*self.waiting, *chosen) if not any(map(gone, self.blocks[row]))]

    def safe_part(self, chosen: list[int]) -> list[int]:
        """Those of a wave's transfers, best first, after which at most one GPU is full."""
        spare = self.limits.spare_slots
        while True:
            stay = self._stay(chosen)
            used = Counter(self.target[row] for row in stay)
            new = set(chosen)
            last = {self.target[row]: row for row in stay if row in new}
            full = [gpu for gpu, number in used.items() if number == spare]
            removable = [gpu for gpu in full if gpu in last]
            if len(full) == len(removable):
                # The one that may be full is that of the best transfer.
                removable.sort(key=lambda gpu: chosen.index(last[gpu]))
                removable = removable[1:]
            if not removable:
                return chosen
            drop = {last[gpu] for gpu in removable}
            chosen = [row for row in chosen if row not in drop]

    def unblock(self, left: _I64) -> list[int]:
        """One transfer that lets the full GPU put an expert into its slot.

        Where the copy in the way is to be sent to others too, and the first that gets it would be
        full, the others get it from that one.
        """
        used = Counter(self.target[row] for row in self.waiting)
        full = next(gpu for gpu in used if used[gpu] == self.limits.spare_slots)
        blocked = next(row for row in self.waiting if self.target[row] == full)
        copy = min(self.blocks[blocked])
        rows = [row for row in left.tolist() if self.place[row] == self.place_of[copy]]
        for row in rows:
            if self.safe_part([row]):
                return [row]
        first = next((row for row in rows if self.copy[row] == copy), rows[0])
        for row in rows:
            if row != first and self.copy[row] == copy:
                self.source[row] = self.target[first]
                self.copy[row] = -1
                self.left_to_send[copy] -= 1
        return [first]

    def carry_out(self, chosen: list[int]) -> None:
        """Take note of a wave."""
        self.waiting = self._stay(chosen)
        for row in chosen:
            if self.copy[row] >= 0:
                self.left_to_send[self.copy[row]] -= 1
            self.held[self.place[row]] = True
        waiting = np.array([self.target[row] for row in self.waiting], np.int64)
        self.used = np.bincount(waiting, minlength=len(self.room))
        spare = self.limits.spare_slots or 0
        self.room = np.minimum(self.limits.received_at_once, spare - self.used)
