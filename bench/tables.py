"""A report as tables for a person."""

from collections.abc import Iterator

from bars import Bar
from report import CellReport, Report, Row
from rich.console import Console
from rich.table import Table

__all__ = ["console_for_tables", "show_bars", "show_report"]

_WIDTH_OF_A_FILE = 150
"""Where the output is no terminal, nothing is cut off to fit one."""


def console_for_tables() -> Console:
    """Where tables are printed."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_A_FILE)


def show_report(report: Report) -> None:
    """Print everything that the report has."""
    console = console_for_tables()
    if report.cells:
        console.print(_cells(report))
    for cell in report.cells:
        for row in cell.rows:
            if row.failed is not None:
                console.print(f"failed: {cell.name}, {row.who}: {row.failed}", markup=False)
    table = Table("what", "found", title="more", title_justify="left")
    for what, found in _more(report):
        table.add_row(what, found)
    console.print(table)


def show_bars(bars: list[Bar]) -> None:
    """Print what was met and missed."""
    table = Table("bar", "needed", "found", "", title="bars", title_justify="left")
    for bar in bars:
        said = "[bold]MISSED[/bold]" if bar.missed else "met" if bar.judged else "not judged"
        table.add_row(bar.what, bar.needed, bar.found, said)
    console_for_tables().print(table)


def _cells(report: Report) -> Table:
    table = Table(title="planners", title_justify="left")
    table.add_column("cell", no_wrap=True)
    table.add_column("who", no_wrap=True)
    for heading in ("ms", *(f"x {peer}" for peer in report.peers)):
        table.add_column(heading, justify="right")
    for heading in ("balancedness", "duplicates", "gap", "worst gap"):
        table.add_column(heading, justify="right")
    for cell in report.cells:
        for number, row in enumerate(cell.rows):
            last = number == len(cell.rows) - 1
            name = cell.name if number == 0 else ""
            table.add_row(name, *_values(cell, row, report.peers), end_section=last)
    return table


def _values(cell: CellReport, row: Row, peers: list[str]) -> Iterator[str]:
    yield row.who
    if row.failed is not None:
        yield "failed"
        return
    yield f"{row.ms:.2f}"
    for peer in peers:
        yield f"{row.ratio[peer]:.2f}" if peer in row.ratio else "-"
    yield f"{row.balancedness:.4f}"
    yield f"{row.duplicates}"
    for gap in (row.gap_mean, row.gap_worst):
        yield "-" if gap is None else f"{gap:.3%}"


def _more(report: Report) -> Iterator[tuple[str, str]]:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield "machine", f"{machine.processors} processors; {versions}"
    yield "torch's threads, for the peers", f"{machine.torch_threads}"
    busy = [cell.others for cell in report.cells if cell.others is not None]
    if busy:
        found = f"{sum(busy) / len(busy):.2f} on average, {max(busy):.2f} in the worst cell"
        yield "processors that other programs kept busy meanwhile", found
    for growth in report.growth:
        found = f"{growth.large_ns:.0f} ns, {growth.ratio:.2f} times that of {growth.first}"
        yield f"time per slot, {growth.who}, {growth.large}", found
    small = report.small
    if small is not None:
        yield f"{small.layers} small layers: peak at the optimum", f"{small.optimal:.1%}"
        yield "peak within 1 % of it", f"{small.within_1_percent:.1%}"
        yield "worst peak above it", f"{small.worst:.2%}"
        yield "peaks below it, bounds above it", f"{small.peaks_below}, {small.bounds_above}"
        found = f"{small.example_peak:.2f}, optimum {small.example_optimum:.2f}"
        yield "FlashLB's example: peak", found
    startup = report.startup
    if startup is not None:
        heavy = ", ".join(startup.heavy_modules) or "nothing heavy"
        yield "import eplb", f"{startup.import_only:.3f} s; loads {heavy}"
        yield "import and first plan, kernels on disk", f"{startup.first_plan:.2f} s"
        yield "the same, every kernel needed", f"{startup.first_hard_plan:.2f} s"
        yield "import and first plan, never compiled", f"{startup.never_compiled:.2f} s"
        yield "the same, every kernel compiled", f"{startup.never_compiled_hard:.2f} s"
        yield "import and eplb.warmup(), never compiled", f"{startup.warmup:.2f} s"
        yield "first rebalance_experts after that", f"{startup.after_warmup:.3f} s"
