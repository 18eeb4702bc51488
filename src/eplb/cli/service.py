"""Options about what a change costs where it is made, and the service that they say."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from eplb.checks import real_number, whole_number
from eplb.cli.bundles import one_of
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS, Gpu, find_gpu
from eplb.cost.models import MODELS, Model, find_model
from eplb.cost.roofline import DEFAULTS
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.moving.service import OVERHEADS, Service, bandwidths

ModelName = Annotated[
    str | None,
    one_of(
        MODELS,
        "Name of the model, for the bytes of an expert: {}. [default: what the loads say]",
        "--model",
    ),
]
PlainExpertBytes = Annotated[
    int | None, typer.Option(help="Bytes of one expert's weights in one layer.")
]
EngineName = Annotated[
    str | None,
    one_of(
        OVERHEADS,
        "Engine whose own time for a rebalance is counted, beside that of the transfers: {}. "
        "[default: transfers alone]",
        "--engine",
    ),
]


@dataclass(frozen=True)
class OwnFigures:
    """Figures in the place of those of a model and of a GPU.

    Attributes:
        expert_bytes: Bytes of one expert's weights in one layer. Overrides --model.
        bandwidth_within: GB/s that a GPU receives from within its node. Overrides --gpu.
        bandwidth_between: GB/s that a node receives from other nodes, all its GPUs together.
            Overrides --gpu.
    """

    expert_bytes: int | None = None
    bandwidth_within: float | None = None
    bandwidth_between: float | None = None

    def of_gpu(self, known: Gpu, cluster: Cluster) -> Gpu:
        """A GPU with the bandwidths that are given, which are those reached."""
        if self.bandwidth_within is not None:
            reached = real_number(self.bandwidth_within, "--bandwidth-within", "GB/s") * 1e9
            known = replace(known, link_bandwidth=reached / DEFAULTS.link_efficiency)
        if self.bandwidth_between is not None:
            reached = real_number(self.bandwidth_between, "--bandwidth-between", "GB/s") * 1e9
            of_one = reached / (cluster.num_gpus // cluster.num_nodes)
            known = replace(known, network_bandwidth=of_one / DEFAULTS.network_efficiency)
        return known

    def of_model(self, known: Model) -> Model:
        """A model with experts of the size that is given."""
        if self.expert_bytes is None:
            return known
        size = whole_number(self.expert_bytes, "--expert-bytes")
        return replace(known, bytes_per_weight=size / known.expert_weights)


@dataclass(frozen=True)
class TransferOptions:
    """What an expert weighs and how fast it travels: as figures, or by the names of a model and of
    a GPU.
    """

    model: ModelName = None
    gpu: Annotated[
        str | None, one_of(GPUS, "Name of the GPU, for its bandwidths: {}.", "--gpu")
    ] = None
    own: OwnFigures = OwnFigures()

    def rates(
        self, cluster: Cluster, num_experts: int, trace_model: str | None = None
    ) -> OwnFigures:
        """The figures that the options give, by name or as they are; None where nothing says.

        Args:
            cluster: the GPUs and nodes.
            num_experts: E of the loads or of the placement.
            trace_model: the model that the loads name. It is passed over if its layers do not have
                `num_experts` experts.

        Raises:
            OptionError: a name is not known, or the model named has another number of experts.
        """
        known: dict[str, Any] = {}
        if self.model is not None and self.own.expert_bytes is None:
            model = find_model(self.model, "--expert-bytes")
            if model.num_experts != num_experts:
                raise OptionError(
                    f"--model {model.name} has {model.num_experts} experts in a layer, "
                    f"not {num_experts}: give another model, or --expert-bytes"
                )
            known["expert_bytes"] = model.expert_bytes
        elif trace_model in MODELS and MODELS[trace_model].num_experts == num_experts:
            known["expert_bytes"] = MODELS[trace_model].expert_bytes
        if self.gpu is not None:
            card = find_gpu(self.gpu, "--bandwidth-within and --bandwidth-between")
            known["bandwidth_within"], known["bandwidth_between"] = bandwidths(card, cluster)
        given = {name: value for name, value in vars(self.own).items() if value is not None}
        return OwnFigures(**known | given)


@dataclass(frozen=True)
class ServiceOptions(TransferOptions):
    """The same, and what an engine's rebalance costs beside the transfers.

    Attributes:
        rebalance_seconds: Seconds that the service stops at each rebalance, beside the transfers.
            Overrides --engine.
        layer_seconds: Seconds that the service stops for each layer that moves, beside the
            transfers. Overrides --engine.
        layer_delay: Seconds from when one layer has moved until the next has: a forward pass, where
            the engine moves a layer at a time. Overrides --engine.
        stall: Share of a transfer's time in which the service is stopped. [default: the engine's,
            or 1]
    """

    engine: EngineName = None
    rebalance_seconds: float | None = None
    layer_seconds: float | None = None
    layer_delay: float | None = None
    stall: float | None = None
    expert_share: Annotated[
        float | None,
        typer.Option(
            help="Share of the service's time that each layer's busiest GPU determines. "
            f"[default: {Service.expert_share:g}]"
        ),
    ] = None

    def are_given(self) -> bool:
        """Whether any is that is about time."""
        return self != ServiceOptions(own=OwnFigures(self.own.expert_bytes))

    def service(self, cluster: Cluster, loads: LoadTrace) -> Service:
        """The service that the options say.

        Raises:
            EplbError: a figure that is missing, or as for `Service`.
        """
        rates = self.rates(cluster, loads.num_experts, loads.model)
        if rates.expert_bytes is None:
            raise OptionError("the size of an expert is not known: give --model or --expert-bytes")
        within, between = rates.bandwidth_within, rates.bandwidth_between
        if between is None and cluster.num_nodes == 1:
            between = within  # nothing enters a node
        if within is None or between is None:
            missing = "--bandwidth-within" if within is None else "--bandwidth-between"
            raise OptionError(f"the bandwidth of the GPUs is not known: give --gpu or {missing}")
        service = Service(rates.expert_bytes, within, between)
        if self.engine is not None:
            service = service.in_engine(self.engine)
        fields = ("rebalance_seconds", "layer_seconds", "layer_delay", "stall", "expert_share")
        given: dict[str, Any] = {name: getattr(self, name) for name in fields}
        given = {name: value for name, value in given.items() if value is not None}
        return replace(service, **given)
