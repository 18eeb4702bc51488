"""A first packing for several windows: heaviest first, each where it is least alike what is there.

An expert's load is a vector, a number for each window. The sum of squares of GPU loads, over GPUs
and windows, grows least where a replica's vector has the smallest product with the GPU's: where
there is little load, and load of other windows.
"""

from eplb.solver.convex import Hosts
from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64

__all__: list[str] = []


@inner
def _spread(hosts: Hosts, share: F64, count: I64, order: I64, weights: F64, filled: I64) -> None:
    """Fill `hosts` with `count` [E] replicas of each expert, in `order` [E].

    `share` [E, T] is the load of one replica; `filled` [G] is scratch memory. No GPU gets an expert
    twice: there are at most G replicas of each, and at least as many experts as slots on a GPU.
    """
    num_gpus, slots_per_gpu = hosts.slots.shape
    num_windows = share.shape[1]
    for gpu in range(num_gpus):
        filled[gpu] = 0
        for expert in range(share.shape[0]):
            hosts.holds[gpu, expert] = False
        for window in range(num_windows):
            hosts.load[window, gpu] = 0.0
    growth = hosts.most  # scratch memory
    for expert in order:
        for _ in range(count[expert]):
            for gpu in range(num_gpus):
                growth[gpu] = 0.0
            for window in range(num_windows):
                weighted = weights[window] * share[expert, window]
                for gpu in range(num_gpus):
                    growth[gpu] += weighted * hosts.load[window, gpu]
            best, gpu = 0.0, -1
            for candidate in range(num_gpus):
                if filled[candidate] == slots_per_gpu or hosts.holds[candidate, expert]:
                    continue
                if gpu < 0 or growth[candidate] < best:
                    best, gpu = growth[candidate], candidate
            if gpu < 0:
                gpu = _make_room(hosts, share, expert, filled)
            slot = filled[gpu]
            filled[gpu] += 1
            hosts.slots[gpu, slot] = expert
            hosts.holds[gpu, expert] = True
            for window in range(num_windows):
                hosts.part[gpu, slot, window] = share[expert, window]
                hosts.load[window, gpu] += share[expert, window]
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            for window in range(num_windows):
                hosts.lanes[window, gpu * slots_per_gpu + slot] = hosts.part[gpu, slot, window]


@inner
def _make_room(hosts: Hosts, share: F64, expert: int, filled: I64) -> int:
    """Move a replica off a full GPU without the expert, onto one with room that holds it; return
    the GPU that now has room.
    """
    num_gpus, slots_per_gpu = hosts.slots.shape
    target = 0
    while filled[target] == slots_per_gpu:
        target += 1
    for gpu in range(num_gpus):
        if hosts.holds[gpu, expert]:
            continue
        for slot in range(slots_per_gpu):
            moved = hosts.slots[gpu, slot]
            if hosts.holds[target, moved]:
                continue
            last = slots_per_gpu - 1
            for window in range(share.shape[1]):
                hosts.part[target, filled[target], window] = share[moved, window]
                hosts.load[window, target] += share[moved, window]
                hosts.load[window, gpu] -= share[moved, window]
                hosts.part[gpu, slot, window] = hosts.part[gpu, last, window]
            hosts.slots[target, filled[target]] = moved
            hosts.holds[target, moved] = True
            hosts.slots[gpu, slot] = hosts.slots[gpu, last]
            hosts.holds[gpu, moved] = False
            filled[target] += 1
            filled[gpu] -= 1
            return gpu
    return target
