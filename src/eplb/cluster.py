"""The cluster that a plan is made for: GPUs on nodes, each with the same number of slots."""

from dataclasses import dataclass, fields

from eplb.checks import whole_number
from eplb.errors import ClusterError

__all__ = ["Cluster", "check_cluster", "check_shape", "nearest_multiples"]

_MOST = 1_000_000
"""Slots of a layer: far above those of any cluster, far below where indices overflow."""


@dataclass(frozen=True)
class Cluster:
    """GPUs (EP ranks) on nodes. Slots are numbered GPU by GPU, and GPUs node by node.

    Attributes:
        num_gpus: G, GPUs that share the experts of a layer.
        num_nodes: N, nodes that hold the GPUs, equally many on each.
        slots_per_gpu: physical experts of one layer that a GPU holds.

    Raises:
        ClusterError: a number below 1 or beyond any cluster, or nodes that do not divide the GPUs.
    """

    num_gpus: int
    num_nodes: int = 1
    slots_per_gpu: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = whole_number(getattr(self, field.name), field.name, error=ClusterError)
            object.__setattr__(self, field.name, value)
        if self.num_gpus % self.num_nodes:
            raise ClusterError(
                f"{self.num_gpus} GPUs do not divide over {self.num_nodes} nodes: "
                f"{nearest_multiples(self.num_gpus, self.num_nodes)} GPUs would"
            )
        if self.num_slots > _MOST:
            raise ClusterError(
                f"{self.num_gpus} GPUs of {self.slots_per_gpu} slots have {self.num_slots} slots "
                f"in a layer: give {_MOST} or fewer"
            )

    @property
    def num_slots(self) -> int:
        """P, slots of one layer on all GPUs."""
        return self.num_gpus * self.slots_per_gpu

    @classmethod
    def with_slots(
        cls, num_slots: int, num_gpus: int, num_nodes: int = 1, *, num_experts: int = 1
    ) -> "Cluster":
        """The cluster that has `num_slots` slots in all.

        Args:
            num_slots: P, slots of one layer on all GPUs, a multiple of `num_gpus`.
            num_gpus: G, GPUs that share the experts of a layer.
            num_nodes: N, nodes that hold the GPUs, equally many on each.
            num_experts: E, experts of a layer. An error suggests only numbers of slots that can
                hold them.

        Raises:
            ClusterError: as for `Cluster`, or the GPUs do not divide the slots.
        """
        bare = cls(num_gpus, num_nodes, 1)
        slots = whole_number(num_slots, "the number of slots", error=ClusterError)
        if slots % bare.num_gpus:
            raise ClusterError(
                f"{slots} slots do not divide over {bare.num_gpus} GPUs: "
                f"{nearest_multiples(slots, bare.num_gpus, num_experts)} slots would"
            )
        return cls(bare.num_gpus, bare.num_nodes, slots // bare.num_gpus)


def check_cluster(value: object) -> Cluster:
    """A cluster, or a ClusterError."""
    if not isinstance(value, Cluster):
        raise ClusterError(f"the cluster is {value!r}: give an eplb.Cluster")
    return value


def check_shape(num_experts: int, cluster: Cluster, num_groups: int) -> int:
    """Check that the experts fit the cluster; return the nodes that groups are spread over.

    Raises:
        ClusterError: no cluster, fewer slots than experts, or groups that do not divide them.
    """
    check_cluster(cluster)
    if cluster.num_slots < num_experts:
        enough = -(-num_experts // cluster.num_gpus)
        raise ClusterError(
            f"{cluster.num_slots} slots do not hold {num_experts} experts: give each of the "
            f"{cluster.num_gpus} GPUs at least {enough} slots, {enough * cluster.num_gpus} in all"
        )
    if num_experts % num_groups:
        divisors = [k for k in range(1, num_experts + 1) if num_experts % k == 0]
        nearest = sorted(divisors, key=lambda k: (abs(k - num_groups), k))[:2]
        raise ClusterError(
            f"{num_experts} experts do not divide into {num_groups} groups: "
            f"{' or '.join(map(str, sorted(nearest)))} groups would"
        )
    return cluster.num_nodes if num_groups % cluster.num_nodes == 0 else 1


def nearest_multiples(value: int, divisor: int, least: int = 1) -> str:
    """The multiples of `divisor` nearest to `value` that are `least` or more, for a message:
    "288 or 320".
    """
    below = value // divisor * divisor
    first = -(-least // divisor) * divisor
    if below >= first:
        return f"{below} or {below + divisor}"
    return str(max(first, below + divisor))
