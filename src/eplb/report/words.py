"""Words and tables that the sections of a report are made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from eplb.balance import Interval, with_interval
from eplb.checks import printable
from eplb.report.figures import Who

NAMES: dict[Who, str] = {
    "current": "the placement that runs",
    "engine": "the engine's own planner: sum of the windows",
    "plan": "the recommended plan",
    "contiguous": "contiguous, as engines start",
    "oracle": "perfect foresight",
}


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column is what a row is about.

    Attributes:
        long: whether it is data that a reader looks up, rather than reads.
    """

    caption: str
    headings: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    long: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        key: of its chart; finding: what it shows, as the chart's title.
        notes: sentences; tables: the data.
        missing: why there is nothing more, where there is not.
        command: what it does, and the command as one types it.
    """

    key: str
    heading: str
    finding: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: str | None = None
    command: tuple[str, str] | None = None


def printable_lines(text: str) -> str:
    """Lines whose other control characters are written as escapes."""
    return "\n".join(map(printable, text.split("\n")))


def percent(share: float, decimals: int = 0) -> str:
    """A share in percent."""
    return f"{100.0 * share:.{decimals}f} %"


def copies_of(number: int) -> str:
    """A number of copies."""
    return "1 copy" if number == 1 else f"{number} copies"


def score(value: float | None, interval: Interval | None = None, form: str = ".4f") -> str:
    """A figure with half its interval."""
    return "-" if value is None else with_interval(value, interval, form)
