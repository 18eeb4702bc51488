"""Compiled kernels on disk: found by the next process until what they reach changes; results that
are right where nothing can be kept, and where something else stands in a kernel's place.
"""

import ast
import errno
import importlib
import importlib.util
import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import eplb
from eplb import solver
from eplb.solver import jit
from eplb.solver.packing import _new_packing

MODULES = {
    "far": '"""Far."""\n\nSTEP = 1\n',
    "near": """
from eplb.solver.far import STEP
from eplb.solver.jit import inner


@inner
def step(value: int) -> int:
    "One step on."
    return value + STEP
""",
    "top": '''
from eplb.solver.jit import kernel
from eplb.solver.near import step


@kernel
def two_steps(value: int) -> int:
    """Two steps on."""
    return step(step(value))
''',
    "aside": "WIDTH = 1\n",
}
"""Modules put into a copy of the solver: a kernel, what it reaches, and what it does not."""

RUN = """
import sys
from eplb.solver import aside, top
assert top.__file__.startswith(sys.argv[1]), top.__file__
print(top.two_steps(10), sum(top.two_steps.stats.cache_hits.values()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with `MODULES`, in whose folder kernels are kept."""
    assert eplb.__file__ is not None
    shutil.copytree(
        Path(eplb.__file__).parent,
        tmp_path / "eplb",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name, text in MODULES.items():
        (tmp_path / "eplb" / "solver" / f"{name}.py").write_text(text)
    return tmp_path


def run(
    root: Path, *places: dict[str, str], before: Callable[[], None] | None = None
) -> tuple[str, str]:
    """What a process with the package in `root` prints: a result and kernels found; its errors."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment |= {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    for each in places:
        environment |= each
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        preexec_fn=before,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def edit(root: Path, name: str, change: Callable[[str], str]) -> None:
    path = root / "eplb" / "solver" / f"{name}.py"
    text = change(path.read_text())
    assert text != path.read_text()
    path.write_text(text)


def test_kept_until_what_is_reached_changes(package: Path) -> None:
    assert run(package) == ("12 0", "")
    assert run(package) == ("12 1", "")
    # Words: above the kernel, which moves it; in docstrings; beside code; in the compiler's file.
    edit(package, "top", lambda text: "# Words.\n" + text.replace("Two steps on.", "Words."))
    edit(package, "near", lambda text: text.replace("One step on.", "Words."))
    edit(package, "far", lambda text: text.replace("Far.", "Words.") + "# Words.\n")
    edit(package, "jit", lambda text: text + "# Words.\n")
    edit(package, "aside", lambda text: text.replace("1", "2"))
    (package / "eplb" / "solver" / "near.py").touch()
    assert run(package) == ("12 1", "")
    # Two files away: numba alone would not notice.
    edit(package, "far", lambda text: text.replace("STEP = 1", "STEP = 2"))
    assert run(package) == ("14 0", "")
    assert run(package) == ("14 1", "")
    edit(package, "near", lambda text: text.replace("value + STEP", "value - STEP"))
    assert run(package) == ("6 0", "")
    assert run(package) == ("6 1", "")


def test_kernels_reach_nothing_outside_of_the_solver() -> None:
    """The digest does not cover it."""
    for found in pkgutil.iter_modules(solver.__path__, f"{solver.__name__}."):
        module = importlib.import_module(found.name)
        assert module.__file__ is not None
        outside = {
            alias.asname or alias.name
            for node in ast.walk(ast.parse(Path(module.__file__).read_bytes()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("eplb.")
            for alias in node.names
            if not (node.module or "").startswith(solver.__name__)
        }
        compiled = [each.py_func for each in vars(module).values() if hasattr(each, "py_func")]
        for function in compiled:
            assert not outside & set(function.__code__.co_names), function.__qualname__


def test_what_counts_no_references_returns_no_arrays() -> None:
    """Nobody would hold them."""
    found = 0
    for each in pkgutil.iter_modules(solver.__path__, f"{solver.__name__}."):
        for compiled in vars(importlib.import_module(each.name)).values():
            if getattr(compiled, "targetoptions", {}).get("_nrt") is False:
                returned = get_type_hints(compiled.py_func)["return"]
                assert not has_arrays(returned), compiled.py_func.__qualname__
                found += 1
    assert found > 100
    assert has_arrays(get_type_hints(_new_packing.py_func)["return"])  # type: ignore[attr-defined]


def has_arrays(kind: Any) -> bool:
    """Whether a type is an array, or a tuple with one."""
    parts = get_type_hints(kind).values() if hasattr(kind, "_fields") else get_args(kind)
    return get_origin(kind) is np.ndarray or any(map(has_arrays, parts))


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with two kernels, which are kept beside it."""
    monkeypatch.setattr("numba.config.CACHE_DIR", "")
    monkeypatch.setattr(jit, "_told", [])
    # A file that changes twice in a second would be read from what Python keeps of it.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "kernels.py"
    path.write_text(
        "from eplb.solver.jit import kernel\n"
        "@kernel\ndef double(value):\n    return 2 * value\n"
        "@kernel\ndef triple(value):\n    return 3 * value\n"
    )
    return path


def load(path: Path) -> ModuleType:
    """The module afresh, as another process would have it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hits(compiled: Any) -> int:
    return sum(compiled.stats.cache_hits.values())


def kept_file(path: Path, name: str) -> Path:
    (found,) = (path.parent / "__pycache__").glob(f"kernels.{name}.*.nbc")
    return found


def test_nowhere_to_keep_them(package: Path) -> None:
    blocked = package / "file"
    blocked.write_text("no folder")
    (package / "eplb" / "solver" / "__pycache__").write_text("no folder")
    nowhere = {
        "HOME": str(blocked),
        "XDG_CACHE_HOME": str(blocked / "cache"),
        "LOCALAPPDATA": str(blocked),
    }
    for given in ({}, {"NUMBA_CACHE_DIR": str(blocked / "numba")}):
        result, said = run(package, nowhere, given)
        assert result == "12 0"
        assert len(said.splitlines()) == 1
        assert "set NUMBA_CACHE_DIR to a folder that can be written" in said
        place = given.get("NUMBA_CACHE_DIR", str(package / "eplb" / "solver" / "__pycache__"))
        assert f"cannot be kept in {place}" in said
    # What it says helps.
    helps = {"NUMBA_CACHE_DIR": str(package / "kept")}
    assert run(package, nowhere, helps) == ("12 0", "")
    assert run(package, nowhere, helps) == ("12 1", "")


def unwritable(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Numba's trial of a folder fails: in these alone, or in all."""
    tried = tempfile.TemporaryFile

    def refused(*args: Any, **options: Any) -> Any:
        if not folders or Path(options["dir"]) in folders:
            raise PermissionError(errno.EACCES, "Permission denied")
        return tried(*args, **options)

    monkeypatch.setattr("tempfile.TemporaryFile", refused)


@pytest.mark.parametrize("named", [False, True])
def test_what_lies_where_nothing_can_be_written_is_read(
    source: Path, named: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in the read-only image of a container, which has been filled when it was made."""
    if named:
        monkeypatch.setattr("numba.config.CACHE_DIR", str(source.parent / "named"))
    assert load(source).double(4) == 8
    assert (source.parent / "named").exists() == named
    unwritable(monkeypatch)
    module = load(source)
    assert (module.double(4), hits(module.double)) == (8, 1)
    assert not caplog.records
    # What is not there is compiled, and cannot be kept.
    assert (module.triple(4), hits(module.triple)) == (12, 0)
    (record,) = caplog.records
    assert f"cannot be kept in {source.parent / ('named' if named else '')}" in record.getMessage()
    assert load(source).triple(4) == 12


def test_what_somebody_else_has_kept_is_read(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder beside the package is another user's; what is compiled goes to the user's own."""
    assert load(source).double(4) == 8
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "own"))
    unwritable(monkeypatch, source.parent / "__pycache__")
    module = load(source)
    assert (module.double(4), hits(module.double)) == (8, 1)
    assert module.triple(4) == 12
    (path,) = (tmp_path / "own").rglob("*.nbc")
    assert "triple" in path.name
    path.write_bytes(b"damaged")
    module = load(source)
    assert (module.triple(4), hits(module.triple)) == (12, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such users")
def test_a_user_that_the_system_does_not_know(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(source.parent)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    (source.parent / "__pycache__").write_text("no folder")
    assert load(source).double(4) == 8
    assert len(caplog.records) == 1
    assert {path.name for path in source.parent.iterdir()} == {"kernels.py", "__pycache__"}


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no such limit")
def test_a_full_disk(package: Path) -> None:
    import resource

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    kept = package / "kept"
    place = {"NUMBA_CACHE_DIR": str(kept)}
    for _ in range(2):
        result, said = run(package, place, before=small_files)
        assert result == "12 0"
        assert len(said.splitlines()) == 1
        assert str(kept) in said
    assert [path for path in kept.rglob("*") if path.is_file()] == []
    assert run(package, place) == ("12 0", "")
    assert run(package, place) == ("12 1", "")


def cut(at: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at]


def flip(at: int) -> Callable[[bytes], bytes]:
    """One bit of one byte."""
    return lambda whole: whole[:at] + bytes([whole[at] ^ 1]) + whole[at:][1:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "zeros": lambda whole: bytes(len(whole)),
    "noise": lambda whole: bytes((7 * at * at + at // 3) % 256 for at in range(len(whole))),
    "text": lambda _: b"this is no kernel\n",
    "pickle": lambda _: pickle.dumps((1, {"a": 2})),
    "longer": lambda whole: whole + b"\0",
    "bare": lambda whole: whole[96:],
    **{f"cut at {at}": cut(at) for at in (31, 32, 64, 96, 2000, -1)},
    **{f"flipped at {at}": flip(at) for at in (0, 32, 64, 96, 5000, -1)},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_mended(
    source: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    assert load(source).double(4) == 8
    path = kept_file(source, "double")
    broken = damage(path.read_bytes())
    assert broken != path.read_bytes()
    path.write_bytes(broken)
    for found in (0, 1):
        module = load(source)
        assert module.double(4) == 8
        assert hits(module.double) == found
    assert not caplog.records


def test_the_file_of_another_kernel_is_not_taken(source: Path) -> None:
    module = load(source)
    assert (module.double(4), module.triple(4)) == (8, 12)
    shutil.copy(kept_file(source, "triple"), kept_file(source, "double"))
    module = load(source)
    assert (module.double(4), hits(module.double)) == (8, 0)
    # Nor that of this kernel before it changed, in a file of the same name.
    source.write_text(source.read_text().replace("2 * value", "5 * value"))
    module = load(source)
    assert (module.double(4), hits(module.double)) == (20, 0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_links_and_fifos_are_replaced(source: Path, tmp_path: Path) -> None:
    load(source).double(4)
    path = kept_file(source, "double")
    for leads_to in (None, tmp_path / "nothing", path):
        path.unlink()
        if leads_to is None:
            os.mkfifo(path)
        else:
            path.symlink_to(leads_to)
        for found in (0, 1):
            module = load(source)
            assert module.double(4) == 8
            assert hits(module.double) == found
    assert not (tmp_path / "nothing").exists()


def test_a_folder_in_its_place_is_told_once(source: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(source).double(4)
    path = kept_file(source, "double")
    path.unlink()
    path.mkdir()
    for _ in range(2):
        module = load(source)
        assert (module.double(4), hits(module.double)) == (8, 0)
    (record,) = caplog.records
    assert record.name == "eplb"
    assert str(path.parent) in record.getMessage()
    assert list(path.parent.iterdir()) == [path]


def test_one_file_for_each_kernel(source: Path) -> None:
    """However often it changes, nothing piles up."""
    for factor in range(2, 5):
        source.write_text(source.read_text().replace("return ", "return 1 * ", 1))
        assert load(source).double(factor) == 2 * factor
    assert len(list((source.parent / "__pycache__").glob("*.nbc"))) == 1


FORK = """
import os, sys, threading, time
from numba.core.compiler_lock import global_compiler_lock
from eplb.solver.match import _keep_slots
import numpy as np

def compile_slowly():
    with global_compiler_lock:
        held.set()
        time.sleep(1.0)

def work():
    _keep_slots(np.ones((1, 4), np.int64), np.ones((1, 4), np.int64), np.array([0, 2, 4]))

held = threading.Event()
threading.Thread(target=compile_slowly).start()
held.wait()
child = os.fork()
work()
if child == 0:
    os._exit(0)
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        sys.exit(os.waitstatus_to_exitcode(status))
    time.sleep(0.1)
os.kill(child, 9)
sys.exit("the child hangs")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_while_another_thread_compiles() -> None:
    done = subprocess.run(
        # Forking beside threads is what is tested here.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


FILLS = """
import time
from eplb.solver.jit import filling
with filling() as first:
    time.sleep(0.5 * first)
    print(first, time.time(), flush=True)
"""


def test_one_process_of_a_machine_compiles_and_the_others_wait(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def begun() -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", FILLS]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    said = [process.communicate(timeout=60)[0].split() for process in [begun(), begun()]]
    assert sorted(first for first, _ in said) == ["False", "True"]
    (compiled,) = (float(when) for first, when in said if first == "True")
    (waited,) = (float(when) for first, when in said if first == "False")
    assert waited > compiled
    assert begun().communicate(timeout=60)[0].startswith("False")
    # The mark lies with the solver's kernels, and goes where they go.
    (mark,) = tmp_path.rglob("filled.*")
    assert mark.parent.name.split("_")[0] == "solver"
