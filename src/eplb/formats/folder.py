"""One file, by its ending, or a folder of files as one trace."""

import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb.checks import ranges
from eplb.errors import FormatError, OptionError
from eplb.formats.loads.arrays import read_npy, read_npz
from eplb.formats.loads.bare import Bare, understood
from eplb.formats.loads.json import read_json
from eplb.formats.loads.lists import Listed, joined_lists, read_jsonl
from eplb.formats.loads.sglang import NothingRecordedError, Passes, dump_time, joined, read_pt
from eplb.formats.loads.tables import read_csv, read_parquet
from eplb.formats.loads.tensorrt_llm import is_statistics, read_statistics
from eplb.formats.safe import LARGEST, check_regular, frozen, naming, warn
from eplb.loads import LoadTrace

__all__ = ["read_file", "read_folder"]

_RANK = re.compile(
    r"(?<![a-z])(?:rank[_-]?|(?:decode|prefill)_(?=[0-9]+$))(?P<rank>[0-9]+)",
    re.ASCII | re.IGNORECASE,
)
"""How files are named after ranks; `decode_0.csv` is MindIE's."""

_COLUMNS = re.compile(r"(?:decode|prefill)_[0-9]+", re.ASCII)
"""MindIE's files have the experts of a rank, numbered within it, as columns."""

_READERS: dict[str, Callable[[Path], LoadTrace | Passes | Listed | Bare]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".pt": read_pt,
    ".jsonl": read_jsonl,
}


def read_file(path: Path, axes: tuple[str, ...] | None = None) -> LoadTrace:
    """The trace in a file."""
    content = _read(path, axes)
    if isinstance(content, Passes):
        return joined([content])
    return joined_lists([[content]]) if isinstance(content, Listed) else content


def read_folder(folder: Path, axes: tuple[str, ...] | None = None) -> LoadTrace:
    """The trace of a folder: TensorRT-LLM's statistics, a recording, or any files, in order."""
    with naming(folder):
        if is_statistics(folder):
            return read_statistics(folder)
        groups = _by_rank(folder, _files(folder))
    first: LoadTrace | Passes | Listed | None = None
    with suppress(NothingRecordedError):
        first = _read(groups[0][0], axes)
    if isinstance(first, Passes):
        return joined(_recording(first, [path for group in groups for path in group]))
    if isinstance(first, Listed):
        with naming(groups[0][0]):
            return joined_lists([[_list_of(path, axes) for path in group] for group in groups])
    return _concatenated(groups, axes, first)


def _read(path: Path, axes: tuple[str, ...] | None = None) -> LoadTrace | Passes | Listed:
    with naming(path):
        check_regular(path)
        reader = _READERS.get(path.suffix.lower())
        if reader is not None:
            content = reader(path)
            if isinstance(content, Bare):
                return understood(path, content, axes)
            if axes is not None:
                raise OptionError(f"{path}: says what its axes are: leave out --axes (axes)")
            return content
        if path.suffix.lower() == ".safetensors":
            raise FormatError(
                f"{path}: is one rank of TensorRT-LLM's statistics: give the folder, "
                "with meta_info.json in it"
            )
        known = ", ".join(_READERS)
        raise FormatError(f"{path}: the ending tells the format, and it is none of {known}")


def _list_of(path: Path, axes: tuple[str, ...] | None) -> Listed:
    part = _read(path, axes)
    if not isinstance(part, Listed):
        raise FormatError(
            f"{path}: is no list of experts and counts as other files of the folder are: "
            "keep each recording in a folder of its own"
        )
    return part


def _files(folder: Path) -> list[Path]:
    files = [
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in _READERS and not entry.name.startswith(".")
        if not entry.is_dir()
    ]
    if not files:
        raise FormatError(f"{folder}: has no file that ends in any of {', '.join(_READERS)}")
    times = [(time, file) for file in files if (time := dump_time(file)) is not None]
    if len(times) == len(files):
        return [file for _, file in sorted(times)]
    return sorted(files, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A name's parts, numbers by their value: step 2 stands before step 10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", path.name)
    # The length of a number without leading zeros, then its digits: as by value, at any length.
    return [
        (len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (-1, part)
        for part in parts
    ], path.name


def _recording(first: Passes, files: list[Path]) -> Iterator[Passes]:
    yield first
    for path in files[1:]:
        part = _read(path)
        if not isinstance(part, Passes):
            raise FormatError(
                f"{path}: has windows, and {first.path.name} has a rank's passes: "
                "keep each recording in a folder of its own"
            )
        yield part


def _by_rank(folder: Path, files: list[Path]) -> list[list[Path]]:
    """Files that are of one time, one for each rank where their names tell ranks.

    Raises:
        FormatError: ranks of different numbers of files.
    """
    found = [_RANK.search(path.stem) for path in files]
    ranks: dict[str, list[Path]] = {}
    for path, match in zip(files, found, strict=True):
        ranks.setdefault(match["rank"].lstrip("0") if match else "", []).append(path)
    if len(ranks) < 2 or not all(found):
        return [[path] for path in files]
    # Names differ in the rank, and in what follows each other in time.
    for paths in ranks.values():
        paths.sort(key=lambda path: _natural(path.with_name(_RANK.sub("", path.name, count=1))))
    sizes = {rank or "0": len(paths) for rank, paths in ranks.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} of rank {rank}" for rank, size in list(sizes.items())[:4])
        raise FormatError(f"{folder}: has {said} files: each rank needs as many")
    return [list(group) for group in zip(*ranks.values(), strict=True)]


def _together(
    group: list[Path], axes: tuple[str, ...] | None, first: LoadTrace | None
) -> LoadTrace:
    """The trace of a file, or of a file of each rank: tokens added up, or local experts joined."""
    parts: list[LoadTrace] = []
    for path in group:
        part = first if first is not None and not parts else _read(path, axes)
        if not isinstance(part, LoadTrace):
            raise FormatError(
                f"{path}: has a rank's passes or a list, and other files have windows: "
                "keep each recording in a folder of its own"
            )
        if parts and part.loads.shape != parts[0].loads.shape:
            raise FormatError(
                f"{path}: has shape {part.loads.shape}, {group[0].name} has {parts[0].loads.shape}"
            )
        parts.append(part)
    if len(parts) == 1:
        return parts[0]
    loads = [part.loads for part in parts]
    local = _COLUMNS.fullmatch(group[0].stem) is not None
    whole = np.concatenate(loads, axis=2) if local else np.sum(loads, axis=0)
    whole.flags.writeable = False
    return replace(parts[0], loads=whole)


def _concatenated(
    groups: list[list[Path]], axes: tuple[str, ...] | None, read: LoadTrace | None
) -> LoadTrace:
    """The windows of all files, each file's after those of the file before, ranks added up."""
    values = array("d")
    names: list[str] = []
    times: list[float] | None = []
    first: LoadTrace | None = None
    for group in groups:
        path = group[0]
        try:
            trace = _together(group, axes, read if group is groups[0] else None)
        except NothingRecordedError:
            if first is None and group is groups[-1]:
                raise
            warn(path, "is left out: nothing was recorded")
            continue
        if first is None:
            first = trace
            top_k, model, layers, shape = (
                trace.top_k,
                trace.model,
                trace.layers,
                trace.loads.shape[1:],
            )
        if trace.loads.shape[1:] != shape:
            raise FormatError(
                f"{path}: has {trace.num_layers} layers and {trace.num_experts} experts, "
                f"{groups[0][0].name} has {shape[0]} and {shape[1]}"
            )
        if (len(values) + trace.loads.size) * 8 > LARGEST:
            raise FormatError(f"{path}: the folder up to here has over {LARGEST // 8} values")
        values.frombytes(trace.loads.data.cast("B"))
        one = trace.num_windows == 1
        names += [path.stem] if one else [f"{path.stem}/{name}" for name in trace.names]
        times = None if times is None or trace.times is None else times + trace.times.tolist()
        top_k = top_k if top_k == trace.top_k else None
        model = model if model == trace.model else None
        if trace.layers != layers:
            raise FormatError(
                f"{path}: has layers {ranges(trace.layers or ()) or 'without numbers'}, "
                f"{groups[0][0].name} has {ranges(layers or ()) or 'some without numbers'}"
            )
    loads = frozen(values, (len(names), *shape))
    return LoadTrace(loads, names, None if times is None else np.array(times), top_k, model, layers)
