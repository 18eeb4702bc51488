"""Options that several commands share, and what they mean."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eplb.checks import printable
from eplb.cli.terminal import ranges, say
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS
from eplb.cost.models import EXPERT_BYTES, MODELS, expert_bytes_of, find_model
from eplb.errors import OptionError
from eplb.formats import load_placement
from eplb.formats.placements import (
    ENGINES,
    LAYERS,
    MOE_ONLY,
    Engine,
    check_placement_path,
    save_placement,
)
from eplb.loads import LoadTrace
from eplb.moving.service import Service
from eplb.placement import Placement
from eplb.planning.forecast import Scenarios
from eplb.planning.plan import Plan
from eplb.replaying.policies import POLICIES

__all__ = [
    "DEFAULT_POLICIES",
    "AsJson",
    "Between",
    "Current",
    "CurrentGpus",
    "ExpertBytes",
    "ExpertShare",
    "First",
    "FirstLayer",
    "GpuName",
    "Gpus",
    "Groups",
    "History",
    "MaxMoves",
    "Merge",
    "ModelName",
    "Nodes",
    "Output",
    "PlainExpertBytes",
    "Policies",
    "Rates",
    "Record",
    "RunningPlacement",
    "Slots",
    "SomeGpus",
    "SomeNodes",
    "SomeSlots",
    "Stall",
    "SweepRecord",
    "Target",
    "Threads",
    "TraceFile",
    "TraceTarget",
    "Within",
    "check_moves_options",
    "cluster_of",
    "load_current",
    "moe_slots",
    "rates_of",
    "service_of",
    "target_of",
]

Gpus = Annotated[int, typer.Option(help="GPUs (EP ranks) that share the experts of a layer.")]
Nodes = Annotated[int, typer.Option(help="Nodes that the GPUs stand on.")]
Slots = Annotated[
    int | None,
    typer.Option(
        help="Physical experts of a layer on all GPUs, a multiple of --gpus. "
        "[default: one spare slot on each GPU]",
        show_default=False,
    ),
]
Groups = Annotated[
    int, typer.Option(help="Groups that the model routes by; each stays on a node if nodes allow.")
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write the placement here, as SGLang loads it (JSON)."),
]
Threads = Annotated[int | None, typer.Option(help="Most threads. [default: one a processor]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
TraceFile = Annotated[
    Path,
    typer.Argument(
        metavar="TRACE",
        help="Loads over time: a file that an engine or `eplb convert` wrote, or a folder of them.",
    ),
]
TraceTarget = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="What to write: .npz (this project's own form, small), .csv or .parquet.",
    ),
]
FirstLayer = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="The model's number of the first layer in the loads, where dense layers before it "
        "are left out of them.",
    ),
]
Merge = Annotated[
    int, typer.Option(metavar="N", help="Add up every N windows to one; a rest is left out.")
]


DEFAULT_POLICIES = ["contiguous", "seed", "eplb", "oracle"]

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help=f"{', '.join(POLICIES)}, or a Python file with `policy` or `rebalance_experts`, "
        f"which is run; again for more. [default: {', '.join(DEFAULT_POLICIES)}]",
        show_default=False,
    ),
]
History = Annotated[int, typer.Option(help="Most windows before it that a plan is made from.")]
First = Annotated[
    int, typer.Option(help="The first window served; those before it are only planned from.")
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Write the figures here: .csv has those of every window and layer, .json what --json "
        "prints.",
    ),
]
SweepRecord = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write every figure here, as .csv or .json.")
]
PlainExpertBytes = Annotated[
    int | None, typer.Option(help="Bytes of an expert's weights in one layer.")
]


def cluster_of(
    num_experts: int, gpus: int, nodes: int, slots: int | None, *, spare: int = 1
) -> Cluster:
    """The cluster asked for: with `slots` in all, or with `spare` on each GPU more than the experts
    fill.
    """
    if slots is not None:
        return Cluster.with_slots(slots, gpus, nodes)
    bare = Cluster(gpus, nodes, 1)
    return Cluster(gpus, nodes, -(-num_experts // bare.num_gpus) + spare)


Current = Annotated[
    Path,
    typer.Option(
        metavar="PLACEMENT", help="The placement that runs, in a file as `eplb evaluate` reads."
    ),
]
CurrentGpus = Annotated[
    int | None,
    typer.Option(
        help="GPUs that --current is for. [default: what the file says, or --gpus]",
        show_default=False,
    ),
]
SomeGpus = Annotated[
    int | None,
    typer.Option(
        help="GPUs (EP ranks) to plan for. [default: those of --current]", show_default=False
    ),
]
SomeNodes = Annotated[
    int | None,
    typer.Option(
        help="Nodes that they stand on. [default: what --current says, or 1]", show_default=False
    ),
]
SomeSlots = Annotated[
    int | None,
    typer.Option(
        help="Physical experts of a layer on all GPUs, a multiple of --gpus. "
        "[default: as many on each GPU as now]",
        show_default=False,
    ),
]
MaxMoves = Annotated[
    str | None,
    typer.Option(
        metavar="N|P%",
        help="Most experts that GPUs may receive in all layers together, or that share of the "
        "slots of layers with load.",
    ),
]


def load_current(
    path: Path,
    trace: LoadTrace,
    gpus: int | None,
    nodes: int | None,
    slots: int | None,
    current_gpus: int | None,
    first_layer: int = 0,
) -> tuple[Placement, Cluster]:
    """The placement in a file, and the cluster asked for: its own, or one with other GPUs or slots.

    Raises:
        EplbError: as for `eplb.load_placement` and `Cluster`.
    """

    def load(num_gpus: int | None) -> Placement:
        return load_placement(
            path,
            num_gpus,
            num_experts=trace.num_experts,
            dense=trace.dense,
            first_layer=first_layer,
        )

    try:
        current = load(current_gpus)
    except OptionError:
        if current_gpus is not None or gpus is None:
            raise
        current = load(gpus)
    had = current.cluster
    num_gpus = had.num_gpus if gpus is None else gpus
    num_nodes = nodes
    if num_nodes is None:
        num_nodes = had.num_nodes if num_gpus == had.num_gpus else 1
    cluster = Cluster(num_gpus, num_nodes, had.slots_per_gpu)
    if slots is not None or cluster.num_slots < trace.num_experts:
        cluster = cluster_of(trace.num_experts, num_gpus, num_nodes, slots)
    if (had.num_gpus, had.slots_per_gpu) == (cluster.num_gpus, cluster.slots_per_gpu):
        # Files do not always tell nodes: the GPUs are the same, wherever they stand.
        current = Placement(current.phy2log, current.num_experts, cluster)
    return current, cluster


def moe_slots(trace: LoadTrace, cluster: Cluster) -> int:
    """Slots of all layers that have load."""
    return int((~trace.dense).sum()) * cluster.num_slots


def check_moves_options(
    current: Path | None, max_moves: str | None, move_cost: float | None, gpus: int | None
) -> None:
    """Tell before any work that options need --current."""
    if current is not None:
        return
    options = {"--max-moves": max_moves, "--move-cost": move_cost, "--current-gpus": gpus}
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"{name} needs a placement to move from: give --current too")


@dataclass(frozen=True)
class RunningPlacement:
    """What runs, and what may be moved.

    Attributes:
        path: of the placement.
        placement: that runs.
        num_slots: those of all layers that have load.
        most, cost: the budget and the price of a move, None where none was given.
    """

    path: Path
    placement: Placement
    num_slots: int
    most: int | None
    cost: float | None

    def to_json(self, made: Plan, expected: Scenarios) -> dict[str, object]:
        """Figures for scripts."""
        return {
            "current": str(self.path),
            "current_balancedness": self.placement.balancedness(expected.loads),
            "moves": made.moves,
            "moved": made.moves / max(1, self.num_slots),
        }

    def said(self, made: Plan, expected: Scenarios) -> str:
        """The same in words."""
        share = made.moves / max(1, self.num_slots)
        now = self.placement.balancedness(expected.loads)
        return (
            f"From {printable(self.path)}, whose balancedness is {now:.4f}: GPUs receive "
            f"{made.moves:,} experts ({share:.2%} of {self.num_slots:,} slots); experts that stay "
            "on a GPU keep their slot."
        )


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


@dataclass(frozen=True)
class Target:
    """Where a placement goes, in whose form."""

    path: Path
    engine: Engine
    first_layer: int

    def write(self, made: Plan, trace: LoadTrace) -> None:
        """Write the placement that was planned for a trace."""
        save_placement(
            made.placement,
            self.path,
            to=self.engine,
            dense=trace.dense,
            first_layer=self.first_layer,
        )

    def say(self, trace: LoadTrace) -> None:
        """Tell what was written."""
        left_out = np.flatnonzero(trace.dense) + self.first_layer
        without = ""
        if self.engine in MOE_ONLY and left_out.size:
            without = f", without the layers that have no load ({ranges(left_out.tolist())})"
        line = f"Placement written to {printable(self.path)} for {self.engine}{without}."
        say(line)


def target_of(output: Path | None, to: str | None, first_layer: int = 0) -> Target | None:
    """What was asked for, found out before any work is done."""
    if output is None:
        if to is not None:
            raise OptionError("--to says how a placement is written: give --output too")
        return None
    if not 0 <= first_layer < LAYERS:
        raise OptionError(f"--first-layer is {first_layer}: give 0 to {LAYERS - 1}")
    return Target(output, check_placement_path(output, to or ENGINES[0]), first_layer)
