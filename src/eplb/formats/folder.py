"""One file, by its ending, or a folder of files as one trace."""

import re
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from eplb.checks import ranges
from eplb.errors import FormatError
from eplb.formats.loads.arrays import read_npy, read_npz
from eplb.formats.loads.json import read_json
from eplb.formats.loads.sglang import Passes, dump_time, joined, read_pt
from eplb.formats.loads.tables import read_csv, read_parquet
from eplb.formats.loads.tensorrt_llm import is_statistics, read_statistics
from eplb.formats.safe import LARGEST, check_regular, frozen, naming
from eplb.loads import LoadTrace

__all__ = ["read_file", "read_folder"]

_READERS: dict[str, Callable[[Path], LoadTrace | Passes]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".pt": read_pt,
}


def read_file(path: Path) -> LoadTrace:
    """The trace in a file."""
    content = _read(path)
    return joined([content]) if isinstance(content, Passes) else content


def read_folder(folder: Path) -> LoadTrace:
    """The trace of a folder: TensorRT-LLM's statistics, a recording, or any files, in order."""
    with naming(folder):
        if is_statistics(folder):
            return read_statistics(folder)
        files = _files(folder)
    first = _read(files[0])
    if isinstance(first, Passes):
        return joined(_recording(first, files))
    return _concatenated(first, files)


def _read(path: Path) -> LoadTrace | Passes:
    with naming(path):
        check_regular(path)
        reader = _READERS.get(path.suffix.lower())
        if reader is not None:
            return reader(path)
        if path.suffix.lower() == ".safetensors":
            raise FormatError(
                f"{path}: is one rank of TensorRT-LLM's statistics: give the folder, "
                "with meta_info.json in it"
            )
        known = ", ".join(_READERS)
        raise FormatError(f"{path}: the ending tells the format, and it is none of {known}")


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


def _concatenated(first: LoadTrace, files: list[Path]) -> LoadTrace:
    """The windows of all files, each file's after those of the file before."""
    values = array("d")
    names: list[str] = []
    times: list[float] | None = []
    top_k, model, layers, shape = first.top_k, first.model, first.layers, first.loads.shape[1:]
    for number, path in enumerate(files):
        trace = first if not number else _read(path)
        if isinstance(trace, Passes):
            raise FormatError(
                f"{path}: has a rank's passes, and {files[0].name} has windows: "
                "keep each recording in a folder of its own"
            )
        if trace.loads.shape[1:] != shape:
            raise FormatError(
                f"{path}: has {trace.num_layers} layers and {trace.num_experts} experts, "
                f"{files[0].name} has {shape[0]} and {shape[1]}"
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
                f"{files[0].name} has {ranges(layers or ()) or 'some without numbers'}"
            )
    loads = frozen(values, (len(names), *shape))
    return LoadTrace(loads, names, None if times is None else np.array(times), top_k, model, layers)
