"""Files that engines and users keep loads and placements in.

`loads` and `placements` have a module for each engine and each common format, `folder` reads a
folder of files as one trace, and `safe` holds what all readers share: what a file may be.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from eplb.errors import FormatError, OptionError
from eplb.formats.folder import read_file, read_files, read_folder
from eplb.formats.loads.arrays import write_npz
from eplb.formats.loads.bare import check_axes
from eplb.formats.loads.tables import write_csv, write_parquet
from eplb.formats.placements import load_placement, save_placement
from eplb.formats.safe import naming
from eplb.formats.windows import Reading
from eplb.loads import LoadTrace
from eplb.merging import Merge, check_merge

__all__ = ["load_placement", "load_trace", "save_placement", "save_trace"]

_WRITERS = {".csv": write_csv, ".npz": write_npz, ".parquet": write_parquet}


def load_trace(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    axes: str | None = None,
    counters: bool = False,
    merge: Merge = "auto",
) -> LoadTrace:
    """The trace in a file or a folder, in any format that an engine or this project writes.

    - `.json`: `{"logical_count": [L][E] or [T][L][E]}` or the bare array, as SGLang takes it;
      `{"load_history": [{"logical_expert_load": [L][E]}, ...]}`, as the research benchmark has it.
      `.json.gz` is the same, compressed.
    - `.pt`: dumps of SGLang's expert recorder in all its modes, without steps that were not used.
      Their times are when the files were written, known where they rise from window to window. Or
      a bare tensor, as vllm-ascend's tool takes it.
    - `.npy`, `.npz`, `.csv`, `.parquet`: one array or table [L, E], for arrays also [T, L, E]; or
      what `save_trace` wrote. A table's heading, and a column that numbers its layers, are left
      out.
    - A folder of TensorRT-LLM's statistics, or of a recording's files by rank, or of any files
      above: these follow each other by the time or the numbers in their names, and windows are
      named after them. Hidden files, folders and other endings are passed over.
    - Several files or folders, as a list: one after another, in the order given.

    What is taken for something that it is not certain to be is told in the log of `eplb.formats`.

    Nothing in a file is ever run, and loads that would take more than 4 GiB are refused before
    memory is taken. Reading a whole file takes at most 256 MiB and four times an array of all its
    windows. Pages of `.pt` and `.npy` files do not count: these are mapped, and the system takes
    them back where memory is short.

    Args:
        path: a file, whose ending tells the format, or a folder, or a list of these.
        axes: what the axes of plain arrays are, where they are not (windows,) layers, experts:
            "layers,ranks,local" for experts numbered within their rank, "ranks,layers,experts" for
            ranks to be added up, "tokens,layers,choices" for the experts that tokens chose.
        counters: whether counts are since the engine's start, so that windows are what each adds.
        merge: which windows are added up while they are read. "auto" adds up neighbours until
            windows differ by more than chance, as those of a forward pass each do not, and never
            to fewer than 12; `LoadTrace.merging` tells. "none"; "all"; or a number in a row.

    Returns:
        All windows and all layers that the source has; those of dense layers are all zero.

    Raises:
        FormatError: a file that cannot be read, or is not what its ending says; the message begins
            with the path of that file.
        MissingExtraError: a format whose package is not installed.
        OptionError: axes that do not say what each is, or that the source tells itself; another way
            to merge.

    Example:
        >>> import json, pathlib, tempfile, eplb
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "loads.json"
        ...     _ = path.write_text(json.dumps({"logical_count": [[90, 30, 20, 20]]}))
        ...     trace = eplb.load_trace(path)
        >>> trace
        LoadTrace(1 window, 1 layer, 4 experts)
    """
    merge = check_merge(merge)
    how = Reading(None if axes is None else check_axes(axes), counters, merge)
    sources = [Path(each) for each in ([path] if isinstance(path, str | os.PathLike) else path)]
    if not sources:
        raise OptionError("no file is given to read loads from")
    for source in sources:
        with naming(source):
            if not source.exists():
                raise FormatError("does not exist")
    if len(sources) > 1:
        return read_files(sources, how)
    (source,) = sources
    with naming(source):
        return (read_folder if source.is_dir() else read_file)(source, how)


def save_trace(trace: LoadTrace, path: str | os.PathLike[str]) -> None:
    """Write a trace so that `load_trace` reads it back unchanged, whole or not at all.

    Example:
        >>> import tempfile
        >>> import eplb
        >>> trace = eplb.LoadTrace([[[90.0, 30.0, 20.0, 20.0]]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     eplb.save_trace(trace, f"{folder}/loads.npz")
        ...     eplb.load_trace(f"{folder}/loads.npz") == trace
        True

    Args:
        trace: what to write.
        path: a file that ends in `.npz` (the compact form, for this project and numpy, the only one
            with `sources`), `.csv` or `.parquet` (a long table: window, time where known, layer,
            and a column an expert).

    Raises:
        FormatError: another ending, or a path that cannot be written.
        MissingExtraError: Parquet without pyarrow.
    """
    target = Path(path)
    writer = _WRITERS.get(target.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise FormatError(f"{target}: the ending tells the format, and it is none of {known}")
    writer(trace, target)
