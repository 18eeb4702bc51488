"""Other planners: files with `rebalance_experts`, loaded so that none can end the run."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Peer", "PeerError", "load_peers", "phy2log_of", "said"]


class PeerError(ValueError):
    """A file that is no peer."""


@dataclass(frozen=True)
class Peer:
    """Another planner.

    Attributes:
        name: the name of its file.
        rebalance_experts: (weight, num_replicas, num_groups, num_nodes, num_gpus), torch tensors in
            and out; it may return phy2log alone or first of several.
    """

    name: str
    rebalance_experts: Callable[..., Any]


def load_peers(paths: list[Path]) -> list[Peer]:
    """Load each file's `rebalance_experts`.

    Raises:
        PeerError: a file that is not there, that raises when it is imported, or that has no such
            function.
    """
    peers: list[Peer] = []
    for path in paths:
        name, number = path.stem, 2
        while any(peer.name == name for peer in peers):
            name, number = f"{path.stem} {number}", number + 1
        peers.append(Peer(name, _load(path, f"_peer_{len(peers)}_{path.stem}")))
    return peers


def _load(path: Path, module_name: str) -> Callable[..., Any]:
    if not path.is_file():
        raise PeerError(f"--peer {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise PeerError(f"--peer {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        # What a peer prints must not mix with what this prints.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PeerError(f"--peer {path}: importing it raises {said(error)}") from None
    function = getattr(module, "rebalance_experts", None)
    if not callable(function):
        raise PeerError(f"--peer {path}: it has no function rebalance_experts")
    return function  # type: ignore[no-any-return]


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def phy2log_of(result: Any, num_layers: int, num_slots: int) -> NDArray[np.int64]:
    """[L, P] of what a planner returned: phy2log, or a sequence that begins with it.

    Raises:
        ValueError: something else.
    """
    if isinstance(result, tuple | list) and len(result) > 0:
        result = result[0]
    array = np.asarray(result)
    if array.shape != (num_layers, num_slots) or array.dtype.kind not in "ui":
        raise ValueError(
            f"phy2log has shape {array.shape} and type {array.dtype}: "
            f"whole numbers of shape {(num_layers, num_slots)} were asked for"
        )
    return array.astype(np.int64)
