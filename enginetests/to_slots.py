"""vLLM's step from logical to physical experts in torch's operations. vLLM has a Triton kernel
alone for it, which needs a GPU or Triton's interpreter. vllm_ranks.py compares what both choose.
"""

import torch

__all__ = ["to_physical_and_record"]


def to_physical_and_record(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """As vLLM's `eplb_map_to_physical_and_record`: the slots [tokens, k] of experts, each by the
    place of its token in the batch, and a count for each slot.
    """
    experts = topk_ids.long()
    place = torch.arange(len(experts))[:, None] * 2654435769 & 0xFFFFFFFF
    slots = logical_to_physical_map[experts, place % logical_replica_count[experts].clamp(min=1)]
    if record_enabled:
        number = len(slots) if num_unpadded_tokens is None else int(num_unpadded_tokens)
        counted = torch.bincount(slots[:number].flatten(), minlength=len(expert_load_view))
        expert_load_view += counted.to(expert_load_view.dtype)
    return slots.to(topk_ids.dtype)
