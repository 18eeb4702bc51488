"""What commands print in a terminal: every table, and the sentences around it."""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from eplb.balance import with_interval
from eplb.checks import counted, more, printable, ranges
from eplb.cli.plot import finding
from eplb.describe import (
    OF_EXPERTS,
    OF_GPUS,
    PLAIN_SIGNS,
    SIGNS,
    Inspection,
    Shades,
    heat_map,
)
from eplb.dispatching.rules import in_words
from eplb.loads import LoadTrace
from eplb.moving.decide import Decision
from eplb.moving.frontier import Frontier
from eplb.moving.migrate import Migration
from eplb.moving.verdict import Verdict
from eplb.planning.summary import LayerSummary, Summary
from eplb.replaying.compare import Comparison, Score
from eplb.replaying.demo import GPU, MODEL, TOKENS, Demo
from eplb.replaying.evaluate import Evaluation, Standing
from eplb.replaying.sweep import SweepRow

__all__ = [
    "print_comparison",
    "print_decision",
    "print_demo",
    "print_evaluation",
    "print_facts",
    "print_frontier",
    "print_inspection",
    "print_json",
    "print_migration",
    "print_summary",
    "print_sweep",
    "print_verdict",
    "print_watched_loads",
    "print_watched_metrics",
    "printing_to_stderr",
    "progress_bar",
    "say",
    "say_written",
    "shows_progress",
    "waiting",
]

Heat: TypeAlias = NDArray[np.float64]

_VERSION = 1
"""Of what `--json` prints: it grows where a name goes or means something else."""

_BAR = 30
"""Characters of the longest bar."""

_COSTS = ("moved", "bytes", "plan")

_SPLITS = {
    "even": "an even split",
    "sglang": "SGLang's rule of dispatch",
    "ascend": "vllm-ascend's rule of dispatch",
    "best": "the best split of each window",
}
"""What plans are made for."""

_IN_TURN = "in no order, each held out in turn and served by a plan for the others"

_STANDINGS = {
    "this": "this placement",
    "from this": "a plan from it",
    "afresh": "a plan from scratch",
    "engine": "the engine's own",
}


def say(line: str, *, to_stderr: bool = False) -> None:
    """Print a sentence, as it is."""
    Console(stderr=to_stderr).print(printable(line), highlight=False, markup=False, soft_wrap=True)


def print_json(figures: Mapping[str, object]) -> None:
    """Print figures for a script, as one line, with the version of their names."""
    print(json.dumps({"version": _VERSION, **figures}))  # noqa: T201


def say_written(loads: LoadTrace, target: Path, *, as_json: bool) -> None:
    """Say what was written, in a sentence or as JSON."""
    if not as_json:
        say(f"{loads!r} written to {target}.")
        return
    figures = {
        "windows": loads.num_windows,
        "layers": loads.num_layers,
        "experts": loads.num_experts,
        "model": loads.model,
        "top_k": loads.top_k,
    }
    print_json({**figures, "output": str(target)})


def printing_to_stderr() -> contextlib.redirect_stdout[TextIO]:
    """What policies print must not mix with what a command prints."""
    return contextlib.redirect_stdout(sys.stderr)


def shows_progress(console: Console) -> bool:
    """Whether there is a terminal, and a thread to be had that keeps it moving."""
    if not console.is_terminal:
        return False
    thread = threading.Thread(target=lambda: None)
    try:
        thread.start()
    except RuntimeError:  # a limit of processes
        return False
    thread.join()
    return True


def waiting(console: Console, what: str) -> contextlib.AbstractContextManager[object]:
    """A sign on a terminal that something is being done, nothing elsewhere."""
    return console.status(what) if shows_progress(console) else contextlib.nullcontext()


@contextlib.contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, nothing elsewhere; it runs to and fro until the first step is
    done. Gives a function to call with the steps that are done, and the steps that there are.
    """
    disable = not shows_progress(console)
    with Progress(console=console, transient=True, disable=disable) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, wanted: progress.update(task, completed=done, total=wanted)


def print_summary(
    console: Console, title: str, summary: Summary, why_duplicates: str | None = None
) -> None:
    """Print a plan's figures for a person.

    Args:
        console: where.
        title: the first line.
        summary: the figures.
        why_duplicates: why a GPU holds an expert twice although it has room for others, in a
            sentence.
    """
    dense = len(summary.dense_layers)
    _title(console, title)
    setting = _setting(
        summary.layers, dense, summary.experts, summary, ", spread evenly", summary.dead
    )
    _line(console, setting)
    if summary.planned_for is not None:
        _line(console, summary.planned_for)
    for line in summary.of_nodes():
        _line(console, line)
    if dense == summary.layers:
        _line(console, "No layer has any load, so the experts are spread evenly.")
    else:
        asked = summary.dispatch == summary.planned_dispatch != "even"
        said = " The plan is made for this." if asked else ""
        _line(console, f"{in_words(summary.dispatch)}{said}")
        console.print()
        console.print(_summary_table(summary))
        console.print()
        before = "in the layout that engines start with" if summary.running is None else "now"
        line = (
            f"The busiest GPU of a layer carries {_less(summary.busiest_gpu_saves)} {before}, and "
            f"{_less(summary.engine_saves)} by the engine's own planner."
        )
        split = ""
        if summary.dispatch != summary.planned_dispatch:
            split = f" under {_SPLITS[summary.planned_dispatch]}"
            line += (
                f" The plan is made for {_SPLITS[summary.planned_dispatch]}, under which it has "
                f"balancedness {summary.as_planned:.4f}."
            )
        _line(console, f"{line} {summary.of_objective(split)}")
    for line in summary.of_tokens():
        _line(console, line)
    if summary.duplicates:
        _line(console, _second_copies(summary, why_duplicates))
    _line(console, f"Planned in {_duration(summary.seconds)}.")


def _less(share: float) -> str:
    """A share that a load falls by, or rises by where it is below 0: "23% less load than"."""
    if round(share, 2) == 0.0:
        return "as much load as"
    return f"{abs(share):.0%} {'more' if share < 0.0 else 'less'} load than"


def _second_copies(summary: Summary, why: str | None) -> str:
    """How many slots hold an expert that their GPU holds already, and why."""
    slots = "1 slot holds" if summary.duplicates == 1 else f"{summary.duplicates:,} slots hold"
    line = f"{slots} an expert that its GPU already holds."
    within_nodes = summary.policy == "hierarchical"
    fit = summary.experts // summary.nodes if within_nodes else summary.experts
    left_over = summary.layers * max(0, summary.slots - fit * summary.gpus)
    if summary.duplicates <= left_over:
        place = "its node may hold" if within_nodes else "there are"
        return f"{line} A GPU has more slots than {place} experts."
    return line if why is None else f"{line} {why}"


def print_inspection(
    console: Console, title: str, found: Inspection, heat: Heat, numbers: Sequence[int]
) -> None:
    """Print the figures of a trace for a person, and its `heat` [L, E] as a map, whose layers have
    these `numbers` [L].
    """
    _title(console, title)
    names = printable(found.first_window)
    if found.windows > 1:
        names += f" to {printable(found.last_window)}"
    if found.seconds is not None:
        names += f", {found.seconds:,.1f} seconds"
    _line(console, f"{_counted(found)} ({names})")
    layers = counted(found.layers - len(found.dense_layers), "MoE layer")
    layers += f" of {counted(found.experts, 'expert')}"
    if found.dense_layers:
        layers += f", and {len(found.dense_layers)} with no load ({ranges(found.dense_layers)})"
    _line(console, layers)
    known = [f"model {printable(found.model)}"] if found.model else []
    if found.top_k is not None:
        known.append(f"top {found.top_k}")
    if found.source_ranks is not None:
        known.append(f"tokens counted by {counted(found.source_ranks, 'source rank')}")
    if known:
        _line(console, ", ".join(known))
    if found.hottest is None:
        _line(console, "No layer has any load.")
        return
    console.print()
    console.print(_skew_table(found))
    if found.drift:
        console.print()
        console.print(_drift_table(found))
    if found.alike is not None:
        alike = found.alike
        console.print()
        _line(
            console,
            f"Experts' shares in two of the workloads correlate by {alike.mean:.3f} on average "
            f"({alike.least:.3f} to {alike.most:.3f}).",
        )
    console.print()
    _line(
        console,
        "Spread is a standard deviation of natural logs: 0 where shares are equal, 0.7 where they "
        "typically differ by a factor of 2.",
    )
    console.print()
    loaded = [row for row in range(len(heat)) if heat[row].any()]
    _print_heat(console, heat[loaded], [numbers[row] for row in loaded], "expert", OF_EXPERTS)
    hot = (
        f"{each.expert} of layer {each.layer} ({each.times_mean:.1f})"
        for each in found.hottest_experts
    )
    console.print()
    _line(console, f"Hottest experts (times the mean of their layer): {', '.join(hot)}.")


def _print_heat(
    console: Console, heat: Heat, layers: Sequence[int], what: str, shades: Shades
) -> None:
    signs = SIGNS if _can_print(console, SIGNS) else PLAIN_SIGNS
    legend, lines = heat_map({"": heat}, layers, what, shades, console.width, signs)
    _line(console, legend)
    for line in lines:
        console.print(Text(line, no_wrap=True))


def print_watched_loads(
    console: Console, title: str, gpu_load: Heat, experts: int, age: float | None
) -> None:
    """Print how GPUs are loaded now.

    Args:
        console: where.
        title: what is watched.
        gpu_load: [T, L, G] of the last windows.
        experts: E.
        age: seconds since the last of them, where that is known.
    """
    _title(console, title)
    windows, _, gpus = gpu_load.shape
    total = gpu_load.sum(axis=0)
    layers = np.flatnonzero(total.any(axis=1)).tolist()
    total = total[layers]
    shown = "the last window" if windows == 1 else f"the last {windows} windows"
    ago = "" if age is None else f", {_duration(age)} ago"
    _line(
        console,
        f"{shown}{ago}: {counted(len(total), 'MoE layer')} of {experts} experts on {gpus} GPUs",
    )
    if not total.size:
        _line(console, "No layer has any load.")
        return
    times_mean = total / total.mean(axis=1, keepdims=True)
    balancedness = 1.0 / times_mean.max(axis=1)
    worst = int(balancedness.argmin())
    _line(
        console,
        f"balancedness {balancedness.mean():.3f} mean, {balancedness.min():.3f} in the worst layer;"
        f" there GPU {int(times_mean[worst].argmax())} has {times_mean[worst].max():.2f} times the "
        "mean",
    )
    console.print()
    _print_heat(console, times_mean, layers, "GPU", OF_GPUS)


def print_watched_metrics(
    console: Console, title: str, by_role: Mapping[str, Mapping[str, float]], age: float | None
) -> None:
    """Print what metrics say, a column for each role.

    Args:
        console: where.
        title: what is watched.
        by_role: series of each role, by name; decisions that were never made are left out.
        age: seconds since this planner last answered, where that is known.
    """
    _title(console, title)
    table = _table("", *(printable(role) or "now" for role in by_role))
    names = sorted({name for series in by_role.values() for name in series})
    for name in names:
        values = [series.get(name) for series in by_role.values()]
        if name.startswith("eplb_rebalances_total") and not any(values):
            continue
        cells = ("" if value is None else f"{value:,.6g}" for value in values)
        table.add_row(printable(name.removeprefix("eplb_")), *cells)
    console.print(table)
    if age is not None:
        _line(console, f"This planner last answered {_duration(age)} ago.")


def _can_print(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def print_comparison(console: Console, title: str, comparison: Comparison) -> None:
    """Print what each policy gave."""
    first = printable(comparison.scores[0].policy)
    cadence = "every window" if comparison.every == 1 else f"every {comparison.every} windows"
    shown = (
        "the last window" if comparison.history == 1 else f"the last {comparison.history} windows"
    )
    _title(console, title)
    setting = _setting(comparison.layers, comparison.dense_layers, comparison.experts, comparison)
    served = (
        f"{comparison.windows:,} windows served, a plan before {cadence} from {shown} before it"
    )
    if not comparison.ordered:
        served = f"{counted(comparison.windows, 'workload')} {_IN_TURN}"
    _line(console, f"{setting}; {served}")
    _line(console, in_words(comparison.dispatch))
    console.print()
    net = any(score.net is not None for score in comparison.scores)
    headings = (
        "balancedness",
        "weighted",
        "worst window",
        f"over {first}",
        *_COSTS,
        *["net"] * net,
    )
    table = _table("policy", *headings)
    for number, score in enumerate(comparison.scores):
        table.add_row(
            printable(score.policy),
            with_interval(score.balancedness, score.balancedness_interval),
            f"{score.pooled:.4f}",
            f"{score.worst_window:.4f}",
            with_interval(score.gain, score.gain_interval, "+.4f") if number else "",
            *_costs(score),
            *[f"{score.net:+.2%}" if number and score.net is not None else ""] * net,
        )
    _print_wide(console, table)
    _line(console, "Weighted: each layer counts by its load.")
    if comparison.placed_for:
        console.print()
        _print_wide(console, _rules_table(comparison))
    _print_what_is_sure(console, comparison.scores)
    if net:
        _line(
            console,
            f"Net: share of the service's time saved compared with {first}, after the time lost by "
            "moving.",
        )
    if comparison.windows < comparison.wanted:
        console.print()
        _title(console, f"Stopped after {comparison.windows:,} of {comparison.wanted:,} windows.")


def _rules_table(comparison: Comparison) -> Table:
    """Balancedness under every rule, and of placements made for each."""
    under, placed = comparison.balancedness_under, comparison.placed_for
    table = _table(
        f"placed for {comparison.dispatch}, split",
        *under,
        *(f"{rule}, placed for it" for rule in placed),
    )
    for number, score in enumerate(comparison.scores):
        made = (values[number] for values in placed.values())
        table.add_row(
            printable(score.policy),
            *(f"{values[number]:.4f}" for values in under.values()),
            *("-" if value is None else f"{value:.4f}" for value in made),
        )
    return table


def print_demo(console: Console, found: Demo, seed: int) -> None:
    """Print the three ways of the demo, and what the better ones gain by an estimate."""
    cluster = f"{found.slots} slots on {found.gpus} GPUs"
    if found.nodes > 1:
        cluster += f" on {found.nodes} nodes"
    _title(console, "Synthetic loads that behave like DeepSeek-V3's under mixed traffic")
    _line(
        console,
        f"{found.layers} MoE layers of {found.experts} experts in {cluster}. Kinds of requests "
        f"follow each other; a window has {TOKENS:,} tokens, about vLLM's default window: 1,000 "
        f"steps x {TOKENS / 1000 / found.gpus:,.0f} tokens x {found.gpus} GPUs. Before each of "
        f"{found.windows} windows (seed {seed}) the planner re-plans from earlier windows; the "
        "placement is scored on the new one.",
    )
    console.print()
    table = _table(None, gap=2)
    table.add_column("")
    table.add_column("balancedness on\nloads not seen", justify="right")
    table.add_column("experts moved\nat a re-plan", justify="right")
    table.add_column("tokens/s,\nan estimate", justify="right")
    first, *ours = found.ways
    for way in found.ways:
        gain = way.tokens_per_second / first.tokens_per_second - 1.0
        table.add_row(
            way.name,
            f"{way.balancedness:.3f}",
            f"{way.moved:.1%}",
            "" if way is first else f"{gain:+.1%}",
            style=None if way is first else "bold",
        )
    console.print(table)
    console.print()
    gains = [way.tokens_per_second / first.tokens_per_second - 1.0 for way in ours]
    _line(
        console,
        "Balancedness is the mean load of GPUs / the greatest: a layer waits for its busiest GPU, "
        "and 1 is perfect. vLLM and SGLang run DeepSeek's algorithm from scratch on their last "
        "window. A slot holds one copy of an expert; moved is the share of slots for which GPUs "
        "receive one. Tokens split best: each window's tokens go to the copies of their expert so "
        "that GPUs are as evenly loaded as the placement allows, as eplb.torch.BatchDispatch does "
        "batch by batch.",
    )
    console.print()
    _line(
        console,
        f"By an estimate for {MODEL} on {GPU} GPUs, eplb serves {more(gains[0], 1)} tokens per "
        f"second with an even split and {more(gains[1], 1)} with the best. Each re-plan sends "
        f"{_bytes(ours[-1].bytes_moved)} of weights to GPUs in place of "
        f"{_bytes(first.bytes_moved)}. The estimate does not count the time of these transfers.",
    )
    console.print()
    say("Next, with loads that your engine recorded (eplb report --help says more):")
    nodes = f" --nodes {found.nodes}" if found.nodes > 1 else ""
    say(f"  eplb report loads.json --gpus {found.gpus}{nodes} --slots {found.slots} --text")


def print_sweep(console: Console, title: str, rows: Sequence[SweepRow], wanted: int) -> None:
    """Print a line for each replay of a sweep."""
    _title(console, title)
    if rows:
        _line(console, in_words(rows[0].dispatch))
        if not rows[0].ordered:
            _line(console, f"Workloads {_IN_TURN}.")
    console.print()
    table = _table("GPUs", "slots", "spare", "every")
    table.add_column("policy")
    for heading in ("balancedness", "worst window", *_COSTS):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            *map(str, (row.gpus, row.slots, row.spare, row.every)),
            printable(row.score.policy),
            with_interval(row.score.balancedness, row.score.balancedness_interval),
            f"{row.score.worst_window:.4f}",
            *_costs(row.score),
        )
    _print_wide(console, table, 5)
    _print_what_is_sure(console, [row.score for row in rows])
    if len(rows) < wanted:
        console.print()
        _title(console, f"Stopped after {len(rows)} of {wanted} replays.")


def print_evaluation(
    console: Console, title: str, found: Evaluation, command: str | None = None
) -> None:
    """Print how good the placement is that runs, and what plans would gain."""
    windows = _counted(found)
    dense = len(found.dense_layers)
    _title(console, title)
    setting = _setting(found.layers, dense, found.experts, found, dead=found.dead)
    _line(console, f"{setting}; {windows}")
    _line(console, in_words(found.dispatch))
    console.print()
    if dense == found.layers:
        _line(console, "No layer has any load, so there is nothing to balance.")
        return
    table = _table("", "balancedness", "weighted", "worst window", "duplicates", "moves", gap=2)
    for standing in found.standings:
        this = standing.placement == "this"
        table.add_row(
            _STANDINGS.get(standing.placement, standing.placement),
            with_interval(standing.balancedness, standing.interval),
            with_interval(standing.pooled, standing.pooled_interval),
            f"{standing.worst_window:.4f}",
            str(standing.duplicates),
            "" if this else f"{standing.moves:,} ({standing.moved:.1%})",
            style="bold" if this else None,
        )
    console.print(table)
    _line(
        console,
        "Weighted: each layer counts by its load. Duplicates: slots with a second copy of an "
        "expert on one GPU.",
    )
    console.print()
    table = _table(
        "its worst layers", "this", "from it", "from scratch", "engine's own", "contiguous", gap=2
    )
    for figures in found.worst_layers:
        values = (
            figures.this,
            figures.from_this,
            figures.afresh,
            figures.engine,
            figures.contiguous,
        )
        table.add_row(f"layer {figures.layer}", *(f"{value:.4f}" for value in values), style="dim")
    console.print(table)
    console.print()
    for line in _of_evaluation(found):
        _line(console, line)
    if found.verdict is not None:
        print_verdict(console, found.verdict, command)


def print_verdict(console: Console, verdict: Verdict, command: str | None = None) -> None:
    """Print what to do, and the command that does it if anything is to be done."""
    _line(console, verdict.words)
    if command is not None and verdict.advised:
        say(f"To do so: {command}")


def print_frontier(
    console: Console, title: str, loads: LoadTrace, found: Frontier, num_slots: int
) -> None:
    """Print balancedness against moves, as shares of so many slots of layers with load."""
    cluster = found.placements[0].cluster
    _title(console, title)
    nodes = f" on {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    _line(
        console,
        f"{counted(int((~loads.dense).sum()), 'MoE layer')} of {loads.num_experts} experts in "
        f"{cluster.num_slots} slots on {cluster.num_gpus} GPUs{nodes}; moves are the experts that "
        "GPUs receive",
    )
    _line(console, in_words(found.dispatch))
    console.print()
    mark = SIGNS[-1] if _can_print(console, SIGNS) else PLAIN_SIGNS[-1]
    of_nodes = [] if found.other_nodes is None else ["other nodes"]
    table = _table(None, "moves", "of slots", "balancedness", "of the gain", *of_nodes)
    table.add_column("")
    first, last = found.balancedness[0], found.balancedness[-1]
    for point, (moves, balancedness) in enumerate(
        zip(found.moves.tolist(), found.balancedness.tolist(), strict=True)
    ):
        gain = (balancedness - first) / (last - first) if last > first else 1.0
        table.add_row(
            f"{moves:,}",
            f"{moves / num_slots:.2%}",
            f"{balancedness:.4f}",
            f"{gain:.0%}",
            *([] if found.other_nodes is None else [f"{found.other_nodes[point]:.3f}"]),
            mark * round(_BAR * max(0.0, gain)),
        )
    console.print(table)
    console.print()
    _line(console, f"{finding(found, num_slots)}.")


def print_decision(
    console: Console, title: str, found: Decision, command: str | None = None
) -> None:
    """Print what to do, what was weighed, and the command that does it."""
    _title(console, title)
    _line(console, in_words(found.dispatch))
    console.print()
    _line(console, f"{found.action.capitalize()}: {found.reason}.")
    # What to do follows from costs too, so only why is told here.
    _line(console, found.verdict.evidence)
    if command is not None:
        say(f"To do so: {command}")
    console.print()
    table = _table("weighed" if found.action == "wait" else "to do", "")
    if found.layers:
        table.add_row("layers", f"{len(found.layers)}")
    table.add_row("experts to move", f"{found.moves:,}")
    table.add_row("bytes", f"{found.total_bytes / 1e9:,.3g} GB")
    table.add_row("time of the transfers", f"{found.moving_seconds:.3g} s")
    if found.moves:
        sign = "rise" if found.gain < 0.0 else "fall"
        seen = "windows held out" if found.verdict.windows else "the windows planned for"
        table.add_row(f"{sign} of the peaks on {seen}", f"{abs(found.gain):.2%}")
        table.add_row(
            f"time {'lost' if found.gain < 0.0 else 'gained'} until the next decision",
            f"{abs(found.gained_seconds):.3g} s",
        )
    table.add_row("time lost by moving", f"{found.lost_seconds:.3g} s")
    if found.break_even:
        table.add_row("break-even: gained as much as lost after", f"{found.break_even:.3g} s")
    console.print(table)


def print_migration(console: Console, title: str, found: Migration) -> None:
    """Print how many transfers, waves and bytes a migration takes."""
    _title(console, title)
    if not found.num_transfers and not found.copies.wave.size:
        _line(console, "Nothing moves: every GPU already holds its experts.")
        return
    console.print()
    table = _table("", "")
    table.show_header = False
    table.add_row("experts to send", f"{found.num_transfers:,}")
    if found.num_lost:
        table.add_row("of them from the checkpoint", f"{found.num_lost:,}")
    table.add_row("between nodes", f"{found.num_between_nodes:,}")
    if found.total_bytes is not None and found.bytes_between_nodes is not None:
        table.add_row("bytes", f"{found.total_bytes / 1e9:,.3f} GB")
        table.add_row("bytes between nodes", f"{found.bytes_between_nodes / 1e9:,.3f} GB")
    table.add_row("waves", f"{found.num_waves:,}")
    table.add_row("minimum number of waves", f"{found.fewest_waves:,}")
    table.add_row("buffers that a GPU needs", f"{found.spare_slots.max()}")
    table.add_row("copies inside GPUs", f"{found.copies.wave.size:,}")
    if found.seconds is not None:
        table.add_row("time at these bandwidths", f"{found.seconds:.3g} s")
    console.print(table)
    if found.seconds is None:
        console.print()
        _line(
            console, "Give --model and --gpu, or bytes and bandwidths, for the time that it takes."
        )


def print_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """What is true of a host, a line each."""
    table = _table("host", str(facts["host"]))
    table.columns[1].justify = "left"
    for name, value in facts.items():
        for inner, each in value.items() if isinstance(value, dict) else [("", value)]:
            words = ", ".join(each) if isinstance(each, list) else str(each)
            if name != "host" and words:
                table.add_row(f"{name} {inner}".rstrip(), Text(printable(words)))
    console.print(table)


def _title(console: Console, text: str) -> None:
    console.print(Text(printable(text), style="bold"))


def _line(console: Console, text: str) -> None:
    console.print(Text(text))


def _table(first: str | None, *others: str, gap: int = 3) -> Table:
    """A table whose first column stands left, unless there is none, and the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    if first is not None:
        table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _print_wide(console: Console, table: Table, of_row: int = 1) -> None:
    """Print a table whose first columns say what a row is about, in parts where it does not fit:
    each has those columns, and as many others as fit whole.
    """
    gap = _gap(console)
    columns = [(str(each.header), list(map(str, each.cells))) for each in table.columns]
    widths = [max(map(len, [head, *cells])) + gap for head, cells in columns]
    if sum(widths) - gap > console.width:  # headings in lines
        widths = [max(map(len, [*head.split(), *cells])) + gap for head, cells in columns]
    about, others = list(range(of_row)), list(range(of_row, len(columns)))
    while others:
        shown = about + others[:1]
        for each in others[1:]:
            if sum(widths[at] for at in shown) + widths[each] - gap > console.width:
                break
            shown.append(each)
        others = others[len(shown) - of_row :]
        part = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        for at in shown:
            justify = table.columns[at].justify
            part.add_column(columns[at][0], justify=justify, width=widths[at] - gap)
        for row in zip(*(columns[at][1] for at in shown), strict=True):
            part.add_row(*row)
        console.print(part)
        if others:
            console.print()


def _gap(console: Console) -> int:
    """Between the columns of wide tables."""
    return 3 if console.width > 100 else 1


def _setting(
    num_layers: int,
    num_dense: int,
    num_experts: int,
    cluster: Summary | Comparison | Evaluation,
    of_dense: str = "",
    dead: Sequence[int] = (),
) -> str:
    """Layers, experts and the cluster in a phrase."""
    layers = counted(num_layers - num_dense, "MoE layer")
    if num_dense:
        layers += f" (and {num_dense} with no load{of_dense})"
    nodes = f" on {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    gpus = f"{cluster.gpus} GPUs"
    if dead:
        gpus = f"{cluster.gpus - len(dead)} of {gpus} (dead: {ranges(dead)})"
    return f"{layers} of {num_experts} experts in {cluster.slots} slots on {gpus}{nodes}"


def _summary_table(summary: Summary) -> Table:
    before = "contiguous" if summary.running is None else "now"
    table = _table("balancedness (mean / max GPU load)", before, "engine's own")
    table.add_column("plan", justify="right", style="bold")
    proven = summary.dispatch == summary.planned_dispatch
    if proven:
        table.add_column("proven gap", justify="right")
    table.add_row(
        f"mean of {summary.layers - len(summary.dense_layers)} layers",
        *_before(summary),
        f"{summary.plan:.4f}",
        *[f"{summary.gap_mean:.3%}"] * proven,
    )
    for layer in summary.worst_layers:
        table.add_row(
            f"layer {layer.layer}",
            *_before(layer),
            f"{layer.plan:.4f}",
            *[f"{layer.gap:.3%}"] * proven,
            style="dim",
        )
    return table


def _before(found: Summary | LayerSummary) -> tuple[str, str]:
    """Balancedness of what runs, or of the layout that engines start with; and of the engine's."""
    before = found.contiguous if found.running is None else found.running
    return f"{before:.4f}", f"{found.engine:.4f}"


def _skew_table(found: Inspection) -> Table:
    table = _table("over layers and windows", "mean", "least", "most")
    for name, values, form in (
        ("load of a layer in a window", found.load_per_layer, "{:,.0f}"),
        ("hottest expert / mean expert", found.hottest, "{:.2f}"),
        ("share of the load on the hottest fifth", found.top_fifth, "{:.1%}"),
        ("spread of log shares", found.spread, "{:.2f}"),
        ("experts below 1 % of the mean", found.idle, "{:.4g}"),
    ):
        if values is not None:
            cells = (form.format(value) for value in (values.mean, values.least, values.most))
            table.add_row(name, *cells)
    return table


def _drift_table(found: Inspection) -> Table:
    table = _table("windows apart", "correlation of shares", "spread of log ratios")
    for row in found.drift:
        table.add_row(f"{row.lag:,}", _figure(row.correlation), _figure(row.spread))
    last = found.first_last
    if last is not None and last.lag != found.drift[-1].lag:
        table.add_row(
            f"{last.lag:,} (first and last)", _figure(last.correlation), _figure(last.spread)
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_what_is_sure(console: Console, scores: Sequence[Score]) -> None:
    if any(score.balancedness_interval is not None for score in scores):
        console.print()
        _line(
            console,
            "± is half a 95 % confidence interval. Moved: slots that GPUs receive at a plan.",
        )


def _costs(score: Score) -> tuple[str, str, str]:
    """What plans moved, in slots and bytes, and how long they took."""
    moved = "-" if score.moved is None else f"{score.moved:.1%}"
    size = "-" if score.bytes_per_plan is None else _bytes(score.bytes_per_plan)
    return moved, size, _duration(score.plan_ms / 1e3)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000.0:
            return f"{number:.3g} {unit}"
        number /= 1000.0
    return f"{number:.3g} TB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.1f} s"


def _counted(found: Evaluation | Inspection) -> str:
    """How many windows there are, or workloads in no order."""
    number = counted(found.windows, "window" if found.ordered else "workload")
    return number if found.ordered else f"{number}, in no order"


def _of_evaluation(found: Evaluation) -> list[str]:
    """Sentences below the tables of an evaluation."""
    lines = []
    if found.hottest is not None:
        hot = found.hottest
        lines.append(
            f"GPU {hot.gpu} has the most load, {hot.load:.3f} times the average. It is the busiest "
            f"GPU in {hot.busiest:.0%} of layers."
        )
    if found.unseen is None:
        lines.append(
            "The plans are scored on the one window that they were computed from. On other windows "
            "they gain less."
        )
    else:
        unseen = found.unseen
        gain = with_interval(unseen.gain, unseen.gain_interval, "+.4f")
        last = "window" if unseen.windows == 1 else f"{unseen.windows:,} windows"
        before = "window" if unseen.seen == 1 else f"{unseen.seen:,} windows"
        line = (
            f"On the last {last}, this placement gives {unseen.this:.4f}, and a plan from it for "
            f"the {before} before gives {unseen.plan:.4f} ({gain})."
        )
        if not found.ordered:
            line = (
                f"On {unseen.windows:,} workloads held out in turn, this placement gives "
                f"{unseen.this:.4f}, and plans from it for the others give {unseen.plan:.4f} "
                f"({gain})."
            )
        lines.append(line)
    lines.append("Moves: experts that GPUs would receive to get from this placement to the other.")
    if found.standings[0].duplicates:
        lines.append(_duplicates(found.standings[0]))
    if any(standing.interval is not None for standing in found.standings):
        lines.append("± is half a 95 % confidence interval.")
    return lines


def _duplicates(this: Standing) -> str:
    slots = "1 slot holds" if this.duplicates == 1 else f"{this.duplicates:,} slots hold"
    return f"{slots} an expert that its GPU already holds, which gains nothing."
