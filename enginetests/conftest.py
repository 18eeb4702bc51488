"""Tests against engines' own code, from their wheels: `make test-engines`.

They stand apart from the ordinary suite, which needs no engine. The folder that ENGINES names is
where fetch.py has put the wheels.
"""

import os
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).resolve().parents[1] / "tests"
_ENGINES = Path(os.environ.get("ENGINES", ".venv/engines")).resolve()
if not _ENGINES.is_dir():
    raise pytest.UsageError(f"{_ENGINES} is not there: make test-engines fetches it")

# Last, so that what the environment has itself is not replaced.
sys.path += [
    str(Path(__file__).parent),
    str(_TESTS),
    *(str(_ENGINES / name) for name in ("site", "vllm", "sglang")),
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
