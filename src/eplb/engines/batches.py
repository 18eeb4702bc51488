"""Batch by batch in an engine: a dispatcher for each layer, found by where the engine keeps that
layer's map from logical to physical experts.

Engines hand a layer's row of their map to the function that takes experts to slots, and write a new
map where the old one was. So the place of a row names its layer, in captured CUDA graphs too.
"""

import copy
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eplb.cluster import Cluster
from eplb.engines.log import failure
from eplb.errors import PolicyError
from eplb.placement import Placement
from eplb.torch import BatchDispatch

_TYPES = (torch.int16, torch.int32, torch.int64)
_TRIAL = 64
"""Tokens of the batch that is tried at start."""


class _Layer(NamedTuple):
    dispatch: BatchDispatch
    num_experts: int
    cluster: Cluster
    owner: Any
    """The engine's layer, where it has one at hand."""


class Batches:
    """Dispatchers of all layers of an engine's models. Nothing is dispatched until ranks agree.

    Args:
        logger: of the engine.
        own: the engine's own way to choose copies, as lines call it.
    """

    def __init__(self, logger: logging.Logger, own: str) -> None:
        self._logger = logger
        self._own = own
        self._layers: dict[int, _Layer] = {}
        # Memory of a map is not given to another one as long as it is known here.
        self._maps: list[Tensor] = []
        self._on = False

    def hold(self, log2phy: Tensor, phy2log: NDArray[np.int64], num_gpus: int, owners: Any) -> None:
        """Make a dispatcher for each layer.

        Args:
            log2phy: [L, E, X] the engine's map, where its layers find it.
            phy2log: [L, P] what runs.
            num_gpus: ranks that the slots are on.
            owners: the engine's layers, L of them, or None each.
        """
        cluster = Cluster.with_slots(phy2log.shape[1], num_gpus)
        made = {}
        for row, mine, owner in zip(log2phy, phy2log, owners, strict=True):
            placement = Placement(mine[None], log2phy.shape[1], cluster)
            dispatch = BatchDispatch(placement, 0, device=log2phy.device, lasting=True)
            made[row.data_ptr()] = _Layer(dispatch, log2phy.shape[1], cluster, owner)
        self._layers |= made
        self._maps.append(log2phy)

    def agree(self, alike: Any) -> bool:
        """Try a batch in each layer, and switch on where all ranks found the same slots: `alike`
        tells whether an array is the same on all of them, or why there is none.
        """
        tried: NDArray[np.int64] | Exception
        try:
            tried = np.concatenate([_tried(layer) for layer in self._layers.values()])
        except Exception as error:
            failure(self._logger, error, f"{self._own} stays")
            tried = error
        self._on = bool(alike("EPLB_DISPATCH", tried)) and not isinstance(tried, Exception)
        return self._on

    def follow(self, log2phy: Iterable[Tensor], phy2log: NDArray[np.int64]) -> None:
        """Dispatch for another placement [L, P] from now on, in the layers whose rows [E, X] of the
        map are given; those that have no dispatcher are left alone.
        """
        for row, mine in zip(log2phy, phy2log, strict=True):
            layer = self._layers.get(row.data_ptr())
            if layer is None:
                continue
            try:
                layer.dispatch.update(Placement(mine[None], layer.num_experts, layer.cluster))
            except Exception as error:
                # All ranks have this map, so that all of them fail.
                del self._layers[row.data_ptr()]
                failure(self._logger, error, f"{self._own} is used in that layer")

    def layer_of(self, row: Tensor) -> _Layer | None:
        """The dispatcher of a layer whose row [E, X] of the map this is; None where there is none,
        or ranks have not agreed.
        """
        return self._layers.get(row.data_ptr()) if self._on else None

    def slots(self, layer: _Layer, topk_ids: Tensor, num_tokens: Tensor | None) -> Tensor | None:
        """The slots [tokens, k] of experts [tokens, k] that tokens chose, -1 where a row pads; None
        where the engine is to choose them.
        """
        try:
            ids = topk_ids if topk_ids.dtype in _TYPES else topk_ids.to(torch.int32)
            slots: Tensor = layer.dispatch(ids, num_tokens)
            return slots.to(topk_ids.dtype)
        except Exception as error:
            failure(self._logger, error, f"{self._own} is used for that batch")
            return None


def _tried(layer: _Layer) -> NDArray[np.int64]:
    """The slots of a batch that is the same on all ranks, which a CPU must find too."""
    dispatch = layer.dispatch
    ids = torch.arange(_TRIAL * 4).reshape(_TRIAL, 4) ** 2 % layer.num_experts
    slots = dispatch(ids.to(dispatch.gpus.device), _TRIAL - 1).cpu()
    if dispatch.gpus.is_cuda and not torch.equal(
        slots, copy.deepcopy(dispatch).to("cpu")(ids, _TRIAL - 1)
    ):
        raise PolicyError("the GPU gives tokens other slots than a CPU does")
    found: NDArray[np.int64] = slots.numpy().ravel()
    return found
