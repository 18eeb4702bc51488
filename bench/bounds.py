"""Plans of one load for a best split, where slots are enough: their peaks over the proven bounds.

    python bench/bounds.py --check --traces path/to/traces

With a slot for every expert and one more for every GPU, the bound is to be met. Clusters and loads
are drawn at random: log-normal loads of many spreads, one expert with nearly all of the load, few
experts with any, and, with `--traces`, recorded windows of DeepSeek-V3 and of gpt-oss.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bars import Bar
from numpy.typing import NDArray
from options import OneLineParser, positive
from rich.table import Table
from tables import console_for_tables, show_bars

import eplb

_MOST = 1e-3
"""What a peak may be above its bound, as a share."""
_FEWEST_GPUS, _MOST_GPUS = 2, 64
_SPREADS = (0.3, 0.7, 1.0, 1.5, 2.5)
_LAYERS = 8
"""Of a made load."""


def main() -> int:
    """Print how far peaks are above their bounds; return the exit code."""
    parser = OneLineParser(prog="bench/bounds.py", description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--traces", type=Path, metavar="DIR", help="recorded loads: deepseek_v3/, gptoss*.npz")
    add("--number", type=positive, default=20, metavar="N", help="clusters of each kind (20)")
    add("--check", action="store_true", help="exit with 1 if the bar is missed")
    options = parser.parse_args()
    try:
        recorded = dict(_recorded(options.traces)) if options.traces else {}
    except eplb.EplbError as error:
        parser.error(str(error))
    table = Table("loads", "clusters", "layers", "mean over bound", "largest", "within .1 %")
    bars = []
    for kind in [*recorded, *_MADE]:
        over = _over(kind, recorded.get(kind), options)
        within = float((over <= _MOST).mean())
        table.add_row(
            kind, f"{options.number}", f"{over.size}", f"{over.mean():.4%}", f"{over.max():.4%}",
            f"{within:.1%}",
        )  # fmt: skip
        found = f"{over.max():.4%}"
        bars.append(Bar(f"{kind}: peak over bound", "at most 0.1%", found, within == 1.0))
    console_for_tables().print(table)
    show_bars(bars)
    return int(options.check and any(bar.missed for bar in bars))


def _over(
    kind: str, loads: NDArray[np.float64] | None, options: argparse.Namespace
) -> NDArray[np.float64]:
    """Peaks over bounds, less 1, of all layers with load, on clusters that are drawn."""
    draw = np.random.default_rng(0)
    found = []
    for _ in range(options.number):
        load = _MADE[kind](draw) if loads is None else loads[draw.integers(len(loads))]
        num_experts = load.shape[1]
        num_gpus = int(draw.integers(_FEWEST_GPUS, min(_MOST_GPUS, num_experts) + 1))
        least = -(-(num_experts + num_gpus) // num_gpus)
        cluster = eplb.Cluster(num_gpus, slots_per_gpu=least + int(draw.integers(3)))
        made = eplb.plan(load, cluster, dispatch="best")
        some = made.bound > 0.0
        found.append(made.peak[some] / made.bound[some] - 1.0)
    return np.concatenate(found)


def _recorded(folder: Path) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """[T, L, E] recorded loads of each model that is there."""
    yield "DeepSeek-V3", eplb.load_trace(folder / "deepseek_v3").loads
    for path in sorted(folder.glob("gptoss*.npz"))[:1]:
        yield "gpt-oss", eplb.load_trace(path).loads


def _lognormal(draw: np.random.Generator) -> NDArray[np.float64]:
    spread = draw.choice(_SPREADS)
    return draw.lognormal(0.0, spread, (_LAYERS, int(draw.integers(4, 257))))


def _one_hot(draw: np.random.Generator) -> NDArray[np.float64]:
    loads = draw.lognormal(0.0, 0.5, (_LAYERS, int(draw.integers(4, 129))))
    loads[:, 0] = loads.sum(axis=1) * draw.uniform(0.2, 5.0)
    return loads


def _few(draw: np.random.Generator) -> NDArray[np.float64]:
    loads = draw.lognormal(0.0, 1.0, (_LAYERS, int(draw.integers(8, 129))))
    return np.where(draw.random(loads.shape) < 0.2, loads, 0.0)


_MADE = {"log-normal": _lognormal, "one hot expert": _one_hot, "few experts": _few}

if __name__ == "__main__":
    sys.exit(main())
