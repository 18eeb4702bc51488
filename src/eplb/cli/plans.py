"""`eplb plan` and `eplb demo`: a placement for loads, and what it gains."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from eplb import synthetic
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.options import (
    AsJson,
    Gpus,
    Groups,
    Nodes,
    Output,
    Slots,
    Threads,
    TraceFile,
    cluster_of,
)
from eplb.cluster import Cluster
from eplb.comparison import compare
from eplb.comparison_text import print_comparison
from eplb.files import write_text
from eplb.formats import load_trace
from eplb.formats.sglang import placement_text
from eplb.planner import Plan, plan
from eplb.records import check_writable
from eplb.summary import Summary, print_summary, summarize
from eplb.text import printable

__all__ = ["demo", "plan_file"]

_DEMO_WINDOWS, _DEMO_TOKENS = 16, 100_000


def plan_file(
    trace: TraceFile,
    gpus: Gpus,
    nodes: Nodes = 1,
    slots: Slots = None,
    groups: Groups = 1,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan a placement for the loads in a file or folder, all windows together."""
    if output is not None:
        check_writable(output, trace)
    loads = load_trace(trace).total()
    made, summary = _timed_plan(
        loads, cluster_of(loads.shape[1], gpus, nodes, slots), groups, threads
    )
    _write(output, made)
    if as_json:
        _print_json(summary, output)
        return
    _print(printable(trace), summary, output)


def demo(
    gpus: Gpus = 32,
    nodes: Nodes = 4,
    slots: Slots = None,
    groups: Groups = 1,
    seed: Annotated[int, typer.Option(help="Of the random loads.")] = 0,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan and replay loads made to behave like DeepSeek-V3's: no file is needed."""
    if output is not None:
        check_writable(output)
    trace = synthetic.trace(
        "deepseek-v3", num_windows=_DEMO_WINDOWS, tokens_per_window=_DEMO_TOKENS, seed=seed
    )
    cluster = cluster_of(trace.num_experts, gpus, nodes, slots)
    made, summary = _timed_plan(trace.total(), cluster, groups, threads)
    with quitting_on_interrupt(console := Console(stderr=True)), console.status("replaying"):
        comparison = compare(trace, cluster, ("contiguous", "seed", "eplb"), num_groups=groups)
    _write(output, made)
    if as_json:
        _print_json(summary, output, comparison=comparison.to_json())
        return
    title = (
        f"Synthetic loads that behave like DeepSeek-V3's: {trace.num_windows} windows of "
        f"{_DEMO_TOKENS:,} tokens, seed {seed}"
    )
    _print(title, summary, output)
    print()  # noqa: T201
    print_comparison(
        Console(), "The same, window by window, each scored before any plan has seen it", comparison
    )


def _write(output: Path | None, made: Plan) -> None:
    if output is not None:
        write_text(output, placement_text(made.placement))


def _print_json(summary: Summary, output: Path | None, **more: object) -> None:
    written = None if output is None else str(output)
    print(json.dumps({**summary.to_json(), "output": written, **more}))  # noqa: T201


def _print(title: str, summary: Summary, output: Path | None) -> None:
    console = Console()
    print_summary(console, title, summary)
    if output is not None:
        console.print(f"Placement written to {printable(output)}.", highlight=False, markup=False)


def _timed_plan(
    loads: NDArray[np.float64], cluster: Cluster, groups: int, threads: int | None
) -> tuple[Plan, Summary]:
    """Plan twice: the first time tells what a new process waits, the second what planning takes."""
    console = Console(stderr=True)
    with (
        quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        begin = time.perf_counter()
        plan(loads, cluster, num_groups=groups, threads=threads)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        made = plan(loads, cluster, num_groups=groups, threads=threads)
        seconds = time.perf_counter() - begin
    return made, summarize(loads, made, groups, seconds, first)
