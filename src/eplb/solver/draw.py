"""Random numbers that are the same on every host: whole numbers, by a linear congruence.

Source: Press and others, "Numerical Recipes", 2nd edition, 1992, section 7.1.
"""

from eplb.solver.jit import inner
from eplb.solver.packing import I64

__all__: list[str] = []

_MULTIPLIER, _INCREMENT, _MASK = 1664525, 1013904223, 0xFFFFFFFF


@inner
def _draw(random: I64) -> int:
    """24 random bits."""
    state: int = (random[0] * _MULTIPLIER + _INCREMENT) & _MASK
    random[0] = state
    return state >> 8


@inner
def _below(random: I64, number: int) -> int:
    """A random whole number from 0 to `number` - 1."""
    return _draw(random) * number >> 24
