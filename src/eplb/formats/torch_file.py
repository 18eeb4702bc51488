"""`.pt` files, read so that nothing in them runs and nothing in them grows.

`torch.load(weights_only=True)` alone still builds what a file asks for (a buffer of any size, a
tensor that repeats one value 10^12 times), so the list of what to build is looked through first.
"""

import pickletools
import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eplb.errors import FormatError, MissingExtraError
from eplb.formats.source import open_zip, reason

__all__ = ["load_pt", "tensor_array"]

_NAMED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_tensor_v2"
    r"|torch (Byte|Char|Short|Int|Long|Half|BFloat16|Float|Double)Storage"
)
"""What plain dense tensors of real numbers are rebuilt with."""

_NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"})

_OTHERS = re.compile(
    "PROTO|STOP|MARK|EMPTY_(DICT|LIST|TUPLE)|TUPLE[123]?|BINUNICODE|LONG1|(LONG_)?BIN(PUT|GET)"
    "|SETITEMS?|APPENDS?|GLOBAL|BINPERSID|REDUCE"
)

_LARGEST_LIST = 64 << 20
"""Bytes of the list of what to build."""

_PIECE = 1 << 20

_MOST_MEMORY = 160 << 20
"""Bytes that may be built beside tensors: some 4 million token ids of a `per_token` dump."""


def load_pt(path: Path) -> Any:
    """What a `.pt` file holds: dicts, lists, numbers, names and tensors that lie in the file.

    Raises:
        FormatError: a file that is not whole, or asks for anything else.
        MissingExtraError: no torch.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch", f"reading {path}") from None
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise FormatError(
                f"{path}: not a .pt file of torch 1.6 or later "
                "(those before are bare pickles, which are never loaded)"
            )
    with open_zip(path, ".pt") as archive:
        _check_list(path, _list_of(path, archive))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, steps and tokens that nobody looks at never come into memory.
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        if error.errno is not None:
            raise
        raise FormatError(f"{path}: not a whole .pt file ({reason(error)})") from None
    except Exception as error:  # torch raises whatever its parts raise on a bad file
        raise FormatError(f"{path}: not a whole .pt file ({reason(error)})") from None


def tensor_array(path: Path, value: Any, place: str) -> NDArray[Any]:
    """A tensor of a file as an array, without a copy where numpy has its type.

    Raises:
        FormatError: no tensor, or one of no real numbers, or one that repeats values.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        raise FormatError(f"{path}: {place} is {type(value).__name__}, expected a tensor")
    if value.dtype == torch.bool or value.layout != torch.strided:
        raise FormatError(f"{path}: {place} is of {value.dtype}, expected real numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FormatError(
            f"{path}: {place} has shape {tuple(value.shape)}, and only "
            f"{value.untyped_storage().nbytes()} bytes"
        )
    if value.dtype in {torch.float16, torch.bfloat16}:
        value = value.to(torch.float32)
    array: NDArray[Any] = value.detach().numpy()
    return array


def _list_of(path: Path, archive: zipfile.ZipFile) -> bytes:
    """The pickled list of what to build, after the archive's members have been looked through."""
    lists = [info for info in archive.infolist() if info.filename.endswith(".pkl")]
    if len(lists) != 1 or not re.fullmatch(r"[^/]+/data\.pkl", lists[0].filename):
        raise FormatError(f"{path}: not a .pt file of tensors (expected one member 'data.pkl')")
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise FormatError(
                f"{path}: member {info.filename[:80]!r} is packed, torch saves none so"
            )
    if lists[0].file_size > _LARGEST_LIST:
        raise FormatError(
            f"{path}: holds {lists[0].file_size} bytes beside its tensors, "
            f"at most {_LARGEST_LIST} are read"
        )
    # No more is read at once than a zip archive here may ask for.
    with archive.open(lists[0]) as member:
        return b"".join(iter(partial(member.read, _PIECE), b""))


def _check_list(path: Path, pickled: bytes) -> None:
    """Raise a FormatError for a list that names code, or builds more than loads need."""
    memory = 0
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _NUMBERS:
                memory += 40
            elif not _OTHERS.fullmatch(opcode.name):
                raise FormatError(
                    f"{path}: holds pickled {opcode.name}, which is never loaded; "
                    "save plain tensors"
                )
            elif opcode.name == "GLOBAL" and not _NAMED.fullmatch(str(argument)):
                raise FormatError(
                    f"{path}: names {str(argument)[:80]!r}, which is never loaded; "
                    "save plain dense tensors of real numbers"
                )
            else:
                memory += 160
                if isinstance(argument, str):
                    memory += 4 * len(argument)
            if memory > _MOST_MEMORY:
                raise FormatError(
                    f"{path}: holds too much beside its tensors to be loads, over "
                    f"{_MOST_MEMORY} bytes once read; of tokens, record fewer at once"
                )
    except FormatError:
        raise
    except Exception as error:  # pickletools raises whatever its parts raise
        raise FormatError(f"{path}: not a whole .pt file ({reason(error)})") from None
