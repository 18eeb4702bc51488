"""Recounting with two slots on a GPU: what is passed over without packing it could be no better."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from parts import pack, replicate
from strategies import layer_loads

from eplb.solver.jit import kernel
from eplb.solver.pack import _least_peak_of_pairs, _new_pack_scratch, _pack, _rank
from eplb.solver.packing import F64, I64, _new_packing
from eplb.solver.recount import _excess_of_pairs, _hand_over


@kernel
def _pairs(
    weight: F64, count: I64, giver: int, receiver: int, target: float, replicas: F64
) -> tuple[float, float]:
    """Write the `replicas` [P] after a hand-over between two experts; return the excess of their
    pairs, and the least peak before it.
    """
    num_experts, num_gpus = weight.shape[0], replicas.shape[0] // 2
    packing = _new_packing(num_experts, num_gpus, 2)
    scratch = _new_pack_scratch(num_experts, num_gpus, 2)
    order, spare = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    _rank(weight, count, packing, order, spare, scratch.histogram)
    _pack(packing, scratch)
    giving, receiving = 0, 0
    for rank in range(num_experts):
        if order[rank] == giver:
            giving = rank
        if order[rank] == receiver:
            receiving = rank
    _hand_over(packing, giving, receiving, replicas)
    return _excess_of_pairs(replicas, target, np.inf), _least_peak_of_pairs(packing)


@given(st.data())
def test_pairs_are_the_plain_ones_and_no_packing_is_better(data: st.DataObject) -> None:
    num_gpus = data.draw(st.integers(2, 4))
    num_experts = data.draw(st.integers(2, 2 * num_gpus - 1))
    loads = data.draw(layer_loads(num_experts))
    counts = replicate([loads], 2 * num_gpus, num_gpus)[0].tolist()
    giver = data.draw(st.sampled_from([e for e in range(num_experts) if counts[e] > 1]))
    receiver = data.draw(st.sampled_from([e for e in range(num_experts) if e != giver]))
    target = data.draw(st.floats(0.0, 1.5)) * sum(loads) / num_gpus
    replicas = np.empty(2 * num_gpus)
    excess, least = _pairs(np.array(loads), np.array(counts), giver, receiver, target, replicas)

    best = naive.fixed_counts_optimum(loads, counts, num_gpus)
    assert least == max(naive.paired(loads, counts))
    assert least <= best * (1.0 + 1e-12)

    counts[giver] -= 1
    counts[receiver] += 1
    assert (np.diff(replicas) <= 0.0).all()
    assert excess == pytest.approx(naive.excess(naive.paired(loads, counts), target), rel=1e-9)
    if counts[receiver] <= num_gpus:
        slots = pack([loads], [counts], num_gpus)[0].tolist()
        packed = naive.excess(naive.gpu_loads(slots, loads, num_gpus), target)
        assert excess <= packed * (1.0 + 1e-9)
