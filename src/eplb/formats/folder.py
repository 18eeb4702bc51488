"""One file, by its ending, or a folder of files as one trace."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.loads.arrays import read_npy, read_npz
from eplb.formats.loads.json import read_json
from eplb.formats.loads.sglang import Passes, Steps, dump_time, joined, read_pt
from eplb.formats.loads.tables import read_csv, read_parquet
from eplb.formats.loads.tensorrt_llm import is_statistics, read_statistics
from eplb.formats.safe import LARGEST, check_regular, naming
from eplb.loads import LoadTrace, trace_of
from eplb.merging import Merge, Recording

__all__ = ["read_file", "read_folder"]

_READERS: dict[str, Callable[[Path], LoadTrace | Steps | Passes]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".pt": read_pt,
}


def read_file(path: Path, merge: Merge) -> LoadTrace:
    """The trace in a file."""
    content = _read(path)
    if isinstance(content, Steps):
        return _joined(content, [path], merge)
    trace = joined([content]) if isinstance(content, Passes) else content
    return trace.merged(merge)


def read_folder(folder: Path, merge: Merge) -> LoadTrace:
    """The trace of a folder: TensorRT-LLM's statistics, a recording, or any files, in order."""
    with naming(folder):
        if is_statistics(folder):
            return read_statistics(folder).merged(merge)
        files = _files(folder)
    first = _read(files[0])
    if isinstance(first, Passes):
        return joined(_recording(first, files)).merged(merge)
    return _joined(first, files, merge)


def _read(path: Path) -> LoadTrace | Steps | Passes:
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


def _joined(first: LoadTrace | Steps, files: list[Path], merge: Merge) -> LoadTrace:
    """The windows of all files, each file's after those of the file before, added up as read."""
    recording = Recording(merge)
    said: set[tuple[int | None, str | None]] = set()
    shape: tuple[int, ...] = ()
    for number, path in enumerate(files):
        part = first if not number else _read(path)
        if isinstance(part, Passes):
            raise FormatError(
                f"{path}: has a rank's passes, and {files[0].name} has windows: "
                "keep each recording in a folder of its own"
            )
        pieces, names, times = _windows(part)
        said.add((part.top_k, part.model) if isinstance(part, LoadTrace) else (None, None))
        found = pieces[0].shape[1:]
        shape = shape or found
        if found != shape:
            raise FormatError(
                f"{path}: has {found[0]} layers and {found[1]} experts, "
                f"{files[0].name} has {shape[0]} and {shape[1]}"
            )
        if len(files) > 1:
            stem = path.stem
            names = [stem] if len(names) == 1 else [f"{stem}/{name}" for name in names]
        begin = 0
        for piece in pieces:
            some = slice(begin, begin + len(piece))
            recording.add(piece, names[some], times and times[some])
            begin = some.stop
            if recording.num_bytes > LARGEST:
                raise FormatError(
                    f"{path}: windows up to here have over {LARGEST // 8} values: merge them (auto)"
                )
    top_k, model = (
        None if len(each) > 1 else each.pop() for each in map(set, zip(*said, strict=True))
    )
    return trace_of(recording, top_k, model)


def _windows(
    part: LoadTrace | Steps,
) -> tuple[Sequence[NDArray[Any]], Sequence[str], list[float] | None]:
    if isinstance(part, Steps):
        return part.pieces, part.names, part.times
    return [part.loads], part.names, None if part.times is None else part.times.tolist()
