"""Models by name: what their experts weigh."""

__all__ = ["EXPERT_BYTES"]

EXPERT_BYTES: dict[str, int] = {
    "DeepSeek-V3": 3 * 7168 * 2048,
    "gpt-oss-20b": 3 * 2880 * 2880 * 17 // 32,
    "Qwen3-235B-A22B": 3 * 4096 * 1536 * 2,
}
"""Bytes of one expert of one layer: three matrices, hidden size x width of an expert, in the number
format that the weights are published in: FP8 for DeepSeek-V3, BF16 for Qwen3-235B-A22B, MXFP4
(17/32 of a byte with its scales) for gpt-oss. Sizes are those of each model's `config.json`.
"""
