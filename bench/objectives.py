"""What a plan for the experts that a step touches, or for its time, gains on one for tokens.

    python bench/objectives.py --traces ../shared/traces --check

Times are those that `eplb.cost` estimates on H100s, mean over layers, of the loads that are planned
for and of others: of gpt-oss-20b every eighth window of the first half and of the second, of
DeepSeek-V3 five workloads and the sixth.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import OneLineParser
from rich.table import Table
from tables import console_for_tables, show_bars

import eplb
from eplb.cost import estimate

F64 = NDArray[np.float64]

_TOKENS = (1, 4, 16, 64, 256, 2048)
_OBJECTIVES = ("tokens", "activated", "time")
_ROUNDING = 1e-3
"""Estimates let a token be routed to an expert twice, and the planner does not."""


def works_of(traces: Path) -> list[tuple[str, eplb.Cluster, int, F64, F64]]:
    """Model, cluster, experts of a token, loads that are planned for, and others [T, L, E]."""
    with np.load(traces / "gptoss20b_domains_2048.npz") as file:
        oss = file["counts"].astype(np.float64)
    trace = eplb.load_trace(traces / "deepseek_v3")
    deepseek = trace.loads[:, ~trace.dense][:, ::4]
    half = len(oss) // 2
    return [
        ("gpt-oss-20b", eplb.Cluster(8, 1, 5), 4, oss[:half:8], oss[half::8]),
        ("gpt-oss-20b", eplb.Cluster(8, 1, 6), 4, oss[:half:8], oss[half::8]),
        ("DeepSeek-V3", eplb.Cluster(32, 4, 9), 8, deepseek[:-1], deepseek[-1:]),
    ]


def compared(traces: Path) -> tuple[Table, list[Bar]]:
    """A row a cluster, rule and size of steps: microseconds with a plan for tokens, and what the
    others change.
    """
    names = ("planned for: us", *_OBJECTIVES[1:], "others: us", *_OBJECTIVES[1:])
    table = Table("model, slots, rule", "tokens of a GPU", *names)
    bars = []
    for model, cluster, top_k, seen, others in works_of(traces):
        for rule in ("even", "best"):
            worst = 0.0
            for tokens in _TOKENS:
                batch = eplb.Batch(tokens, top_k, cluster.num_gpus)
                times = []
                for objective in _OBJECTIVES:
                    made = eplb.plan(
                        seen, cluster, dispatch=rule, objective=objective, model=model,
                        batch=None if objective == "tokens" else batch,
                    ).placement  # fmt: skip
                    times.append(
                        [
                            1e6 * estimate(
                                made, loads, "H100", model, tokens_per_gpu=tokens, dispatch=rule
                            ).layer_seconds.mean()
                            for loads in (seen, others)
                        ]
                    )  # fmt: skip
                cells = []
                for column in np.array(times).T:
                    cells += [
                        f"{column[0]:.1f}",
                        *(f"{e / column[0] - 1:+.1%}" for e in column[1:]),
                    ]
                table.add_row(f"{model}, {cluster.num_slots}, {rule}", str(tokens), *cells)
                worst = max(worst, times[2][0] / times[0][0] - 1.0)
            bars.append(
                Bar(
                    f"{model}, {cluster.num_slots} slots, {rule}: time above a plan for tokens",
                    f"at most {_ROUNDING:.1%}",
                    f"{worst:.2%}",
                    worst <= _ROUNDING,
                )
            )
    return table, bars


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(
        prog="bench/objectives.py", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", required=True, help="recorded loads")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args()
    try:
        table, bars = compared(options.traces)
    except (eplb.EplbError, OSError) as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps({"bars": [asdict(bar) for bar in bars]}))
    else:
        console_for_tables().print(table)
        show_bars(bars)
    return 1 if options.check and any(bar.missed for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
