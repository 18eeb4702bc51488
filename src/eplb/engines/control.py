"""What a file asks of an engine that serves: EPLB_CONTROL, read at each rebalance.

The file has one line. `pause` keeps what runs, `resume` plans again, and the path of a placement's
file has the engine go to that placement and keep it. Ranks compare what they have read, through
their store; where it differs, as while a file is copied to hosts, what they last agreed on stays.
"""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb.checks import counted
from eplb.cluster import Cluster
from eplb.engines.log import failure
from eplb.engines.rebalances import Reason
from eplb.errors import OptionError, PlacementError
from eplb.placement import Placement

_MOST_BYTES = 4096
_INSTEAD = "what EPLB_CONTROL asked before stays"


class Command(NamedTuple):
    """What is asked instead of a plan.

    Attributes:
        reason: why.
        phy2log: [L, P] the map to run; None for what runs.
    """

    reason: Reason
    phy2log: NDArray[np.int64] | None

    def map_after(self, running: NDArray[np.int64]) -> NDArray[np.int64]:
        """[L, P] the map to run after the one that runs."""
        phy2log: NDArray[np.int64] = (running if self.phy2log is None else self.phy2log).copy()
        return phy2log


class Control:
    """The file of one engine, None for none; where it is not there, nothing is asked. `alike` tells
    whether all ranks have the same array, by a kind of question.
    """

    def __init__(
        self,
        path: Path | None,
        alike: Callable[[str, NDArray[np.int64]], bool],
        logger: logging.Logger,
    ) -> None:
        self._path = path
        self._alike = alike
        self._logger = logger
        self._agreed: dict[str, Command | None] = {}

    def command(self, kind: str, shape: tuple[int, int], cluster: Cluster) -> Command | None:
        """What is asked instead of a plan; None where a plan is. All ranks call it alike, with the
        kind of call that tells models apart, and the model's L and E.
        """
        if self._path is None:
            return None
        text, command, error = "", None, None
        try:
            text = self._read()
            command = self._of(text, shape, cluster)
        except Exception as raised:
            error = raised
        digest = hashlib.blake2b(f"{text}\n{type(error).__name__}".encode(), digest_size=16)
        if command is not None and command.phy2log is not None:
            digest.update(command.phy2log.tobytes())
        read = np.frombuffer(digest.digest(), np.uint8).astype(np.int64)
        if self._alike(f"EPLB_CONTROL for {kind}", read):
            if error is None:
                self._agreed[kind] = command
            else:
                failure(self._logger, error, _INSTEAD)
        asked = self._agreed.get(kind)
        fits = asked is None or asked.phy2log is None or asked.phy2log.shape[1] == cluster.num_slots
        return asked if fits else None

    def _read(self) -> str:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                return file.read(_MOST_BYTES).decode().strip()
        except FileNotFoundError:
            return ""

    def _of(self, text: str, shape: tuple[int, int], cluster: Cluster) -> Command | None:
        """What a text asks of a model and ranks."""
        assert self._path is not None
        if text in {"", "resume"}:
            return None
        if text == "pause":
            return Command(Reason("paused", "by EPLB_CONTROL"), None)
        if "\n" in text:
            raise OptionError(f"{self._path}: has several lines: give pause, resume or one path")
        from eplb.formats.placements import load_placement

        path = self._path.parent / text
        placement = load_placement(path, cluster.num_gpus, cluster.num_nodes, num_experts=shape[1])
        phy2log = map_of(placement, path, shape[0], cluster.num_slots)
        return Command(Reason("asked", f"{path.name} by EPLB_CONTROL"), phy2log)


def map_of(placement: Placement, path: Path, num_layers: int, num_slots: int) -> NDArray[np.int64]:
    """[L, P] the placement of a file, where the engine runs as many layers and slots."""
    if placement.phy2log.shape != (num_layers, num_slots):
        raise PlacementError(
            f"{path}: has {counted(placement.num_layers, 'layer')} of {placement.phy2log.shape[1]} "
            f"slots, and the engine runs {num_layers} of {num_slots}"
        )
    phy2log: NDArray[np.int64] = placement.phy2log.copy()
    return phy2log
