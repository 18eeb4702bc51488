"""The placement that an engine runs now, of as many ranks as hold experts."""

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.errors import PlacementError
from eplb.placement import Placement

__all__ = ["running_placement"]


def running_placement(
    old: NDArray[np.int64], num_experts: int, slots_per_gpu: int
) -> Placement | None:
    """The placement to start from; None where slots are empty that no rank to come explains.

    Args:
        old: [L, P'] expert in each slot now. Where ranks come, theirs are the last and hold -1;
            where ranks go, there are more slots than will be filled.
        num_experts: E.
        slots_per_gpu: slots of a rank.

    Raises:
        PlacementError: experts that the model does not have, or ranks with other slots.
    """
    if old.ndim != 2 or old.shape[1] % slots_per_gpu:
        raise PlacementError(
            f"the engine's placement has shape {old.shape}: "
            f"its slots do not divide over ranks of {slots_per_gpu}"
        )
    held = np.flatnonzero((old >= 0).any(axis=0))
    num_gpus = int(held[-1]) // slots_per_gpu + 1 if held.size else 0
    running = old[:, : num_gpus * slots_per_gpu]
    if num_gpus == 0 or (running < 0).any():
        return None
    return Placement(running, num_experts, Cluster(num_gpus, 1, slots_per_gpu))
