"""Options about the placement that runs, and what they mean."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from eplb.checks import gpus_from, printable, ranges
from eplb.cli import options
from eplb.cli.reading import LayerOptions
from eplb.cluster import Cluster
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.plan import Plan, what_is_left

_SHOWN = 5
"""Layers whose lost experts are printed."""

CurrentGpus = Annotated[
    int | None,
    typer.Option(help="Number of GPUs of --current. [default: what the file says, or --gpus]"),
]


@dataclass(frozen=True)
class RunningOptions:
    """What runs, and the cluster that is planned for where it is another.

    Attributes:
        current: File of the placement that runs, in any format that `eplb evaluate` reads.
        gpus: Number of GPUs (EP ranks) to plan for. [default: as in --current]
        nodes: Number of nodes that hold the GPUs. [default: what --current says, or 1]
        slots: Physical experts of a layer on all GPUs, a multiple of --gpus. [default: the same
            number on each GPU as in --current]
    """

    current: Annotated[Path, typer.Option(metavar="PLACEMENT")]
    gpus: int | None = None
    nodes: int | None = None
    slots: int | None = None
    slots_per_gpu: options.SlotsPerGpu = None
    speed: options.Speed = None
    dead: options.Dead = None
    current_gpus: CurrentGpus = None

    def load(self, trace: LoadTrace, reading: LayerOptions) -> tuple[Placement, Cluster]:
        """The placement in the file, and the cluster asked for: its own, or one with other GPUs or
        slots, or with some of them dead. Speeds are those of both.

        Raises:
            EplbError: as for `eplb.load_placement` and `Cluster`.
        """
        gpus, nodes = self.gpus, self.nodes
        try:
            running = reading.placement(self.current, trace, self.current_gpus, None)
        except OptionError:
            if self.current_gpus is not None or gpus is None:
                raise
            running = reading.placement(self.current, trace, gpus, None)
        had = running.cluster
        num_gpus = had.num_gpus if gpus is None else gpus
        if nodes is None:
            nodes = had.num_nodes if num_gpus == had.num_gpus else 1
        cluster = Cluster(num_gpus, nodes, had.slots_per_gpu)
        if num_gpus == had.num_gpus:
            cluster = replace(cluster, slots=had.slots)
        other_slots = self.slots is not None or self.slots_per_gpu is not None
        if other_slots or cluster.num_held < trace.num_experts:
            cluster = options.cluster_of(
                trace.num_experts, num_gpus, nodes, self.slots, slots_per_gpu=self.slots_per_gpu
            )
        cluster = options.with_speed(cluster, self.speed)
        shapes = ((each.num_gpus, each.slots_per_gpu, each.slots) for each in (had, cluster))
        if len(set(shapes)) == 1:
            # Files do not always tell nodes: the GPUs are the same, wherever they stand.
            running = replace(running, cluster=cluster.without(had.dead))
        elif cluster.speed is not None and had.num_gpus == num_gpus:
            running = replace(running, cluster=replace(had, speed=cluster.speed))
        if self.dead is not None:
            return running, cluster.without(gpus_from(self.dead, "--dead"))
        return running, cluster.without(gpu for gpu in had.dead if gpu < num_gpus)


@dataclass(frozen=True)
class Change:
    """What a plan changes of what runs.

    Attributes:
        path: of what runs.
        running: the placement.
        made: the plan.
        loads: [T, L, E] that it is for.
        num_slots: those of all layers that have load.
        budget: of moves, None where none was given.
        dispatch: the rule that balancedness is under.
    """

    path: Path
    running: Placement
    made: Plan
    loads: NDArray[np.float64]
    num_slots: int
    budget: int | None
    dispatch: str

    @property
    def moved(self) -> float:
        """Share of the slots that receive an expert."""
        return self.made.moves / max(1, self.num_slots)

    @property
    def now(self) -> float:
        """Balancedness of what runs, or of what is left of it."""
        left = what_is_left(self.running, self.made.placement.cluster, self.loads)
        return left.balancedness(self.loads, self.dispatch)

    @property
    def died(self) -> bool:
        """Whether any GPU is dead that was not in what runs."""
        return not set(self.made.placement.cluster.dead) <= set(self.running.cluster.dead)

    def to_json(self, trace: LoadTrace) -> dict[str, object]:
        """Figures for scripts."""
        numbers = trace.layer_numbers
        return {
            "current": self.path,
            "current_balancedness": self.now,
            "lost": [[numbers[layer], expert] for layer, expert in self.made.lost.tolist()],
            "moves": self.made.moves,
            "moved": self.moved,
        }

    def said(self) -> str:
        """The same in words."""
        alive = " on the GPUs that are left" if self.died else ""
        return (
            f"{printable(self.path)} has balancedness {self.now:.4f}{alive}. To get from there to "
            f"the plan, GPUs receive {self.made.moves:,} experts ({self.moved:.2%} of "
            f"{self.num_slots:,} slots). Experts that stay on a GPU keep their slot."
        )

    def lost(self, trace: LoadTrace) -> str:
        """Which experts are to be read from the checkpoint, in words."""
        if not len(self.made.lost):
            return "Every expert has a copy that is left."
        numbers = trace.layer_numbers
        of_layer: dict[int, list[int]] = {}
        for layer, expert in self.made.lost.tolist():
            of_layer.setdefault(numbers[layer], []).append(expert)
        some = [f"layer {layer}: {ranges(of_layer[layer])}" for layer in list(of_layer)[:_SHOWN]]
        more = f"; and {len(of_layer) - _SHOWN} more layers" if len(of_layer) > _SHOWN else ""
        return (
            f"{len(self.made.lost):,} of them died with their last copy and are to be read from "
            f"the checkpoint ({'; '.join(some)}{more}; --json lists all)."
        )

    def why_duplicates(self) -> str:
        """Why a plan keeps second copies of experts on a GPU that has room for others."""
        if self.budget is not None and self.made.moves >= self.budget:
            return f"The budget of {self.budget:,} moves (--max-moves) does not replace them."
        return "Replacing them gains less than a move costs, or their layers have no load."


def check_moves_options(current: Path | None, **given: object) -> None:
    """Tell before any work that options need --current."""
    for name, value in given.items():
        if current is None and value is not None:
            option = f"--{name.replace('_', '-')}"
            raise OptionError(f"{option} needs the placement that runs: give --current too")
