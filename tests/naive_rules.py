"""Plain oracles of the rules by which engines dispatch, of one expert and of whole tables."""

import itertools
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache

__all__ = ["expected_parts", "gpu_loads", "rule_optimum", "sglang_table"]


def near(slots: Sequence[int], gpu: int, slots_per_gpu: int, per_node: int) -> int | None:
    """The slot that a GPU sends an expert's tokens to without a draw by SGLang's rule."""
    own = [slot for slot in slots if slot // slots_per_gpu == gpu]
    here = [slot for slot in slots if slot // slots_per_gpu // per_node == gpu // per_node]
    if len(slots) == 1 or own:
        return (own or slots)[0]
    return here[0] if 0 < len(here) < len(slots) else None


@cache
def expected_parts(
    rule: str, slots: tuple[int, ...], num_gpus: int, slots_per_gpu: int, per_node: int
) -> list[Fraction]:
    """What part of an expert's tokens each of its slots takes, source by source."""
    parts = dict.fromkeys(slots, Fraction())
    for gpu in range(num_gpus):
        if rule == "ascend":
            last = {slot // slots_per_gpu: slot for slot in slots}
            takes = [[*last.values()][gpu % len(last)]]
        else:
            slot = near(slots, gpu, slots_per_gpu, per_node)
            takes = list(slots) if slot is None else [slot]
        for slot in takes:
            parts[slot] += Fraction(1, num_gpus * len(takes))
    return [parts[slot] for slot in slots]


def gpu_loads(
    rule: str, row: Sequence[int], loads: Sequence[float], num_gpus: int, num_nodes: int
) -> list[float]:
    """Expected loads of GPUs by what each slot holds."""
    slots_per_gpu = len(row) // num_gpus
    of_gpu = [0.0] * num_gpus
    for expert, load in enumerate(loads):
        slots = tuple(slot for slot, held in enumerate(row) if held == expert)
        parts = expected_parts(rule, slots, num_gpus, slots_per_gpu, num_gpus // num_nodes)
        for slot, part in zip(slots, parts, strict=True):
            of_gpu[slot // slots_per_gpu] += load * float(part)
    return of_gpu


def placements(num_experts: int, num_gpus: int, slots_per_gpu: int) -> Iterator[list[int]]:
    """Every placement of which no GPU holds an expert twice."""
    each = list(itertools.combinations(range(num_experts), slots_per_gpu))
    for held in itertools.product(each, repeat=num_gpus):
        row = [expert for experts in held for expert in experts]
        if len(set(row)) == num_experts:
            yield row


def rule_optimum(rule: str, loads: Sequence[float], num_gpus: int, slots_per_gpu: int) -> float:
    """The least peak of any placement on GPUs of one node."""
    rows = placements(len(loads), num_gpus, slots_per_gpu)
    return min(max(gpu_loads(rule, row, loads, num_gpus, 1)) for row in rows)


def sglang_table(
    log2phy: Sequence[Sequence[Sequence[int]]], num_gpus: int, slots_per_gpu: int, per_node: int
) -> list[list[list[int]]]:
    """SGLang's table [L, E, G] of the slots [L, E, X] of experts: draws in the order of layers and
    experts, by Python's own random numbers.
    """
    draw = random.Random(42)
    table: list[list[list[int]]] = []
    for experts in log2phy:
        table.append([])
        for padded in experts:
            slots = [slot for slot in padded if slot >= 0]
            column = [near(slots, gpu, slots_per_gpu, per_node) for gpu in range(num_gpus)]
            left = column.count(None)
            if left:
                whole, rest = divmod(left, len(slots))
                drawn = slots * whole + draw.sample(slots, rest)
                draw.shuffle(drawn)
                column = [drawn.pop(0) if slot is None else slot for slot in column]
            table[-1].append([slot for slot in column if slot is not None])
    return table
