"""Lines of JSON: the experts of a token in a layer, those of all layers, counts, or snapshots.

`{"layer", "topk_ids"}` is a token's, or several tokens', in one layer. `{"layer", "expert",
"count"}` is a row of a list. `routed_experts` [tokens, layers, k], or [layers, k] of one token, is
what vLLM returns with a response, among its choices too. `{"window_expert_load",
"physical_to_logical_map"}` is one of the snapshots that branches of vLLM write.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.loads.bare import chosen_counts
from eplb.formats.loads.json import SNAPSHOT_KEYS, routed_of, snapshot_loads
from eplb.formats.loads.lists import CHOSEN, COUNT, EXPERT, LAYER, WINDOW, Listed, listed
from eplb.formats.safe import reading, text_of

_Found = Counter[tuple[str, int, int]]


def read_jsonl(path: Path) -> Listed:
    """A list of the windows, layers and experts that the lines name."""
    found: _Found = Counter()
    numbered = True
    with reading("JSON lines"):
        for number, item in _objects(path):
            place = f"line {number}"
            name = _first(item, WINDOW)
            window = "0" if name is None else str(name)
            if all(key in item for key in SNAPSHOT_KEYS):
                numbered = False
                for at, loads in enumerate(snapshot_loads(item, place)):
                    _add(found, window, at, np.arange(len(loads)), np.array(loads))
                continue
            layer = _first(item, LAYER)
            arrays = routed_of(item, place) if layer is None else []
            if arrays:
                numbered = False
                for array in arrays:
                    for at, row in enumerate(chosen_counts(array)):
                        _add(found, window, at, np.flatnonzero(row), row[row > 0])
                continue
            numbered = numbered and layer is not None
            ids, counts = _of_one_layer(item, layer, place)
            _add(found, window, int(layer or 0), ids, counts)
    keys = list(found)
    return listed(
        path,
        [key[0] for key in keys],
        np.array([key[1] for key in keys], np.float64),
        np.array([key[2] for key in keys], np.float64),
        np.array(list(found.values()), np.float64),
        numbered=numbered,
    )


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that are not empty, with their numbers."""
    with text_of(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except json.JSONDecodeError as error:
                what = f"not a whole JSON lines file (line {number}: {error.msg})"
                raise FormatError(what) from None
            if not isinstance(item, dict):
                raise FormatError(f"line {number} is no object")
            yield number, item


def _of_one_layer(
    item: dict[str, Any], layer: Any, place: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Experts and their tokens: those that tokens chose, or one with its count."""
    chosen, expert = _first(item, CHOSEN), _first(item, EXPERT)
    count = 1
    if chosen is None and expert is not None:
        chosen, count = [expert], _first(item, COUNT)
    tokens = chosen if isinstance(chosen, list) else [None]
    rows = [each if isinstance(each, list) else [each] for each in tokens]
    ids = [each for row in rows for each in row if each is not None or not isinstance(chosen, list)]
    if not all(type(each) is int for each in (*ids, count, 0 if layer is None else layer)):
        raise FormatError(
            f"{place} has no numbers under {LAYER[0]!r} and {CHOSEN[0]!r}, "
            f"or {EXPERT[0]!r} and {COUNT[0]!r}"
        )
    # -1 stands where a batch is padded.
    experts, times = np.unique([each for each in ids if each != -1], return_counts=True)
    return experts.astype(np.int64), count * times.astype(np.float64)


def _add(
    found: _Found, window: str, layer: int, experts: NDArray[Any], counts: NDArray[Any]
) -> None:
    for expert, count in zip(experts.tolist(), counts.tolist(), strict=True):
        found[window, layer, expert] += count


def _first(item: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((item[key] for key in keys if key in item), None)
