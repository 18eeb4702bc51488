"""Loads as lists: a row for each layer and expert that had tokens, with their number.

Tables `layer_id,expert_id,count` of SGLang's first recorder, with or without a column of layers, of
windows and of ranks; and what lines of JSON tell. Pairs without tokens are missing, so only all
files of a folder together tell how many experts there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import LAYERS
from eplb.errors import FormatError
from eplb.formats.safe import check_size, warn
from eplb.loads import LoadTrace

EXPERT = ("expert", "expert_id", "expert_idx", "expert_index", "logical_expert")
COUNT = ("count", "counts", "load", "tokens", "num_tokens", "token_count")
LAYER = ("layer", "layer_id", "layer_idx", "layer_index")
WINDOW = ("window", "step", "iteration", "forward_pass_id")
CHOSEN = ("topk_ids", "topk_idx", "expert_ids", "routed_experts")

MOST_EXPERTS = 16_384
"""Some times more than any model has: an array is made for all of them."""


@dataclass(frozen=True, eq=False)
class Listed:
    """Rows of one file.

    Attributes:
        path: the file.
        windows: [R] the window of each row, by its number or name.
        layers: [R] numbers of layers in the model, or of the only layer, 0.
        experts: [R] numbers of experts.
        counts: [R] tokens.
        numbered: whether the file tells the layers.
    """

    path: Path
    windows: Sequence[Any]
    layers: NDArray[np.int64]
    experts: NDArray[np.int64]
    counts: NDArray[np.float64]
    numbered: bool


def list_columns(names: Sequence[str]) -> tuple[int | None, ...] | None:
    """Where a list has its windows, layers, experts and counts; None for another table."""
    plain = [name.strip().lower() for name in names]

    def find(known: Sequence[str]) -> int | None:
        return next((plain.index(name) for name in known if name in plain), None)

    expert, count = find(EXPERT), find(COUNT)
    if expert is None:
        return None
    if count is None:
        raise FormatError(
            f"has a column {names[expert].strip()!r} and none of counts: name it "
            f"{COUNT[0]!r}. If a row is an expert and a column a layer, leave that column and the "
            "heading out and give --axes experts,layers (axes)"
        )
    return find(WINDOW), find(LAYER), expert, count


def listed(
    path: Path,
    windows: Sequence[Any] | None,
    layers: NDArray[Any] | None,
    experts: NDArray[Any],
    counts: NDArray[np.float64],
    *,
    numbered: bool = True,
) -> Listed:
    """The rows, checked; layers may be no numbers of the model's but only in order."""
    if not len(experts):
        raise FormatError("has no line of numbers")
    for name, values, most in (("layer", layers, LAYERS), ("expert", experts, MOST_EXPERTS)):
        if values is None:
            continue
        wrong = np.flatnonzero(~((values >= 0) & (values < most) & (values == np.floor(values))))
        if wrong.size:
            raise FormatError(
                f"row {wrong[0] + 1} of the list has {name} {values[wrong[0]]:g}, expected "
                f"a number from 0 to {most - 1}"
            )
    numbers = np.zeros(len(experts), np.int64) if layers is None else layers.astype(np.int64)
    return Listed(
        path,
        ["0"] * len(experts) if windows is None else windows,
        numbers,
        experts.astype(np.int64),
        counts,
        numbered and layers is not None,
    )


def joined_lists(groups: Sequence[Sequence[Listed]]) -> LoadTrace:
    """The trace of lists: windows of one group after those of the other, files of one added up."""
    parts = [part for group in groups for part in group]
    path = parts[0].path
    if len({part.numbered for part in parts}) > 1:
        raise FormatError("tells layers, and another file of the folder does not")
    layers = np.unique(np.concatenate([np.unique(part.layers) for part in parts]))
    num_experts = 1 + max(int(part.experts.max()) for part in parts)
    names: list[str] = []
    starts = []
    for group in groups:
        found = list(dict.fromkeys(str(window) for part in group for window in part.windows))
        starts.append({name: len(names) + number for number, name in enumerate(found)})
        stem = group[0].path.stem
        many = len(groups) > 1
        names += [stem] if many and len(found) == 1 else [f"{stem}/" * many + n for n in found]
    check_size("the list", len(names) * len(layers) * num_experts)
    loads = np.zeros((len(names), len(layers), num_experts))
    for group, start in zip(groups, starts, strict=True):
        for part in group:
            windows = np.array([start[str(window)] for window in part.windows])
            at = (windows, np.searchsorted(layers, part.layers), part.experts)
            np.add.at(loads, at, part.counts)
    if num_experts % 4:
        warn(
            path,
            f"lists experts up to {num_experts - 1}, so {num_experts} are taken for all. If the "
            "model has more, add a row with its last expert and count 0",
        )
    loads.flags.writeable = False
    return LoadTrace(loads, names, layers=tuple(layers.tolist()) if parts[0].numbered else None)


def list_in_array(path: Path, array: NDArray[np.float64]) -> Listed | None:
    """A list without a heading: (layer, expert, count) or (expert, count), in order.

    No loads look like that: of two or three experts, with tokens that count up row by row.
    """
    columns = array.T
    if len(columns) not in {2, 3} or len(array) < 6:
        return None
    layers = columns[0] if len(columns) == 3 else np.zeros(len(array))
    experts = columns[-2]
    new_layer, next_expert = np.diff(layers), np.diff(experts)
    rising = (new_layer > 0) | ((new_layer == 0) & (next_expert > 0))
    # Of most rows the next one is the next expert of the same layer.
    if not rising.all() or 2 * (new_layer == 0).sum() < len(array) or experts.max() < 3:
        return None
    if experts.max() >= 4 * len(array) or (layers != np.floor(layers)).any():
        return None
    what = "layer, expert, count" if len(columns) == 3 else "expert, count"
    warn(path, f"its {len(columns)} columns are taken for {what}")
    return listed(path, None, layers if len(columns) == 3 else None, experts, columns[-1])
