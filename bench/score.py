"""One scorer for everybody: what a placement is worth, from its phy2log alone, in plain numpy."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Score", "least_node_load", "score"]

_MOST_WAYS = 20_000
"""Ways to put groups on nodes that are tried one by one; with more, the best is not known."""


@dataclass(frozen=True, eq=False)
class Score:
    """What a placement gives.

    Attributes:
        balancedness: mean over layers of mean GPU load / max GPU load.
        duplicates: slots, in all layers, with a second copy of an expert on a GPU.
        peak: [L] load of the busiest GPU.
        mean: [L] mean GPU load.
        node_peak: [L] load of the busiest node.
        groups_kept: whether every group of experts stands on one node.
    """

    balancedness: float
    duplicates: int
    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    node_peak: NDArray[np.float64]
    groups_kept: bool


def score(
    loads: NDArray[np.float64],
    phy2log: NDArray[np.int64],
    num_gpus: int,
    num_groups: int,
    num_nodes: int,
) -> Score:
    """Score `phy2log` [L, P] on `loads` [L, E], each expert's split evenly over its replicas.

    Raises:
        ValueError: experts out of range, or an expert of a layer that no slot holds.
    """
    num_layers, num_experts = loads.shape
    if phy2log.min() < 0 or phy2log.max() >= num_experts:
        raise ValueError(f"phy2log has experts outside 0 to {num_experts - 1}")
    logcnt = np.zeros((num_layers, num_experts), np.int64)
    np.add.at(logcnt, (np.arange(num_layers)[:, None], phy2log), 1)
    if logcnt.min() == 0:
        layer, expert = np.argwhere(logcnt == 0)[0]
        raise ValueError(f"layer {layer} has no slot for expert {expert}")
    of_slot = np.take_along_axis(loads / logcnt, phy2log, axis=1)
    gpu_load = of_slot.reshape(num_layers, num_gpus, -1).sum(axis=-1)
    node_load = gpu_load.reshape(num_layers, num_nodes, -1).sum(axis=-1)
    peak, mean = gpu_load.max(axis=-1), gpu_load.mean(axis=-1)
    loaded = peak > 0.0
    on_gpu = np.sort(phy2log.reshape(num_layers * num_gpus, -1), axis=1)
    group = phy2log // (num_experts // num_groups)
    on_node = np.zeros((num_layers, num_nodes, num_groups), np.bool_)
    node = np.arange(phy2log.shape[1]) // (phy2log.shape[1] // num_nodes)
    on_node[np.arange(num_layers)[:, None], node[None, :], group] = True
    return Score(
        balancedness=float((mean[loaded] / peak[loaded]).mean()) if loaded.any() else 1.0,
        duplicates=int((on_gpu[:, 1:] == on_gpu[:, :-1]).sum()),
        peak=peak,
        mean=mean,
        node_peak=node_load.max(axis=-1),
        groups_kept=bool((on_node.sum(axis=1) == 1).all()),
    )


def least_node_load(
    loads: NDArray[np.float64], num_groups: int, num_nodes: int
) -> NDArray[np.float64] | None:
    """[L] least load of the busiest node, over every way to put equally many groups on each node.

    None where the ways are too many to try.
    """
    ways = _ways(num_groups, num_nodes)
    if ways is None:
        return None
    group_load = loads.reshape(loads.shape[0], num_groups, -1).sum(axis=-1)
    # [L, ways, nodes, groups of a node]
    node_load = group_load[:, ways].sum(axis=-1)
    least: NDArray[np.float64] = node_load.max(axis=-1).min(axis=-1)
    return least


@cache
def _ways(num_groups: int, num_nodes: int) -> NDArray[np.int64] | None:
    """[ways, nodes, groups of a node] every way to part the groups, alike nodes counted once."""
    size = num_groups // num_nodes
    found = list(itertools.islice(_partitions(tuple(range(num_groups)), size), _MOST_WAYS + 1))
    return np.array(found, np.int64) if len(found) <= _MOST_WAYS else None


def _partitions(groups: tuple[int, ...], size: int) -> Iterator[list[tuple[int, ...]]]:
    if not groups:
        yield []
        return
    first, rest = groups[0], groups[1:]
    for others in itertools.combinations(rest, size - 1):
        left = tuple(group for group in rest if group not in others)
        for parts in _partitions(left, size):
            yield [(first, *others), *parts]
