"""`eplb compare` and `eplb sweep`: policies on a trace, each scored on what it has not seen."""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import Progress

from eplb.checks import printable
from eplb.cli.interrupts import INTERRUPTED, quitting_on_interrupt, stopping_on_interrupt
from eplb.cli.options import AsJson, Gpus, Groups, Merge, Nodes, Slots, TraceFile, cluster_of
from eplb.cli.services import (
    Between,
    ExpertShare,
    GpuName,
    ModelName,
    Stall,
    Within,
    rates_of,
    service_of,
)
from eplb.comparison_text import print_comparison, print_sweep
from eplb.errors import EplbError
from eplb.formats import load_trace
from eplb.records import check_ending, write_comparison, write_sweep
from eplb.replaying.compare import compare
from eplb.replaying.policies import POLICIES, named_policies
from eplb.replaying.replay import HISTORY
from eplb.replaying.sweep import SweepRow, sweep_rows

__all__ = ["compare_policies", "sweep_policies"]

_DEFAULT = ["contiguous", "seed", "eplb", "oracle"]

Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        help=f"{', '.join(POLICIES)}, or a Python file with `policy` or `rebalance_experts`, "
        f"which is run; again for more. [default: {', '.join(_DEFAULT)}]",
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
ExpertBytes = Annotated[int | None, typer.Option(help="Bytes of an expert's weights in one layer.")]


def compare_policies(
    trace: TraceFile,
    gpus: Gpus,
    policy: Policies = None,
    nodes: Nodes = 1,
    slots: Slots = None,
    groups: Groups = 1,
    every: Annotated[int, typer.Option(help="Windows from one plan to the next.")] = 1,
    history: History = HISTORY,
    first: First = 1,
    merge: Merge = 1,
    expert_bytes: ExpertBytes = None,
    window_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time that a window stands for: with this or any of the options below, the net "
            "benefit is told. [default: what the loads say]",
            show_default=False,
        ),
    ] = None,
    model: ModelName = None,
    gpu: GpuName = None,
    bandwidth_within: Within = None,
    bandwidth_between: Between = None,
    stall: Stall = None,
    expert_share: ExpertShare = None,
    output: Record = None,
    as_json: AsJson = False,
) -> None:
    """Replay policies on a trace, side by side: each window is scored before a plan has seen it.

    Ctrl-C stops, and prints and writes what was done so far; so does a policy that fails.
    """
    if output is not None:
        check_ending(output, trace)
    console = Console(stderr=True)
    with quitting_on_interrupt(console), _printing_to_stderr():
        policies = named_policies(policy or _DEFAULT)
        loads = load_trace(trace).merged(merge)
    cluster = cluster_of(loads.num_experts, gpus, nodes, slots)
    service = None
    more = (window_seconds, model, gpu, bandwidth_within, bandwidth_between, stall, expert_share)
    if any(value is not None for value in more):
        rates = rates_of(
            cluster, model, gpu, expert_bytes, bandwidth_within, bandwidth_between, loads.model
        )
        service = service_of(cluster, rates, stall, expert_share)
    failures: list[EplbError] = []
    with (
        _printing_to_stderr(),
        stopping_on_interrupt(console) as stopped,
        _progress(console, "replaying") as advance,
    ):

        def after_window(done: int, wanted: int) -> bool:
            advance(done, wanted)
            return not stopped()

        comparison = compare(
            loads,
            cluster,
            policies,
            num_groups=groups,
            every=every,
            history=history,
            first=first,
            expert_bytes=expert_bytes,
            service=service,
            window_seconds=window_seconds,
            progress=after_window,
            failed=failures.append,
        )
    # Printed before it is written, for a disk may be full.
    if as_json:
        print(json.dumps(comparison.to_json()))  # noqa: T201
    else:
        print_comparison(Console(), str(trace), comparison)
    if output is not None:
        write_comparison(output, comparison, loads)
        _say_written(output, as_json)
    if failures:
        raise failures[0]
    if comparison.windows < comparison.wanted:
        raise typer.Exit(INTERRUPTED)


def sweep_policies(
    trace: TraceFile,
    gpus: Annotated[list[int], typer.Option(help="GPUs that share the experts; again for more.")],
    policy: Policies = None,
    spare: Annotated[
        list[int] | None,
        typer.Option(
            help="Slots on each GPU beyond those that the experts fill; again for more. "
            "[default: 1]",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        list[int] | None,
        typer.Option(
            help="Windows from one plan to the next; again for more. [default: 1]",
            show_default=False,
        ),
    ] = None,
    nodes: Nodes = 1,
    groups: Groups = 1,
    history: History = HISTORY,
    first: First = 1,
    merge: Merge = 1,
    expert_bytes: ExpertBytes = None,
    jobs: Annotated[int, typer.Option(help="Replays at a time, -1 for one a core.")] = -1,
    output: SweepRecord = None,
    as_json: AsJson = False,
) -> None:
    """Replay policies x cluster sizes x spare slots x cadences, over all cores.

    Ctrl-C stops, and prints and writes what was done so far; so does a policy that fails.
    """
    if output is not None:
        check_ending(output, trace)
    policies = policy or _DEFAULT
    console = Console(stderr=True)
    with quitting_on_interrupt(console):
        loads = load_trace(trace).merged(merge)
    clusters = [
        cluster_of(loads.num_experts, size, nodes, None, spare=more)
        for size, more in itertools.product(gpus, spare or [1])
    ]
    cadences = every or [1]
    wanted = len(clusters) * len(cadences) * len(policies)
    rows: list[SweepRow] = []
    failure: EplbError | None = None
    with (
        _printing_to_stderr(),
        stopping_on_interrupt(console) as stopped,
        _progress(console, "sweeping") as advance,
    ):
        found = sweep_rows(
            loads,
            clusters,
            policies,
            every=cadences,
            num_groups=groups,
            history=history,
            first=first,
            expert_bytes=expert_bytes,
            jobs=jobs,
        )
        with contextlib.closing(found):
            try:
                for row in found:
                    rows.append(row)
                    advance(len(rows), wanted)
                    if stopped():
                        break
            except EplbError as error:
                if not rows:
                    raise
                failure = error
    if as_json:
        print(json.dumps([row.to_json() for row in rows]))  # noqa: T201
    else:
        print_sweep(Console(), str(trace), rows, wanted)
    if output is not None and rows:
        write_sweep(output, rows)
        _say_written(output, as_json)
    if failure is not None:
        raise failure
    if len(rows) < wanted:
        raise typer.Exit(INTERRUPTED)


def _say_written(output: Path, as_json: bool) -> None:
    if not as_json:
        line = f"The figures are in {printable(output)}."
        Console().print(line, highlight=False, markup=False)


def _printing_to_stderr() -> contextlib.redirect_stdout[TextIO]:
    """What policies print must not mix with what this prints."""
    return contextlib.redirect_stdout(sys.stderr)


class _Advance:
    """Moves a progress bar, which runs to and fro until the first step is done."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None)

    def __call__(self, done: int, wanted: int) -> None:
        self._progress.update(self._task, completed=done, total=wanted)


@contextlib.contextmanager
def _progress(console: Console, what: str) -> Iterator[_Advance]:
    """A progress bar on a terminal, nothing elsewhere."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Advance(progress, what)
