"""Which copies the tokens go to, for engines that look it up: in the windows planned for, GPUs are
as evenly loaded as what an engine looks up allows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.engines.settings import Settings

__all__ = ["Planned", "compile_tables", "slots_by_rank"]


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
    """The slot [L, R, E] that each rank sends an expert's tokens to, by `eplb.dispatch(...).table`;
    None where copies are missing: those of ranks that have died, or that a rank is not to use.

    Args:
        log2phy: [L, E, X] slots of each expert, padded with -1.
        windows: [T, L, E] loads that tokens are split for.
        cluster: the ranks, R of them, and the nodes that they are on.
        settings: on how many threads.

    Raises:
        EplbError: what is no placement.
    """
    from eplb.dispatching.dispatch import dispatch
    from eplb.merging import alike
    from eplb.placement import Placement

    layer, expert, copy = np.nonzero(log2phy >= 0)
    phy2log = np.full((log2phy.shape[0], cluster.num_slots), -1)
    phy2log[layer, log2phy[layer, expert, copy]] = expert
    if (phy2log < 0).any():
        return None
    if alike(windows):
        windows = windows.sum(axis=0, keepdims=True)
    placement = Placement(phy2log, log2phy.shape[1], cluster)
    # A table is the same for every rule, and one split for all windows would take long.
    made = dispatch(placement, windows, rule="even", threads=settings.threads)
    return made.table(effort="fast")


def compile_tables() -> None:
    """Have the kernels of `slots_by_rank` ready, so that no rebalance waits for them."""
    log2phy = np.array([[[0, 2], [1, -1], [3, -1]]])
    slots_by_rank(log2phy, np.ones((1, 1, 3)), Cluster(2, 1, 2), Settings(threads=1))
