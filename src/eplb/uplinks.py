"""Uplinks: matchings of senders and receivers of which no more crosses nodes than may."""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Links", "heaviest_matching", "matching_within"]

_I64 = NDArray[np.int64]
_B = NDArray[np.bool_]


class Links:
    """What may still cross in a wave: out of a node, into it, and from one to another."""

    def __init__(self, out: _I64, into: _I64, pair: _I64, must: tuple[_I64, _I64]) -> None:
        self.out, self.into, self.pair, self.must = out, into, pair, must

    @classmethod
    def of_wave(cls, flows: _I64, share: int, waves_left: int, *, by_nodes: bool) -> "Links":
        """Shares of a new wave, from what is to cross in all, [N, N]."""
        later = share * (waves_left - 1)
        must = flows.sum(axis=1) - later, flows.sum(axis=0) - later
        ends = np.full(len(flows), share), np.full(len(flows), share)
        if not by_nodes:
            return cls(*ends, flows.copy(), must)
        # Node to node, matchings as of GPUs: they cover the nodes with most to send or receive.
        rest, pair = flows.copy(), np.zeros_like(flows)
        for step in range(share):
            out, into = rest.sum(axis=1), rest.sum(axis=0)
            full = max(int(out.max()), int(into.max()), share * waves_left - step)
            urgent = (out == full)[:, None].astype(np.int64) + (into == full)
            most = int(rest.max()) + 1
            rows, columns = heaviest_matching(
                np.where(rest > 0, rest + most + urgent * 4 * most * len(rest), 0)
            )
            rest[rows, columns] -= 1
            pair[rows, columns] += 1
        return cls(*ends, pair, must)

    def tight(self) -> _I64:
        """[N, N] 1 for each end that must use all of its share, 0 inside a node."""
        out, into = self.must
        tight: _I64 = (out > 0)[:, None].astype(np.int64) + (into > 0)
        np.fill_diagonal(tight, 0)
        return tight

    def parts(self, matchings: int) -> tuple[_I64, _I64, _I64]:
        """Of what may still cross, the part of the next of so many matchings."""
        return -(-self.out // matchings), -(-self.into // matchings), -(-self.pair // matchings)

    def use(self, origin: _I64, end: _I64) -> None:
        """Take off what crosses."""
        far = origin != end
        for left, nodes in ((self.out, origin), (self.into, end)):
            np.subtract.at(left, nodes[far], 1)
        for left, nodes in zip(self.must, (origin, end), strict=True):
            np.subtract.at(left, nodes[far], 1)
        np.subtract.at(self.pair, (origin[far], end[far]), 1)


def heaviest_matching(weight: _I64) -> tuple[_I64, _I64]:
    """Rows and columns of the heaviest matching; 0 is no edge."""
    optimize: Any = import_module("scipy.optimize")
    rows, columns = optimize.linear_sum_assignment(weight, maximize=True)
    there = weight[rows, columns] > 0
    return rows[there], columns[there]


def matching_within(
    weight: _I64, far: _B, node: _I64, parts: tuple[_I64, _I64, _I64], pin: int
) -> tuple[_I64, _I64]:
    """A heavy matching of senders and receivers of which no more crosses nodes than may.

    Where more would, only GPUs of the heaviest ones that may still can.
    """
    num_nodes = int(node[-1]) + 1
    weight = np.where(far & (parts[2][node[:, None], node] == 0), 0, weight)
    gpus = np.arange(len(node))
    while True:
        rows, columns = heaviest_matching(weight)
        across = np.flatnonzero(far[rows, columns])
        heavy = across[np.argsort(-weight[rows[across], columns[across]], kind="stable")]
        ends = node[rows[heavy]], node[columns[heavy]]
        fine = True
        for kind, owner in enumerate((*ends, ends[0] * num_nodes + ends[1])):
            part = parts[kind].ravel()
            counts = np.bincount(owner, minlength=len(part))
            for crowded in np.flatnonzero(counts > part).tolist():
                fine = False
                kept = heavy[owner == crowded][: part[crowded]]
                weight[rows[kept], columns[kept]] += pin
                if kind == 1:
                    barred = (node == crowded) & ~np.isin(gpus, columns[kept])
                    weight = np.where(far & barred, 0, weight)
                    continue
                barred = ~np.isin(gpus, rows[kept])
                barred &= node == (crowded if kind == 0 else crowded // num_nodes)
                ends_at = True if kind == 0 else node == crowded % num_nodes
                weight = np.where(far & barred[:, None] & ends_at, 0, weight)
        if fine:
            return rows, columns
