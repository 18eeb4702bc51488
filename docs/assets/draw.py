"""The pictures of docs/concepts.md: `python docs/assets/draw.py` plans their examples and draws.

Words and lines take the colour of the page; as files by themselves, that of the system's scheme.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import eplb

__all__ = ["PICTURES"]

# Okabe and Ito's colours, which differ for the colour-blind too, all light enough for dark words.
_COLOURS = ("#E69F00", "#56B4E9", "#35B08A", "#F0E442", "#D893B8", "#9FB4C7", "#C9B79C", "#B8B8B8")
_WIDTH = 720
_ROW, _BAR = 34, 24
LOADS = np.array([[40.0, 24.0, 18.0, 14.0, 10.0, 8.0, 6.0, 4.0]])
TWO_WINDOWS = np.array(
    [
        [[24.0, 4.0, 22.0, 4.0, 12.0, 12.0, 11.0, 11.0]],
        [[4.0, 24.0, 4.0, 22.0, 12.0, 12.0, 11.0, 11.0]],
    ]
)
TWO_SLOTS, THREE_SLOTS = eplb.Cluster(4, 1, 2), eplb.Cluster(4, 1, 3)


def _svg(height: float, says: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="currentColor">'
    )
    style = (
        "<style>svg{color:#24292f}@media (prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
    )
    return "\n".join([head, style, f"<title>{escape(says)}</title>", *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor"'
        f"{more}/>"
    )


def _box(
    x: float, y: float, width: float, expert: int, label: str, more: str = ""
) -> Iterator[str]:
    yield (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width - 1.5, 1):.1f}" height="{_BAR}" rx="3" '
        f'fill="{_COLOURS[expert]}"{more}/>'
    )
    yield _text(x + width / 2 - 0.75, y + 17, label, "middle", ' fill="#111"')


def _bars(
    placement: eplb.Placement, loads: NDArray[np.float64], x: float, y: float, scale: float
) -> Iterator[str]:
    """A bar for each GPU of a placement's only layer, made of its replicas; and the mean."""
    held = placement.phy2log[0].reshape(placement.cluster.num_gpus, -1)
    sizes = loads[0] / placement.logcnt[0]
    total = placement.gpu_load(loads)[0]
    mean = x + total.mean() * scale
    for gpu, experts in enumerate(held):
        at, top = x, y + gpu * _ROW
        yield _text(x - 10, top + 17, f"GPU {gpu}", "end")
        for expert in sorted(experts, key=lambda each: (-sizes[each], each)):
            wide = sizes[expert] * scale
            yield from _box(at, top, wide, expert, str(expert) if wide > 12 else "")
            at += wide
        busiest = total[gpu] == total.max() > total.mean() * 1.001
        weight = ' font-weight="700"' if busiest else ""
        beside = mean + 6 if at < mean < at + 30 else at + 6
        yield _text(beside, top + 17, f"{total[gpu]:.0f}", more=weight)
    bottom = y + len(held) * _ROW
    yield _line(mean, y - 8, mean, bottom, ' stroke-width="1.5" stroke-dasharray="5 4"')
    yield _text(mean, bottom + 14, f"mean {total.mean():.0f}", "middle", ' font-size="12.500"')


def _one(placement: eplb.Placement, title: str) -> str:
    balance = f"balancedness {placement.balancedness(LOADS):.2f}"
    parts = [
        _text(0, 18, title, more=' font-weight="700"'),
        _text(_WIDTH, 18, balance, "end"),
        *_bars(placement, LOADS, 70, 42, 9.2),
    ]
    return _svg(42 + 4 * _ROW + 22, f"{title}; {balance}", parts)


def _busiest() -> str:
    contiguous = eplb.Placement.contiguous(1, 8, TWO_SLOTS)
    return _one(contiguous, "8 experts in order on 4 GPUs: the layer waits for GPU 0")


def _planned() -> str:
    placement = eplb.plan(LOADS, THREE_SLOTS).placement
    return _one(placement, "The same load with a spare slot on each GPU, planned")


def _windows() -> str:
    parts, y = [], 20.0
    said = []
    plans = {
        "Planned for the sum": eplb.plan(TWO_WINDOWS.sum(axis=0), TWO_SLOTS).placement,
        "Planned for each": eplb.plan(TWO_WINDOWS, TWO_SLOTS).placement,
    }
    for title, placement in plans.items():
        parts.append(_text(0, y, title, more=' font-weight="700"'))
        for column, (name, loads) in enumerate(
            zip(("morning", "evening"), TWO_WINDOWS, strict=True)
        ):
            x = column * 370.0
            says = f"{name}: balancedness {placement.balancedness(loads):.2f}"
            parts.append(_text(x + 70, y + 24, says))
            parts.extend(_bars(placement, loads, x + 70, y + 42, 6.2))
            said.append(f"{title}, {says}")
        y += 42 + 4 * _ROW + 48
    return _svg(y - 20, "; ".join(said), parts)


def _moves() -> str:
    old = eplb.plan(LOADS, THREE_SLOTS).placement
    loads = LOADS.copy()
    loads[0, 3], loads[0, 1] = LOADS[0, 1], LOADS[0, 3]
    new = eplb.plan(loads, THREE_SLOTS, current=old).placement
    held = [each.phy2log[0].reshape(4, -1) for each in (old, new)]
    parts = []
    for column, (title, slots, placement) in enumerate(
        zip(("Runs now", "To run next"), held, (old, new), strict=True)
    ):
        x = 70.0 + column * 390
        balance = placement.balancedness(loads)
        parts.append(_text(x, 18, f"{title}: {balance:.2f}", more=' font-weight="700"'))
        for gpu, experts in enumerate(slots):
            y = 34.0 + gpu * _ROW
            parts.append(_text(x - 10, y + 17, f"GPU {gpu}", "end"))
            for slot, expert in enumerate(sorted(experts)):
                received = column == 1 and expert not in held[0][gpu]
                more = ' stroke="currentColor" stroke-width="3"' if received else ""
                parts.extend(_box(x + slot * 56, y, 52, int(expert), str(expert), more))
    y = 34.0 + 4 * _ROW + 16
    says = f"{new.moves_from(old)} moves, framed: experts whose weights a GPU must receive"
    parts.append(_text(460 + 84, y, says.split(",", maxsplit=1)[0] + ", framed", "middle"))
    return _svg(y + 10, says, parts)


def _replay() -> str:
    parts = []
    wide, steps = 58.0, 3
    for step in range(steps):
        y = 20.0 + step * 56
        parts.append(_text(0, y + 17, f"step {step + 1}"))
        for window in range(9):
            x = 80 + window * (wide + 6)
            served = window == step + 6
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="{_BAR}" rx="3" '
                f'fill="{_COLOURS[0] if served else "none"}" stroke="currentColor" '
                'stroke-opacity="0.35"/>'
            )
            if served:
                parts.append(_text(x + wide / 2, y + 17, "scored", "middle", ' fill="#111"'))
        begin, known = 80 + step * (wide + 6), 6 * (wide + 6) - 4.5
        label = "6 windows known: planned from"
        parts.extend(_box(begin, y, known, 1, label))
    y = 20.0 + steps * 56 + 8
    parts.append(_line(80, y, 80 + 9 * (wide + 6), y, ' stroke-width="1.5"'))
    parts.append(_text(80 + 9 * (wide + 6), y + 20, "windows, in the order recorded →", "end"))
    return _svg(y + 30, "Each window is scored before any plan has seen it", parts)


def _bound() -> str:
    cluster = TWO_SLOTS
    plan = eplb.plan(LOADS, cluster)
    start = eplb.Placement.contiguous(1, 8, cluster).gpu_load(LOADS).max()
    x0, scale, y = 20.0, 15.0, 66.0
    parts = [_line(x0, y, x0 + 45 * scale, y, ' stroke-width="1.5"')]
    marks = [
        (LOADS.sum() / 4, "mean of the GPUs", False),
        (float(plan.bound[0]), "proven bound", False),
        (float(plan.peak[0]), "this plan", True),
        (float(start), "experts in order", True),
    ]
    for value, name, above in marks:
        x = x0 + (value - 24) * scale
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="6" fill="{_COLOURS[0 if above else 1]}"/>')
        offset = (-34.0, -16.0) if above else (28.0, 46.0)
        parts.append(_text(x, y + offset[0], name, "middle"))
        parts.append(_text(x, y + offset[1], f"{value:.1f}", "middle", ' font-weight="700"'))
    says = f"Load of the busiest GPU: a gap of {plan.gap[0]:.1%} is the most that is left to gain"
    return _svg(y + 62, says, parts)


PICTURES: dict[str, Callable[[], str]] = {
    "busiest.svg": _busiest,
    "planned.svg": _planned,
    "windows.svg": _windows,
    "moves.svg": _moves,
    "replay.svg": _replay,
    "bound.svg": _bound,
}
"""What draws each picture."""


def main() -> int:
    """Write the pictures beside this file."""
    for name, draw in PICTURES.items():
        Path(__file__).with_name(name).write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
