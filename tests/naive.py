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
    "expected_peak",
    "falling",
    "fixed_counts_optimum",
    "gpu_loads",
    "levelled_optimum",
    "log2phy",
    "logcnt",
    "moves",
    "num_duplicates",
    "on_nodes",
    "optimum",
    "packings",
    "replica_counts",
    "scaled",
    "spread",
    "windows_optimum",
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


def paired(loads: Sequence[float], counts: Sequence[int]) -> list[float]:
    """Loads of GPUs of two slots: the largest replica beside the smallest, and so on inwards, with
    no regard to experts that meet themselves.
    """
    shares = [load / count for load, count in zip(loads, counts, strict=True)]
    replicas = sorted(
        share for share, count in zip(shares, counts, strict=True) for _ in range(count)
    )
    return [replicas[i] + replicas[-1 - i] for i in range(len(replicas) // 2)]


def excess(gpu_loads: Sequence[float], target: float) -> float:
    """Sum over GPUs of the squared load above a target."""
    return sum(max(0.0, load - target) ** 2 for load in gpu_loads)


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


def expected_busiest_node(windows: Sequence[Sequence[float]], num_nodes: int) -> float:
    """Least sum over windows of the busiest node's load, over every way to put groups on nodes."""
    return min(
        sum(max(sum(loads[group] for group in node) for node in nodes) for loads in windows)
        for nodes in on_nodes(range(len(windows[0])), num_nodes)
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


def most_even(
    loads: Sequence[float], phy2log: Sequence[int], pace: Sequence[float]
) -> dict[int, float]:
    """Loads over paces of the GPUs that hold anything, as even as the placement allows when tokens
    may be split over copies in any parts: of all sets of GPUs, the one whose experts have nowhere
    else to go and weigh most for their pace is level at that, and the same holds of what is left.
    """
    per_gpu = len(phy2log) // len(pace)
    homes: dict[int, set[int]] = {}
    for slot, expert in enumerate(phy2log):
        if expert >= 0:
            homes.setdefault(expert, set()).add(slot // per_gpu)
    left = sorted(set().union(*homes.values()))
    found: dict[int, float] = {}
    while left:
        best, chosen = -1.0, set(left)
        for size in range(len(left), 0, -1):
            for some in itertools.combinations(left, size):
                held = sum(loads[each] for each, on in homes.items() if on <= set(some))
                level = held / sum(pace[gpu] for gpu in some)
                if level > best * (1.0 + 1e-12):
                    best, chosen = level, set(some)
        found.update(dict.fromkeys(chosen, best))
        left = [gpu for gpu in left if gpu not in chosen]
        homes = {each: on - chosen for each, on in homes.items() if not on <= chosen}
    return found


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


def scaled(
    windows: Sequence[Sequence[float]], weights: Sequence[float]
) -> tuple[list[list[float]], list[float]]:
    """The windows of a layer that have load and weight, brought to their mean total; the weights
    brought to a sum of 1.
    """
    seen = [t for t, loads in enumerate(windows) if weights[t] > 0.0 and sum(loads) > 0.0]
    weight = [weights[t] / sum(weights[t] for t in seen) for t in seen]
    mean = sum(each * sum(windows[t]) for each, t in zip(weight, seen, strict=True))
    return [[load * mean / sum(windows[t]) for load in windows[t]] for t in seen], weight


def expected_peak(
    phy2log: Sequence[int],
    windows: Sequence[Sequence[float]],
    weights: Sequence[float],
    num_gpus: int,
) -> float:
    """Weighted mean of the busiest GPU's load over windows brought to one total."""
    return sum(
        weight * max(gpu_loads(phy2log, loads, num_gpus))
        for loads, weight in zip(*scaled(windows, weights), strict=True)
    )


def packings(
    experts: Sequence[int], num_gpus: int, slots_per_gpu: int
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every way to fill GPUs so that each expert has a slot, replicas of one on a GPU and all; GPUs
    are alike.
    """
    held = list(itertools.combinations_with_replacement(experts, slots_per_gpu))
    for gpus in itertools.combinations_with_replacement(held, num_gpus):
        if len(set().union(*gpus)) == len(experts):
            yield gpus


def windows_optimum(
    windows: Sequence[Sequence[float]],
    weights: Sequence[float],
    num_gpus: int,
    slots_per_gpu: int,
    num_nodes: int = 1,
) -> float:
    """Least expected peak of any placement, each expert on one node, equally many on each.

    For tiny layers: up to about 5 experts in 6 slots, or twice 3 experts in 4 slots.
    """
    levelled, weight = scaled(windows, weights)
    best = float("inf")
    for nodes in on_nodes(range(len(windows[0])), num_nodes):
        # Peaks, window by window, of each way to fill a node.
        peaks = [
            {
                tuple(
                    max(gpu_loads([e for gpu in gpus for e in gpu], loads, len(gpus)))
                    for loads in levelled
                )
                for gpus in packings(experts, num_gpus // num_nodes, slots_per_gpu)
            }
            for experts in nodes
        ]
        for filled in itertools.product(*peaks):
            busiest = map(max, zip(*filled, strict=True))
            best = min(best, sum(map(float.__mul__, weight, busiest)))
    return best


def spread(
    shares: Sequence[Sequence[float]],
    counts: Sequence[int],
    order: Sequence[int],
    weights: Sequence[float],
    num_gpus: int,
) -> Gpus:
    """Replicas in order, each to the GPU with room and without the expert where the weighted
    product of its loads, window by window, and the GPU's is least (ties: the lowest GPU).

    Where no GPU is left, the lowest full one without the expert gives its first slot that it can to
    the lowest GPU with room, and its last slot takes that place.
    """
    size = sum(counts) // num_gpus
    gpus: Gpus = [[] for _ in range(num_gpus)]
    totals = [[0.0] * len(weights) for _ in range(num_gpus)]

    def growth(gpu: int, expert: int) -> float:
        total = 0.0
        for weight, share, load in zip(weights, shares[expert], totals[gpu], strict=True):
            total += weight * share * load
        return total

    def add(gpu: int, expert: int, sign: float) -> None:
        for window, share in enumerate(shares[expert]):
            totals[gpu][window] += sign * share

    for expert in [each for each in order for _ in range(counts[each])]:
        free = [g for g, held in enumerate(gpus) if len(held) < size and expert not in held]
        if free:
            chosen = min(free, key=lambda gpu: (growth(gpu, expert), gpu))
        else:
            chosen = next(g for g, held in enumerate(gpus) if expert not in held)
            target = next(g for g, held in enumerate(gpus) if len(held) < size)
            slot = next(i for i, held in enumerate(gpus[chosen]) if held not in gpus[target])
            moved = gpus[chosen][slot]
            gpus[chosen][slot] = gpus[chosen][-1]
            gpus[chosen].pop()
            gpus[target].append(moved)
            add(target, moved, 1.0)
            add(chosen, moved, -1.0)
        gpus[chosen].append(expert)
        add(chosen, expert, 1.0)
    return gpus


def levelled_optimum(
    windows: Sequence[Sequence[float]], num_gpus: int, slots_per_gpu: int
) -> float:
    """Least mean, over windows, of the peak that the best split leaves, of all placements.

    What experts on some GPUs alone have is spread over these GPUs at best.
    """
    experts = range(len(windows[0]))
    kinds = list(itertools.combinations(experts, min(slots_per_gpu, len(windows[0]))))
    some = [
        gpus
        for size in range(1, num_gpus + 1)
        for gpus in itertools.combinations(range(num_gpus), size)
    ]
    best = float("inf")
    for placed in itertools.combinations_with_replacement(kinds, num_gpus):
        hosts = [{gpu for gpu in range(num_gpus) if expert in placed[gpu]} for expert in experts]
        if not all(hosts):
            continue
        alone = [[expert for expert in experts if hosts[expert] <= {*gpus}] for gpus in some]
        total = 0.0
        for load in windows:
            total += max(
                sum(load[expert] for expert in inside) / len(gpus)
                for gpus, inside in zip(some, alone, strict=True)
            )
        best = min(best, total / len(windows))
    return best
