"""Sorting: experts by falling load, ties by lowest index, the same order on every processor."""

import numpy as np

from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64

__all__ = ["HISTOGRAM"]

HISTOGRAM = 4 * 256
"""Length of the histogram that `_descending` needs: 256 bins for each of its 4 passes."""


@inner
def _descending(keys: F64, order: I64, scratch: I64, histogram: I64) -> None:
    """Write into `order` [n] the indices that sort `keys` [n], none negative, from large to small.

    A stable radix sort by the upper half of the float's bits, then an insertion pass, nearly free
    on what is nearly sorted, that settles the lower half: several times faster than comparisons
    on the few hundred keys of a layer. `scratch` [n] and `histogram` [HISTOGRAM] are overwritten.
    """
    n = keys.shape[0]
    bits = keys.view(np.uint64)
    low = np.uint64(255)
    for i in range(HISTOGRAM):
        histogram[i] = 0
    for i in range(n):
        flipped = ~bits[i]  # the complement sorts from large to small
        for digit in range(4):
            shift = np.uint64(32 + 8 * digit)
            histogram[256 * digit + np.int64((flipped >> shift) & low)] += 1
        order[i] = i
    source, target = order, scratch
    for digit in range(4):
        shift = np.uint64(32 + 8 * digit)
        base = 256 * digit
        if histogram[base + np.int64((~bits[0] >> shift) & low)] == n:
            continue
        start = 0
        for i in range(base, base + 256):
            size = histogram[i]
            histogram[i] = start
            start += size
        for i in range(n):
            index = source[i]
            place = base + np.int64((~bits[index] >> shift) & low)
            target[histogram[place]] = index
            histogram[place] += 1
        source, target = target, source
    for i in range(n):
        order[i] = source[i]
    for i in range(1, n):
        index = order[i]
        key = keys[index]
        j = i - 1
        while j >= 0 and (keys[order[j]] < key or (keys[order[j]] == key and order[j] > index)):
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = index
