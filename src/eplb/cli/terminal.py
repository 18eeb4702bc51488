"""What commands print in a terminal: every table, and the sentences around it."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
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
from eplb.describe import OF_EXPERTS, OF_GPUS, PLAIN_SIGNS, SIGNS, Inspection, Shades, heat_map
from eplb.dispatching.rules import in_words
from eplb.loads import LoadTrace
from eplb.moving.decide import Decision
from eplb.moving.frontier import Frontier
from eplb.moving.migrate import Migration
from eplb.moving.verdict import Verdict
from eplb.planning.summary import LayerSummary, Summary
from eplb.replaying.compare import Comparison, Score
from eplb.replaying.demo import GPU, MODEL, TOKENS, Demo
from eplb.replaying.evaluate import Evaluation
from eplb.replaying.sizing import KNEE, Sizing
from eplb.replaying.sweep import SweepRow

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
_NO_LOAD = "No layer has any load."
_HALF = "± is half a 95 % confidence interval."
_WEIGHTED = "Weighted: each layer counts by its load."

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
    print(json.dumps({"version": _VERSION, **figures}, default=os.fspath))  # noqa: T201


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
    print_json({**figures, "output": target})


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
    """Print a plan's figures for a person, and why a GPU holds an expert twice although it has room
    for others.
    """
    dense = len(summary.dense_layers)
    setting = _setting(
        summary.layers, dense, summary.experts, summary, ", spread evenly", summary.dead
    )
    _show(console, _title(title), setting, summary.planned_for, *summary.of_nodes())
    if dense == summary.layers:
        _show(console, "No layer has any load, so the experts are spread evenly.")
    else:
        asked = summary.dispatch == summary.planned_dispatch != "even"
        said = " The plan is made for this." if asked else ""
        rule = f"{in_words(summary.dispatch)}{said}"
        _show(console, rule, "", _summary_table(summary), "", _of_plan(summary))
    _show(
        console,
        *summary.of_tokens(),
        _second_copies(summary, why_duplicates) if summary.duplicates else None,
        f"Planned in {_duration(summary.seconds)}.",
    )


def _of_plan(summary: Summary) -> str:
    """What a plan takes off the busiest GPU, and how good it is by what it is made for."""
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
    return f"{line} {summary.of_objective(split)}"


def _less(share: float) -> str:
    """A share that a load falls by, or rises by where it is below 0: "23% less load than"."""
    if round(share, 2) == 0.0:
        return "as much load as"
    return f"{abs(share):.0%} {'more' if share < 0.0 else 'less'} load than"


def _summary_table(summary: Summary) -> Table:
    before = "contiguous" if summary.running is None else "now"
    proven = summary.dispatch == summary.planned_dispatch

    def row(name: str, found: Summary | LayerSummary, gap: float) -> list[str]:
        runs = found.contiguous if found.running is None else found.running
        values = [f"{runs:.4f}", f"{found.engine:.4f}", f"{found.plan:.4f}"]
        return [name, *values, *[f"{gap:.3%}"] * proven]

    mean = f"mean of {counted(summary.layers - len(summary.dense_layers), 'layer')}"
    worst = summary.worst_layers
    table = _table(
        ("balancedness (mean / max GPU load)", before, "engine's own", "plan")
        + ("proven gap",) * proven,
        [row(mean, summary, summary.gap_mean)]
        + [row(f"layer {layer.layer}", layer, layer.gap) for layer in worst],
        styles=(None, *["dim"] * len(worst)),
    )
    table.columns[3].style = "bold"
    return table


def _second_copies(summary: Summary, why: str | None) -> str:
    """How many slots hold an expert that their GPU holds already, and why."""
    line = f"{_holding_twice(summary.duplicates)}."
    within_nodes = summary.policy == "hierarchical"
    fit = summary.experts // summary.nodes if within_nodes else summary.experts
    left_over = summary.layers * max(0, summary.slots - fit * summary.gpus)
    if summary.duplicates <= left_over:
        place = "its node may hold" if within_nodes else "there are"
        return f"{line} A GPU has more slots than {place} experts."
    return line if why is None else f"{line} {why}"


def _holding_twice(duplicates: int) -> str:
    slots = "1 slot holds" if duplicates == 1 else f"{duplicates:,} slots hold"
    return f"{slots} an expert that its GPU already holds"


def print_inspection(
    console: Console, title: str, found: Inspection, heat: Heat, numbers: Sequence[int]
) -> None:
    """Print the figures of a trace for a person, and its `heat` [L, E] as a map, whose layers have
    these `numbers` [L].
    """
    names = printable(found.first_window)
    if found.windows > 1:
        names += f" to {printable(found.last_window)}"
    if found.seconds is not None:
        names += f", {found.seconds:,.1f} seconds"
    layers = counted(found.layers - len(found.dense_layers), "MoE layer")
    layers += f" of {counted(found.experts, 'expert')}"
    if found.dense_layers:
        layers += f", and {len(found.dense_layers)} with no load ({ranges(found.dense_layers)})"
    known = [f"model {printable(found.model)}"] if found.model else []
    if found.top_k is not None:
        known.append(f"top {found.top_k}")
    if found.source_ranks is not None:
        known.append(f"tokens counted by {counted(found.source_ranks, 'source rank')}")
    _show(console, _title(title), f"{_counted(found)} ({names})", layers, ", ".join(known) or None)
    if found.hottest is None:
        _show(console, _NO_LOAD)
        return
    _show(console, "", _skew_table(found))
    if found.drift:
        _show(console, "", _drift_table(found))
    if found.alike is not None:
        alike = found.alike
        _show(
            console,
            "",
            f"Experts' shares in two of the workloads correlate by {alike.mean:.3f} on average "
            f"({alike.least:.3f} to {alike.most:.3f}).",
        )
    loaded = [row for row in range(len(heat)) if heat[row].any()]
    hot = (
        f"{each.expert} of layer {each.layer} ({each.times_mean:.1f})"
        for each in found.hottest_experts
    )
    _show(
        console,
        "",
        "Spread is a standard deviation of natural logs: 0 where shares are equal, 0.7 where they "
        "typically differ by a factor of 2.",
        "",
        *_heat(console, heat[loaded], [numbers[row] for row in loaded], "expert", OF_EXPERTS),
        "",
        f"Hottest experts (times the mean of their layer): {', '.join(hot)}.",
    )


def _skew_table(found: Inspection) -> Table:
    figures = (
        ("load of a layer in a window", found.load_per_layer, "{:,.0f}"),
        ("hottest expert / mean expert", found.hottest, "{:.2f}"),
        ("share of the load on the hottest fifth", found.top_fifth, "{:.1%}"),
        ("spread of log shares", found.spread, "{:.2f}"),
        ("experts below 1 % of the mean", found.idle, "{:.4g}"),
    )
    return _table(
        ("over layers and windows", "mean", "least", "most"),
        [
            (name, *(form.format(value) for value in (values.mean, values.least, values.most)))
            for name, values, form in figures
            if values is not None
        ],
    )


def _drift_table(found: Inspection) -> Table:
    drifts = [(f"{each.lag:,}", each) for each in found.drift]
    last = found.first_last
    if last is not None and last.lag != found.drift[-1].lag:
        drifts.append((f"{last.lag:,} (first and last)", last))
    return _table(
        ("windows apart", "correlation of shares", "spread of log ratios"),
        [
            (name, _figure(each.correlation, ".3f"), _figure(each.spread, ".3f"))
            for name, each in drifts
        ],
    )


def _heat(
    console: Console, heat: Heat, layers: Sequence[int], what: str, shades: Shades
) -> list[str | Text]:
    """The legend and the lines of a map."""
    signs = _signs(console)
    legend, lines = heat_map({"": heat}, layers, what, shades, console.width, signs)
    return [legend, *(Text(line, no_wrap=True) for line in lines)]


def print_watched_loads(
    console: Console, title: str, gpu_load: Heat, experts: int, age: float | None
) -> None:
    """Print how GPUs are loaded, of loads [T, L, G] in the last windows, and of how many seconds
    ago the last is, where that is known.
    """
    windows, _, gpus = gpu_load.shape
    total = gpu_load.sum(axis=0)
    layers = np.flatnonzero(total.any(axis=1)).tolist()
    total = total[layers]
    shown = "the last window" if windows == 1 else f"the last {windows} windows"
    ago = "" if age is None else f", {_duration(age)} ago"
    _show(
        console,
        _title(title),
        f"{shown}{ago}: {counted(len(total), 'MoE layer')} of {experts} experts on {gpus} GPUs",
    )
    if not total.size:
        _show(console, _NO_LOAD)
        return
    times_mean = total / total.mean(axis=1, keepdims=True)
    balancedness = 1.0 / times_mean.max(axis=1)
    worst = int(balancedness.argmin())
    _show(
        console,
        f"balancedness {balancedness.mean():.3f} mean, {balancedness.min():.3f} in the worst layer;"
        f" there GPU {int(times_mean[worst].argmax())} has {times_mean[worst].max():.2f} times the "
        "mean",
        "",
        *_heat(console, times_mean, layers, "GPU", OF_GPUS),
    )


def print_watched_metrics(
    console: Console, title: str, by_role: Mapping[str, Mapping[str, float]], age: float | None
) -> None:
    """Print what metrics say, a column for each role, without decisions that were never made; and
    how many seconds ago this planner last answered, where that is known.
    """
    rows = []
    for name in sorted({name for series in by_role.values() for name in series}):
        values = [series.get(name) for series in by_role.values()]
        if any(values) or not name.startswith("eplb_rebalances_total"):
            cells = ("" if value is None else f"{value:,.6g}" for value in values)
            rows.append((printable(name.removeprefix("eplb_")), *cells))
    table = _table(("", *(printable(role) or "now" for role in by_role)), rows)
    ago = None if age is None else f"This planner last answered {_duration(age)} ago."
    _show(console, _title(title), table, ago)


def print_comparison(console: Console, title: str, comparison: Comparison) -> None:
    """Print what each policy gave."""
    scores = comparison.scores
    first = printable(scores[0].policy)
    cadence = "every window" if comparison.every == 1 else f"every {comparison.every} windows"
    shown = (
        "the last window" if comparison.history == 1 else f"the last {comparison.history} windows"
    )
    setting = _setting(comparison.layers, comparison.dense_layers, comparison.experts, comparison)
    served = (
        f"{comparison.windows:,} windows served, a plan before {cadence} from {shown} before it"
    )
    if not comparison.ordered:
        served = f"{counted(comparison.windows, 'workload')} {_IN_TURN}"
    net = any(score.net is not None for score in scores)
    headings = ("policy", "balancedness", "weighted", "worst window", f"over {first}", *_COSTS)
    rows = [
        (
            printable(score.policy),
            with_interval(score.balancedness, score.balancedness_interval),
            f"{score.pooled:.4f}",
            f"{score.worst_window:.4f}",
            with_interval(score.gain, score.gain_interval, "+.4f") if number else "",
            *_costs(score),
            *[f"{score.net:+.2%}" if number and score.net is not None else ""] * net,
        )
        for number, score in enumerate(scores)
    ]
    _show(
        console,
        _title(title),
        f"{setting}; {served}",
        in_words(comparison.dispatch),
        "",
        *_wide(console, (*headings, *["net"] * net), rows),
        _WEIGHTED,
        *_of_rules(console, comparison),
        *_what_is_sure(scores),
    )
    if net:
        _show(
            console,
            f"Net: share of the service's time saved compared with {first}, after the time lost by "
            "moving.",
        )
    if comparison.windows < comparison.wanted:
        stopped = f"Stopped after {comparison.windows:,} of {comparison.wanted:,} windows."
        _show(console, "", _title(stopped))


def _of_rules(console: Console, comparison: Comparison) -> list[str | Table]:
    """Balancedness under every rule and of placements made for each, where several were asked
    for.
    """
    under, placed = comparison.balancedness_under, comparison.placed_for
    if not placed:
        return []
    rows = [
        (
            printable(score.policy),
            *(f"{values[number]:.4f}" for values in under.values()),
            *(_figure(values[number], ".4f") for values in placed.values()),
        )
        for number, score in enumerate(comparison.scores)
    ]
    made = (f"{rule}, placed for it" for rule in placed)
    headings = (f"placed for {comparison.dispatch}, split", *under, *made)
    return ["", *_wide(console, headings, rows)]


def print_demo(console: Console, found: Demo, seed: int) -> None:
    """Print the three ways of the demo, and what the better ones gain by an estimate."""
    nodes = f" on {found.nodes} nodes" if found.nodes > 1 else ""
    first, *ours = found.ways
    gains = [way.tokens_per_second / first.tokens_per_second - 1.0 for way in ours]
    rows = [
        (way.name, f"{way.balancedness:.3f}", f"{way.moved:.1%}", gain)
        for way, gain in zip(found.ways, ["", *(f"{gain:+.1%}" for gain in gains)], strict=True)
    ]
    table = _table(
        (
            "",
            "balancedness on\nloads not seen",
            "experts moved\nat a re-plan",
            "tokens/s,\nan estimate",
        ),
        rows,
        gap=2,
        styles=(None, *["bold"] * len(ours)),
    )
    _show(
        console,
        _title("Synthetic loads that behave like DeepSeek-V3's under mixed traffic"),
        f"{counted(found.layers, 'MoE layer')} of {found.experts} experts in {found.slots} slots "
        f"on {found.gpus} GPUs{nodes}. Kinds of requests "
        f"follow each other; a window has {TOKENS:,} tokens, about vLLM's default window: 1,000 "
        f"steps x {TOKENS / 1000 / found.gpus:,.0f} tokens x {found.gpus} GPUs. Before each of "
        f"{found.windows} windows (seed {seed}) the planner re-plans from earlier windows; the "
        "placement is scored on the new one.",
        "",
        table,
        "",
        "Balancedness is the mean load of GPUs / the greatest: a layer waits for its busiest GPU, "
        "and 1 is perfect. vLLM and SGLang run DeepSeek's algorithm from scratch on their last "
        "window. A slot holds one copy of an expert; moved is the share of slots for which GPUs "
        "receive one. Tokens split best: each window's tokens go to the copies of their expert so "
        "that GPUs are as evenly loaded as the placement allows, as eplb.torch.BatchDispatch does "
        "batch by batch.",
        "",
        f"By an estimate for {MODEL} on {GPU} GPUs, eplb serves {more(gains[0], 1)} tokens per "
        f"second with an even split and {more(gains[1], 1)} with the best. Each re-plan sends "
        f"{_bytes(ours[-1].bytes_moved)} of weights to GPUs in place of "
        f"{_bytes(first.bytes_moved)}. The estimate does not count the time of these transfers.",
        "",
    )
    say("Next, with loads that your engine recorded (eplb report --help says more):")
    nodes = f" --nodes {found.nodes}" if found.nodes > 1 else ""
    say(f"  eplb report loads.json --gpus {found.gpus}{nodes} --slots {found.slots} --text")


def print_sweep(console: Console, title: str, rows: Sequence[SweepRow], wanted: int) -> None:
    """Print a line for each replay of a sweep."""
    headings = ("GPUs", "slots", "spare", "every", "policy", "balancedness", "worst window")
    cells = [
        (
            *map(str, (row.gpus, row.slots, row.spare, row.every)),
            printable(row.score.policy),
            with_interval(row.score.balancedness, row.score.balancedness_interval),
            f"{row.score.worst_window:.4f}",
            *_costs(row.score),
        )
        for row in rows
    ]
    _show(
        console,
        _title(title),
        in_words(rows[0].dispatch) if rows else None,
        f"Workloads {_IN_TURN}." if rows and not rows[0].ordered else None,
        "",
        *_wide(console, (*headings, *_COSTS), cells, about=5, left=(0, 4)),
        *_what_is_sure([row.score for row in rows]),
    )
    if len(rows) < wanted:
        _show(console, "", _title(f"Stopped after {len(rows)} of {wanted} replays."))


def print_sizing(console: Console, title: str, found: Sizing) -> None:
    """Print what each number of spare slots gives and takes, and how many to buy."""
    on_nodes = f" on {found.nodes} nodes" if found.nodes > 1 else ""
    unseen = found.windows > 0
    memory = ["of a GPU's memory", *["or KV tokens"] * (found.kv_bytes is not None)]
    table = _table(
        (
            *("spare on a GPU", "slots", "seen", *["unseen"] * unseen, "gain"),
            *(memory if found.bytes_each is not None else ()),
        ),
        [
            (
                f"{each.spare} (knee)" if number == found.knee else f"{each.spare}",
                *(f"{each.num_slots:,}", f"{each.seen:.4f}"),
                *[with_interval(each.height, each.interval)] * unseen,
                "" if each.gain is None else with_interval(each.gain, each.gain_interval, "+.4f"),
                *(_bytes(size) for size in [each.bytes] if size is not None),
                *(f"{tokens:,}" for tokens in [each.kv_tokens] if tokens is not None),
            )
            for number, each in enumerate(found.points)
        ],
    )
    _show(
        console,
        _title(title),
        f"{counted(found.layers, 'MoE layer')} of {found.experts} experts on {found.gpus} GPUs"
        f"{on_nodes}",
        in_words(found.dispatch),
        "",
        table,
        "",
        *_of_sizing(found),
    )


def _of_sizing(found: Sizing) -> Iterator[str]:
    """What to buy, what the next slot would gain, and what the figures are."""
    knee = found.points[found.knee]
    if knee.spare:
        slots = f"{counted(knee.spare, 'spare slot')} on each GPU"
        yield f"The knee is at {slots}: balancedness {knee.height:.4f}."
    else:
        yield f"No spare slot gains {KNEE:g} of balancedness: {knee.height:.4f} without."
    if found.knee + 1 < len(found.points):
        after = found.points[found.knee + 1]
        line = f"{after.spare - knee.spare} more would add {after.height - knee.height:.4f}"
        if after.bytes is not None and knee.bytes is not None:
            line += f" and take {_bytes(after.bytes - knee.bytes)} of each GPU's memory"
        if after.kv_tokens is not None and knee.kv_tokens is not None:
            line += f", or {after.kv_tokens - knee.kv_tokens:,} tokens of KV cache"
        yield f"{line}."
    if found.windows:
        came = "that came after" if found.ordered else "held out in turn: workloads in no order"
        yield (
            f"Unseen: {counted(found.plans, 'plan')} for each number of slots, scored on "
            f"{counted(found.windows, 'window')} {came}."
        )
    else:
        yield (
            "There is one window, so plans are scored on what they were made from. On other "
            "windows all have less, and those with few slots lose most: give more windows."
        )
    if found.bytes_each is None:
        yield "Give --model or --expert-bytes for the memory that slots take."
    elif found.kv_bytes is None:
        yield "Give --kv-bytes for the KV cache that the same memory would hold."


def print_evaluation(
    console: Console, title: str, found: Evaluation, command: str | None = None
) -> None:
    """Print how good the placement is that runs, and what plans would gain."""
    dense = len(found.dense_layers)
    setting = _setting(found.layers, dense, found.experts, found, dead=found.dead)
    _show(console, _title(title), f"{setting}; {_counted(found)}", in_words(found.dispatch), "")
    if dense == found.layers:
        _show(console, "No layer has any load, so there is nothing to balance.")
        return
    standings = _table(
        ("", "balancedness", "weighted", "worst window", "duplicates", "moves"),
        [
            (
                _STANDINGS.get(each.placement, each.placement),
                with_interval(each.balancedness, each.interval),
                with_interval(each.pooled, each.pooled_interval),
                f"{each.worst_window:.4f}",
                str(each.duplicates),
                "" if each.placement == "this" else f"{each.moves:,} ({each.moved:.1%})",
            )
            for each in found.standings
        ],
        gap=2,
        styles=["bold" if each.placement == "this" else None for each in found.standings],
    )
    worst = _table(
        ("its worst layers", "this", "from it", "from scratch", "engine's own", "contiguous"),
        [
            (f"layer {layer}", *(f"{value:.4f}" for value in values))
            for layer, *values in map(astuple, found.worst_layers)
        ],
        gap=2,
        styles=["dim"] * len(found.worst_layers),
    )
    _show(
        console,
        standings,
        f"{_WEIGHTED} Duplicates: slots with a second copy of an expert on one GPU.",
        "",
        worst,
        "",
        *_of_evaluation(found),
    )
    if found.verdict is not None:
        print_verdict(console, found.verdict, command)


def _of_evaluation(found: Evaluation) -> Iterator[str]:
    """Sentences below the tables of an evaluation."""
    if found.hottest is not None:
        hot = found.hottest
        yield (
            f"GPU {hot.gpu} has the most load, {hot.load:.3f} times the average. It is the busiest "
            f"GPU in {hot.busiest:.0%} of layers."
        )
    unseen = found.unseen
    if unseen is None:
        yield (
            "The plans are scored on the one window that they were computed from. On other windows "
            "they gain less."
        )
    else:
        gain = with_interval(unseen.gain, unseen.gain_interval, "+.4f")
        last = "window" if unseen.windows == 1 else f"{unseen.windows:,} windows"
        before = "window" if unseen.seen == 1 else f"{unseen.seen:,} windows"
        where, planned = f"On the last {last}", f"a plan from it for the {before} before gives"
        if not found.ordered:
            where = f"On {unseen.windows:,} workloads held out in turn"
            planned = "plans from it for the others give"
        yield (
            f"{where}, this placement gives {unseen.this:.4f}, and {planned} {unseen.plan:.4f} "
            f"({gain})."
        )
    yield "Moves: experts that GPUs would receive to get from this placement to the other."
    if found.standings[0].duplicates:
        yield f"{_holding_twice(found.standings[0].duplicates)}, which gains nothing."
    if any(standing.interval is not None for standing in found.standings):
        yield _HALF


def print_verdict(console: Console, verdict: Verdict, command: str | None = None) -> None:
    """Print what to do, and the command that does it if anything is to be done."""
    _show(console, verdict.words)
    if command is not None and verdict.advised:
        say(f"To do so: {command}")


def print_frontier(
    console: Console, title: str, loads: LoadTrace, found: Frontier, num_slots: int
) -> None:
    """Print balancedness against moves, as shares of so many slots of layers with load."""
    cluster = found.placements[0].cluster
    nodes = f" on {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    mark = _signs(console)[-1]
    first, last = found.balancedness[0], found.balancedness[-1]
    gains = np.ones(len(found.moves))
    if last > first:
        gains = (found.balancedness - first) / (last - first)
    others = [] if found.other_nodes is None else [f"{each:.3f}" for each in found.other_nodes]
    table = _table(
        ("moves", "of slots", "balancedness", "of the gain", *["other nodes"] * bool(others), ""),
        [
            (
                f"{moves:,}",
                f"{moves / num_slots:.2%}",
                f"{balancedness:.4f}",
                f"{gain:.0%}",
                *others[point : point + 1],
                mark * round(_BAR * max(0.0, gain)),
            )
            for point, (moves, balancedness, gain) in enumerate(
                zip(found.moves, found.balancedness, gains, strict=True)
            )
        ],
        left=(5 if others else 4,),
    )
    _show(
        console,
        _title(title),
        f"{counted(int((~loads.dense).sum()), 'MoE layer')} of {loads.num_experts} experts in "
        f"{cluster.num_slots} slots on {cluster.num_gpus} GPUs{nodes}; moves are the experts that "
        "GPUs receive",
        in_words(found.dispatch),
        "",
        table,
        "",
        f"{finding(found, num_slots)}.",
    )


def print_decision(
    console: Console, title: str, found: Decision, command: str | None = None
) -> None:
    """Print what to do, what was weighed, and the command that does it."""
    # What to do follows from costs too, so only why is told of the verdict.
    why = f"{found.action.capitalize()}: {found.reason}."
    _show(console, _title(title), in_words(found.dispatch), "", why, found.verdict.evidence)
    if command is not None:
        say(f"To do so: {command}")
    rises = found.gain < 0.0
    seen = "windows held out" if found.verdict.windows else "the windows planned for"
    rows = [
        ("layers", f"{len(found.layers)}") if found.layers else None,
        ("experts to move", f"{found.moves:,}"),
        ("bytes", f"{found.total_bytes / 1e9:,.3g} GB"),
        ("time of the transfers", f"{found.moving_seconds:.3g} s"),
    ]
    if found.moves:
        rows += [
            (f"{'rise' if rises else 'fall'} of the peaks on {seen}", f"{abs(found.gain):.2%}"),
            (
                f"time {'lost' if rises else 'gained'} until the next decision",
                f"{abs(found.gained_seconds):.3g} s",
            ),
        ]
    rows.append(("time lost by moving", f"{found.lost_seconds:.3g} s"))
    if found.break_even:
        even = "break-even: gained as much as lost after"
        rows.append((even, f"{found.break_even:.3g} s"))
    weighed = "weighed" if found.action == "wait" else "to do"
    _show(console, "", _table((weighed, ""), filter(None, rows)))


def print_migration(console: Console, title: str, found: Migration) -> None:
    """Print how many transfers, waves and bytes a migration takes."""
    _show(console, _title(title))
    if not found.num_transfers and not found.copies.wave.size:
        _show(console, "Nothing moves: every GPU already holds its experts.")
        return
    rows = [("experts to send", f"{found.num_transfers:,}")]
    if found.num_lost:
        rows.append(("of them from the checkpoint", f"{found.num_lost:,}"))
    rows.append(("between nodes", f"{found.num_between_nodes:,}"))
    if found.total_bytes is not None and found.bytes_between_nodes is not None:
        rows.append(("bytes", f"{found.total_bytes / 1e9:,.3f} GB"))
        rows.append(("bytes between nodes", f"{found.bytes_between_nodes / 1e9:,.3f} GB"))
    rows += [
        ("waves", f"{found.num_waves:,}"),
        ("minimum number of waves", f"{found.fewest_waves:,}"),
        ("buffers that a GPU needs", f"{found.spare_slots.max()}"),
        ("copies inside GPUs", f"{found.copies.wave.size:,}"),
    ]
    ask = None
    if found.seconds is None:
        ask = "Give --model and --gpu, or bytes and bandwidths, for the time that it takes."
    else:
        rows.append(("time at these bandwidths", f"{found.seconds:.3g} s"))
    table = _table(("", ""), rows)
    table.show_header = False
    _show(console, "", table, ask and "", ask)


def print_facts(console: Console, facts: Mapping[str, Any]) -> None:
    """What is true of a host, a line each."""
    rows = []
    for name, value in facts.items():
        for inner, each in value.items() if isinstance(value, dict) else [("", value)]:
            words = ", ".join(each) if isinstance(each, list) else str(each)
            if name != "host" and words:
                rows.append((f"{name} {inner}".rstrip(), Text(printable(words))))
    _show(console, _table(("host", str(facts["host"])), rows, left=(0, 1)))


def _show(console: Console, *parts: str | Text | Table | None) -> None:
    """Print lines and tables, one below the other, and nothing for None."""
    for part in parts:
        if part is not None:
            console.print(Text(part) if isinstance(part, str) else part)


def _title(text: str) -> Text:
    return Text(printable(text), style="bold")


def _signs(console: Console) -> str:
    """Signs from little to much that a console can show."""
    try:
        SIGNS.encode(console.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return PLAIN_SIGNS
    return SIGNS


def _table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    left: Sequence[int] = (0,),
    gap: int = 3,
    widths: Sequence[int] | None = None,
    styles: Sequence[str | None] = (),
) -> Table:
    """A table; the columns numbered `left` stand left, the others right."""
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(
            heading,
            justify="left" if number in left else "right",
            width=None if widths is None else widths[number],
        )
    for number, row in enumerate(rows):
        table.add_row(*row, style=styles[number] if styles else None)
    return table


def _wide(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    about: int = 1,
    left: Sequence[int] = (0,),
) -> list[str | Table]:
    """A table whose first columns say what a row is about, in parts where it does not fit: each
    has those columns, and as many others as fit whole.
    """
    gap = 3 if console.width > 100 else 1
    columns = list(zip(headings, *rows, strict=True))
    widths = [max(map(len, column)) + gap for column in columns]
    if sum(widths) - gap > console.width:  # headings in lines
        widths = [max(map(len, [*head.split(), *cells])) + gap for head, *cells in columns]
    parts: list[str | Table] = []
    others = list(range(about, len(columns)))
    while others:
        shown = [*range(about), others[0]]
        for each in others[1:]:
            if sum(widths[at] for at in shown) + widths[each] - gap > console.width:
                break
            shown.append(each)
        others = others[len(shown) - about :]
        part = _table(
            [headings[at] for at in shown],
            [[row[at] for at in shown] for row in rows],
            left=[number for number, at in enumerate(shown) if at in left],
            gap=gap,
            widths=[widths[at] - gap for at in shown],
        )
        parts += ["", part] if parts else [part]
    return parts


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


def _counted(found: Evaluation | Inspection) -> str:
    """How many windows there are, or workloads in no order."""
    if found.ordered:
        return counted(found.windows, "window")
    return f"{counted(found.windows, 'workload')}, in no order"


def _what_is_sure(scores: Sequence[Score]) -> list[str]:
    if all(score.balancedness_interval is None for score in scores):
        return []
    return ["", f"{_HALF} Moved: slots that GPUs receive at a plan."]


def _costs(score: Score) -> tuple[str, str, str]:
    """What plans moved, in slots and bytes, and how long they took."""
    size = "-" if score.bytes_per_plan is None else _bytes(score.bytes_per_plan)
    return _figure(score.moved, ".1%"), size, _duration(score.plan_ms / 1e3)


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000.0:
            return f"{number:.3g} {unit}"
        number /= 1000.0
    return f"{number:.3g} TB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.1f} s"
