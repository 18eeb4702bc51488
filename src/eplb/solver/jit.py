"""How kernels are compiled: lazily, kept on disk, without fastmath, with the GIL released.

`kernel` is for what Python calls, `inner` for what only kernels call. Only kernels count references
to arrays, and hold them as long as they run; so an inner function makes and returns no arrays, but
for an `allocating` one, and slices are free in it. It is compiled no further than to be linked into
kernels: machine code is made of these alone.

A kept kernel is used as long as what it reaches says the same: its own file, the files of the
solver that this one imports from, and so on, comments and docstrings left out. So a kernel uses
nothing of the package from outside of the solver.

What is kept saves time and changes nothing else. Where it cannot be read, or is not what was
written, the kernel is compiled again and kept again; where that fails, one warning says so. What
lies where nothing can be written, as in a read-only image, is read all the same.
"""

import ast
import functools
import gc
import glob
import hashlib
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, Flags
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from eplb.files import locked, whole_file

__all__ = ["allocating", "compiling", "filling", "inner", "is_kept", "is_ready", "kernel"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = "eplb.solver"
_SOURCES = {
    f"{_PACKAGE}.{path.stem}": path.read_bytes()
    for path in sorted(Path(__file__).parent.glob("*.py"))
}
"""Read at once: a process may outlive an upgrade of its files."""

_LONGEST_FILLING = 300.0
"""Seconds: it takes up to two minutes on a busy machine."""

_DIGEST = hashlib.sha256
_SIZE = _DIGEST().digest_size

# Numba's types, where it has any, do not know all its options.
_njit: Any = njit
_OPTIONS = {"nogil": True, "error_model": "numpy"}
_COLLECTING = threading.Lock()
_AS_TRIED = numba.version_info.short < (0, 69)
"""Whether numba is known to be made as parts of kernels take it. They are as right without."""


def kernel(function: _Function) -> _Function:
    """Compile a function that Python calls, on its first call, and keep it on disk."""
    options = {**_OPTIONS, "no_cfunc_wrapper": True, "_nrt": True}
    if _AS_TRIED:
        options["pipeline_class"] = _KernelCompiler
    compiled = _njit(**options)(function)
    if not numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        try:
            compiled._cache = _KernelCache(function)
        # Python finds no source, or numba not the places that a variable names.
        except (OSError, RuntimeError) as error:
            _warn(str(error))
    return cast("_Function", compiled)


def inner(function: _Function) -> _Function:
    """Compile a function as part of the kernels that call it; Python cannot call it.

    It counts no references: it may take and slice arrays, and not make or return any.
    """
    return _part(function, counting=False)


def allocating(function: _Function) -> _Function:
    """The same for a function that makes arrays or returns some."""
    return _part(function, counting=True)


def _part(function: _Function, *, counting: bool) -> _Function:
    options = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    if _AS_TRIED:
        # Left out, `_nrt` would be as in the first caller.
        options |= {"pipeline_class": _PartCompiler, "_nrt": counting}
    return cast("_Function", _njit(**options)(function))


class _Part(JITCodeLibrary):
    """Numba's code of a function that only kernels call, to be linked into them."""

    @property
    def codegen(self) -> Any:
        """In whose place this is asked for what machine code has."""
        return self

    def set_env(self, *_: Any) -> None:
        """Nothing: only Python's calls have an environment."""

    def get_pointer_to_function(self, name: str) -> int:
        """None: there is no machine code."""
        self._ensure_finalized()  # type: ignore[no-untyped-call]
        return 0

    def _optimize_final_module(self) -> None:
        """Not yet: what it is linked into is optimised as a whole."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # type: ignore[no-untyped-call]
        self._finalized = True


class _Flags(Flags):
    """Numba's options of a compilation, by which it looks up each operator that it types: hashed
    and compared without reading all of them again.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return _HASH

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Flags) and self._values == other._values:
            return True
        return cast("bool", super().__eq__(other))  # type: ignore[no-untyped-call]


_HASH = hash(Flags())  # type: ignore[no-untyped-call]
"""Numba hashes the names of options, not their values."""


class _KernelCompiler(Compiler):
    """Numba's compiler, with such options."""

    def __init__(
        self,
        typing: Any,
        target: Any,
        library: Any,
        args: Any,
        returned: Any,
        flags: Any,
        names: Any,
    ) -> None:
        flags = _Flags(flags)  # type: ignore[no-untyped-call]
        super().__init__(typing, target, library, args, returned, flags, names)  # type: ignore[no-untyped-call]


class _PartCompiler(_KernelCompiler):
    """The same, for such code."""

    def __init__(self, typing: Any, target: Any, _: Any, *rest: Any) -> None:
        library = _Part(target.codegen(), "part")  # type: ignore[no-untyped-call]
        super().__init__(typing, target, library, *rest)


def is_ready(compiled: Callable[..., Any]) -> bool:
    """Whether a kernel has been compiled or loaded in this process, or needs no compiling."""
    return bool(getattr(compiled, "signatures", True))


def is_kept(compiled: Callable[..., Any]) -> bool:
    """Whether a kernel seems to be on disk; what stands there may be of older sources."""
    cache = getattr(compiled, "_cache", None)
    return not isinstance(cache, _KernelCache) or cache.has_any()


@contextmanager
def compiling() -> Iterator[None]:
    """The block compiles many kernels: Python looks for garbage less often, as there is little."""
    often = gc.get_threshold()
    # A threshold of 0 says not to look at all. One thread at a time puts back what there was.
    if not often[0] or not _COLLECTING.acquire(blocking=False):
        yield
        return
    try:
        gc.set_threshold(max(often[0], 20_000), *often[1:])
        yield
    finally:
        gc.set_threshold(*often)
        _COLLECTING.release()


@contextmanager
def filling() -> Iterator[bool]:
    """Whether the block is the first on this machine to compile what is kept.

    Others who share the folder wait until it has. Where nothing can be kept, nobody is the first.
    """
    processor = numba.core.registry.cpu_target.target_context.codegen().magic_tuple()
    what = repr((sorted(_SOURCES.items()), numba.__version__, sys.version_info[:2], processor))
    mark = f"filled.{_DIGEST(what.encode()).hexdigest()[:16]}"
    try:
        folders = [Path(_KernelCache(kernel).cache_path), _first_choice(__file__)]
        folders[0].mkdir(parents=True, exist_ok=True)
        filled = any((each / mark).exists() for each in folders)
    except (OSError, RuntimeError):
        filled = True
    if not filled and os.access(folders[0], os.W_OK):
        with locked(folders[0], _LONGEST_FILLING):
            if not (folders[0] / mark).exists():
                yield True
                with suppress(OSError):
                    (folders[0] / mark).touch()
                return
    yield False


def _first_choice(file: str) -> Path:
    """The folder that numba takes where it may write: there, others may have kept kernels."""
    given = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if given:
        return Path(given, _CacheLocator.get_suitable_cache_subpath(file))  # type: ignore[no-untyped-call]
    return Path(file).with_name("__pycache__")


class _Unwritable(_CacheLocator):
    """The first of numba's choices as its last: nothing can be kept there, but may have been."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> "_Unwritable":
        return cls(_first_choice(py_file))

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> None:
        return None

    def get_disambiguator(self) -> str:
        return ""


class _KernelNames(CompileResultCacheImpl):
    """Numba's choice of a folder; names of files without the function's line, which a comment
    above it moves.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        choices = self._locator_classes
        if not Path(os.path.expanduser("~/")).is_absolute() and not os.getenv("XDG_CACHE_HOME"):  # noqa: PTH111
            # Where there is no home, numba would make a folder called `~` in the working folder.
            choices = [each for each in choices if "UserWide" not in each.__name__]
        self._locator_classes = cast("Any", [*choices, _Unwritable])
        super().__init__(function)  # type: ignore[no-untyped-call]

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        version = f"{sys.version_info.major}{sys.version_info.minor}{abiflags}"
        return f"{fullname.replace('<', '').replace('>', '')}.py{version}"


class _KernelCache(FunctionCache):
    """Numba's cache on disk, with files of the solver's own, of which no error is worth a plan."""

    _impl_class = _KernelNames

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        file = function.__code__.co_filename
        self._folders = [Path(self.cache_path), _first_choice(file)]
        files = _KernelFiles(self._folders, self._impl.filename_base, Path(file).read_bytes())
        self._cache_file = cast("Any", files)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        except Exception:
            return None  # whatever stands there: it is compiled, and replaced

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]
        except Exception as error:
            _warn(f"{self.cache_path} ({getattr(error, 'strerror', None) or error})")

    def has_any(self) -> bool:
        """Whether there is a file of the kernel's."""
        name = f"{glob.escape(self._impl.filename_base)}.*.nbc"
        return any(any(folder.glob(name)) for folder in self._folders)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[str, str]:
        """What a file is called after, and what it must be for besides."""
        sig, processor, code = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return repr((sig, processor)), repr(code)


class _KernelFiles:
    """A file for each signature and processor, in place of numba's pair of index and data.

    It is a digest of all that follows and of what the kernel is; a digest of the solver; one of
    what the kernel reaches; and the kernel. Where the whole solver is the same, nobody has to find
    out what is reached.
    """

    def __init__(self, folders: list[Path], name: str, source: bytes) -> None:
        self._folders = folders
        self._name = name
        self._source = source
        self._solver = _DIGEST(b"\0".join([*_SOURCES.values(), source])).digest()

    def load(self, key: tuple[str, str]) -> Any:
        """A kernel as numba packs it, None where there is none that is whole and fresh."""
        for folder in self._folders:
            with suppress(OSError):
                data = self._read(folder, key)
                if data is not None:
                    return pickle.loads(data)
        return None

    def _read(self, folder: Path, key: tuple[str, str]) -> bytes | None:
        path = folder / self._file(key)
        if not path.is_file():  # a FIFO would be waited for
            return None
        content = path.read_bytes()
        digest, stamps, data = content[:_SIZE], content[_SIZE : 3 * _SIZE], content[3 * _SIZE :]
        if digest != self._digest(key, stamps, data):
            return None
        if stamps[:_SIZE] != self._solver and stamps[_SIZE:] != _reached(self._source):
            return None
        return data

    def save(self, key: tuple[str, str], kernel: Any) -> None:
        """Keep a kernel; what stood in its place is replaced."""
        stamps = self._solver + _reached(self._source)
        data: bytes = dumps(kernel)  # type: ignore[no-untyped-call]
        with whole_file(self._folders[0] / self._file(key)) as file:
            for part in (self._digest(key, stamps, data), stamps, data):
                file.write(part)

    def _file(self, key: tuple[str, str]) -> str:
        return f"{self._name}.{_DIGEST(key[0].encode()).hexdigest()[:16]}.nbc"

    def _digest(self, key: tuple[str, str], stamps: bytes, data: bytes) -> bytes:
        what = repr((numba.__version__, self._name, key)).encode()
        return _DIGEST(b"".join([_DIGEST(what).digest(), stamps, data])).digest()


def _reached(source: bytes) -> bytes:
    """Digest of what a file says and, through its imports, of all that it reaches in the solver."""
    said, imports = _read(source)
    texts: dict[str, str] = {}
    waiting = list(imports)
    while waiting:
        module = waiting.pop()
        if module not in texts:
            texts[module], imports = _read(_SOURCES[module])
            waiting += imports
    return _DIGEST("\0".join([said, *(texts[each] for each in sorted(texts))]).encode()).digest()


@functools.cache
def _read(source: bytes) -> tuple[str, list[str]]:
    """What a file says, without comments and docstrings, and the solver's modules it imports."""
    tree = ast.parse(source)
    imports = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{_PACKAGE}.{module}".rstrip(".")
            imports += [module, *(f"{module}.{alias.name}" for alias in node.names)]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_docstring(each)]  # type: ignore[attr-defined]
    return ast.dump(tree), [each for each in imports if each in _SOURCES]


def _is_docstring(statement: ast.stmt) -> bool:
    """Of a function, class or file, or of the constant above it."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


_told: list[str] = []


def _warn(where: str) -> None:
    """Say, once in a process, that kernels cannot be kept."""
    if not _told:
        _told.append(where)
        logging.getLogger("eplb").warning(
            "compiled kernels cannot be kept in %s: each process compiles them again, which takes "
            "up to a minute; set NUMBA_CACHE_DIR to a folder that can be written",
            where,
        )


if hasattr(os, "register_at_fork"):
    # A child that is forked while another thread compiles would wait for that thread's lock, which
    # nobody in the child can release. So a fork waits until the kernel is compiled.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
