"""Plain oracles of what is moved: excess, changes of a placement, curves, and fewest moves.

A placement of a layer is the list of experts in its slots, GPU by GPU.
"""

import itertools
from collections.abc import Iterator, Sequence

import naive

__all__ = [
    "changes",
    "excess",
    "fewest_received",
    "fewest_received_by_naming",
    "least_sums",
    "received",
    "valid",
]

Slots = tuple[int, ...]
Held = Sequence[set[int]]


def hosts(slots: Sequence[int], num_gpus: int) -> list[Slots]:
    """What each GPU has in its slots."""
    size = len(slots) // num_gpus
    return [tuple(slots[begin : begin + size]) for begin in range(0, len(slots), size)]


def received(slots: Sequence[int], held: Held) -> int:
    """Experts that GPUs have in `slots` and did not hold."""
    return sum(
        len(set(now) - before) for now, before in zip(hosts(slots, len(held)), held, strict=True)
    )


def excess(
    slots: Sequence[int],
    windows: Sequence[Sequence[float]],
    weights: Sequence[float],
    targets: Sequence[float],
    num_gpus: int,
    pace: Sequence[float] | None = None,
) -> float:
    """Sum over windows and GPUs of (load above the window's target, times the GPU's pace)^2."""
    paces = [1.0] * num_gpus if pace is None else pace
    return sum(
        weight
        * sum(
            max(0.0, load - target * of_gpu) ** 2
            for load, of_gpu in zip(naive.gpu_loads(slots, loads, num_gpus), paces, strict=True)
        )
        for loads, weight, target in zip(windows, weights, targets, strict=True)
    )


def valid(slots: Sequence[int], num_experts: int, num_nodes: int) -> bool:
    """Whether every expert has a slot, and all its slots are on one node."""
    nodes = [set(node) for node in hosts(slots, num_nodes)]
    return all(sum(expert in node for node in nodes) == 1 for expert in range(num_experts))


def changes(
    slots: Sequence[int], gpu: int, num_gpus: int, num_nodes: int
) -> Iterator[tuple[str, Slots, bool]]:
    """Every change that takes load off a GPU and puts no second copy of an expert on any: its kind,
    the slots after it, and whether any third GPU holds both experts that it is about.
    """
    size, node_size = len(slots) // num_gpus, len(slots) // num_nodes
    now = hosts(slots, num_gpus)
    node = range(gpu * size // node_size * node_size, (gpu * size // node_size + 1) * node_size)
    mine = range(gpu * size, (gpu + 1) * size)

    def after(*pairs: tuple[int, int]) -> Slots:
        new = list(slots)
        for slot, expert in pairs:
            new[slot] = expert
        return tuple(new)

    def entangled(one: int, other: int, *but: int) -> bool:
        return any({one, other} <= set(now[i]) for i in range(num_gpus) if i not in but)

    for slot, target in itertools.product(mine, node):
        host, expert, partner = target // size, slots[slot], slots[target]
        if host == gpu or expert in now[host]:
            continue
        if partner not in now[gpu]:
            yield "swap", after((slot, partner), (target, expert)), False
        if slots.count(partner) > 1:
            yield "give", after((target, expert)), entangled(expert, partner, gpu)
    for slot in mine:
        if slots.count(slots[slot]) > 1:
            for expert in sorted({slots[i] for i in node} - set(now[gpu])):
                yield "take", after((slot, expert)), entangled(slots[slot], expert)


def fewest_received(held: Held, num_experts: int, slots_per_gpu: int) -> int:
    """Fewest experts that GPUs must receive for each expert to have a slot."""
    num_gpus = len(held)
    contents = [
        frozenset(each)
        for each in itertools.combinations_with_replacement(range(num_experts), slots_per_gpu)
    ]
    # Least moves for what is held anywhere: GPU by GPU.
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for gpu in range(num_gpus):
        grown: dict[frozenset[int], int] = {}
        for covered, moves in best.items():
            for content in set(contents):
                total = moves + len(content - held[gpu])
                union = covered | content
                grown[union] = min(grown.get(union, total), total)
        best = grown
    return best[frozenset(range(num_experts))]


def fewest_received_by_naming(slots: Sequence[int], held: Held, num_nodes: int) -> int:
    """Fewest experts received over all orders of nodes and of the GPUs on each."""
    gpus = hosts(slots, len(held))
    size = len(gpus) // num_nodes
    nodes = [gpus[begin : begin + size] for begin in range(0, len(gpus), size)]
    return min(
        received([expert for gpu in itertools.chain(*named) for expert in gpu], held)
        for order in itertools.permutations(nodes)
        for named in itertools.product(*(list(itertools.permutations(node)) for node in order))
    )


def least_sums(layers: Sequence[Sequence[tuple[int, float]]], most_moves: int) -> list[float]:
    """Least sum of peaks for each number of moves up to `most_moves`, from the states (moves, peak)
    of each layer.
    """
    best = [0.0] * (most_moves + 1)
    for states in layers:
        best = [
            min(
                (best[budget - moves] + peak for moves, peak in states if moves <= budget),
                default=float("inf"),
            )
            for budget in range(most_moves + 1)
        ]
    return best
