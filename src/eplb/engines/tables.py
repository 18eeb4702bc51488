"""Which copies the tokens go to, for engines that look it up: in the windows planned for, GPUs are
as evenly loaded as what an engine looks up allows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.dispatching.dispatch import dispatch
from eplb.engines.settings import Settings
from eplb.merging import summed_if_alike
from eplb.placement import Placement


@dataclass
class Planned:
    """What the placement that runs was planned for.

    Attributes:
        windows: [T, L, E] loads; None where the engine's own planner answered, or nobody yet.
    """

    windows: NDArray[np.float64] | None = None


def slots_by_rank(
    log2phy: NDArray[np.int64],
    windows: NDArray[np.float64],
    cluster: Cluster,
    settings: Settings,
) -> NDArray[np.int64] | None:
    """The slot [L, R, E] that each of R ranks sends an expert's tokens to, for windows [T, L, E],
    by `eplb.dispatch(...).table`; None where copies are missing in the slots [L, E, X], padded with
    -1, of each expert: those of ranks that have died, or that a rank is not to use.
    """
    layer, expert, copy = np.nonzero(log2phy >= 0)
    phy2log = np.full((log2phy.shape[0], cluster.num_slots), -1)
    phy2log[layer, log2phy[layer, expert, copy]] = expert
    if (phy2log < 0).any():
        return None
    placement = Placement(phy2log, log2phy.shape[1], cluster)
    # A table is the same for every rule, and one split for all windows would take long.
    made = dispatch(placement, summed_if_alike(windows), rule="even", threads=settings.threads)
    return made.table(effort="fast")


def entries_by_slot(
    phy2log: NDArray[np.int64],
    windows: NDArray[np.float64],
    cluster: Cluster,
    room: int,
    settings: Settings,
) -> NDArray[np.int64]:
    """How often each slot [L, P] stands in its expert's row of slots, for an engine that takes an
    entry of the row at random, in windows [T, L, E]: as nearly as whole numbers allow, half way
    from an even split to that of `eplb.dispatch(...)`. The whole way fits what is chance in the
    windows too, and loses on the windows that follow (docs/experiments.md, dispatch). Rows have
    room for so many entries; those of an expert with copies are all used.
    """
    placement = Placement(phy2log, windows.shape[2], cluster)
    split = dispatch(placement, summed_if_alike(windows), threads=settings.threads).split
    entries = np.ones(phy2log.shape, np.int64)
    for layer, expert in np.argwhere(placement.logcnt > 1).tolist():
        slots = placement.log2phy[layer, expert, : placement.logcnt[layer, expert]]
        parts = split[layer, slots]
        parts = room * (parts / parts.sum() + 1.0 / len(slots)) / 2.0
        whole = np.floor(parts).astype(np.int64)
        # Largest remainders, of equal ones the first.
        order = np.argsort(whole - parts, kind="stable")
        whole[order[: room - int(whole.sum())]] += 1
        entries[layer, slots] = whole
    return entries


def rows_of_slots(
    phy2log: NDArray[np.int64], entries: NDArray[np.int64], num_experts: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of slots [L, E, X], padded with -1, in which each slot stands as often as `entries`
    [L, P] says, and how long each row is [L, E].
    """
    num_layers = phy2log.shape[0]
    layers = np.arange(num_layers)[:, None]
    counts = np.zeros((num_layers, num_experts), np.int64)
    np.add.at(counts, (layers, phy2log), entries)
    rows = np.full((num_layers, num_experts, int(counts.max())), -1)
    for layer in range(num_layers):
        # Slots in the order of their experts, then of their numbers.
        order = np.argsort(phy2log[layer], kind="stable")
        rows[layer][np.arange(rows.shape[2]) < counts[layer][:, None]] = np.repeat(
            order, entries[layer, order]
        )
    return rows, counts


def compile_tables() -> None:
    """Have the kernels of tables ready, so that no rebalance waits for them."""
    log2phy, settings = np.array([[[0, 2], [1, -1], [3, -1]]]), Settings(threads=1)
    unlike = np.array([[[900.0, 10.0, 10.0]], [[10.0, 900.0, 10.0]]])
    for windows in (unlike, unlike[:1]):
        slots_by_rank(log2phy, windows, Cluster(2, 1, 2), settings)
        entries_by_slot(np.array([[0, 1, 0, 2]]), windows, Cluster(2, 1, 2), 8, settings)
