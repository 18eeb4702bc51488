"""The report for a terminal: the same story, with signs for the maps and no other charts."""

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from eplb.checks import PLAIN
from eplb.describe import OF_GPUS, PLAIN_SIGNS, SIGNS, heat_map
from eplb.report.figures import Figures, Heat, Hot
from eplb.report.story import tell
from eplb.report.words import Section, Table, copies_of, percent

_BAR = 20
_HOTTEST = 5
"""Experts that are named."""


def print_report(console: Console, figures: Figures) -> None:
    """Print a report; a narrow terminal gets tables of two columns, and none needs colour."""
    story = tell(figures)
    page = _Page(console)
    page.line(story.title, "bold")
    page.line(story.setting, "dim")
    page.line()
    page.line(story.sentence, "bold")
    page.line()
    if story.command is not None:
        page.command(story.command)
        page.line()
    for standing in figures.standings:
        value = standing.seen if standing.unseen is None else standing.unseen
        if value is not None:
            page.bar(standing.who, value)
    page.line()
    for aside in story.asides:
        page.line(aside, "dim")
    for section in story.sections:
        page.section(section)
        if section.key == "heat":
            page.heat(figures.heat)
        if section.key == "hot":
            page.hottest(figures.hot)


class _Page:
    """Lines and tables as wide as a console, in characters that it has."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._encoding = console.encoding or "ascii"

    def plain(self, text: str) -> str:
        try:
            text.encode(self._encoding)
        except (LookupError, UnicodeEncodeError):
            for character, stand_in in PLAIN.items():
                text = text.replace(character, stand_in)
            return text.encode("ascii", "backslashreplace").decode()
        return text

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(self.plain(text), style))

    def command(self, text: str) -> None:
        # It is copied, so it must not be broken where the terminal ends.
        self._console.print(Text(self.plain(text)), soft_wrap=True)

    def bar(self, name: str, value: float) -> None:
        filled = round(_BAR * value)
        self.line(f"{name:<10}  {value:.4f}  [{'#' * filled}{'.' * (_BAR - filled)}]")

    def section(self, section: Section) -> None:
        self.line()
        self.line(f"{section.heading}: {section.finding}", "bold")
        if section.missing is not None:
            self.line(section.missing)
        for table in section.tables:
            if not table.long:
                self.table(table)
        for note in section.notes:
            self.line(note, "dim")
        if section.command is not None:
            self.line(f"{section.command[0]}:")
            self.command(section.command[1])

    def heat(self, found: Heat) -> None:
        signs = SIGNS if self.plain(SIGNS) == SIGNS else PLAIN_SIGNS
        maps = {"now": np.array(found.before), "with a plan": np.array(found.after)}
        legend, lines = heat_map(maps, found.layers, "GPU", OF_GPUS, self._console.width, signs)
        self.line(legend, "dim")
        for line in lines:
            self.command(line)

    def hottest(self, found: tuple[Hot, ...]) -> None:
        each = [
            (share, f"{expert} of layer {hot.layer} ({percent(share, 1)}, {copies_of(copies)})")
            for hot in found
            for expert, share, copies in zip(hot.experts, hot.shares, hot.copies, strict=True)
        ]
        each.sort(key=lambda found: -found[0])
        named = ", ".join(words for _, words in each[:_HOTTEST])
        self.line(f"The hottest (share of their layer's load, copies planned): {named}.")

    def table(self, table: Table) -> None:
        rows = [tuple(map(self.plain, row)) for row in table.rows]
        headings = tuple(map(self.plain, table.headings))
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        if sum(widths) + 2 * len(widths) > self._console.width:
            self._stacked(headings, rows)
            return
        shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for number, heading in enumerate(headings):
            shown.add_column(Text(heading), justify="right" if number else "left")
        for row in rows:
            shown.add_row(*map(Text, row))
        self._console.print(shown)

    def _stacked(self, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
        """Each row as lines of its own, where the terminal is too narrow for a table."""
        for row in rows:
            self.line(row[0])
            for heading, cell in zip(headings[1:], row[1:], strict=True):
                self.line(f"  {heading}: {cell}")
