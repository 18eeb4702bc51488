"""Those who re-plan beside ours: what each would run next, given what runs now."""

import contextlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import eplb
from eplb import Placement
from eplb.checks import in_one_line
from eplb.replaying.policies import load_peer, phy2log_of
from eplb.solver.greedy import greedy

__all__ = ["Point", "Replanner", "best_within", "built_in", "load_replanner", "point_of"]

_KINDS = ("rebalance_from", "rebalance_experts")
_OF_VLLM = "vllm/distributed/eplb/policy/"
_FILES = "abstract.py", "default.py"
_PEER = (
    "from default_policy.default import DefaultEplbPolicy\n\n"
    "rebalance_from = DefaultEplbPolicy.rebalance_experts\n"
)

Loads = NDArray[np.float64]


@dataclass(frozen=True)
class Replanner:
    """Another planner: `(loads [L, E], current)` to phy2log [L, P]."""

    name: str
    call: Callable[[Loads, Placement], NDArray[np.int64]]


@dataclass(frozen=True)
class Point:
    """What a planner gave: where `failed` says why it gave nothing, the rest is 0."""

    who: str
    moves: int = 0
    balancedness: float = 0.0
    failed: str | None = None


def built_in() -> list[Replanner]:
    """Keep what runs; DeepSeek's algorithm; the one that this project started from."""

    def keep(_loads: Loads, current: Placement) -> NDArray[np.int64]:
        return current.phy2log

    def afresh(swaps: bool) -> Callable[[Loads, Placement], NDArray[np.int64]]:  # noqa: FBT001
        return lambda loads, current: greedy(loads, current.cluster, 1, swaps=swaps)

    return [
        Replanner("keep", keep),
        Replanner("deepseek", afresh(False)),
        Replanner("seed", afresh(True)),
    ]


def load_replanner(path: Path) -> Replanner:
    """A file's `rebalance_from`, which gets phy2log of what runs as its sixth argument, or its
    `rebalance_experts`; of a wheel of vLLM, its default policy.

    Raises:
        PolicyError: a file that has none of these.
    """
    if path.suffix == ".whl":
        return _of_wheel(path)
    with contextlib.redirect_stdout(sys.stderr):
        peer = load_peer(path, _KINDS)
    return Replanner(path.stem, _called(peer.function, knows_current=peer.kind == _KINDS[0]))


def _of_wheel(path: Path) -> Replanner:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "default_policy"
        package.mkdir()
        (package / "__init__.py").touch()
        try:
            with zipfile.ZipFile(path) as wheel:
                for name in _FILES:
                    (package / name).write_bytes(wheel.read(_OF_VLLM + name))
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise eplb.PolicyError(f"{path}: no wheel of vLLM: {in_one_line(error)}") from None
        file = Path(folder) / "vllm.py"
        file.write_text(_PEER)
        return Replanner(path.stem.split("-cp", 1)[0], load_replanner(file).call)


def _called(
    function: Callable[..., Any], *, knows_current: bool
) -> Callable[[Loads, Placement], NDArray[np.int64]]:
    import torch

    def call(loads: Loads, current: Placement) -> NDArray[np.int64]:
        cluster = current.cluster
        shape = cluster.num_slots, 1, 1, cluster.num_gpus
        more = (torch.from_numpy(current.phy2log.copy()),) if knows_current else ()
        with contextlib.redirect_stdout(sys.stderr):
            answer = function(torch.from_numpy(loads), *shape, *more)
        return phy2log_of(answer, loads.shape[0], cluster.num_slots)

    return call


def point_of(who: Replanner, loads: Loads, current: Placement) -> Point:
    """What it moves, and the balancedness that it reaches."""
    try:
        phy2log = who.call(loads, current)
        made = Placement(phy2log, current.num_experts, current.cluster)
    except Exception as error:
        return Point(who.name, failed=in_one_line(error))
    return Point(who.name, made.moves_from(current), made.balancedness(loads))


def best_within(points: Sequence[tuple[int, float]], moves: int) -> float:
    """The best balancedness of points that move no more."""
    return max((balance for other, balance in points if other <= moves), default=0.0)
