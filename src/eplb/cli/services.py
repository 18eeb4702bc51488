"""Options that say what moving costs a service, for `eplb decide`, `migrate` and `compare`."""

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS
from eplb.cost.models import EXPERT_BYTES, MODELS, expert_bytes_of, find_model
from eplb.errors import OptionError
from eplb.moving.service import Service

__all__ = [
    "Between",
    "ExpertBytes",
    "ExpertShare",
    "GpuName",
    "ModelName",
    "Rates",
    "Stall",
    "Within",
    "rates_of",
    "service_of",
]

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"The model, for the bytes of an expert: {', '.join(MODELS)}. "
        "[default: what the loads say]",
        show_default=False,
    ),
]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", help=f"The GPU, for its bandwidths: {', '.join(GPUS)}."),
]
ExpertBytes = Annotated[
    int | None,
    typer.Option(help="Bytes of an expert's weights in one layer, in place of --model."),
]
Within = Annotated[
    float | None,
    typer.Option(help="GB/s that a GPU receives from its node, in place of --gpu."),
]
Between = Annotated[
    float | None,
    typer.Option(help="GB/s that enter a node, all its GPUs together, in place of --gpu."),
]
Stall = Annotated[
    float | None,
    typer.Option(
        help="Share of the time of a transfer in which the service stands still. [default: 1]",
        show_default=False,
    ),
]
ExpertShare = Annotated[
    float | None,
    typer.Option(
        help="Share of the service's time that is spent waiting for the busiest GPU of a layer. "
        f"[default: {Service.expert_share:g}]",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Rates:
    """Bytes of an expert, and GB/s within a node and between nodes; None where nothing says."""

    expert_bytes: int | None
    within: float | None
    between: float | None


def rates_of(
    cluster: Cluster,
    model: str | None,
    gpu: str | None,
    expert_bytes: int | None,
    within: float | None,
    between: float | None,
    trace_model: str | None = None,
) -> Rates:
    """What options, or the names of a model and of a GPU, say.

    Raises:
        OptionError: a name that is not known.
    """
    size = expert_bytes
    if size is None:
        size = expert_bytes_of(trace_model) if model is None else find_model(model).expert_bytes
    if gpu is not None:
        # Bandwidths are the GPU's, whatever the model.
        known = Service.of(next(iter(EXPERT_BYTES)), gpu, cluster)
        within = known.bandwidth_within if within is None else within
        between = known.bandwidth_between if between is None else between
    return Rates(size, within, between)


def service_of(
    cluster: Cluster, rates: Rates, stall: float | None, expert_share: float | None
) -> Service:
    """The service.

    Raises:
        EplbError: a figure that is missing, or as for `Service`.
    """
    if rates.expert_bytes is None:
        raise OptionError("the bytes of an expert are not known: give --model or --expert-bytes")
    between = rates.between
    if between is None and cluster.num_nodes == 1:
        between = rates.within  # nothing enters a node
    if rates.within is None or between is None:
        missing = "--bandwidth-within" if rates.within is None else "--bandwidth-between"
        raise OptionError(f"how fast experts are received is not known: give --gpu or {missing}")
    service = Service(rates.expert_bytes, rates.within, between)
    if stall is not None:
        service = replace(service, stall=stall)
    return service if expert_share is None else replace(service, expert_share=expert_share)
