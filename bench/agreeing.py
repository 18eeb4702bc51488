"""What agreeing costs the ranks of an engine at each rebalance, as processes of this machine.

    python bench/agreeing.py --ranks 2 --check

Ranks answer a map of 58 layers and 288 slots that is made already, so what they need is what the
comparison of digests costs, in the store that torch's groups are made with.
"""

import logging
import multiprocessing
import socket
import statistics
import time
from typing import Any

import numpy as np
from bars import Bar
from options import OneLineParser
from rich.table import Table
from tables import console_for_tables, show_bars

from eplb.engines.ranks import Agreement, default_member
from eplb.engines.settings import Settings

_BAR = 2.0
"""Milliseconds a rebalance, with two ranks."""
_ROUNDS = 400
_FIRST = 20
"""Rounds that are not timed."""
_SECONDS = 300.0
"""For ranks to start, and to end."""


def work(rank: int, size: int, port: int, told: Any) -> None:
    """A rank: the milliseconds of its rounds go to `told`."""
    from torch import distributed

    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    agreement = Agreement(
        default_member, Settings(), "nobody", logging.getLogger("bench"), lambda: None
    )
    made = np.tile(np.arange(288) % 256, (58, 1))
    took = []
    for step in range(_ROUNDS):
        distributed.barrier()
        begin = time.perf_counter()
        answer = agreement.answer("bench", lambda: made, made, lambda phy2log: phy2log, list)
        took.append(1e3 * (time.perf_counter() - begin))
        assert len(answer) == 58, step
    told.put(took[_FIRST:])
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    """Run ranks, and print what they needed."""
    parser = OneLineParser(description="What agreeing costs the ranks of an engine.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="how many, each in turn")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the bar is missed")
    given = parser.parse_args()
    spawning = multiprocessing.get_context("spawn")
    table = Table("ranks", "median ms a rebalance", "95 % below", "slowest")
    bars = []
    for size in given.ranks:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        told = spawning.Queue()
        processes = [
            spawning.Process(target=work, args=(rank, size, port, told)) for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            took = sorted(each for _ in processes for each in told.get(timeout=_SECONDS))
            for process in processes:
                process.join(_SECONDS)
        finally:
            for process in processes:
                process.kill()
        median = statistics.median(took)
        table.add_row(
            str(size), f"{median:.2f}", f"{took[int(0.95 * len(took))]:.2f}", f"{took[-1]:.2f}"
        )
        if size == 2:
            name = "milliseconds of agreeing a rebalance, 2 ranks, median"
            bars.append(Bar(name, f"at most {_BAR:g}", f"{median:.2f}", median <= _BAR))
    console_for_tables().print(table)
    show_bars(bars)
    if given.check and any(bar.missed for bar in bars):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
