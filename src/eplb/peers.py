"""Other planners: Python files that a user names, loaded so that none can end the run."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.errors import PolicyError
from eplb.loads import is_tensor

__all__ = ["Peer", "load_peer", "load_peers", "phy2log_of", "said"]

_DROP_IN = ("rebalance_experts",)


@dataclass(frozen=True)
class Peer:
    """Another planner.

    Attributes:
        name: the name of its file.
        kind: what its function is called.
        function: as DeepSeek's `rebalance_experts(weight, num_replicas, num_groups, num_nodes,
            num_gpus)`, torch tensors in and out, of which only phy2log need be returned; or as its
            kind says.
    """

    name: str
    kind: str
    function: Callable[..., Any]


def load_peers(paths: Sequence[Path]) -> list[Peer]:
    """Load each file's `rebalance_experts`; files of one name are numbered.

    Raises:
        PolicyError: a file that is not there, that raises when it is imported, or that has no such
            function.
    """
    peers: list[Peer] = []
    for path in paths:
        # What a peer prints must not mix with what this prints.
        with contextlib.redirect_stdout(sys.stderr):
            peer = load_peer(path)
        name, number = peer.name, 2
        while any(other.name == name for other in peers):
            name, number = f"{peer.name} {number}", number + 1
        peers.append(Peer(name, peer.kind, peer.function))
    return peers


def load_peer(path: Path, kinds: Sequence[str] = _DROP_IN) -> Peer:
    """Load a Python file and take the first function of `kinds` that it has.

    Raises:
        PolicyError: as for `load_peers`.
    """
    module = _import(path)
    for kind in kinds:
        function = getattr(module, kind, None)
        if callable(function):
            return Peer(path.stem, kind, function)
    raise PolicyError(f"{path}: it has no function {' or '.join(kinds)}")


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise PolicyError(f"{path}: there is no such file")
    name = f"_peer_{path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # it may import files that lie beside it, as a script does
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PolicyError(f"{path}: importing it raises {said(error)}") from None
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
    return module


def said(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def phy2log_of(result: Any, num_layers: int, num_slots: int) -> NDArray[np.int64]:
    """[L, P] of what a planner returned: phy2log, or a sequence that begins with it.

    Raises:
        PolicyError: something else.
    """
    if isinstance(result, tuple | list) and len(result) > 0 and _depth(result[0]) == 2:
        result = result[0]
    if is_tensor(result):
        result = result.detach()
    try:
        array = np.asarray(result.cpu() if is_tensor(result) else result)
    except Exception as error:
        raise PolicyError(f"phy2log is no array: {said(error)}") from None
    if array.shape != (num_layers, num_slots) or array.dtype.kind not in "ui":
        raise PolicyError(
            f"phy2log has shape {array.shape} and type {array.dtype}: "
            f"whole numbers of shape {(num_layers, num_slots)} were asked for"
        )
    return array.astype(np.int64)


def _depth(value: Any) -> int:
    """Axes of an array, a tensor or nested lists."""
    if isinstance(value, tuple | list):
        return 1 + (_depth(value[0]) if len(value) > 0 else 0)
    return getattr(value, "ndim", 0)
