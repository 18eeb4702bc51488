"""The figure of the study of dispatch, as SVG that takes the colours of the page it stands in."""

import textwrap
from collections.abc import Sequence
from typing import Any

from study_plots import STYLE, svg_of

__all__ = ["draw"]

# Hues of Okabe and Ito's, which differ for the colour-blind too, of 3 to 1 on white and on black.
_LINES = {
    "together": ("all ranks together", "#3b82c4", "-", "o"),
    "own": ("each rank for itself", "#1e9e77", "-", "^"),
    "table": ("eplb's table", "#c466a0", "-.", "D"),
    "sglang": ("SGLang's table", "#7a828c", ":", "v"),
    "vllm": ("vLLM's hash", "#d9702b", "--", "s"),
}
_WIDE, _HIGH = 700 / 72, 6.2


def draw(points: Sequence[Any], title: str) -> str:
    """The SVG of balancedness by tokens of a step, a panel for each cluster."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels: dict[tuple[str, int, int], list[Any]] = {}
    for point in points:
        panels.setdefault((point.load, point.gpus, point.slots), []).append(point)
    with mpl.rc_context(STYLE):
        made: Any = Figure(figsize=(_WIDE, _HIGH))
        made.suptitle(
            textwrap.fill(title, 84), x=0.01, y=0.985, ha="left", fontsize=12.5, fontweight="bold"
        )
        axes = made.subplots(2, 3, sharey=True).ravel()
        for axis, ((load, gpus, slots), here) in zip(axes, panels.items(), strict=False):
            _draw_panel(axis, here)
            axis.set_title(f"{load}, {gpus} ranks, {slots} slots", loc="left")
        for axis in axes[::3]:
            axis.set_ylabel("balancedness")
        for axis in axes[2 : len(panels)]:
            axis.set_xlabel("tokens of a step, all ranks")
        axes[-1].set_axis_off()
        handles, labels = axes[0].get_legend_handles_labels()
        axes[-1].legend(handles, labels, loc="center left", handlelength=2.6)
        made.subplots_adjust(
            left=0.075, right=0.965, top=0.84, bottom=0.09, hspace=0.42, wspace=0.1
        )
        return svg_of(made)


def _draw_panel(axis: Any, points: Sequence[Any]) -> None:
    for line, (label, colour, dashes, marker) in _LINES.items():
        here = sorted((point.tokens, point.balancedness) for point in points if point.line == line)
        # Decode steps and prefill are cut from the recording in other ways: no line joins them.
        for number, part in enumerate(each for each in _parts(points, here) if each):
            x, y = zip(*part, strict=True)
            axis.plot(
                x, y, color=colour, linestyle=dashes, marker=marker,
                label=label if number == 0 else None,
            )  # fmt: skip
    sizes = sorted({point.tokens for point in points})
    axis.set_xscale("log", base=2)
    ticks = [size for size in sizes if (size.bit_length() - sizes[0].bit_length()) % 3 == 0]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()


def _parts(points: Sequence[Any], line: list[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    if points[0].load != "gpt-oss-20b":
        return [line]
    decode = {point.tokens for point in points if point.line == "activated"}
    return [[at for at in line if (at[0] in decode) is kind] for kind in (True, False)]
