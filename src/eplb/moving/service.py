"""The time that moves cost a running service, and the time that lower peaks save it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb.checks import real_number, share_of_one
from eplb.cluster import Cluster
from eplb.cost.gpus import find_gpu
from eplb.cost.models import expert_bytes_of, find_model
from eplb.cost.roofline import Assumptions
from eplb.placement import Placement

__all__ = ["DEFAULT_SERVICE", "Service"]

_GIGA = 1e9


@dataclass(frozen=True)
class Service:
    """A service whose steps wait for the busiest GPU, and which can receive experts.

    Attributes:
        expert_bytes: bytes of one expert's weights in one layer.
        bandwidth_within: GB/s (10^9 bytes) that a GPU receives from its node.
        bandwidth_between: GB/s that enter a node from the others, all its GPUs together.
        expert_share: share of the service's time that each layer's busiest GPU determines, and
            which falls as that GPU's load falls.
        stall: share of a transfer's time in which the service is stopped: 1 if it stops for all of
            it, 0 if transfers cost nothing.

    Raises:
        OptionError: bytes that are not a whole number of 1 or more, bandwidths that are not above
            0, or shares that are not from 0 to 1.
    """

    expert_bytes: int
    bandwidth_within: float
    bandwidth_between: float
    expert_share: float = Assumptions.expert_share
    stall: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_bytes", expert_bytes_of(None, self.expert_bytes))
        for name in ("bandwidth_within", "bandwidth_between"):
            real_number(getattr(self, name), name, "GB/s")
        share_of_one(self.expert_share, "expert_share")
        if self.stall:
            share_of_one(self.stall, "stall")

    @classmethod
    def of(cls, model: str, gpu: str, cluster: Cluster, *, stall: float = 1.0) -> "Service":
        """A service by the names of its model and GPU (`eplb.cost.MODELS`,
        `eplb.cost.GPUS`), with the share of the peak bandwidths that is reached in practice.

        Raises:
            OptionError: an unknown model or GPU.
        """
        known, assumed = find_gpu(gpu), Assumptions()
        return cls(
            round(find_model(model).expert_bytes),
            known.link_bandwidth * assumed.link_efficiency / _GIGA,
            known.network_bandwidth
            * assumed.network_efficiency
            * (cluster.num_gpus // cluster.num_nodes)
            / _GIGA,
            stall=stall,
        )

    def moving_seconds(
        self, old: Placement, new: Placement, layers: NDArray[np.bool_] | None = None
    ) -> float:
        """Minimum seconds of the transfers from one placement to another: the time of the GPU or
        node that receives most. `layers` [L] selects some of them. `eplb.migrate` comes within a
        wave of this.
        """
        had = old.held_by(new.cluster.num_gpus)
        received = new.held_by(new.cluster.num_gpus) & ~had
        if layers is not None:
            received &= layers[:, None, None]
        by_gpu = received.sum(axis=(0, 2))
        seconds = float(by_gpu.max()) * self.expert_bytes / (self.bandwidth_within * _GIGA)
        nodes = new.cluster.num_nodes
        if nodes > 1:
            shape = (new.num_layers, nodes, -1, new.num_experts)
            there = had.reshape(shape).any(axis=2, keepdims=True)
            entering = (received.reshape(shape) & ~there).any(axis=2).sum(axis=(0, 2))
            entered = float(entering.max()) * self.expert_bytes
            seconds = max(seconds, entered / (self.bandwidth_between * _GIGA))
        return seconds

    def move_seconds(self, cluster: Cluster) -> float:
        """Seconds that the service loses for each move, where moves are spread evenly over GPUs."""
        each = 1.0 / (self.bandwidth_within * cluster.num_gpus)
        if cluster.num_nodes > 1:
            each = max(each, 1.0 / (self.bandwidth_between * cluster.num_nodes))
        return self.stall * each * self.expert_bytes / _GIGA

    def lost_seconds(self, moving_seconds: float) -> float:
        """Seconds that the service loses to a transfer that takes `moving_seconds`."""
        return self.stall * moving_seconds

    def gained_seconds(self, fall: float, seconds: float) -> float:
        """Seconds that the service gains in `seconds` when peaks fall by the share `fall`."""
        return self.expert_share * fall * seconds


DEFAULT_SERVICE = Service(44_040_192, 360.0, 320.0)
"""DeepSeek-V3 on H100s, 8 on a node, that stops for each transfer (`Service.of`)."""
