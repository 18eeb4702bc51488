"""Replays as files: every figure of every window and layer, for a user's own analysis."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eplb.errors import FormatError
from eplb.files import check_writable, write_text
from eplb.loads import LoadTrace
from eplb.replaying.compare import Comparison
from eplb.replaying.sweep import SweepRow

_ENDINGS = (".csv", ".json")
_COLUMNS = (
    *("policy", "window", "name", "layer"),
    *("balancedness", "peak", "mean", "moves", "bytes"),
    *("planned", "plan_ms"),
)


def check_ending(path: Path, *sources: Path) -> None:
    """Tell before the work begins that a record could not be written.

    Raises:
        FormatError: an ending that is none of .csv and .json, or as for `check_writable`.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise FormatError(f"{path}: records end with {' or '.join(_ENDINGS)}")
    if not path.absolute().parent.is_dir():
        raise FormatError(f"{path}: there is no folder {path.parent}")
    check_writable(path, *sources)


def write_comparison(path: Path, comparison: Comparison, trace: LoadTrace) -> None:
    """Write a comparison: as CSV a line for each policy, window and layer that has load in any
    window served, with no balancedness where it has none in this one; as JSON the scores, and
    figures of whole windows.

    Raises:
        FormatError: a path that cannot be written.
    """
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(comparison.to_json(), indent=1) + "\n")
        return
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_COLUMNS)
    for replay in comparison.replays:
        moved = replay.bytes_moved
        loaded = np.flatnonzero(replay.peak.any(axis=0)).tolist()
        numbers = trace.layer_numbers
        for step, window in enumerate(replay.windows.tolist()):
            of_window = [replay.name, window, trace.names[window]]
            planned = [int(replay.planned[step]), replay.seconds[step] * 1e3]
            for layer in loaded:
                ratio = replay.balancedness[step, layer]
                of_layer = [
                    "" if np.isnan(ratio) else ratio,
                    *(values[step, layer] for values in (replay.peak, replay.mean, replay.moves)),
                ]
                size = "" if moved is None else moved[step, layer]
                lines.writerow([*of_window, numbers[layer], *of_layer, size, *planned])
    write_text(path, text.getvalue())


def write_sweep(path: Path, rows: Sequence[SweepRow]) -> None:
    """Write a sweep, a line or an object for each replay.

    Raises:
        FormatError: a path that cannot be written.
    """
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps([row.to_json() for row in rows], indent=1) + "\n")
        return
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    flat = [_flat(row) for row in rows]
    lines.writerow(flat[0])
    lines.writerows(row.values() for row in flat)
    write_text(path, text.getvalue())


def _flat(row: SweepRow) -> dict[str, object]:
    """A row's figures; an interval becomes two."""
    flat: dict[str, object] = {}
    for name, value in row.to_json().items():
        if name.endswith("_interval"):
            for end in ("low", "high"):
                flat[f"{name.removesuffix('interval')}{end}"] = "" if value is None else value[end]
        else:
            flat[name] = "" if value is None else value
    return flat
