"""Nodes as a preference: balancedness against the other nodes that a token is sent to.

    python bench/nodes.py --traces ../shared/traces --check

DeepSeek-V3 routes a token to 8 experts in 4 of 8 groups. Plans are for 288 slots on 32 GPUs of 4
nodes: with experts anywhere, with each group on one node, and at rising prices of a node. Beside
what `eplb.other_nodes` expects, tokens are drawn and counted: scores of experts are the logarithm
of their load and a Gumbel variable, the groups are those of the largest sum of their two best
scores, as the model has it, and the experts the best of these. They go to a copy on their own node
if there is one, else to any.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import OneLineParser, positive
from rich.table import Table
from tables import console_for_tables, show_bars

import eplb
from eplb import Cluster, Placement, Traffic, synthetic

_CLUSTER = Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
_TOP_K, _GROUPS, _TOPK_GROUPS = 8, 8, 4
_PRICES = (0.0, 0.001, 0.003, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0)
_POINTS, _FEWER, _EVEN = 5, 0.97, 0.98
_SAME = 5e-4
"""Balancedness that is as good as that of a plan with experts anywhere: what planning leaves."""
_WORKLOAD = "decode_in500out1500"


def drawn(
    placement: Placement, loads: NDArray[np.float64], tokens: int, rng: np.random.Generator
) -> float:
    """Other nodes of so many tokens in each layer."""
    nodes, num_experts = placement.cluster.num_nodes, placement.num_experts
    node_of_slot = np.arange(placement.cluster.num_slots) * nodes // placement.cluster.num_slots
    counted = []
    for layer, load in enumerate(loads):
        with np.errstate(divide="ignore"):
            scores = np.log(load) + rng.gumbel(size=(tokens, num_experts))
        by_group = np.sort(scores.reshape(tokens, _GROUPS, -1), axis=2)
        of_group = by_group[:, :, -2:].sum(axis=2)
        last = np.sort(of_group, axis=1)[:, -_TOPK_GROUPS]
        left_out = np.repeat(of_group < last[:, None], num_experts // _GROUPS, axis=1)
        scores[left_out] = -np.inf
        experts = np.argpartition(-scores, _TOP_K, axis=1)[:, :_TOP_K]
        source = rng.integers(nodes, size=(tokens, 1))
        copy = (rng.random(experts.shape) * placement.logcnt[layer][experts]).astype(np.int64)
        target = node_of_slot[placement.log2phy[layer][experts, copy]]
        holds = np.zeros((nodes, num_experts), np.bool_)
        holds[node_of_slot, placement.phy2log[layer]] = True
        target = np.where(holds[source, experts], source, target)
        reached = np.zeros((tokens, nodes), np.bool_)
        reached[np.arange(tokens)[:, None], target] = True
        reached[np.arange(tokens)[:, None], source] = False
        counted.append(reached.sum(axis=1).mean())
    return float(np.mean(counted))


def main() -> int:
    """Print the curve and, with `--check`, what of it is met."""
    parser = OneLineParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", type=Path, help="folder of recorded loads; made ones without")
    parser.add_argument("--workload", default=_WORKLOAD, help="recorded workload of DeepSeek-V3")
    parser.add_argument("--layers", type=positive, help="layers, the first so many")
    parser.add_argument("--tokens", type=positive, default=2000, help="tokens drawn in each layer")
    parser.add_argument("--copies", choices=("near", "any"), default="near")
    parser.add_argument("--effort", choices=("fast", "default", "thorough"), default="default")
    parser.add_argument("--check", action="store_true", help="fail where a bar is missed")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args()
    try:
        loads = _loads(asked.traces, asked.workload)[: asked.layers]
    except eplb.EplbError as error:
        parser.error(str(error))
    points = _points(loads, asked)
    bars = _bars(points)
    if asked.json:
        print(json.dumps({"points": points, "bars": [asdict(bar) for bar in bars]}))
    else:
        _show(points)
        show_bars(bars)
    return int(asked.check and not all(bar.met for bar in bars))


def _loads(traces: Path | None, workload: str) -> NDArray[np.float64]:
    if traces is None:
        return synthetic.deepseek_v3(seed=1)
    trace = eplb.load_trace(traces / "deepseek_v3" / f"{workload}.json")
    loads: NDArray[np.float64] = trace.loads[0][~trace.dense]
    return loads


def _points(loads: NDArray[np.float64], asked: argparse.Namespace) -> list[dict[str, object]]:
    """What each plan reaches, and its time."""
    points: list[dict[str, object]] = []

    def add(what: str, num_groups: int, price: float | None) -> None:
        traffic = Traffic(_TOP_K, _TOPK_GROUPS, price, copies=asked.copies)
        begin = time.process_time()
        made = eplb.plan(
            loads, _CLUSTER, num_groups=num_groups, effort=asked.effort,
            traffic=None if price is None else traffic,
        )  # fmt: skip
        seconds = time.process_time() - begin
        others = eplb.other_nodes(made.placement, loads, traffic, num_groups=_GROUPS)
        points.append(
            {
                "plan": what,
                "price": price,
                "balancedness": made.placement.balancedness(loads),
                "other_nodes": float(others.mean()),
                "drawn": drawn(made.placement, loads, asked.tokens, np.random.default_rng(1)),
                "seconds": seconds,
            }
        )

    eplb.plan(loads[:1], _CLUSTER, num_groups=_GROUPS, traffic=Traffic(8, 4, 1.0))
    add("anywhere", 1, None)
    add("groups on nodes", _GROUPS, None)
    for price in _PRICES:
        add(f"price {price:g}", _GROUPS, price)
    return points


def _bars(points: list[dict[str, object]]) -> list[Bar]:
    score = np.array([point["balancedness"] for point in points], np.float64)
    nodes = np.array([point["other_nodes"] for point in points], np.float64)
    apart, strict, priced = nodes[0], nodes[1], nodes[2:]
    falls = int((np.diff(priced) < -1e-4).sum()) + 1
    as_even = priced[score[2:] >= score[0] - _SAME].min()
    even = priced[score[2:] >= _EVEN].min(initial=np.inf)
    return [
        Bar("points of the curve", f"at least {_POINTS}", str(falls), falls >= _POINTS),
        Bar(
            f"other nodes as balanced as anywhere ({score[0]:.4f}, less {_SAME:g})",
            f"at most {_FEWER:g} of {apart:.3f}",
            f"{as_even:.3f}, {as_even / apart:.3f} of it",
            bool(as_even <= _FEWER * apart),
        ),
        Bar(
            f"other nodes at a balancedness of {_EVEN:g}",
            f"fewer than {strict:.3f}, with groups on nodes ({score[1]:.4f})",
            f"{even:.3f}",
            bool(even < strict),
        ),
    ]


def _show(points: list[dict[str, object]]) -> None:
    table = Table(title="nodes as a preference", title_justify="left")
    table.add_column("plan", no_wrap=True)
    for heading in ("balancedness", "other nodes", "drawn", "s of CPU"):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            str(point["plan"]),
            f"{point['balancedness']:.4f}",
            f"{point['other_nodes']:.3f}",
            f"{point['drawn']:.3f}",
            f"{point['seconds']:.2f}",
        )
    console_for_tables().print(table)


if __name__ == "__main__":
    sys.exit(main())
