"""Options about the placement that runs, and what they mean."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from eplb.checks import gpus_from, printable, ranges
from eplb.cli.options import ClusterOptions, Dead, SlotsPerGpu, Speed, cluster_of, with_speed
from eplb.cli.reading import LayerOptions
from eplb.cluster import Cluster
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.forecast import Scenarios
from eplb.planning.plan import Plan, what_is_left

__all__ = [
    "CurrentGpus",
    "RunningOptions",
    "RunningPlacement",
    "check_moves_options",
    "load_current",
]

_SHOWN = 5
"""Layers whose lost experts are printed."""

Current = Annotated[
    Path,
    typer.Option(
        metavar="PLACEMENT",
        help="File of the placement that runs, in any format that `eplb evaluate` reads.",
    ),
]
CurrentGpus = Annotated[
    int | None,
    typer.Option(
        help="Number of GPUs of --current. [default: what the file says, or --gpus]",
        show_default=False,
    ),
]
SomeGpus = Annotated[
    int | None,
    typer.Option(
        help="Number of GPUs (EP ranks) to plan for. [default: as in --current]",
        show_default=False,
    ),
]
SomeNodes = Annotated[
    int | None,
    typer.Option(
        help="Number of nodes that hold the GPUs. [default: what --current says, or 1]",
        show_default=False,
    ),
]
SomeSlots = Annotated[
    int | None,
    typer.Option(
        help="Physical experts of a layer on all GPUs, a multiple of --gpus. "
        "[default: the same number on each GPU as in --current]",
        show_default=False,
    ),
]


def load_current(
    path: Path,
    trace: LoadTrace,
    reading: LayerOptions,
    asked: "ClusterOptions | RunningOptions",
    current_gpus: int | None,
    dead: str | None,
) -> tuple[Placement, Cluster]:
    """The placement in a file, and the cluster asked for: its own, or one with other GPUs or slots,
    or with some of them dead. Speeds are those of both.

    Raises:
        EplbError: as for `eplb.load_placement` and `Cluster`.
    """
    gpus, nodes = asked.gpus, asked.nodes
    try:
        current = reading.placement(path, trace, current_gpus, None)
    except OptionError:
        if current_gpus is not None or gpus is None:
            raise
        current = reading.placement(path, trace, gpus, None)
    had = current.cluster
    num_gpus = had.num_gpus if gpus is None else gpus
    if nodes is None:
        nodes = had.num_nodes if num_gpus == had.num_gpus else 1
    cluster = Cluster(num_gpus, nodes, had.slots_per_gpu)
    if num_gpus == had.num_gpus:
        cluster = replace(cluster, slots=had.slots)
    other_slots = asked.slots is not None or asked.slots_per_gpu is not None
    if other_slots or cluster.num_held < trace.num_experts:
        cluster = cluster_of(
            trace.num_experts, num_gpus, nodes, asked.slots, slots_per_gpu=asked.slots_per_gpu
        )
    cluster = with_speed(cluster, asked.speed)
    shapes = ((each.num_gpus, each.slots_per_gpu, each.slots) for each in (had, cluster))
    if len(set(shapes)) == 1:
        # Files do not always tell nodes: the GPUs are the same, wherever they stand.
        current = replace(current, cluster=cluster.without(had.dead))
    elif cluster.speed is not None and had.num_gpus == num_gpus:
        current = replace(current, cluster=replace(had, speed=cluster.speed))
    if dead is not None:
        return current, cluster.without(gpus_from(dead, "--dead"))
    return current, cluster.without(gpu for gpu in had.dead if gpu < num_gpus)


@dataclass(frozen=True)
class RunningOptions:
    """What runs, and the cluster that is planned for where it is another."""

    current: Current
    gpus: SomeGpus = None
    nodes: SomeNodes = None
    slots: SomeSlots = None
    slots_per_gpu: SlotsPerGpu = None
    speed: Speed = None
    dead: Dead = None
    current_gpus: CurrentGpus = None

    def load(self, trace: LoadTrace, reading: LayerOptions) -> tuple[Placement, Cluster]:
        """The placement and the cluster, as `load_current` has them."""
        return load_current(self.current, trace, reading, self, self.current_gpus, self.dead)


@dataclass(frozen=True)
class RunningPlacement:
    """What runs, and what may be moved.

    Attributes:
        path: of the placement.
        placement: that runs.
        num_slots: those of all layers that have load.
        most, cost: the budget and the price of a move, None where none was given.
        dispatch: the rule that its balancedness is under.
    """

    path: Path
    placement: Placement
    num_slots: int
    most: int | None
    cost: float | None
    dispatch: str = "even"

    def to_json(self, made: Plan, expected: Scenarios, trace: LoadTrace) -> dict[str, object]:
        """Figures for scripts."""
        numbers = trace.layer_numbers
        return {
            "current": str(self.path),
            "current_balancedness": self._now(made, expected),
            "lost": [[numbers[layer], expert] for layer, expert in made.lost.tolist()],
            "moves": made.moves,
            "moved": made.moves / max(1, self.num_slots),
        }

    def said(self, made: Plan, expected: Scenarios) -> str:
        """The same in words."""
        share = made.moves / max(1, self.num_slots)
        now = self._now(made, expected)
        alive = " on the GPUs that are left" if self._died(made) else ""
        return (
            f"{printable(self.path)} has balancedness {now:.4f}{alive}. To get from there to the "
            f"plan, GPUs receive {made.moves:,} experts ({share:.2%} of {self.num_slots:,} slots). "
            "Experts that stay on a GPU keep their slot."
        )

    def lost(self, made: Plan, trace: LoadTrace) -> str | None:
        """Which experts are to be read from the checkpoint, in words; None where none has died."""
        if not self._died(made):
            return None
        if not len(made.lost):
            return "Every expert has a copy that is left."
        numbers = trace.layer_numbers
        of_layer: dict[int, list[int]] = {}
        for layer, expert in made.lost.tolist():
            of_layer.setdefault(numbers[layer], []).append(expert)
        some = [f"layer {layer}: {ranges(of_layer[layer])}" for layer in list(of_layer)[:_SHOWN]]
        more = f"; and {len(of_layer) - _SHOWN} more layers" if len(of_layer) > _SHOWN else ""
        return (
            f"{len(made.lost):,} of them died with their last copy and are to be read from the "
            f"checkpoint ({'; '.join(some)}{more}; --json lists all)."
        )

    def _died(self, made: Plan) -> bool:
        """Whether any GPU is dead that was not in what runs."""
        return not set(made.placement.cluster.dead) <= set(self.placement.cluster.dead)

    def _now(self, made: Plan, expected: Scenarios) -> float:
        """Balancedness of what runs, or of what is left of it."""
        left = what_is_left(self.placement, made.placement.cluster, expected.loads)
        return left.balancedness(expected.loads, self.dispatch)

    def why_duplicates(self, made: Plan) -> str:
        """Why a plan keeps second copies of experts on a GPU that has room for others."""
        if self.most is not None and made.moves >= self.most:
            return f"The budget of {self.most:,} moves (--max-moves) does not replace them."
        return "Replacing them gains less than a move costs, or their layers have no load."


def check_moves_options(
    current: Path | None, max_moves: str | None, move_cost: float | None, gpus: int | None
) -> None:
    """Tell before any work that options need --current."""
    if current is not None:
        return
    options = {"--max-moves": max_moves, "--move-cost": move_cost, "--current-gpus": gpus}
    for name, value in options.items():
        if value is not None:
            raise OptionError(f"{name} needs the placement that runs: give --current too")
