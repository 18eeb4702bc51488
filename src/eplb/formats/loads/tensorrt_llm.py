"""TensorRT-LLM's statistics of experts: the folder that `EXPERT_STATISTIC_PATH` names.

`meta_info.json` has `num_experts` and `num_experts_per_token`; `rank{r}.safetensors` has for each
"{iteration}_{layer}" the tokens [E] that the rank sent to each expert. Ranks of other pipeline
stages have other layers.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, MissingExtraError
from eplb.formats import safe
from eplb.loads import LoadTrace

_META = "meta_info.json"
_RANK = re.compile(r"rank(\d{1,6})\.safetensors", re.ASCII)
_KEY = re.compile(r"(\d{1,18})_(\d{1,18})", re.ASCII)

_MOST_LAYERS = 10_000

_Stages = dict[frozenset[int], tuple[Path, dict[tuple[int, int], str]]]
"""By its layers, a rank of each pipeline stage, and its names."""

_MOST_EXPERTS = 1_000_000


def is_statistics(folder: Path) -> bool:
    """Whether a folder holds statistics of TensorRT-LLM."""
    return any(entry.name == _META or _RANK.fullmatch(entry.name) for entry in folder.iterdir())


def read_statistics(folder: Path) -> LoadTrace:
    """The trace of a folder of statistics: a window an iteration, ranks added up, and what each
    rank counted in all.
    """
    try:
        import safetensors
    except ImportError:
        raise MissingExtraError("safetensors", "formats", f"reading {folder}") from None
    num_experts, top_k = _read_meta(folder / _META)
    files = _rank_files(folder)
    stages: _Stages = {}
    parts: dict[int, NDArray[np.float64]] = {}
    by_rank: dict[int, list[NDArray[np.float64]]] = {}
    for path in files:
        with safe.naming(path):
            safe.check_regular(path)
            with (
                safe.reading("safetensors"),
                safetensors.safe_open(str(path), framework="np") as file,
            ):
                keys = _keys(list(file.keys()))
                rows = _check_stage(path, keys, stages)
                at_most = max(len(rows), len(files)) * _num_layers(stages) * num_experts
                safe.check_size("the folder", at_most)
                for layer in {layer for _, layer in keys}:
                    by_rank.setdefault(layer, []).append(np.zeros(num_experts))
                for (iteration, layer), key in keys.items():
                    if layer not in parts:
                        parts[layer] = np.zeros((len(rows), num_experts))
                    counts = _counts(key, file.get_tensor(key), num_experts)
                    parts[layer][rows[iteration]] += counts
                    by_rank[layer][-1] += counts
    total = np.zeros((len(rows), _num_layers(stages), num_experts))
    for layer in sorted(parts):
        total[:, layer] = parts.pop(layer)
    total.flags.writeable = False
    sources = None
    if len(set(map(len, by_rank.values()))) == 1:
        # Each stage has as many ranks.
        sources = np.zeros((len(next(iter(by_rank.values()))), *total.shape[1:]))
        for layer, counted in by_rank.items():
            sources[:, layer] = counted
    iterations = sorted(rows)
    with safe.naming(folder):
        layers = tuple(range(total.shape[1]))
        names = list(map(str, iterations))
        return LoadTrace(total, names, top_k=top_k, layers=layers, sources=sources)


def _read_meta(path: Path) -> tuple[int, int]:
    with safe.naming(path):
        if not path.exists():
            raise FormatError("is missing, it stands beside the ranks' files")
        safe.check_regular(path)
        content = safe.read_json_text(safe.read_text(path))
        values = []
        for key in ("num_experts", "num_experts_per_token"):
            value = content.get(key) if isinstance(content, dict) else None
            if type(value) is not int or not 1 <= value <= _MOST_EXPERTS:
                raise FormatError(f"expected {key!r}, a number from 1 to {_MOST_EXPERTS}")
            values.append(value)
        if values[1] > values[0]:
            raise FormatError(f"sends a token to {values[1]} of {values[0]} experts")
    return values[0], values[1]


def _rank_files(folder: Path) -> list[Path]:
    found = {
        int(match[1]): entry
        for entry in sorted(folder.iterdir())
        if (match := _RANK.fullmatch(entry.name))
    }
    for rank in range(max(found, default=0) + 1):
        if rank not in found:
            raise FormatError(f"{folder / f'rank{rank}.safetensors'}: is missing")
    return [found[rank] for rank in sorted(found)]


def _keys(names: list[str]) -> dict[tuple[int, int], str]:
    """Names by iteration and layer."""
    keys = {}
    for name in names:
        match = _KEY.fullmatch(name)
        if match is None:
            raise FormatError(f"has {name[:40]!r}, expected names 'iteration_layer'")
        key = int(match[1]), int(match[2])
        if key in keys:
            raise FormatError(f"has iteration {key[0]}, layer {key[1]} twice")
        if key[1] >= _MOST_LAYERS:
            raise FormatError(f"claims a layer {key[1]}, at most {_MOST_LAYERS} are read")
        keys[key] = name
    if not keys:
        raise FormatError("has no iteration: nothing was recorded")
    return keys


def _check_stage(
    path: Path,
    keys: dict[tuple[int, int], str],
    stages: _Stages,
) -> dict[int, int]:
    """Rows of the iterations, where the rank has all that others of its stage have, no more."""
    layers = frozenset(layer for _, layer in keys)
    iterations = sorted({iteration for iteration, _ in keys})
    own = [stage for other, stage in stages.items() if other & layers]
    for first, expected in own or stages.values():
        if own:
            _check_same(path, keys, first, expected)
        elif {iteration for iteration, _ in expected} != set(iterations):
            raise FormatError(f"has other iterations than {first.name}")
    if len(keys) < len(iterations) * len(layers):
        missing = next(
            (it, la) for it in iterations for la in sorted(layers) if (it, la) not in keys
        )
        raise FormatError(f"lacks iteration {missing[0]}, layer {missing[1]}")
    stages.setdefault(layers, (path, keys))
    return {iteration: row for row, iteration in enumerate(iterations)}


def _num_layers(stages: _Stages) -> int:
    return 1 + max(map(max, stages))


def _check_same(
    path: Path,
    keys: dict[tuple[int, int], str],
    other: Path,
    expected: dict[tuple[int, int], str],
) -> None:
    for some, rest, file, name in ((keys, expected, path, other), (expected, keys, other, path)):
        extra = sorted(rest.keys() - some.keys())
        if extra:
            what = f"lacks iteration {extra[0][0]}, layer {extra[0][1]}, that {name.name} has"
            raise safe.error_in(file, what)


def _counts(key: str, values: NDArray[Any], num_experts: int) -> NDArray[Any]:
    if values.shape != (num_experts,) or values.dtype.kind not in "iu":
        raise FormatError(
            f"{key!r} is {values.dtype} of shape {values.shape}, "
            f"{_META} says {num_experts} whole numbers"
        )
    if values.min() < 0:
        raise FormatError(f"{key!r} has {values.min()} tokens")
    return values
