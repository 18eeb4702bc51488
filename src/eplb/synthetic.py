"""Loads made to look like recorded ones, for demonstrations, tests and benchmarks.

The log of an expert's share is close to normal, with a spread that differs from layer to layer. On
six recorded DeepSeek-V3 workloads its standard deviation is 0.56 to 0.82, the hottest expert
carries 5.6 to 8.1 times the mean and the top fifth of the experts 41 to 51 % of the tokens.
"""

import operator

import numpy as np
from numpy.typing import NDArray

from eplb.errors import LoadsError

__all__ = ["deepseek_v3"]


def deepseek_v3(*, tokens: int = 100_000, seed: int = 0) -> NDArray[np.float64]:
    """A load of DeepSeek-V3's shape and skew: 58 MoE layers of 256 experts, top 8.

    Args:
        tokens: tokens that pass through the model; each is routed to 8 experts in every layer, so
            a layer's load adds up to 8 times this. The counts are drawn, so fewer tokens are
            noisier.
        seed: of the random numbers; the same seed gives the same loads.

    Returns:
        [58, 256], whole numbers of tokens.

    Raises:
        LoadsError: fewer than 1 token, or a seed below 0.
    """
    num_tokens, seed_number = operator.index(tokens), operator.index(seed)
    if num_tokens < 1:
        raise LoadsError(f"tokens is {tokens}: give 1 or more")
    if seed_number < 0:
        raise LoadsError(f"seed is {seed}: give 0 or more")
    random = np.random.default_rng(seed_number)
    num_layers, num_experts, top_k = 58, 256, 8
    spread = random.uniform(0.56, 0.82, size=(num_layers, 1))
    weight = np.exp(spread * random.standard_normal((num_layers, num_experts)))
    share = weight / weight.sum(axis=1, keepdims=True)
    loads: NDArray[np.float64] = random.multinomial(top_k * num_tokens, share).astype(np.float64)
    return loads
