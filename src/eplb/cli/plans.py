"""The command line: parse, call, print. Errors are one line on stderr and exit code 2."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from eplb import __version__
from eplb.cluster import Cluster
from eplb.errors import EplbError
from eplb.files import write_text
from eplb.formats import read_loads
from eplb.formats.sglang import placement_text
from eplb.planner import Plan, plan
from eplb.summary import Summary, print_summary, summarize
from eplb.synthetic import deepseek_v3

__all__ = ["main"]

app = typer.Typer(
    name="eplb",
    help="Expert Parallelism Load Balancer for mixture-of-experts inference.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"eplb {__version__}")
        raise typer.Exit


@app.callback()
def _eplb(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("plan")
def _plan(
    loads: Annotated[
        Path,
        typer.Argument(
            help="Loads [layers, experts]: logical_count JSON, .npy, .npz, CSV or .pt; "
            "windows before the layers are added up."
        ),
    ],
    gpus: Gpus,
    nodes: Nodes = 1,
    slots: Slots = None,
    groups: Groups = 1,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan a placement for the loads in a file, and say what it gains."""
    _run(read_loads(loads), str(loads), gpus, nodes, slots, groups, output, threads, as_json)


@app.command("demo")
def _demo(
    gpus: Gpus = 32,
    nodes: Nodes = 4,
    slots: Slots = None,
    groups: Groups = 1,
    seed: Annotated[int, typer.Option(help="Of the random loads.")] = 0,
    output: Output = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Plan loads made to DeepSeek-V3's shape and skew: no file is needed."""
    title = f"Synthetic load of DeepSeek-V3's shape and skew (seed {seed})"
    _run(deepseek_v3(seed=seed), title, gpus, nodes, slots, groups, output, threads, as_json)


def _run(
    loads: NDArray[np.float64],
    title: str,
    gpus: int,
    nodes: int,
    slots: int | None,
    groups: int,
    output: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Plan, write what was asked for, and print."""
    cluster = _cluster(loads.shape[1], gpus, nodes, slots)
    made, summary = _timed_plan(loads, cluster, groups, threads)
    if output is not None:
        write_text(output, placement_text(made.placement))
    if as_json:
        written = None if output is None else str(output)
        print(json.dumps({**summary.to_json(), "output": written}))  # noqa: T201
        return
    console = Console()
    print_summary(console, title, summary)
    if output is not None:
        console.print(f"Placement written to {output}.", highlight=False, markup=False)


def _cluster(num_experts: int, gpus: int, nodes: int, slots: int | None) -> Cluster:
    """The cluster asked for, by default with one slot on each GPU more than the experts fill."""
    if slots is not None:
        return Cluster.with_slots(slots, gpus, nodes)
    bare = Cluster(gpus, nodes, 1)
    return Cluster(gpus, nodes, -(-num_experts // bare.num_gpus) + 1)


def _timed_plan(
    loads: NDArray[np.float64], cluster: Cluster, groups: int, threads: int | None
) -> tuple[Plan, Summary]:
    """Plan twice: the first time tells what a new process waits, the second what planning takes."""
    console = Console(stderr=True)
    with (
        _quitting_on_interrupt(console),
        console.status("planning; kernels are compiled once on a machine"),
    ):
        begin = time.perf_counter()
        plan(loads, cluster, num_groups=groups, threads=threads)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        made = plan(loads, cluster, num_groups=groups, threads=threads)
        seconds = time.perf_counter() - begin
    return made, summarize(loads, made, groups, seconds, first)


@contextmanager
def _quitting_on_interrupt(console: Console) -> Iterator[None]:
    """End the process on Ctrl-C: the compiler would swallow a KeyboardInterrupt now and then.

    Nothing is being written meanwhile that could be left half done.
    """

    def quit_now(*_: object) -> None:
        console.show_cursor()
        os._exit(130)

    before = signal.signal(signal.SIGINT, quit_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main() -> None:
    """Entry point of the `eplb` command."""
    try:
        app()
    except EplbError as error:
        message = " ".join(str(error).split())
        sys.exit(_fail(f"eplb: {message}", 2))
    except BrokenPipeError:
        # Whoever read the output has gone; nothing more can be said to them.
        sys.stderr.close()
        sys.exit(141)


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
