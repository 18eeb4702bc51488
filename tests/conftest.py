"""What all tests share: hypothesis profiles, and the folder of recorded loads.

The recorded loads are no part of the project. Tests that need them skip where they are absent, and
fail there when the environment variable CI is set.
"""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from recorded import SHARED
from strategies import COMPILED

settings.register_profile(
    "eplb",
    deadline=None,
    max_examples=100 if COMPILED else 20,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("eplb")


def _beside_checkout(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        missing = f"{name} lies beside the checkout, and is not there"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return path


@pytest.fixture(scope="session")
def traces() -> Path:
    """The folder of recorded loads."""
    return _beside_checkout("traces")


@pytest.fixture(scope="session")
def seed_file() -> Path:
    """The algorithm that the project started from: its `rebalance_experts` needs torch."""
    return _beside_checkout("seed/seed_eplb.py")
