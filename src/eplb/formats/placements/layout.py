"""What the readers of placements share: rows of experts as a file has them, and checks on them."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.errors import FormatError
from eplb.formats.safe import check_size
from eplb.placement import Placement

_LARGEST_ID = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Layout:
    """A placement as a file has it, before it is held against a model and a cluster.

    Attributes:
        engine: whose form it is.
        rows: [R, P] logical expert in each slot.
        names: R places in the file, for messages.
        layers: the model's number of each row; empty where rows are the MoE layers in order.
        every_layer: whether the engine wants a row for dense layers too.
        for_all: whether the only row is for each layer.
        num_gpus: G where the file tells.
        num_nodes: N where the file tells.
    """

    engine: str
    rows: NDArray[np.int64]
    names: list[str]
    layers: list[int] = field(default_factory=list)
    every_layer: bool = False
    for_all: bool = False
    num_gpus: int | None = None
    num_nodes: int | None = None


def rows_of(rows: Any, names: list[str], lowest: int = 0) -> NDArray[np.int64]:
    """Rows of whole numbers as an array [R, W]; `names` has the place of each in the file."""
    width = 0
    for row, name in zip(rows, names, strict=True):
        if not isinstance(row, list) or not row:
            raise FormatError(f"{name} is {_said(row)}, expected a list of experts")
        width = width or len(row)
        if len(row) != width:
            raise FormatError(
                f"{name} has {len(row)} slots, {names[0]} has {width}: each layer needs as many"
            )
        # Before anything is copied: in YAML a row may stand for itself many times.
        check_size("the placement", width * len(names))
    if not width:
        raise FormatError("has no layer")
    array = np.empty((len(names), width), np.int64)
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        if set(map(type, row)) != {int} or min(row) < lowest or max(row) > _LARGEST_ID:
            slot = next(
                slot
                for slot, expert in enumerate(row)
                if type(expert) is not int or not lowest <= expert <= _LARGEST_ID
            )
            raise FormatError(
                f"{name}[{slot}] is {_said(row[slot])}, expected a number from {lowest} on"
            )
        array[number] = row
    return array


def number_of(content: dict[Any, Any], key: str) -> int | None:
    """A number of things that a file may tell, None where it does not."""
    value = content.get(key)
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= _LARGEST_ID:
        raise FormatError(f"{key} is {_said(value)}, expected a number of 1 or more")
    return value


def contiguous_row(num_experts: int, cluster: Cluster) -> NDArray[np.int64]:
    """[P] the layout that engines start with: where nothing is known of a layer."""
    row: NDArray[np.int64] = Placement.contiguous(1, num_experts, cluster).phy2log[0]
    return row


def rows_text(rows: NDArray[np.int64]) -> str:
    """Rows as JSON, one a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows.tolist()) + "\n]"


def _said(value: Any) -> str:
    """A value of a file in a message."""
    if isinstance(value, list | dict):
        return ("an empty " if not value else "a ") + type(value).__name__
    try:
        return repr(value)[:40]
    except ValueError:  # a whole number too long for Python to write
        return "a number of thousands of digits"
