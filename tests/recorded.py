"""The loads recorded from real models, which lie beside the checkout and are no part of it."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEEPSEEK_V3", "GPT_OSS", "QWEN3", "ROOT", "SHARED", "load_recorded", "load_windows"]

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

DEEPSEEK_V3 = (
    "decode_in500out1500",
    "decode_in1800out100",
    "prefill_in512",
    "prefill_in2048",
    "prefill_in500out1500",
    "prefill_in2000out100",
)
QWEN3 = ("qwen3_30b", "qwen3_235b")
GPT_OSS = "gptoss20b_domains_2048"


def load_recorded(traces: Path, name: str) -> NDArray[np.float64]:
    """[L, E] loads of a recorded file, dense layers and all; of gpt-oss, the sum of its windows."""
    if name in DEEPSEEK_V3:
        with (traces / "deepseek_v3" / f"{name}.json").open() as file:
            return np.array(json.load(file)["logical_count"], dtype=np.float64)
    windows = load_windows(traces, name)
    return windows.sum(axis=0) if windows.ndim == 3 else windows


def load_windows(traces: Path, name: str) -> NDArray[np.float64]:
    """What an .npz file holds: [L, E], or [T, L, E]."""
    with np.load(traces / f"{name}.npz") as file:
        counts: NDArray[np.float64] = file["counts"].astype(np.float64)
    return counts
