"""How often the advice is right: pairs of loads and running placement, with what is truly gained.

Each pair has windows seen, a placement made from older windows, and 60 windows to come. A plan from
the windows seen truly gains what it is more balanced by on those to come. Prints the share of pairs
in which a change is advised where it truly gains, and where it does not, by kind of load. With
`--traces` loads are recorded: shares of DeepSeek-V3's workloads that stay, change and drift as made
ones do; tokens of gpt-oss-20b as a service mixes them, before which other subjects ran or the same;
and its windows in the order of their subjects, of which none tells when the next begins.

    python bench/advice.py [--pairs 200] [--seed 0] [--every-command 0] [--traces ../shared/traces]
"""

import argparse
import contextlib
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
_WINDOW = 1_024
"""Tokens in a window of a service."""
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

    def true_gain(self) -> tuple[float, float]:
        """Balancedness gained on windows to come, and half its 95 % interval."""
        made = eplb.plan(self.seen, self.cluster).placement
        gains = [made.balancedness(each) - self.current.balancedness(each) for each in self.later]
        return float(np.mean(gains)), float(1.96 * np.std(gains, ddof=1) / len(gains) ** 0.5)


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
    for each in range(seed, seed + number):
        rng = np.random.default_rng(each)
        kind = RECORDED[each % len(RECORDED)]
        num_windows = int(rng.integers(6, 17))
        if kind == "subjects":
            begin = int(rng.integers(0, len(subjects) - 2 * num_windows - 19))
            loads = subjects[begin : begin + 2 * num_windows + _LATER, int(rng.integers(4)) :: 4]
            yield _pair(kind, loads, num_windows, _OF_GPT_OSS)
        elif kind == "served":
            yield _served(rng, num_windows, sequences, topics)
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
    sequences: list[NDArray[np.uint8]],
    topics: NDArray[np.str_],
) -> Pair:
    """A pair of whole sequences [tokens, L, k] in random order, no token twice."""
    general = np.char.startswith(topics, "mmlu_") & ~np.char.startswith(topics, "mmlu_pro")
    order = rng.permutation(len(sequences))
    if rng.random() < 0.5:
        parts = np.array_split(order, 3)
    else:
        parts = [order[general[order]], *np.array_split(order[~general[order]], 2)]
    layers = int(rng.integers(4))
    before, seen, later = (
        _windows(np.concatenate([sequences[each][:, layers::4] for each in part])) for part in parts
    )
    loads = np.concatenate([before[:num_windows], seen[:num_windows], later])
    return _pair("served", loads, num_windows, _OF_GPT_OSS)


def _windows(chosen: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[T, L, E] loads of tokens [N, L, k]."""
    whole = chosen[: len(chosen) // _WINDOW * _WINDOW].reshape(-1, _WINDOW, *chosen.shape[1:])
    loads: NDArray[np.float64] = (whole[..., None] == np.arange(32)).sum(axis=(1, 3)).astype(float)
    return loads


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
    worth: dict[str, list[bool]] = {kind: [] for kind in kinds}
    useless: dict[str, list[bool]] = {kind: [] for kind in kinds}
    for number, pair in enumerate(made):
        gain, half = pair.true_gain()
        if number < asked.every_command:
            agreed += len(set(advice(pair).values())) == 1
        advised = judge(pair.seen, pair.cluster, pair.current).advised
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
