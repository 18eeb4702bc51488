"""Out of the dead ends of a descent: change something by chance, descend again, keep the better.

Iterated local search. The chance is a fixed sequence of numbers, so it is the same every time. Most
kicks swap replicas of the busiest GPU of a window with any; the others hand a slot over from one
expert to the one that weighs most on that GPU.
"""

from eplb.solver.convex import Hosts, _descend, _forget, _swap_slots
from eplb.solver.jit import inner
from eplb.solver.packing import F64, I64

__all__: list[str] = []

_SWAPS_OF_A_KICK = 2

_FACTOR, _PRIME = 48271, 0x7FFFFFFF
"""Park and Miller's generator: no product overflows, which a compiler may take for granted."""


@inner
def _kick_and_descend(
    hosts: Hosts,
    kept: Hosts,
    loads: F64,
    count: I64,
    kept_count: I64,
    weights: F64,
    doublings: int,
    tolerance: float,
    most_sweeps: int,
    num_kicks: int,
) -> None:
    """Lower what `_descend` lowers by `num_kicks` tries, each with a descent after it.

    That is a norm, and not the expected peak itself: plans that it prefers hold better on windows
    that were not planned for.

    `loads` [E, T] are those of the experts, all replicas together, `count` [E] the replicas. `kept`
    and `kept_count` are memory for the best so far.
    """
    _forget(hosts)
    best = _descend(hosts, weights, doublings, tolerance, most_sweeps)
    _copy(hosts, kept, count, kept_count)
    state = num_kicks
    for kick in range(num_kicks):
        # Only what the kick changes is to be compared again.
        for gpu in range(hosts.changed.shape[0]):
            hosts.changed[gpu] = 0
            for other in range(hosts.changed.shape[0]):
                hosts.compared[gpu, other] = 0
        if kick % 4 == 3:
            state = _hand_over_by_chance(hosts, loads, count, state)
        else:
            for _ in range(_SWAPS_OF_A_KICK):
                state = _swap_by_chance(hosts, state)
        found = _descend(hosts, weights, doublings, tolerance, most_sweeps)
        if found < best:
            best = found
            _copy(hosts, kept, count, kept_count)
        else:
            _copy(kept, hosts, kept_count, count)


@inner
def _copy(source: Hosts, target: Hosts, count: I64, target_count: I64) -> None:
    """Copy what GPUs hold, and the replicas that there are."""
    num_gpus, slots_per_gpu = source.slots.shape
    num_windows = source.load.shape[0]
    for gpu in range(num_gpus):
        for slot in range(slots_per_gpu):
            target.slots[gpu, slot] = source.slots[gpu, slot]
        for expert in range(count.shape[0]):
            target.holds[gpu, expert] = source.holds[gpu, expert]
        for slot in range(slots_per_gpu):
            for window in range(num_windows):
                target.part[gpu, slot, window] = source.part[gpu, slot, window]
    for window in range(num_windows):
        for gpu in range(num_gpus):
            target.load[window, gpu] = source.load[window, gpu]
        for slot in range(num_gpus * slots_per_gpu):
            target.lanes[window, slot] = source.lanes[window, slot]
    for expert in range(count.shape[0]):
        target_count[expert] = count[expert]


@inner
def _next(state: int) -> int:
    return state * _FACTOR % _PRIME


@inner
def _busiest(hosts: Hosts, window: int) -> int:
    busiest = 0
    for gpu in range(hosts.load.shape[1]):
        if hosts.load[window, gpu] > hosts.load[window, busiest]:
            busiest = gpu
    return busiest


@inner
def _swap_by_chance(hosts: Hosts, state: int) -> int:
    """Swap a slot of the busiest GPU of some window with one of another GPU; return the state."""
    num_gpus, slots_per_gpu = hosts.slots.shape
    state = _next(state)
    gpu = _busiest(hosts, state % hosts.load.shape[0])
    state = _next(state)
    other = state % num_gpus
    i = state // num_gpus % slots_per_gpu
    j = state // (num_gpus * slots_per_gpu) % slots_per_gpu
    if (
        other != gpu
        and not hosts.holds[other, hosts.slots[gpu, i]]
        and not hosts.holds[gpu, hosts.slots[other, j]]
    ):
        _swap_slots(hosts, gpu, i, other, j)
        hosts.changed[gpu] = 1
        hosts.changed[other] = 1
    return state


@inner
def _hand_over_by_chance(hosts: Hosts, loads: F64, count: I64, state: int) -> int:
    """Give a slot somewhere to the expert with the largest replica on the busiest GPU of some
    window; return the state.
    """
    num_gpus, slots_per_gpu = hosts.slots.shape
    state = _next(state)
    window = state % hosts.load.shape[0]
    gpu = _busiest(hosts, window)
    largest = 0
    for slot in range(slots_per_gpu):
        if hosts.part[gpu, slot, window] > hosts.part[gpu, largest, window]:
            largest = slot
    expert = hosts.slots[gpu, largest]
    state = _next(state)
    start = state % (num_gpus * slots_per_gpu)
    for step in range(num_gpus * slots_per_gpu):
        place = (start + step) % (num_gpus * slots_per_gpu)
        target, slot = place // slots_per_gpu, place % slots_per_gpu
        giver = hosts.slots[target, slot]
        if count[giver] > 1 and giver != expert and not hosts.holds[target, expert]:
            hosts.slots[target, slot] = expert
            hosts.holds[target, giver] = False
            hosts.holds[target, expert] = True
            count[giver] -= 1
            count[expert] += 1
            for holder in range(num_gpus):
                if hosts.holds[holder, giver] or hosts.holds[holder, expert]:
                    hosts.changed[holder] = 1
            hosts.changed[target] = 1
            _fill_loads(hosts, loads, count)
            break
    return state


@inner
def _fill_loads(hosts: Hosts, loads: F64, count: I64) -> None:
    """Renew the loads of slots and GPUs from those of experts."""
    num_gpus, slots_per_gpu = hosts.slots.shape
    num_windows = hosts.load.shape[0]
    for gpu in range(num_gpus):
        for window in range(num_windows):
            hosts.load[window, gpu] = 0.0
        for slot in range(slots_per_gpu):
            expert = hosts.slots[gpu, slot]
            for window in range(num_windows):
                part = loads[expert, window] / count[expert]
                hosts.part[gpu, slot, window] = part
                hosts.lanes[window, gpu * slots_per_gpu + slot] = part
                hosts.load[window, gpu] += part
