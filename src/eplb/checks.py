"""Checks of the numbers, names and choices that a user gives, in one place, and the base of values
that stay as they were checked.

Each check returns the value in plain form, or raises an error of the project's own that names the
value and says which values are valid.
"""

import math
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, TypeVar

from eplb.errors import EplbError, OptionError

PLAIN = {"“": '"', "”": '"', "→": "->", "±": "+-", "µ": "u"}
"""What stands for a character that a terminal cannot show."""

LAYERS = 10_000
"""More than any model has."""
GPUS = 1_000_000
"""More than any cluster has."""

_Figures = TypeVar("_Figures")


class Immutable:
    """A value whose arrays stay read-only in copies and after pickling, where numpy's come out
    writable.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for value in state.values():
            if hasattr(value, "flags"):  # an array, without importing numpy to find out
                value.flags.writeable = False


def whole_number(
    value: object,
    name: str,
    *,
    least: int = 1,
    most: int | None = None,
    error: type[EplbError] = OptionError,
) -> int:
    """A whole number of any type that has them, from `least` to `most`.

    Raises:
        OptionError: what is none, or an error of the kind given; the message calls it by `name`.
    """
    allowed = f"{least} or more" if most is None else f"{least} to {most}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # that is the question
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise error(f"{name} is {value!r}: give a whole number, {allowed}")
    if number < least or (most is not None and number > most):
        raise error(f"{name} is {number}: give {allowed}")
    return number


def real_number(
    value: object,
    name: str,
    unit: str = "",
    *,
    least: float = 0.0,
    above: bool = True,
    infinite: bool = False,
    error: type[EplbError] = OptionError,
) -> float:
    """A number above `least`, or from it on, finite unless infinity is allowed too.

    Raises:
        OptionError: what is none, or an error of the kind given; the message calls it by `name`,
            and says in which `unit` it is.
    """
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # of whole numbers beyond every float
            number = float(value)
    too_low = number <= least if above else number < least
    if math.isnan(number) or too_low or (math.isinf(number) and not infinite):
        what = f"a number of {unit}, " if unit else ""
        allowed = f"above {least:g}" if above else f"{least:g} or more"
        raise error(f"{name} is {value!r}: give {what}{allowed}{' or infinity' * infinite}")
    return number


def share_of_one(value: object, name: str, least: float | None = None) -> float:
    """A share from `least` to 1, or above 0 and at most 1."""
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
    if not (number > 0.0 if least is None else number >= least) or number > 1.0:
        allowed = "above 0 and at most 1" if least is None else f"from {least:g} to 1"
        raise OptionError(f"{name} is {value!r}: give a share, {allowed}")
    return number


def rising_layers(
    values: object, number: int | None, name: str, error: type[EplbError] = OptionError
) -> tuple[int, ...]:
    """Numbers that layers have in a model, each higher than the one before.

    Raises:
        OptionError: other values, or not as many as `number`; or an error of the kind given. The
            message calls them by `name`.
    """
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise error(f"{name} are {values!r}: give the number that each layer has in the model")
    layers = tuple(
        whole_number(each, f"a number in {name}", least=0, most=LAYERS - 1, error=error)
        for each in values
    )
    if number is not None and len(layers) != number:
        raise error(
            f"{name} are {len(layers)} numbers for {counted(number, 'layer')}: give one for each"
        )
    for low, high in pairwise(layers):
        if low >= high:
            raise error(f"{name} have {high} after {low}: give rising numbers")
    return layers


def layers_from(text: str, name: str) -> tuple[int, ...]:
    """Layers as a user writes them: "3-60", "1,3,5,7" or both."""
    layers = _numbers_from(text, name, "layers, as 3-60 or 1,3,5,7", LAYERS)
    return rising_layers(layers, None, name)


def gpus_from(text: str, name: str) -> tuple[int, ...]:
    """GPUs as a user writes them: "13,14", "8-15", both, or "none"."""
    if text.strip().lower() == "none":
        return ()
    return tuple(_numbers_from(text, name, "GPUs, as 13,14 or 8-15, or none", GPUS))


def _numbers_from(text: str, name: str, what: str, most: int) -> list[int]:
    """Numbers and runs of numbers, in the order in which they stand, up to `most`."""
    numbers: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not (low.isascii() and low.isdecimal() and (high or low).isdecimal() and len(part) < 20):
            raise OptionError(f"{name} is {text!r}: give numbers of {what}")
        numbers += range(int(low), min(int(high or low), max(most, int(low))) + 1)
    return numbers


def counted(number: int, what: str) -> str:
    """A number of things in words: "1 window", "1,000 windows"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def more(share: float, decimals: int = 0) -> str:
    """A change in words: "2 % more", or "0.3 % fewer" of a negative share with one decimal."""
    fewer = round(100.0 * share, decimals) < 0.0
    return f"{100.0 * abs(share):.{decimals}f} % {'fewer' if fewer else 'more'}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers with runs drawn together: "0-2, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in runs)


def number_of_threads(threads: int | None) -> int:
    """The number of threads to use: what was asked for, or the processors that may be used."""
    if threads is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    return whole_number(threads, "threads")


@dataclass(frozen=True)
class Budget:
    """Most moves at a plan: a number, a share of the slots, or any number where both are None."""

    moves: int | None = None
    share: float | None = None

    def of(self, num_slots: int) -> int | None:
        """The number of moves where there are so many slots in all layers; None for any number."""
        if self.share is None:
            return self.moves
        # 12.5 % of 16 slots are 2, whatever the rounding of 0.125.
        return int(self.share * num_slots + 1e-9)

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100.0 * self.share:g}%"
        return "none" if self.moves is None else str(self.moves)


def budget_from(text: str, name: str) -> Budget:
    """A budget as a user writes it: "800", "5%" of the slots, or "none"."""
    given = text.strip().lower()
    if given == "none":
        return Budget()
    if given.isascii() and given.isdecimal():
        return Budget(moves=int(given))
    try:
        share = float(given.removesuffix("%")) / 100.0
    except ValueError:
        share = math.nan
    if not given.endswith("%") or not 0.0 <= share <= 1.0:
        raise OptionError(
            f"{name} is {text!r}: give a number, 0 or more, a share of the slots "
            'such as "5%", or none'
        )
    return Budget(share=share)


def find_named(
    name: str,
    known: Mapping[str, _Figures],
    what: str,
    instead: str,
    also: Mapping[str, str] | None = None,
) -> _Figures:
    """What is known by a name, or also by another; case, spaces, dashes and who publishes it do not
    matter.

    Raises:
        OptionError: a name that is not known; the message says what it is a name of, has the
            nearest and all of them, and what to give instead.
    """
    plain = {_plain(key): key for key in known}
    plain |= {_plain(other): key for other, key in (also or {}).items()}
    asked = _plain(str(name))
    if asked in plain:
        return known[plain[asked]]
    from difflib import get_close_matches

    close = get_close_matches(asked, plain, n=1, cutoff=0.5)
    names = ", ".join([*known, *(also or {})])
    nearest = f"the nearest is {plain[close[0]]!r}; " if close else ""
    raise OptionError(
        f"the {what} {name!r} is not known: {nearest}known are {names}; for another, give {instead}"
    )


def _plain(name: str) -> str:
    """A name without what people write differently."""
    name = re.sub(r"^(nvidia|amd|huawei|atlas)[\s_-]+", "", name.rsplit("/", 1)[-1].strip().lower())
    return re.sub(r"[^a-z0-9]", "", name)


def printable(text: object) -> str:
    """Text with whatever a terminal would act on written as an escape: names come from files."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def in_few_words(names: Iterable[object]) -> str:
    """Names of files in a few words: all of up to three, or the first and how many more."""
    first, *others = map(str, names)
    if len(others) > 2:
        return f"{first} and {len(others)} more"
    return ", ".join([first, *others])


def in_one_line(error: BaseException) -> str:
    """The kind and the message of any error, in one line, for a message of the project's own."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
