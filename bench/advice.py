"""How often the advice is right: pairs of loads and running placement, with what is truly gained.

Each pair has windows seen, a placement made from older windows, and 60 windows to come. A plan from
the windows seen truly gains what it is more balanced by on those to come. Prints the share of pairs
in which a change is advised where it truly gains, and where it does not, by kind of load.

    python bench/advice.py [--pairs 200] [--seed 0] [--every-command 0]
"""

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb.cli.commands import app
from eplb.loads import LoadTrace
from eplb.moving.verdict import judge

CLUSTER = eplb.Cluster(num_gpus=16, num_nodes=2, slots_per_gpu=9)
KINDS = ("steady", "changed", "drifting", "swinging", "noise")
WORTH = 0.02
_SHAPE = (6, 128)
_LATER = 60


@dataclass(frozen=True, eq=False)
class Pair:
    """Loads seen [T, L, E], the placement that runs, and the loads to come."""

    kind: str
    seen: NDArray[np.float64]
    current: eplb.Placement
    later: NDArray[np.float64]

    def true_gain(self) -> tuple[float, float]:
        """Balancedness gained on windows to come, and half its 95 % interval."""
        made = eplb.plan(self.seen, CLUSTER).placement
        gains = [made.balancedness(each) - self.current.balancedness(each) for each in self.later]
        return float(np.mean(gains)), float(1.96 * np.std(gains, ddof=1) / len(gains) ** 0.5)


def pairs(number: int, seed: int) -> Iterator[Pair]:
    """Pairs of all kinds in turn."""
    for each in range(seed, seed + number):
        rng = np.random.default_rng(each)
        kind = KINDS[each % len(KINDS)]
        num_windows = int(rng.integers(6, 17))
        tokens = int(rng.choice([2_000, 20_000, 200_000]))
        first = rng.normal(size=_SHAPE) * rng.uniform(0.4, 1.0)
        second = first + rng.normal(size=_SHAPE) * rng.uniform(0.1, 0.6)
        total = 2 * num_windows + _LATER
        part, spread = np.zeros(total), 0.02
        if kind == "changed":
            part[num_windows:] = 1.0
        elif kind == "drifting":
            part = np.linspace(0.0, rng.uniform(0.5, 2.0), total)
        elif kind == "swinging":
            part = (np.arange(total) // int(rng.integers(1, 4)) % 2).astype(np.float64)
        elif kind == "noise":
            spread = rng.uniform(0.2, 0.7)
        noise = spread * rng.normal(size=(total, *_SHAPE))
        share = np.exp(first + part[:, None, None] * (second - first) + noise)
        loads = rng.poisson(share / share.sum(-1, keepdims=True) * tokens).astype(np.float64)
        current = eplb.plan(loads[:num_windows], CLUSTER).placement
        seen = loads[num_windows : 2 * num_windows]
        yield Pair(kind, seen, current, loads[2 * num_windows :])


def advice(pair: Pair) -> dict[str, bool]:
    """Whether each of four commands advises a change."""
    cluster = ("--gpus", str(CLUSTER.num_gpus), "--nodes", str(CLUSTER.num_nodes))
    cheap = ("--expert-bytes", "1", "--bandwidth-within", "1000", "--bandwidth-between", "1000")
    with tempfile.TemporaryDirectory() as folder:
        loads, running = f"{folder}/loads.npz", f"{folder}/running.json"
        eplb.save_trace(LoadTrace(pair.seen), loads)
        eplb.save_placement(pair.current, running, to="sglang")
        which = (loads, *cluster, "--current", running)
        answers = {
            "plan": _printed("plan", *which, "--json"),
            "decide": _printed("decide", *which, *cheap, "--seconds", "3600", "--json"),
            "evaluate": _printed("evaluate", running, loads, *cluster, "--json"),
        }
        report = _printed("report", *which, "--text")
    found = {name: json.loads(answer) for name, answer in answers.items()}
    stays = {"keep what runs", "unpredictable"}
    return {
        "plan": found["plan"]["verdict"]["action"] not in stays,
        "decide": found["decide"]["action"] != "wait",
        "evaluate": found["evaluate"]["verdict"]["action"] not in stays,
        "report": "Keep what runs" not in report,
    }


def _printed(*arguments: str) -> str:
    """What a command prints, run in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        app(arguments, standalone_mode=False)
    return printed.getvalue()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--every-command", type=int, default=0, help="pairs in which all four commands are asked"
    )
    asked = parser.parse_args()
    agreed = 0
    worth: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    useless: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for number, pair in enumerate(pairs(asked.pairs, asked.seed)):
        gain, half = pair.true_gain()
        if number < asked.every_command:
            agreed += len(set(advice(pair).values())) == 1
        advised = judge(pair.seen, CLUSTER, pair.current).advised
        if gain >= WORTH and gain > half:
            worth[pair.kind].append(advised)
        elif gain <= 0.0:
            useless[pair.kind].append(advised)
    for name, found in (("truly gains .02", worth), ("gains nothing", useless)):
        everything = [each for some in found.values() for each in some]
        print(f"{name}: advised in {sum(everything)} of {len(everything)}", end="")
        print(f" ({np.mean(everything or [False]):.1%}): ", end="")
        print(", ".join(f"{kind} {sum(some)} of {len(some)}" for kind, some in found.items()))
    if asked.every_command:
        print(f"all commands agree in {agreed} of {min(asked.every_command, asked.pairs)}")


if __name__ == "__main__":
    main()
