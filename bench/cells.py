"""The cells that planners are compared on: a load, and the cluster that it is planned for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

import eplb

__all__ = ["FEW_SLOTS", "GRID", "SPREADS", "Cell", "choose", "custom", "recorded", "synthetic"]

GRID = ("58x256:288/32", "58x256:320/64", "94x128:160/32", "94x512:640/64", "58x256:288/32:8/4")
"""The usual cells: DeepSeek-V3 and Qwen3 shapes, and one of many experts; the last has groups."""

FEW_SLOTS = ("94x128:160/32", "58x256:288/144", "36x128:128/8")
"""Cells of few slots: few on a GPU for so few spare ones, two on a GPU, none to spare."""
SPREADS = ("0.45", "0.7", "1.0")
"""Spreads of the counts that these are planned for: `94x128:160/32@0.45`."""

_SPEC = re.compile(r"(\d+)x(\d+):(\d+)/(\d+)(?::(\d+)/(\d+))?(?:@(\d+(?:\.\d+)?))?")
_SIGMA = 0.7
"""Standard deviation of the log of a synthetic load: in the middle of what DeepSeek-V3 shows."""
_TOKENS = 500_000
"""Selections of an expert in a layer, where loads are counts."""
_WIDEST = 10.0
"""Largest spread: past that one expert has all tokens of its layer."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One comparison.

    Attributes:
        name: what --cells selects it by.
        loads: [L, E] tokens routed to each logical expert.
        num_slots: P, slots of a layer.
        num_gpus: G.
        num_groups: groups that the model routes by, 1 where it does not.
        num_nodes: N, 1 where groups do not matter.
        from_trace: whether the loads were recorded from a model.
    """

    name: str
    loads: NDArray[np.float64]
    num_slots: int
    num_gpus: int
    num_groups: int = 1
    num_nodes: int = 1
    from_trace: bool = False

    @property
    def slots_per_gpu(self) -> int:
        """S."""
        return self.num_slots // self.num_gpus


def synthetic(num_layers: int, num_experts: int) -> NDArray[np.float64]:
    """[L, E] log-normal loads, the same for every caller."""
    generator = np.random.default_rng(0)
    return generator.lognormal(0.0, _SIGMA, (num_layers, num_experts)) * 1000.0


def counts(num_layers: int, num_experts: int, spread: float) -> NDArray[np.float64]:
    """[L, E] counts of tokens, the same for every caller.

    They are Poisson around log-normal shares, whose standard deviation is 0.7 to 1.3 times `spread`
    from layer to layer.
    """
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(num_layers, num_experts))
    share = np.exp(normal * spread * generator.uniform(0.7, 1.3, size=(num_layers, 1)))
    share /= share.sum(axis=1, keepdims=True)
    return generator.poisson(share * _TOKENS).astype(np.float64)


def custom(spec: str) -> Cell:
    """The cell `LxE:P/G[:groups/nodes][@spread]`: log-normal loads, or counts of a spread.

    Raises:
        ValueError: a text of another form, or counts that do not fit together.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise ValueError(
            f"{spec!r} is no cell: give LxE:P/G, LxE:P/G:groups/nodes, or one of them and @spread"
        )
    *shape, spread = match.groups()
    layers, experts, slots, gpus, groups, nodes = (int(part or 1) for part in shape)
    eplb.Cluster.with_slots(slots, gpus, nodes)
    if layers < 1 or experts < 1:
        raise ValueError(f"{spec}: give at least 1 layer and 1 expert")
    if slots < experts:
        raise ValueError(f"{spec}: {slots} slots do not hold {experts} experts")
    if groups < 1 or experts % groups:
        raise ValueError(f"{spec}: {experts} experts do not divide into {groups} groups")
    if spread is not None and float(spread) > _WIDEST:
        raise ValueError(f"{spec}: give a spread of at most {_WIDEST:g}")
    loads = synthetic(layers, experts) if spread is None else counts(layers, experts, float(spread))
    return Cell(spec, loads, slots, gpus, groups, nodes)


def recorded(folder: Path) -> list[Cell]:
    """Cells from every recorded load in a folder, on 32, 64 and 144 GPUs.

    Read are `deepseek_v3/*.json` ({"logical_count": [L][E]}) and `*.npz` (counts [L, E], or
    [T, L, E], of which the sum and the first window are taken; recorded tokens, topk_ids, are
    passed over). Layers with no load are dropped.

    Raises:
        ValueError: a folder with no such file, or a file of another form.
    """
    made: list[Cell] = []
    for path in sorted(folder.glob("deepseek_v3/*.json")):
        loads = _layers(_read_json(path), path)
        made += _on_clusters(path.stem, loads)
        made.append(Cell(f"{path.stem}:288/32:8/4", loads, 288, 32, 8, 4, from_trace=True))
    for path in sorted(folder.glob("*.npz")):
        counts = _read_npz(path)
        if counts is None:
            continue
        if counts.ndim == 3:
            made += _on_clusters(f"{path.stem}_sum", _layers(counts.sum(axis=0), path))
            made += _on_clusters(f"{path.stem}_first", _layers(counts[0], path))
        else:
            made += _on_clusters(path.stem, _layers(counts, path))
    if not made:
        raise ValueError(f"{folder} has no recorded loads: deepseek_v3/*.json or *.npz")
    return made


def choose(cells: list[Cell], patterns: str) -> list[Cell]:
    """The cells whose name one of the comma-separated names or globs matches.

    Raises:
        ValueError: a pattern that matches none.
    """
    wanted = [pattern for pattern in patterns.split(",") if pattern]
    for pattern in wanted:
        if not any(fnmatchcase(cell.name, pattern) for cell in cells):
            raise ValueError(f"no cell is called {pattern!r}: there are {_names(cells)}")
    return [cell for cell in cells if any(fnmatchcase(cell.name, p) for p in wanted)]


def _names(cells: list[Cell]) -> str:
    names = [cell.name for cell in cells]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_json(path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(json.loads(path.read_text())["logical_count"], dtype=np.float64)
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has no logical_count [L][E]: {error}") from None


def _read_npz(path: Path) -> NDArray[np.float64] | None:
    """The counts of a recording, or None for one of tokens."""
    try:
        with np.load(path) as file:
            if "topk_ids" in file and "counts" not in file:
                return None
            return np.asarray(file["counts"], dtype=np.float64)
    except (KeyError, OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} has no counts [L, E] or [T, L, E]: {error}") from None


def _layers(loads: NDArray[np.float64], path: Path) -> NDArray[np.float64]:
    """The layers that have a load: a dense layer's row is all zero."""
    if loads.ndim != 2 or not loads.any():
        raise ValueError(f"{path} has loads of shape {loads.shape}: give [L, E], not all 0")
    return np.ascontiguousarray(loads[loads.any(axis=1)])


def _on_clusters(name: str, loads: NDArray[np.float64]) -> Iterator[Cell]:
    """32, 64 and 144 GPUs: the fewest slots that leave any spare, one spare a GPU, one more."""
    num_experts = loads.shape[1]
    for num_gpus in (32, 64, 144):
        fewest = -(-num_experts // num_gpus)
        for slots in (fewest, fewest + 1, fewest + 2):
            num_slots = slots * num_gpus
            if num_slots > num_experts:
                full = f"{name}:{num_slots}/{num_gpus}"
                yield Cell(full, loads, num_slots, num_gpus, from_trace=True)
