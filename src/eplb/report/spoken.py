"""Each chart of a report in a sentence, for those who cannot see it; None where there is none."""

from eplb.report.figures import Figures, Missing
from eplb.report.words import NAMES, counted, percent

__all__ = ["balance", "drift", "heat", "hot", "moves", "spare", "through", "time", "windows"]


def balance(figures: Figures) -> str:
    """Balancedness of each way to place experts."""
    parts = [
        f"{NAMES[each.who]} {value:.4f}"
        for each in figures.standings
        if (value := each.seen if each.unseen is None else each.unseen) is not None
    ]
    kind = "seen" if figures.plan.unseen is None else "unseen"
    return f"Dots of balancedness on {kind} loads: {'; '.join(parts)}."


def heat(figures: Figures) -> str:
    """Loads of GPUs by layer."""
    found = figures.heat
    before, after = (max(map(max, rows)) for rows in (found.before, found.after))
    return (
        f"Two heat maps of {counted(len(found.layers), 'layer')} by "
        f"{figures.setting.num_gpus} GPUs. Now the highest load is {before:.2f} times the mean, "
        f"with a plan {after:.2f} times."
    )


def hot(figures: Figures) -> str:
    """Shares of the hottest experts."""
    shares = [sum(each.shares) for each in figures.hot]
    number = len(figures.hot[0].experts)
    return (
        f"Bars, one for each layer: the {number} hottest experts have {percent(min(shares), 1)} to "
        f"{percent(max(shares), 1)} of the load."
    )


def time(figures: Figures) -> str | None:
    """Estimated time by layer."""
    found = figures.estimated
    if isinstance(found, Missing):
        return None
    return (
        f"Two lines of estimated microseconds by layer: now {min(found.before_us):.0f} to "
        f"{max(found.before_us):.0f}, with a plan {min(found.after_us):.0f} to "
        f"{max(found.after_us):.0f}; {found.even_us:.0f} with even loads."
    )


def spare(figures: Figures) -> str:
    """Balancedness by spare slots."""
    points = figures.spare.points
    first, last = points[0], points[-1]
    return (
        f"Lines of balancedness by spare slots on each GPU, from {first.spare} to {last.spare}: "
        f"seen {first.seen:.4f} to {last.seen:.4f}"
        + (
            "."
            if first.unseen is None or last.unseen is None
            else f", unseen {first.unseen:.4f} to {last.unseen:.4f}."
        )
    )


def windows(figures: Figures) -> str | None:
    """Balancedness by windows planned for."""
    found = figures.windows
    if isinstance(found, Missing):
        return None
    parts = [f"{number}: {value:.4f}" for number, value in found.points]
    return f"A line of balancedness by windows planned for: {', '.join(parts)}."


def moves(figures: Figures) -> str | None:
    """Balancedness by moves."""
    found = figures.moves
    if isinstance(found, Missing):
        return None
    first, last = found.points[0], found.points[-1]
    return (
        f"Lines of balancedness by moves: seen {first.seen:.4f} at {first.moves:,} moves to "
        f"{last.seen:.4f} at {last.moves:,}."
    )


def through(figures: Figures) -> str | None:
    """Balancedness by window."""
    found = figures.through
    if isinstance(found, Missing):
        return None
    return (
        f"Lines of balancedness by window. In the later half: now {found.now_mean:.4f}, planned "
        f"once {found.kept_mean:.4f}, re-planned {found.replanned_mean:.4f}."
    )


def drift(figures: Figures) -> str | None:
    """How alike windows are."""
    found = figures.through
    if isinstance(found, Missing) or not found.drift:
        return None
    parts = [f"{lag}: {value:.2f}" for lag, value in found.drift]
    return f"A line of the correlation of experts' shares by windows apart: {', '.join(parts)}."
