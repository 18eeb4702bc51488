"""What a report takes: time, memory and the size of its page, each beside its bar.

    python bench/report_bars.py --traces path/to/traces

Each report is a process of its own, after one that is not counted, so that kernels are compiled.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from options import OneLineParser

import eplb
from eplb import synthetic

__all__ = ["Bar", "Taken", "main", "taken"]

_MB = 1e6
_ON = ("--gpus", "32", "--slots", "288", "--nodes", "4")


@dataclass(frozen=True)
class Bar:
    """A report, and what it may take.

    Attributes:
        seconds: most, on two cores; megabytes: most memory, None for any; size: most of the page.
    """

    name: str
    trace: Path
    options: tuple[str, ...]
    seconds: float
    megabytes: float | None
    size: float = 8.0


@dataclass(frozen=True)
class Taken:
    """What a report took: seconds of the clock, and megabytes of memory and of its page."""

    seconds: float
    megabytes: float
    size: float


def taken(trace: Path, options: tuple[str, ...]) -> Taken:
    """Make a report in a process of its own.

    Raises:
        OSError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "eplb.cli", "report", str(trace), *options]
        begin = time.perf_counter()
        process = subprocess.Popen([*command, "-o", str(page)], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise OSError(f"{' '.join(command)} ended with {process.returncode}")
        # Linux counts kilobytes, macOS bytes.
        unit = 1.0 if sys.platform == "darwin" else 1024.0
        return Taken(seconds, usage.ru_maxrss * unit / _MB, page.stat().st_size / _MB)


def main() -> int:
    """Print what each report takes; the exit code is 1 where one takes more than it may."""
    parser = OneLineParser(
        prog="bench/report_bars.py", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR", help="recorded loads")
    parser.add_argument(
        "--windows", type=int, default=1000, metavar="T", help="of the synthetic trace"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        many = Path(folder) / "many.npz"
        eplb.save_trace(
            synthetic.trace(
                "deepseek-v3-mix", num_windows=options.windows, tokens_per_window=100_000
            ),
            many,
        )
        recorded = options.traces / "deepseek_v3"
        bars = [
            Bar("six DeepSeek-V3 files", recorded, (*_ON, "--model", "DeepSeek-V3"), 15.0, 1000.0),
            Bar(
                f"{options.windows} windows of 58x256",
                many,
                (*_ON, "--window-seconds", "60"),
                60.0,
                None,
            ),
        ]
        taken(recorded, bars[0].options)
        met = True
        print("| report | seconds | MB of memory | MB of page |")
        print("| --- | --- | --- | --- |")
        for bar in bars:
            found = taken(bar.trace, bar.options)
            memory = "any" if bar.megabytes is None else f"{bar.megabytes:.0f}"
            print(
                f"| {bar.name} | {found.seconds:.1f} (≤ {bar.seconds:.0f}) | "
                f"{found.megabytes:.0f} (≤ {memory}) | {found.size:.2f} (≤ {bar.size:.0f}) |"
            )
            met &= found.seconds <= bar.seconds and found.size <= bar.size
            met &= bar.megabytes is None or found.megabytes <= bar.megabytes
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
