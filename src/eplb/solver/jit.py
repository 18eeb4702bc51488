"""How kernels are compiled: lazily, kept on disk, without fastmath, with the GIL released.

`kernel` is for what Python calls, `inner` for what only kernels call. Numba keeps a compiled kernel
until the file it stands in changes, whatever happens to the files that it calls into; so the key of
each kept kernel also has a digest of every source file of the solver.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core.caching import FunctionCache

__all__ = ["inner", "is_ready", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
).hexdigest()


# Numba's types, where it has any, do not know all its options.
_njit: Any = njit


class _SolverCache(FunctionCache):
    """Numba's cache on disk, with the digest of the solver's sources in its keys."""

    def _index_key(self, *args: Any) -> Any:
        return (*super()._index_key(*args), _SOURCES)  # type: ignore[no-untyped-call]


def kernel(function: _Function) -> _Function:
    """Compile a function that Python calls, on its first call, and keep it on disk."""
    compiled = _njit(nogil=True, error_model="numpy")(function)
    if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        compiled._cache = _SolverCache(function)  # type: ignore[no-untyped-call]
    return cast("_Function", compiled)


def inner(function: _Function) -> _Function:
    """Compile a function as part of the kernels that call it; Python cannot call it."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return cast("_Function", _njit(nogil=True, error_model="numpy", **options)(function))


def is_ready(compiled: Callable[..., Any]) -> bool:
    """Whether a kernel has been compiled or loaded in this process, or needs no compiling."""
    return bool(getattr(compiled, "signatures", True))
