"""A placement for vLLM, which has no file of its own (looked up in 0.33.0, `distributed/eplb`).

This is the project's own JSON for it: the map by the name and in the shape that vLLM has it,
`physical_to_logical_map` [MoE layers, slots], with what a reader needs to hold it against a model.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.files import write_text
from eplb.formats.placements.layout import Layout, number_of, rows_of, rows_text
from eplb.placement import Placement

MARK = "eplb_placement"
SNAPSHOTS = "snapshots"
_MAP = "physical_to_logical_map"


def write_own(
    placement: Placement, path: Path, moe: NDArray[np.bool_], numbers: Sequence[int]
) -> None:
    """Write the MoE layers, a layer a line."""
    layers = np.flatnonzero(moe)
    about = {
        MARK: 1,
        "engine": "vllm",
        "num_gpus": placement.cluster.num_gpus,
        "num_nodes": placement.cluster.num_nodes,
        "num_experts": placement.num_experts,
        "layers": [numbers[layer] for layer in layers.tolist()],
    }
    rows = rows_text(placement.phy2log[layers])
    write_text(path, f'{json.dumps(about)[:-1]},\n"{_MAP}": {rows}}}\n')


def read_own(content: dict[str, Any]) -> Layout:
    """The MoE layers with their numbers in the model."""
    if type(content[MARK]) is not int or content[MARK] != 1:
        raise FormatError(f"{MARK} is {str(content[MARK])[:40]!r}, known is version 1")
    rows, layers = content.get(_MAP), content.get("layers")
    if not isinstance(rows, list) or not rows:
        raise FormatError(f"has no {_MAP} with layers in it")
    names = [f"{_MAP}[{row}]" for row in range(len(rows))]
    array = rows_of(rows, names, -1)
    numbers = rows_of([layers], ["layers"])[0].tolist()
    if len(numbers) != len(rows) or any(low >= high for low, high in pairwise(numbers)):
        raise FormatError(f"layers are no {len(rows)} rising numbers, one for each row")
    told = number_of(content, "num_experts")
    if told != array.max() + 1:
        raise FormatError(f"num_experts is {told}, and {_MAP} has experts up to {array.max()}")
    return Layout(
        "vllm",
        array,
        names,
        numbers,
        num_gpus=number_of(content, "num_gpus"),
        num_nodes=number_of(content, "num_nodes"),
    )


def read_snapshots(content: dict[str, Any]) -> Layout:
    """The map that ran at the last of the snapshots that branches of vLLM write."""
    snapshots = content[SNAPSHOTS]
    last = snapshots[-1] if isinstance(snapshots, list) and snapshots else None
    rows = last.get(_MAP) if isinstance(last, dict) else None
    if not isinstance(rows, list) or not rows:
        raise FormatError(f"{SNAPSHOTS}[-1] has no {_MAP} with layers in it")
    names = [f"{SNAPSHOTS}[-1].{_MAP}[{row}]" for row in range(len(rows))]
    gpus = number_of(content, "world_size")
    return Layout("vllm", rows_of(rows, names, -1), names, num_gpus=gpus)
