"""Dispatch of a batch in plain Python, one expert and one token at a time."""

from collections.abc import Sequence

__all__ = ["naive_slots", "naive_takes"]

TOKEN = 4096


def gpus_of(row: Sequence[int], num_gpus: int, num_experts: int) -> list[list[int]]:
    size = len(row) // num_gpus
    return [
        sorted({slot // size for slot, held in enumerate(row) if held == expert})
        for expert in range(num_experts)
    ]


def classes_of(gpus: list[list[int]]) -> list[list[int]]:
    classes: list[list[int]] = []
    for expert in sorted(range(len(gpus)), key=lambda e: -len(gpus[e])):
        if len(gpus[expert]) < 2:
            continue
        for members in classes:
            if not any(set(gpus[expert]) & set(gpus[other]) for other in members):
                members.append(expert)
                break
        else:
            classes.append([expert])
    return classes


def fill(heights: list[int], total: int) -> list[int]:
    lowest = sorted(heights)
    level = min((total + sum(lowest[:n])) // n for n in range(1, len(lowest) + 1))
    return [max(0, level - height) for height in heights]


def naive_takes(row: Sequence[int], num_gpus: int, counts: list[int]) -> list[dict[int, int]]:
    """Tokens of each expert by GPU."""
    num_experts = len(counts)
    gpus = gpus_of(row, num_gpus, num_experts)
    copied = [e for e in range(num_experts) if len(gpus[e]) > 1]
    most = max([1, *(sum(g in gpus[e] for e in copied) for g in range(num_gpus))])
    base = [0] * num_gpus
    for e in range(num_experts):
        if len(gpus[e]) == 1:
            base[gpus[e][0]] += counts[e] * TOKEN
    flow = {e: [counts[e] * TOKEN // len(gpus[e])] * len(gpus[e]) for e in copied}
    ahead = flow

    def loads(of: dict[int, list[int]]) -> list[int]:
        load = list(base)
        for e in copied:
            for gpu, part in zip(gpus[e], of[e], strict=True):
                load[gpu] += part
        return load

    for step in range(20):
        load = loads(ahead)
        filled = {
            e: fill(
                [load[g] // most - part for g, part in zip(gpus[e], ahead[e], strict=True)],
                counts[e] * TOKEN,
            )
            for e in copied
        }
        momentum = 1024 * step // (step + 3)
        ahead = {
            e: [
                new + ((new - old) * momentum >> 10)
                for new, old in zip(filled[e], flow[e], strict=True)
            ]
            for e in copied
        }
        flow = filled
    odd = [(i * 2654435761) % 2**31 | 1 for i in range(1, 1 + max(num_experts, 3 * num_gpus + 3))]
    key = sum(n * o for n, o in zip(counts, odd, strict=False)) % 2**31
    for turn in range(3):
        for e in (e for members in classes_of(gpus) for e in members):
            load = loads(flow)
            heights = [
                load[g] + ((key * odd[turn * (num_gpus + 1) + g] >> 20) & 2047) - part
                for g, part in zip(gpus[e], flow[e], strict=True)
            ]
            whole = [part // TOKEN * TOKEN for part in fill(heights, counts[e] * TOKEN)]
            order = sorted(range(len(whole)), key=lambda i: (heights[i] + whole[i], i))
            for i in order[: counts[e] - sum(whole) // TOKEN]:
                whole[i] += TOKEN
            flow[e] = whole
    return [
        {g: part // TOKEN for g, part in zip(gpus[e], flow[e], strict=True)}
        if e in flow
        else {gpus[e][0]: counts[e]}
        for e in range(num_experts)
    ]


def naive_slots(
    row: Sequence[int],
    num_gpus: int,
    num_experts: int,
    ids: list[list[int]],
    *,
    activated: bool = False,
) -> list[list[int]]:
    """The slot of each id, those of -1 being -1."""
    counts = [sum(line.count(e) for line in ids) for e in range(num_experts)]
    takes = naive_takes(row, num_gpus, [min(n, 1) for n in counts] if activated else counts)
    size = len(row) // num_gpus
    queues: list[list[int]] = []
    for e, of_gpu in enumerate(takes):
        queue: list[int] = []
        for gpu, number in of_gpu.items():
            held = [p for p in range(gpu * size, (gpu + 1) * size) if row[p] == e]
            for i, slot in enumerate(held):
                share = number * (i + 1) // len(held) - number * i // len(held)
                queue += [slot] * (share * counts[e] if activated else share)
        queues.append(queue)
    return [[-1 if e < 0 else queues[e].pop(0) for e in line] for line in ids]
