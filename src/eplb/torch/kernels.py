"""The dispatch of a batch as three Triton kernels, for a GPU: what `level.py` and `batch.py` do in
some 240 torch operations. They give the same slots, bit for bit, as all of it is whole numbers.

    _count   how many tokens of each expert a block of ids has
    _level   one program: tokens of each copy, and where each block's tokens of an expert begin
    _place   the copy of each id, by its place among all ids of its expert

Shapes are fixed and nothing waits for the host, so they can be captured in a CUDA graph.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
"""Ids of a program of `_count` and of `_place`."""
_COLUMNS = 32
"""Ids of a block that all others of it are compared with at once."""
_ROWS = 32
"""Blocks whose counts are added up at once."""
_MOST_PAIRS = 1 << 17
"""Copied experts times the square of the GPUs of one: a program of `_level` compares them all."""
_WARPS = 8
"""Of `_level`. With four, an H100's registers are just full for 288 slots on 32 GPUs."""

# What level.py calls so, without the underscore where it is not its own.
_BITS = tl.constexpr(12)
_TOKEN = tl.constexpr(1 << 12)
_NO_GPU = tl.constexpr(1 << 50)
_STEPS = tl.constexpr(20)
_ROUNDS = tl.constexpr(3)
_MASK = tl.constexpr((1 << 31) - 1)
_KNUTH = tl.constexpr(2654435761)


_jit: Callable[[Callable[..., Any]], Any] = triton.jit


@_jit
def _floor(above, below):
    """Whole quotients, rounded down, of numbers above 0 below; GPUs round to 0."""
    return tl.where(above >= 0, above // below, -((below - 1 - above) // below))


@_jit
def _filled(height, total, width: tl.constexpr):
    """`level._fill` of heights [C, X] and a total [C, 1], without sorting: the n lowest are those
    that do not stand after the n-th in order.
    """
    at = tl.arange(0, width)
    mine, other = height[:, :, None], height[:, None, :]
    before = (other < mine) | ((other == mine) & (at[None, None, :] <= at[None, :, None]))
    lowest = tl.sum(tl.where(before, other, 0), axis=2)
    number = tl.sum(before.to(tl.int64), axis=2)
    level = tl.min(_floor(lowest + total, number), axis=1)
    return tl.maximum(level[:, None] - height, 0)


@_jit
def _places(height, width: tl.constexpr):
    """How many stand before each of heights [C, X] in order."""
    at = tl.arange(0, width)
    mine, other = height[:, :, None], height[:, None, :]
    before = (other < mine) | ((other == mine) & (at[None, None, :] < at[None, :, None]))
    return tl.sum(before.to(tl.int64), axis=2)


@_jit
def _odd(number):
    return (number * _KNUTH & _MASK) | 1


@_jit
def _ids_of(ids, limit, num_ids, num_experts, k, limited: tl.constexpr, at):
    """Ids at places, and `num_experts` for what is none."""
    found = tl.load(ids + at, mask=at < num_ids, other=-1).to(tl.int32)
    if limited:
        found = tl.where(at // k < tl.load(limit), found, -1)
    return tl.where((found >= 0) & (found < num_experts), found, num_experts)


@_jit
def _count(
    ids, limit, counts, num_ids, num_experts, k,
    limited: tl.constexpr, block: tl.constexpr, bins: tl.constexpr,
):  # fmt: skip
    """Counts [B, E] of blocks of ids."""
    here = tl.program_id(0)
    at = here * block + tl.arange(0, block)
    found = tl.histogram(_ids_of(ids, limit, num_ids, num_experts, k, limited, at), bins)
    expert = tl.arange(0, bins)
    tl.store(counts + here * num_experts + expert, found, mask=expert < num_experts)


@_jit
def _level(
    counts, every, begins, ends, work,
    gpus, experts, class_ends, alone, most, of_slot,
    expert_of_slot, part, parts,
    num_blocks, num_ranks, rank, num_classes,
    num_experts, num_slots, num_gpus, num_rows, width,
    activated: tl.constexpr, block_rows: tl.constexpr, all_experts: tl.constexpr,
    all_slots: tl.constexpr, all_gpus: tl.constexpr, all_rows: tl.constexpr,
    of_class: tl.constexpr, all_width: tl.constexpr,
):  # fmt: skip
    """Where each block's tokens of an expert begin [B, E] among all ids in the order of experts,
    and where those of each slot end [P]. `every` [R, E] are the counts of ranks, this one's that of
    `rank`. `work` holds loads [E + 1], flow [C, X], base [G], GPU loads [G] and totals [E + 1].
    """
    expert = tl.arange(0, all_experts)
    is_expert = expert < num_experts
    total = tl.zeros([all_experts], tl.int64)
    ahead = tl.zeros([all_experts], tl.int64)
    for first in range(0, num_ranks, block_rows):
        row = first + tl.arange(0, block_rows)
        some = tl.load(
            every + row[:, None] * num_experts + expert[None, :],
            mask=(row < num_ranks)[:, None] & is_expert[None, :],
            other=0,
        ).to(tl.int64)
        total += tl.sum(some, axis=0)
        ahead += tl.sum(tl.where((row < rank)[:, None], some, 0), axis=0)
    begin = tl.cumsum(total, axis=0) - total + ahead
    for first in range(0, num_blocks, block_rows):
        row = first + tl.arange(0, block_rows)
        inside = (row < num_blocks)[:, None] & is_expert[None, :]
        place = row[:, None] * num_experts + expert[None, :]
        some = tl.load(counts + place, mask=inside, other=0).to(tl.int64)
        tl.store(begins + place, begin[None, :] + tl.cumsum(some, axis=0) - some, mask=inside)
        begin += tl.sum(some, axis=0)

    flows = work + num_experts + 1
    base = flows + num_rows * width
    loads = base + num_gpus
    totals = loads + num_gpus
    load = total
    if activated:
        load = (total > 0).to(tl.int64)
    key = tl.sum(load * _odd(expert.to(tl.int64) + 1), axis=0) & _MASK
    tl.store(work + expert, load, mask=expert <= num_experts)
    tl.store(totals + expert, total, mask=expert <= num_experts)
    gpu = tl.arange(0, all_gpus)
    is_gpu = gpu < num_gpus
    tl.store(base + gpu, tl.zeros([all_gpus], tl.int64), mask=is_gpu)
    tl.debug_barrier()
    only = tl.load(alone + expert, mask=is_expert, other=num_gpus)
    tl.atomic_add(base + only, load << _BITS, mask=only < num_gpus, sem="relaxed")

    row = tl.arange(0, all_rows)[:, None]
    column = tl.arange(0, all_width)[None, :]
    inside = (row < num_rows) & (column < width)
    of_gpu = tl.load(gpus + row * width + column, mask=inside, other=num_gpus)
    real = of_gpu < num_gpus
    holder = tl.load(experts + row, mask=row < num_rows, other=num_experts)
    whole = tl.load(work + holder) << _BITS
    flow = tl.where(real, whole // tl.maximum(tl.sum(real.to(tl.int64), axis=1), 1)[:, None], 0)
    tl.debug_barrier()
    fixed = tl.load(base + gpu, mask=is_gpu, other=0)
    among_gpu = tl.load(most)
    further = flow
    for step in range(_STEPS):
        tl.store(loads + gpu, fixed, mask=is_gpu)
        tl.debug_barrier()
        tl.atomic_add(loads + of_gpu, further, mask=real, sem="relaxed")
        tl.debug_barrier()
        height = _floor(tl.load(loads + of_gpu, mask=real, other=0), among_gpu) - further
        filled = _filled(tl.where(real, height, _NO_GPU), whole, all_width)
        further = filled + ((filled - flow) * ((step << 10) // (step + 3)) >> 10)
        flow = filled
        tl.debug_barrier()
    tl.store(loads + gpu, fixed, mask=is_gpu)
    tl.store(flows + row * width + column, flow, mask=inside)
    tl.debug_barrier()
    tl.atomic_add(loads + of_gpu, flow, mask=real, sem="relaxed")
    tl.debug_barrier()

    for turn in range(_ROUNDS):
        for number in range(num_classes):
            low, high = tl.load(class_ends + number), tl.load(class_ends + number + 1)
            member = low + tl.arange(0, of_class)[:, None]
            place_of = member * width + column
            within = (member < high) & (column < width)
            on = tl.load(gpus + place_of, mask=within, other=num_gpus)
            counted = on < num_gpus
            mine = tl.load(experts + member, mask=member < high, other=num_experts)
            tokens = tl.load(work + mine) << _BITS
            before = tl.load(flows + place_of, mask=within, other=0)
            of_all = tl.load(loads + on, mask=counted, other=0)
            # Nothing is written before all have read.
            tl.debug_barrier()
            shift = (key * _odd(turn * (num_gpus + 1) + on + 1) >> 20) & (_TOKEN // 2 - 1)
            top = tl.where(counted, of_all + shift - before, _NO_GPU)
            after = _filled(top, tokens, all_width) & -_TOKEN
            # The tokens that are left, fewer than GPUs, go to the lowest.
            left = tokens - tl.sum(after, axis=1)[:, None]
            after += tl.where(_places(top + after, all_width) << _BITS < left, _TOKEN, 0)
            tl.store(flows + place_of, after, mask=within)
            # Those of a class share no GPU.
            tl.store(loads + on, of_all + after - before, mask=counted)
            tl.debug_barrier()

    slot = tl.arange(0, all_slots)
    is_slot = slot < num_slots
    source = tl.load(of_slot + slot, mask=is_slot, other=num_experts)
    takes = tl.load(work + source)
    takes = tl.where(source > num_experts, takes >> _BITS, takes)
    nth = tl.load(part + slot, mask=is_slot, other=0)
    among = tl.load(parts + slot, mask=is_slot, other=1)
    takes = takes * (nth + 1) // among - takes * nth // among
    if activated:
        held = tl.load(expert_of_slot + slot, mask=is_slot, other=num_experts)
        takes *= tl.load(totals + held)
    tl.store(ends + slot, tl.cumsum(takes, axis=0), mask=is_slot)


@_jit
def _place(
    ids, limit, begins, ends, slots, first_slot, out,
    num_ids, num_experts, k,
    limited: tl.constexpr, block: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The slot of each id."""
    here = tl.program_id(0)
    mine = tl.arange(0, block)
    at = here * block + mine
    chosen = _ids_of(ids, limit, num_ids, num_experts, k, limited, at)
    earlier = tl.zeros([block], tl.int32)
    for first in range(0, block, columns):
        column = first + tl.arange(0, columns)
        other = _ids_of(ids, limit, num_ids, num_experts, k, limited, here * block + column)
        same = (chosen[:, None] == other[None, :]) & (column[None, :] < mine[:, None])
        earlier += tl.sum(same.to(tl.int32), axis=1)
    real = chosen < num_experts
    place = tl.load(begins + here * num_experts + chosen, mask=real, other=0) + earlier
    first = tl.load(first_slot + chosen, mask=real, other=0)
    after = tl.load(first_slot + chosen + 1, mask=real, other=0)
    passed = tl.zeros([block], tl.int64)
    for copy in range(tl.max(after - first, axis=0).to(tl.int32) - 1):
        held = real & (first + copy < after - 1)
        end = tl.load(ends + first + copy, mask=held, other=0)
        passed += (held & (end <= place)).to(tl.int64)
    slot = tl.load(slots + first + passed, mask=real, other=-1)
    tl.store(out + at, slot, mask=at < num_ids)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    """Where kernels are launched: the tensor's own GPU; the interpreter has none."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def has_room(rows: int, width: int) -> bool:
    """Whether one program can hold so many copied experts of so many GPUs at most, in pairs."""
    return int(triton.next_power_of_2(rows) * triton.next_power_of_2(width) ** 2) <= _MOST_PAIRS


def _no_counts(ids: Tensor, num_experts: int) -> Tensor:
    """Room for the counts of blocks."""
    return ids.new_empty((-(-ids.numel() // BLOCK), num_experts), dtype=torch.int32)


def count(ids: Tensor, limit: Tensor, num_experts: int, limited: bool) -> Tensor:
    """Counts [B, E] of the tokens of each expert in blocks of ids [tokens, k], of which the rows
    from `limit` on count for nothing where there is one.
    """
    counts = _no_counts(ids, num_experts)
    if ids.numel():
        with _on(ids):
            _count[(counts.shape[0],)](
                ids, limit, counts, ids.numel(), num_experts, ids.shape[1],
                limited, BLOCK, triton.next_power_of_2(num_experts + 1),
            )  # fmt: skip
    return counts


count_as_one = torch.library.custom_op("eplb::count", count, mutates_args=())
"""The same as one operation, for compilers."""


@count_as_one.register_fake
def _(ids: Tensor, _: Tensor, num_experts: int, *__: object) -> Tensor:
    return _no_counts(ids, num_experts)


def place(
    ids: Tensor, limit: Tensor, counts: Tensor, every: Tensor, copies: list[Tensor],
    rank: int, num_gpus: int, of_class: int, limited: bool, activated: bool,
) -> Tensor:  # fmt: skip
    """Slots of ids [tokens, k] whose counts are [B, E], among the ranks' [R, E]. `copies` are the
    arrays of who holds what, in the order in which the kernels take them.
    """
    out = torch.empty_like(ids)
    if not ids.numel():
        return out
    *of_level, slots, first_slot = copies
    gpus, _, class_ends, alone, _, of_slot, *_ = of_level
    (num_rows, width), num_experts, num_slots = gpus.shape, alone.shape[0], of_slot.shape[0]
    begins, ends = torch.empty_like(counts), counts.new_empty(num_slots)
    work = gpus.new_empty(2 * (num_experts + 1) + num_rows * width + 2 * num_gpus)
    power = triton.next_power_of_2
    with _on(ids):
        _level[(1,)](
            counts, every, begins, ends, work, *of_level,
            counts.shape[0], every.shape[0], rank, class_ends.shape[0] - 1,
            num_experts, num_slots, num_gpus, num_rows, width,
            activated, _ROWS, power(num_experts + 1), power(num_slots), power(num_gpus),
            power(max(1, num_rows)), power(max(1, of_class)), power(width), num_warps=_WARPS,
        )  # fmt: skip
        _place[(counts.shape[0],)](
            ids, limit, begins, ends, slots, first_slot, out,
            ids.numel(), num_experts, ids.shape[1], limited, BLOCK, _COLUMNS,
        )  # fmt: skip
    return out


place_as_one = torch.library.custom_op("eplb::place", place, mutates_args=())
"""The same as one operation, for compilers."""


@place_as_one.register_fake
def _(ids: Tensor, *_: object) -> Tensor:
    return torch.empty_like(ids)
