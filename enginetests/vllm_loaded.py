"""What the processes of vllm_ranks.py are forked from: vLLM imported, and kernels loaded."""

import vllm_ranks  # noqa: F401

import eplb

eplb.warmup()
