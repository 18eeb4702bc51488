"""The arrays that DeepSeek's EPLB returns: `phy2log`, `log2phy`, `logcnt`, in `.npz` or JSON.

DeepSeek's algorithm has no file; these are its names. Beside them stand `num_gpus` and `num_nodes`.
Where only phy2log is there, that is enough.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.errors import FormatError
from eplb.files import replacing, write_text
from eplb.formats import safe
from eplb.formats.placements.layout import Layout, number_of, rows_of, rows_text
from eplb.formats.safe import tensor_array
from eplb.placement import Placement

MAP = "phy2log"
_AXES = {MAP: (2, -1), "log2phy": (3, -1), "logcnt": (2, 0)}
"""Axes of each array, and the least number in it."""
_NUMBERS = ("num_gpus", "num_nodes")


def write_arrays(
    placement: Placement, path: Path, _moe: NDArray[np.bool_], _numbers: Sequence[int]
) -> None:
    """Write the arrays of all layers that the placement has."""
    arrays: dict[str, Any] = {name: getattr(placement, name) for name in _AXES}
    cluster = placement.cluster
    if path.suffix.lower() == ".npz":
        with replacing(path) as file:
            sizes = {name: np.int64(getattr(cluster, name)) for name in _NUMBERS}
            np.savez_compressed(file, **arrays, **sizes)
        return
    parts = [f'"{name}": {getattr(cluster, name)}' for name in _NUMBERS]
    parts += [f'"{MAP}": {rows_text(placement.phy2log)}']
    parts += [f'"{name}": {json.dumps(arrays[name].tolist())}' for name in list(_AXES)[1:]]
    write_text(path, "{" + ",\n".join(parts) + "}\n")


def read_arrays(content: dict[str, Any]) -> Layout:
    """The arrays in an object as JSON has it."""
    found = {MAP: _matrix(content[MAP], MAP, -1)}
    if content.get("log2phy") is not None:
        given = content["log2phy"]
        if not isinstance(given, list) or not given:
            raise FormatError("log2phy is no list of layers")
        layers = [_matrix(layer, f"log2phy[{number}]", -1) for number, layer in enumerate(given)]
        if len({layer.shape for layer in layers}) > 1:
            raise FormatError("log2phy has layers of different shapes")
        found["log2phy"] = np.stack(layers)
    if content.get("logcnt") is not None:
        found["logcnt"] = _matrix(content["logcnt"], "logcnt")
    numbers = {name: number_of(content, name) for name in _NUMBERS}
    return _checked(found, numbers)


def read_npz_maps(path: Path) -> Layout:
    """The arrays in an `.npz` file."""
    wanted = (*_AXES, *_NUMBERS)
    found = safe.read_npz(path, lambda names: [name for name in wanted if name in names])
    if MAP not in found:
        raise FormatError(f"is no placement: expected an array {MAP!r}")
    numbers = {
        name: number_of({name: int(_whole(found[name], name, 0))}, name)
        for name in _NUMBERS
        if name in found
    }
    return _from_arrays(found, numbers)


def read_tensors(content: dict[Any, Any]) -> Layout:
    """The arrays in what `torch.load` gave of a file."""
    arrays = {
        name: tensor_array(content[name], name) for name in _AXES if content.get(name) is not None
    }
    numbers = {name: number_of(content, name) for name in _NUMBERS}
    return _from_arrays(arrays, numbers)


def _from_arrays(found: dict[str, NDArray[Any]], numbers: dict[str, int | None]) -> Layout:
    whole = {name: _whole(found[name], name, *_AXES[name]) for name in _AXES if name in found}
    return _checked(whole, numbers)


def _matrix(value: Any, name: str, lowest: int = 0) -> NDArray[np.int64]:
    if not isinstance(value, list) or not value:
        raise FormatError(f"{name} is {type(value).__name__}, expected a list of rows")
    return rows_of(value, [f"{name}[{row}]" for row in range(len(value))], lowest)


def _whole(array: NDArray[Any], name: str, ndim: int, lowest: int = 0) -> NDArray[np.int64]:
    """An array of a file as whole numbers."""
    if array.ndim != ndim or not array.size:
        raise FormatError(f"{name} has shape {array.shape}, expected {ndim} axes")
    if not (array.min() >= lowest and array.max() < 2**31 and (array == np.floor(array)).all()):
        raise FormatError(f"{name} has what is no whole number from {lowest} on")
    return array.astype(np.int64)


def _checked(found: dict[str, NDArray[np.int64]], numbers: dict[str, int | None]) -> Layout:
    """The layout, where the other arrays say the same as phy2log."""
    phy2log, log2phy, logcnt = found[MAP], found.get("log2phy"), found.get("logcnt")
    num_layers, num_experts = len(phy2log), int(phy2log.max()) + 1
    # More experts than slots leave some without any, which is told later.
    if num_experts <= phy2log.shape[1]:
        counts = np.stack([np.bincount(row[row >= 0], minlength=num_experts) for row in phy2log])
        if logcnt is not None and not np.array_equal(logcnt, counts):
            raise FormatError("logcnt is not how often phy2log has each expert")
        if log2phy is not None:
            if log2phy.shape[:2] != (num_layers, num_experts):
                raise FormatError(
                    f"log2phy has shape {log2phy.shape}, phy2log has "
                    f"{counted(num_layers, 'layer')} and {num_experts} experts"
                )
            _check_same(phy2log, log2phy, counts)
    names = [f"{MAP}[{layer}]" for layer in range(num_layers)]
    gpus, nodes = (numbers.get(name) for name in _NUMBERS)
    return Layout("deepseek", phy2log, names, num_gpus=gpus, num_nodes=nodes)


def _check_same(
    phy2log: NDArray[np.int64], log2phy: NDArray[np.int64], counts: NDArray[np.int64]
) -> None:
    """Raise where log2phy has other slots than phy2log; their order is free."""
    known = np.sort(log2phy, axis=2)
    given = known >= 0
    again = given[:, :, 1:] & (known[:, :, 1:] == known[:, :, :-1])
    wrong = (given.sum(axis=2) != counts) | again.any(axis=2) | (known >= phy2log.shape[1]).any(2)
    if not wrong.any():
        layers, experts, _ = np.nonzero(given)
        held = phy2log[layers, known[given]]
        wrong[layers[held != experts], experts[held != experts]] = True
    if wrong.any():
        layer, expert = np.argwhere(wrong)[0]
        raise FormatError(
            f"log2phy[{layer}][{expert}] has other slots than phy2log[{layer}] has "
            f"for expert {expert}"
        )
