"""Charts of a report as inline SVG, each once for wide pages and once for phones.

Drawn by matplotlib rather than by a library that draws in the browser: the page then needs no
script, opens at once on a phone, prints as it looks, and its text is text. Colours are left to the
page's style, but for the heat map's: a chart follows light and dark as the page does.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eplb.errors import MissingExtraError
from eplb.report.drawings import DRAWINGS
from eplb.report.figures import Figures, Missing

WIDTHS = {"wide": 880, "narrow": 340}
"""Pixels."""

COLOURS = {
    "#010203": "ink",
    "#010204": "soft",
    "#010205": "line",
    "#010206": "paper",
    "#010211": "now",
    "#010212": "plan",
    "#010213": "other",
    "#010214": "best",
    "#010221": "hot1",
    "#010222": "hot2",
    "#010223": "hot3",
}
"""What stands for a colour of the page's style in a drawing: no chart would have these."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 12.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#010204",
    "axes.labelcolor": "#010203",
    "axes.labelsize": 12.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#010205",
    "grid.linewidth": 1.0,
    "xtick.color": "#010203",
    "ytick.color": "#010203",
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "text.color": "#010203",
    "lines.linewidth": 2.2,
    "lines.markersize": 7.0,
    "legend.frameon": False,
    "legend.fontsize": 12.0,
    "image.cmap": "cividis",
}
_DRAWN = re.compile(r'\b(?:d|x|y|transform)="[^"]*"')
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_IDS = re.compile(r'(\bid="|href="#|url\(#)')


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        svg: of each width, by name.
        says: what a listener is told in its place.
    """

    svg: dict[str, str]
    says: str


def draw(figures: Figures) -> dict[str, Chart]:
    """The charts of a report, by the section that each belongs to; none where there is no data.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError:
        raise MissingExtraError("matplotlib", "report", "a report's page") from None
    charts = {}
    for key, drawing in DRAWINGS.items():
        found = drawing.of(figures)
        says = None if isinstance(found, Missing) else drawing.says(found)
        if says is None:
            continue
        svg = {}
        for size, width in WIDTHS.items():
            with rc_context({**_STYLE, "svg.hashsalt": f"{key}-{size}"}):
                svg[size] = _svg(drawing.draw, found, width, f"{key}-{size}")
        charts[key] = Chart(svg, says)
    return charts


def _svg(drawing: Callable[..., float], found: Any, width: int, name: str) -> str:
    """One drawing as an SVG element whose ids no other has."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72.0, 1.0), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    height = drawing(figure, found, wide=width == WIDTHS["wide"])
    figure.set_size_inches(width / 72.0, height / 72.0)
    # Laid out here, saving draws once in place of twice.
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)
    figure.set_layout_engine("none")
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    body = text[text.index(">") + 1 :]
    for colour, variable in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = body.replace("'DejaVu Sans'", "inherit")
    body = _IDS.sub(rf"\g<1>{name}-", body)
    body = _DRAWN.sub(lambda found: _DECIMALS.sub(r"\1", found[0]), body)
    return (
        f'<svg class="{name.rsplit("-", 1)[1]}" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'height="{height:g}" aria-hidden="true" focusable="false">{body.strip()}'
    )
