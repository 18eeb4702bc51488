"""A frontier as a figure, drawn by matplotlib."""

import io
import os
from pathlib import Path
from typing import Any

from eplb.errors import FormatError, MissingExtraError
from eplb.files import replacing
from eplb.moving.frontier import Frontier

_ENDINGS = (".svg", ".png")

MOST_OF_IT = 0.95
"""Share of the gain of a plan from scratch that a title names."""

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#555555"
"""Of Okabe and Ito's colours, which differ for the colour-blind too."""
_STYLE: Any = {
    "svg.hashsalt": "eplb",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """Tell before the work begins that a figure could not be drawn.

    Raises:
        FormatError: an ending that is none of .svg and .png.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(path).suffix.lower() not in _ENDINGS:
        raise FormatError(f"{Path(path)}: figures end with {' or '.join(_ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", "drawing a frontier") from None


def finding(frontier: Frontier, num_slots: int) -> str:
    """What the curve says, in a sentence: how few of so many slots give most of the gain."""
    first, last = float(frontier.balancedness[0]), float(frontier.balancedness[-1])
    if last <= first:
        return f"No move gains anything: the placement that runs has balancedness {first:.4f}"
    point = frontier.reach(first + MOST_OF_IT * (last - first))
    point = len(frontier.moves) - 1 if point is None else point
    return (
        f"Moving {frontier.moves[point] / num_slots:.1%} of slots gives {MOST_OF_IT:.0%} of the "
        f"possible gain: balancedness {first:.4f} → {frontier.balancedness[point]:.4f} "
        f"(the best plan has {last:.4f})"
    )


def plot_frontier(path: str | os.PathLike[str], frontier: Frontier, num_slots: int) -> None:
    """Draw balancedness against the share of slots that GPUs must receive, as SVG or PNG.

    Args:
        path: the file, which `check_plot_path` has checked; its ending says which of the two.
        frontier: the curve.
        num_slots: slots that are 100 %: those of all layers with load.

    Raises:
        FormatError: a path that cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shares = 100.0 * frontier.moves / num_slots
    first, last = frontier.balancedness[0], frontier.balancedness[-1]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 4.8), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.plot(shares, frontier.balancedness, "o-", color=_BLUE, label="the plans", ms=4)
        axes.axhline(last, color=_GREY, lw=1.0, ls=":", label=f"the best of them, {last:.4f}")
        point = frontier.reach(first + MOST_OF_IT * (last - first))
        if point is not None and last > first:
            axes.plot(
                shares[point],
                frontier.balancedness[point],
                "D",
                color=_ORANGE,
                ms=8,
                label=f"{MOST_OF_IT:.0%} of the gain, {frontier.moves[point]:,} moves",
            )
        axes.set_xlabel(f"experts that GPUs must receive, % of {num_slots:,} slots")
        axes.set_ylabel("balancedness, mean / max GPU load")
        axes.set_xlim(left=0.0)
        axes.set_title(
            finding(frontier, num_slots).replace(": ", ":\n", 1), loc="left", fontsize=11
        )
        axes.legend(loc="lower right")
        drawn = io.BytesIO()
        kind = Path(path).suffix.lower().removeprefix(".")
        figure.savefig(drawn, format=kind, metadata={"Date": None} if kind == "svg" else None)
    with replacing(path) as file:
        file.write(drawn.getvalue())
