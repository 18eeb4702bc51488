"""How often the advice is right: pairs of loads and running placement, with what is truly gained.

Each pair has windows seen, a placement made from older windows, and 60 windows to come. A plan from
the windows seen truly gains what it is more balanced by on those to come. Prints the share of pairs
in which a change is advised where it truly gains, and where it does not, by kind of load.

    python bench/advice.py [--pairs 200] [--seed 0] [--every-command 0]
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb.loads import LoadTrace
from eplb.moving.service import Service
from eplb.moving.verdict import judge
from eplb.replaying.evaluate import evaluate_placement
from eplb.report import measure

CLUSTER = eplb.Cluster(num_gpus=16, num_nodes=2, slots_per_gpu=9)
CHEAP = Service(1, 1e3, 1e3)
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
    """Whether each of four ways to ask advises a change."""
    names = [str(number) for number in range(len(pair.seen))]
    trace = LoadTrace(pair.seen, names)
    evaluated = evaluate_placement(pair.current, trace).verdict
    assert evaluated is not None
    return {
        "plan": judge(pair.seen, CLUSTER, pair.current).advised,
        "decide": eplb.decide(pair.seen, CLUSTER, pair.current, CHEAP, 3600.0).action != "wait",
        "evaluate": evaluated.advised,
        "report": measure(trace, CLUSTER, current=pair.current).choice.command is not None,
    }


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
