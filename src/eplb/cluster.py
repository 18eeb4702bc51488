"""The cluster that a plan is made for: GPUs on nodes, which may differ in slots and speed, and of
which some may be dead.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from eplb.checks import real_number, whole_number
from eplb.errors import ClusterError

_Number = TypeVar("_Number", int, float)

_MOST = 1_000_000
"""Slots of a layer: far above those of any cluster, far below where indices overflow."""
_MOST_APART = 1_000_000
"""How many times as fast one GPU may be as another."""
_MOST_PAIRS = 100_000_000
"""GPUs times experts of a layer: the planner keeps tables of up to 8 bytes for each, so 800 MB."""


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
        slots_per_gpu: physical experts of one layer that a GPU holds. Where they are not as many
            on each, give a list [G]; this is then the most, and `slots` the list.
        dead: GPUs that have failed. They keep their numbers and their slots, which are -1 in
            `phy2log`, and have no load.
        speed: [G] how fast each GPU is, in any unit; None where all are alike. Loads are judged by
            the time that they take: load over speed.
        slots: [G] slots of each GPU where they are not as many on each; None otherwise. Slots that
            a GPU does not have are -1 at the end of its row in `phy2log`.

    Raises:
        ClusterError: a number below 1 or beyond any cluster, nodes that do not divide the GPUs,
            a dead GPU that there is none of, or none alive; lists that are not as long as there
            are GPUs, or speeds that are not above 0.
    """

    num_gpus: int
    num_nodes: int = 1
    slots_per_gpu: int = 0
    dead: tuple[int, ...] = ()
    speed: tuple[float, ...] | None = None
    slots: tuple[int, ...] | None = None

    if TYPE_CHECKING:  # lists of any kind become tuples

        def __init__(
            self,
            num_gpus: int,
            num_nodes: int = 1,
            slots_per_gpu: int | Iterable[int] = 0,
            dead: Iterable[int] = (),
            speed: Iterable[float] | None = None,
            slots: Iterable[int] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        num_gpus = whole_number(self.num_gpus, "num_gpus", error=ClusterError)
        given: Any = self.slots_per_gpu
        given = given if self.slots is None else self.slots
        if self.slots is not None or _is_list(given):
            slots = _of_each(given, "slots_per_gpu", num_gpus, whole_number)
            # GPUs that are alike need no list.
            object.__setattr__(self, "slots", slots if len(set(slots)) > 1 else None)
            object.__setattr__(self, "slots_per_gpu", max(slots))
        if self.speed is not None:
            speed = _of_each(self.speed, "speed", num_gpus, real_number)
            if max(speed) > _MOST_APART * min(speed):
                raise ClusterError(
                    f"speeds are from {min(speed):g} to {max(speed):g}: give none that is more "
                    f"than {_MOST_APART:,} times another"
                )
            object.__setattr__(self, "speed", speed if set(speed) != {1.0} else None)
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
        """P, the length of a row of `phy2log`: as many slots for each GPU, alive or dead, as the
        one with most has.
        """
        return self.num_gpus * self.slots_per_gpu

    @cached_property
    def capacity(self) -> tuple[int, ...]:
        """[G] slots that each GPU has, 0 for a dead one."""
        dead = set(self.dead)
        slots = self.slots or (self.slots_per_gpu,) * self.num_gpus
        return tuple(0 if gpu in dead else each for gpu, each in enumerate(slots))

    @cached_property
    def num_held(self) -> int:
        """Slots of one layer that hold an expert: those of the GPUs that are alive."""
        return sum(self.capacity)

    @property
    def full(self) -> bool:
        """Whether every slot of a row holds an expert: no GPU is dead, or has fewer than others."""
        return not self.dead and self.slots is None

    @property
    def even(self) -> bool:
        """Whether the GPUs that are alive have as many slots each and are as fast."""
        alive = self.survivors
        return alive.slots is None and (alive.speed is None or len(set(alive.speed)) == 1)

    @cached_property
    def alive(self) -> tuple[int, ...]:
        """The GPUs that are not dead."""
        dead = set(self.dead)
        return tuple(gpu for gpu in range(self.num_gpus) if gpu not in dead)

    @cached_property
    def speeds(self) -> tuple[float, ...] | None:
        """[G] how fast each GPU is, 0 for a dead one; None where all are alike."""
        if not self.dead and self.speed is None:
            return None
        dead = set(self.dead)
        speed = self.speed or (1.0,) * self.num_gpus
        return tuple(0.0 if gpu in dead else each for gpu, each in enumerate(speed))

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
        return Cluster(
            len(self.alive),
            nodes,
            [self.capacity[gpu] for gpu in self.alive],
            speed=None if self.speed is None else tuple(self.speed[gpu] for gpu in self.alive),
        )

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


def check_even(cluster: Cluster) -> Cluster:
    """A cluster of GPUs with as many slots each, as fast as each other, or dead."""
    if not cluster.even:
        raise ClusterError(
            "the GPUs differ in slots or speed: only this planner takes such clusters, and only "
            'for dispatch "even" or "best"'
        )
    return cluster


def check_shape(num_experts: int, cluster: Cluster, num_groups: int) -> int:
    """Check that the experts fit the GPUs alive; return the nodes that groups are spread over.

    Raises:
        ClusterError: no cluster, fewer slots than experts, groups that do not divide them, or so
            many of both that the planner's tables would not fit memory.
    """
    died, in_all = bool(check_cluster(cluster).dead), cluster.num_gpus
    cluster = cluster.survivors
    if cluster.num_held < num_experts:
        enough = -(-num_experts // cluster.num_gpus)
        missing = num_experts - cluster.num_held
        how_many = f"{missing} {'slot is' if missing == 1 else 'slots are'} missing: " * died
        raise ClusterError(
            f"{cluster.num_held} slots do not hold {num_experts} experts: {how_many}give each of "
            f"the {cluster.num_gpus} GPUs{' alive' * died} at least {enough} slots, "
            f"{enough * in_all} in all{', those of dead GPUs counted' * died}"
        )
    check_pairs(num_experts, cluster.num_gpus, "GPUs")
    if num_experts % num_groups:
        raise ClusterError(
            f"{num_experts} experts do not divide into {num_groups} groups: "
            f"{nearest_divisors(num_experts, num_groups)} groups would"
        )
    return cluster.num_nodes if num_groups % cluster.num_nodes == 0 else 1


def check_pairs(num_experts: int, number: int, what: str) -> None:
    """Check that a table of all experts of a layer and so many GPUs or slots fits memory."""
    if num_experts * number > _MOST_PAIRS:
        most = _MOST_PAIRS // num_experts
        raise ClusterError(
            f"{number:,} {what} and {num_experts:,} experts: the planner keeps tables of {what} "
            f"times experts, of {_MOST_PAIRS:,} entries at most; give {most:,} {what} or fewer"
        )


def nearest_multiples(value: int, divisor: int, least: int = 1) -> str:
    """The multiples of `divisor` nearest to `value` that are `least` or more, for a message:
    "288 or 320".
    """
    below = value // divisor * divisor
    first = -(-least // divisor) * divisor
    if below >= first:
        return f"{below} or {below + divisor}"
    return str(max(first, below + divisor))


def nearest_divisors(value: int, near: int) -> str:
    """The two numbers nearest to another that divide `value`, for a message: "6 or 8"."""
    divisors = [each for each in range(1, value + 1) if value % each == 0]
    nearest = sorted(divisors, key=lambda each: (abs(each - near), each))[:2]
    return " or ".join(map(str, sorted(nearest)))


def _dead_gpus(gpus: object, num_gpus: int) -> tuple[int, ...]:
    """Numbers of dead GPUs in rising order, each once."""
    if not isinstance(gpus, Iterable) or isinstance(gpus, str):
        raise ClusterError(f"dead GPUs are {gpus!r}: give a list of their numbers")
    dead = {
        whole_number(gpu, "a dead GPU", least=0, most=num_gpus - 1, error=ClusterError)
        for gpu in gpus
    }
    if len(dead) == num_gpus:
        raise ClusterError(f"all of {num_gpus} GPUs are dead: one at least must be alive")
    return tuple(sorted(dead))


def _is_list(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _of_each(
    values: object, what: str, num_gpus: int, check: Callable[..., _Number]
) -> tuple[_Number, ...]:
    """A number of each GPU."""
    if not _is_list(values):
        raise ClusterError(f"{what} is {values!r}: give a number for each of {num_gpus} GPUs")
    checked = tuple(
        check(value, f"{what}[{gpu}]", error=ClusterError) for gpu, value in enumerate(values)
    )
    if len(checked) != num_gpus:
        raise ClusterError(
            f"{what} has {len(checked)} numbers: give one for each of {num_gpus} GPUs"
        )
    return checked
