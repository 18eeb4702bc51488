"""How often each copy stands in vLLM's map from logical to physical experts.

vLLM takes an entry of an expert's row by a hash of the token's place in the batch. It puts a map in
force by functions of its own, all layers at once or layer by layer; these run first, and then our
rows are written over theirs.
"""

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.engines.commits import after_commits
from eplb.engines.live import Call
from eplb.engines.log import failure
from eplb.engines.settings import Settings
from eplb.engines.tables import entries_by_slot, rows_of_slots

_logger = logging.getLogger("vllm.eplb")

_ROOM = 1024
"""Entries of a row of vLLM's map from logical to physical experts."""
_OWN_ROWS = "vLLM's own map of copies"


class Rows:
    """The rows of vLLM's map from logical to physical experts, in which a copy stands the more
    often the more tokens it is to take: vLLM takes an entry by a hash of the token's place.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # By layers, slots and experts: models differ in these.
        self._made: dict[tuple[int, ...], tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def clear(self) -> None:
        """Forget what is for maps that may not have been put in force on all ranks."""
        self._made.clear()

    def make(
        self,
        phy2log: NDArray[np.int64],
        num_experts: int,
        call: Call,
        windows: NDArray[np.float64] | None,
    ) -> NDArray[np.int64] | None:
        """How often each slot [L, P] of the map that follows is to stand in its expert's row, for
        windows [T, L, E], None where it is what runs; None for vLLM's own map.
        """
        if self._settings.dispatch != "table":
            return None
        key = (*phy2log.shape, num_experts)
        try:
            if windows is not None:
                entries = entries_by_slot(phy2log, windows, call.cluster(), _ROOM, self._settings)
                self._made[key] = phy2log.copy(), entries
            made = self._made.get(key)
            return made[1] if made is not None and np.array_equal(made[0], phy2log) else None
        except Exception as error:
            self._made.pop(key, None)
            failure(_logger, error, f"{_OWN_ROWS} is used")
            return None

    def take_over(self) -> None:
        """Write our rows wherever vLLM puts a map in force; say so, or why not. Never raises."""
        try:
            if not after_commits(self._write, _logger, f"{_OWN_ROWS} is used"):
                return
        except Exception as error:
            failure(_logger, error, f"{_OWN_ROWS} stays")
            return
        _logger.warning(
            "eplb: after each rebalance, copies take tokens by the loads planned for, and not "
            "evenly as by %s",
            _OWN_ROWS,
        )

    def _write(self, state: Any, phy2log: Any, layer: int | None) -> None:
        import torch
        from vllm.distributed.eplb import eplb_state as engine

        log2phy, counts = state.logical_to_physical_map, state.logical_replica_count
        num_layers, num_experts, _ = log2phy.shape
        made = self._made.get((num_layers, phy2log.shape[-1], num_experts))
        if made is None:
            return
        known, entries = made
        if layer is not None:
            log2phy, counts = log2phy[layer : layer + 1], counts[layer : layer + 1]
            known, entries = known[layer : layer + 1], entries[layer : layer + 1]
        if not np.array_equal(known, phy2log.cpu().numpy().reshape(known.shape)):
            return
        rows, number = rows_of_slots(known, entries, num_experts)
        # Rows before their lengths: there is a copy at each place that is looked up.
        engine._pad_out_tensor(src=torch.from_numpy(rows), dst=log2phy)
        lengths = torch.from_numpy(number)
        counts.copy_(lengths.pin_memory() if engine.PIN_MEMORY else lengths, non_blocking=True)
