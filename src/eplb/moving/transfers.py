"""Which experts a change of placement sends, and from where: the nearest GPU that has them.

A source in the target's node is taken before one in another, and among equals senders are chosen so
that the busiest sends as little as can be: a semi-matching that no path of exchanges improves
(Harvey, Ladner, Lovász and Tamir, "Semi-matchings for bipartite graphs and load balancing", 2006).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import ClusterError, PlacementError
from eplb.placement import Placement

_I64 = NDArray[np.int64]
_B = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Two placements on the same G GPUs of S slots: those that either of them has.

    Attributes:
        old: [L, G, S] expert that a slot holds before, -1 for none.
        new: [L, G, S] expert that it is to hold, -1 for none.
        had: [L, G, E] whether a GPU holds an expert before.
        keeps: [L, G, E] whether it does before and after.
        node: [G] node of a GPU.
        layer: [M] of each expert that a GPU must receive; rows are sorted by it, `target`, `slot`.
        expert: [M]
        target: [M] the GPU that must receive it.
        slot: [M] the first of its slots that wants it, counted on the GPU.
    """

    old: _I64
    new: _I64
    had: _B
    keeps: _B
    node: _I64
    layer: _I64
    expert: _I64
    target: _I64
    slot: _I64


def arrivals_between(old: Placement, new: Placement, leaving: Sequence[int] = ()) -> Arrivals:
    """What changes from one placement to another. A GPU that is dead in the new one holds nothing
    but experts that have no other copy, which it stands for: the checkpoint gives them. Those that
    are only `leaving` can send what they hold.

    Raises:
        PlacementError: placements of other layers or experts.
        ClusterError: clusters that put a GPU on different nodes.
    """
    if (old.num_layers, old.num_experts) != (new.num_layers, new.num_experts):
        raise PlacementError(
            f"{old!r} and {new!r} are of different models: no moves lead from one to the other"
        )
    node = nodes_of(old, new)
    slots = max(old.cluster.slots_per_gpu, new.cluster.slots_per_gpu)
    before, after = (_by_gpu(placement, len(node), slots) for placement in (old, new))
    dead = [gpu for gpu in new.cluster.dead if gpu not in leaving]
    if dead:
        # The dead send nothing, but for what the checkpoint gives in their place.
        layer, expert = old.lost_on(replace(new.cluster, dead=tuple(dead))).T
        lost = np.zeros((old.num_layers, old.num_experts + 1), np.bool_)
        lost[layer, expert] = True
        rows = before[:, dead]
        before[:, dead] = np.where(lost[np.arange(old.num_layers)[:, None, None], rows], rows, -1)
    had, will = (_held(slots_of, old.num_experts) for slots_of in (before, after))
    # The first slot of a GPU that wants what the GPU has not.
    layers, gpus = np.ogrid[: old.num_layers, : len(node)]
    wanted = np.empty(before.shape, np.bool_)
    for at in range(slots):
        expert = after[:, :, at]
        wanted[:, :, at] = (expert >= 0) & ~had[layers, gpus, expert]
        wanted[:, :, at] &= (after[:, :, :at] != expert[:, :, None]).all(axis=2)
    layer, target, slot = np.nonzero(wanted)
    return Arrivals(
        before, after, had, had & will, node, layer, after[layer, target, slot], target, slot
    )


def nodes_of(old: Placement, new: Placement) -> _I64:
    """[G] node of every GPU of either cluster.

    Raises:
        ClusterError: two clusters of several nodes, with other numbers of GPUs on a node.
    """
    clusters = (old.cluster, new.cluster)
    num_gpus = max(cluster.num_gpus for cluster in clusters)
    # A cluster of one node says nothing of nodes: 31 GPUs that are left of 4 nodes are such a one.
    each = {c.num_gpus // c.num_nodes for c in clusters if c.num_nodes > 1} or {num_gpus}
    if len(each) > 1:
        first, second = (f"{c.num_gpus} GPUs on {c.num_nodes} nodes" for c in clusters)
        raise ClusterError(
            f"{first} become {second}: GPUs keep their numbers and nodes, "
            "so give the same number of GPUs on a node as before"
        )
    return np.arange(num_gpus, dtype=np.int64) // each.pop()


def _by_gpu(placement: Placement, num_gpus: int, slots: int) -> _I64:
    cluster = placement.cluster
    rows = np.full((placement.num_layers, num_gpus, slots), -1, np.int64)
    rows[:, : cluster.num_gpus, : cluster.slots_per_gpu] = placement.phy2log.reshape(
        placement.num_layers, cluster.num_gpus, cluster.slots_per_gpu
    )
    return rows


def _held(slots_of: _I64, num_experts: int) -> _B:
    num_layers, num_gpus, _ = slots_of.shape
    # Empty slots hold one expert more than there are, which is cut off.
    held = np.zeros((num_layers, num_gpus, num_experts + 1), np.bool_)
    layers, gpus = np.ogrid[:num_layers, :num_gpus]
    held[layers[..., None], gpus[..., None], slots_of] = True
    return held[:, :, :num_experts]


def nearest_sources(change: Arrivals) -> _I64:
    """[M] GPU that sends each expert: in the node if one there has it, the busiest sending least.

    The least there is for the busiest sender, given that no expert crosses nodes that need not.
    """
    able: _B = change.had[change.layer, :, change.expert]
    near = able & (change.node == change.node[change.target][:, None])
    able = np.where(near.any(axis=1)[:, None], near, able)
    source: _I64 = able.argmax(axis=1)
    choices = able.sum(axis=1)
    sends = np.bincount(source[choices == 1], minlength=len(change.node)).tolist()
    free = np.flatnonzero(choices > 1)
    free = free[np.argsort(choices[free], kind="stable")]
    for row, choice in zip(free.tolist(), able[free], strict=True):
        best = min(np.flatnonzero(choice).tolist(), key=sends.__getitem__)
        source[row] = best
        sends[best] += 1
    chosen, able = source[free], able[free]
    _exchange(chosen, able, sends)
    source[free] = chosen
    return source


def _exchange(chosen: _I64, able: _B, sends: list[int]) -> None:
    """Hand sends from the busiest sender along paths, until no path ends at one with 2 less.

    Then every GPU that can take anything from a busiest one, over whatever path, is at most one
    below it, and none of them can pass anything on to others: the busiest is as light as can be.
    """
    num_gpus = len(sends)
    # [G, G] sends of a GPU that another could do.
    others = np.zeros((num_gpus, num_gpus), np.int64)
    np.add.at(others, chosen, able)
    while True:
        busiest = max(range(num_gpus), key=sends.__getitem__)
        path = _path(busiest, others, sends)
        if path is None:
            return
        for giver, taker in pairwise(path):
            row = int(np.flatnonzero((chosen == giver) & able[:, taker])[0])
            chosen[row] = taker
            others[giver] -= able[row]
            others[taker] += able[row]
        sends[path[0]] -= 1
        sends[path[-1]] += 1


def _path(start: int, others: _I64, sends: list[int]) -> list[int] | None:
    """The shortest path of exchanges from a GPU to one that sends at least 2 less."""
    came: dict[int, int] = {start: -1}
    queue: list[Any] = [start]
    for gpu in queue:
        if sends[gpu] <= sends[start] - 2:
            path = [gpu]
            while came[path[-1]] >= 0:
                path.append(came[path[-1]])
            return path[::-1]
        for other in np.flatnonzero(others[gpu]).tolist():
            if other not in came:
                came[other] = gpu
                queue.append(other)
    return None
