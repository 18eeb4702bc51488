"""From slots to maps: where the replicas of each expert are."""

import numpy as np

from eplb.solver.jit import kernel
from eplb.solver.packing import I64

__all__ = ["fill_log2phy"]


@kernel
def fill_log2phy(phy2log: I64, log2phy: I64) -> None:
    """Fill `log2phy` [L, E, X] with the slots of each expert in rising order, then -1.

    `phy2log` [L, P] is trusted: no expert has more than X slots.
    """
    num_layers, num_experts, most = log2phy.shape
    at = np.empty(num_experts, np.int64)
    for layer in range(num_layers):
        for expert in range(num_experts):
            at[expert] = 0
            for replica in range(most):
                log2phy[layer, expert, replica] = -1
        for slot in range(phy2log.shape[1]):
            expert = phy2log[layer, slot]
            log2phy[layer, expert, at[expert]] = slot
            at[expert] += 1
