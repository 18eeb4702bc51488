"""Migrations between plans for recorded loads: waves, bytes between nodes, time.

    python bench/migrate.py --traces ../shared/traces --check

Beside ours stands a peer that takes the first GPU which holds an expert as its source, as engines
roughly do, and sends in the order of layers, a transfer in the first wave in which both ends are
free. `--check` judges the bars: each limit kept, waves within 1 of the bound, no transfer between
nodes that a copy in the node could spare.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import OneLineParser, positive
from race import Load
from tables import show_bars

import eplb
from eplb import Cluster, Placement, synthetic
from eplb.cost.models import EXPERT_BYTES
from eplb.moving.migrate import Migration, migrate

_CLUSTER = Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
_FROM, _TO = "prefill_in512", ("prefill_in2048", "decode_in500out1500")
_MOST_SECONDS = 2.0
_SHARE_OF_FEW = 0.05
_LIMITS: tuple[dict[str, int], ...] = (
    {},
    {"experts_at_once": 4},
    {"spare_slots": 9},
    {"uplink_share": 4},
    {"experts_at_once": 4, "uplink_share": 16, "spare_slots": 16},
)
_SIZE = EXPERT_BYTES["DeepSeek-V3"]
_WITHIN, _BETWEEN = 160.0, 400.0
"""GB/s of a GPU's NVLink and of a node's eight links of 50: of DeepSeek-V3's clusters (H800)."""


def peer(old: Placement, new: Placement, at_once: int) -> tuple[int, int]:
    """Waves, and transfers between nodes, from the first holder and in the order of layers."""
    cluster = old.cluster
    before = old.phy2log.reshape(old.num_layers, cluster.num_gpus, -1)
    after = new.phy2log.reshape(before.shape)
    per_node = cluster.num_gpus // cluster.num_nodes
    busy: Counter[tuple[str, int, int]] = Counter()
    waves = far = 0
    for had, wanted in zip(before, after, strict=True):
        held = [set(row) for row in had.tolist()]
        first = {expert: gpu for gpu in reversed(range(cluster.num_gpus)) for expert in held[gpu]}
        for target, row in enumerate(wanted.tolist()):
            for expert in sorted(set(row) - held[target]):
                source = first[expert]
                far += source // per_node != target // per_node
                wave = 0
                ends = ("sends", source), ("receives", target)
                while any(busy[end, gpu, wave] == at_once for end, gpu in ends):
                    wave += 1
                for end, gpu in ends:
                    busy[end, gpu, wave] += 1
                waves = max(waves, wave + 1)
    return waves, far


def needed_between_nodes(old: Placement, new: Placement) -> int:
    """Transfers for which no GPU of the target's node has the expert."""
    cluster = old.cluster
    shape = (old.num_layers, cluster.num_nodes, cluster.num_gpus // cluster.num_nodes, -1)
    far = 0
    for before, after in zip(old.phy2log.reshape(shape), new.phy2log.reshape(shape), strict=True):
        for had, wants in zip(before.tolist(), after.tolist(), strict=True):
            there = {expert for gpu in had for expert in gpu}
            far += sum(len(set(gpu) - there) for gpu in wants)
    return far


def judged(name: str, old: Placement, new: Placement, limits: dict[str, int]) -> Iterator[Bar]:
    """One migration under limits."""
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        found = migrate(
            old,
            new,
            bytes_per_expert=_SIZE,
            bandwidth_within=_WITHIN,
            bandwidth_between=_BETWEEN,
            **limits,
        )
        seconds.append(time.perf_counter() - begin)
    said = ", ".join(f"{limit} {value}" for limit, value in limits.items()) or "one at once"
    what = f"{name}, {found.num_transfers} experts, {said}"
    at_once = limits.get("experts_at_once", 1)
    waves, far = peer(old, new, at_once)
    kept = _keeps(found, limits)
    yield Bar(
        f"{what}: waves",
        f"at most {found.fewest_waves} + 1, limits kept",
        f"{found.num_waves}, {found.spare_slots.max()} buffers, {found.seconds:.3f} s implied"
        + ("" if kept else ", a limit passed")
        + ("" if "uplink_share" in limits else f"; peer {waves}"),
        kept and found.num_waves <= found.fewest_waves + 1,
    )
    if not limits:
        needed = needed_between_nodes(old, new)
        yield Bar(
            f"{what}: GB between nodes",
            f"{needed * _SIZE / 1e9:.1f}",
            f"{found.num_between_nodes * _SIZE / 1e9:.1f}; peer {far * _SIZE / 1e9:.1f}",
            found.num_between_nodes == needed,
        )
        best = min(seconds)
        yield Bar(
            f"{what}: time", f"{_MOST_SECONDS:g} s", f"{best * 1e3:.0f} ms", best <= _MOST_SECONDS
        )


def _keeps(found: Migration, limits: dict[str, int]) -> bool:
    node = np.arange(_CLUSTER.num_gpus) // (_CLUSTER.num_gpus // _CLUSTER.num_nodes)
    far = node[found.source] != node[found.target]

    def most(owner: NDArray[np.int64], wave: NDArray[np.int64]) -> int:
        return max(Counter(zip(owner.tolist(), wave.tolist(), strict=True)).values(), default=0)

    gpus = max(most(end, found.wave) for end in (found.source, found.target))
    nodes = max(most(node[end[far]], found.wave[far]) for end in (found.source, found.target))
    return (
        gpus <= limits.get("experts_at_once", 1)
        and nodes <= limits.get("uplink_share", nodes)
        and int(found.spare_slots.max()) <= limits.get("spare_slots", 1 << 30)
    )


def few_swaps(old: Placement, share: float) -> Placement:
    """The placement after swaps of random slots, of which a share of all slots changes."""
    rng = np.random.default_rng(0)
    phy2log = old.phy2log.copy()
    for _ in range(int(share * phy2log.size / 2)):
        layer = rng.integers(len(phy2log))
        swapped = rng.integers(phy2log.shape[1], size=2)
        phy2log[layer, swapped] = phy2log[layer, swapped[::-1]]
    return Placement(phy2log, old.num_experts, old.cluster)


def _pairs(traces: Path | None) -> Iterator[tuple[str, Placement, Placement]]:
    if traces is None:
        loads = {f"synthetic {seed}": synthetic.deepseek_v3(seed=seed) for seed in (1, 2)}
    else:
        folder = traces / "deepseek_v3"
        recorded = {name: eplb.load_trace(folder / f"{name}.json") for name in (_FROM, *_TO)}
        loads = {name: trace.loads[0][~trace.dense] for name, trace in recorded.items()}
    plans = {name: eplb.plan(each, _CLUSTER).placement for name, each in loads.items()}
    (first, old), *others = plans.items()
    for name, new in others:
        yield f"{first} to {name}", old, new
    yield f"{first}, {_SHARE_OF_FEW:.0%} swapped", old, few_swaps(old, _SHARE_OF_FEW)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(prog="bench/migrate.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", help="recorded loads: DIR/deepseek_v3/*.json")
    add("--limits", type=positive, default=len(_LIMITS), help="only so many kinds of limits")
    add("--check", action="store_true", help="exit with 1 if a bar is missed")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options: argparse.Namespace = parser.parse_args()
    load = Load()
    try:
        bars = [
            bar
            for name, old, new in _pairs(options.traces)
            for limits in _LIMITS[: options.limits]
            for bar in judged(name, old, new, limits)
        ]
    except eplb.EplbError as error:
        parser.error(str(error))
    others = load.others()
    if options.json:
        print(json.dumps({"others_busy": others, "bars": [asdict(bar) for bar in bars]}))
    else:
        show_bars(bars)
        if others is not None:
            print(f"processors that other programs kept busy meanwhile: {others:.2f}")
    return 1 if options.check and any(bar.missed for bar in bars) else 0


if __name__ == "__main__":
    sys.exit(main())
