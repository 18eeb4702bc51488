"""Placement: which expert each slot holds, and what follows from that.

Glossary:
    Logical expert: an expert of the model, numbered from 0 in each layer. E of a layer.
    Redundant expert: a copy of a logical expert beyond its first.
    Physical expert, or slot: a place on a GPU that holds one copy of one logical expert. P of a
        layer. Slots are numbered GPU by GPU: of S slots on a GPU, GPU g has g * S to g * S + S - 1.
    GPU: an expert-parallel (EP) rank. G of them stand on N nodes, numbered node by node.
    phy2log: [L, P] the logical expert in each slot.
    log2phy: [L, E, X] the slots that hold an expert, X the most of any, padded with -1.
    logcnt: [L, E] how many slots hold an expert.
    Load: tokens routed to a logical expert in a window of time.
    Balancedness: mean GPU load / max GPU load, 1 is perfect.
    Dispatch: which replica takes a token. Split: [L, P] the part of its expert's load that each
        slot takes. Rule: how an engine dispatches, and so what split it makes of a placement.
    Move: an expert that a GPU holds in a layer and did not hold before.
    Dead GPU: one that has failed. It keeps its number, and its slots hold none: they are -1.

Example: DeepSeek-V3 has 256 experts in a layer. With 32 redundant experts there are 288 slots, 9 on
each of 32 GPUs. In small, 3 experts with loads 60, 20 and 20 in 4 slots on 2 GPUs:

    phy2log = [[0, 1, 0, 2]]              GPU 0 holds experts 0 and 1, GPU 1 holds 0 and 2
    log2phy = [[[0, 2], [1, -1], [3, -1]]]
    logcnt  = [[2, 1, 1]]

Split evenly over its copies, expert 0 brings 30 to each GPU: both have a load of 50, and the
balancedness is 1. One copy each, without the redundant expert, would leave 60 on one GPU at least.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.balance import Average, Served, balancedness, mean_and_peak, ratios
from eplb.checks import Immutable, counted, rising_layers, whole_number
from eplb.cluster import Cluster, check_cluster
from eplb.dispatching.dispatch import gpu_load, of_gpus, slot_load
from eplb.errors import LoadsError, PlacementError
from eplb.loads import as_array, check_values, is_tensor

_AT_ONCE = 64
"""Windows that are served together: more would only take memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Placement(Immutable):
    """Experts of L layers in the P slots of a cluster, checked and immutable.

    Attributes:
        phy2log: [L, P] logical expert in each slot, -1 in those of dead GPUs; slots are numbered
            GPU by GPU.
        num_experts: E, logical experts of a layer.
        cluster: the GPUs that the slots are on.
        layers: L numbers of the layers in the model, where they are known. Placements that differ
            in nothing else are equal.

    Raises:
        PlacementError: a shape that is not the cluster's, an expert out of range, or one that no
            slot of a layer holds.
    """

    phy2log: NDArray[np.int64]
    num_experts: int
    cluster: Cluster
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_cluster(self.cluster)
        object.__setattr__(self, "num_experts", _check_experts(self.num_experts, self.cluster))
        phy2log = _whole_numbers(self.phy2log)
        if phy2log.ndim != 2 or 0 in phy2log.shape:
            raise PlacementError(
                f"phy2log has shape {phy2log.shape}: give two axes, layers and slots [L, P]"
            )
        if phy2log.shape[1] != self.cluster.num_slots:
            raise PlacementError(
                f"phy2log has {phy2log.shape[1]} slots in a layer, the cluster has "
                f"{self.cluster.num_slots} ({self.cluster.num_gpus} GPUs of "
                f"{self.cluster.slots_per_gpu})"
            )
        wrong = (phy2log < 0) | (phy2log >= self.num_experts)
        if not self.cluster.full:
            empty = empty_slots(self.cluster)
            wrong[:, empty] = phy2log[:, empty] != -1
        if wrong.any():
            layer, slot = np.argwhere(wrong)[0]
            gpu = slot // self.cluster.slots_per_gpu
            why = f"experts are numbered 0 to {self.num_experts - 1}"
            if empty_slots(self.cluster)[slot]:
                why = f"GPU {gpu} has {self.cluster.capacity[gpu]} slots, and the others are -1"
            if gpu in self.cluster.dead:
                why = f"GPU {gpu} is dead, so its slots are -1"
            raise PlacementError(f"phy2log[{layer}, {slot}] is {phy2log[layer, slot]}: {why}")
        object.__setattr__(self, "phy2log", phy2log)
        missing = self.logcnt == 0
        if missing.any():
            layer, expert = np.argwhere(missing)[0]
            raise PlacementError(f"layer {layer} has no slot for expert {expert}: each needs one")
        phy2log.flags.writeable = False
        if self.layers is not None:
            layers = rising_layers(self.layers, len(phy2log), "layers", PlacementError)
            object.__setattr__(self, "layers", layers)

    @classmethod
    def _trusted(
        cls, phy2log: NDArray[np.int64], num_experts: int, cluster: Cluster
    ) -> "Placement":
        """A placement that the planner made: taken over without a copy or a check."""
        placement = object.__new__(cls)
        phy2log.flags.writeable = False
        placement.__dict__.update(phy2log=phy2log, num_experts=num_experts, cluster=cluster)
        return placement

    @classmethod
    def contiguous(cls, num_layers: int, num_experts: int, cluster: Cluster) -> "Placement":
        """The layout that engines start with: experts in order, the first ones again at the end."""
        check_cluster(cluster)
        whole_number(num_layers, "num_layers", error=PlacementError)
        _check_experts(num_experts, cluster)
        row = np.arange(cluster.num_held, dtype=np.int64) % num_experts
        return cls(np.tile(spread(row, cluster), (num_layers, 1)), num_experts, cluster)

    @classmethod
    def _of_survivors(
        cls, phy2log: NDArray[np.int64], num_experts: int, cluster: Cluster
    ) -> "Placement":
        """A placement that the planner made for the slots that the survivors of a cluster have,
        taken over.
        """
        return cls._trusted(spread(phy2log, cluster), num_experts, cluster)

    def without(self, gpus: Iterable[int]) -> "Placement":
        """What is left of the placement where GPUs die: their slots are -1.

        Raises:
            ClusterError: a GPU that there is none of, or none left alive.
            PlacementError: an expert that dies with them.
        """
        cluster = self.cluster.without(gpus)
        lost = self.lost_on(cluster)
        if len(lost):
            layer, expert = lost[0].tolist()
            raise PlacementError(
                f"{len(lost)} experts have no copy on the GPUs alive, the first is expert {expert} "
                f"of layer {layer}: plan from this placement, for a cluster without the dead GPUs"
            )
        phy2log = np.where(empty_slots(cluster), -1, self.phy2log)
        return Placement(phy2log, self.num_experts, cluster, self.layers)

    @property
    def survivors(self) -> "Placement":
        """The same on the GPUs alive alone, numbered anew from 0, as engines want it that start
        with those; the placement itself where none is dead.
        """
        if not self.cluster.dead:
            return self
        alive = self.cluster.survivors
        phy2log = spread(self.phy2log[:, ~empty_slots(self.cluster)], alive)
        return Placement(phy2log, self.num_experts, alive, self.layers)

    def lost_on(self, cluster: Cluster) -> NDArray[np.int64]:
        """[K, 2] layer and expert of each expert whose every copy was on a GPU that is dead in the
        cluster: their weights are to be read from the checkpoint again. A GPU that the cluster does
        not have is no dead one, and can still send what it holds.
        """
        num_gpus = max(self.cluster.num_gpus, cluster.num_gpus)
        held = self.held_by(num_gpus)
        dead = np.zeros(num_gpus, np.bool_)
        dead[list(cluster.dead)] = True
        lost: NDArray[np.int64] = np.argwhere(held.any(axis=1) & ~held[:, ~dead].any(axis=1))
        return lost

    def __repr__(self) -> str:
        return (
            f"Placement({counted(self.num_layers, 'layer')}, {self.num_experts} experts, "
            f"{self.cluster.num_slots} slots on {self.cluster.num_gpus} GPUs)"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.cluster == other.cluster
            and self.num_experts == other.num_experts
            and np.array_equal(self.phy2log, other.phy2log)
        )

    def __hash__(self) -> int:
        return hash((self.cluster, self.num_experts, self.phy2log.tobytes()))

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.phy2log.shape[0])

    @cached_property
    def logcnt(self) -> NDArray[np.int64]:
        """[L, E] replicas of each expert."""
        layers = np.arange(self.num_layers)[:, None] * self.num_experts
        experts = (self.phy2log + layers).ravel()
        if not self.cluster.full:
            experts = experts[self.phy2log.ravel() >= 0]
        counts = np.bincount(experts, minlength=self.num_layers * self.num_experts)
        counts = counts.astype(np.int64, copy=False).reshape(self.num_layers, self.num_experts)
        counts.flags.writeable = False
        return counts

    @cached_property
    def log2phy(self) -> NDArray[np.int64]:
        """[L, E, X] slots of each expert in rising order, padded with -1; X is the most replicas
        that an expert has.
        """
        log2phy = self._log2phy(int(self.logcnt.max()))
        log2phy.flags.writeable = False
        return log2phy

    def _log2phy(self, width: int) -> NDArray[np.int64]:
        """[L, E, width] slots of each expert in rising order, padded with -1."""
        slots = np.argsort(self.phy2log, axis=1, kind="stable")
        # Slots that hold none come first.
        slots = slots[:, self.cluster.num_slots - self.cluster.num_held :]
        experts = np.take_along_axis(self.phy2log, slots, axis=1)
        begins = np.cumsum(self.logcnt, axis=1) - self.logcnt
        replicas = np.arange(slots.shape[1]) - np.take_along_axis(begins, experts, axis=1)
        log2phy = np.full((self.num_layers, self.num_experts, width), -1)
        log2phy[np.arange(self.num_layers)[:, None], experts, replicas] = slots
        return log2phy

    @cached_property
    def num_duplicates(self) -> int:
        """Slots, in all layers, that hold an expert which another slot of the GPU holds too."""
        rows = self.phy2log.reshape(-1, self.cluster.slots_per_gpu)
        rows = np.sort(rows, axis=1)
        return int(((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).sum())

    def gpu_load(self, loads: Any, dispatch: Any = "even") -> NDArray[np.float64]:
        """Load of each GPU, by how tokens are split over the replicas of their expert.

        Args:
            loads: [..., L, E] tokens routed to each logical expert.
            dispatch: "even"; "sglang" or "ascend", the rules of these engines; "best", each window
                split anew so that GPUs are as evenly loaded as the placement allows; or a split
                that holds for all windows, [L, P] or what `eplb.dispatch` made.

        Returns:
            [..., L, G], in the unit of the loads.

        Raises:
            LoadsError: loads of another shape, or values that are no numbers of tokens.
            OptionError: a rule that is not known, or what is no split of this placement.
        """
        if not isinstance(dispatch, str) or dispatch != "even":
            return gpu_load(self, loads, dispatch)
        return of_gpus(self.slot_load(loads), self.cluster.num_gpus)

    def slot_load(self, loads: Any, dispatch: Any = "even") -> NDArray[np.float64]:
        """Load of each physical expert, [..., L, P], from loads [..., L, E], by a rule of dispatch
        or a split as for `gpu_load`.

        Raises:
            LoadsError: loads of another shape, or values that are no numbers of tokens.
        """
        if not isinstance(dispatch, str) or dispatch != "even":
            return slot_load(self, loads, dispatch)
        array = as_array(loads)
        if array.shape[-2:] != self.logcnt.shape:
            raise LoadsError(
                f"loads have shape {array.shape}: the placement has "
                f"{counted(self.num_layers, 'layer')} of {self.num_experts} experts"
            )
        check_values(array)
        share = array / self.logcnt
        of_slot: NDArray[np.float64] = share[..., np.arange(self.num_layers)[:, None], self.phy2log]
        if not self.cluster.full:
            of_slot[..., empty_slots(self.cluster)] = 0.0
        return of_slot

    def balancedness(
        self, loads: Any, dispatch: Any = "even", *, average: Average = "mean"
    ) -> float:
        """Mean GPU load over max GPU load, averaged over windows and layers; 1 is perfect. Both are
        of the GPUs that are alive.

        Layers with no load are left out; where no layer has any, nothing waits and this is 1.

        Args:
            loads: [..., L, E] tokens routed to each logical expert.
            dispatch: the rule by which tokens are split over replicas, as for `gpu_load`.
            average: "mean" of the ratios, or "pooled": sum of the means / sum of the maxima.

        Raises:
            LoadsError: loads of another shape, or values that are no numbers of tokens.
            OptionError: another rule or another average.
        """
        return balancedness(self.gpu_load(loads, dispatch), average, self.cluster.speeds)

    def ratios(self, loads: Any, dispatch: Any = "even") -> NDArray[np.float64]:
        """[..., L] the same of each window and layer, NaN where a layer has no load."""
        return ratios(self.gpu_load(loads, dispatch), self.cluster.speeds)

    def peaks(self, loads: Any, dispatch: Any = "even") -> NDArray[np.float64]:
        """[..., L] load of the busiest GPU, over its speed where GPUs differ."""
        return mean_and_peak(self.gpu_load(loads, dispatch), self.cluster.speeds)[1]

    def serve(self, loads: NDArray[np.float64], dispatch: Any = "even") -> Served:
        """How evenly GPUs are loaded in each of the windows [T, L, E], one after the other, by a
        rule of dispatch as for `gpu_load`.
        """
        if isinstance(dispatch, str) and dispatch == "even":
            return Served.of((self.gpu_load(window) for window in loads), self.cluster.speeds)
        # Many at once: "best" levels them together, and a split that is given is checked each time.
        begins = range(0, len(loads), _AT_ONCE)
        parts = (self.gpu_load(loads[at : at + _AT_ONCE], dispatch) for at in begins)
        return Served.of(chain.from_iterable(parts), self.cluster.speeds)

    def moves_from(self, other: "Placement") -> int:
        """Moves from another placement to this: (layer, GPU, expert) held here and not there.

        Raises:
            PlacementError: no placement, or one of other layers or experts.
        """
        check_placement(other)
        if (self.num_layers, self.num_experts) != (other.num_layers, other.num_experts):
            raise PlacementError(
                f"{other!r} and {self!r} are of different models: "
                "no moves lead from one to the other"
            )
        return int(self.moves_by_layer(other).sum())

    def moves_by_layer(self, other: "Placement") -> NDArray[np.int64]:
        """[L] moves from another placement of the same model."""
        mine, theirs = (each._by_gpu().transpose(1, 0, 2) for each in (self, other))
        num_gpus = min(len(mine), len(theirs))
        received = np.ones(mine.shape, np.bool_)
        received[:num_gpus] = (mine[:num_gpus, :, :, None] != theirs[:num_gpus, :, None, :]).all(
            axis=3
        )
        # A second copy on a GPU is no second move.
        for slot in range(1, mine.shape[2]):
            received[:, :, slot] &= (mine[:, :, :slot] != mine[:, :, slot, None]).all(axis=2)
        if not self.cluster.full:
            received &= mine >= 0
        moves: NDArray[np.int64] = received.sum(axis=(0, 2))
        return moves

    def held_by(self, num_gpus: int) -> NDArray[np.bool_]:
        """[L, G, E] whether each of so many GPUs holds an expert; those beyond the cluster none."""
        by_gpu = self._by_gpu()[:, :num_gpus]
        held = np.zeros((self.num_layers, num_gpus, self.num_experts), np.bool_)
        layers = np.arange(self.num_layers)[:, None, None]
        held[layers, np.arange(by_gpu.shape[1])[:, None], by_gpu] = True
        if not self.cluster.full:
            # Empty slots are -1, which names the last expert.
            last = (by_gpu == self.num_experts - 1).any(axis=2)
            held[:, : by_gpu.shape[1], -1] = last
        return held

    def _by_gpu(self) -> NDArray[np.int64]:
        """[L, G, S] expert in each slot of each GPU."""
        return self.phy2log.reshape(self.num_layers, self.cluster.num_gpus, -1)


def check_placement(value: object, name: str = "placement") -> Placement:
    """A placement, or a PlacementError that calls what is none by `name`."""
    if not isinstance(value, Placement):
        raise PlacementError(f"{name} is of type {type(value).__name__}: give a Placement")
    return value


def _check_experts(number: object, cluster: Cluster) -> int:
    experts = whole_number(number, "num_experts", error=PlacementError)
    if experts > cluster.num_held:
        raise PlacementError(
            f"num_experts is {experts}, and the cluster has {cluster.num_held} slots in a layer: "
            "each expert needs one"
        )
    return experts


def empty_slots(cluster: Cluster) -> NDArray[np.bool_]:
    """[P] whether a slot holds none: its GPU is dead, or has fewer slots."""
    beyond = np.arange(cluster.slots_per_gpu) >= np.array(cluster.capacity)[:, None]
    empty: NDArray[np.bool_] = beyond.ravel()
    return empty


def spread(held: NDArray[np.int64], cluster: Cluster) -> NDArray[np.int64]:
    """[..., P] slots of a cluster, -1 in those that hold none, from those alone that do; the same
    array where all do.
    """
    if cluster.full:
        return held
    spread = np.full((*held.shape[:-1], cluster.num_slots), -1)
    spread[..., ~empty_slots(cluster)] = held
    return spread


def _whole_numbers(values: ArrayLike) -> NDArray[np.int64]:
    """A copy as int64, or an error where that would change a value."""
    if is_tensor(values):
        tensor: Any = values
        if tensor.is_floating_point():
            raise PlacementError(f"phy2log has type {tensor.dtype}: give whole numbers")
        values = tensor.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError:
        raise PlacementError("phy2log has rows of different lengths: give a full array") from None
    if array.dtype.kind not in "ui":
        raise PlacementError(f"phy2log has type {array.dtype}: give whole numbers")
    return array.astype(np.int64, copy=True, order="C")
