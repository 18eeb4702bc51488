"""A digest of many plans, to compare processes with: `python fingerprint.py small|all [TRACES]`."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recorded import load_recorded

from eplb import Cluster, plan

__all__ = ["fingerprint"]

Cell = tuple[NDArray[np.float64], Cluster, int]


def _kinds(num_layers: int, num_experts: int) -> NDArray[np.float64]:
    """Layers of every kind: skewed, tied, equal, without load, with little but one expert."""
    rng = np.random.default_rng(num_experts)
    shape = (num_layers, num_experts)
    one_hot = np.full(shape, 1e-3)
    one_hot[:, num_experts // 2] = 1e6
    return np.vstack(
        [
            rng.lognormal(0.0, 1.0, shape),
            rng.integers(0, 4, shape),
            np.full(shape, 1.1),
            np.zeros(shape),
            one_hot,
        ]
    )


def _small_cells() -> Iterator[Cell]:
    for num_experts, cluster, num_groups in (
        (8, Cluster(4, 1, 3), 1),
        (8, Cluster(8, 1, 2), 1),
        (8, Cluster(4, 2, 3), 4),
        (5, Cluster(2, 1, 7), 1),
        (24, Cluster(12, 1, 3), 1),
        (24, Cluster(6, 3, 6), 6),
    ):
        yield _kinds(2, num_experts), cluster, num_groups


def _large_cells(traces: Path | None) -> Iterator[Cell]:
    yield _kinds(9, 256), Cluster(32, 4, 9), 8
    yield _kinds(9, 256), Cluster(32, 4, 9), 1
    yield _kinds(4, 256), Cluster(144, 1, 2), 1
    yield _kinds(4, 512), Cluster(64, 1, 10), 1
    if traces is not None:
        for name, cluster in (
            ("prefill_in512", Cluster(32, 1, 9)),
            ("decode_in1800out100", Cluster(144, 1, 2)),
            ("qwen3_30b", Cluster(32, 1, 5)),
        ):
            yield load_recorded(traces, name), cluster, 1


def fingerprint(*, small: bool, traces: Path | None = None, threads: int | None = None) -> str:
    """SHA-256 of the slots, peaks and bounds of every cell."""
    digest = hashlib.sha256()
    for loads, cluster, num_groups in (*_small_cells(), *(() if small else _large_cells(traces))):
        made = plan(loads, cluster, num_groups=num_groups, threads=threads)
        for array in (made.placement.phy2log, made.peak, made.bound):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    sys.stdout.write(fingerprint(small=sys.argv[1] == "small", traces=folder))
