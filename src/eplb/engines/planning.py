"""From what an engine shows to the next placement: what both plug-ins share."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.engines.settings import Settings
from eplb.placement import Placement
from eplb.planning.plan import plan

__all__ = ["next_placement"]

_PRICE = 5e-4
"""What a move has to take off the peak of its layer, as a share of the mean GPU load: the planner's
own price of a move, which it leaves out where there is a budget."""


def next_placement(
    windows: NDArray[np.float64],
    cluster: Cluster,
    num_groups: int,
    current: Placement | None,
    settings: Settings,
) -> NDArray[np.int64]:
    """The experts to run next, [L, P].

    A window counts by its tokens, up to the mean of the windows: what was seen in an idle hour is
    mostly chance. An expert that stays on its GPU stays in its slot. The budget of moves is not
    kept where engines start, from a layout that knows no loads, nor where ranks come or go.

    Args:
        windows: [T, L, E] loads, each with a load in some layer.
        cluster: the ranks and their slots.
        num_groups: groups that the model routes by.
        current: what runs now, None where that is not known.
        settings: how much may move, how much work the plan may be, and on how many threads.

    Raises:
        EplbError: what cannot be planned.
    """
    num_layers = windows.shape[1]
    total = windows.sum(axis=(1, 2))
    moving: dict[str, Any] = {}
    if current is not None and not _is_start(current):
        moving["current"] = current
        if current.cluster.num_slots == cluster.num_slots:
            loaded = int(windows.any(axis=2).sum()) * cluster.num_gpus
            moving["max_moves"] = settings.budget(num_layers, cluster.num_slots)
            moving["move_cost"] = _PRICE * float(total.sum()) / max(loaded, 1)
    made = plan(
        windows,
        cluster,
        num_groups=num_groups,
        weights=np.minimum(total, total.mean()),
        effort=settings.effort,
        threads=settings.threads,
        **moving,
    )
    phy2log: NDArray[np.int64] = made.placement.phy2log.copy()
    if current is not None and not moving:
        idle = ~windows.any(axis=(0, 2))
        phy2log[idle] = current.phy2log[idle]
    return phy2log


def _is_start(current: Placement) -> bool:
    """Whether a placement is the layout that engines start with."""
    row = np.arange(current.cluster.num_slots) % current.num_experts
    return bool((current.phy2log == row).all())
