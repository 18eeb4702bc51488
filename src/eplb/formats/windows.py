"""Windows as they are read: counters become what each adds, doubts are told, neighbours merged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.errors import FormatError, LoadsError
from eplb.formats.safe import LARGEST, warn
from eplb.loads import LoadTrace, trace_of
from eplb.merging import Merge, Recording

_FEWEST = 24
"""Values that must agree before it is no accident."""


@dataclass(frozen=True)
class Reading:
    """What `eplb.load_trace` is told about a source, checked."""

    axes: tuple[str, ...] | None
    counters: bool
    merge: Merge


@dataclass(frozen=True, eq=False)
class Steps:
    """Windows in a file, as they lie in it: mapped, they come into memory as they are added up.

    Attributes:
        pieces: [T, L, E] each, one after the other, checked.
        names: of all windows.
        times: of all windows, None where they are not known.
        layers: numbers of the layers, None where they are not known.
        counted: [R, L, E] what each rank counted in all of them, None where ranks are not told.
        top_k, model, ordered: as a LoadTrace has them.
    """

    pieces: list[NDArray[Any]]
    names: list[str]
    times: list[float] | None = None
    layers: tuple[int, ...] | None = None
    counted: NDArray[np.float64] | None = None
    top_k: int | None = None
    model: str | None = None
    ordered: bool = True

    @classmethod
    def of(cls, trace: LoadTrace) -> "Steps":
        """The windows of a file that was read whole."""
        return cls(
            [trace.loads],
            list(trace.names),
            None if trace.times is None else trace.times.tolist(),
            trace.layers,
            trace.sources,
            trace.top_k,
            trace.model,
            trace.ordered,
        )


class Windows:
    """The windows of a source, added in order, in pieces of any length."""

    def __init__(self, source: Path, how: Reading) -> None:
        self._recording = Recording(how.merge)
        self._bounded = how.merge in {"auto", "all"}
        self._counters = _Counters() if how.counters else None
        self._doubts = None if how.counters else _Doubts(source, how.merge)
        self._counted: list[NDArray[np.float64]] = []
        self._by_rank = not how.counters

    def add(self, loads: NDArray[Any], names: Sequence[str], times: Sequence[float] | None) -> None:
        """Add windows [T, L, E] of a file, with their names and their times where known."""
        if not self._bounded and self._recording.bytes_with(loads) > LARGEST:
            raise FormatError(
                f"windows up to here have over {LARGEST // 8} values: "
                "merge them by the rule (--merge auto)"
            )
        if self._counters is not None:
            loads = self._counters.differences(loads, names)
        if self._doubts is not None:
            self._doubts.look(loads)
        self._recording.add(loads, names, times)

    def count(self, counted: NDArray[np.float64] | None) -> None:
        """Add what each rank counted of some windows, [R, L, E]; once that is not known, or of
        other ranks, it is known of none.
        """
        before = self._counted
        if counted is None or (before and before[0].shape != counted.shape):
            self._by_rank = False
        elif self._by_rank:
            self._counted = [before[0] + counted if before else counted]

    def finish(
        self,
        top_k: int | None = None,
        model: str | None = None,
        layers: tuple[int, ...] | None = None,
    ) -> LoadTrace:
        """The trace of all windows, merged; what looks wrong about them is told."""
        if self._doubts is not None:
            self._doubts.tell()
        known = [each for each in self._counted if self._by_rank and _tells_sources(each)]
        return trace_of(self._recording, top_k, model, layers, known[0] if known else None)


def check_model(shape: tuple[int, ...], known: tuple[int, ...], first: Path) -> None:
    """Raise a FormatError where loads have other layers or experts than those of the first file."""
    if shape != known:
        raise FormatError(
            f"has {counted(shape[0], 'layer')} and {shape[1]} experts, {first.name} has {known[0]} "
            f"and {known[1]}"
        )


def _tells_sources(counted: NDArray[np.float64]) -> bool:
    """Whether ranks counted the tokens [R, L, E] that they sent, and so most of the experts that
    have any. Those that counted what came to them have tokens of their own experts alone.
    """
    of_rank = (counted > 0.0).sum(axis=(1, 2))
    of_all = int(counted.any(axis=0).sum())
    return len(counted) > 1 and 2 * int(of_rank.sum()) > int((of_rank > 0).sum()) * of_all


class _Counters:
    """Counters since the start, of which each window is what it adds; the first is as it is.

    Where all counts together fall, the engine was started again, and counts begin anew.
    """

    def __init__(self) -> None:
        self._before: NDArray[np.float64] | None = None

    def differences(self, loads: NDArray[Any], names: Sequence[str]) -> NDArray[np.float64]:
        """[T, L, E] what each of the next windows adds."""
        added = loads.astype(np.float64)
        for number, name in enumerate(names):
            now, before = added[number].copy(), self._before
            self._before = now
            if before is None or now.sum() < before.sum():
                continue
            if (fell := now < before).any():
                layer, expert = np.argwhere(fell)[0]
                raise LoadsError(
                    f"counters fall from {before[layer, expert]:g} to {now[layer, expert]:g} "
                    f"(layer {layer}, expert {expert}, window {name}): these are no counters "
                    "since the start"
                )
            added[number] -= before
        return added


class _Doubts:
    """What makes windows look like ranks or counters, and loads like those of one rank.

    Each doubt is settled by the first windows that say otherwise.
    """

    def __init__(self, source: Path, merge: Merge) -> None:
        self._source = source
        self._number = 0
        self._num_more = 0
        self._before: NDArray[Any] | None = None
        self._rises = self._idle_may_be = True
        self._apart = merge in {"auto", "none"}
        self._num_used = 0
        self._seen = np.zeros((0, 0), np.bool_)
        self._idle = np.zeros(0, np.bool_)

    def look(self, loads: NDArray[Any]) -> None:
        """Look at the next windows [T, L, E]."""
        if not self._number:
            self._seen = np.zeros(loads.shape[1:], np.bool_)
            self._idle = np.ones(loads.shape[2], np.bool_)
        self._number += len(loads)
        for window in loads:
            if not (self._rises or self._apart or self._idle_may_be):
                return
            used = window > 0
            if self._rises and self._before is not None:
                before = self._before
                self._rises = not (window < before).any() and (window > before).any()
                self._num_more += int(used.sum())
            self._before = window if self._rises else None
            self._apart = self._apart and not (used & self._seen).any()
            self._num_used += bool(used.any())
            self._seen |= used
            self._idle &= ~used.any(axis=0)
            self._idle_may_be = 2 * int(self._idle.sum()) > len(self._idle)

    def tell(self) -> None:
        """Warn of what the windows that were looked at leave likely."""
        seen, idle = self._seen, self._idle
        if self._number > 2 and self._rises and self._num_more >= _FEWEST:
            warn(
                self._source,
                f"no count falls in any of {self._number} windows. If they are counters "
                "since the engine's start, give --counters (counters)",
            )
        if seen.size < _FEWEST:
            return
        most = 2 * seen.sum() > seen.any(axis=1).sum() * seen.shape[1]
        if self._num_used > 1 and self._apart and most:
            warn(
                self._source,
                f"no expert has load in two of the {self._number} windows. If each is a rank that "
                "counted its own experts, give --merge all (merge) to add them up",
            )
        elif self._idle_may_be and not idle.all():
            warn(
                self._source,
                f"{idle.sum()} of {len(idle)} experts have no load in any layer. "
                "If this is the file of one rank, give the folder of all ranks' files",
            )
