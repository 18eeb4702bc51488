"""Loads in JSON: `logical_count`, a bare array, and the research benchmark's `load_history`.

Small files are read with the standard library, large ones as a stream, window by window.
"""

import json
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from eplb.errors import FormatError, MissingExtraError
from eplb.formats.source import LARGEST, frozen, reason
from eplb.loads import LoadTrace

__all__ = ["read_json", "unique_keys"]

_SMALL = 8 << 20
"""Bytes of a file that is parsed at once: what Python makes of each takes up to 20 times more."""

_WINDOW = 4 << 20
"""Most bytes of text from one window to the next in a stream, or in one number or string."""

_DEPTH = 16
"""Most brackets open at once in a stream: ijson's time grows with the square of them."""

_CHUNK = 1 << 16

_REAL = {int, float}

_HISTORY = "load_history"
_COUNT = "logical_count"


def read_json(path: Path) -> LoadTrace:
    """Loads in a JSON file: `logical_count` or `load_history` of an object, or a bare array."""
    if path.stat().st_size > _SMALL:
        return _read_stream(path)
    content = _parse(path)
    if not isinstance(content, dict):
        return _collect(path, content, "the array")
    if _HISTORY in content:
        return _collect(path, _windows(path, content[_HISTORY]), _HISTORY)
    if _COUNT in content:
        return _collect(path, content[_COUNT], _COUNT)
    if "num_experts" in content:
        raise FormatError(f"{path}: is one file of TensorRT-LLM's statistics: give its folder")
    keys = ", ".join(repr(key[:40]) for key in list(content)[:5]) or "none"
    raise FormatError(f"{path}: expected the key '{_COUNT}' or '{_HISTORY}', found {keys}")


class _RepeatedKeyError(ValueError):
    """A key stands twice in one object, so that nobody can tell which is meant."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key[:40]!r} stands there twice")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that has no key twice."""
    content = {}
    for key, value in pairs:
        if key in content:
            raise _RepeatedKeyError(key)
        content[key] = value
    return content


class _Noting(dict[str, Any]):
    """A JSON object that notes its repeated keys: ijson's C code breaks where it raises."""

    def __init__(self, repeated: list[str]) -> None:
        super().__init__()
        self._repeated = repeated

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self:
            self._repeated.append(key)
        super().__setitem__(key, value)


def _parse(path: Path) -> Any:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # As floats, whole numbers have no length that would take long to read.
        return json.loads(text, object_pairs_hook=unique_keys, parse_int=float)
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not a JSON file (not UTF-8 text)") from None
    except RecursionError:
        raise FormatError(f"{path}: not a JSON file of loads (nested too deep)") from None
    except ValueError as error:
        raise FormatError(f"{path}: not a JSON file of loads ({reason(error)})") from None


def _windows(path: Path, history: Iterable[Any]) -> Iterator[Any]:
    """The windows in `load_history`, each the [L][E] of its object."""
    if isinstance(history, (dict, str, float)) or history is None:
        raise FormatError(f"{path}: {_HISTORY} is no list of windows")
    for number, item in enumerate(history):
        if not isinstance(item, dict) or "logical_expert_load" not in item:
            raise FormatError(
                f"{path}: {_HISTORY}[{number}] is no object with the key 'logical_expert_load'"
            )
        yield item["logical_expert_load"]


def _collect(path: Path, items: Iterable[Any], name: str) -> LoadTrace:
    """A trace of windows [L][E] as they come, or of one window whose rows [E] come."""
    if isinstance(items, (dict, str, float, bool)) or items is None:
        raise FormatError(f"{path}: {name} is {type(items).__name__}, expected rows of numbers")
    values = array("d")
    shape: tuple[int, ...] = ()
    number = 0
    for number, item in enumerate(items, start=1):
        place = f"{name}[{number - 1}]"
        found = _append(path, values, item, place)
        if shape and found != shape:
            raise FormatError(f"{path}: {place} has shape {found}, those before {shape}")
        if len(values) * 8 > LARGEST:
            raise FormatError(f"{path}: has more than {LARGEST // 8} values up to {place}")
        shape = found
    if not number:
        raise FormatError(f"{path}: {name} is empty, expected rows of numbers")
    return LoadTrace(frozen(values, (number, *shape)))


def _append(path: Path, values: "array[float]", item: Any, place: str) -> tuple[int, ...]:
    """Append a row of numbers, or the rows of a window, and return the shape."""
    if not isinstance(item, list):
        raise FormatError(f"{path}: {place} is {type(item).__name__}, expected a row of numbers")
    if not item:
        raise FormatError(f"{path}: {place} is empty")
    if not isinstance(item[0], list):
        _append_row(path, values, item, place)
        return (len(item),)
    width = len(item[0])
    if not width:
        raise FormatError(f"{path}: {place}[0] is empty")
    for layer, row in enumerate(item):
        if not isinstance(row, list) or len(row) != width:
            raise FormatError(f"{path}: {place}[{layer}] is no row of {width} numbers")
        _append_row(path, values, row, f"{place}[{layer}]")
    return (len(item), width)


def _append_row(path: Path, values: "array[float]", row: list[Any], place: str) -> None:
    others = set(map(type, row)) - _REAL
    if others:
        raise FormatError(f"{path}: {place} has {others.pop().__name__}, expected real numbers")
    try:
        values.fromlist(row)
    except OverflowError:
        raise FormatError(f"{path}: {place} has a number too large for a load") from None


def _read_stream(path: Path) -> LoadTrace:
    first, counts = _look(path)
    if first == b"[":
        return _collect(path, _stream(path, "item"), "the array")
    if first != b"{":
        raise FormatError(f"{path}: not a JSON file of loads (begins with {first!r})")
    for key in (_HISTORY, _COUNT):
        if counts[key] > 1:
            raise FormatError(f"{path}: the key {key!r} stands there {counts[key]} times")
        if counts[key]:
            items = _stream(path, f"{key}.item")
            return _collect(path, _windows(path, items) if key == _HISTORY else items, key)
    raise FormatError(f"{path}: expected the key '{_COUNT}' or '{_HISTORY}', found neither")


def _look(path: Path) -> tuple[bytes, dict[str, int]]:
    """The first byte that is no space, and how often each known key stands in the file."""
    first = b""
    counts = {_HISTORY: 0, _COUNT: 0}
    tails = {_HISTORY: b"", _COUNT: b""}
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            first = first or chunk.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            for key, tail in tails.items():
                quoted = b'"' + key.encode() + b'"'
                counts[key] += (tail + chunk).count(quoted)
                tails[key] = chunk[1 - len(quoted) :]
    return first, counts


def _stream(path: Path, prefix: str) -> Iterator[Any]:
    """What stands at a prefix, item by item, with no more than an item in memory."""
    try:
        import ijson
    except ImportError:
        raise MissingExtraError("ijson", "formats", f"reading {path}") from None
    repeated: list[str] = []
    options = {"map_type": partial(_Noting, repeated), "use_float": True, "buf_size": _CHUNK}
    with path.open("rb") as file:
        guarded = _Guarded(path, file, prefix.count(".") + 1)
        try:
            for item in ijson.items(guarded, prefix, **options):
                guarded.waiting = 0
                if repeated:
                    raise _RepeatedKeyError(repeated[0])
                yield item
        except (ijson.JSONError, _RepeatedKeyError, UnicodeDecodeError, OverflowError) as error:
            # Some come as the text of bytes, and with lines that point at the place.
            where = re.sub(r"^b['\"]", "", str(error)).split("\\n")[0].splitlines()[:1]
            what = where[0].strip()[:120] if where else type(error).__name__
            raise FormatError(f"{path}: not a JSON file of loads ({what})") from None


class _Guarded:
    """A JSON file that refuses to be read on where parsing it would take ever more memory.

    Attributes:
        waiting: bytes read since the last whole item; what stands outside of all items is kept by
            nobody, and does not count.
    """

    def __init__(self, path: Path, file: IO[bytes], outside: int) -> None:
        self.waiting = 0
        self._path = path
        self._file = file
        self._outside = outside
        self._depth = self._run = 0
        self._started = self._inside = self._escaped = False

    def read(self, size: int) -> bytes:
        """Some bytes, after they have been looked through.

        Raises:
            FormatError: more than `_DEPTH` brackets open at once, or more than `_WINDOW` bytes
                without a window, a number or the end of a string.
        """
        chunk = self._file.read(size)
        if size and not self._started:
            chunk = chunk.removeprefix(b"\xef\xbb\xbf")
            self._started = True
        text = chunk[1:] if self._escaped and chunk else chunk
        self._escaped = self._escaped and not chunk
        if b"\\" in text:
            text = re.sub(rb"\\[\x00-\xff]", b"", text)
            self._escaped = text.endswith(b"\\")
        parts = text.split(b'"')
        bare = b"".join(parts[1 if self._inside else 0 :: 2])
        self._inside ^= len(parts) % 2 == 0
        opened = bare.count(b"[") + bare.count(b"{")
        closed = bare.count(b"]") + bare.count(b"}")
        if self._depth + opened > _DEPTH and _deepest(bare, self._depth) > _DEPTH:
            raise FormatError(f"{self._path}: not a JSON file of loads (nested too deep)")
        self._depth += opened - closed
        one = len(parts) == 1 and not opened and not closed and b"," not in bare
        self._run = self._run + len(chunk) if one else 0
        self.waiting = 0 if self._depth <= self._outside else self.waiting + len(chunk)
        if max(self._run, self.waiting) > _WINDOW:
            what = "value" if self._run > _WINDOW else "whole window"
            raise FormatError(f"{self._path}: has more than {_WINDOW} bytes without a {what}")
        return chunk


def _deepest(bare: bytes, depth: int) -> int:
    """Most brackets open at once in text without strings."""
    deepest = depth
    for byte in bare.translate(None, b"0123456789., \t\r\n-+eE:"):
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    return deepest
