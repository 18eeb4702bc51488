"""What each chart of a report shows: a drawing, and a sentence for those who cannot see it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from eplb.checks import counted
from eplb.report.figures import Estimated, Figures, Heat, MoveCurve, Spare, Through, Windows
from eplb.report.words import NAMES, percent

INK, SOFT, LINE, PAPER = "#010203", "#010204", "#010205", "#010206"
NOW, PLAN, OTHER, BEST = "#010211", "#010212", "#010213", "#010214"

HOTTEST = ("#010221", "#010222", "#010223")

_TALL, _SHORT = 320.0, 260.0
_LEAST_SPAN = 0.05
_BALANCEDNESS = "balancedness (1 is perfect)"


@dataclass(frozen=True)
class Drawing:
    """A chart.

    Attributes:
        draw: its part of the figures on a matplotlib figure, `wide` or not; returns its height in
            pixels.
        says: the same in words; None where there is nothing to draw.
        of: the part; a `Missing` is not drawn.
    """

    draw: Callable[..., float]
    says: Callable[[Any], str | None]
    of: Callable[[Figures], Any] = lambda figures: figures


def _balance(figure: Any, figures: Figures, *, wide: bool) -> float:
    axes = figure.subplots()
    colours = {"contiguous": NOW, "current": NOW, "engine": OTHER, "plan": PLAN, "oracle": BEST}
    standings = figures.standings[::-1]
    labels = [NAMES[each.who] if wide else _broken(NAMES[each.who]) for each in standings]
    for row, each in enumerate(standings):
        colour = colours[each.who]
        if each.unseen is not None:
            if each.seen is not None:
                axes.plot([each.seen, each.unseen], [row, row], color=LINE, lw=4, zorder=1)
            if each.unseen_interval is not None:
                span = [each.unseen_interval.low, each.unseen_interval.high]
                axes.plot(span, [row, row], color=colour, lw=2, marker="|", ms=10)
            axes.plot([each.unseen], [row], "o", color=colour, ms=10)
        if each.seen is not None:
            axes.plot([each.seen], [row], "D", mec=colour, mfc=PAPER, mew=2, ms=8)
        value = each.seen if each.unseen is None else each.unseen
        if value is not None:
            axes.annotate(
                f"{value:.4f}",
                (value, row),
                xytext=(0, 11),
                textcoords="offset points",
                ha="center",
                fontweight="bold",
            )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, len(labels) - 0.25)
    axes.grid(visible=False, axis="y")
    axes.axvline(1.0, color=SOFT, lw=1, ls=":")
    low = min(
        value for each in standings for value in (each.seen, each.unseen) if value is not None
    )
    axes.set_xlim(max(0.0, low - 0.1), 1.04)
    axes.set_xlabel(_BALANCEDNESS)
    handles = [axes.plot([], [], "D", mec=INK, mfc=PAPER, mew=2, ms=8)[0]]
    names = ["seen"]
    if figures.plan.unseen is not None:
        handles.insert(0, axes.plot([], [], "o", color=INK, ms=10)[0])
        names.insert(0, "unseen")
    axes.legend(handles, names, loc="lower left", ncols=2, bbox_to_anchor=(0.0, 1.0))
    return 60.0 + 58.0 * len(labels)


def _broken(name: str) -> str:
    """A name in two lines."""
    for mark in (", ", ": "):
        if mark in name:
            return name.replace(mark, mark.rstrip() + "\n", 1)
    words = name.split(" ")
    half = (len(words) + 1) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])


def _heat(figure: Any, found: Heat, *, wide: bool) -> float:
    panels = figure.subplots(*((1, 2) if wide else (2, 1)), squeeze=False).ravel()
    most = max(max(map(max, rows)) for rows in (found.before, found.after))
    image: Any = None
    numbers = range(len(found.layers))
    step = max(1, len(found.layers) // 8)
    for axes, rows, name in zip(
        panels, (found.before, found.after), ("now", "with a plan"), strict=True
    ):
        image = axes.imshow(
            rows, vmin=0.0, vmax=most, aspect="auto", interpolation="none", origin="upper"
        )
        axes.grid(visible=False)
        axes.set_title(name, loc="left", fontsize=12, color=INK)
        axes.set(xlabel="GPU", ylabel="layer")
        axes.set_yticks(numbers[::step], [str(found.layers[each]) for each in numbers[::step]])
    bar = figure.colorbar(
        image, ax=panels, location="bottom", fraction=0.06, aspect=40 if wide else 25, pad=0.03
    )
    bar.set_label("load of a GPU / mean of its layer")
    bar.outline.set_visible(False)
    return 420.0 if wide else 620.0


def _hot(figure: Any, figures: Figures, *, wide: bool) -> float:
    axes = figure.subplots()
    layers = [each.layer for each in figures.hot]
    bottom = [0.0] * len(layers)
    names = ("hottest expert", "second", "third")
    for rank, (colour, name) in enumerate(zip(HOTTEST, names, strict=True)):
        if rank >= len(figures.hot[0].shares):
            break
        shares = [100.0 * each.shares[rank] for each in figures.hot]
        axes.bar(layers, shares, 0.8, bottom=bottom, color=colour, label=name, lw=0.5, ec=PAPER)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    even = 100.0 * len(figures.hot[0].shares) / figures.setting.num_experts
    axes.axhline(even, color=INK, lw=1.5, ls="--", label="all, if loads were even")
    axes.set_xlim(layers[0] - 0.8, layers[-1] + 0.8)
    axes.set(xlabel="layer", ylabel="% of the layer's load")
    axes.grid(visible=False, axis="x")
    _whole_numbers(axes.xaxis)
    _legend(axes, wide=wide)
    return _TALL if wide else _TALL + 40.0


def _time(figure: Any, found: Estimated, *, wide: bool) -> float:
    axes = figure.subplots()
    marks = {"marker": "o", "ms": 4} if wide else {"marker": "o", "ms": 2.5}
    axes.plot(found.layers, found.before_us, color=NOW, label="now", **marks)
    axes.plot(found.layers, found.after_us, color=PLAN, label="with a plan", ls="--", **marks)
    axes.axhline(found.even_us, color=BEST, lw=1.5, ls=":", label="even loads")
    axes.set_ylim(0.0)
    axes.set(xlabel="layer", ylabel="estimated µs")
    _whole_numbers(axes.xaxis)
    _legend(axes, wide=wide)
    return _TALL


def _spare(figure: Any, found: Spare, *, wide: bool) -> float:
    numbers = [each.spare for each in found.points]
    axes = figure.subplots()
    _seen_and_unseen(axes, numbers, found.points)
    knee = found.points[found.knee]
    axes.axvline(knee.spare, color=SOFT, lw=1.2, ls=":")
    axes.annotate(
        " knee",
        (knee.spare, 0.03),
        xycoords=("data", "axes fraction"),
        ha="left" if found.knee < len(numbers) - 1 else "right",
    )
    axes.set_xticks(numbers)
    axes.set(xlabel="spare slots on each GPU", ylabel=_BALANCEDNESS if wide else "balancedness")
    _legend(axes, wide=wide)
    return _SHORT


def _windows(figure: Any, found: Windows, *, wide: bool) -> float:
    axes = figure.subplots()
    numbers = [number for number, _ in found.points]
    axes.plot(numbers, [value for _, value in found.points], "o-", color=PLAN)
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, list(map(str, numbers)))
    axes.minorticks_off()
    axes.set(
        xlabel="windows planned for",
        ylabel=f"{_BALANCEDNESS}, unseen" if wide else "balancedness, unseen",
    )
    _pad(axes)
    return _SHORT


def _moves(figure: Any, found: MoveCurve, *, wide: bool) -> float:
    axes = figure.subplots()
    _seen_and_unseen(axes, [100.0 * each.share for each in found.points], found.points)
    axes.set(
        xlabel="% of slots that receive an expert", ylabel=_BALANCEDNESS if wide else "balancedness"
    )
    _legend(axes, wide=wide)
    return _SHORT


def _through(figure: Any, found: Through, *, wide: bool) -> float:
    axes = figure.subplots()
    axes.plot(found.windows, found.replanned, color=PLAN, label="re-planned")
    axes.plot(found.windows, found.kept, color=OTHER, ls="--", label="planned once")
    axes.plot(found.windows, found.now, color=NOW, ls="-.", label="now")
    axes.set(xlabel="window", ylabel=_BALANCEDNESS if wide else "balancedness")
    _whole_numbers(axes.xaxis)
    _legend(axes, wide=wide)
    return _TALL


def _drift(figure: Any, found: Through, *, wide: bool) -> float:
    axes = figure.subplots()
    lags = [lag for lag, _ in found.drift]
    axes.plot(lags, [value for _, value in found.drift], "o-", color=PLAN)
    axes.set_xscale("log", base=2)
    shown = lags if wide else lags[::2]
    axes.set_xticks(shown, list(map(str, shown)))
    axes.minorticks_off()
    axes.set(
        xlabel="windows apart",
        ylabel="correlation of experts' shares" if wide else "correlation of shares",
    )
    low = min(value for _, value in found.drift)
    axes.set_ylim(min(low - 0.05, 0.8), 1.02)
    return _SHORT


def _seen_and_unseen(axes: Any, numbers: Sequence[float], points: Sequence[Any]) -> None:
    if all(each.unseen is not None for each in points):
        axes.plot(numbers, [each.unseen for each in points], "o-", color=PLAN, label="unseen")
    seen = [each.seen for each in points]
    axes.plot(numbers, seen, "D--", color=OTHER, mfc=PAPER, mew=2, label="seen")
    _pad(axes)


def _pad(axes: Any) -> None:
    """Room below for what is written there; nothing above what is perfect."""
    low, high = axes.get_ylim()
    high = min(high, 1.01)
    # Differences that mean nothing are not to fill the chart.
    low = min(low - 0.15 * (high - low), high - _LEAST_SPAN)
    axes.set_ylim(low, high)


def _legend(axes: Any, *, wide: bool) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=4 if wide else 2,
        borderaxespad=0.2,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def _balance_in_words(figures: Figures) -> str:
    parts = [
        f"{NAMES[each.who]} {value:.4f}"
        for each in figures.standings
        if (value := each.seen if each.unseen is None else each.unseen) is not None
    ]
    kind = "seen" if figures.plan.unseen is None else "unseen"
    return f"Dots of balancedness on {kind} loads: {'; '.join(parts)}."


def _heat_in_words(found: Heat) -> str:
    before, after = (max(map(max, rows)) for rows in (found.before, found.after))
    return (
        f"Two heat maps of {counted(len(found.layers), 'layer')} by "
        f"{len(found.before[0])} GPUs. Now the highest load is {before:.2f} times the mean, "
        f"with a plan {after:.2f} times."
    )


def _hot_in_words(figures: Figures) -> str:
    shares = [sum(each.shares) for each in figures.hot]
    number = len(figures.hot[0].experts)
    return (
        f"Bars, one for each layer: the {number} hottest experts have {percent(min(shares), 1)} to "
        f"{percent(max(shares), 1)} of the load."
    )


def _time_in_words(found: Estimated) -> str:
    return (
        f"Two lines of estimated microseconds by layer: now {min(found.before_us):.0f} to "
        f"{max(found.before_us):.0f}, with a plan {min(found.after_us):.0f} to "
        f"{max(found.after_us):.0f}; {found.even_us:.0f} with even loads."
    )


def _spare_in_words(found: Spare) -> str:
    first, last = found.points[0], found.points[-1]
    return (
        f"Lines of balancedness by spare slots on each GPU, from {first.spare} to {last.spare}: "
        f"seen {first.seen:.4f} to {last.seen:.4f}"
        + (
            "."
            if first.unseen is None or last.unseen is None
            else f", unseen {first.unseen:.4f} to {last.unseen:.4f}."
        )
    )


def _windows_in_words(found: Windows) -> str:
    parts = [f"{number}: {value:.4f}" for number, value in found.points]
    return f"A line of balancedness by windows planned for: {', '.join(parts)}."


def _moves_in_words(found: MoveCurve) -> str:
    first, last = found.points[0], found.points[-1]
    return (
        f"Lines of balancedness by moves: seen {first.seen:.4f} at {first.moves:,} moves to "
        f"{last.seen:.4f} at {last.moves:,}."
    )


def _through_in_words(found: Through) -> str:
    return (
        f"Lines of balancedness by window. In the later half: now {found.now_mean:.4f}, planned "
        f"once {found.kept_mean:.4f}, re-planned {found.replanned_mean:.4f}."
    )


def _drift_in_words(found: Through) -> str | None:
    if not found.drift:
        return None
    parts = [f"{lag}: {value:.2f}" for lag, value in found.drift]
    return f"A line of the correlation of experts' shares by windows apart: {', '.join(parts)}."


DRAWINGS: dict[str, Drawing] = {
    "balance": Drawing(_balance, _balance_in_words),
    "heat": Drawing(_heat, _heat_in_words, attrgetter("heat")),
    "hot": Drawing(_hot, _hot_in_words),
    "time": Drawing(_time, _time_in_words, attrgetter("estimated")),
    "spare": Drawing(_spare, _spare_in_words, attrgetter("spare")),
    "windows": Drawing(_windows, _windows_in_words, attrgetter("windows")),
    "moves": Drawing(_moves, _moves_in_words, attrgetter("moves")),
    "through": Drawing(_through, _through_in_words, attrgetter("through")),
    "drift": Drawing(_drift, _drift_in_words, attrgetter("through")),
}
"""Charts by the section that each belongs to."""
