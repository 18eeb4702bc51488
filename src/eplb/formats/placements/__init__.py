"""Placements as files: what each engine loads, written from a Placement and read back to one."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.checks import LAYERS, counted, ranges, rising_layers, whole_number
from eplb.cluster import Cluster, nearest_divisors
from eplb.errors import ClusterError, FormatError, LoadsError, OptionError, PlacementError
from eplb.formats import safe
from eplb.formats.placements import ascend, bare, deepseek, sglang, tensorrt_llm, vllm
from eplb.formats.placements.layout import Layout, contiguous_row
from eplb.formats.placements.matching import matched
from eplb.placement import Placement, empty_slots

__all__ = [
    "ALIVE_ONLY",
    "ENGINES",
    "MOE_ONLY",
    "Engine",
    "check_placement_path",
    "load_placement",
    "save_placement",
]

Engine = Literal["sglang", "vllm", "tensorrt-llm", "ascend", "deepseek"]

ENGINES: tuple[Engine, ...] = get_args(Engine)
"""Whose placements are written and read."""

ALIVE_ONLY = ("tensorrt-llm", "ascend")
"""Those whose placements are for GPUs that are alive."""

_WITH_FEWER_SLOTS = ("vllm", "deepseek")
"""Those whose placements may have GPUs with fewer slots than others, -1 in those they lack."""

MOE_ONLY = ("vllm", "tensorrt-llm", "ascend")
"""Those whose placements have no row for a dense layer."""

_Writer = Callable[[Placement, Path, NDArray[np.bool_], Sequence[int]], None]

_WRITERS: dict[Engine, _Writer] = {
    "sglang": sglang.write_map,
    "vllm": vllm.write_own,
    "tensorrt-llm": tensorrt_llm.write_assignments,
    "ascend": ascend.write_expert_map,
    "deepseek": deepseek.write_arrays,
}

_ENDINGS: dict[Engine, tuple[str, ...]] = {
    "sglang": (".json",),
    "vllm": (".json",),
    "tensorrt-llm": (".yaml", ".yml"),
    "ascend": (".json",),
    "deepseek": (".npz", ".json"),
}

_LOADS = ("logical_count", "load_history")


def check_placement_path(path: str | os.PathLike[str], to: str) -> Engine:
    """The engine that is meant, before any work is done for it.

    Raises:
        OptionError: an unknown engine.
        FormatError: a file with another ending than the engine loads.
    """
    for engine in ENGINES:
        if engine == to:
            target = Path(path)
            special = target.exists() and not target.is_file()
            if not special and target.suffix.lower() not in _ENDINGS[engine]:
                endings = " or ".join(_ENDINGS[engine])
                raise FormatError(f"{target}: a placement for {engine} ends with {endings}")
            return engine
    raise OptionError(f"{to!r} is not a known format of placements: give {', '.join(ENGINES)}")


def save_placement(
    placement: Placement,
    path: str | os.PathLike[str],
    *,
    to: Engine,
    dense: ArrayLike | None = None,
    first_layer: int | None = None,
    layers: Iterable[int] | None = None,
) -> None:
    """Write a placement as an engine loads it, whole or not at all.

    Args:
        placement: what to write. Slots of dead GPUs are -1 for vLLM and in DeepSeek's arrays, and
            hold expert 0 for SGLang, as its elastic expert parallelism has them. TensorRT-LLM and
            vllm-ascend know no dead GPUs: what is written for them is for those alive, numbered
            anew.
        path: a file that ends in `.json` for SGLang, vLLM and vllm-ascend, in `.yaml` for
            TensorRT-LLM, in `.npz` or `.json` for DeepSeek's arrays.
        to: "sglang", "vllm", "tensorrt-llm", "ascend" or "deepseek". vLLM itself has no such file:
            what is written for it is this project's own JSON, for its plug-in and for users' code.
        dense: [L] which layers of the placement are dense, as `LoadTrace.dense` has them. vLLM,
            TensorRT-LLM and vllm-ascend count MoE layers only, so these are left out for them.
        first_layer: the model's number of the placement's first layer, where the loads that it was
            made from left out dense layers before it.
        layers: L numbers of the layers in the model, where they do not follow each other; by
            default those that the placement has. SGLang, which wants all layers, gets rows for
            those in between too.

    Raises:
        OptionError: another engine, or layers that are no L rising numbers.
        FormatError: another ending, or a path that cannot be written.
        LoadsError: dense layers of another number than the placement has, or no others.
        PlacementError: an expert twice on a GPU, which vllm-ascend cannot hold, or GPUs of
            different slots for another engine than vLLM or DeepSeek's arrays.

    Example:
        >>> import tempfile, eplb
        >>> made = eplb.plan([[90.0, 30.0, 20.0, 20.0]], eplb.Cluster(2, 1, 3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     eplb.save_placement(made.placement, f"{folder}/placement.json", to="sglang")
        ...     read = eplb.load_placement(f"{folder}/placement.json", 2)
        >>> read == made.placement
        True
    """
    engine = check_placement_path(path, to)
    count = placement.num_layers
    numbers = _numbers(first_layer, layers, count) or placement.layers or tuple(range(count))
    moe = np.logical_not(_mask(dense, placement.num_layers))
    if not moe.any():
        raise LoadsError("all layers are dense, so there are no experts to place")
    if engine in ALIVE_ONLY:
        placement = placement.survivors
    if engine not in _WITH_FEWER_SLOTS and placement.cluster.slots is not None:
        raise PlacementError(
            f"GPUs have {min(placement.cluster.slots)} to {placement.cluster.slots_per_gpu} slots, "
            f"and {engine} takes as many on each: write {' or '.join(_WITH_FEWER_SLOTS)}"
        )
    _WRITERS[engine](placement, Path(path), moe, numbers)


def load_placement(
    path: str | os.PathLike[str],
    num_gpus: int | None = None,
    num_nodes: int | None = None,
    *,
    num_experts: int | None = None,
    dense: ArrayLike | None = None,
    first_layer: int | None = None,
    layers: Iterable[int] | None = None,
    placement_layers: Iterable[int] | None = None,
) -> Placement:
    """The placement in a file of any engine, told by what is in it.

    Besides what `save_placement` writes: SGLang's `.pt` with `physical_to_logical_map`, dumps of
    its recorder in the modes `per_pass` and `per_token` (the placement that ran then), a whole
    configuration of TensorRT-LLM that holds a balancer's, and a bare array [L, P] in JSON or
    `.npy`. Nothing in a file is ever run.

    Rows of layers that the loads do not have are left out, which the log of `eplb.formats` tells. A
    GPU that has -1 in all its slots, in all layers, is dead; one that has it in its last slots, in
    all layers, has fewer slots than others.

    Args:
        path: the file.
        num_gpus: GPUs that it is for; SGLang, TensorRT-LLM and bare arrays do not tell.
        num_nodes: nodes that they stand on, 1 where nothing tells.
        num_experts: experts that the model has, to be held against the file's.
        dense: [L] which layers of the loads are dense, as `LoadTrace.dense` has them: rows of the
            file are put at the layers that they are for, and dense layers without a row laid out as
            engines start. Without it the placement has the layers of the file.
        first_layer: the model's number of the loads' first layer, where others follow one by one.
        layers: L numbers that the loads' layers have in the model, as `LoadTrace.layers` has them.
        placement_layers: numbers that the file's rows have in the model, where it does not tell.

    Raises:
        FormatError: a file that cannot be read, is no placement, or is one of another model or
            for other GPUs; the message begins with its path.
        OptionError: a file that does not say how many GPUs it is for, and no num_gpus; layers that
            are no rising numbers.
        ClusterError: GPUs that its slots do not divide over, or nodes that do not divide the GPUs.
        LoadsError: a `dense` that is no list of layers.
        MissingExtraError: a format whose package is not installed.

    Example:
        >>> import json, pathlib, tempfile, eplb
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "placement.json"
        ...     text = json.dumps({"physical_to_logical_map": [[0, 1, 2, 3, 0, 1]]})
        ...     _ = path.write_text(text)
        ...     placement = eplb.load_placement(path, num_gpus=2)
        >>> placement.cluster.slots_per_gpu, placement.logcnt.tolist()
        (3, [[2, 2, 1, 1]])
    """
    source = Path(path)
    mask = None if dense is None else _mask(dense, None)
    numbers = _numbers(first_layer, layers, None if mask is None else len(mask))
    with safe.naming(source):
        if not source.exists():
            raise FormatError("does not exist")
        safe.check_regular(source)
        layout = _layout_of(source)
        if num_experts is not None:
            layout = _without_shared(source, layout, num_experts, num_gpus)
        found = int(layout.rows.max()) + 1
        if num_experts is not None and found != num_experts:
            raise FormatError(
                f"has experts 0 to {found - 1}, expected 0 to {num_experts - 1}: "
                "it is of another model"
            )
        cluster = _cluster_of(source, layout, num_gpus, num_nodes)
        _check_whole(layout, found, cluster)
        if placement_layers is not None:
            named = rising_layers(placement_layers, len(layout.rows), "placement_layers")
            layout = replace(layout, layers=list(named), every_layer=False)
        start = contiguous_row(found, cluster)
        phy2log, numbers = _aligned(source, layout, start, mask, numbers, first_layer)
        return Placement(phy2log, found, cluster, numbers)


def _layout_of(path: Path) -> Layout:
    """The layout in a file, by what it begins with and which keys it has."""
    with path.open("rb") as file:
        head = file.read(6)
    if head == b"\x93NUMPY":
        return bare.read_array(safe.read_npy(path))
    if head[:2] == b"PK":
        names = safe.zip_names(path, ".npz or .pt")
        if any(name.endswith(".npy") for name in names):
            return deepseek.read_npz_maps(path)
        if any(name.endswith("/data.pkl") for name in names):
            return _layout_in_pt(path)
        raise FormatError("is an archive of no arrays and no tensors")
    text = safe.read_text(path)
    first = text.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    yaml = path.suffix.lower() in _ENDINGS["tensorrt-llm"] or first not in {b"{", b"["}
    content = tensorrt_llm.read_yaml(path, text) if yaml else safe.read_json_text(text)
    if isinstance(content, list):
        return bare.read_list(content)
    if not isinstance(content, dict):
        raise FormatError(f"is no placement, but {type(content).__name__}")
    return _layout_in(path, content)


def _layout_in_pt(path: Path) -> Layout:
    content = safe.load_pt(path)
    if not isinstance(content, dict):
        return bare.read_array(safe.tensor_array(content, "the file"))
    if deepseek.MAP in content:
        return deepseek.read_tensors(content)
    if sglang.MAP in content or sglang.LAST in content:
        return sglang.read_pt_map(content)
    raise FormatError(
        f"is no placement: expected the key {sglang.MAP!r}, {sglang.LAST!r} or {deepseek.MAP!r}"
    )


def _layout_in(path: Path, content: dict[Any, Any]) -> Layout:
    if vllm.MARK in content:
        return vllm.read_own(content)
    if sglang.MAP in content:
        return sglang.read_map(content)
    if deepseek.MAP in content:
        return deepseek.read_arrays(content)
    if not ascend.KEYS.isdisjoint(content):
        return ascend.read_expert_map(content)
    if not (tensorrt_llm.KEYS | {"moe_config"}).isdisjoint(content):
        return tensorrt_llm.read_assignments(content)
    if vllm.SNAPSHOTS in content:
        return vllm.read_snapshots(content)
    found = bare.read_by_layer(content) or bare.read_models(
        path, content, lambda model: _layout_in(path, model)
    )
    if found is not None:
        return found
    if any(key in content for key in _LOADS):
        raise FormatError("holds loads, and no placement")
    keys = ", ".join(repr(key)[:40] for key in list(content)[:5]) or "none"
    raise FormatError(
        f"is no placement: expected a key as 'physical_to_logical_map', 'layer_list', "
        f"'initial_global_assignments' or 'phy2log', found {keys}"
    )


def _without_shared(path: Path, layout: Layout, num_experts: int, num_gpus: int | None) -> Layout:
    """The layout without experts beyond the model's that each GPU has, in each layer."""
    gpus = layout.num_gpus or num_gpus
    if gpus is None or layout.rows.max() < num_experts or layout.rows.shape[1] % gpus:
        return layout
    by_gpu = layout.rows.reshape(len(layout.rows), gpus, -1)
    shared = np.unique(by_gpu[by_gpu >= num_experts])
    if not all((by_gpu == expert).sum(axis=2).all() for expert in shared):
        return layout
    own = by_gpu < num_experts
    if np.unique(own.sum(axis=2)).size > 1 or not own.any():
        return layout
    ids = ranges(shared.tolist())
    safe.warn(
        path,
        f"expert {ids} is on every GPU, and the loads have experts 0 to {num_experts - 1}: "
        "it is left out as a shared expert",
    )
    return replace(layout, rows=by_gpu[own].reshape(len(layout.rows), -1))


def _check_whole(layout: Layout, num_experts: int, cluster: Cluster) -> None:
    """Raise where a layer lacks an expert that another has, or a GPU alive has an empty slot."""
    num_slots, none = cluster.num_held, empty_slots(cluster)
    for row, name in zip(layout.rows, layout.names, strict=True):
        empty = np.flatnonzero(row < 0)
        if empty.size > len(row) - num_slots:
            slot = next(each for each in empty.tolist() if not none[each])
            raise FormatError(
                f"{name}[{slot}] is -1, expected a number from 0 on: empty slots are the "
                "last ones of a GPU, or all, in all layers"
            )
        # Numbers may be in the millions where slots are few: no array is made for them.
        held = np.unique(row[row >= 0])
        if held.size < num_experts:
            missing = np.flatnonzero(held != np.arange(held.size))
            expert = int(missing[0]) if missing.size else held.size
            raise FormatError(
                f"{name} has no slot for expert {expert}, and {num_slots} slots for "
                f"experts 0 to {num_experts - 1}: each expert needs one"
            )


def _cluster_of(path: Path, layout: Layout, num_gpus: int | None, num_nodes: int | None) -> Cluster:
    for told, asked, what in (
        (layout.num_gpus, num_gpus, "GPUs"),
        (layout.num_nodes, num_nodes, "nodes"),
    ):
        if told is not None and asked is not None and told != asked:
            raise FormatError(f"is for {told} {what}, but {asked} are given")
    gpus = num_gpus if layout.num_gpus is None else layout.num_gpus
    if gpus is None:
        raise OptionError(
            f"{path}: a file of {layout.engine} does not say how many GPUs it is for: "
            "give num_gpus (--gpus)"
        )
    nodes = num_nodes if layout.num_nodes is None else layout.num_nodes
    slots = layout.rows.shape[1]
    if isinstance(gpus, int) and gpus > 0 and slots % gpus:
        raise ClusterError(
            f"{path}: {slots} slots do not divide over {gpus} GPUs: "
            f"{nearest_divisors(slots, gpus)} GPUs would"
        )
    try:
        cluster = Cluster.with_slots(slots, gpus, 1 if nodes is None else nodes)
        by_gpu = layout.rows.reshape(len(layout.rows), gpus, -1)
        # Slots that no layer has anything in, nor in those behind them, are none.
        used = np.asarray((by_gpu >= 0).any(axis=0))
        size = used.shape[1] - np.argmax(used[:, ::-1], axis=1)
        dead = np.flatnonzero(np.logical_not(used.any(axis=1))).tolist()
        return replace(cluster, slots=tuple(size.tolist())).without(dead)
    except ClusterError as error:
        raise ClusterError(f"{path}: {error}") from None


def _aligned(
    path: Path,
    layout: Layout,
    start: NDArray[np.int64],
    dense: NDArray[np.bool_] | None,
    layers: tuple[int, ...] | None,
    first_layer: int | None,
) -> tuple[NDArray[np.int64], tuple[int, ...] | None]:
    """[L, P] rows at the layers of the loads, as engines start where there is none, and numbers."""
    if dense is None and layers is not None:
        dense = np.zeros(len(layers), np.bool_)
    if dense is None:
        kept = [row for row, layer in enumerate(layout.layers) if layer >= (first_layer or 0)]
        if layout.layers and not kept:
            raise FormatError(f"has no layer from {first_layer} on")
        numbers = tuple(layout.layers[row] for row in kept) or None
        return layout.rows[kept] if kept else layout.rows, numbers
    rows = matched(path, layout, dense, layers)
    return np.where((rows < 0)[:, None], start, layout.rows[rows]), layers


def _numbers(
    first_layer: int | None, layers: Iterable[int] | None, count: int | None
) -> tuple[int, ...] | None:
    """Numbers of the layers that are asked for, None where nothing was told."""
    if layers is not None:
        if first_layer is not None:
            raise OptionError("first_layer and layers say the same: give one of them")
        return rising_layers(layers, count, "layers")
    if first_layer is None:
        return None
    first = whole_number(first_layer, "first_layer", least=0, most=LAYERS - 1)
    return None if count is None else tuple(range(first, first + count))


def _mask(dense: ArrayLike | None, num_layers: int | None) -> NDArray[np.bool_]:
    """[L] which layers are dense."""
    if dense is None:
        return np.zeros(num_layers or 0, np.bool_)
    mask = np.asarray(dense)
    if mask.dtype != np.bool_ or mask.ndim != 1 or not mask.size:
        raise LoadsError(
            f"dense has shape {mask.shape} of {mask.dtype}: give a truth value for each layer"
        )
    if num_layers is not None and len(mask) != num_layers:
        raise LoadsError(f"dense has {counted(len(mask), 'layer')}, the placement {num_layers}")
    return mask
