"""The cluster that a plan is made for: GPUs on nodes, each with the same number of slots, of which
some may be dead.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from eplb.checks import whole_number
from eplb.errors import ClusterError

__all__ = ["Cluster", "check_cluster", "check_shape", "nearest_multiples"]

_MOST = 1_000_000
"""Slots of a layer: far above those of any cluster, far below where indices overflow."""


@dataclass(frozen=True)
class Cluster:
    """GPUs (EP ranks) on nodes. Slots are numbered GPU by GPU, and GPUs node by node.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=4, slots_per_gpu=3).without([2])
        >>> cluster.num_gpus, cluster.alive, cluster.num_held
        (4, (0, 1, 3), 9)

    Attributes:
        num_gpus: G, GPUs that share the experts of a layer, dead ones too.
        num_nodes: N, nodes that hold the GPUs, equally many on each.
        slots_per_gpu: physical experts of one layer that a GPU holds.
        dead: GPUs that have failed. They keep their numbers and their slots, which are -1 in
            `phy2log`, and have no load.

    Raises:
        ClusterError: a number below 1 or beyond any cluster, nodes that do not divide the GPUs,
            a dead GPU that there is none of, or none alive.
    """

    num_gpus: int
    num_nodes: int = 1
    slots_per_gpu: int = 0
    dead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_gpus", "num_nodes", "slots_per_gpu"):
            value = whole_number(getattr(self, name), name, error=ClusterError)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dead", _dead_gpus(self.dead, self.num_gpus))
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
        """P, slots of one layer on all GPUs, dead ones too: the length of a row of `phy2log`."""
        return self.num_gpus * self.slots_per_gpu

    @property
    def num_held(self) -> int:
        """Slots of one layer that hold an expert: those of the GPUs that are alive."""
        return (self.num_gpus - len(self.dead)) * self.slots_per_gpu

    @cached_property
    def alive(self) -> tuple[int, ...]:
        """The GPUs that are not dead."""
        dead = set(self.dead)
        return tuple(gpu for gpu in range(self.num_gpus) if gpu not in dead)

    @property
    def speeds(self) -> tuple[float, ...] | None:
        """[G] how fast each GPU is, 0 for a dead one; None where all are alike."""
        if not self.dead:
            return None
        speeds = [0.0] * self.num_gpus
        for gpu in self.alive:
            speeds[gpu] = 1.0
        return tuple(speeds)

    @cached_property
    def survivors(self) -> "Cluster":
        """The GPUs that are alive, numbered anew from 0; the cluster itself where none is dead.

        They stay on their nodes where each node that has any has as many as the others. Otherwise
        they count as one node.
        """
        if not self.dead:
            return self
        size = self.num_gpus // self.num_nodes
        on_node = [0] * self.num_nodes
        for gpu in self.alive:
            on_node[gpu // size] += 1
        left = [number for number in on_node if number]
        nodes = len(left) if len(set(left)) == 1 else 1
        return Cluster(len(self.alive), nodes, self.slots_per_gpu)

    def without(self, gpus: Iterable[int]) -> "Cluster":
        """The same cluster with more GPUs dead: as many GPUs, and each with its number.

        Raises:
            ClusterError: a GPU that there is none of, or none left alive.
        """
        return replace(self, dead=(*self.dead, *_dead_gpus(gpus, self.num_gpus)))

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
    """Check that the experts fit the GPUs alive; return the nodes that groups are spread over.

    Raises:
        ClusterError: no cluster, fewer slots than experts, or groups that do not divide them.
    """
    died = bool(check_cluster(cluster).dead)
    cluster = cluster.survivors
    if cluster.num_slots < num_experts:
        enough = -(-num_experts // cluster.num_gpus)
        missing = num_experts - cluster.num_slots
        how_many = f"{missing} {'slot is' if missing == 1 else 'slots are'} missing: " * died
        raise ClusterError(
            f"{cluster.num_slots} slots do not hold {num_experts} experts: {how_many}give each of "
            f"the {cluster.num_gpus} GPUs{' alive' * died} at least {enough} slots, "
            f"{enough * cluster.num_gpus} in all"
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


def _dead_gpus(gpus: object, num_gpus: int) -> tuple[int, ...]:
    """Numbers of dead GPUs in rising order, each once.

    Raises:
        ClusterError: what is no list of numbers of GPUs, or every GPU.
    """
    if not isinstance(gpus, Iterable) or isinstance(gpus, str):
        raise ClusterError(f"dead GPUs are {gpus!r}: give a list of their numbers")
    dead = {
        whole_number(gpu, "a dead GPU", least=0, most=num_gpus - 1, error=ClusterError)
        for gpu in gpus
    }
    if len(dead) == num_gpus:
        raise ClusterError(f"all of {num_gpus} GPUs are dead: one at least must be alive")
    return tuple(sorted(dead))
