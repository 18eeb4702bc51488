"""A digest of many plans, to compare processes with: `python fingerprint.py small|all|signatures
[TRACES]`, the last with how often each kernel was compiled.
"""

import gc
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray
from recorded import DEEPSEEK_V3, load_recorded

import eplb
from eplb import Cluster, Placement, plan
from eplb.planning.problem import Effort

__all__ = ["fingerprint"]


class Cell(NamedTuple):
    """What a plan is made from."""

    loads: NDArray[np.float64]
    cluster: Cluster
    num_groups: int = 1
    weights: tuple[float, ...] | None = None
    effort: Effort = "default"
    dispatch: str = "even"
    current: Placement | None = None
    max_moves: int | None = None


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
    efforts: tuple[Effort, ...] = get_args(Effort),
) -> Iterator[Cell]:
    for effort in efforts:
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
    # Without compiling, the most effort takes a while.
    little: tuple[Effort, ...] = ("fast", "default")
    weights = (3.0, 1.0, 0.0, 0.7)
    yield from _cells_of_windows(_windows(4, 1, 8), Cluster(4, 1, 3), 1, weights, little)
    yield from _cells_of_windows(_windows(3, 1, 8), Cluster(4, 2, 3), 4, None, little)
    yield from _cells_of_windows(_windows(3, 1, 6), Cluster(6, 1, 1), 1)
    yield from _cells_of_windows(_windows(2, 1, 3), Cluster(2, 1, 4), 1)


def _moving_cells() -> Iterator[Cell]:
    """From what runs, with and without a budget: ties, groups, and a cluster that changes."""
    rng = np.random.default_rng(0)
    for num_windows, num_groups, cluster, ties in (
        (1, 1, Cluster(8, 1, 5), False),
        (1, 1, Cluster(8, 1, 5), True),
        (1, 8, Cluster(8, 4, 5), False),
        (3, 1, Cluster(6, 1, 6), False),
        (2, 4, Cluster(12, 2, 3), True),
    ):
        loads = rng.lognormal(size=(num_windows + 1, 7, 32))
        if ties:
            loads = np.floor(loads)
        cell = Cell(loads[:-1], cluster, num_groups)
        cell = cell._replace(current=plan(loads[-1], Cluster(8, 1, 5)).placement)
        yield cell
        yield cell._replace(max_moves=140)
        yield cell._replace(max_moves=180, effort="fast")


def _large_cells(traces: Path | None) -> Iterator[Cell]:
    yield Cell(_kinds(9, 256), Cluster(32, 4, 9), 8)
    yield Cell(_kinds(9, 256), Cluster(32, 4, 9))
    yield Cell(_kinds(4, 256), Cluster(144, 1, 2))
    yield Cell(_kinds(4, 512), Cluster(64, 1, 10))
    yield from _moving_cells()
    yield from _cells_of_windows(_windows(5, 2, 64), Cluster(16, 4, 5), 8)
    yield from _cells_of_windows(_windows(4, 2, 64), Cluster(16, 1, 5), 1, (0.1, 0.4, 0.2, 0.3))
    yield Cell(_windows(4, 2, 64), Cluster(16, 1, 5), dispatch="best")
    yield Cell(_windows(3, 2, 64), Cluster(16, 4, 5), 8, dispatch="best")
    running = plan(_kinds(2, 64), Cluster(16, 1, 5)).placement
    cell = Cell(_windows(3, 2, 64), Cluster(16, 1, 5), dispatch="best", current=running)
    yield cell
    yield cell._replace(max_moves=9, effort="fast")
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
    """SHA-256 of the slots, peaks, bounds and moves of every cell."""
    digest = hashlib.sha256()
    for cell in (*_small_cells(), *(() if small else _large_cells(traces))):
        made = plan(
            cell.loads,
            cell.cluster,
            num_groups=cell.num_groups,
            weights=cell.weights,
            effort=cell.effort,
            dispatch=cell.dispatch,
            current=cell.current,
            max_moves=cell.max_moves,
            threads=threads,
        )
        for array in (made.placement.phy2log, made.peak, made.bound):
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        digest.update(str(made.moves).encode())
    return digest.hexdigest()


def signatures() -> Iterator[str]:
    """Each kernel's name and how many signatures it was compiled for in this process, the kernels
    of other rules and of splits called besides.
    """
    for rule in ("even", "best", "sglang", "ascend"):
        eplb.warmup(rule)
    placement = plan(np.ones((1, 4)), Cluster(2, 1, 3)).placement
    for rule in ("best", "sglang", "ascend"):
        for loads in (np.ones((1, 4)), np.ones((2, 1, 4))):
            plan(loads, Cluster(2, 1, 3), dispatch=rule)
        placement.gpu_load(np.ones((2, 1, 4)), rule)
    eplb.dispatch(placement, np.ones((2, 1, 4))).table()
    for each in gc.get_objects():
        if isinstance(each, Dispatcher) and each.py_func.__module__.startswith("eplb."):
            yield f"{each.py_func.__name__} {len(each.signatures)}"


if __name__ == "__main__":
    which, *folder = sys.argv[1:]
    lines = [fingerprint(small=which == "small", traces=Path(folder[0]) if folder else None)]
    if which == "signatures":
        lines += signatures()
    sys.stdout.write("\n".join(lines))
