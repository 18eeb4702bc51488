"""Which row of a placement's file is which layer of the loads.

A file may have a row for each hidden layer or for MoE layers only, and one more for a layer that
predicts further tokens; loads may leave out dense layers, or have them without any load. Where both
sides number their layers, rows are taken by number. Where one does not, only counts that fit in one
way are taken, and any other is an error that names the option to give.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted, ranges
from eplb.errors import FormatError
from eplb.formats.placements.layout import Layout
from eplb.formats.safe import warn


def matched(
    path: Path, layout: Layout, dense: NDArray[np.bool_], layers: Sequence[int] | None
) -> NDArray[np.intp]:
    """[L] the row of each layer of the loads, -1 for a dense one that has none; `layers` are their
    numbers in the model, where these are known.

    Raises:
        FormatError: a layer with load that no row is for, or counts that fit in no way or in more
            than one.
    """
    num_layers, num_rows = len(dense), len(layout.rows)
    if layout.for_all:
        return np.zeros(num_layers, np.intp)
    if layout.layers and layers is None and _counts_every_layer(layout, dense):
        layers = range(num_layers)
    if layout.layers and layers is not None:
        return _by_number(path, layout, dense, layers)
    if num_rows == num_layers:
        return np.arange(num_layers)
    moe = np.flatnonzero(~dense)
    found = np.full(num_layers, -1, np.intp)
    # Of layers without load the first ones are dense; later ones may have had none by chance.
    first = int(moe[0]) if moe.size else num_layers
    if not layout.every_layer and num_rows in {moe.size, num_layers - first}:
        found[moe if num_rows == moe.size else slice(first, None)] = np.arange(num_rows)
        return found
    without = f" ({num_layers - moe.size} of them without load)" if dense.any() else ""
    settles = "say which layers of the model the file has, as in --placement-layers 3-61"
    if layers is None and not dense.any():
        settles += ", and the loads: --first-layer 3"
    if layout.layers:
        settles = (
            "say which layers of the model the loads have: --first-layer or --layers "
            f"(the file has {ranges(layout.layers)})"
        )
    raise FormatError(
        f"has {counted(num_rows, 'layer')}, the loads have {num_layers}{without}: it is of another "
        f"model, or {settles}"
    )


def _counts_every_layer(layout: Layout, dense: NDArray[np.bool_]) -> bool:
    """Whether the loads, which do not number their layers, must have all from the model's first.

    A row for each layer with load, and none for one without, would be a rare coincidence otherwise.
    Of a file that has dense layers too, only a dense layer at the start of the loads tells.
    """
    moe = set(np.flatnonzero(~dense).tolist())
    here = {number for number in layout.layers if number < len(dense)}
    return moe <= here and bool(dense[0] or (here == moe and not layout.every_layer))


def _by_number(
    path: Path, layout: Layout, dense: NDArray[np.bool_], layers: Sequence[int]
) -> NDArray[np.intp]:
    row_of = {number: row for row, number in enumerate(layout.layers)}
    missing = [
        layer for layer, idle in zip(layers, dense, strict=True) if not idle | (layer in row_of)
    ]
    if missing:
        raise FormatError(
            f"has {counted(len(layout.rows), 'layer')} ({ranges(layout.layers)}), the loads have "
            f"{len(layers)} ({ranges(layers)}), and it has none for layer {ranges(missing)}: it is "
            "of another model, or say which layers the loads have (--first-layer or --layers) or "
            "the file (--placement-layers)"
        )
    # Rows of dense layers, which loads may leave out, are no surprise.
    least = max(layers) if layout.every_layer else min(layers)
    extra = sorted(number for number in row_of.keys() - set(layers) if number > least)
    if extra:
        warn(path, f"layer {ranges(extra)} is left out: the loads have no such layer")
    return np.array([row_of.get(layer, -1) for layer in layers], np.intp)
