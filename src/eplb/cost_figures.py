"""Figures of GPUs and models: found by name, and checked."""

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import TypeVar

from eplb.errors import OptionError

__all__ = ["check_number", "check_share", "check_whole", "find_named"]

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
