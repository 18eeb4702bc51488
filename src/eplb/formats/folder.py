"""One file, by its ending, or a folder of files as one trace."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb.checks import in_few_words, ranges
from eplb.errors import FormatError, OptionError
from eplb.formats.loads.arrays import read_npy, read_npz
from eplb.formats.loads.bare import Bare, is_of_one_rank, split_rows, understood
from eplb.formats.loads.json import read_json
from eplb.formats.loads.jsonl import read_jsonl
from eplb.formats.loads.lists import Listed, joined_lists
from eplb.formats.loads.sglang import NothingRecordedError, Passes, dump_time, joined, read_pt
from eplb.formats.loads.tables import read_csv, read_parquet
from eplb.formats.loads.tensorrt_llm import is_statistics, read_statistics
from eplb.formats.safe import check_regular, error_in, naming, warn
from eplb.formats.windows import Reading, Steps, Windows, check_model
from eplb.loads import LoadTrace

_RANK = re.compile(
    r"(?<![a-z])(?:rank[_-]?|(?:decode|prefill)_(?=[0-9]+$))(?P<rank>[0-9]+)",
    re.ASCII | re.IGNORECASE,
)
"""How files are named after ranks; `decode_0.csv` is MindIE's."""

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)

_READERS: dict[str, Callable[[Path], LoadTrace | Steps | Passes | Listed | Bare]] = {
    ".csv": read_csv,
    ".json": read_json,
    ".json.gz": read_json,
    ".npy": read_npy,
    ".npz": read_npz,
    ".parquet": read_parquet,
    ".pt": read_pt,
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
}


def _ending(path: Path) -> str:
    """What tells a file's format."""
    name = path.name.lower()
    return next((each for each in _READERS if name.endswith(each)), path.suffix.lower())


def read_file(path: Path, how: Reading) -> LoadTrace:
    """The trace in a file."""
    content = _read(path, how.axes)
    if isinstance(content, Passes):
        with naming(path):
            return joined([content], Windows(path, how))
    if isinstance(content, Listed):
        content = joined_lists([[content]])
    if isinstance(content, LoadTrace) and is_of_one_rank(path):
        warn(path, "is called like one rank's file: give the folder of all ranks' files")
    return _added_up(path, [[path]], how, content)


def read_folder(folder: Path, how: Reading) -> LoadTrace:
    """The trace of a folder: TensorRT-LLM's statistics, a recording, or any files, in order."""
    with naming(folder):
        if is_statistics(folder):
            return _added_up(folder, [[folder]], how, read_statistics(folder))
        groups = _by_rank(folder, _files(folder))
    return _in_order(folder, [group[0] for group in groups], _read_groups(folder, groups, how))


def _in_order(folder: Path, files: list[Path], trace: LoadTrace) -> LoadTrace:
    """The trace of a folder, in no order where neither names nor times tell one, which is told."""
    kinds, times = _kinds(files), trace.times
    rises = times is not None and (np.diff(times) > 0.0).all()
    if kinds < 2 or trace.num_windows == 1 or rises:
        return trace
    warn(
        folder,
        f"{kinds} kinds of names ({files[0].name} to {files[-1].name}) tell no order in time: its "
        f"{trace.num_windows} windows are workloads in no order, each held out in turn; if they "
        "follow each other, give the files in their order",
    )
    return replace(trace, ordered=False)


def _kinds(files: list[Path]) -> int:
    """How many kinds of names files have, numbers aside: those of one time series have one."""
    return len({_NUMBER.sub("", path.stem) for path in files})


def read_files(sources: list[Path], how: Reading) -> LoadTrace:
    """The trace of several files and folders, one after another; ranks of one time are added up."""
    files: list[Path] = []
    series = True
    for source in sources:
        if not source.is_dir():
            files.append(source)
        elif is_statistics(source):
            raise error_in(source, "is a folder of statistics for each rank: give it alone")
        else:
            found = _files(source)
            series = series and _kinds(found) < 2
            files += found
    together = Path(in_few_words(sources))
    with naming(together):
        groups = _by_rank(together, files, as_given=True)
    trace = _read_groups(together, groups, how)
    return trace if series else _in_order(together, files, trace)


def _read_groups(source: Path, groups: list[list[Path]], how: Reading) -> LoadTrace:
    """The trace of files in order, of which those of a group are of one time."""
    first: LoadTrace | Steps | Passes | Listed | None = None
    with suppress(NothingRecordedError):
        first = _read(groups[0][0], how.axes)
    if isinstance(first, Passes):
        files = [path for group in groups for path in group]
        with naming(source):
            return joined(_recording(first, files), Windows(source, how))
    if isinstance(first, Listed):
        with naming(groups[0][0]):
            lists = [[_list_of(path, how.axes) for path in group] for group in groups]
            return _added_up(source, [[source]], how, joined_lists(lists))
    return _added_up(source, groups, how, first)


def _read(path: Path, axes: tuple[str, ...] | None = None) -> LoadTrace | Steps | Passes | Listed:
    with naming(path):
        check_regular(path)
        reader = _READERS.get(_ending(path))
        if reader is not None:
            content = reader(path)
            if isinstance(content, Bare):
                return understood(path, content, axes)
            if axes is not None:
                raise OptionError(f"{path}: says what its axes are: leave out --axes (axes)")
            return content
        if path.suffix.lower() == ".safetensors":
            raise FormatError(
                "is one rank of TensorRT-LLM's statistics: give the folder, with meta_info.json in "
                "it"
            )
        known = ", ".join(_READERS)
        raise FormatError(f"the ending tells the format, and it is none of {known}")


def _list_of(path: Path, axes: tuple[str, ...] | None) -> Listed:
    part = _read(path, axes)
    if not isinstance(part, Listed):
        raise error_in(
            path,
            "is no list of experts and counts as other files of the folder are: "
            "keep each recording in a folder of its own",
        )
    return part


def _files(folder: Path) -> list[Path]:
    files = [
        entry
        for entry in folder.iterdir()
        if _ending(entry) in _READERS and not entry.name.startswith(".")
        if not entry.is_dir()
    ]
    if not files:
        raise error_in(folder, f"has no file that ends in any of {', '.join(_READERS)}")
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
            raise error_in(
                path,
                f"has windows, and {first.path.name} has a rank's passes: "
                "keep each recording in a folder of its own",
            )
        yield part


def _by_rank(folder: Path, files: list[Path], *, as_given: bool = False) -> list[list[Path]]:
    """Files that are of one time, one for each rank where their names tell ranks."""
    found = [_RANK.search(path.stem) for path in files]
    ranks: dict[str, list[Path]] = {}
    for path, match in zip(files, found, strict=True):
        ranks.setdefault(match["rank"].lstrip("0") if match else "", []).append(path)
    if len(ranks) < 2 or not all(found):
        return [[path] for path in files]
    # Names differ in the rank, and in what follows each other in time.
    for paths in ranks.values() if not as_given else ():
        paths.sort(key=lambda path: _natural(path.with_name(_RANK.sub("", path.name, count=1))))
    sizes = {rank or "0": len(paths) for rank, paths in ranks.items()}
    numbers = sorted(int(rank or "0") for rank in ranks)
    if len(numbers) <= numbers[-1] - numbers[0]:
        missing = next(each for each in range(numbers[0], numbers[-1]) if each not in numbers)
        lacks = f"has files of ranks up to {numbers[-1]}, and none of rank {missing}"
        if is_of_one_rank(files[0]):
            raise FormatError(f"{lacks}: its experts are missing")
        warn(folder, f"{lacks}: the tokens that it counted are missing")
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} of rank {rank}" for rank, size in list(sizes.items())[:4])
        raise FormatError(f"has {said} files: each rank needs as many")
    return [list(group) for group in zip(*ranks.values(), strict=True)]


def _together(
    group: list[Path], axes: tuple[str, ...] | None, first: LoadTrace | Steps | None
) -> Steps:
    """The windows of a file, or of one of each rank: tokens added up, or local experts joined."""
    parts: list[Steps] = []
    for path in group:
        part = first if first is not None and not parts else _read(path, axes)
        if not isinstance(part, LoadTrace | Steps):
            raise error_in(
                path,
                "has a rank's passes or a list, and other files have windows: "
                "keep each recording in a folder of its own",
            )
        parts.append(part if isinstance(part, Steps) else Steps.of(part))
    if len(parts) == 1:
        return parts[0]
    loads = [np.concatenate(part.pieces) for part in parts]
    for path, each in zip(group, loads, strict=True):
        if each.shape != loads[0].shape:
            what = f"has shape {each.shape}, {group[0].name} has {loads[0].shape}"
            raise error_in(path, what)
    if is_of_one_rank(group[0]):
        found = split_rows(group[0], np.concatenate(loads, axis=2)[0])
        return Steps([found], list(map(str, range(len(found)))))
    whole = np.sum(loads, axis=0)
    numbers = [int(match["rank"]) for path in group if (match := _RANK.search(path.stem))]
    counted = None
    if len(numbers) == 1 + max(numbers) - min(numbers):
        counted = np.stack([loads[at].sum(axis=0) for at in np.argsort(numbers)])
    return replace(parts[0], pieces=[whole], counted=counted)


def _added_up(
    source: Path, groups: list[list[Path]], how: Reading, read: LoadTrace | Steps | None
) -> LoadTrace:
    """The windows of all files, each file's after those of the file before, ranks added up."""
    windows = Windows(source, how)
    first: tuple[Path, tuple[int, ...], tuple[int, ...] | None] | None = None
    said: set[tuple[int | None, str | None]] = set()
    ordered = True
    for group in groups:
        path = group[0]
        try:
            part = _together(group, how.axes, read if group is groups[0] else None)
        except NothingRecordedError:
            if first is None and group is groups[-1]:
                raise
            warn(path, "is left out: nothing was recorded")
            continue
        said.add((part.top_k, part.model))
        ordered = ordered and part.ordered
        shape, names, times = part.pieces[0].shape[1:], part.names, part.times
        first = first or (path, shape, part.layers)
        if len(groups) > 1:
            stem = path.stem
            names = [stem] if len(names) == 1 else [f"{stem}/{name}" for name in names]
        begin = 0
        with naming(path):
            check_model(shape, first[1], first[0])
            _check_layers(part.layers, first[2], first[0])
            for piece in part.pieces:
                some = slice(begin, begin + len(piece))
                windows.add(piece, names[some], times and times[some])
                begin = some.stop
        windows.count(part.counted)
    top_k, model = (
        None if len(each) > 1 else each.pop() for each in map(set, zip(*said, strict=True))
    )
    trace = windows.finish(top_k, model, None if first is None else first[2])
    return trace if ordered else replace(trace, ordered=False)


def _check_layers(
    layers: tuple[int, ...] | None, known: tuple[int, ...] | None, first: Path
) -> None:
    """Raise a FormatError where a file has other layers than the first."""
    if layers != known:
        raise FormatError(
            f"has layers {ranges(layers or ()) or 'without numbers'}, {first.name} has "
            f"{ranges(known or ()) or 'some without numbers'}"
        )
