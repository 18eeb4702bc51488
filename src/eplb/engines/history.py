"""The loads that an engine showed, as windows: a bounded history that no two ranks differ in.

Every rank of vLLM plans for itself and nothing is sent between them, so what a rank remembers must
follow from calls that every rank has seen. Ranks that join later have seen fewer; when they join,
the number of ranks or slots changes, or slots are empty, and then every rank forgets everything.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Call", "History"]


@dataclass(frozen=True)
class Call:
    """What stays the same from call to call while the ranks do.

    Attributes:
        num_slots: P, slots of a layer to fill.
        num_groups: groups that the model routes by.
        num_nodes: nodes.
        num_gpus: G, ranks.
    """

    num_slots: int
    num_groups: int
    num_nodes: int
    num_gpus: int


class History:
    """The last windows of each model that an engine runs, as [L, E] loads.

    Models are told apart by L and E: an engine that drafts with a second model shows both in turn.

    Args:
        most: windows to keep of a model.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._call: Call | None = None
        self._windows: dict[tuple[int, ...], deque[NDArray[np.float64]]] = {}

    def see(self, call: Call, *, scaling: bool) -> None:
        """Forget everything where the ranks are not those of the call before.

        Args:
            call: what this call is for.
            scaling: whether slots are empty now, or are to be left: ranks come or go.
        """
        if scaling or call != self._call:
            self._windows.clear()
        self._call = call

    def add(self, loads: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add a window [L, E]; return those of this model, [T, L, E], this one last."""
        windows = self._windows.setdefault(loads.shape, deque(maxlen=self._most))
        windows.append(loads)
        return np.stack(windows)
