"""What a user gives by value: numbers, names and choices, checked in one place.

Each check returns what it was given, made plain, or raises an error of the project's own that names
the value and what would do.
"""

import math
import operator
import os
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TypeVar

from eplb.errors import ClusterError, OptionError

__all__ = [
    "check_number",
    "check_share",
    "check_threads",
    "check_whole",
    "find_named",
    "in_one_line",
    "printable",
    "whole_number",
]

_Figures = TypeVar("_Figures")


def find_named(
    name: str,
    known: Mapping[str, _Figures],
    what: str,
    instead: str,
    also: Mapping[str, str] | None = None,
) -> _Figures:
    """What is known by a name; case, spaces, dashes and who publishes it do not matter.

    Args:
        name: such as "H100" or "deepseek-ai/DeepSeek-V3".
        known: figures by name.
        what: they are, for the message.
        instead: what to give for one that is not known, for the message.
        also: other names of what is known, and the name that it is known by.

    Raises:
        OptionError: a name that is not known; the message has the nearest and all of them.
    """
    plain = {_plain(key): key for key in known}
    plain |= {_plain(other): key for other, key in (also or {}).items()}
    asked = _plain(str(name))
    if asked in plain:
        return known[plain[asked]]
    from difflib import get_close_matches

    close = get_close_matches(asked, plain, n=1, cutoff=0.5)
    nearest = f"the nearest is {plain[close[0]]!r}; " if close else ""
    raise OptionError(
        f"no figures of the {what} {name!r} are known: {nearest}known are {', '.join(known)}; "
        f"for another, give {instead}"
    )


def _plain(name: str) -> str:
    """A name without what people write differently."""
    name = re.sub(r"^(nvidia|amd|huawei|atlas)[\s_-]+", "", name.rsplit("/", 1)[-1].strip().lower())
    return re.sub(r"[^a-z0-9]", "", name)


def check_whole(value: object, name: str) -> None:
    """Raise an OptionError unless a value is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise OptionError(f"{name} is {value!r}: give a whole number, 1 or more")


def check_number(value: object, name: str, unit: str, *, zero: bool = False) -> None:
    """Raise an OptionError unless a value is finite and above 0, or 0 where that is allowed."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if not math.isfinite(number) or number < 0.0 or (number == 0.0 and not zero):
        least = "0 or more" if zero else "above 0"
        raise OptionError(f"{name} is {value!r}: give a number of {unit}, {least}")


def check_share(value: object, name: str) -> None:
    """Raise an OptionError unless a value is above 0 and at most 1."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if not 0.0 < number <= 1.0:
        raise OptionError(f"{name} is {value!r}: give a share, above 0 and at most 1")


def printable(text: object) -> str:
    """Text with whatever a terminal would act on written as an escape: names come from files."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def whole_number(value: object, name: str) -> int:
    """A whole number of 1 or more, of any type that has them.

    Raises:
        ClusterError: what is none; the message calls it by `name`.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        raise ClusterError(f"{name} is {value!r}: give a whole number") from None
    if number < 1:
        raise ClusterError(f"{name} is {number}: give 1 or more")
    return number


def check_threads(threads: int | None) -> int:
    """The number of threads to use: what was asked for, or the processors that may be used.

    Raises:
        ClusterError: what is no whole number of 1 or more.
    """
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    return whole_number(threads, "threads")


def in_one_line(error: BaseException) -> str:
    """The kind and the message of any error, in one line, for a message of the project's own."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
