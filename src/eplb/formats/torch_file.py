"""Loads in a `.pt` file, opened with `weights_only=True` so that nothing in it runs.

SGLang's recorder saves `{"logical_count": [steps, L, E], ...}`, vllm-ascend's tool a bare [L, E].
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import FormatError, LoadsError, MissingExtraError
from eplb.loads import as_array

__all__ = ["read_pt"]


def read_pt(path: Path) -> NDArray[np.float64]:
    """Loads [L, E] or [T, L, E] in a `.pt` file."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "torch", "reading .pt files") from None
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch raises whatever its parts raise on a bad file
        if "weights" in str(error).lower() and "unpickl" in str(error).lower():
            raise FormatError(
                f"{path}: holds pickled code, which is never loaded; save plain tensors"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise FormatError(f"{path}: not a whole .pt file ({reason})") from None
    if isinstance(content, dict):
        if "logical_count" not in content:
            keys = ", ".join(map(repr, list(content)[:5])) or "none"
            raise FormatError(f"{path}: expected the key 'logical_count', found {keys}")
        content = content["logical_count"]
    if not isinstance(content, torch.Tensor):
        raise FormatError(f"{path}: expected a tensor of loads, found {type(content).__name__}")
    try:
        return as_array(content)
    except (LoadsError, TypeError, RuntimeError) as error:
        raise FormatError(f"{path}: {error}") from None
