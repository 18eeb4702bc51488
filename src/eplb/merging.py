"""What a window is: recorded windows, added up in time order until they differ by more than chance.

Engines may record a window for each forward pass: hundreds, of a few tokens each. A share p counted
from n tokens varies by p (1 - p) / n, whatever the load does. So neighbours are added up, half as
many windows each time, while the variance of shares between windows is hardly more than chance
alone makes of it; and further, until neighbours differ clearly, while that takes nothing away from
what differs beyond chance. So loads that change keep their changes.

A recording of any length is read in bounded memory: once there are as many sums as are kept, each
two neighbours become one, and from then on a sum is of twice as many windows.

A few wide windows would blur a change near the end, or have it in one window alone, where nobody
can tell it from an accident. It is looked for in more and smaller ones, with what chance alone
makes of their distances taken off, and windows begin where it was found.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplb.checks import whole_number
from eplb.errors import LoadsError, OptionError

Merge: TypeAlias = int | Literal["auto", "none", "all"]
"""Windows to add up to one: a number of them, or as many as the rule of this module says."""

FEWEST = 12
"""Windows that are left apart whatever they hold: fewer do not show how loads change."""

_CLEAR = 4.0
"""Variance over that of chance from which windows differ clearly (docs/experiments.md)."""

_NEXT_CLEAR = 2.0
"""The same of a window and the next one."""

_KEPT = 0.9
"""Part of the variance beyond chance that is left where nothing is taken away."""

_SMALL = 0.02
"""Chance that hardly matters: standard deviation of an expert's load, over the experts' loads."""

_TOO_ALIKE = 0.5
"""Variance over that of chance below which loads are no counts of single tokens."""

_ONE_LOAD = 1.1
"""Variance over that of chance up to which windows are of one load."""

_CHANGE = 1.75
"""Squared distance across a change over that of other windows, from which loads have clearly
changed (docs/experiments.md).
"""
_BEFORE, _AFTER = 6, 2
"""Windows from which a change can be told, and that show that it stays."""
_PARTS = (24, 20)
"""Windows in which a change is looked for, in one number of them after the other. Of fewer, a late
change has no two after it; more have more noise: in 32, passes of 4 tokens often do not show it."""

_MEMORY = 128 << 20
"""Bytes of the sums that are kept while a recording is read; never fewer than _LEAST_KEPT."""
_LEAST_KEPT = 128

_Loads: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Merging:
    """What became of the windows of a recording.

    Attributes:
        recorded: windows that there were.
        words: what was done in a sentence, None where it was what the user asked for, or nothing.
        changed: the first of the merged windows since the loads clearly changed, 0 where that was
            not seen before they were merged.
    """

    recorded: int
    words: str | None = None
    changed: int = 0


def check_merge(merge: object, name: str = "merge") -> Merge:
    """One of "auto", "none" and "all", or a number of windows, that may be in digits."""
    if merge == "auto" or merge == "none" or merge == "all":  # noqa: PLR1714  # mypy narrows these
        return merge
    if isinstance(merge, str) and not merge.removeprefix("-").isdecimal():
        raise OptionError(f"{name} is {merge!r}: give auto, none, all or a number of windows")
    number = int(merge) if isinstance(merge, str) else merge
    return whole_number(number, "the number of windows to add up", error=LoadsError)


class Recording:
    """Windows as they are read, added up by the rule of this module, not, all, or so many to one,
    in which case a rest is left out.
    """

    def __init__(self, merge: Merge = "auto") -> None:
        self._merge = check_merge(merge)
        self._stride = merge if isinstance(merge, int) else 1 if merge != "all" else 1 << 62
        self._sums: _Loads = np.empty((0, 0, 0))
        self._num_kept = 0
        self._filled = 0
        self._names: list[str] = []
        self._times: list[float] | None = []
        self._recorded = 0

    def bytes_with(self, loads: NDArray[Any]) -> int:
        """Of the sums that there would be with more windows, where none are merged by the rule."""
        return 8 * (self._num_kept * math.prod(loads.shape[1:]) + loads.size // self._stride)

    def add(
        self, loads: NDArray[Any], names: Sequence[str], times: Sequence[float] | None = None
    ) -> None:
        """Add windows [T, L, E] that follow those before, checked, with their names, and times
        where they are known.
        """
        if not self._recorded:
            self._sums = np.empty((0, *loads.shape[1:]))
        self._recorded += len(loads)
        at = 0
        while at < len(loads):
            if self._stride == 1 and (room := self._room(len(loads) - at)):
                some = slice(at, at + room)
                self._sums[self._num_kept : self._num_kept + room] = loads[some]
                self._num_kept += room
                self._name(names[some], times and times[some])
                at = some.stop
                continue
            if not self._filled and self._room(1):
                self._sums[self._num_kept] = 0.0
                self._num_kept += 1
                self._name(names[at : at + 1], times and times[at : at + 1])
            elif not self._filled:
                self._halve()
                continue
            more = loads[at : at + self._stride - self._filled]
            self._sums[self._num_kept - 1] += more.sum(axis=0, dtype=np.float64)
            at += len(more)
            self._filled = (self._filled + len(more)) % self._stride

    def finish(self, top_k: int | None = None) -> tuple[_Loads, list[str], Any, Merging]:
        """The windows [T, L, E], their names, their times where known, and what became of them."""
        if self._filled and isinstance(self._merge, int):
            what = "the number of windows to add up"
            whole_number(self._merge, what, most=self._recorded, error=LoadsError)
            self._num_kept -= 1
        elif self._merge == "auto" and 0 < 2 * self._filled < self._stride:
            # The rest is no window of its own.
            self._num_kept -= 1
            self._sums[self._num_kept - 1] += self._sums[self._num_kept]
        self._name_first(slice(self._num_kept))
        self._sums.resize((self._num_kept, *self._sums.shape[1:]), refcheck=False)
        loads = self._sums
        loads.flags.writeable = False
        names, times, words = self._names, self._times, None
        changed = 0
        if self._merge == "auto":
            number = _clear_windows(loads)
            if number < len(loads):
                first, changed = _first_of_sums(loads, number)
                loads = _added_up(loads, first)
                loads.flags.writeable = False
                names = [names[at] for at in first]
                times = times and [times[at] for at in first]
                why = "in so few tokens, windows differ mostly by chance"
            else:
                why = "more are not kept of a recording"
            if len(loads) < self._recorded:
                words = self._words(loads, top_k, why)
        known = None if times is None else np.array(times, np.float64)
        return loads, names, known, Merging(self._recorded, words, changed)

    def _room(self, wanted: int) -> int:
        """How many sums of those wanted there is room for, which is made."""
        shape = self._sums.shape[1:]
        spare = len(self._sums) // 8
        if self._merge == "auto":
            # An even number, so that all have a neighbour.
            most = max(_LEAST_KEPT, _MEMORY // (8 * math.prod(shape)) // 2 * 2)
            wanted = min(wanted, most - self._num_kept)
            spare = min(spare, most - len(self._sums))
        needed = self._num_kept + wanted
        if needed > len(self._sums):
            self._sums.resize((max(needed, len(self._sums) + spare), *shape), refcheck=False)
        return wanted

    def _name(self, names: Sequence[str], times: Sequence[float] | None) -> None:
        self._names += names
        self._times = None if times is None or self._times is None else [*self._times, *times]

    def _name_first(self, chosen: slice) -> None:
        self._names = self._names[chosen]
        self._times = self._times and self._times[chosen]

    def _halve(self) -> None:
        self._num_kept //= 2
        for number in range(self._num_kept):
            self._sums[number] = self._sums[2 * number] + self._sums[2 * number + 1]
        self._name_first(slice(None, None, 2))
        self._stride *= 2

    def _words(self, loads: _Loads, top_k: int | None, why: str) -> str:
        layers = max(1, int(loads.any(axis=(0, 2)).sum()))
        tokens = float(loads.sum()) / layers / (top_k or 1)
        what = "tokens" if top_k else "routed tokens"
        return (
            f"{self._recorded:,} windows of about {tokens / self._recorded:,.0f} {what} a layer "
            f"were merged into {len(loads)} of about {tokens / len(loads):,.0f}: {why} "
            "(merge none keeps them apart)"
        )


def alike(loads: _Loads) -> bool:
    """Whether windows [T, L, E] differ no more than chance makes windows of one load differ."""
    if len(loads) == 1 or not (unit := _unit(loads)):
        return False
    found = _differ(loads, unit)
    return _TOO_ALIKE <= found.ratio <= max(_ONE_LOAD, 1.0 + 2.0 * found.deviation)


def summed_if_alike(loads: _Loads) -> _Loads:
    """Windows [T, L, E] as they are, or their sum [1, L, E] where they differ by chance alone."""
    return loads.sum(axis=0, keepdims=True) if alike(loads) else loads


def _clear_windows(loads: _Loads) -> int:
    """How many windows [T, L, E] are to become, added up with their neighbours."""
    number = len(loads)
    if number <= FEWEST or not (unit := _unit(loads)):
        return number
    found = _differ(loads, unit)
    while number > FEWEST and found.ratio >= _TOO_ALIKE:
        if found.chance <= _SMALL and found.ratio > _ONE_LOAD:
            break
        half = max(FEWEST, number // 2)
        after = _differ(_added_up(loads, _first_of(len(loads), half)), unit)
        if found.ratio >= _CLEAR and (
            found.next_ratio >= _NEXT_CLEAR or after.beyond < _KEPT * found.beyond
        ):
            break
        number, found = half, after
    return number


def clear_change(number: int, away: Callable[[int], _Loads], chance: float = 0.0) -> int:
    """The first of so many windows since a clear change of the loads, 0 where there was none.

    From a change on, each window is further from all that were before than any window was from
    those before it, or is from those since. The window in which loads change is passed over, as is
    each window's neighbour: where loads drift, it is nearest. So loads that drift, or that changed
    as much before, have no clear change. Most often, the last window shows that there was none.

    Args:
        number: the windows.
        away: gives how far a window is from each of those before it.
        chance: standard deviation that distances have by chance, where what chance makes of them
            on average has been taken off; 0 where it is in them. What is beyond four of it is
            drift, and counts double: now and then a load that wanders goes far at once.
    """
    across = dict.fromkeys(range(_BEFORE, number - _AFTER + 1), np.inf)
    other = dict.fromkeys(across, chance)
    for window in range(number - 1, 1, -1):
        if not across:
            return 0
        apart = away(window)
        for each in list(across):
            if window >= each:
                across[each] = min(across[each], float(apart[: each - 1].min()))
            found = -np.inf
            if window > each:
                found = float(apart[each:].min())
            elif window < each - 1:
                found = float(apart[: window - 1].min())
            if chance:
                found = max(found, 2.0 * found - 4.0 * chance)
            other[each] = max(other[each], found)
            if across[each] <= _CHANGE * other[each]:
                del across[each]
    return min(across, default=0)


def _first_of_sums(loads: _Loads, number: int) -> tuple[list[int], int]:
    """The first of the windows [T, L, E] that each of so many sums is of, and which sum is the
    first since a clear change; it begins there. 0 where there was none.
    """
    windows = len(loads)
    change = _change_in(loads)
    if not change:
        return _first_of(windows, number), 0
    before = min(number - 1, max(1, round(number * change / windows)))
    after = _first_of(windows - change, number - before)
    return [*_first_of(change, before), *(change + each for each in after)], before


def _change_in(loads: _Loads) -> int:
    """The first of windows [T, L, E] of few tokens since a clear change, 0 where there was none.

    Once it is known in which of the wider windows it came, each window in doubt is told by which of
    those before and after it is more like: where s and r are shares before and after, and m those
    of all, by (r - s) / m of its tokens' experts.
    """
    unit = _unit(loads)
    for number in _PARTS:
        parts = _first_of(len(loads), min(number, len(loads)))
        found = clear_change(len(parts), *_apart(_added_up(loads, parts), unit))
        if not found:
            continue
        begin, end = parts[found - 1], parts[found]
        whole = _shares(loads.sum(axis=0))
        before, after = _shares(loads[:begin].sum(axis=0)), _shares(loads[end:].sum(axis=0))
        weight = np.divide(1.0, whole, out=np.zeros_like(whole), where=whole > 0.0)
        middle = ((after**2 - before**2) * weight).sum(axis=1) / 2.0
        doubtful = loads[begin:end]
        like_after = (doubtful * (after - before) * weight).sum(axis=2)
        like_after -= doubtful.sum(axis=2) * middle
        # The sum from each window on to the last one that is in doubt.
        since = np.cumsum(like_after.sum(axis=1)[::-1])[::-1]
        return begin + int(np.argmax([*since, 0.0]))
    return 0


def _shares(loads: _Loads) -> _Loads:
    """Shares of experts of loads [L, E], 0 in a layer without load."""
    total = loads.sum(axis=1, keepdims=True)
    shares: _Loads = np.divide(loads, total, out=np.zeros_like(loads), where=total > 0.0)
    return shares


def _apart(loads: _Loads, unit: int) -> tuple[Callable[[int], _Loads], float]:
    """How far each of the windows [T, L, E] is from those before it, mean over the layers that both
    load, without what chance makes of it; and the standard deviation that this has.

    The squared difference of shares, of each expert over its share of all: of windows of one load
    that is by chance 1 / n + 1 / m for each expert but one, from n and m tokens.
    """
    tokens = loads.sum(axis=2) / unit
    loaded = tokens > 0.0
    noise = 1.0 / np.where(loaded, tokens, 1.0)
    share = loads / unit * noise[:, :, None]
    mean = loads.sum(axis=0) / unit / np.maximum(tokens.sum(axis=0), 1.0)[:, None]
    weight = np.divide(1.0, mean, out=np.zeros_like(mean), where=mean > 0.0)
    freedom = np.maximum((mean > 0.0).sum(axis=1) - 1, 0)

    def away(window: int) -> _Loads:
        apart = ((share[:window] - share[window]) ** 2 * weight).sum(axis=2)
        apart -= freedom * (noise[:window] + noise[window])
        both = loaded[:window] & loaded[window]
        found: _Loads = (apart * both).sum(axis=1) / np.maximum(both.sum(axis=1), 1)
        return found

    layers = max(1, int((freedom > 0).sum()))
    deviation = np.sqrt(2.0 * freedom.sum()) * 2.0 * noise[loaded].mean() / layers
    return away, float(deviation)


def _first_of(windows: int, number: int) -> list[int]:
    """The first of the windows that each of so many sums is of, as even as can be."""
    return [each * windows // number for each in range(number)]


def _added_up(loads: _Loads, first: Sequence[int]) -> _Loads:
    """Sums of windows [T, L, E] that follow each other, each from one of the first ones on."""
    bounds = [*first, len(loads)]
    return np.stack([loads[begin:end].sum(axis=0) for begin, end in pairwise(bounds)])


def _unit(loads: _Loads) -> int:
    """What a token counts in loads that are whole numbers, 0 for others: ranks may share tokens."""
    unit = 0
    for window in loads:
        if window.max() >= 2.0**53 or not np.array_equal(window, np.floor(window)):
            return 0
        if unit != 1:
            unit = int(np.gcd.reduce(window.astype(np.int64), axis=None, initial=unit))
    return unit


@dataclass(frozen=True)
class _Difference:
    """How windows differ.

    Attributes:
        ratio: variance of experts' shares over that of chance; infinite where there is no chance.
        next_ratio: the same of the differences between a window and the next one.
        beyond: variance of a window beyond chance.
        deviation: standard deviation of the ratio where chance is all.
        chance: standard deviation by chance of an expert's load, over the loads, root mean square.
    """

    ratio: float
    next_ratio: float
    beyond: float
    deviation: float
    chance: float


def _differ(loads: _Loads, unit: int) -> _Difference:
    """How windows [T, L, E] of counts differ, by the variance of multinomial numbers."""
    tokens = loads.sum(axis=2) / unit
    total = tokens.sum(axis=0)
    share = loads.sum(axis=0) / np.maximum(total, 1.0)[:, None] / unit
    each = share * (1.0 - share)
    loaded = tokens > 0.0
    count = np.where(loaded, tokens, 1.0)
    found = between = 0.0
    before, had_load = share, np.zeros_like(loaded[0])
    for window, of_layer, has_load in zip(loads, count, loaded, strict=True):
        now = window / (of_layer[:, None] * unit)
        found += float(((now - share) ** 2).sum(axis=1)[has_load].sum())
        between += float(((now - before) ** 2).sum(axis=1)[has_load & had_load].sum())
        before, had_load = now, has_load
    variance = np.where(loaded, each.sum(axis=1) / count, 0.0)
    # The mean that shares are compared with is made of them.
    expected = float((variance - loaded * each.sum(axis=1) / np.maximum(total, 1.0)).sum())
    squares = float((loaded * (share**2).sum(axis=1)).sum())
    both = loaded[1:] & loaded[:-1]
    expected_next = float(((variance[1:] + variance[:-1]) * both).sum())
    if expected <= 0.0 or expected_next <= 0.0:
        return _Difference(np.inf, np.inf, 0.0, np.inf, 0.0)
    freedom = (len(loads) - 1) * float(each.sum() ** 2 / (each**2).sum())
    chance = np.sqrt(float(variance.sum()) / squares)
    return _Difference(
        found / expected,
        between / expected_next,
        (found - expected) / len(loads),
        float(np.sqrt(2.0 / freedom)),
        float(chance),
    )
