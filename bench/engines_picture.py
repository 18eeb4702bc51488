"""The README's picture, drawn from what `bench/engines.py --json` measured and printed.

    python bench/engines.py --engines .venv/engines --traces path/to/traces --no-time --json > rows.json
    python bench/engines_picture.py rows.json

Words and lines take the colour of the system's scheme, light or dark.
"""  # noqa: E501

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from options import OneLineParser

__all__ = ["CELLS", "Pair", "drawing", "pairs_of"]

CELLS = ("DeepSeek-V3, 32 GPUs", "gpt-oss-20b, 8 GPUs")
"""The traces that are drawn, by the names that bench/engines.py gives them."""
_WIDTH, _LEFT = 720, 190
_BAR, _GAP, _ROW = 17, 3, 58
_PANELS = ((_LEFT, 240.0), (_LEFT + 290.0, 180.0))
"""Where the two panels begin, and how long a bar of 1 is there."""
_OWN, _OURS = "#9FA8B3", "#E69F00"
"""Grey and orange, which differ for the colour-blind too."""


@dataclass(frozen=True)
class Pair:
    """What an engine's own planner and this one made of a trace.

    Attributes:
        cell: the trace; engine: its name.
        own, ours: balancedness on the next window, and the share of slots that moved.
    """

    cell: str
    engine: str
    own: tuple[float, float]
    ours: tuple[float, float]


def pairs_of(rows: Sequence[dict[str, Any]]) -> list[Pair]:
    """The pairs to draw; of an engine with several algorithms the best balanced is its own.

    Raises:
        ValueError: a row that is to be drawn is missing.
    """
    pairs = []
    for cell in CELLS:
        for engine in ("vLLM", "SGLang"):
            here = [row for row in rows if (row["cell"], row["engine"]) == (cell, engine)]
            own = [row for row in here if row["who"] != "eplb"]
            ours = [row for row in here if row["who"] == "eplb"]
            if not own or len(ours) != 1:
                raise ValueError(f"{cell}, {engine}: not both of its rows are there")
            best = max(own, key=lambda row: float(row["balancedness"]))
            pairs.append(
                Pair(
                    cell,
                    engine,
                    (float(best["balancedness"]), float(best["moved"])),
                    (float(ours[0]["balancedness"]), float(ours[0]["moved"])),
                )
            )
    return pairs


def drawing(pairs: Sequence[Pair]) -> str:
    """The picture, as SVG."""
    height = 66 + _ROW * len(pairs) + 6
    says = "; ".join(
        f"{pair.engine} on {pair.cell}: balancedness {pair.own[0]:.3f} with its own planner, "
        f"{pair.ours[0]:.3f} with eplb, experts moved {pair.own[1]:.1%} and {pair.ours[1]:.1%}"
        for pair in pairs
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13" fill="currentColor">',
        "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>",
        f"<title>{escape(says)}</title>",
        *_legend(),
        _text(_PANELS[0][0], 52, "balancedness on the next window", ' font-weight="700"'),
        _text(_PANELS[1][0], 52, "experts moved at a re-plan", ' font-weight="700"'),
    ]
    for number, pair in enumerate(pairs):
        parts.extend(_pair(pair, 66.0 + number * _ROW))
    return "\n".join([*parts, "</svg>", ""])


def _legend() -> Iterator[str]:
    yield _rect(_LEFT, 10, 14, _OWN)
    yield _text(_LEFT + 20, 22, "the engine's own planner")
    yield _rect(_LEFT + 290, 10, 14, _OURS)
    yield _text(_LEFT + 310, 22, "the same engine with eplb")


def _pair(pair: Pair, top: float) -> Iterator[str]:
    yield _text(0, top + 15, pair.engine, ' font-weight="700"')
    yield _text(0, top + 33, pair.cell)
    for at, values in enumerate((pair.own, pair.ours)):
        y = top + at * (_BAR + _GAP)
        weight = ' font-weight="700"' if at else ""
        for (x, scale), value, text in zip(
            _PANELS, values, (f"{values[0]:.3f}", f"{values[1]:.1%}"), strict=True
        ):
            yield _rect(x, y, value * scale, _OURS if at else _OWN)
            yield _text(x + value * scale + 6, y + 13, text, weight)


def _rect(x: float, y: float, width: float, fill: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1.0):.1f}" height="{_BAR}" rx="2" '
        f'fill="{fill}"/>'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>'


def main() -> int:
    """Draw what the command line asks for."""
    parser = OneLineParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("rows", type=Path, help="what bench/engines.py --json printed")
    standard = Path(__file__).parents[1] / "docs" / "assets" / "engines.svg"
    parser.add_argument("--output", type=Path, default=standard, help="the picture")
    asked = parser.parse_args()
    try:
        pairs = pairs_of(json.loads(asked.rows.read_text(encoding="utf-8"))["rows"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        parser.error(f"{asked.rows}: {error}")
    asked.output.write_text(drawing(pairs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
