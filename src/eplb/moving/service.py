"""The time that moves cost a running service, and the time that lower peaks save it.

Transfers are the small part of what a rebalance costs an engine. `OVERHEADS` has the rest, by
engine and mode, from times that were published.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eplb.checks import find_named, real_number, share_of_one
from eplb.cluster import Cluster
from eplb.cost.gpus import Gpu, find_gpu
from eplb.cost.models import Model, expert_bytes_of, find_model
from eplb.cost.roofline import Assumptions
from eplb.placement import Placement

_GIGA = 1e9


@dataclass(frozen=True)
class Overhead:
    """What a rebalance costs an engine in one of its modes, beside the transfers themselves.

    Attributes:
        name: of the engine, and of the mode that is not its default.
        source: where the figures are from.
        stall: share of a transfer's time in which the service is stopped.
        rebalance_seconds: that the service is stopped for each rebalance.
        layer_seconds: that it is stopped for each layer that moves.
        layer_delay: seconds from when one layer has moved until the next has, 0 if all serve at
            once.
    """

    name: str
    source: str
    stall: float = 1.0
    rebalance_seconds: float = 0.0
    layer_seconds: float = 0.0
    layer_delay: float = 0.0


_PASS_SECONDS = 0.05
"""Seconds of a forward pass, assumed: a usual bound for decoding."""

# vllm#43219: a rebalance of 58 layers on 32 GB200 stops vLLM for 0.91 s on average (0.65 to 1.70).
# Transfers at the links' rate take 0.017 of it: 501 experts of 24.8 MB into each GPU, at 720 GB/s.
# vllm#28369: of 0.26 s for 26 layers of DeepSeek-V2-Lite on 8 H100, planning takes 0.01, and the
# transfers another 0.01; so a layer costs 9 ms there, and 15 ms in the first.
_VLLM = "https://github.com/vllm-project/vllm/pull/"
# sglang#7879: planning, making point-to-point operations and "other Python" take about 1 s, for the
# 58 layers of DeepSeek-V3; transfers come on top. A rebalance whole is 1.8 s in sglang#6739.
_SGLANG = "about 1 s of work on the host: https://github.com/sgl-project/sglang/issues/7879"

OVERHEADS: dict[str, Overhead] = {
    each.name: each
    for each in (
        Overhead(
            "vllm",
            f"asynchronous, its default: nothing stops, and a layer comes each pass: {_VLLM}43219",
            stall=0.0,
            layer_delay=_PASS_SECONDS,
        ),
        Overhead(
            "vllm-sync",
            f"stops for 0.91 s on 32 GB200: {_VLLM}43219; planning: {_VLLM}28369",
            rebalance_seconds=0.01,
            layer_seconds=0.015,
        ),
        Overhead("sglang", _SGLANG, layer_seconds=0.017),
        Overhead(
            "sglang-chunks",
            f"{_SGLANG}; with a layer in a chunk, one between passes: "
            "https://github.com/sgl-project/sglang/pull/6851",
            layer_seconds=0.017,
            layer_delay=_PASS_SECONDS,
        ),
    )
}
"""What a rebalance costs engines, by engine and mode."""


def find_overhead(name: str) -> Overhead:
    """What a rebalance costs an engine, by its name and mode.

    Raises:
        OptionError: a name that is not known; the message has the nearest and all of them.
    """
    return find_named(
        name,
        OVERHEADS,
        "engine",
        "rebalance_seconds, layer_seconds and layer_delay (--rebalance-seconds, --layer-seconds, "
        "--layer-delay)",
    )


def bandwidths(gpu: Gpu, cluster: Cluster) -> tuple[float, float]:
    """GB/s that a GPU receives from its node, and that enter a node: the share of the peak that is
    reached in practice.
    """
    per_node = cluster.num_gpus // cluster.num_nodes
    within = gpu.link_bandwidth * Assumptions.link_efficiency / _GIGA
    return within, gpu.network_bandwidth * Assumptions.network_efficiency * per_node / _GIGA


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
        rebalance_seconds: for which the service is stopped at each rebalance, beside transfers.
        layer_seconds: the same for each layer that moves.
        layer_delay: seconds from when one layer has moved until the next has, as where an engine
            moves a layer each forward pass.

    Raises:
        OptionError: bytes that are not a whole number of 1 or more, bandwidths that are not above
            0, shares that are not from 0 to 1, or times below 0.
    """

    expert_bytes: int
    bandwidth_within: float
    bandwidth_between: float
    expert_share: float = Assumptions.expert_share
    stall: float = 1.0
    rebalance_seconds: float = 0.0
    layer_seconds: float = 0.0
    layer_delay: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "expert_bytes", expert_bytes_of(None, self.expert_bytes))
        for name in ("bandwidth_within", "bandwidth_between"):
            real_number(getattr(self, name), name, "GB/s")
        share_of_one(self.expert_share, "expert_share")
        share_of_one(self.stall, "stall", least=0.0)
        for name in ("rebalance_seconds", "layer_seconds", "layer_delay"):
            real_number(getattr(self, name), name, "seconds", above=False)

    @classmethod
    def of(
        cls,
        model: str | Model,
        gpu: str | Gpu,
        cluster: Cluster,
        *,
        stall: float | None = None,
        engine: str | None = None,
    ) -> "Service":
        """A service by its model and GPU, as figures or by their names (`eplb.cost.MODELS`,
        `eplb.cost.GPUS`), with the share of the peak bandwidths that is reached in practice.

        Args:
            model: the model.
            gpu: the GPU.
            cluster: the GPUs and nodes.
            stall: share of a transfer's time in which the service is stopped; by default the
                engine's, or 1.
            engine: "vllm", "vllm-sync", "sglang" or "sglang-chunks", whose overheads are counted.

        Raises:
            OptionError: an unknown model, GPU or engine.
        """
        card = gpu if isinstance(gpu, Gpu) else find_gpu(gpu)
        known = model if isinstance(model, Model) else find_model(model)
        made = cls(known.expert_bytes, *bandwidths(card, cluster))
        made = made if engine is None else made.in_engine(engine)
        return made if stall is None else replace(made, stall=stall)

    def in_engine(self, name: str) -> "Service":
        """The same service with the overheads of an engine.

        Raises:
            OptionError: an engine that is not known.
        """
        found = find_overhead(name)
        fields = ("stall", "rebalance_seconds", "layer_seconds", "layer_delay")
        return replace(self, **{field: getattr(found, field) for field in fields})

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

    def lost_seconds(self, moving_seconds: float, layers: int = 0, rebalances: int = 1) -> float:
        """Seconds that the service loses to rebalances that move so many layers in all, and whose
        transfers take `moving_seconds`. Where nothing moves, nothing is lost.
        """
        overhead = rebalances * self.rebalance_seconds + layers * self.layer_seconds
        return self.stall * moving_seconds + (overhead if layers else 0.0)

    def delay(self, layers: int) -> float:
        """Seconds until a layer has moved, mean over so many layers that move in turn."""
        return self.layer_delay * (layers + 1) / 2.0 if layers else 0.0

    def gained_seconds(self, fall: float, seconds: float, layers: int = 0) -> float:
        """Seconds that the service gains in `seconds` when peaks fall by the share `fall`, once
        so many layers have moved.
        """
        return self.expert_share * fall * max(0.0, seconds - self.delay(layers))


DEFAULT_SERVICE = Service(44_040_192, 360.0, 320.0)
"""DeepSeek-V3 on H100s, 8 on a node, that stops for each transfer (`Service.of`)."""
