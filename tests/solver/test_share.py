"""The exponential function that is the same on every processor."""

import math
from typing import Any

import numpy as np
from numba import njit

from eplb.solver.share import _exponential

# Numba's types, where it has any, do not know all that it compiles.
_compiled: Any = njit


def test_exponential_is_the_librarys() -> None:
    @_compiled  # type: ignore[untyped-decorator]
    def call(value: float) -> float:
        return _exponential(value)

    for value in np.r_[0.0, -np.logspace(-12.0, math.log10(59.0), 500)]:
        assert math.isclose(call(value), math.exp(value), rel_tol=1e-12)
    assert call(-60.1) == 0.0
