"""The dispatch of a batch by the solver's kernels, for a CPU, as two operations of torch: what
traces a program finds them as such, with shapes and without values.
"""

import torch
from torch import Tensor

from eplb.errors import OptionError


@torch.library.custom_op("eplb::count_on_cpu", mutates_args=(), device_types="cpu")
def count(topk_ids: Tensor, limit: Tensor, num_experts: int) -> Tensor:
    """How many tokens of each expert [E] the first `limit` [1] rows of ids [tokens, k] have.

    Raises:
        OptionError: an id that is no expert and does not pad.
    """
    from eplb.solver.whole_tokens import _count_batch

    ids, num_ids = _flat(topk_ids, limit)
    counts = torch.empty(num_experts, dtype=torch.int64)
    wrong = _count_batch(ids.numpy(), num_ids, counts.numpy())
    if wrong >= 0:
        raise OptionError(
            f"topk_ids has {int(ids[wrong])}: experts are numbered 0 to {num_experts - 1}, "
            "and -1 pads"
        )
    return counts


@torch.library.custom_op("eplb::place_on_cpu", mutates_args=(), device_types="cpu")
def place(
    topk_ids: Tensor,
    limit: Tensor,
    every: Tensor,
    copies: list[Tensor],
    rank: int,
    num_gpus: int,
    activated: bool,
) -> Tensor:
    """The slots of the first `limit` rows of ids, -1 in others; `every` [R, E] are the counts of
    all ranks. `copies` are arrays of `Copies`.
    """
    from eplb.solver.whole_tokens import _place_batch

    ids, num_ids = _flat(topk_ids, limit)
    gpus, experts, class_ends, alone, most, of_slot, part, parts, slots, first = (
        each.numpy() for each in copies
    )
    found = torch.empty_like(ids)
    _place_batch(
        ids.numpy(), num_ids, every.numpy(), rank, gpus, experts, class_ends, alone, int(most),
        num_gpus, of_slot, part, parts, slots, first, activated, found.numpy(),
    )  # fmt: skip
    return found.to(topk_ids.dtype).reshape(topk_ids.shape)


def _flat(topk_ids: Tensor, limit: Tensor) -> tuple[Tensor, int]:
    """The ids in a row, and how many of them are real."""
    rows, k = topk_ids.shape
    return topk_ids.to(torch.int64).reshape(-1), min(max(int(limit), 0), rows) * k


@count.register_fake
def _(topk_ids: Tensor, _: Tensor, num_experts: int) -> Tensor:
    return topk_ids.new_empty(num_experts, dtype=torch.int64)


@place.register_fake
def _(topk_ids: Tensor, *_: object) -> Tensor:
    return torch.empty_like(topk_ids, memory_format=torch.contiguous_format)
