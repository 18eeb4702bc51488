"""Models by name: what their experts weigh."""

from eplb.cluster import whole_number
from eplb.errors import ClusterError

__all__ = ["EXPERT_BYTES", "expert_bytes_of"]

_MOST_BYTES = 2**50

EXPERT_BYTES: dict[str, int] = {
    "DeepSeek-V3": 3 * 7168 * 2048,
    "gpt-oss-20b": 3 * 2880 * 2880 * 17 // 32,
    "Qwen3-235B-A22B": 3 * 4096 * 1536 * 2,
}
"""Bytes of one expert of one layer: three matrices, hidden size x width of an expert, in the number
format that the weights are published in: FP8 for DeepSeek-V3, BF16 for Qwen3-235B-A22B, MXFP4
(17/32 of a byte with its scales) for gpt-oss. Sizes are those of each model's `config.json`.
"""


def expert_bytes_of(model: str | None, said: int | None = None) -> int | None:
    """Bytes of an expert's weights in one layer: those said, or the model's; None where unknown.

    Raises:
        ClusterError: no whole number from 1 to 2**50.
    """
    if said is None:
        return EXPERT_BYTES.get(model or "")
    size = whole_number(said, "expert_bytes")
    if size > _MOST_BYTES:
        raise ClusterError(f"expert_bytes is {size}: give {_MOST_BYTES} or less")
    return size
