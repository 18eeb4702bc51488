"""Pages of a Parquet file, looked through before pyarrow makes room for what they claim.

pyarrow takes each page's word for its unpacked length, whatever the footer says. Footer and page
headers are in Thrift's compact protocol: all of it is passed over but for the numbers that tell
where pages lie and how long they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from eplb.errors import FormatError

__all__ = ["check_pages"]

_ROWS, _GROUPS, _COLUMNS, _CHUNK = 3, 4, 1, 3
_NUM_VALUES, _LENGTH, _FIRST_DATA, _DICTIONARY = 5, 7, 9, 11

_FOOTER: dict[int, Any] = {
    _ROWS: {},
    _GROUPS: {_COLUMNS: {_CHUNK: {_NUM_VALUES: {}, _LENGTH: {}, _FIRST_DATA: {}, _DICTIONARY: {}}}},
}
"""Numbers of the fields that are kept, those within them by theirs."""

_UNPACKED, _PACKED, _DATA, _DATA_2 = 2, 3, 5, 8

_PAGE: dict[int, Any] = {
    _UNPACKED: {},
    _PACKED: {},
    _DATA: {1: {}, 2: {}},
    _DATA_2: {1: {}, 4: {}},
}

_LONGEST_HEADER = 1 << 20
"""Bytes of the header of a page, that may tell its smallest and largest value."""

_MOST_ELEMENTS = 200_000
"""Of one list in a footer: columns, or groups of rows."""

_MOST_PAGES = 100_000
"""Of a file, in which they have some 20,000 values each or 1 MiB."""

_DEEPEST = 32
"""Levels of structs and lists within each other, of which Parquet has some ten."""

_BY_PREFIX = 7
"""The encoding of texts that repeat the start of the one before: a page may unpack to any size."""

_LOOSE = 64 << 20
"""Bytes that pages may take, however few values the table has."""


class _OddError(Exception):
    """What pyarrow does not read either, or might read in another way."""


def check_pages(path: Path, file: IO[bytes], footer: bytes) -> None:
    """Raise a FormatError where pages, packed and not, are over three times the table of float64.

    So whatever pyarrow keeps of them at once is not more either.
    """
    try:
        content, _ = _struct(footer, 0, _FOOTER)
        chunks = [
            column.get(_CHUNK) or {}
            for group in content.get(_GROUPS) or []
            for column in group.get(_COLUMNS) or []
        ]
        num_columns = max(len(group[_COLUMNS]) for group in content[_GROUPS]) if chunks else 0
        room = max(_LOOSE, 3 * 8 * _number(content, _ROWS) * num_columns)
        pages = needed = 0
        for chunk in chunks:
            needed += _number(chunk, _LENGTH)
            for unpacked in _unpacked_pages(file, chunk):
                needed += unpacked
                pages += 1
                if pages > _MOST_PAGES:
                    raise _OddError(f"more than {_MOST_PAGES}")
                if needed > room:
                    raise FormatError(
                        f"{path}: its pages claim {needed} bytes and more, expected at most {room}"
                    )
    except (_OddError, IndexError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, _OddError) else "damaged"
        raise FormatError(f"{path}: not a whole Parquet file (pages are {what})") from None


def _unpacked_pages(file: IO[bytes], chunk: dict[int, Any]) -> Iterator[int]:
    """The bytes that each page of a column of a group of rows unpacks to, as pyarrow walks them."""
    at = _number(chunk, _FIRST_DATA)
    # Some writers give 0 for no dictionary.
    if 0 < chunk.get(_DICTIONARY, 0) < at:
        at = _number(chunk, _DICTIONARY)
    end = at + _number(chunk, _LENGTH)
    seen = 0
    while seen < _number(chunk, _NUM_VALUES) and at < end:
        header, size = _page(file, at)
        yield _number(header, _UNPACKED)
        for kind, encoding in ((_DATA, 2), (_DATA_2, 4)):
            if kind in header:
                seen += _number(header[kind], 1)
                if header[kind].get(encoding) == _BY_PREFIX:
                    raise _OddError("of texts in the encoding DELTA_BYTE_ARRAY, not read here")
        at += size + _number(header, _PACKED)


def _page(file: IO[bytes], at: int) -> tuple[dict[int, Any], int]:
    """The header of a page and its length."""
    for size in (512, _LONGEST_HEADER):
        file.seek(at)
        data = file.read(size)
        try:
            return _struct(data, 0, _PAGE)
        except IndexError:
            if len(data) < size:
                break
    raise _OddError("cut short")


def _number(fields: dict[int, Any], key: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value < 1 << 48:
        raise _OddError("without a size, or with one that is none")
    return value


def _struct(
    data: bytes, at: int, kept: dict[int, Any], depth: int = 0
) -> tuple[dict[int, Any], int]:
    """The kept fields of a struct by their numbers, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        wanted = kept.get(number)
        value, at = _value(data, at, head & 15, wanted, depth)
        if wanted is not None:
            if number in fields:
                raise _OddError("described twice")
            fields[number] = value
    return fields, at + 1


def _value(
    data: bytes, at: int, kind: int, kept: dict[int, Any] | None, depth: int
) -> tuple[Any, int]:
    """A whole number, a struct or a list of structs, None for all else, and where it ends."""
    if depth > _DEEPEST:
        raise _OddError("described too deep")
    if kind in {1, 2}:
        return None, at
    if kind == 3:
        return None, at + 1
    if kind in {4, 5, 6}:
        return _zigzag(data, at)
    if kind == 7:
        return None, at + 8
    if kind == 8:
        length, at = _varint(data, at)
        return None, at + length
    if kind in {9, 10}:
        return _list(data, at, kept, depth)
    if kind == 12:
        return _struct(data, at, kept or {}, depth + 1)
    raise _OddError(f"described by a value of kind {kind}")


def _list(data: bytes, at: int, kept: dict[int, Any] | None, depth: int) -> tuple[Any, int]:
    size, kind = data[at] >> 4, data[at] & 15
    at += 1
    if size == 15:
        size, at = _varint(data, at)
    if size > _MOST_ELEMENTS:
        raise _OddError(f"described in a list of {size}")
    values = []
    for _ in range(size):
        # A truth value in a list takes a byte, in a struct none.
        value, at = _value(data, at, 3 if kind in {1, 2} else kind, kept, depth + 1)
        if kept is not None:
            values.append(value)
    return values, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _OddError("described by a number without an end")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
