"""The true optimum of small layers, by a mixed-integer programme that HiGHS solves.

For tests, and for a user who wants to know what a bound leaves open. Binary variables: whether an
expert has c replicas, and whether a GPU holds a replica of an expert that has c. So the load of a
GPU is linear though replica counts are free. GPUs are alike, so they are put in order of load.
"""

from typing import Any

import numpy as np

from eplb.cluster import Cluster, check_even
from eplb.errors import ClusterError, MissingExtraError, UnsolvedError
from eplb.loads import check_loads
from eplb.placement import Placement
from eplb.planning.plan import plan
from eplb.solver.arrays import F64, I64


def exact(loads: Any, cluster: Cluster, *, time_limit: float = 60.0) -> Placement:
    """The placement whose busiest GPU has the least load, with no expert twice on a GPU.

    Solved to proven optimality, layer by layer, as if on one node. The work grows steeply: a dozen
    slots take a second, two dozen may take hours.

    Args:
        loads: [L, E] tokens routed to each logical expert.
        cluster: GPUs with at least E slots in all and at most E each.
        time_limit: seconds for one layer.

    Raises:
        MissingExtraError: without highspy.
        LoadsError: loads that are no loads.
        ClusterError: slots that do not hold the experts, or more on a GPU than there are experts.
        UnsolvedError: no proven optimum within the time limit.
    """
    try:
        import highspy
    except ImportError:
        raise MissingExtraError("highspy", "exact", "the exact optimum") from None
    checked = check_loads(loads)
    if check_even(cluster).dead:
        raise ClusterError("some GPUs are dead: give cluster.survivors")
    num_layers, num_experts = checked.shape
    if cluster.slots_per_gpu > num_experts:
        raise ClusterError(
            f"{cluster.slots_per_gpu} slots on a GPU are more than {num_experts} experts: "
            f"at most {num_experts} can be filled with no expert twice"
        )
    start = plan(checked, Cluster(cluster.num_gpus, 1, cluster.slots_per_gpu), threads=1)
    phy2log = start.placement.phy2log.copy()
    for layer in range(num_layers):
        if start.peak[layer] > 0.0:
            scale = float(checked[layer].sum()) / cluster.num_gpus
            phy2log[layer] = _solve_layer(
                highspy,
                checked[layer] / scale,
                cluster,
                float(start.peak[layer]) / scale,
                time_limit,
            )
    return Placement(phy2log, num_experts, cluster)


def _solve_layer(
    highspy: Any, weight: F64, cluster: Cluster, peak: float, time_limit: float
) -> I64:
    """Slots [P] of an optimal packing of `weight` [E], in units of the mean GPU load.

    `peak` is one that some plan has: it only cuts the search short, and proves nothing.
    """
    gpus, slots = range(cluster.num_gpus), cluster.slots_per_gpu
    experts = range(weight.shape[0])
    counts = range(1, min(cluster.num_gpus, cluster.num_slots - weight.shape[0] + 1) + 1)
    model = highspy.Highs()
    model.silent()
    for option, value in (("threads", 1), ("mip_rel_gap", 0.0), ("time_limit", time_limit)):
        model.setOptionValue(option, value)
    highest = model.addVariable(lb=1.0, ub=peak * (1.0 + 1e-9), obj=1.0)
    has = [{count: model.addBinary() for count in counts} for _ in experts]
    holds = [[{count: model.addBinary() for count in counts} for _ in gpus] for _ in experts]
    for expert in experts:
        model.addConstr(model.qsum(has[expert].values()) == 1)
        for count in counts:
            held = model.qsum(holds[expert][gpu][count] for gpu in gpus)
            model.addConstr(held == count * has[expert][count])
            for gpu in gpus:
                model.addConstr(holds[expert][gpu][count] <= has[expert][count])
    load = [
        model.qsum(
            holds[expert][gpu][count] * float(weight[expert] / count)
            for expert in experts
            for count in counts
        )
        for gpu in gpus
    ]
    for gpu in gpus:
        filled = model.qsum(holds[expert][gpu][count] for expert in experts for count in counts)
        model.addConstr(filled == slots)
        model.addConstr(load[gpu] <= highest)
        if gpu > 0:
            model.addConstr(load[gpu] <= load[gpu - 1])
    model.minimize()
    if model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise UnsolvedError(
            f"no proven optimum of a layer of {weight.shape[0]} experts in {cluster.num_slots} "
            f"slots within {time_limit:g} s: raise time_limit, or use the bound of eplb.plan"
        )
    held_by = [
        [e for e in experts if any(model.val(holds[e][gpu][count]) > 0.5 for count in counts)]
        for gpu in gpus
    ]
    return np.array(held_by, np.int64).ravel()
