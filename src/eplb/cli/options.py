"""Options that several commands share, and what they mean."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from eplb.checks import in_one_line, printable, ranges
from eplb.cli.bundles import beginning
from eplb.cli.terminal import say
from eplb.cluster import Cluster
from eplb.dispatching.rules import RULES, TABLES, check_rule
from eplb.errors import OptionError
from eplb.files import check_writable
from eplb.formats.placements import (
    ALIVE_ONLY,
    ENGINES,
    MOE_ONLY,
    Engine,
    check_placement_path,
    save_placement,
)
from eplb.loads import LoadTrace
from eplb.moving.verdict import CONFIDENCE, LEAST_GAIN
from eplb.placement import Placement
from eplb.replaying.policies import POLICIES
from eplb.report.commands import of_cluster, typed

Gpus = Annotated[
    int, typer.Option(help="Number of GPUs (EP ranks) that share the experts of a layer.")
]
Nodes = Annotated[
    int, typer.Option(help="Number of nodes that hold the GPUs, equally many on each.")
]
Slots = Annotated[
    int | None,
    typer.Option(
        help="Physical experts of a layer on all GPUs, a multiple of --gpus. "
        "[default: one redundant expert on each GPU]"
    ),
]
SlotsPerGpu = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|FILE",
        help="Physical experts of a layer on each GPU where they differ, as 9,9,4,4, or a file of "
        "such numbers.",
    ),
]
Speed = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|FILE",
        help="How fast each GPU is, in any unit, as 1,1,0.5,0.5, or a file of such numbers. Loads "
        "count by the time that they take. [default: all alike]",
    ),
]
Groups = Annotated[
    int,
    typer.Option(
        help="Number of expert groups that the model routes by. Each group stays on one node, if "
        "the nodes divide the groups."
    ),
]
Threads = Annotated[
    int | None, typer.Option(help="Maximum number of threads. [default: one per processor]")
]
Dead = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Numbers of the GPUs that have failed, as 13,14 or 8-15; none if all are alive. "
        "[default: those that hold nothing in the placement that runs]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DispatchRule = Annotated[
    str | None,
    typer.Option(
        "--dispatch",
        metavar="RULE",
        autocompletion=beginning(RULES),
        help="How tokens are split over the copies of an expert, for plans and figures: "
        f"{', '.join(RULES)}. [default: even]",
    ),
]
TraceFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="TRACE...",
        help="Loads over time: a file that an engine or `eplb convert` wrote, a folder of such "
        "files, or - for standard input. Several follow each other in the order given.",
    ),
]
TraceTarget = Annotated[
    Path,
    typer.Argument(
        metavar="OUT",
        help="The file to write: .npz (this project's own format, small), .csv or .parquet.",
    ),
]


DEFAULT_POLICIES = ["deepseek", "eplb", "contiguous", "oracle"]

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME,...",
        help=f"{', '.join(POLICIES)}, or a Python file that defines `policy` or "
        "`rebalance_experts`; the file is run. Give several as eplb,oracle or repeat the option. "
        f"[default: {', '.join(DEFAULT_POLICIES)}]",
    ),
]
History = Annotated[
    int, typer.Option(help="Maximum number of past windows that a plan is computed from.")
]
First = Annotated[
    int,
    typer.Option(help="The first window that is scored. Earlier windows are only planned from."),
]


def listed(values: list[str] | None) -> list[str]:
    """Values of an option that may be repeated, or have several between commas."""
    return [
        part.strip()
        for value in values or []
        for part in ([value] if Path(value).is_file() else value.split(","))
    ]


def numbers(values: list[str] | None, name: str, default: int) -> list[int]:
    """The same as whole numbers.

    Raises:
        OptionError: another value.
    """
    found = []
    for value in listed(values) or [str(default)]:
        if not (value.isascii() and value.isdecimal()):
            raise OptionError(f"{name} is {value!r}: give a whole number, or several as 32,64")
        found.append(int(value))
    return found


def rule_of(dispatch: str | None, to: str | None = None) -> str:
    """The rule of dispatch asked for, by default that of the engine that a placement is for.

    Raises:
        OptionError: a rule that is not known.
    """
    if dispatch is None:
        return to if to in TABLES else "even"
    rule: str = check_rule(dispatch, "--dispatch")
    return rule


@dataclass(frozen=True)
class ClusterOptions:
    """The GPUs that are planned for."""

    gpus: Gpus
    nodes: Nodes = 1
    slots: Slots = None
    slots_per_gpu: SlotsPerGpu = None
    speed: Speed = None

    def cluster(self, num_experts: int) -> Cluster:
        """The cluster for layers of so many experts, as `cluster_of` has it."""
        made = cluster_of(
            num_experts, self.gpus, self.nodes, self.slots, slots_per_gpu=self.slots_per_gpu
        )
        return with_speed(made, self.speed)


def cluster_of(
    num_experts: int,
    gpus: int,
    nodes: int,
    slots: int | None,
    *,
    slots_per_gpu: str | None = None,
    spare: int = 1,
) -> Cluster:
    """The cluster asked for: with `slots` in all, or with those of a list on each GPU, or with
    `spare` on each GPU more than the experts fill.

    Raises:
        OptionError: what is no list of numbers, or one with other slots in all.
        ClusterError: as for `Cluster`.
    """
    if slots_per_gpu is not None:
        of_gpus = _of_gpus(slots_per_gpu, "--slots-per-gpu")
        made = Cluster(gpus, nodes, of_gpus)  # type: ignore[arg-type]  # checked there
        if slots is not None and slots != made.num_held:
            raise OptionError(
                f"--slots is {slots}, but --slots-per-gpu has {made.num_held} in all: leave out "
                "--slots"
            )
        return made
    if slots is not None:
        return Cluster.with_slots(slots, gpus, nodes, num_experts=num_experts)
    bare = Cluster(gpus, nodes, 1)
    return Cluster(gpus, nodes, -(-num_experts // bare.num_gpus) + spare)


def with_speed(cluster: Cluster, speed: str | None) -> Cluster:
    """The cluster with the speeds that are given.

    Raises:
        OptionError: what is no list of numbers.
        ClusterError: as for `Cluster`.
    """
    if speed is None:
        return cluster
    return replace(cluster, speed=tuple(_of_gpus(speed, "--speed")))


def _of_gpus(text: str, name: str) -> list[float]:
    """A number of each GPU, whole ones as such, from a list or a file of them.

    Raises:
        OptionError: anything else.
    """
    content = text
    if Path(text).is_file():
        try:
            content = Path(text).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{name} is {text!r}: cannot be read: {in_one_line(error)}") from None
    return [_number(word, name) for word in content.strip().strip("[]").replace(",", " ").split()]


def _number(word: str, name: str) -> float:
    try:
        return int(word) if word.isascii() and word.isdecimal() else float(word)
    except ValueError:
        raise OptionError(
            f"{name} has {word[:40]!r}: give a number for each GPU, as 9,9,4,4, or a file of them"
        ) from None


MaxMoves = Annotated[
    str | None,
    typer.Option(
        metavar="N|P%",
        help="Maximum number of experts that GPUs may receive, over all layers: a number, or a "
        "share of the slots of layers with load.",
    ),
]


@dataclass(frozen=True)
class AdviceOptions:
    """What a change must gain to be advised.

    Attributes:
        least_gain: Balancedness that a change must gain on windows held out, to be advised.
        confidence: How sure it must be, from 0.5 to 1, that a change gains anything, to be advised.
    """

    least_gain: float = LEAST_GAIN
    confidence: float = CONFIDENCE


def next_command(
    traces: list[Path],
    cluster: Cluster,
    groups: int,
    reading: list[str],
    current: Path | None,
    moves: int,
) -> str:
    """What writes the placement that is advised: from what runs, with so many moves."""
    words = [*of_cluster(cluster, groups, cluster.dead), *reading]
    words += typed(current=current, max_moves=None if current is None else moves)
    return shlex.join(["eplb", "plan", *map(str, traces), *words, "-o", "next.json"])


def moe_slots(trace: LoadTrace, cluster: Cluster) -> int:
    """Slots of all layers that have load."""
    return int((~trace.dense).sum()) * cluster.num_held


@dataclass(frozen=True)
class Target:
    """Where a placement goes, in whose form."""

    path: Path
    engine: Engine

    def write(self, placement: Placement, trace: LoadTrace) -> None:
        """Write the placement that was planned for a trace."""
        save_placement(placement, self.path, to=self.engine, dense=trace.dense, layers=trace.layers)

    def say(self, placement: Placement, trace: LoadTrace) -> None:
        """Tell what was written."""
        cluster = placement.cluster
        left_out = np.array(trace.layer_numbers)[trace.dense]
        without = ""
        if self.engine in MOE_ONLY and left_out.size:
            without = f", without the layers that have no load ({ranges(left_out.tolist())})"
        anew = ""
        if self.engine in ALIVE_ONLY and cluster.dead:
            anew = f", for the {len(cluster.alive)} GPUs alive, numbered anew from 0"
        say(f"Placement written to {printable(self.path)} for {self.engine}{without}{anew}.")


def target_of(output: Path | None, to: str | None, *sources: Path) -> Target | None:
    """What was asked for, found out and checked before any work is done.

    Raises:
        EplbError: no path, or one that cannot be written, or one of the sources.
    """
    if output is None:
        if to is not None:
            raise OptionError("--to is the format of the file of --output: give --output too")
        return None
    engine = check_placement_path(output, to or ENGINES[0])
    check_writable(output, *sources)
    return Target(output, engine)
