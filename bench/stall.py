"""How long a rebalance blocks serving where no kernel has ever been compiled: whole servers of two
ranks on CPUs, with this planner's plug-in.

    make test-engines        # fetches the engines
    python bench/stall.py --engines .venv/engines --check

What blocks is the longest step of an engine's EPLB, on any rank, and for a client a request of one
token, which waits for one pass. Requests wait for other programs too: compare those with a
rebalance in them with those without. The first request, which waits for what engines do in their
first pass, is not counted.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bars import Bar
from options import EnginesParser
from rich.table import Table
from tables import console_for_tables, show_bars

_BAR = 1.0
"""Seconds that a rebalance may block."""
_REBALANCES = 8
_HEADINGS = ("ready after", "rebalances", "longest step", "request", "longest", "with", "compiled")
_MOST_REQUESTS = 5000


@dataclass(frozen=True)
class Served:
    """What a server did.

    Attributes:
        who: its engine, and how it dispatches.
        ready: seconds until it was ready, kernels compiled.
        rebalances: while it was asked.
        step: seconds of the longest step of its EPLB.
        usual: median seconds of a request without a rebalance in it.
        without: seconds of the longest of these.
        longest: seconds of the longest request with a rebalance in it.
        compiled: kernels that were compiled after it was ready.
    """

    who: str
    ready: float
    rebalances: int
    step: float
    usual: float
    without: float
    longest: float
    compiled: int


_SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vLLM, in the step": ("vllm_server", {"balancing": {"use_async": False}}),
    "vLLM, in the background": ("vllm_server", {"balancing": {"use_async": True}}),
    "SGLang": ("sglang_server", {}),
}


def serve(name: str, dispatch: str, engines: Path) -> Served:
    """Start a server with an empty cache of kernels, and ask until it has rebalanced often."""
    import serving

    function, options = _SERVERS[name]
    start: Any = getattr(serving, function)
    with tempfile.TemporaryDirectory() as made:
        kernels = Path(made, "kernels")
        kernels.mkdir()
        begin = time.perf_counter()
        variables = {"NUMBA_CACHE_DIR": str(kernels), "EPLB_DISPATCH": dispatch}
        folder = Path(made, "server")
        folder.mkdir()
        with start(engines, folder, environment=variables, **options) as server:
            ready = time.perf_counter() - begin
            kept = set(kernels.rglob("*.nbc"))
            rebalances, took = 0, []
            for prompt in itertools.islice(itertools.cycle(serving.prompts()), _MOST_REQUESTS):
                begin = time.perf_counter()
                server.answer(prompt, 1)
                seconds = time.perf_counter() - begin
                before, rebalances = rebalances, len(server.lines("eplb: rebalance "))
                took.append((rebalances > before, seconds))
                if rebalances >= _REBALANCES:
                    break
            step = server.longest_step()
            compiled = len(set(kernels.rglob("*.nbc")) - kept)
            if not kept or rebalances < _REBALANCES:
                raise RuntimeError(f"{name} has not rebalanced: {server.log.read_text()[-3000:]}")
    who = name if dispatch == "engine" else f"{name}, {dispatch}"
    without = [seconds for rebalanced, seconds in took[1:] if not rebalanced]
    longest = max(seconds for rebalanced, seconds in took[1:] if rebalanced)
    usual = statistics.median(without)
    return Served(who, ready, rebalances, step, usual, max(without), longest, compiled)


def main() -> None:
    """Measure what the command line asks for."""
    parser = EnginesParser(__doc__)
    parser.add_argument("--only", help="servers whose names have this in them")
    parser.add_argument(
        "--dispatch", nargs="+", default=["engine"], choices=["engine", "table", "batch"]
    )
    asked = parser.parse_args()
    engines = parser.whole_engines(asked, "site/uvicorn")
    os.environ.pop("NUMBA_CACHE_DIR", None)
    table = Table("server", title="from an empty cache of kernels", title_justify="left")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right")
    bars = []
    for name in (each for each in _SERVERS if asked.only is None or asked.only in each):
        for dispatch in asked.dispatch:
            served = serve(name, dispatch, engines)
            table.add_row(
                served.who,
                f"{served.ready:.0f}",
                f"{served.rebalances}",
                f"{served.step:.3f}",
                f"{served.usual:.3f}",
                f"{served.without:.3f}",
                f"{served.longest:.3f}",
                f"{served.compiled}",
            )
            bars.append(
                Bar(
                    f"{served.who}: longest step",
                    f"<= {_BAR:g} s",
                    f"{served.step:.3f} s",
                    served.step <= _BAR,
                )
            )
            bars.append(
                Bar(
                    f"{served.who}: kernels compiled while serving",
                    "0",
                    f"{served.compiled}",
                    served.compiled == 0,
                )
            )
    console_for_tables().print(table)
    if asked.check:
        show_bars(bars)
        if any(bar.missed for bar in bars):
            sys.exit(1)


if __name__ == "__main__":
    main()
