"""The placement that runs, as commands take it, and the cluster that is planned for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from eplb.checks import printable
from eplb.cli.options import cluster_of
from eplb.cluster import Cluster
from eplb.errors import OptionError
from eplb.formats import load_placement
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.forecast import Scenarios
from eplb.planning.plan import Plan

__all__ = [
    "Current",
    "CurrentGpus",
    "MaxMoves",
    "Moves",
    "SomeGpus",
    "SomeNodes",
    "SomeSlots",
    "budget_of",
    "check_moves_options",
    "load_current",
    "moe_slots",
]

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


def budget_of(text: str | None, num_slots: int) -> int | None:
    """A number of moves, or a share of so many slots, rounded down.

    Raises:
        OptionError: neither.
    """
    if text is None:
        return None
    share = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) if share else int(text)
    except ValueError:
        value = -1
    if share and 0.0 <= value <= 100.0:
        # 12.5 % of 16 slots are 2, whatever the rounding of 0.125.
        return int(value * num_slots / 100.0 + 1e-9)
    if share or value < 0:
        raise OptionError(f"--max-moves is {text}: give a number, 0 or more, or a share as 5%")
    return int(value)


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
class Moves:
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
