"""`make` on machines that cannot run it: one line, exit code 2, and nothing made."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def made(
    folder: Path, python: str, *arguments: str, without_venv: bool = False
) -> subprocess.CompletedProcess[str]:
    """What make says and would do, with a stand-in for a Python of another version."""
    stand_in = folder / "python"
    stand_in.write_text(
        "#!/bin/sh\n"
        f'case "$2" in *version_info*) echo {python};; '
        f"*ensurepip*) {'exit 1' if without_venv else 'echo yes'};; esac\n"
    )
    stand_in.chmod(0o755)
    return subprocess.run(
        ["make", "-C", ROOT, *arguments, f"PYTHON={stand_in}", f"VENV={folder / 'venv'}"],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("python", ["2.7", "3.9", "3.15"])
@pytest.mark.parametrize("goal", ["demo", "test", "check"])
def test_python_that_is_too_old_or_too_new(tmp_path: Path, python: str, goal: str) -> None:
    done = made(tmp_path, python, goal)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"needs Python 3.10 to 3.14, and {tmp_path / 'python'} is {python}" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_python_that_is_not_there_or_lacks_venv(tmp_path: Path) -> None:
    done = made(tmp_path, "", "demo")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "does not run" in done.stderr
    done = made(tmp_path, "3.13", "demo", without_venv=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "apt install python3-venv" in done.stderr


def test_another_python_makes_the_environment_anew(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".run-3.11").touch()
    assert f"venv --clear {venv}" in made(tmp_path, "3.13", "-n", "demo").stdout
    (venv / ".run-3.13").touch()
    assert "venv --clear" not in made(tmp_path, "3.13", "-n", "test").stdout
    assert "-m venv" not in made(tmp_path, "3.13", "-n", "demo").stdout


def test_dist_says_that_the_address_is_missing_before_it_installs(tmp_path: Path) -> None:
    said = made(tmp_path, "3.13", "-n", "dist", "REPOSITORY=").stdout
    assert 0 <= said.find("REPOSITORY is not set") < said.find("-m venv")
    assert "is not set" not in made(tmp_path, "3.13", "-n", "dist", "REPOSITORY=https://a").stdout


def test_links_of_a_built_readme_lead_to_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hatchling is there where packages are built, and not here."""
    interface = ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("build_urls", ROOT / "build_urls.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    monkeypatch.setenv("REPOSITORY", "https://a/b/")
    metadata: dict[str, Any] = {}
    hook.Urls(root=str(ROOT)).update(metadata)
    text = metadata["readme"]["text"]
    assert "](https://a/b/raw/main/docs/assets/engines.svg)" in text
    assert "](https://a/b/blob/main/docs/dispatch.md#placed-for-it)" in text
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", text))
    monkeypatch.setenv("REPOSITORY", "")
    hook.Urls(root=str(ROOT)).update(metadata)
    assert metadata["readme"]["text"] == (ROOT / "README.md").read_text(encoding="utf-8")
    assert metadata["urls"] == {}


@pytest.mark.parametrize("goal", ["help", "clean"])
def test_what_needs_no_python(tmp_path: Path, goal: str) -> None:
    assert made(tmp_path, "3.9", "-n", goal).returncode == 0


def test_the_list_of_versions_is_one() -> None:
    """The package's metadata, the Makefile and the workflow name the same."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = [f"3.{minor}" for minor in range(10, 15)]
    assert 'requires-python = ">=3.10,<3.15"' in text
    for version in versions:
        assert f'"Programming Language :: Python :: {version}"' in text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f",{' '.join(versions)})" in makefile
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert ", ".join(f'"{version}"' for version in versions) in workflow
    assert sys.version_info[:2] >= (3, 10)
