"""`eplb report`: one page, or the same in text, that says what to do about imbalance."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from eplb.checks import real_number
from eplb.cli import options
from eplb.cli.bundles import one_of
from eplb.cli.interrupts import quitting_on_interrupt
from eplb.cli.nodes import RoutedBy, traffic_of
from eplb.cli.reading import LayerOptions
from eplb.cli.service import EngineName, OwnFigures
from eplb.cli.terminal import print_json, say, shows_progress
from eplb.cost.gpus import GPUS, find_gpu
from eplb.cost.models import MODELS, Model
from eplb.errors import MissingExtraError, OptionError
from eplb.files import check_writable, write_text
from eplb.loads import LoadTrace
from eplb.report import STEPS, measure, print_report, render_page
from eplb.report.commands import typed
from eplb.report.figures import Missing
from eplb.report.timing import known_model

_PAGE = Path("report.html")


def command(
    traces: options.TraceFiles,
    *,
    asked: options.ClusterOptions,
    groups: options.Groups = 1,
    model: Annotated[
        str | None,
        one_of(MODELS, "Name of the model, for time estimates: {}. [default: what the loads say]"),
    ] = None,
    gpu: Annotated[str, one_of(GPUS, "Name of the GPU, for time estimates: {}.")] = "H100",
    own: OwnFigures,
    engine: EngineName = None,
    tokens_per_gpu: float = 128.0,
    current: Annotated[Path | None, typer.Option(metavar="PLACEMENT")] = None,
    window_seconds: float | None = None,
    advice: options.AdviceOptions,
    reading: LayerOptions,
    dispatch: options.DispatchRule = None,
    traffic: RoutedBy = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"Write the page to this file. [default: {_PAGE}; with --text, no page is "
            "written]",
        ),
    ] = None,
    text: Annotated[bool, typer.Option("--text")] = False,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
) -> None:
    """Report what imbalance costs, what balancing gains, whether that lasts, and what to run.

    Options:
        tokens_per_gpu: Tokens of each GPU in a step, for time estimates.
        current: File of the placement that runs, in any format that `eplb evaluate` reads.
            [default: the layout that engines start with]
        window_seconds: Seconds that a window lasts. [default: what the loads say]
        text: Print the report as text.
    """
    target = _PAGE if output is None and not (text or as_json) else output
    if target is not None:
        check_writable(target, *traces)
        for package in ("jinja2", "matplotlib"):
            if find_spec(package) is None:
                raise MissingExtraError(package, "report", "a report's page")
    if window_seconds is not None:
        real_number(window_seconds, "--window-seconds", "seconds")
    rule = options.rule_of(dispatch)
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
            running = replace(running, cluster=options.with_speed(running.cluster, asked.speed))
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
            model=_model(model, own, loads),
            gpu=own.of_gpu(card, cluster),
            engine=engine,
            tokens_per_gpu=tokens_per_gpu,
            window_seconds=window_seconds,
            reading=tuple(typed(axes=reading.axes, counters=reading.counters, merge=reading.merge)),
            layers=tuple(typed(first_layer=reading.first_layer, layers=reading.layers)),
            threads=threads,
            progress=steps,
        )
        steps("drawing", 0, 1)
        page = None if target is None else render_page(found)
    # Printed before it is written, for a disk may be full.
    if as_json:
        print_json({**found.to_json(), "output": target})
    elif text:
        print_report(Console(), found)
    if target is not None and page is not None:
        write_text(target, page)
        say(f"The report is in {target}.", to_stderr=as_json)


def _model(name: str | None, own: OwnFigures, loads: LoadTrace) -> Model | str | None:
    """The model that times are estimated for, with experts of the size that is given."""
    if own.expert_bytes is None:
        return name
    known = known_model(name or loads.model, loads)
    if isinstance(known, Missing):
        raise OptionError(f"--expert-bytes changes one figure of a model, but {known.why}")
    return own.of_model(known)


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
