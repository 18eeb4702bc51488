"""Plain oracles: what every kernel computes, written to be read, slow and without numba.

Loads of a layer are lists of floats, placements lists of GPUs, each a list of its experts.
"""

import itertools
from collections.abc import Iterator, Sequence

__all__ = [
    "adams",
    "balancedness",
    "bldm",
    "busiest_node",
    "dealt",
    "falling",
    "fixed_counts_optimum",
    "gpu_loads",
    "log2phy",
    "logcnt",
    "moves",
    "num_duplicates",
    "on_nodes",
    "optimum",
    "replica_counts",
]

Gpus = list[list[int]]


def falling(values: Sequence[float]) -> list[int]:
    """Indices from the largest value to the smallest, ties by lowest index."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


def adams(loads: Sequence[float], num_slots: int, max_copies: int) -> list[int]:
    """One replica each; every further slot to the expert with the largest load per replica.

    Ties go to the expert with fewer replicas, then to the lowest index.
    """
    counts = [1] * len(loads)
    for _ in range(num_slots - len(loads)):
        allowed = [e for e in range(len(loads)) if counts[e] < max_copies]
        counts[min(allowed, key=lambda e: (-loads[e] / counts[e], counts[e], e))] += 1
    return counts


def replica_counts(num_experts: int, num_slots: int, max_copies: int) -> Iterator[tuple[int, ...]]:
    """Every way to give experts 1 to `max_copies` replicas that fills the slots."""
    if num_experts == 1:
        if 1 <= num_slots <= max_copies:
            yield (num_slots,)
        return
    for first in range(1, min(max_copies, num_slots - num_experts + 1) + 1):
        for others in replica_counts(num_experts - 1, num_slots - first, max_copies):
            yield (first, *others)


def bldm(loads: Sequence[float], counts: Sequence[int], num_gpus: int) -> Gpus:
    """The balanced largest differencing method, before experts that meet on a GPU are parted.

    Replicas from heavy to light are cut into rows, one replica for each GPU in each. The two rows
    that spread most are merged, the heaviest stack of the one with the lightest of the other, until
    one row is left.
    """
    shares = [load / count for load, count in zip(loads, counts, strict=True)]
    replicas = [expert for expert in falling(shares) for _ in range(counts[expert])]
    # A stack is its load and its experts; a row has its heaviest stack first.
    stacks = [(shares[expert], [expert]) for expert in replicas]
    rows = [stacks[i : i + num_gpus] for i in range(0, len(stacks), num_gpus)]
    while len(rows) > 1:
        widest = falling([row[0][0] - row[-1][0] for row in rows])
        one, other = sorted(widest[:2])
        merged = [
            (load + added_load, experts + added)
            for (load, experts), (added_load, added) in zip(
                rows[one], reversed(rows[other]), strict=True
            )
        ]
        del rows[other]
        rows[one] = sorted(merged, key=lambda stack: -stack[0]) if len(rows) > 1 else merged
    return [experts for _, experts in rows[0]]


def dealt(loads: Sequence[float], counts: Sequence[int], num_gpus: int) -> Gpus:
    """Replicas from heavy to light, dealt out to the GPUs like cards."""
    shares = [load / count for load, count in zip(loads, counts, strict=True)]
    replicas = [expert for expert in falling(shares) for _ in range(counts[expert])]
    return [replicas[gpu::num_gpus] for gpu in range(num_gpus)]


def on_nodes(groups: Sequence[int], num_nodes: int) -> Iterator[list[tuple[int, ...]]]:
    """Every way to put equally many groups on each node; nodes are alike."""
    if not groups:
        yield []
        return
    # The first group goes to some node: choose who goes with it.
    for company in itertools.combinations(groups[1:], len(groups) // num_nodes - 1):
        others = [group for group in groups[1:] if group not in company]
        for rest in on_nodes(others, num_nodes - 1):
            yield [(groups[0], *company), *rest]


def busiest_node(loads: Sequence[float], num_nodes: int) -> float:
    """Least load of the busiest node over every way to put groups on nodes."""
    return min(
        max(sum(loads[group] for group in node) for node in nodes)
        for nodes in on_nodes(range(len(loads)), num_nodes)
    )


def logcnt(phy2log: Sequence[int], num_experts: int) -> list[int]:
    """Replicas of each expert."""
    return [sum(held == expert for held in phy2log) for expert in range(num_experts)]


def log2phy(phy2log: Sequence[int], num_experts: int, width: int) -> list[list[int]]:
    """Slots of each expert in rising order, padded with -1 to `width`."""
    rows = []
    for expert in range(num_experts):
        slots = [slot for slot, held in enumerate(phy2log) if held == expert]
        rows.append(slots + [-1] * (width - len(slots)))
    return rows


def gpu_loads(phy2log: Sequence[int], loads: Sequence[float], num_gpus: int) -> list[float]:
    """Load of each GPU, an expert's load split evenly over its replicas, added slot by slot."""
    counts = logcnt(phy2log, len(loads))
    size = len(phy2log) // num_gpus
    totals = []
    for begin in range(0, len(phy2log), size):
        total = 0.0
        for expert in phy2log[begin : begin + size]:
            total += loads[expert] / counts[expert]
        totals.append(total)
    return totals


def balancedness(
    phy2log: Sequence[Sequence[int]], windows: Sequence[Sequence[Sequence[float]]], num_gpus: int
) -> float:
    """Mean over max GPU load, averaged over the layers of all windows that have any load."""
    ratios = []
    for loads in windows:
        for slots, layer in zip(phy2log, loads, strict=True):
            totals = gpu_loads(slots, layer, num_gpus)
            if max(totals) > 0.0:
                ratios.append(sum(totals) / num_gpus / max(totals))
    return sum(ratios) / len(ratios) if ratios else 1.0


def num_duplicates(phy2log: Sequence[int], num_gpus: int) -> int:
    """Slots that hold an expert which an earlier slot of the GPU holds too."""
    size = len(phy2log) // num_gpus
    return sum(expert in phy2log[slot // size * size : slot] for slot, expert in enumerate(phy2log))


def moves(
    new: Sequence[Sequence[int]], new_gpus: int, old: Sequence[Sequence[int]], old_gpus: int
) -> int:
    """(layer, GPU, expert) held in `new` and not in `old`."""

    def held(placement: Sequence[Sequence[int]], num_gpus: int) -> set[tuple[int, int, int]]:
        return {
            (layer, slot * num_gpus // len(slots), expert)
            for layer, slots in enumerate(placement)
            for slot, expert in enumerate(slots)
        }

    return len(held(new, new_gpus) - held(old, old_gpus))


def fixed_counts_optimum(
    loads: Sequence[float],
    counts: Sequence[int],
    num_gpus: int,
    *,
    duplicates: bool = False,
    below: float = float("inf"),
) -> float:
    """Least peak of any packing of these replicas, or `below` where none is lower.

    `duplicates` says whether a GPU may hold two replicas of an expert.
    """
    shares = [load / count for load, count in zip(loads, counts, strict=True)]
    replicas = [expert for expert in falling(shares) for _ in range(counts[expert])]
    size = len(replicas) // num_gpus
    gpus: Gpus = [[] for _ in range(num_gpus)]
    totals = [0.0] * num_gpus
    best = below

    def place(i: int) -> None:
        nonlocal best
        if i == len(replicas):
            best = max(totals)
            return
        expert = replicas[i]
        tried = []
        for gpu, held in enumerate(gpus):
            # GPUs that hold the same are alike: one of them stands for all.
            if len(held) == size or held in tried or (expert in held and not duplicates):
                continue
            if totals[gpu] + shares[expert] >= best * (1.0 - 1e-12):
                continue
            tried.append(list(held))
            before = totals[gpu]
            held.append(expert)
            totals[gpu] = before + shares[expert]
            place(i + 1)
            held.pop()
            totals[gpu] = before

    place(0)
    return best


def optimum(loads: Sequence[float], num_gpus: int, slots_per_gpu: int) -> float:
    """Least peak over all replica counts and all packings with no expert twice on a GPU.

    For small layers: up to about 6 experts in 8 slots.
    """
    best = float("inf")
    for counts in replica_counts(len(loads), num_gpus * slots_per_gpu, num_gpus):
        if max(load / count for load, count in zip(loads, counts, strict=True)) < best:
            best = fixed_counts_optimum(loads, counts, num_gpus, below=best)
    return best
