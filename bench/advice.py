"""How often the advice is right: pairs of loads and running placement, with what is truly gained.

Each pair has windows seen, a placement made from older windows, and 60 windows to come. A plan from
the windows seen truly gains what it is more balanced by on those to come. Prints the share of pairs
in which a change is advised where it truly gains, and where it does not, by kind of load. With
`--traces` loads are recorded: shares of DeepSeek-V3's workloads that stay, change and drift as made
ones do; sequences of gpt-oss-20b as a service mixes them, before which other subjects ran or the
same; and its windows in the order of their subjects, of which none tells when the next begins.

Then how often the interval that is printed holds what is truly gained on average. Of loads that
drift it says little: what plans gain later is not in the windows.

Below it is how often one is right who is shown as many of the windows to come as were seen, and
exactly what both placements do on them, and is scored on the others: what is not known then cannot
be told from the windows seen.

    python bench/advice.py [--pairs 200] [--seed 0] [--every-command 0] [--traces ../shared/traces]
"""

import argparse
import contextlib
import functools
import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb.cli.commands import app
from eplb.loads import LoadTrace
from eplb.moving.verdict import judge

CLUSTER = eplb.Cluster(num_gpus=16, num_nodes=2, slots_per_gpu=9)
KINDS = ("steady", "changed", "drifting", "swinging", "noise")
RECORDED = (*KINDS, "served", "subjects")
WORTH = 0.02
_TOKENS = (2_000, 20_000, 200_000)
_OF_DEEPSEEK = eplb.Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
_OF_GPT_OSS = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
_SEQUENCES = (4, 16, 64)
"""Sequences in a window of a service, of some 300 tokens each."""
_SHAPE = (6, 128)
_LATER = 60


@dataclass(frozen=True, eq=False)
class Pair:
    """Loads seen [T, L, E], the placement that runs, and the loads to come."""

    kind: str
    cluster: eplb.Cluster
    seen: NDArray[np.float64]
    current: eplb.Placement
    later: NDArray[np.float64]

    @functools.cached_property
    def gains(self) -> NDArray[np.float64]:
        """What a plan from the windows seen gains on each of the windows to come."""
        return self.gained(eplb.plan(self.seen, self.cluster).placement)

    def gained(self, made: eplb.Placement) -> NDArray[np.float64]:
        """Balancedness that a placement gains on each of the windows to come."""
        return np.array(
            [made.balancedness(each) - self.current.balancedness(each) for each in self.later]
        )

    def known(self) -> tuple[bool, bool | None]:
        """What one would advise who is shown as many of the windows to come as were seen, at most
        half of them, and exactly what is gained on them; and whether that is right: by the others
        it gains, or gains nothing, or neither.
        """
        shown = min(len(self.seen), len(self.gains) // 2)
        return bool(self.gains[:shown].mean() >= WORTH / 2.0), worth(self.gains[shown:])


def worth(gains: NDArray[np.float64]) -> bool | None:
    """Whether a change truly gains: `WORTH` and more than half the 95 % interval, or nothing; None
    where it is between.
    """
    half = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5
    if gains.mean() >= WORTH and gains.mean() > half:
        return True
    return None if gains.mean() > 0.0 else False


def pairs(number: int, seed: int) -> Iterator[Pair]:
    """Pairs of all kinds in turn."""
    for each in range(seed, seed + number):
        rng = np.random.default_rng(each)
        kind = KINDS[each % len(KINDS)]
        num_windows = int(rng.integers(6, 17))
        tokens = int(rng.choice(_TOKENS))
        first = rng.normal(size=_SHAPE) * rng.uniform(0.4, 1.0)
        second = first + rng.normal(size=_SHAPE) * rng.uniform(0.1, 0.6)
        yield _between(kind, rng, num_windows, tokens, (first, second), CLUSTER)


def recorded_pairs(traces: Path, number: int, seed: int) -> Iterator[Pair]:
    """Pairs of recorded loads, of all kinds in turn."""
    files = sorted((traces / "deepseek_v3").glob("*.json"))
    found = [eplb.load_trace(file) for file in files]
    logs = [np.log(np.maximum(each.loads[0][~each.dense], 0.5)) for each in found]
    with np.load(traces / "gptoss20b_domains_2048.npz") as file:
        subjects = file["counts"].astype(np.float64)
    with np.load(traces / "gptoss20b_tokens.npz") as file:
        sequences = np.split(file["topk_ids"], np.cumsum(file["lengths"])[:-1])
        topics = file["topic"]
    experts = np.arange(subjects.shape[2])
    counts = np.stack([(ids[..., None] == experts).sum(axis=(0, 2)) for ids in sequences])
    general = np.char.startswith(topics, "mmlu_") & ~np.char.startswith(topics, "mmlu_pro")
    for each in range(seed, seed + number):
        rng = np.random.default_rng(each)
        kind = RECORDED[each % len(RECORDED)]
        num_windows = int(rng.integers(6, 17))
        if kind == "subjects":
            begin = int(rng.integers(0, len(subjects) - 2 * num_windows - 19))
            loads = subjects[begin : begin + 2 * num_windows + _LATER, int(rng.integers(4)) :: 4]
            yield _pair(kind, loads, num_windows, _OF_GPT_OSS)
        elif kind == "served":
            yield _served(rng, num_windows, counts.astype(np.float64), general)
        else:
            layers = rng.choice(len(logs[0]), _SHAPE[0], replace=False)
            one, other = rng.choice(len(logs), 2, replace=False)
            tokens = 2 * int(rng.choice(_TOKENS))
            ends = logs[one][layers], logs[other][layers]
            yield _between(kind, rng, num_windows, tokens, ends, _OF_DEEPSEEK)


def _between(
    kind: str,
    rng: np.random.Generator,
    num_windows: int,
    tokens: int,
    ends: tuple[NDArray[np.float64], NDArray[np.float64]],
    cluster: eplb.Cluster,
) -> Pair:
    """A pair between two loads, the logarithms of whose shares are `ends`, [L, E] each."""
    first, second = ends
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
    noise = spread * rng.normal(size=(total, *first.shape))
    share = np.exp(first + part[:, None, None] * (second - first) + noise)
    loads = rng.poisson(share / share.sum(-1, keepdims=True) * tokens).astype(np.float64)
    return _pair(kind, loads, num_windows, cluster)


def _served(
    rng: np.random.Generator,
    num_windows: int,
    counts: NDArray[np.float64],
    general: NDArray[np.bool_],
) -> Pair:
    """A pair of windows of whole sequences, of loads [S, L, E], drawn at random and so again and
    again: of all, or of general subjects before and of the others since.
    """
    size = int(rng.choice(_SEQUENCES))
    layers = int(rng.integers(4))
    drawn = np.arange(len(counts)), np.arange(len(counts))
    if rng.random() < 0.5:
        drawn = np.flatnonzero(general), np.flatnonzero(~general)
    chosen = [
        rng.choice(some, (number, size))
        for some, number in zip(drawn, (num_windows, num_windows + _LATER), strict=True)
    ]
    loads = np.stack([counts[each, layers::4].sum(axis=0) for each in np.concatenate(chosen)])
    return _pair("served", loads, num_windows, _OF_GPT_OSS)


def _pair(kind: str, loads: NDArray[np.float64], num_windows: int, cluster: eplb.Cluster) -> Pair:
    """A pair of windows in their order: so many before, as many seen, and the others to come."""
    current = eplb.plan(loads[:num_windows], cluster).placement
    seen = loads[num_windows : 2 * num_windows]
    return Pair(kind, cluster, seen, current, loads[2 * num_windows :])


def advice(pair: Pair) -> dict[str, bool]:
    """Whether each of four commands advises a change."""
    cluster = ("--gpus", str(pair.cluster.num_gpus), "--nodes", str(pair.cluster.num_nodes))
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


def _print_held(found: list[tuple[str, bool]], kinds: tuple[str, ...]) -> None:
    """How often intervals hold what is truly gained, in all and of each kind."""
    print(f"the interval holds it in {sum(held for _, held in found)} of {len(found)}", end=": ")
    some = {kind: [held for of, held in found if of == kind] for kind in kinds}
    print(", ".join(f"{kind} {sum(each)} of {len(each)}" for kind, each in some.items()))


def _print(begin: str, found: list[tuple[str, bool, bool | None]], kinds: tuple[str, ...]) -> None:
    """How often it is advised where it gains and where it does not, in all and of each kind."""
    for name, truth in (("truly gains .02", True), ("gains nothing", False)):
        some = {
            kind: [it for of, it, gains in found if of == kind and gains is truth] for kind in kinds
        }
        everything = [each for advised in some.values() for each in advised]
        print(f"{begin}{name}: advised in {sum(everything)} of {len(everything)}", end="")
        print(f" ({np.mean(everything or [False]):.1%}): ", end="")
        print(", ".join(f"{kind} {sum(each)} of {len(each)}" for kind, each in some.items()))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--every-command", type=int, default=0, help="pairs in which all four commands are asked"
    )
    parser.add_argument("--traces", type=Path, metavar="DIR", help="recorded loads")
    asked = parser.parse_args()
    agreed = 0
    kinds: tuple[str, ...] = KINDS
    made = pairs(asked.pairs, asked.seed)
    if asked.traces is not None:
        kinds, made = RECORDED, recorded_pairs(asked.traces, asked.pairs, asked.seed)
    found: list[tuple[str, bool, bool | None]] = []
    known: list[tuple[str, bool, bool | None]] = []
    held: list[tuple[str, bool]] = []
    for number, pair in enumerate(made):
        if number < asked.every_command:
            agreed += len(set(advice(pair).values())) == 1
        verdict = judge(pair.seen, pair.cluster, pair.current)
        found.append((pair.kind, verdict.advised, worth(pair.gains)))
        if verdict.interval is not None:
            gain = pair.gained(verdict.plan.placement).mean()
            held.append((pair.kind, bool(verdict.interval.low <= gain <= verdict.interval.high)))
        known.append((pair.kind, *pair.known()))
    _print("", found, kinds)
    _print_held(held, kinds)
    print(f"one who is shown windows to come, and advises what gains {WORTH / 2.0:g} on them:")
    _print("  ", known, kinds)
    if asked.every_command:
        print(f"all commands agree in {agreed} of {min(asked.every_command, asked.pairs)}")


if __name__ == "__main__":
    main()
