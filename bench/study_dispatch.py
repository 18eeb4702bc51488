"""Which dispatch for which batch: even copies, tables, each rank for itself, all ranks together.

    python bench/study_dispatch.py --traces path/to/traces

Recorded tokens of gpt-oss-20b, in steps of 32 to 16,384 tokens over all ranks, on 4 to 16 ranks,
one GPU each; and tokens drawn from recorded loads of DeepSeek-V3 on 32. docs/dispatch.md tells what
is found; `--help` tells the options. On one thread, in some ten minutes.

Of gpt-oss, steps of up to 256 tokens are decode steps: a token from each running sequence. Larger
ones are prefill: whole sequences one after the other. A placement is planned for one half of the
recording and scored on the other. Of DeepSeek-V3, it is planned for five workloads and scored on
the sixth, whose tokens are drawn for each rank alike. The time of a layer is the estimate of
`eplb.cost`. All layers are scored; `--only` takes one of the models.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from batches import counted, drawn, steps_of
from numpy.typing import NDArray
from options import OneLineParser
from study_dispatch_plot import draw

import eplb
from eplb.cost import Assumptions, find_gpu, find_model, layer_time
from eplb.dispatching.rules import TABLES
from eplb.torch import BatchDispatch

__all__ = ["LINES", "Point", "Work", "main", "points_of", "tables", "titled"]

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LARGEST_DECODE = 256
CLUSTERS = (
    eplb.Cluster(num_gpus=4, slots_per_gpu=9),
    eplb.Cluster(num_gpus=8, slots_per_gpu=5),
    eplb.Cluster(num_gpus=8, slots_per_gpu=6),
    eplb.Cluster(num_gpus=16, num_nodes=2, slots_per_gpu=3),
)
LARGE = eplb.Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
LARGE_SIZES = (256, 1024, 4096, 16384, 65536, 131072)
_WINDOW, _WINDOWS = 2048, 32
"""Tokens of a window that is planned for, and how many there are at most."""
_ALL, _QUICK = slice(None), slice(1, 2)
"""Layers that are scored."""
_SCORED, _DRAWN = 16, 4
"""Steps of gpt-oss and of DeepSeek-V3 that are scored."""
_POOL = 32768
"""Drawn tokens, from which steps take theirs."""
_ORDERS = 8
"""Orders of the sequences, from which prefill steps are cut."""
_KNUTH = 2654435769
"""vLLM's multiplier, 2^32 over the golden ratio: the copy is the hash of a token's index in its
rank's batch, modulo copies (vLLM 0.33.0, `_eplb_map_and_record_i32_kernel`)."""
LINES = {
    "even": "an even split, in fractions",
    "vllm": "vLLM: hash of the token's index",
    "sglang": "SGLang: its table, near first",
    "table": "eplb's table",
    "own": "each rank for itself",
    "together": "all ranks together",
    "own activated": "activated, each rank for itself",
    "activated": "activated, all ranks together",
}


@dataclass(frozen=True)
class Point:
    """A way to dispatch, at a batch size on a cluster; means over layers and steps.

    Attributes:
        load: whose tokens.
        gpus: ranks, a GPU each.
        slots: of all GPUs.
        tokens: of a step, over all ranks.
        line: the way, of `LINES`.
        balancedness: mean tokens of a GPU / most.
        touched: most slots of a GPU that have tokens.
        microseconds: of an expert layer on H100s, estimated.
    """

    load: str
    gpus: int
    slots: int
    tokens: int
    line: str
    balancedness: float
    touched: float
    microseconds: float


@dataclass(frozen=True)
class Work:
    """What is dispatched: a placement, the loads that it was planned for, and steps of tokens."""

    model: str
    placement: eplb.Placement
    windows: F64
    steps: Callable[[int], I64]
    """Of a layer: expert ids [steps, R, tokens, k]."""
    tokens: int


def gpt_oss(path: Path, cluster: eplb.Cluster, tokens: int, layers: slice) -> Work:
    """Steps of recorded tokens, decode or prefill by their size."""
    with np.load(path) as file:
        ids, lengths = file["topk_ids"][:, layers].astype(np.int64), file["lengths"]
    begins = np.cumsum(lengths) - lengths
    mixed = np.random.default_rng(0).permutation(len(lengths))

    def tokens_of(sequences: I64) -> I64:
        return np.concatenate([np.arange(lengths[i]) + begins[i] for i in sequences])

    if tokens <= _LARGEST_DECODE:
        steps = tokens_of(mixed)[steps_of(lengths[mixed], tokens)]
        half = len(steps) // 2
        seen, later = steps[:half].ravel(), steps[half:]
        later = later[:: -(-len(later) // _SCORED)]
    else:
        half = len(lengths) // 2
        seen = tokens_of(mixed[:half])
        cut = []
        for seed in range(_ORDERS):
            flat = tokens_of(np.random.default_rng(seed).permutation(mixed[half:]))
            whole = len(flat) // tokens
            cut.append(flat[: whole * tokens].reshape(whole, tokens)[: -(-_SCORED // _ORDERS)])
        later = np.concatenate(cut)
    number = min(_WINDOWS, len(seen) // _WINDOW)
    windows = np.stack(
        [counted(ids[part].swapaxes(0, 1), 32) for part in np.array_split(seen, number)]
    )
    of_rank = later.reshape(len(later), cluster.num_gpus, -1)
    placement = eplb.plan(windows, cluster, threads=1).placement
    return Work("gpt-oss-20b", placement, windows, lambda layer: ids[of_rank, layer], tokens)


def deepseek(folder: Path, cluster: eplb.Cluster, tokens: int, layers: slice) -> Work:
    """Steps of tokens that are drawn from a workload, the plan being for the others."""
    loads = eplb.load_trace(folder).loads
    loads = loads[:, loads.any(axis=(0, 2))][:, layers]
    loads = loads / loads.sum(axis=2, keepdims=True)
    windows, held_out = loads[:-1], loads[-1]
    placement = eplb.plan(windows, cluster, threads=1).placement

    def steps(layer: int) -> I64:
        rng = np.random.default_rng(layer)
        pool = drawn(rng, held_out[layer], _POOL, 8)
        ranks = cluster.num_gpus
        chosen: I64 = pool[rng.integers(_POOL, size=(_DRAWN, ranks, tokens // ranks))]
        return chosen

    return Work("DeepSeek-V3", placement, windows, steps, tokens)


def points_of(work: Work) -> Iterator[Point]:
    """All ways to dispatch the same steps."""
    placement, cluster, tokens = work.placement, work.placement.cluster, work.tokens
    ranks = cluster.num_gpus
    gpu, model = find_gpu("H100"), find_model(work.model)
    assumed = Assumptions().for_batch(tokens / ranks)
    found: dict[str, list[tuple[float, float, float]]] = {}

    def add(line: str, used: F64) -> None:
        """Note tokens of slots [P]."""
        of_gpu = used.reshape(ranks, -1)
        load, touched = of_gpu.sum(1), (of_gpu > 0.0).sum(1).astype(np.float64)
        time = layer_time(
            load, touched, gpu, model,
            num_gpus=ranks, num_nodes=cluster.num_nodes, assumptions=assumed,
        )  # fmt: skip
        row = (load.mean() / load.max(), touched.max(), float(time.seconds) * 1e6)
        found.setdefault(line, []).append(row)

    def add_slots(line: str, slots: I64) -> None:
        used = np.bincount(slots.ravel(), minlength=cluster.num_slots)
        add(line, used.astype(np.float64))

    tables = {
        "sglang": TABLES["sglang"](placement.log2phy, cluster),
        "table": eplb.dispatch(placement, work.windows, threads=1).table(),
    }
    hashed = (np.arange(tokens // ranks) * _KNUTH & 0xFFFFFFFF)[None, :, None]
    rank = np.arange(ranks)[:, None, None]
    ways = {"own": "together", "own activated": "activated"}
    if tokens > _LARGEST_DECODE:
        del ways["own activated"]
    for layer in range(placement.num_layers):
        log2phy, logcnt = placement.log2phy[layer], placement.logcnt[layer]
        own: dict[str, BatchDispatch] = {
            name: BatchDispatch(
                placement, layer, objective="tokens" if name == "own" else "activated"
            )
            for name in ways
        }
        for chosen in work.steps(layer):
            counts = np.bincount(chosen.ravel(), minlength=placement.num_experts)
            add("even", (counts / logcnt)[placement.phy2log[layer]])
            add_slots("vllm", log2phy[chosen, hashed % logcnt[chosen]])
            for name, table in tables.items():
                add_slots(name, table[layer][rank, chosen])
            for name, joined in ways.items():
                add_slots(
                    name, np.stack([own[name](torch.from_numpy(ids)).numpy() for ids in chosen])
                )
                # Ranks that level together do what one does that has all their tokens.
                whole = torch.from_numpy(chosen.reshape(tokens, -1))
                add_slots(joined, own[name](whole).numpy())
    for line in LINES:
        if line in found:
            mean = [float(each) for each in np.mean(found[line], axis=0)]
            yield Point(work.model, ranks, cluster.num_slots, tokens, line, *mean)


def every_point(traces: Path, only: str | None, *, quick: bool) -> list[Point]:
    """The points of all clusters and batch sizes, of one model or of all."""
    points: list[Point] = []
    layers = _QUICK if quick else _ALL
    if only in (None, "gpt-oss-20b"):
        path = traces / "gptoss20b_tokens.npz"
        for cluster in CLUSTERS[1:2] if quick else CLUSTERS:
            for tokens in SIZES[3::4] if quick else SIZES:
                points += points_of(gpt_oss(path, cluster, tokens, layers))
    if only in (None, "DeepSeek-V3"):
        for tokens in LARGE_SIZES[:1] if quick else LARGE_SIZES:
            points += points_of(deepseek(traces / "deepseek_v3", LARGE, tokens, layers))
    return points


def sampled(only: str | None, *, quick: bool) -> str:
    """What of the recordings is scored, in one line."""
    parts = []
    for model, number, steps in (
        ("gpt-oss-20b", 24, f"at most {_SCORED} steps of each size"),
        ("DeepSeek-V3", 58, f"{_DRAWN} steps of each size"),
    ):
        if only in (None, model):
            scored = len(range(number)[_QUICK if quick else _ALL])
            parts.append(f"{model}: {scored} of {number} layers, {steps}")
    return "; ".join(parts)


def titled(points: list[Point]) -> str:
    """The finding, in one sentence with its numbers."""
    found = {
        point.line: point.balancedness
        for point in points
        if (point.load, point.slots, point.tokens) == ("gpt-oss-20b", 40, 256)
    }
    return (
        f"256 tokens of gpt-oss-20b on 8 GPUs have balancedness {found['vllm']:.2f} by vLLM's "
        f"hash, {found['own']:.2f} if each rank splits its own, {found['together']:.2f} together"
    )


def tables(points: list[Point]) -> str:
    """Markdown: balancedness, estimated time, and the most slots that a GPU touches."""
    parts = []
    places = list(dict.fromkeys((point.load, point.gpus, point.slots) for point in points))
    for load, gpus, slots in places:
        here = [p for p in points if (p.load, p.gpus, p.slots) == (load, gpus, slots)]
        sizes = sorted({point.tokens for point in here})
        for what, name, digits in (
            ("balancedness", "balancedness", 3),
            ("estimated us a layer", "microseconds", 0),
            ("most slots touched", "touched", 2),
        ):
            lines = [
                f"| {load}, {gpus} ranks, {slots} slots: {what} | "
                + " | ".join(f"{size:,}" for size in sizes) + " |",
                "| --- |" + " ---: |" * len(sizes),
            ]  # fmt: skip
            for line, label in LINES.items():
                values = {p.tokens: getattr(p, name) for p in here if p.line == line}
                if values:
                    cells = (f"{values[n]:.{digits}f}" if n in values else "" for n in sizes)
                    lines.append(f"| {label} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    parser = OneLineParser(
        prog="bench/study_dispatch.py", description=(__doc__ or "").split("\n", 1)[0]
    )
    add = parser.add_argument
    add(
        "--traces",
        type=Path,
        required=True,
        metavar="DIR",
        help="recordings: DIR/gptoss20b_tokens.npz and DIR/deepseek_v3/*.json",
    )
    add(
        "--out",
        type=Path,
        default=Path("docs/assets/dispatch.svg"),
        metavar="FILE",
        help="the figure (docs/assets/dispatch.svg)",
    )
    add(
        "--only",
        choices=("gpt-oss-20b", "DeepSeek-V3"),
        metavar="MODEL",
        help="gpt-oss-20b or DeepSeek-V3 alone, and no figure",
    )
    add("--quick", action="store_true", help="few sizes and layers, to try whether it runs")
    add("--json", action="store_true", help="print the data as one JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        points = every_point(options.traces, options.only, quick=options.quick)
        title = sampled(options.only, quick=options.quick)
        if options.only is None:
            text = draw(points, found := titled(points))
            options.out.write_text(text, encoding="utf-8")
            title = f"{options.out}: {found}\n{title}"
    except (eplb.EplbError, OSError) as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps([asdict(point) for point in points]))
    else:
        print(f"{title}\n\n{tables(points)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
