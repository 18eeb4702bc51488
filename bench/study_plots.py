"""The figures of the study, as SVG that takes the colours of the page it stands in: the same data
give the same bytes.
"""

import io
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from study_loads import GPT_OSS, SIX, Loads, Steps

__all__ = ["STYLE", "Row", "draw", "svg_of", "titled"]


@dataclass(frozen=True)
class Row:
    """One point of a line.

    Attributes:
        load: whose loads.
        gpus: GPUs planned for.
        line: what is compared.
        x: windows planned for, windows of history, or spare slots on a GPU.
        balancedness: mean over plans, windows and layers.
        plans: how many.
        gain: 95 % interval of the difference from the mean of as many windows, or None.
    """

    load: str
    gpus: int
    line: str
    x: int
    balancedness: float
    plans: int
    gain: tuple[float, float] | None = None


_INK = "#24292f"
"""What the page's colour of text stands in for; light on dark where the system is."""
_SCHEME = (
    f"<style>svg{{color:{_INK}}}@media (prefers-color-scheme:dark){{svg{{color:#e6edf3}}}}</style>"
)
# Hues of Okabe and Ito's, which differ for the colour-blind too, of 3 to 1 on white and on black.
_BLUE, _ORANGE, _GREEN, _PINK = "#3b82c4", "#d9702b", "#1e9e77", "#c466a0"
STYLE: Any = {
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.alpha": 0.35,
    "svg.hashsalt": "eplb",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "xtick.bottom": False,
    "ytick.left": False,
    "grid.color": "#7a828c",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}
_DECIMALS = re.compile(r"(\d\.\d)\d+")
_NAMES = re.compile(
    r' id="(axes|figure|legend|line2d|patch|text|xtick|ytick|matplotlib\.axis)_\d+"'
)
_FONT = "text{font-family: 'DejaVu Sans', Verdana, sans-serif}"
_WIDE = 700 / 72
"""Inches: 700 px in a browser."""
_NUMBERS = {"windows": "windows planned for", "spare": "spare slots on each GPU"}


def titled(figure: str, rows: list[Row]) -> str:
    """The finding, in one sentence with its numbers."""

    def at(load: str, line: str, x: int, gpus: int) -> float:
        (found,) = (
            row.balancedness
            for row in rows
            if (row.load, row.line, row.x, row.gpus) == (load, line, x, gpus)
        )
        return found

    if figure == "windows":
        each, mean, last = (
            at(GPT_OSS, line, x, 8) for line, x in (("scenarios", 32), ("mean", 32), ("mean", 1))
        )
        return (
            f"Planned for each of the last 32 windows, gpt-oss's next one has balancedness "
            f"{each:.3f}; for their mean {mean:.3f}, for the last alone {last:.3f}"
        )
    if figure == "history":
        longest = max(row.x for row in rows if row.load == GPT_OSS)
        short, eight, one = (at(GPT_OSS, f"cut in {cut}", longest, 8) for cut in (longest, 8, 1))
        return (
            f"The same {longest * 2048:,} tokens of gpt-oss give balancedness {short:.3f} as "
            f"{longest} short windows, {eight:.3f} as 8 longer ones, {one:.3f} as a single sum"
        )
    by_slot = [at(SIX, "unseen", spare, 32) for spare in range(5)]
    gains = [f"{after - before:+.3f}" for before, after in pairwise(by_slot)]
    return (
        f"On a workload not seen, DeepSeek-V3 on 32 GPUs has balancedness {by_slot[0]:.3f} without "
        f"spare slots; each further one per GPU brings {', '.join(gains)}"
    )


def draw(figure: str, rows: list[Row], loads: Loads, path: Path) -> None:
    """Draw a figure of the study to an SVG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        made: Any = Figure(figsize=(_WIDE, 8.2 if figure == "history" else 6.4))
        title = textwrap.fill(titled(figure, rows), 84)
        made.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        made.supylabel("balancedness (mean / max GPU load)", x=0.008, fontsize=10.5)
        if figure == "history":
            _draw_history(made, rows, loads)
        else:
            _draw_panels(made, rows, figure)
        text = svg_of(made)
    path.write_text(text, encoding="utf-8")


def svg_of(made: Any) -> str:
    """A figure as SVG, in half as many bytes: tenths of a point are enough, and nobody asks for a
    part by its name.
    """
    drawn = io.StringIO()
    made.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = re.sub(r"<[^>]+>", lambda tag: _DECIMALS.sub(r"\1", tag[0]), drawn.getvalue())
    text = _NAMES.sub("", text).replace("; font-family: 'DejaVu Sans'", "")
    text = text.replace('<style type="text/css">', f'<style type="text/css">{_FONT} ')
    return _in_page("\n".join(line.strip() for line in text.splitlines()) + "\n")


def _in_page(text: str) -> str:
    """A drawing as part of a page, which needs neither a prologue nor a size."""
    text = re.sub(
        r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", "", text, flags=re.S
    )
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    )
    text = re.sub(r"(<svg[^>]*>)", rf"\1{_SCHEME}", text, count=1)
    return text.replace(f": {_INK}", ": currentColor").replace(
        "<text ", '<text fill="currentColor" '
    )


def _draw_panels(made: Any, rows: list[Row], figure: str) -> None:
    """A panel for each of the loads, and the legend in the last place."""
    axes = made.subplots(2, 3).ravel()
    names = list(dict.fromkeys(row.load for row in rows))
    for axis, name in zip(axes, names, strict=False):
        here = [row for row in rows if row.load == name]
        for style, line in _lines(here, figure).items():
            label, colour, dashes, marker = style
            x, y = [row.x for row in line], [row.balancedness for row in line]
            axis.plot(x, y, color=colour, linestyle=dashes, marker=marker, label=label)
        axis.set_title(name, loc="left")
        axis.set_xlabel(_NUMBERS[figure])
        ticks = sorted({row.x for row in here})
        if figure == "windows":
            axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[-1].set_axis_off()
    # Panels may differ in their GPUs, so the legend has the lines of all by what they mean.
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    axes[-1].legend(
        handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(-0.15, 0.5)
    )
    made.subplots_adjust(left=0.105, right=0.985, top=0.84, bottom=0.085, hspace=0.42, wspace=0.27)


def _lines(rows: list[Row], figure: str) -> dict[tuple[str, str, str, str], list[Row]]:
    """The rows of each line, by its label, colour, dashes and marker."""
    if figure == "windows":
        styles = {
            "scenarios": ("each window\na scenario", _BLUE, "-", "o"),
            "mean": ("the mean of\nthe windows", _ORANGE, "--", "s"),
        }
        return {style: [row for row in rows if row.line == line] for line, style in styles.items()}
    fewest = min(row.gpus for row in rows)
    spare = {
        (fewest, "seen"): ("planned for,\n32 GPUs (gpt-oss: 8)", _BLUE, "--", "s"),
        (fewest, "unseen"): ("not seen,\n32 GPUs (gpt-oss: 8)", _BLUE, "-", "o"),
        (2 * fewest, "seen"): ("planned for,\n64 GPUs (gpt-oss: 16)", _ORANGE, "--", "s"),
        (2 * fewest, "unseen"): ("not seen,\n64 GPUs (gpt-oss: 16)", _ORANGE, "-", "o"),
    }
    return {
        style: [row for row in rows if (row.gpus, row.line) == key] for key, style in spare.items()
    }


def _draw_history(made: Any, rows: list[Row], loads: Loads) -> None:
    """Above, histories cut into windows of several lengths; below, longer and longer ones."""
    axes = made.subplots(2, len(loads.steps), sharey="col")
    for column, steps in enumerate(loads.steps):
        here = [row for row in rows if row.load == steps.name]
        _draw_cuts(axes[0, column], here, steps)
        _draw_lengths(axes[1, column], here)
        name, kind = steps.name.split(", ")
        axes[0, column].set_title(f"{name},\n{kind}", loc="left")
    places = {"loc": "upper left", "ncols": 4, "columnspacing": 1.4, "handlelength": 1.8}
    for row, top in ((0, 0.925), (1, 0.43)):
        found: dict[str, Any] = {}
        for axis in axes[row]:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                found.setdefault(label, handle)
        made.legend(found.values(), found.keys(), bbox_to_anchor=(0.03, top), **places)
    made.subplots_adjust(left=0.1, right=0.975, top=0.825, bottom=0.065, hspace=0.62, wspace=0.6)


def _draw_cuts(axis: Any, rows: list[Row], steps: Steps) -> None:
    styles = {8: (_GREEN, "--", "s"), 32: (_BLUE, "-", "o"), 64: (_ORANGE, "-.", "^")}
    styles[128] = (_PINK, ":", "D")
    for length in (8, 32, steps.history):
        line = sorted(
            (
                length // int(row.line.removeprefix("cut in ")) * steps.tokens / 1000,
                row.balancedness,
            )
            for row in rows
            if row.x == length and row.line != "clusters"
        )
        colour, dashes, marker = styles[length]
        label = f"history of {length} windows"
        _plot(axis, line, color=colour, linestyle=dashes, marker=marker, label=label)
    axis.set_xlabel("tokens of a window\n(thousands)")
    ticks = [steps.tokens / 1000 * times for times in (1, 8, steps.history)]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axis.minorticks_off()


def _draw_lengths(axis: Any, rows: list[Row]) -> None:
    lengths = sorted({row.x for row in rows})
    found = {(row.x, row.line): row.balancedness for row in rows}
    lines = {
        "each window a scenario": ([f"cut in {x}" for x in lengths], _BLUE, "-", "o"),
        "cut in 8": ([f"cut in {min(8, x)}" for x in lengths], _GREEN, "--", "s"),
        "8 clusters": (["clusters"] * len(lengths), _PINK, "-.", "^"),
        "the mean": (["cut in 1"] * len(lengths), _ORANGE, ":", "D"),
    }
    for label, (names, colour, dashes, marker) in lines.items():
        line = [(x, found[x, name]) for x, name in zip(lengths, names, strict=True)]
        _plot(axis, line, color=colour, linestyle=dashes, marker=marker, label=label)
    axis.set_xlabel("history (windows)")
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths[::2], [str(x) for x in lengths[::2]])
    axis.minorticks_off()


def _plot(axis: Any, points: Iterable[tuple[float, float]], **style: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = zip(*points, strict=True)
    axis.plot(x, y, **style)
    axis.yaxis.set_major_locator(MaxNLocator(5))
