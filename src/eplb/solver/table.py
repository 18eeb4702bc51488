"""A table of dispatch: which copy of an expert each source of tokens uses, for engines that send
all of a source's tokens of an expert to one copy.

Sources of a node that bring as many tokens are of one *kind*. What balances GPUs is how many
sources of a kind use a copy: the *quota* of the kind at the copy. At first a source on a node that
has copies uses one of them, so that its tokens stay there. Then quotas are changed by one, at
seeded random, where that lowers the sum of a high power of GPU loads and a price for tokens that
leave such a node, or else by a chance that falls with the steps (simulated annealing: whole entries
of a table leave valleys that no single change gets out of). The best quotas on the way are kept.
With `keep_local` no token leaves such a node, and a source with a copy on its own GPU uses that.
"""

import numpy as np

from eplb.solver.draw import _INCREMENT, _MASK, _MULTIPLIER
from eplb.solver.jit import inner, kernel
from eplb.solver.level import _find_edges, _new_edges
from eplb.solver.packing import F64, I64
from eplb.solver.share import _exponential

__all__: list[str] = []

_FAR = 40.0
"""What it costs, beside the sum of powers, that load of one mean GPU leaves a node that has a copy.
"""
_HOT = 1.0
"""The temperature at first."""
_STEPS = {"fast": (50_000, 0.999883824), "default": (200_000, 0.999970955)}
"""By effort, the steps of a layer and what one of them leaves of the temperature: .003 at the end
(docs/experiments.md, dispatch)."""


@kernel
def _table_layers(
    layers: I64,
    loads: F64,
    phy2log: I64,
    num_gpus: int,
    num_nodes: int,
    shares: F64,
    keep_local: bool,
    steps: int,
    cooling: float,
    table: I64,
) -> None:
    """Fill the slots that each source uses in `layers`, `table` [L, R, E], so that GPUs are as
    evenly loaded as can be in all windows of `loads` [T, L, E]. Source r brings the part `shares`
    [R] of every expert's tokens.
    """
    num_windows, _, num_experts = loads.shape
    num_slots = phy2log.shape[1]
    num_sources = table.shape[1]
    slots_per_gpu = num_slots // num_gpus
    gpus_per_node = num_gpus // num_nodes
    # The first source of its kind stands for it.
    kind_of = np.empty(num_sources, np.int64)
    node_of = np.empty(num_sources, np.int64)
    number_of = np.zeros(num_sources, np.int64)
    for source in range(num_sources):
        node_of[source] = source * num_nodes // num_sources
        kind = 0
        while node_of[kind] != node_of[source] or shares[kind] != shares[source]:
            kind += 1
        kind_of[source] = kind
        number_of[kind] += 1
    edges = _new_edges(num_experts, num_slots)
    gpu_slots = np.arange(num_gpus + 1) * slots_per_gpu
    first, gpu_of = edges.first, edges.gpu_of
    quota = np.empty((num_slots, num_sources), np.int64)
    taken = np.empty(num_slots)
    level = np.empty((num_windows, num_gpus))
    inverse = np.empty(num_windows)
    # A choice is what sources of a kind may use of an expert: the expert; their node, or -1 where
    # it has no copy; the first edge and the one past the last; the kind.
    choices = np.empty((num_experts * num_sources, 5), np.int64)
    own = np.zeros((num_slots, num_sources), np.int64)
    undo = np.empty((steps, 3), np.int64)
    turn = np.empty(num_slots, np.int64)
    for layer in layers:
        row = phy2log[layer]
        load = loads[:, layer]
        number = _find_edges(row, gpu_slots, edges)
        level[:] = 0.0
        for window in range(num_windows):
            total = 0.0
            for expert in range(num_experts):
                total += load[window, expert]
                if edges.number[expert] == 1:
                    level[window, gpu_of[first[expert]]] += load[window, expert]
            inverse[window] = num_gpus / total if total > 0.0 else 0.0
        for edge in range(first[num_experts]):
            taken[edge] = 0.0
            for source in range(num_sources):
                quota[edge, source] = 0
                own[edge, source] = 0
            for source in range(num_sources if keep_local else 0):
                if _is_own(source, num_sources, gpu_of[edge], num_gpus):
                    own[edge, kind_of[source]] += 1
        num_choices = 0
        for i in range(number):
            expert = edges.copied[i]
            for kind in range(num_sources):
                node = node_of[kind]
                low, high = first[expert], first[expert + 1]
                while low < high and gpu_of[low] // gpus_per_node < node:
                    low += 1
                while low < high and gpu_of[high - 1] // gpus_per_node > node:
                    high -= 1
                if low == high:
                    low, high = first[expert], first[expert + 1]
                near = gpu_of[low] // gpus_per_node == node
                left = number_of[kind]
                for edge in range(low, high):
                    if gpu_of[edge] // gpus_per_node == node:
                        quota[edge, kind] = min(own[edge, kind], left)
                        left -= quota[edge, kind]
                        taken[edge] += quota[edge, kind] * shares[kind]
                # Evenly at first, on from the edges that have the least.
                while left > 0:
                    least = low
                    for edge in range(low, high):
                        if taken[edge] < taken[least]:
                            least = edge
                    quota[least, kind] += 1
                    taken[least] += shares[kind]
                    left -= 1
                for edge in range(low, high):
                    for window in range(num_windows):
                        part = load[window, expert] * quota[edge, kind] * shares[kind]
                        level[window, gpu_of[edge]] += part
                if not keep_local:
                    low, high = first[expert], first[expert + 1]
                if high - low > 1 and number_of[kind] > 0 and shares[kind] > 0.0:
                    choices[num_choices, 0] = expert
                    choices[num_choices, 1] = node if near else -1
                    choices[num_choices, 2] = low
                    choices[num_choices, 3] = high
                    choices[num_choices, 4] = kind
                    num_choices += 1
        for window in range(num_windows):
            for gpu in range(num_gpus):
                level[window, gpu] *= inverse[window]
        _anneal(
            load, inverse, shares, gpu_of, gpus_per_node, own, choices[:num_choices], cooling,
            quota, level, undo,
        )  # fmt: skip
        for expert in range(num_experts):
            low, high = first[expert], first[expert + 1]
            for edge in range(low, high):
                turn[edge] = 0
            for source in range(num_sources):
                table[layer, source, expert] = -1
            if high - low == 1:
                for kind in range(num_sources):
                    quota[low, kind] = number_of[kind]
            # A source's own GPU first, then whatever its kind has left, in order.
            for edge in range(low, high):
                for source in range(num_sources):
                    kind = kind_of[source]
                    mine = _is_own(source, num_sources, gpu_of[edge], num_gpus)
                    if mine and table[layer, source, expert] < 0 and quota[edge, kind] > 0:
                        quota[edge, kind] -= 1
                        table[layer, source, expert] = edge
            for source in range(num_sources):
                kind = kind_of[source]
                for edge in range(low, high):
                    if table[layer, source, expert] < 0 and quota[edge, kind] > 0:
                        quota[edge, kind] -= 1
                        table[layer, source, expert] = edge
            # From edges to slots: copies on one GPU take turns.
            for source in range(num_sources):
                edge = table[layer, source, expert]
                skip = turn[edge] % edges.copies[edge]
                turn[edge] += 1
                slot = gpu_of[edge] * slots_per_gpu
                while row[slot] != expert or skip > 0:
                    if row[slot] == expert:
                        skip -= 1
                    slot += 1
                table[layer, source, expert] = slot


@inner
def _is_own(source: int, num_sources: int, gpu: int, num_gpus: int) -> bool:
    """Whether a source's tokens come from a GPU; there may be several of either for one of the
    other.
    """
    if num_sources >= num_gpus:
        return source // (num_sources // num_gpus) == gpu
    return gpu // (num_gpus // num_sources) == source


@inner
def _power(value: float) -> float:
    """Its 64th power."""
    for _ in range(6):
        value *= value
    return value


@inner
def _anneal(
    load: F64,
    inverse: F64,
    shares: F64,
    gpu_of: I64,
    gpus_per_node: int,
    own: I64,
    choices: I64,
    cooling: float,
    quota: I64,
    level: F64,
    undo: I64,
) -> None:
    """Change quotas by one until the steps are spent, one for each row of `undo`, and go back to
    the best that were met; `level` [T, G] goes along, 1 is the mean.
    """
    if choices.shape[0] == 0:
        return
    num_windows = level.shape[0]
    state = 12345
    temperature = _HOT
    # What the changes since the best so far have added; those are what is to be undone.
    above = 0.0
    changes = 0
    for _ in range(undo.shape[0]):
        temperature *= cooling
        state = (state * _MULTIPLIER + _INCREMENT) & _MASK
        choice = (state >> 8) % choices.shape[0]
        expert, near, low, high, kind = choices[choice]
        state = (state * _MULTIPLIER + _INCREMENT) & _MASK
        source = low + (state >> 8) % (high - low)
        state = (state * _MULTIPLIER + _INCREMENT) & _MASK
        target = low + (source - low + 1 + (state >> 8) % (high - low - 1)) % (high - low)
        leaves = gpu_of[source] // gpus_per_node == near
        arrives = gpu_of[target] // gpus_per_node == near
        if quota[source, kind] <= own[source, kind]:
            continue
        gone = 0.0
        if near >= 0 and leaves != arrives:
            for window in range(num_windows):
                gone += load[window, expert] * inverse[window] * shares[kind]
            gone = (gone if leaves else -gone) / num_windows
        change = 0.0
        for window in range(num_windows):
            unit = load[window, expert] * inverse[window] * shares[kind]
            before, after = level[window, gpu_of[source]], level[window, gpu_of[target]]
            change += _power(before - unit) - _power(before)
            change += _power(after + unit) - _power(after)
        change = change / num_windows + _FAR * gone
        if change > 0.0:
            state = (state * _MULTIPLIER + _INCREMENT) & _MASK
            if (state >> 8) / 16777216.0 >= _exponential(-change / temperature):
                continue
        quota[source, kind] -= 1
        quota[target, kind] += 1
        for window in range(num_windows):
            unit = load[window, expert] * inverse[window] * shares[kind]
            level[window, gpu_of[source]] -= unit
            level[window, gpu_of[target]] += unit
        undo[changes, 0], undo[changes, 1], undo[changes, 2] = source, target, kind
        changes += 1
        above += change
        if above < 0.0:
            above = 0.0
            changes = 0
    for done in range(changes - 1, -1, -1):
        source, target, kind = undo[done]
        quota[source, kind] += 1
        quota[target, kind] -= 1
