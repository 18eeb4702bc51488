"""Options that several commands share, and what they mean."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eplb.checks import in_one_line, printable, ranges
from eplb.cli.terminal import say
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS, find_gpu
from eplb.cost.models import EXPERT_BYTES, MODELS, find_model
from eplb.dispatching.rules import RULES, TABLES, check_rule
from eplb.errors import OptionError
from eplb.formats.placements import (
    ALIVE_ONLY,
    ENGINES,
    MOE_ONLY,
    Engine,
    check_placement_path,
    save_placement,
)
from eplb.loads import LoadTrace
from eplb.moving.service import OVERHEADS, Service
from eplb.placement import Placement
from eplb.planning.batches import Batch
from eplb.planning.forecast import Scenarios
from eplb.planning.objectives import OBJECTIVES
from eplb.planning.plan import Plan, what_is_left
from eplb.replaying.policies import POLICIES

__all__ = [
    "DEFAULT_POLICIES",
    "AsJson",
    "Between",
    "Confidence",
    "Current",
    "CurrentGpus",
    "Dead",
    "DispatchRule",
    "EngineName",
    "ExpertBytes",
    "ExpertShare",
    "First",
    "GpuName",
    "Gpus",
    "Groups",
    "History",
    "LayerDelay",
    "LayerSeconds",
    "LeastGain",
    "MaxMoves",
    "ModelName",
    "Nodes",
    "Objective",
    "Output",
    "PlainExpertBytes",
    "Policies",
    "Rates",
    "RebalanceSeconds",
    "Record",
    "RunningPlacement",
    "Slots",
    "SlotsPerGpu",
    "SomeGpus",
    "SomeNodes",
    "SomeSlots",
    "Speed",
    "Stall",
    "SweepRecord",
    "Target",
    "Threads",
    "TraceFiles",
    "TraceTarget",
    "Within",
    "check_moves_options",
    "cluster_of",
    "given",
    "listed",
    "moe_slots",
    "next_command",
    "numbers",
    "rates_of",
    "rule_of",
    "service_of",
    "target_of",
    "with_speed",
]

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
        "[default: one redundant expert on each GPU]",
        show_default=False,
    ),
]
SlotsPerGpu = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|FILE",
        help="Physical experts of a layer on each GPU where they differ, as 9,9,4,4, or a file of "
        "such numbers.",
        show_default=False,
    ),
]
Speed = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|FILE",
        help="How fast each GPU is, in any unit, as 1,1,0.5,0.5, or a file of such numbers. Loads "
        "count by the time that they take. [default: all alike]",
        show_default=False,
    ),
]
Groups = Annotated[
    int,
    typer.Option(
        help="Number of expert groups that the model routes by. Each group stays on one node, if "
        "the nodes divide the groups."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write the placement to this file, as JSON that SGLang loads."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(help="Maximum number of threads. [default: one per processor]"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DispatchRule = Annotated[
    str | None,
    typer.Option(
        "--dispatch",
        metavar="RULE",
        help="How tokens are split over the copies of an expert, for plans and figures: "
        f"{', '.join(RULES)}. [default: even]",
        show_default=False,
    ),
]
BatchSize = Annotated[
    str | None,
    typer.Option(
        "--batch",
        metavar="TOKENS,TOP_K,RANKS",
        help="With --dispatch best: plan for batches to which so many ranks bring so many tokens "
        "each. Each rank splits its own; with ,together at the end, all split together. With "
        "--objective, the size of a step. [default: whole windows]",
        show_default=False,
    ),
]
Objective = Annotated[
    str,
    typer.Option(
        metavar="|".join(OBJECTIVES),
        help="What to keep low on the busiest GPU: its tokens, the experts that it touches in a "
        "step, or its time by an estimate for --model and --gpu.",
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


_SHOWN = 5
"""Layers whose lost experts are printed."""

DEFAULT_POLICIES = ["deepseek", "eplb", "contiguous", "oracle"]

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME,...",
        help=f"{', '.join(POLICIES)}, or a Python file that defines `policy` or "
        "`rebalance_experts`; the file is run. Give several as eplb,oracle or repeat the option. "
        f"[default: {', '.join(DEFAULT_POLICIES)}]",
        show_default=False,
    ),
]
History = Annotated[
    int, typer.Option(help="Maximum number of past windows that a plan is computed from.")
]
First = Annotated[
    int,
    typer.Option(help="The first window that is scored. Earlier windows are only planned from."),
]
Record = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Write the figures to this file. A .csv file has those of every window and layer, a "
        ".json file has what --json prints.",
    ),
]
SweepRecord = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write every figure to this file, .csv or .json."),
]
PlainExpertBytes = Annotated[
    int | None, typer.Option(help="Bytes of one expert's weights in one layer.")
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


def batch_of(text: str | None, rule: str, objective: str = "tokens") -> Batch | None:
    """The batches to plan for, of the text of --batch.

    Raises:
        OptionError: another text, or another rule than "best" for tokens.
    """
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    together = words[-1] == "together"
    sizes = words[:-1] if together else words
    if len(sizes) != 3 or not all(each.isascii() and each.isdecimal() for each in sizes):
        raise OptionError(
            f"--batch is {text!r}: give tokens, top_k and ranks as 32,8,16, or 32,8,16,together"
        )
    if rule != "best" and objective == "tokens":
        raise OptionError("--batch goes with --dispatch best: other rules split all sizes alike")
    tokens, top_k, ranks = map(int, sizes)
    return Batch(tokens, top_k, ranks, together)


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
Dead = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Numbers of the GPUs that have failed, as 13,14 or 8-15; none if all are alive. "
        "[default: those that hold nothing in the placement that runs]",
        show_default=False,
    ),
]
MaxMoves = Annotated[
    str | None,
    typer.Option(
        metavar="N|P%",
        help="Maximum number of experts that GPUs may receive, over all layers: a number, or a "
        "share of the slots of layers with load.",
    ),
]


LeastGain = Annotated[
    float,
    typer.Option(help="Balancedness that a change must gain on windows held out, to be advised."),
]
Confidence = Annotated[
    float,
    typer.Option(
        help="How sure it must be, from 0.5 to 1, that a change gains anything, to be advised."
    ),
]


def given(**options: object) -> list[str]:
    """Options as one types them, those that were given and say more than the default."""
    words = []
    for name, value in options.items():
        if value is None or value is False or (name, value) == ("merge", "auto"):
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return words


def next_command(
    traces: list[Path],
    cluster: Cluster,
    groups: int,
    reading: list[str],
    current: Path | None,
    moves: int,
) -> str:
    """What writes the placement that is advised: from what runs, with so many moves."""
    words = ["eplb", "plan", *map(str, traces)]
    words += given(
        gpus=cluster.num_gpus,
        slots=cluster.num_slots if cluster.slots is None else None,
        slots_per_gpu=",".join(map(str, cluster.slots or ())) or None,
        speed=",".join(map(repr, cluster.speed or ())) or None,
        nodes=cluster.num_nodes if cluster.num_nodes > 1 else None,
        dead=",".join(map(str, cluster.dead)) or None,
        groups=groups if groups > 1 else None,
    )
    words += [*reading, *given(current=current, max_moves=None if current is None else moves)]
    return shlex.join([*words, "-o", "next.json"])


def moe_slots(trace: LoadTrace, cluster: Cluster) -> int:
    """Slots of all layers that have load."""
    return int((~trace.dense).sum()) * cluster.num_held


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

    def to_json(self, made: Plan, expected: Scenarios) -> dict[str, object]:
        """Figures for scripts."""
        return {
            "current": str(self.path),
            "current_balancedness": self._now(made, expected),
            "lost": made.lost.tolist(),
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
        numbers = trace.layers or range(trace.num_layers)
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


ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        help=f"Name of the model, for the bytes of an expert: {', '.join(MODELS)}. "
        "[default: what the loads say]",
        show_default=False,
    ),
]
GpuName = Annotated[
    str | None,
    typer.Option("--gpu", help=f"Name of the GPU, for its bandwidths: {', '.join(GPUS)}."),
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
    num_experts: int,
    trace_model: str | None = None,
) -> Rates:
    """The rates that options give, directly or by the names of a model and of a GPU.

    Args:
        cluster: the GPUs and nodes.
        model: --model.
        gpu: --gpu.
        expert_bytes: --expert-bytes.
        within: --bandwidth-within.
        between: --bandwidth-between.
        num_experts: E of the loads or of the placement.
        trace_model: the model that the loads name. It is passed over if its layers do not have
            `num_experts` experts.

    Raises:
        OptionError: a name is not known, or the model named has another number of experts.
    """
    size = expert_bytes
    if size is None and model is not None:
        known_model = find_model(model, "--expert-bytes")
        if known_model.num_experts != num_experts:
            raise OptionError(
                f"--model {known_model.name} has {known_model.num_experts} experts in a layer, "
                f"not {num_experts}: give another model, or --expert-bytes"
            )
        size = known_model.expert_bytes
    elif size is None and trace_model in MODELS:
        known_model = MODELS[trace_model]
        size = known_model.expert_bytes if known_model.num_experts == num_experts else None
    if gpu is not None:
        find_gpu(gpu, "--bandwidth-within and --bandwidth-between")
        # Bandwidths are the GPU's, whatever the model.
        known = Service.of(next(iter(EXPERT_BYTES)), gpu, cluster)
        within = known.bandwidth_within if within is None else within
        between = known.bandwidth_between if between is None else between
    return Rates(size, within, between)


def service_of(
    cluster: Cluster,
    loads: LoadTrace,
    said: tuple[str | None, str | None, int | None, float | None, float | None],
    engine: str | None,
    **fields: float | None,
) -> Service:
    """The service that options say.

    Args:
        cluster: the GPUs and nodes.
        loads: what the model has.
        said: --model, --gpu, --expert-bytes, --bandwidth-within and --bandwidth-between.
        engine: whose overheads are counted.
        fields: of a `Service`, where they are given.

    Raises:
        EplbError: a figure that is missing, or as for `Service`.
    """
    rates = rates_of(cluster, *said, loads.num_experts, loads.model)
    if rates.expert_bytes is None:
        raise OptionError("the size of an expert is not known: give --model or --expert-bytes")
    between = rates.between
    if between is None and cluster.num_nodes == 1:
        between = rates.within  # nothing enters a node
    if rates.within is None or between is None:
        missing = "--bandwidth-within" if rates.within is None else "--bandwidth-between"
        raise OptionError(f"the bandwidth of the GPUs is not known: give --gpu or {missing}")
    service = Service(rates.expert_bytes, rates.within, between)
    if engine is not None:
        service = service.in_engine(engine)
    known: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    return replace(service, **known)


@dataclass(frozen=True)
class Target:
    """Where a placement goes, in whose form."""

    path: Path
    engine: Engine

    def write(self, placement: Placement, trace: LoadTrace) -> None:
        """Write the placement that was planned for a trace."""
        save_placement(
            placement,
            self.path,
            to=self.engine,
            dense=trace.dense,
            layers=trace.layers,
        )

    def say(self, placement: Placement, trace: LoadTrace) -> None:
        """Tell what was written."""
        cluster = placement.cluster
        numbers = np.array(trace.layers or range(trace.num_layers))
        left_out = numbers[trace.dense]
        without = ""
        if self.engine in MOE_ONLY and left_out.size:
            without = f", without the layers that have no load ({ranges(left_out.tolist())})"
        anew = ""
        if self.engine in ALIVE_ONLY and cluster.dead:
            anew = f", for the {len(cluster.alive)} GPUs alive, numbered anew from 0"
        say(f"Placement written to {printable(self.path)} for {self.engine}{without}{anew}.")


def target_of(output: Path | None, to: str | None) -> Target | None:
    """What was asked for, found out before any work is done."""
    if output is None:
        if to is not None:
            raise OptionError("--to is the format of the file of --output: give --output too")
        return None
    return Target(output, check_placement_path(output, to or ENGINES[0]))
