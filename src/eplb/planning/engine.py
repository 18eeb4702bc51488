"""What engines plan by themselves where their balancing is on, to compare with."""

from eplb.cluster import Cluster
from eplb.placement import Placement, spread
from eplb.solver.arrays import F64


def engine_placement(windows: F64, cluster: Cluster, num_groups: int = 1) -> Placement:
    """DeepSeek's EPLB for the sum of windows [T, L, E], as vLLM and SGLang run it; where GPUs
    differ in slots or speed, which it does not plan for, the layout that engines start with.

    Example:
        >>> engine_placement(np.ones((2, 1, 4)), Cluster(num_gpus=2, slots_per_gpu=3)).num_slots
        6
    """
    if not cluster.even:
        return Placement.contiguous(windows.shape[1], windows.shape[2], cluster)
    from eplb.solver.greedy import greedy

    phy2log = greedy(windows.sum(axis=0), cluster.survivors, num_groups, swaps=False)
    return Placement(spread(phy2log, cluster), windows.shape[2], cluster)
