"""What vllm_ranks.py runs in, with vLLM's kernel from experts to slots in Triton's interpreter.

To be imported before the engine, in a process with TRITON_INTERPRET=1: vLLM decides while it is
imported whether there are kernels.
"""

from typing import Any

import triton
from triton.runtime.interpreter import InterpreterBuilder
from vllm import platforms, triton_utils

__all__ = ["rank_of"]


class _Cuda:
    """The platform, but for one that has vLLM's kernels."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def is_cuda_alike(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _with_a_mask(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *more: Any) -> Any:
    """Triton 3.9's interpreter refuses a mask that is made with numbers that were loaded."""
    mask.data = mask.data.astype(bool)
    return _theirs(self, op, ptr, val, mask, *more)


triton_utils.triton, triton_utils.tl = triton, triton.language
_theirs, InterpreterBuilder.create_atomic_rmw = InterpreterBuilder.create_atomic_rmw, _with_a_mask
_real = platforms.current_platform
platforms.current_platform = _Cuda(_real)
import vllm.model_executor.layers.fused_moe.router.base_router  # noqa: E402, F401

platforms.current_platform = _real

from vllm_ranks import rank_of  # noqa: E402
