"""`eplb report`: one page, or the same in text, that says what to do about imbalance."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from eplb.checks import printable, real_number
from eplb.cli.bundles import beginning
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.nodes import RoutedBy, traffic_of
from eplb.cli.options import (
    AdviceOptions,
    AsJson,
    ClusterOptions,
    DispatchRule,
    Groups,
    Threads,
    TraceFiles,
    given,
    rule_of,
    with_speed,
)
from eplb.cli.reading import LayerOptions
from eplb.cli.service import (
    Between,
    EngineName,
    ExpertBytes,
    Within,
    gpu_with,
    model_with,
)
from eplb.cli.terminal import print_json, shows_progress
from eplb.cost.gpus import GPUS, find_gpu
from eplb.cost.models import MODELS, Model
from eplb.errors import MissingExtraError, OptionError
from eplb.files import check_writable, write_text
from eplb.loads import LoadTrace
from eplb.report import STEPS, Figures, measure, print_report, render_page
from eplb.report.figures import Missing
from eplb.report.timing import known_model

__all__ = ["command"]

_PAGE = Path("report.html")


def command(
    traces: TraceFiles,
    *,
    asked: ClusterOptions,
    groups: Groups = 1,
    model: Annotated[
        str | None,
        typer.Option(
            autocompletion=beginning(MODELS),
            help=f"Name of the model, for time estimates: {', '.join(MODELS)}. [default: what the "
            "loads say]",
            show_default=False,
        ),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            autocompletion=beginning(GPUS),
            help=f"Name of the GPU, for time estimates: {', '.join(GPUS)}.",
        ),
    ] = "H100",
    expert_bytes: ExpertBytes = None,
    bandwidth_within: Within = None,
    bandwidth_between: Between = None,
    engine: EngineName = None,
    tokens_per_gpu: Annotated[
        float, typer.Option(help="Tokens of each GPU in a step, for time estimates.")
    ] = 128.0,
    current: Annotated[
        Path | None,
        typer.Option(
            metavar="PLACEMENT",
            help="File of the placement that runs, in any format that `eplb evaluate` reads. "
            "[default: the layout that engines start with]",
            show_default=False,
        ),
    ] = None,
    window_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds that a window lasts. [default: what the loads say]",
            show_default=False,
        ),
    ] = None,
    advice: AdviceOptions,
    reading: LayerOptions,
    dispatch: DispatchRule = None,
    traffic: RoutedBy = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"Write the page to this file. [default: {_PAGE}; with --text, no page is "
            "written]",
            show_default=False,
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the report as text.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Report what imbalance costs, what balancing gains, whether that lasts, and what to run."""
    target = _PAGE if output is None and not (text or as_json) else output
    if target is not None:
        check_writable(target, *traces)
        _check_installed()
    if window_seconds is not None:
        real_number(window_seconds, "--window-seconds", "seconds")
    rule = rule_of(dispatch)
    card = find_gpu(
        gpu, "the most similar of these, and --bandwidth-within and --bandwidth-between"
    )
    console = Console(stderr=True)
    with quitting_on_interrupt(console), _Steps(console) as steps:
        steps("reading", 0, 1)
        loads = reading.loads(traces, to_stderr=True)
        running = None
        if current is not None:
            running = reading.placement(current, loads, asked.gpus, asked.nodes)
            running = replace(running, cluster=with_speed(running.cluster, asked.speed))
        if asked.slots is None and asked.slots_per_gpu is None and running is not None:
            cluster = running.cluster
        else:
            cluster = asked.cluster(loads.num_experts)
        found = measure(
            loads,
            cluster,
            name=[str(path) for path in traces],
            current=running,
            current_name=None if current is None else str(current),
            num_groups=groups,
            dispatch=rule,
            traffic=traffic_of(traffic, None, loads, cluster),
            **vars(advice),
            model=_model(model, expert_bytes, loads),
            gpu=gpu_with(card, cluster, bandwidth_within, bandwidth_between),
            engine=engine,
            tokens_per_gpu=tokens_per_gpu,
            window_seconds=window_seconds,
            reading=tuple(given(axes=reading.axes, counters=reading.counters, merge=reading.merge)),
            layers=tuple(given(first_layer=reading.first_layer, layers=reading.layers)),
            threads=threads,
            progress=steps,
        )
        steps("drawing", 0, 1)
        page = None if target is None else render_page(found)
    _put(target, page, found, text, as_json)


def _model(name: str | None, expert_bytes: int | None, loads: LoadTrace) -> Model | str | None:
    """The model that times are estimated for, with experts of the size that is given.

    Raises:
        OptionError: a size, and no model whose other figures are known.
    """
    if expert_bytes is None:
        return name
    known = known_model(name or loads.model, loads)
    if isinstance(known, Missing):
        raise OptionError(f"--expert-bytes changes one figure of a model, but {known.why}")
    return model_with(known, expert_bytes)


def _put(target: Path | None, page: str | None, found: Figures, text: bool, as_json: bool) -> None:
    console = Console(stderr=as_json)
    # Printed before it is written, for a disk may be full.
    if as_json:
        print_json({**found.to_json(), "output": None if target is None else str(target)})
    elif text:
        print_report(console, found)
    if target is not None and page is not None:
        write_text(target, page)
        line = f"The report is in {printable(target)}."
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _check_installed() -> None:
    """Tell before the work begins that the page could not be made.

    Raises:
        MissingExtraError: a package is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        if find_spec(package) is None:
            raise MissingExtraError(package, "report", "a report's page")


class _Steps:
    """A bar for each step of a report on a terminal, nothing elsewhere."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            console=console, transient=True, disable=not shows_progress(console)
        )
        self._task = self._progress.add_task("reading", total=None)
        self._step = "reading"

    def __enter__(self) -> "_Steps":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, wanted: int) -> None:
        if what != self._step:
            self._step = what
            number = f" ({STEPS.index(what) + 1} of {len(STEPS)})" if what in STEPS else ""
            self._progress.reset(self._task, description=what + number)
        # A step that does not say how far it is runs to and fro.
        self._progress.update(self._task, completed=done, total=None if done == 0 else wanted)
