"""Names for GPUs and slots, so that a placement keeps most of what GPUs hold already.

A plan made afresh says which experts share a GPU; which GPU that is, it leaves open. GPUs are named
so that they receive least, by assignment (Crouse, "On implementing 2D rectangular assignment
algorithms", 2016, as scipy has it), and experts that stay on a GPU keep their slot.
"""

import numpy as np

from eplb.solver.jit import kernel
from eplb.solver.packing import F64, I64, B

__all__ = ["assign", "fewest_received", "name_gpus"]


def name_gpus(phy2log: I64, held: B, num_nodes: int) -> I64:
    """[P] the slots of a layer, GPUs and nodes in the order that receives least.

    Args:
        phy2log: [P] expert in each slot.
        held: [G, E] what GPUs hold.
        num_nodes: nodes whose GPUs are to stay together, in any order.
    """
    num_gpus = held.shape[0]
    hosts = phy2log.reshape(num_gpus, -1)
    alike, _ = _alike(hosts, held)
    node_gpus = num_gpus // num_nodes
    blocks = alike.reshape(num_nodes, node_gpus, num_nodes, node_gpus).transpose(0, 2, 1, 3)
    kept = np.empty((num_nodes, num_nodes))
    names = np.empty((num_nodes, num_nodes, node_gpus), np.int64)
    for node in range(num_nodes):
        for other in range(num_nodes):
            names[node, other] = assign(blocks[node, other])
            kept[node, other] = blocks[node, other][np.arange(node_gpus), names[node, other]].sum()
    named = np.empty(hosts.shape, np.int64)
    for node, other in enumerate(assign(kept)):
        named[other * node_gpus + names[node, other]] = hosts[
            node * node_gpus : (node + 1) * node_gpus
        ]
    return named.ravel()


def fewest_received(phy2log: I64, held: B) -> int:
    """What GPUs receive at least, however they are named: each keeps what the one that is most
    alike has; arguments as for `name_gpus`.
    """
    alike, experts = _alike(phy2log.reshape(held.shape[0], -1), held)
    return int(experts - alike.max(axis=1).sum())


def _alike(hosts: I64, held: B) -> tuple[I64, int]:
    """[G, G] how many experts of a GPU [G, S] each GPU held, and how many they have in all."""
    holds = np.sort(hosts, axis=1)
    # A second copy on a GPU is no second expert.
    first = np.diff(holds, axis=1, prepend=-1) > 0
    alike = np.zeros((len(hosts), len(hosts)), np.int64)
    held_by = np.ascontiguousarray(held.T)
    for slot in range(hosts.shape[1]):
        alike += held_by[holds[:, slot]] & first[:, slot, None]
    return alike, int(first.sum())


def assign(value: F64) -> I64:
    """[n] the column for each row of whole numbers [n, m] whose sum is largest."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(value, maximize=True)
    assigned: I64 = columns.astype(np.int64, copy=False)
    return assigned


@kernel
def _keep_slots(phy2log: I64, before: I64, first: I64) -> None:
    """Put experts of `phy2log` [L, P] that stay on their GPU in the slots that they have in
    `before` [L, P], where -1 is none; a GPU has the slots from `first` [G + 1] on.
    """
    rest = np.empty(phy2log.shape[1], np.int64)
    taken = np.empty(phy2log.shape[1], np.bool_)
    for layer in range(phy2log.shape[0]):
        for gpu in range(first.shape[0] - 1):
            new = phy2log[layer, first[gpu] : first[gpu + 1]]
            old = before[layer, first[gpu] : first[gpu + 1]]
            slots_per_gpu = new.shape[0]
            num = 0
            for slot in range(slots_per_gpu):
                taken[slot] = False
            for slot in range(slots_per_gpu):
                rest[num] = new[slot]
                found = -1
                for place in range(slots_per_gpu):
                    if not taken[place] and old[place] == new[slot]:
                        found = place
                        break
                if found < 0:
                    num += 1
                else:
                    taken[found] = True
            num = 0
            for slot in range(slots_per_gpu):
                if taken[slot]:
                    new[slot] = old[slot]
                else:
                    new[slot] = rest[num]
                    num += 1
