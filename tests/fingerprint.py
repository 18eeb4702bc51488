"""A digest of many plans, to compare processes with: `python fingerprint.py small|all [TRACES]`."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from recorded import DEEPSEEK_V3, load_recorded

from eplb import Cluster, plan
from eplb.planning.plan import Effort

__all__ = ["fingerprint"]


class Cell(NamedTuple):
    """What a plan is made from."""

    loads: NDArray[np.float64]
    cluster: Cluster
    num_groups: int = 1
    weights: tuple[float, ...] | None = None
    effort: Effort = "default"
    dispatch: str = "even"


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


def _windows(num_windows: int, num_layers: int, num_experts: int) -> NDArray[np.float64]:
    """[T, L, E] layers of every kind, another order of experts in each window; a window without
    load in one layer, and a layer with load in one window alone.
    """
    rng = np.random.default_rng(num_windows)
    kinds = _kinds(num_layers, num_experts)
    windows = np.stack([rng.permutation(kinds, axis=1) for _ in range(num_windows)])
    windows[1, 0] = 0.0
    windows[0, -num_layers - 1] = rng.lognormal(size=num_experts)
    return windows


def _cells_of_windows(
    windows: NDArray[np.float64],
    cluster: Cluster,
    num_groups: int,
    weights: tuple[float, ...] | None = None,
) -> Iterator[Cell]:
    for effort in get_args(Effort):
        yield Cell(windows, cluster, num_groups, weights, effort)


def _small_cells() -> Iterator[Cell]:
    for num_experts, cluster, num_groups in (
        (8, Cluster(4, 1, 3), 1),
        (8, Cluster(8, 1, 2), 1),
        (8, Cluster(4, 2, 3), 4),
        (5, Cluster(2, 1, 7), 1),
        (24, Cluster(12, 1, 3), 1),
        (24, Cluster(6, 3, 6), 6),
    ):
        yield Cell(_kinds(2, num_experts), cluster, num_groups)
    yield from _cells_of_windows(_windows(4, 1, 8), Cluster(4, 1, 3), 1, (3.0, 1.0, 0.0, 0.7))
    yield from _cells_of_windows(_windows(3, 1, 8), Cluster(4, 2, 3), 4)
    yield from _cells_of_windows(_windows(3, 1, 6), Cluster(6, 1, 1), 1)
    yield from _cells_of_windows(_windows(2, 1, 3), Cluster(2, 1, 4), 1)


def _large_cells(traces: Path | None) -> Iterator[Cell]:
    yield Cell(_kinds(9, 256), Cluster(32, 4, 9), 8)
    yield Cell(_kinds(9, 256), Cluster(32, 4, 9))
    yield Cell(_kinds(4, 256), Cluster(144, 1, 2))
    yield Cell(_kinds(4, 512), Cluster(64, 1, 10))
    yield from _cells_of_windows(_windows(5, 2, 64), Cluster(16, 4, 5), 8)
    yield from _cells_of_windows(_windows(4, 2, 64), Cluster(16, 1, 5), 1, (0.1, 0.4, 0.2, 0.3))
    yield Cell(_windows(4, 2, 64), Cluster(16, 1, 5), dispatch="best")
    yield Cell(_windows(3, 2, 64), Cluster(16, 4, 5), 8, dispatch="best")
    yield Cell(_windows(4, 2, 64), Cluster(16, 4, 5), dispatch="sglang")
    yield Cell(_windows(3, 2, 64), Cluster(16, 4, 5), 8, dispatch="ascend")
    if traces is not None:
        for name, cluster in (
            ("prefill_in512", Cluster(32, 1, 9)),
            ("decode_in1800out100", Cluster(144, 1, 2)),
            ("qwen3_30b", Cluster(32, 1, 5)),
        ):
            yield Cell(load_recorded(traces, name), cluster)
        # A layer without load, and few of the others: the most effort takes seconds for all.
        windows = np.stack([load_recorded(traces, name)[2:6] for name in DEEPSEEK_V3])
        yield from _cells_of_windows(windows, Cluster(32, 1, 9), 1)


def fingerprint(*, small: bool, traces: Path | None = None, threads: int | None = None) -> str:
    """SHA-256 of the slots, peaks and bounds of every cell."""
    digest = hashlib.sha256()
    for cell in (*_small_cells(), *(() if small else _large_cells(traces))):
        made = plan(
            cell.loads,
            cell.cluster,
            num_groups=cell.num_groups,
            weights=cell.weights,
            effort=cell.effort,
            dispatch=cell.dispatch,
            threads=threads,
        )
        for array in (made.placement.phy2log, made.peak, made.bound):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    sys.stdout.write(fingerprint(small=sys.argv[1] == "small", traces=folder))
