"""Options about what a change costs where it is made, and the service that they say."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from eplb.checks import real_number, whole_number
from eplb.cli.bundles import beginning
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS, Gpu, find_gpu
from eplb.cost.models import EXPERT_BYTES, MODELS, Model, find_model
from eplb.cost.roofline import DEFAULTS
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.moving.service import OVERHEADS, Service

__all__ = [
    "Between",
    "EngineName",
    "ExpertBytes",
    "ModelName",
    "PlainExpertBytes",
    "Rates",
    "ServiceOptions",
    "TransferOptions",
    "Within",
    "gpu_with",
    "model_with",
]

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        autocompletion=beginning(MODELS),
        help=f"Name of the model, for the bytes of an expert: {', '.join(MODELS)}. "
        "[default: what the loads say]",
        show_default=False,
    ),
]
GpuName = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        autocompletion=beginning(GPUS),
        help=f"Name of the GPU, for its bandwidths: {', '.join(GPUS)}.",
    ),
]
ExpertBytes = Annotated[
    int | None,
    typer.Option(help="Bytes of one expert's weights in one layer. Overrides --model."),
]
Within = Annotated[
    float | None,
    typer.Option(help="GB/s that a GPU receives from within its node. Overrides --gpu."),
]
Between = Annotated[
    float | None,
    typer.Option(
        help="GB/s that a node receives from other nodes, all its GPUs together. Overrides --gpu."
    ),
]
Stall = Annotated[
    float | None,
    typer.Option(
        help="Share of a transfer's time in which the service is stopped. "
        "[default: the engine's, or 1]",
        show_default=False,
    ),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        autocompletion=beginning(OVERHEADS),
        help="Engine whose own time for a rebalance is counted, beside that of the transfers: "
        f"{', '.join(OVERHEADS)}. [default: transfers alone]",
        show_default=False,
    ),
]
RebalanceSeconds = Annotated[
    float | None,
    typer.Option(
        help="Seconds that the service stops at each rebalance, beside the transfers. "
        "Overrides --engine.",
        show_default=False,
    ),
]
LayerSeconds = Annotated[
    float | None,
    typer.Option(
        help="Seconds that the service stops for each layer that moves, beside the transfers. "
        "Overrides --engine.",
        show_default=False,
    ),
]
LayerDelay = Annotated[
    float | None,
    typer.Option(
        help="Seconds from when one layer has moved until the next has: a forward pass, where the "
        "engine moves a layer at a time. Overrides --engine.",
        show_default=False,
    ),
]
ExpertShare = Annotated[
    float | None,
    typer.Option(
        help="Share of the service's time that each layer's busiest GPU determines. "
        f"[default: {Service.expert_share:g}]",
        show_default=False,
    ),
]


PlainExpertBytes = Annotated[
    int | None, typer.Option(help="Bytes of one expert's weights in one layer.")
]


def gpu_with(known: Gpu, cluster: Cluster, within: float | None, between: float | None) -> Gpu:
    """A GPU with the bandwidths that are given: those reached, in GB/s, and between nodes that of
    all GPUs of a node.
    """
    if within is not None:
        reached = real_number(within, "--bandwidth-within", "GB/s") * 1e9
        known = replace(known, link_bandwidth=reached / DEFAULTS.link_efficiency)
    if between is not None:
        reached = real_number(between, "--bandwidth-between", "GB/s") * 1e9
        of_one = reached / (cluster.num_gpus // cluster.num_nodes)
        known = replace(known, network_bandwidth=of_one / DEFAULTS.network_efficiency)
    return known


def model_with(known: Model, expert_bytes: int | None) -> Model:
    """A model with experts of the size that is given."""
    if expert_bytes is None:
        return known
    size = whole_number(expert_bytes, "--expert-bytes")
    return replace(known, bytes_per_weight=size / known.expert_weights)


@dataclass(frozen=True)
class Rates:
    """Bytes of an expert, and GB/s within a node and between nodes; None where nothing says."""

    expert_bytes: int | None
    within: float | None
    between: float | None


@dataclass(frozen=True)
class TransferOptions:
    """What an expert weighs and how fast it travels: as figures, or by the names of a model and of
    a GPU.
    """

    model: ModelName = None
    gpu: GpuName = None
    expert_bytes: ExpertBytes = None
    bandwidth_within: Within = None
    bandwidth_between: Between = None

    def rates(self, cluster: Cluster, num_experts: int, trace_model: str | None = None) -> Rates:
        """The rates that the options give.

        Args:
            cluster: the GPUs and nodes.
            num_experts: E of the loads or of the placement.
            trace_model: the model that the loads name. It is passed over if its layers do not have
                `num_experts` experts.

        Raises:
            OptionError: a name is not known, or the model named has another number of experts.
        """
        size, within, between = self.expert_bytes, self.bandwidth_within, self.bandwidth_between
        if size is None and self.model is not None:
            known_model = find_model(self.model, "--expert-bytes")
            if known_model.num_experts != num_experts:
                raise OptionError(
                    f"--model {known_model.name} has {known_model.num_experts} experts in a layer, "
                    f"not {num_experts}: give another model, or --expert-bytes"
                )
            size = known_model.expert_bytes
        elif size is None and trace_model in MODELS:
            known_model = MODELS[trace_model]
            size = known_model.expert_bytes if known_model.num_experts == num_experts else None
        if self.gpu is not None:
            find_gpu(self.gpu, "--bandwidth-within and --bandwidth-between")
            # Bandwidths are the GPU's, whatever the model.
            known = Service.of(next(iter(EXPERT_BYTES)), self.gpu, cluster)
            within = known.bandwidth_within if within is None else within
            between = known.bandwidth_between if between is None else between
        return Rates(size, within, between)


@dataclass(frozen=True)
class ServiceOptions(TransferOptions):
    """The same, and what an engine's rebalance costs beside the transfers."""

    engine: EngineName = None
    rebalance_seconds: RebalanceSeconds = None
    layer_seconds: LayerSeconds = None
    layer_delay: LayerDelay = None
    stall: Stall = None
    expert_share: ExpertShare = None

    def are_given(self) -> bool:
        """Whether any is that is about time."""
        return any(
            value is not None for name, value in vars(self).items() if name != "expert_bytes"
        )

    def service(self, cluster: Cluster, loads: LoadTrace) -> Service:
        """The service that the options say.

        Raises:
            EplbError: a figure that is missing, or as for `Service`.
        """
        rates = self.rates(cluster, loads.num_experts, loads.model)
        if rates.expert_bytes is None:
            raise OptionError("the size of an expert is not known: give --model or --expert-bytes")
        between = rates.between
        if between is None and cluster.num_nodes == 1:
            between = rates.within  # nothing enters a node
        if rates.within is None or between is None:
            missing = "--bandwidth-within" if rates.within is None else "--bandwidth-between"
            raise OptionError(f"the bandwidth of the GPUs is not known: give --gpu or {missing}")
        service = Service(rates.expert_bytes, rates.within, between)
        if self.engine is not None:
            service = service.in_engine(self.engine)
        fields = ("rebalance_seconds", "layer_seconds", "layer_delay", "stall", "expert_share")
        given: dict[str, Any] = {name: getattr(self, name) for name in fields}
        return replace(
            service, **{name: value for name, value in given.items() if value is not None}
        )
