"""Loads in JSON, under `logical_count` as SGLang takes them, `load_history` as ADRS has them,
`snapshots` as branches of vLLM write them, or `routed_experts` as vLLM returns them.

A file of any size is read window by window: Python's own objects take twenty times the memory of
the text that they come from, so no more than one window is ever made of them.
"""

import json
import re
from array import array
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError
from eplb.formats.loads.bare import Bare
from eplb.formats.safe import LARGEST, frozen, reason, text_of, unique_keys
from eplb.loads import LoadTrace

_LONGEST = 8 << 20
"""Characters of one window, or of a row where a file has one window; the largest known has 2 MB."""

_PIECE = 1 << 20
"""Characters that are read at once, and least ahead: no number is cut where it could go unseen."""

_SPACE = re.compile(r"[ \t\r\n]*")

_REAL = {int, float}

_HISTORY = "load_history"
_COUNT = "logical_count"
_SNAPSHOTS = "snapshots"
_ROUTED = ("prompt_routed_experts", "routed_experts")
_MAP = "physical_to_logical_map"
SNAPSHOT_KEYS = ("window_expert_load", _MAP)

_ANSWERS = ("choices", "outputs")
"""Lists of completions, each with its own tokens."""


def read_json(path: Path) -> LoadTrace | Bare:
    """Loads in a JSON file, compressed or not: under a key of an object, or a bare array."""
    with text_of(path) as file:
        text = _Text(file)
        if text.next() == "{":
            found = _read_object(path, text)
        else:
            found = Bare(_collect(text.elements(), "the array"))
        text.end()
        return found


def _read_object(path: Path, text: "_Text") -> LoadTrace | Bare:
    found: dict[str, NDArray[np.float64]] = {}
    routed: list[NDArray[np.float64]] = []
    others: list[str] = []
    for key in text.members():
        if key in found:
            raise FormatError(f"the key {key!r} stands there twice")
        if key == _HISTORY:
            found[key] = _collect(_windows(text.elements()), key)
        elif key == _SNAPSHOTS:
            of_file = found.get(_MAP)
            found[key] = _collect(_logical(text.elements(), of_file), key)
        elif key in {_COUNT, _MAP}:
            found[key] = _collect(text.elements(), key)
        elif key in _ROUTED:
            values = text.elements()
            if values is not None:
                routed.append(_tokens(values, key))
        elif key in _ANSWERS:
            for number, item in enumerate(_list(text.elements(), key)):
                routed += routed_of(item, f"{key}[{number}]")
        else:
            others = [*others, key][:5]
            text.skip()
    for key in (_HISTORY, _SNAPSHOTS, _COUNT):
        if key in found:
            return LoadTrace(found[key])
    if routed:
        shapes = {each.shape[1:] for each in routed}
        if len(shapes) > 1:
            raise FormatError(f"has tokens of shapes {', '.join(map(str, sorted(shapes)))}")
        return Bare(np.concatenate(routed), _ROUTED[-1])
    if "num_experts" in others:
        raise FormatError("is one file of TensorRT-LLM's statistics: give its folder")
    if _MAP in found:
        raise FormatError(f"is a placement, and no loads: `eplb evaluate {path} LOADS` scores it")
    keys = ", ".join(repr(key[:40]) for key in others) or "none"
    raise FormatError(
        f"expected the key '{_COUNT}' or '{_HISTORY}', found {keys} ('{_SNAPSHOTS}' and "
        f"'{_ROUTED[-1]}' are read too)"
    )


def routed_of(item: Any, place: str) -> list[NDArray[np.float64]]:
    """[tokens, layers, k] each: the experts of a response's tokens, in it or its answers."""
    if not isinstance(item, dict):
        return []
    found = [
        _tokens(value, f"{place}.{key}") for key in _ROUTED if (value := item.get(key)) is not None
    ]
    for key in _ANSWERS:
        for number, answer in enumerate(item.get(key) or ()):
            found += routed_of(answer, f"{place}.{key}[{number}]")
    return found + routed_of(item.get("meta_info"), f"{place}.meta_info")


def _tokens(values: Any, name: str) -> NDArray[np.float64]:
    """The experts [tokens, layers, k] of tokens, or [layers, k] of one."""
    if isinstance(values, str):
        raise FormatError(
            f"{name} is text: decode it, and give an array [tokens, layers, k], as in .npy"
        )
    array = _collect(values, name)
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3:
        raise FormatError(f"{name} has shape {array.shape}, expected [tokens, layers, k]")
    return array


def _list(items: Any, name: str) -> Iterator[Any]:
    if not isinstance(items, Iterator):
        raise FormatError(f"{name} is {type(items).__name__}, expected a list")
    return items


class _Text:
    """A JSON text that is read value by value, with little more than one value in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._decode = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode
        self._text = ""
        self._at = self._dropped = 0
        self._more = True

    def next(self) -> str:
        """The next character that is no space, which stays; none at the end."""
        while True:
            if self._more and len(self._text) - self._at < _PIECE:
                self._read_on()
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text) or not self._more:
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """The next value as a whole."""
        self.next()
        try:
            value, self._at = self._decode(self._text, self._at)
        except json.JSONDecodeError as error:
            if self._more and len(self._text) - self._at < _LONGEST:
                self._read_on()  # It may only be cut.
                return self.value()
            if self._more and error.pos > len(self._text) - 20:
                what = f"has more than {_LONGEST} characters without a whole window"
                raise FormatError(what) from None
            raise self._error(error.msg, error.pos) from None
        except (ValueError, RecursionError) as error:
            raise self._error(reason(error), self._at) from None
        return value

    def elements(self) -> Any:
        """An iterator over the array that comes next, or the value that is no array."""
        return self._elements() if self.next() == "[" else self.value()

    def members(self) -> Iterator[str]:
        """The keys of the object that comes next; the value of each is read before the next key."""
        for _ in self._places("}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error("Expecting property name", self._at)
            self._expect(":")
            yield key

    def skip(self) -> None:
        """Pass over the next value, an array of any length too."""
        value = self.elements()
        if isinstance(value, Iterator):
            deque(value, maxlen=0)

    def end(self) -> None:
        """Raise a FormatError where anything follows."""
        self._expect("")

    def _elements(self) -> Iterator[Any]:
        for _ in self._places("]"):
            yield self.value()

    def _places(self, close: str) -> Iterator[None]:
        """Stop at each member of the array or object that begins here."""
        self._at += 1
        if self.next() == close:
            self._at += 1
            return
        while True:
            yield
            if self._expect(",", close) == close:
                return

    def _expect(self, *expected: str) -> str:
        found = self.next()
        if found not in expected:
            what = " or ".join(map(repr, expected)) if expected[0] else "the end"
            raise self._error(f"Expecting {what}", self._at)
        self._at += len(found)
        return found

    def _read_on(self) -> None:
        left = self._text[self._at :]
        try:
            more = self._file.read(max(_PIECE, len(left)))
        except UnicodeDecodeError:
            raise FormatError("not a whole JSON file (not UTF-8 text)") from None
        self._more = bool(more)
        self._text = left + more
        self._dropped += self._at
        self._at = 0

    def _error(self, what: str, at: int) -> FormatError:
        return FormatError(f"not a whole JSON file ({what}, character {self._dropped + at})")


def _windows(history: Any) -> Iterator[Any]:
    """The windows in `load_history`, each the [L][E] of its object."""
    if not isinstance(history, Iterator):
        raise FormatError(f"{_HISTORY} is no list of windows")
    for number, item in enumerate(history):
        if not isinstance(item, dict) or "logical_expert_load" not in item:
            raise FormatError(
                f"{_HISTORY}[{number}] is no object with the key 'logical_expert_load'"
            )
        yield item["logical_expert_load"]


def _logical(snapshots: Any, of_file: NDArray[Any] | None) -> Iterator[Any]:
    """Loads of experts in each of the `snapshots` of vLLM's branches, from those of slots; the map
    may stand in each, or once before them.
    """
    if not isinstance(snapshots, Iterator):
        raise FormatError(f"{_SNAPSHOTS} is no list of windows")
    for number, item in enumerate(snapshots):
        if isinstance(item, dict) and of_file is not None:
            item.setdefault(_MAP, of_file.tolist())
        yield snapshot_loads(item, f"{_SNAPSHOTS}[{number}]")


def snapshot_loads(item: Any, place: str) -> list[list[float]]:
    """[L][E] loads of experts of a snapshot, from those of slots; empty slots have expert -1."""
    if not isinstance(item, dict) or not all(key in item for key in SNAPSHOT_KEYS):
        raise FormatError(
            f"{place} is no object with the keys {SNAPSHOT_KEYS[0]!r}, {_MAP!r}; one map "
            "for all may stand before them"
        )
    slots, experts = (_collect(item[key], f"{place}.{key}") for key in SNAPSHOT_KEYS)
    if slots.shape != experts.shape or slots.ndim != 2:
        raise FormatError(f"{place} has loads {slots.shape}, and a map {experts.shape}")
    if not (experts.min() >= -1 and experts.max() < slots.shape[1]):
        raise FormatError(f"{place}.{_MAP} has experts outside its slots")
    if slots[experts == -1].any():
        raise FormatError(f"{place} has load in a slot whose expert is -1")
    width = int(experts.max()) + 1
    return [
        np.bincount(row[row >= 0].astype(np.int64), load[row >= 0], width).tolist()
        for row, load in zip(experts, slots, strict=True)
    ]


def _collect(items: Any, name: str) -> NDArray[np.float64]:
    """The array of windows [L][E] as they come, or of one window whose rows [E] come."""
    items = iter(items) if isinstance(items, list) else items
    if not isinstance(items, Iterator):
        raise FormatError(f"{name} is {type(items).__name__}, expected rows of numbers")
    values = array("d")
    shape: tuple[int, ...] = ()
    number = 0
    for number, item in enumerate(items, start=1):
        place = f"{name}[{number - 1}]"
        found = _append(values, item, place)
        if shape and found != shape:
            raise FormatError(f"{place} has shape {found}, those before {shape}")
        if len(values) * 8 > LARGEST:
            raise FormatError(f"has more than {LARGEST // 8} values up to {place}")
        shape = found
    if not number:
        raise FormatError(f"{name} is empty, expected rows of numbers")
    return frozen(values, (number, *shape))


def _append(values: "array[float]", item: Any, place: str) -> tuple[int, ...]:
    """Append a row of numbers, or the rows of a window, and return the shape."""
    if isinstance(item, dict):
        raise FormatError(
            f"{place} is an object, expected a row of numbers. Objects with "
            "`routed_experts` or `topk_ids` are read from a .jsonl file, each on a line of its own"
        )
    if not isinstance(item, list):
        raise FormatError(f"{place} is {type(item).__name__}, expected a row of numbers")
    if not item:
        raise FormatError(f"{place} is empty")
    if not isinstance(item[0], list):
        _append_row(values, item, place)
        return (len(item),)
    width = len(item[0])
    if not width:
        raise FormatError(f"{place}[0] is empty")
    for layer, row in enumerate(item):
        if not isinstance(row, list) or len(row) != width:
            raise FormatError(f"{place}[{layer}] is no row of {width} numbers")
        _append_row(values, row, f"{place}[{layer}]")
    return (len(item), width)


def _append_row(values: "array[float]", row: list[Any], place: str) -> None:
    others = set(map(type, row)) - _REAL
    if others:
        raise FormatError(f"{place} has {others.pop().__name__}, expected real numbers")
    try:
        values.fromlist(row)
    except OverflowError:
        raise FormatError(f"{place} has a number too large for a load") from None
