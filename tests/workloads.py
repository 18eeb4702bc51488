"""A folder of workloads, whose names tell no order in time."""

import json
from pathlib import Path

import numpy as np

import eplb

__all__ = ["CLUSTER", "NAMES", "write_workloads"]

NAMES = ("chat", "code", "mail", "math", "prose")
CLUSTER = eplb.Cluster(num_gpus=4, slots_per_gpu=5)


def write_workloads(folder: Path) -> Path:
    """A file for each, of a dense layer and two of 16 experts."""
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(NAMES):
        loads = np.zeros((3, 16))
        loads[1:] = np.round(1000.0 * np.random.default_rng(seed).lognormal(size=(2, 16)))
        text = json.dumps({"logical_count": loads.tolist()})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return folder
