"""Tests against engines' own code, from their wheels: `make test-engines`.

They stand apart from the ordinary suite, which needs no engine. The folder that ENGINES names is
where fetch.py has put the wheels; of several, as in PATH, the first that has a package counts.
"""

import os
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[1] / "tests"
_FOLDERS = [
    Path(each).resolve() for each in os.environ.get("ENGINES", ".venv/engines").split(os.pathsep)
]
for _folder in _FOLDERS:
    if not _folder.is_dir():
        raise pytest.UsageError(f"{_folder} is not there: make test-engines fetches it")

# Last, so that what the environment has itself is not replaced.
sys.path += [
    str(Path(__file__).parent),
    str(_TESTS),
    *(str(folder / name) for folder in _FOLDERS for name in ("site", "vllm", "sglang")),
]


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of recorded loads, which lies beside the checkout."""
    path = _TESTS.parents[1] / "shared" / "traces"
    if not path.exists():
        missing = "the recorded loads lie beside the checkout, in shared/traces, and are not there"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sets."""
    for name in [name for name in os.environ if name.startswith("EPLB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EPLB_POLICY", "eplb")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test hears what plug-ins say once."""
    from eplb.engines import log

    monkeypatch.setattr(log, "_told", set())
