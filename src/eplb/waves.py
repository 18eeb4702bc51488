"""Transfers in waves: in each, a GPU sends and receives few experts, and a node's uplink few more.

Transfers are the edges of a bipartite multigraph of senders and receivers, which as many matchings
as its greatest degree can hold (König, 1916), since a matching covers all GPUs of that degree. So
they are peeled off one by one: among the matchings that cover those GPUs, the one is taken that has
most of the layers that gain most. A wave of k experts at once is k matchings.

Two limits go beyond that, and may cost waves: uplinks and buffers.
"""

import numpy as np
from numpy.typing import NDArray

from eplb.buffers import Buffers, Limits
from eplb.settling import Needs
from eplb.transfers import Change
from eplb.uplinks import Links, heaviest_matching, matching_within

__all__ = ["fewest_waves", "waves_of"]

_I64 = NDArray[np.int64]


def fewest_waves(change: Change, source: _I64, limits: Limits) -> int:
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
    change: Change, needs: Needs, source: _I64, rank: _I64, limits: Limits
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
    change: Change,
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
    change: Change, state: Buffers, left: _I64, worth: _I64, waves_left: int, *, by_nodes: bool
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
