"""SGLang's placement: `physical_to_logical_map`, and the one that its recorder saw.

Read off SGLang 0.5.23, `eplb/expert_location.py`: `--init-expert-location` takes a `.json` or a
`.pt` with this one key, any other being an unknown argument to it. The map has a row for each
hidden layer, dense ones too. The recorder's modes `per_pass` and `per_token` write the placement
that ran, `last_physical_to_logical_map`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.files import write_text
from eplb.formats.placements.layout import Layout, contiguous_row, rows_of, rows_text
from eplb.formats.safe import tensor_array
from eplb.placement import Placement

MAP = "physical_to_logical_map"
LAST = "last_physical_to_logical_map"


def write_map(
    placement: Placement, path: Path, _moe: NDArray[np.bool_], numbers: Sequence[int]
) -> None:
    """Write the map of all layers, those that the placement lacks laid out as the engine does."""
    start = contiguous_row(placement.num_experts, placement.cluster)
    rows = np.tile(start, (numbers[-1] + 1, 1))
    rows[list(numbers)] = placement.phy2log
    # What its elastic expert parallelism has in the slots of dead ranks.
    rows[rows < 0] = 0
    write_text(path, f'{{"{MAP}": {rows_text(rows)}}}\n')


def read_map(content: dict[str, Any]) -> Layout:
    """The map in an object as JSON has it."""
    others = sorted(set(content) - {MAP})
    if others:
        raise FormatError(f"has the key {others[0][:40]!r} beside {MAP!r}: SGLang takes no other")
    rows = content[MAP]
    if not isinstance(rows, list) or not rows:
        what = "empty" if rows == [] else type(rows).__name__
        raise FormatError(f"{MAP} is {what}, expected a list of layers")
    names = [f"{MAP}[{layer}]" for layer in range(len(rows))]
    return _layout(rows_of(rows, names), names)


def read_pt_map(content: dict[Any, Any]) -> Layout:
    """The map in a `.pt` file: for `--init-expert-location`, or in a dump of the recorder."""
    key = MAP if MAP in content else LAST
    array = tensor_array(content[key], key)
    if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
        raise FormatError(f"{key} is no map of layers and slots [L, P] of whole numbers")
    if array.min() < 0:
        raise FormatError(f"{key} has an expert below 0")
    return _layout(array.astype(np.int64), [f"{key}[{layer}]" for layer in range(len(array))])


def _layout(rows: NDArray[np.int64], names: list[str]) -> Layout:
    return Layout("sglang", rows, names, list(range(len(rows))), every_layer=True)
