"""Whole numbers of tokens for each copy of an expert, so that the busiest GPU has as few as can be.

First all experts at once, in parts of a token: steps down the gradient of the sum of squared GPU
loads, with momentum. Then class after class, in whole tokens: each expert of a class fills its
least loaded GPUs; those of a class share no GPU. Whole tokens get stuck where GPUs differ by one
along a chain of copies, and ranks that each round alike would add up to a peak. So a part of a
token, at most half, is added to the load of each GPU in each round: it follows from the counts, so
that it differs from batch to batch and yet is the same everywhere.

All numbers are whole ones, parts of a token are counted in 1 / 4096. So every processor finds the
same, and so do programs compiled from this.

Source: A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
inverse problems", 2009, for the steps.
"""

import torch
from torch import Tensor

_BITS = 12
_TOKEN = 1 << _BITS
LARGEST = 1 << 24
"""Tokens times experts of a token, less than this: sums stay far below 2^63 then."""
NO_GPU = 1 << 50
"""Load of a GPU that is none: never the least, and never too much for a sum of them."""
_STEPS = 20
_ROUNDS = 3
"""Fewer miss the peak by more, more gain little (docs/experiments.md)."""
_MOMENTUM = tuple((step << 10) // (step + 3) for step in range(_STEPS))
"""Parts of 1024."""
_MASK = (1 << 31) - 1
_KNUTH = 2654435761
"""The multiplier of Knuth's multiplicative hash, 2^32 over the golden ratio."""


def level(
    counts: Tensor,
    gpus: Tensor,
    experts: Tensor,
    ends: list[int],
    alone: Tensor,
    most: Tensor,
    empty: Tensor,
) -> Tensor:
    """Tokens [C, X] that each GPU of a copied expert takes, of tokens [E] of all experts, as whole
    numbers. `empty` [G + 1] is 0 for a GPU, and for the last, which is none, NO_GPU times `most`.
    The other arguments are those of `Copies`.
    """
    width = gpus.shape[1]
    tokens = counts << _BITS
    total = torch.cat((tokens, tokens.new_zeros(1)))[experts][:, None]
    numbers = torch.arange(1, width + 1, device=counts.device)
    of_gpu = gpus.reshape(-1)
    base = empty.index_add(0, alone, tokens * (alone < empty.shape[0] - 1))
    real = gpus < empty.shape[0] - 1
    flow = torch.div(total, real.sum(1, keepdim=True).clamp(min=1), rounding_mode="floor") * real
    ahead = flow
    for momentum in _MOMENTUM:
        load = base.index_add(0, of_gpu, ahead.reshape(-1))
        load = torch.div(load, most, rounding_mode="floor")
        filled = _fill(torch.take(load, gpus) - ahead, total, numbers)
        ahead = filled + ((filled - flow) * momentum >> 10)
        flow = filled
    load = base.index_add(0, of_gpu, flow.reshape(-1))
    load[-1:] = NO_GPU
    classes = []
    begin = 0
    for end in ends:
        classes.append([each[begin:end] for each in (gpus, total, flow)])
        begin = end
    places = (numbers - 1) << _BITS
    for shift in _shifts(counts, load.shape[0]):
        load = load + shift
        for of_class in classes:
            mine, all_of_it, before = of_class
            height = torch.take(load, mine) - before
            after = _fill(height, all_of_it, numbers).bitwise_and_(-_TOKEN)
            # The tokens that are left, fewer than GPUs, go to the lowest.
            left = all_of_it - after.sum(1, keepdim=True)
            lowest = (height + after).sort(dim=1, stable=True).indices
            after = after.scatter_add_(1, lowest, (places < left) * _TOKEN)
            load = load.index_add(0, mine.reshape(-1), (after - before).reshape(-1))
            of_class[2] = after
        load = load - shift
    return torch.cat([of_class[2] for of_class in classes]) >> _BITS if classes else flow


level_as_one = torch.library.custom_op("eplb::level", level, mutates_args=())
"""The same as one operation, for compilers: hundreds of small ones would take them minutes."""


@level_as_one.register_fake
def _(counts: Tensor, gpus: Tensor, *_: object) -> Tensor:
    return torch.empty_like(gpus)


def _fill(height: Tensor, total: Tensor, numbers: Tensor) -> Tensor:
    """How much each of the GPUs [C, X] takes of a total [C, 1], so that those that take any are
    filled to one height. It is the least of the heights that the lowest 1, 2, ... X would have.
    """
    lowest = height.sort(1).values.cumsum(1)
    level = torch.div(lowest.add_(total), numbers, rounding_mode="floor")
    return level.min(1, keepdim=True).values.sub(height).clamp_min_(0)


def _shifts(counts: Tensor, num_gpus: int) -> tuple[Tensor, ...]:
    """For each round, what is added to the load of each GPU [G]: less than half a token."""
    number = torch.arange(1, 1 + max(counts.shape[0], _ROUNDS * num_gpus), device=counts.device)
    odd = number * _KNUTH & _MASK | 1
    key = (counts * odd[: counts.shape[0]]).sum() & _MASK
    shifts = key * odd[: _ROUNDS * num_gpus] >> 20 & (_TOKEN // 2 - 1)
    return shifts.reshape(_ROUNDS, num_gpus).unbind(0)
