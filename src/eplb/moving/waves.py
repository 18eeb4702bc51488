"""Transfers in waves: in each, a GPU sends and receives few experts, and a node's uplink few more.

Transfers are the edges of a bipartite multigraph of senders and receivers, which as many matchings
as its greatest degree can hold (König, 1916), since a matching covers all GPUs of that degree. So
they are peeled off one by one: among the matchings that cover those GPUs, the one is taken that has
most of the layers that gain most. A wave of k experts at once is k matchings.

Two limits go beyond that, and may cost waves: uplinks and buffers.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.moving.buffers import Buffers, Limits
from eplb.moving.settling import Needs
from eplb.moving.transfers import Arrivals

_I64 = NDArray[np.int64]
_B = NDArray[np.bool_]


def fewest_waves(change: Arrivals, source: _I64, limits: Limits) -> int:
    """Waves that the busiest GPU or uplink needs: no order of these transfers takes fewer."""
    if not len(source):
        return 0
    bounds = [
        -(-int(np.bincount(source).max()) // limits.experts_at_once),
        -(-int(np.bincount(change.target).max()) // limits.received_at_once),
    ]
    if limits.uplink_share is not None:
        ends = change.node[source], change.node[change.target]
        far = ends[0] != ends[1]
        for end in ends:
            busiest = int(np.bincount(end[far], minlength=1).max())
            bounds.append(-(-busiest // limits.uplink_share))
    return max(bounds)


def waves_of(
    change: Arrivals, needs: Needs, source: _I64, rank: _I64, limits: Limits
) -> tuple[_I64, _I64]:
    """[M] wave of each transfer, and its source, which is another where buffers demand it.

    Args:
        change: the experts that must be received.
        needs: what stands in the way of their slots.
        source: [M] the GPU that sends each.
        rank: [L] place of a layer among those that gain most.
        limits: what a wave may do.
    """
    fewest = fewest_waves(change, source, limits)
    best = _peel(change, needs, source, rank, limits, fewest, by_nodes=False)
    if limits.uplink_share is not None and int(best[0].max(initial=-1)) + 1 > fewest:
        other = _peel(change, needs, source, rank, limits, fewest, by_nodes=True)
        best = min(best, other, key=lambda found: int(found[0].max()))
    return best


def _peel(
    change: Arrivals,
    needs: Needs,
    source: _I64,
    rank: _I64,
    limits: Limits,
    fewest: int,
    *,
    by_nodes: bool,
) -> tuple[_I64, _I64]:
    """`waves_of`, where `by_nodes` first says how many go from which node to which in a wave."""
    state = Buffers(change, needs, source.copy(), limits)
    worth = len(rank) - rank[change.layer]
    wave = np.full(len(source), -1, np.int64)
    left = np.arange(len(source))
    now = 0
    while len(left):
        near = state.near(left, rank)
        chosen = _wave(change, state, near, worth, max(fewest - now, 1), by_nodes=by_nodes)
        if limits.spare_slots is not None:
            chosen = state.safe_part(chosen) or state.unblock(left)
            state.carry_out(chosen)
        wave[chosen] = now
        left = left[wave[left] < 0]
        now += 1
    return wave, state.source


def _wave(
    change: Arrivals, state: Buffers, left: _I64, worth: _I64, waves_left: int, *, by_nodes: bool
) -> list[int]:
    """A wave's transfers, best matchings first."""
    num_gpus, limits, node = len(change.node), state.limits, change.node
    at_once, share = limits.experts_at_once, limits.uplink_share
    far = node[:, None] != node
    received = np.zeros(num_gpus, np.int64)
    chosen: list[int] = []
    worth = state.worth(left, worth)
    flows: _I64 = np.zeros((0, 0), np.int64)
    if share is not None:
        flows = np.zeros((int(node[-1]) + 1,) * 2, np.int64)
        np.add.at(flows, (node[state.source[left]], node[change.target[left]]), 1)
        np.fill_diagonal(flows, 0)
        links = Links.of_wave(flows, share, waves_left, by_nodes=by_nodes)
    for step in range(at_once):
        source, target = state.source[left], change.target[left]
        best_row = np.full(num_gpus * num_gpus, -1)
        # The best transfer of a pair; among equals the first.
        np.maximum.at(
            best_row, source * num_gpus + target, worth[left] * len(worth) + len(worth) - 1 - left
        )
        top = best_row.reshape(num_gpus, num_gpus)
        top[:, received >= state.room] = -1
        weight = np.where(top >= 0, top // len(worth), 0)
        most = int(weight.max())
        if most == 0:
            break
        weight[top >= 0] += most
        degree = np.bincount(source, minlength=num_gpus), np.bincount(target, minlength=num_gpus)
        full = max(int(end.max()) for end in degree)
        if limits.spare_slots is None:
            full = max(full, waves_left * at_once - step)
        urgent = (degree[0] == full)[:, None].astype(np.int64) + (degree[1] == full)
        if share is not None:
            # Those with most to send across, so that in the end many GPUs have some left.
            crossing = node[source] != node[target]
            across = [np.bincount(end[crossing], minlength=num_gpus) for end in (source, target)]
            spread = (across[0][:, None] + across[1]) * far * most
            weight += np.where(top >= 0, spread // max(1, *(int(end.max()) for end in across)), 0)
            weight += np.where(
                top >= 0, links.tight()[node[:, None], node] * 64 * num_gpus * most, 0
            )
        weight += np.where(top >= 0, urgent * 64 * most * num_gpus, 0)
        if share is None:
            rows, columns = heaviest_matching(weight)
        else:
            rows, columns = matching_within(
                weight, far, node, links.parts(at_once - step), 4 * most
            )
            links.use(node[rows], node[columns])
        received[columns] += 1
        best = np.argsort(-weight[rows, columns], kind="stable")
        picked = len(worth) - 1 - top[rows[best], columns[best]] % len(worth)
        chosen += picked.tolist()
        left = left[~np.isin(left, picked, assume_unique=True)]
        if not len(left):
            break
    return chosen


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
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(weight, maximize=True)
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
