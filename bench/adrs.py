"""The field's benchmark (ADRS, 2025) on any file with `rebalance_experts`.

    python bench/adrs.py --loads expert-load.json --peer path/to/eplb.py

A window is the sum of 100 steps. Window i is planned with 288 replicas, 8 groups, 4 nodes and 32
GPUs, and window i + 1 is scored from log2phy and logcnt, expert by expert, as the research
evaluator does; the last window may be shorter. Without --loads, windows are made by the preset
"deepseek-v3".
"""

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options import OneLineParser, load_peers, positive
from rich.table import Table
from tables import console_for_tables

import eplb
from eplb.checks import in_one_line
from eplb.synthetic import trace as synthetic_trace

NUM_REPLICAS, NUM_GROUPS, NUM_NODES, NUM_GPUS = 288, 8, 4, 32
STEPS_PER_WINDOW = 100
_WINDOWS, _TOKENS_PER_STEP = 38, 710
"""Windows made without a file, about as many as the benchmark's has, of decode steps."""

Planner = Callable[..., Any]


@dataclass(frozen=True)
class Result:
    """What one planner reached: means over windows.

    Attributes:
        balancedness_gpu: sum over layers of the mean GPU load / sum of the max.
        balancedness_expert: the same over physical experts.
        algorithm_ms: time of `rebalance_experts` alone.
        scored_ms: the same with the evaluator's scoring.
        failed: the error that the planner raised, in one line.
    """

    who: str
    balancedness_gpu: float = 0.0
    balancedness_expert: float = 0.0
    algorithm_ms: float = 0.0
    scored_ms: float = 0.0
    failed: str | None = None


def windows_of(loads: np.ndarray[Any, np.dtype[np.float64]], steps: int) -> list[torch.Tensor]:
    """Sums of `steps` rows of loads [T, L, E], in order, the last of what is left: int64 [L, E]."""
    begins = range(0, loads.shape[0], steps)
    return [
        torch.from_numpy(loads[begin : begin + steps].sum(axis=0)).to(torch.int64)
        for begin in begins
    ]


def scores(log2phy: Any, logcnt: Any, window: torch.Tensor) -> tuple[float, float]:
    """Balancedness over GPUs and over physical experts of a window [L, E]."""
    num_layers, num_experts = window.shape
    physical = torch.zeros(num_layers, NUM_REPLICAS, dtype=torch.float64)
    for layer in range(num_layers):
        for expert in range(num_experts):
            load = window[layer][expert].item()
            count = int(logcnt[layer][expert].item())
            if load > 0 and count > 0:
                physical[layer, log2phy[layer][expert][:count]] += load / count
    of_gpus = physical.view(num_layers, NUM_GPUS, -1).sum(dim=2)
    return _pooled(of_gpus), _pooled(physical)


def _pooled(load: torch.Tensor) -> float:
    most = load.max(dim=1).values.sum().item()
    return load.mean(dim=1).sum().item() / most if most > 0.0 else 0.0


def evaluate(who: str, planner: Planner, windows: list[torch.Tensor]) -> Result:
    """Plan each window and score the next."""
    rows = []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            planner(windows[0], NUM_REPLICAS, NUM_GROUPS, NUM_NODES, NUM_GPUS)  # compiled and warm
            for window, following in itertools.pairwise(windows):
                begin = time.perf_counter()
                _phy2log, log2phy, logcnt = planner(
                    window.clone(), NUM_REPLICAS, NUM_GROUPS, NUM_NODES, NUM_GPUS
                )
                planned = time.perf_counter()
                gpu, expert = scores(log2phy, logcnt, following)
                rows.append((gpu, expert, planned - begin, time.perf_counter() - begin))
    except (Exception, SystemExit) as error:
        return Result(who, failed=in_one_line(error))
    gpu, expert, algorithm, scored = map(statistics.fmean, zip(*rows, strict=True))
    return Result(who, gpu, expert, algorithm * 1e3, scored * 1e3)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/adrs.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--loads", type=Path, metavar="FILE", help="expert-load.json, or any trace (the preset)")
    add(
        "--peer",
        type=Path,
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file with rebalance_experts; again for more",
    )
    add(
        "--steps",
        type=positive,
        default=STEPS_PER_WINDOW,
        help=f"steps that make a window of --loads ({STEPS_PER_WINDOW})",
    )
    add("--windows", type=positive, help="only the first so many windows")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    try:
        peers = load_peers(options.peer)
        windows = _windows(options)
    except eplb.EplbError as error:
        parser.error(str(error))
    planners = [("eplb", eplb.rebalance_experts)]
    planners += [(peer.name, peer.function) for peer in peers]
    results = [evaluate(who, planner, windows) for who, planner in planners]
    if options.json:
        print(json.dumps({"windows": len(windows), "results": [asdict(each) for each in results]}))
    else:
        _show(results, windows)
    return 1 if any(result.failed for result in results) else 0


def _windows(options: argparse.Namespace) -> list[torch.Tensor]:
    if options.loads is not None:
        loads = eplb.load_trace(options.loads)
        windows = windows_of(loads.loads, options.steps)[: options.windows]
        if len(windows) < 2:
            raise eplb.LoadsError(
                f"{options.loads} has {loads.num_windows} steps: to score a window after the first "
                f"takes more than {options.steps}"
            )
        return windows
    made = synthetic_trace(
        "deepseek-v3",
        num_windows=max(2, options.windows or _WINDOWS),
        tokens_per_window=STEPS_PER_WINDOW * _TOKENS_PER_STEP,
    )
    return windows_of(made.loads[:, ~made.dense], 1)


def _show(results: list[Result], windows: list[torch.Tensor]) -> None:
    num_layers, num_experts = windows[0].shape
    table = Table(
        title=f"{len(windows)} windows of {num_layers}x{num_experts}", title_justify="left"
    )
    table.add_column("planner", no_wrap=True)
    for heading in ("balanced, GPUs", "balanced, experts", "ms", "ms with scoring", "x eplb"):
        table.add_column(heading, justify="right")
    ours = results[0]
    for result in results:
        if result.failed is not None:
            table.add_row(result.who, "failed")
            continue
        table.add_row(
            result.who,
            f"{result.balancedness_gpu:.4f}",
            f"{result.balancedness_expert:.4f}",
            f"{result.algorithm_ms:.2f}",
            f"{result.scored_ms:.1f}",
            f"{result.algorithm_ms / ours.algorithm_ms:.2f}" if ours.failed is None else "-",
        )
    console = console_for_tables()
    console.print(table)
    for result in results:
        if result.failed is not None:
            console.print(f"failed: {result.who}: {result.failed}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
