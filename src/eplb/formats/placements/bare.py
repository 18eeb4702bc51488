"""Placements that are in no engine's own form: bare arrays, maps by layer, and maps of two models.

A bare array is phy2log [L, P], [P] for all layers alike, [L, G, S] by GPU, or the `expert_map` of
vLLM, [L, G, E] with the slot on its GPU for each expert that a GPU holds and -1 for all others.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.errors import FormatError
from eplb.formats.placements.layout import Layout, rows_of
from eplb.formats.safe import warn

_NAME = "phy2log"
_LAYER = re.compile(r"(?:.*layers?[._-]?)?([0-9]{1,4})(?:[._-].*)?", re.ASCII)


def read_list(content: list[Any]) -> Layout:
    """A bare array in JSON."""
    if not content:
        raise FormatError(f"{_NAME} is list, expected a list of rows with experts")
    if not isinstance(content[0], list):
        return Layout("deepseek", rows_of([content], [_NAME]), [_NAME], for_all=True)
    if content[0] and isinstance(content[0][0], list):
        return read_array(_nested(content))
    names = [f"{_NAME}[{row}]" for row in range(len(content))]
    return Layout("deepseek", rows_of(content, names, -1), names)


def read_array(array: NDArray[Any]) -> Layout:
    """A bare array of whole numbers."""
    if array.ndim not in {1, 2, 3} or not array.size:
        raise FormatError(
            f"{_NAME} has shape {array.shape}, expected 2 axes, layers and slots (or 1 of "
            "slots, or 3 of layers, GPUs, and slots or experts)"
        )
    lowest = 0 if array.ndim == 1 else -1
    whole = (array == np.floor(array)).all() if array.dtype.kind == "f" else True
    if not (whole and lowest <= array.min() and array.max() < 2**31):
        raise FormatError(f"{_NAME} has what is no whole number from {lowest} on")
    rows = array.astype(np.int64)
    gpus = None
    if rows.ndim == 3:
        gpus = rows.shape[1]
        rows = _slots_of(rows) if rows.min() < 0 else rows.reshape(len(rows), -1)
    rows = np.atleast_2d(rows)
    names = [f"{_NAME}[{row}]" for row in range(len(rows))]
    return Layout("deepseek", rows, names, num_gpus=gpus, for_all=array.ndim == 1)


def read_by_layer(content: dict[Any, Any]) -> Layout | None:
    """Rows by the number of their layer, as `"3"` or `"model.layers.3.mlp"`; None of other keys."""
    found = [_LAYER.fullmatch(str(key)) for key in content]
    if not content or not all(found) or not all(isinstance(row, list) for row in content.values()):
        return None
    keys = {int(match[1]): key for match, key in zip(found, content, strict=True) if match}
    if len(keys) < len(content):
        raise FormatError("has two maps of one layer")
    layers = sorted(keys)
    names = [repr(keys[layer])[:60] for layer in layers]
    return Layout("vllm", rows_of([content[keys[layer]] for layer in layers], names), names, layers)


def read_models(
    path: Path, content: dict[Any, Any], read: Callable[[dict[Any, Any]], Layout]
) -> Layout | None:
    """The map of the model with most layers: a draft model has few. None of other content."""
    models = content.get("models", content)
    if not (isinstance(models, dict) and models):
        return None
    if not all(isinstance(model, dict) for model in models.values()):
        return None
    layouts = {str(name): read(model) for name, model in models.items()}
    sizes = {name: len(layout.rows) for name, layout in layouts.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    said = ", ".join(f"{name[:40]} ({counted(size, 'layer')})" for name, size in sizes.items())
    if sorted(sizes.values())[:-1].count(sizes[largest]):
        raise FormatError(
            f"has placements of {said}: save the one that is meant to a file of its own"
        )
    if len(sizes) > 1:
        warn(path, f"has placements of {said}: that of {largest[:40]} is taken")
    return layouts[largest]


def _nested(content: list[Any]) -> NDArray[np.int64]:
    """Lists of lists of equal lists of whole numbers as an array."""
    names = [
        f"{_NAME}[{layer}][{gpu}]"
        for layer, gpus in enumerate(content)
        for gpu in range(len(gpus) if isinstance(gpus, list) else 0)
    ]
    if len(names) != len(content) * len(content[0]):
        raise FormatError(f"{_NAME} has layers of different numbers of GPUs")
    rows = rows_of([row for gpus in content for row in gpus], names, -1)
    return rows.reshape(len(content), len(content[0]), -1)


def _slots_of(expert_map: NDArray[np.int64]) -> NDArray[np.int64]:
    """[L, P] from the slot that each expert has on each GPU, -1 for none, [L, G, E]."""
    num_layers, num_gpus, _ = expert_map.shape
    num_slots = int(expert_map.max()) + 1
    rows = np.full((num_layers, num_gpus, num_slots), -1)
    layers, gpus, experts = np.nonzero(expert_map >= 0)
    rows[layers, gpus, expert_map[layers, gpus, experts]] = experts
    # An expert in a slot that another has too is lost, and the map has more experts than slots.
    if rows.min() < 0 or len(layers) != rows.size:
        raise FormatError(
            f"is a map [layers, GPUs, experts] = {expert_map.shape}, and its GPUs do not "
            f"each have experts in slots 0 to {num_slots - 1}, one in each"
        )
    return rows.reshape(num_layers, -1)
