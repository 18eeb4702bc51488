"""Time several functions in one run, by turns, so that a noisy machine hurts all of them alike."""

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eplb.checks import in_one_line

__all__ = ["Load", "Runner", "race"]

_TURN_SECONDS = 0.02
"""A turn lasts at least this long: quick functions are called several times in it."""
_LONG_SECONDS = 1.0
"""A first call that takes this long counts as a turn: warming up is a small part of it."""


@dataclass(eq=False)
class Runner:
    """One who runs: a function, and after the race its times.

    Attributes:
        name: who it is.
        prepare: makes the arguments of one call, untimed.
        call: what is timed.
        ours: whether it is this project's.
        result: what the first call returned.
        seconds: time of each call; the first, which may compile and warm up, is left out.
        failed: the error that it raised, in one line.
    """

    name: str
    prepare: Callable[[], tuple[Any, ...]]
    call: Callable[..., Any]
    ours: bool
    result: Any = None
    seconds: list[float] = field(default_factory=list)
    failed: str | None = None

    @property
    def median(self) -> float:
        """Median time of a call, in seconds."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """Least time of a call, in seconds: what the machine can do when nothing disturbs it."""
        return min(self.seconds)

    def run(self) -> tuple[float, Any]:
        """Call once; return the time and the result, or note the error."""
        arguments = self.prepare()
        result = None
        begin = time.perf_counter()
        try:
            with contextlib.redirect_stdout(sys.stderr):
                result = self.call(*arguments)
        except (Exception, SystemExit) as error:
            self.failed = in_one_line(error)
        return time.perf_counter() - begin, result


def race(runners: list[Runner], turns: int, most_seconds: float) -> None:
    """Call everybody once, then let them take turns; who has spent `most_seconds` has no more."""
    for runner in runners:
        seconds, runner.result = runner.run()
        if seconds > _LONG_SECONDS:
            runner.seconds.append(seconds)
    for _ in range(turns):
        for runner in runners:
            if sum(runner.seconds) > most_seconds:
                continue
            taken = 0.0
            while taken < _TURN_SECONDS and runner.failed is None:
                seconds, _result = runner.run()
                runner.seconds.append(seconds)
                taken += seconds


class Load:
    """How many processors other programs keep busy meanwhile, where Linux tells.

    Where they keep any busy, times are not to be trusted: threads that wait for each other in a
    loop, as torch's do, can become many times slower.
    """

    def __init__(self) -> None:
        self._begin = _clocks()

    def others(self) -> float | None:
        """Processors' worth of work that other programs did since the start; None if unknown."""
        end = _clocks()
        if self._begin is None or end is None:
            return None
        wall, busy, own = (after - before for before, after in zip(self._begin, end, strict=True))
        return max(0.0, busy - own) / wall if wall > 0.0 else 0.0


def _clocks() -> tuple[float, float, float] | None:
    """Seconds of wall time, of all processors at work, and of this process and its children."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _idle, _wait, irq, soft, *_ = map(int, line.split()[1:])
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    own = sum(os.times()[:4])
    return time.perf_counter(), (user + nice + system + irq + soft) / tick, own
