"""The drop-in for DeepSeek's `eplb.rebalance_experts`: its signature and its meaning."""

import sys
from typing import TYPE_CHECKING, Any, overload

from numpy.typing import ArrayLike

from eplb.checks import whole_number
from eplb.cluster import Cluster
from eplb.errors import ClusterError
from eplb.loads import check_loads, is_tensor
from eplb.placement import Placement
from eplb.planning.plan import plan
from eplb.solver.arrays import I64

if TYPE_CHECKING:
    import torch


@overload
def rebalance_experts(
    weight: "torch.Tensor",
    num_replicas: int,
    num_groups: int | None,
    num_nodes: int,
    num_gpus: int,
    *,
    current: ArrayLike | None = None,
    max_moves: int | None = None,
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]: ...


@overload
def rebalance_experts(
    weight: ArrayLike,
    num_replicas: int,
    num_groups: int | None,
    num_nodes: int,
    num_gpus: int,
    *,
    current: ArrayLike | None = None,
    max_moves: int | None = None,
) -> tuple[I64, I64, I64]: ...


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int | None,
    num_nodes: int,
    num_gpus: int,
    *,
    current: Any = None,
    max_moves: int | None = None,
) -> tuple[Any, Any, Any]:
    """Entry point of DeepSeek's EPLB (github.com/deepseek-ai/EPLB), answered by `eplb.plan`.

    Example:
        >>> import eplb
        >>> weight = [[90, 132, 40, 61, 104, 165, 39, 4]]
        >>> phy2log, log2phy, logcnt = eplb.rebalance_experts(weight, 12, 1, 1, 4)
        >>> phy2log.shape, log2phy.shape, logcnt.shape
        ((1, 12), (1, 8, 5), (1, 8))
        >>> again, _, _ = eplb.rebalance_experts(weight, 12, 1, 1, 4, current=phy2log)
        >>> bool((again == phy2log).all())
        True

    Args:
        weight: [L, E] load of each logical expert.
        num_replicas: P, slots of a layer, a multiple of `num_gpus`.
        num_groups: groups that the model routes by; 0 or None for none.
        num_nodes: nodes; where they divide the groups, each group stays on one node. Where they do
            not, groups mean nothing, whether or not they divide the experts.
        num_gpus: G, a multiple of `num_nodes`.
        current: phy2log [L, P] that runs, an array or a tensor: the plan starts from it, and moves
            only what gains. None to plan from scratch, as DeepSeek's does.
        max_moves: most experts that GPUs receive in all layers together, with `current`.

    Returns:
        phy2log [L, P], the expert in each slot; log2phy [L, E, P - E + 1], the slots of each
        expert, padded with -1; logcnt [L, E], its replicas. int64 tensors on the CPU where `weight`
        is a torch tensor, int64 arrays otherwise.

    Raises:
        LoadsError: a weight that is not [L, E], or holds values that are not finite or below 0.
        ClusterError: other counts that do not divide, or fewer replicas than experts.
        PlacementError: a current map of another shape, or of experts that the model does not have.
        OptionError: `max_moves` without `current`.
    """
    loads = check_loads(weight)
    cluster = Cluster.with_slots(num_replicas, num_gpus, num_nodes, num_experts=loads.shape[1])
    groups = groups_on_nodes(num_groups, cluster)
    running = None
    if current is not None:
        running = Placement(current, loads.shape[1], cluster)
    placement = plan(
        loads, cluster, num_groups=groups, current=running, max_moves=max_moves
    ).placement
    log2phy = placement._log2phy(cluster.num_slots - placement.num_experts + 1)
    # The caller owns what it gets, as it does with DeepSeek's.
    maps = (placement.phy2log.copy(), log2phy, placement.logcnt.copy())
    if is_tensor(weight):
        return tuple(map(sys.modules["torch"].from_numpy, maps))
    return maps


def groups_on_nodes(num_groups: int | None, cluster: Cluster) -> int:
    """The groups that DeepSeek's EPLB keeps on nodes; 1 where it plans as if there were none.

    Raises:
        ClusterError: what is no number of groups.
    """
    if not num_groups:
        return 1
    groups = whole_number(num_groups, "num_groups", error=ClusterError)
    return 1 if groups % cluster.num_nodes else groups
