"""How many replicas each expert gets: Adams' apportionment, optimal for the largest replica.

Every expert has one replica; each further slot goes to the expert whose replicas are largest now
(ties: the one with fewer, then the lowest index) and which has fewer than the most that any may
have. This is what DeepSeek's EPLB does without that limit.

Source: Balinski and Young, "Fair Representation", 1982.
"""

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64

__all__: list[str] = []


@inner
def _replicate(
    weight: F64, num_slots: int, max_copies: int, count: I64, share: F64, heap: I64
) -> None:
    """Fill `count` and `share` [E], the load of one replica, from `weight` [E]; `heap` is scratch.

    The heap holds experts, the one with the largest replica on top.
    """
    num_experts = weight.shape[0]
    for expert in range(num_experts):
        count[expert] = 1
        share[expert] = weight[expert]
        heap[expert] = expert
    spare = num_slots - num_experts
    if spare == 0:
        return
    for node in range(num_experts // 2 - 1, -1, -1):
        _sift_down(heap, num_experts, node, share, count)
    size = num_experts
    top = np.int64(0)
    for _ in range(spare):
        while count[heap[0]] >= max_copies:
            size -= 1
            heap[0] = heap[size]
            _sift_down(heap, size, top, share, count)
        expert = heap[0]
        count[expert] += 1
        share[expert] = weight[expert] / count[expert]
        _sift_down(heap, size, top, share, count)


@inner
def _comes_first(expert: int, other: int, share: F64, count: I64) -> bool:
    """Whether `expert` is to get the next slot rather than `other`."""
    if share[expert] != share[other]:
        return bool(share[expert] > share[other])
    if count[expert] != count[other]:
        return bool(count[expert] < count[other])
    return expert < other


@inner
def _sift_down(heap: I64, size: int, node: int, share: F64, count: I64) -> None:
    """Restore the heap below `node` after its expert's share has fallen."""
    expert = heap[node]
    while True:
        child = 2 * node + 1
        if child >= size:
            break
        if child + 1 < size and _comes_first(heap[child + 1], heap[child], share, count):
            child += 1
        if not _comes_first(heap[child], expert, share, count):
            break
        heap[node] = heap[child]
        node = child
    heap[node] = expert
