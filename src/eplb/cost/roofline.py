"""The roofline of an expert layer: from what GPUs hold and receive to how long a layer takes.

A GPU computes and reads its memory at once, each at a share of its peak; the two hide each other
only in part, so the roof has a round corner: sqrt(compute^2 + memory^2), which is the slower of the
two where they differ and 1.4 times either where they are alike. Tokens travel to experts and back,
within a node and between nodes at once, as fast as the slower of the two. Each stage ends when the
last GPU has ended it.

The roofline is that of Williams, Waterman and Patterson, 2009, but for its corner.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted, real_number, share_of_one
from eplb.cost.gpus import Gpu
from eplb.cost.models import Model
from eplb.errors import OptionError

if TYPE_CHECKING:
    from eplb.cost import Estimate

_MOST_TOKENS_SENT_SINGLY = 256


@dataclass(frozen=True)
class Assumptions:
    """What an estimate takes for granted. The same for every GPU and model, and none is measured.

    `compute_efficiency` and `memory_efficiency` are the multiples of 0.05 that fit DeepGEMM's
    published table of grouped products best (any memory efficiency from 0.8 to 0.95 does as well),
    `exchange_latency` the multiple of 5 us that fits DeepEP's table; the efficiencies of links and
    network are those that DeepSeek states of its own (160 of 200 and 40 of 50 GB/s). Other
    published times are met with them (docs/cost.md).

    Attributes:
        compute_efficiency: share of the dense peak that the experts' products reach.
        memory_efficiency: share of the memory's bandwidth.
        link_efficiency: share of the bandwidth within a node.
        network_efficiency: share of the bandwidth between nodes.
        exchange_latency: seconds that a dispatch or a combine takes however little it carries.
        expert_share: share of a perfectly balanced step that expert layers take; attention, shared
            experts, dense layers and sampling have the rest, which no placement changes.
        overlapped: whether tokens travel while experts compute, as in a fused kernel or with two
            batches in turn; else one waits for the other.
        one_copy_per_node: whether a token crosses to a node once however many of its experts are
            there, and is handed on inside, as DeepEP's kernels for prefill do it; else once for
            each expert, as those for decoding. None is yes above 256 tokens a GPU, to which DeepEP
            advises the latter.

    Raises:
        OptionError: a share that is not above 0 and at most 1, or a latency below 0.
    """

    compute_efficiency: float = 0.6
    memory_efficiency: float = 0.85
    link_efficiency: float = 0.8
    network_efficiency: float = 0.8
    exchange_latency: float = 25e-6
    expert_share: float = 0.5
    overlapped: bool = False
    one_copy_per_node: bool | None = None

    def __post_init__(self) -> None:
        for name in ("compute", "memory", "link", "network"):
            share_of_one(getattr(self, f"{name}_efficiency"), f"{name}_efficiency")
        share_of_one(self.expert_share, "expert_share")
        real_number(self.exchange_latency, "exchange_latency", "seconds", above=False)

    def for_batch(self, tokens_per_gpu: float) -> "Assumptions":
        """These with what depends on the batch settled."""
        if self.one_copy_per_node is not None:
            return self
        return replace(self, one_copy_per_node=tokens_per_gpu > _MOST_TOKENS_SENT_SINGLY)


DEFAULTS = Assumptions()
"""The assumptions where none are given."""


@dataclass(frozen=True, eq=False)
class LayerTime:
    """Estimated seconds of an expert layer, [...] for each of the layers given.

    Attributes:
        seconds: of the layer: where stages overlap, less than its parts together.
        experts: computing and reading of the slowest GPU.
        exchange: dispatch and combine, their latencies too.
    """

    seconds: NDArray[np.float64]
    experts: NDArray[np.float64]
    exchange: NDArray[np.float64]


def layer_time(
    tokens: NDArray[np.float64],
    active_experts: NDArray[np.float64],
    gpu: Gpu,
    model: Model,
    *,
    num_gpus: int,
    num_nodes: int = 1,
    assumptions: Assumptions = DEFAULTS,
) -> LayerTime:
    """Estimated time of expert layers from what each GPU has to do in one step.

    Args:
        tokens: [..., any] tokens that each GPU's experts process, a token counting once for each
            of its experts there; GPUs that cannot be the slowest may be left out.
        active_experts: [..., any] physical experts of the GPU that any token needs.
        gpu: of the cluster.
        model: that is served.
        num_gpus: G, GPUs that the tokens come from, evenly.
        num_nodes: N, nodes that they stand on.
        assumptions: what is taken for granted; a token is sent once for each expert unless they
            say that it is sent once for each node.

    Returns:
        [...] seconds. A layer without tokens takes none.

    Raises:
        OptionError: GPUs that the nodes do not divide.
    """
    if num_gpus < 1 or num_nodes < 1 or num_gpus % num_nodes:
        raise OptionError(f"{num_gpus} GPUs do not divide over {num_nodes} nodes")
    return Roofline(gpu, model, num_gpus, num_nodes, assumptions).time(tokens, active_experts)


@dataclass(frozen=True)
class Roofline:
    """What the time of expert layers follows from; attributes as the arguments of `layer_time`."""

    gpu: Gpu
    model: Model
    num_gpus: int
    num_nodes: int
    assumptions: Assumptions

    def time(self, tokens: NDArray[np.float64], active_experts: NDArray[np.float64]) -> LayerTime:
        """As `layer_time`."""
        sure = self.assumptions
        compute, memory, travel = self.stages(tokens, active_experts)
        experts = _round_corner(compute, memory)
        busy = tokens.max(axis=-1) > 0.0
        latency = busy * (2.0 * sure.exchange_latency if self.num_gpus > 1 else 0.0)
        if sure.overlapped:
            seconds = _round_corner(experts, travel).max(axis=-1) + latency
        else:
            seconds = experts.max(axis=-1) + travel.max(axis=-1) + latency
        return LayerTime(
            np.where(busy, seconds, 0.0),
            np.where(busy, experts.max(axis=-1), 0.0),
            travel.max(axis=-1) + latency,
        )

    def stages(
        self, tokens: NDArray[np.float64], active_experts: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Seconds of computing, of memory and of travel, each by itself, of whatever so many tokens
        and experts come to, [...].
        """
        gpu, model, sure = self.gpu, self.model, self.assumptions
        rate, _ = gpu.rate(model.number_format)
        compute = tokens * (2.0 * model.expert_weights) / (rate * sure.compute_efficiency)
        # What both products of an expert read and write for a token, weights aside.
        products_in = (model.hidden_size + model.expert_size) * model.dispatch_bytes
        products_out = (2 * model.expert_size + model.hidden_size) * 2.0
        read = active_experts * float(model.expert_bytes) + tokens * (products_in + products_out)
        memory = read / (gpu.memory_bandwidth * sure.memory_efficiency)
        sent = model.hidden_size * (model.dispatch_bytes + model.combine_bytes)
        return compute, memory, tokens * (sent * self._seconds_of_a_byte())

    def _seconds_of_a_byte(self) -> float:
        """Time that a GPU's links need for each byte of the tokens that its experts process.

        Tokens come from all GPUs alike, its own too, from which nothing travels. Where a token
        crosses to a node once, routing is taken to be even over nodes.
        """
        gpu, sure, num_nodes, top_k = self.gpu, self.assumptions, self.num_nodes, self.model.top_k
        between = 1.0 - 1.0 / num_nodes
        within = 1.0 / num_nodes - 1.0 / self.num_gpus
        if sure.one_copy_per_node:
            nodes_reached = (num_nodes - 1) * (1.0 - math.pow(1.0 - 1.0 / num_nodes, top_k))
            between = nodes_reached / top_k
            within = 1.0 - 1.0 / self.num_gpus
        return max(
            within / (gpu.link_bandwidth * sure.link_efficiency),
            between / (gpu.network_bandwidth * sure.network_efficiency),
        )


def _round_corner(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two things at once that hide each other in part."""
    # Not np.hypot, whose last bit depends on the platform.
    together: NDArray[np.float64] = np.sqrt(first * first + second * second)
    return together


def words_of(estimate: "Estimate") -> tuple[str, ...]:
    """What an estimate assumes, a sentence each."""
    gpu, model, cluster = estimate.gpu, estimate.model, estimate.cluster
    sure = estimate.assumptions
    num_layers = int(np.count_nonzero(estimate.layer_seconds))
    _, computed = gpu.rate(model.number_format)
    words = [
        "This is an estimate from a roofline, not a measurement: arithmetic, memory and network "
        "are taken to reach these shares of their peaks.",
        f"{cluster.num_gpus} x {gpu.name} on {cluster.num_nodes} "
        f"{'node' if cluster.num_nodes == 1 else 'nodes'} serve {model.name}; each brings "
        f"{estimate.tokens_per_gpu:,g} tokens into a step, and each token goes to {model.top_k} "
        "experts.",
        f"An expert of a layer is {model.expert_bytes / 1e6:,.1f} MB, read once in a step if any "
        "token needs it.",
        f"Matmuls run at {sure.compute_efficiency:.0%} of the {computed.upper()} peak and memory "
        f"at {sure.memory_efficiency:.0%} of its bandwidth. Matmuls and memory traffic partly "
        "overlap.",
    ]
    if computed != model.number_format:
        words.append(
            f"The model computes in {model.number_format.upper()}, for which {gpu.name} has no "
            f"units: {computed.upper()} stands in."
        )
    if cluster.num_gpus > 1:
        words.append(
            f"Dispatch and combine reach {sure.link_efficiency:.0%} of the links within a node and "
            f"{sure.network_efficiency:.0%} of the network between nodes, and take at least "
            f"{sure.exchange_latency * 1e6:g} us each."
        )
        once = "node that has any of its experts" if sure.one_copy_per_node else "expert"
        words.append(f"A token is sent once for each {once}.")
        words.append(
            "Tokens travel while experts compute."
            if sure.overlapped
            else "Tokens travel before and after experts compute, not at the same time."
        )
    words.append(
        f"Expert layers take {sure.expert_share:.0%} of a perfectly balanced step; the rest, such "
        "as attention, is the same for every placement."
    )
    if num_layers != model.num_moe_layers:
        words.append(
            f"The loads have {counted(num_layers, 'layer')} with load, and the model has "
            f"{model.num_moe_layers}: a step has the model's number of layers at their mean time."
        )
    words.append(
        "Each step has exactly its window's shares of load. Chance from step to step, which raises "
        "the peaks of small batches, is not counted, and neither is the time to plan and to move."
    )
    return tuple(words)
