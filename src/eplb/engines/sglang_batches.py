"""SGLang's function from logical to physical experts, in whose place each batch is dispatched by
`eplb.torch.BatchDispatch`.

SGLang calls it eagerly, and in code that it compiles. There it is one operation, opaque to the
compiler, which finds its layer when it runs.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eplb.engines.batches import Batches
from eplb.engines.log import by_batch, failure
from eplb.engines.ranks import Agreement
from eplb.engines.start import unknown_arguments
from eplb.errors import PolicyError

_logger = logging.getLogger("sglang.eplb")

_OF_SLOTS = ("topk_ids", "info", "log2phy_prob")
_OF_UPDATE = ("self", "other", "update_layer_ids")
_OWN = "SGLang's own choice of copies"
_SLOTS = "sglang.srt.eplb.expert_location_dispatch.topk_ids_logical_to_physical"
_UPDATE = "sglang.srt.eplb.expert_location.ExpertLocationMetadata.update"
_PAST_IT = {
    "SGLANG_OPT_DEEPGEMM_MEGA_GATE": "its gate",
    "SGLANG_AITER_MEGA_EPLB_FUSED_MAP_RECORD": "its counter of loads",
}
"""Switches of SGLang by which a kernel takes experts to slots itself, and which kernel."""

_started: list["SglangBatches"] = []
"""The dispatchers that are in force in this process: one, or none."""


class SglangBatches:
    """Dispatch batch by batch in one engine."""

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._batches = Batches(_logger, _OWN)
        self._hooked = False

    def hook(self, version: str) -> None:
        """Put ours around the engine's functions; say why not. Never raises."""
        try:
            from sglang.srt.plugins.hook_registry import HookRegistry, HookType

            wrong = _difference()
            if wrong:
                raise PolicyError(f"SGLang {version}: {wrong}")
            HookRegistry.register(_SLOTS, self.topk_ids_logical_to_physical, HookType.AROUND)
            HookRegistry.register(_UPDATE, self._follow, HookType.AFTER)
            self._hooked = True
        except Exception as error:
            failure(_logger, error, f"{_OWN} stays")

    def start(self) -> None:
        """Make the dispatchers of all layers, and switch on where all ranks can. Never raises."""
        try:
            if not self._agreement.agreed():
                return  # each call that plans says why
            alike = self._agreement.timed()
            if self._hooked:
                self._hold()
            if self._batches.agree(alike):
                _started[:] = [self]
                if self._agreement.is_first():
                    by_batch(_logger, f"{_OWN} (--ep-dispatch-algorithm static or dynamic)")
        except Exception as error:
            failure(_logger, error, f"{_OWN} stays")

    def _hold(self) -> None:
        try:
            from sglang.srt.eplb.expert_location import get_global_expert_location_metadata
            from sglang.srt.runtime_context import get_exec

            if get_exec().moe.elastic_ep_backend is not None:
                raise PolicyError("EPLB_DISPATCH=batch does not go with elastic expert parallelism")
            running = get_global_expert_location_metadata()
            self._batches.hold(
                running.logical_to_all_physical_map,
                running.physical_to_logical_map_cpu.numpy(),
                running.ep_size,
                [None] * running.num_layers,
            )
        except Exception as error:
            failure(_logger, error, f"{_OWN} stays")

    def _follow(self, _: Any, metadata: Any, other: Any, update_layer_ids: Any) -> None:
        """Dispatch for the placement that SGLang has put in force in some layers."""
        del other
        try:
            layers = list(update_layer_ids)
            maps, rows = metadata.logical_to_all_physical_map, metadata.physical_to_logical_map_cpu
            self._batches.follow([maps[layer] for layer in layers], rows[layers].numpy())
        except Exception as error:
            failure(_logger, error, f"{_OWN} is used")

    def topk_ids_logical_to_physical(
        self, theirs: Callable[..., Any], topk_ids: Tensor, info: Any, log2phy_prob: Any = None
    ) -> Any:
        """As SGLang's: the slots of experts [tokens, k] that tokens chose."""
        own = theirs(topk_ids, info, log2phy_prob)
        if info is None or info.ep_dispatch_algorithm not in ("static", "dynamic"):
            return own
        row = info.partial_logical_to_all_physical_map
        if torch.compiler.is_compiling():
            return _slots_as_one(topk_ids, row, own)
        return self.slots(topk_ids, row, own)

    def slots(self, topk_ids: Tensor, row: Tensor, own: Tensor) -> Tensor:
        """The slots [tokens, k] of experts in the layer whose row [E, X] of the map this is;
        SGLang's `own` where it is to choose them, and for rows that pad.
        """
        layer = self._batches.layer_of(row)
        slots = None if layer is None else self._batches.slots(layer, topk_ids, _num_real())
        return own if slots is None else torch.where(slots < 0, own, slots)


def _difference() -> str:
    """What of SGLang this plug-in does not know, or goes past it; nothing where it fits."""
    from sglang.srt.environ import envs
    from sglang.srt.eplb import expert_location, expert_location_dispatch

    known = (
        (expert_location_dispatch, _SLOTS, _OF_SLOTS),
        (expert_location.ExpertLocationMetadata, _UPDATE, _OF_UPDATE),
    )
    for where, path, arguments in known:
        name = path.rsplit(".", 1)[-1]
        if wrong := unknown_arguments(name, getattr(where, name, None), arguments):
            return wrong
    for name, kernel in _PAST_IT.items():
        switch = getattr(envs, name, None)
        if switch is not None and switch.get():
            return f"with {name}, {kernel} takes experts to slots by itself"
    return ""


def _num_real() -> Tensor | None:
    """How many of a batch's rows are real, None where that is not known, as before 0.5.23."""
    from sglang.srt.model_executor.forward_context import get_forward_context, has_forward_context

    context = get_forward_context() if has_forward_context() else None
    bound = getattr(context, "moe_num_token_non_padded", None)
    return None if bound is None else bound()


@torch.library.custom_op("eplb::sglang_slots", mutates_args=())
def _slots_as_one(topk_ids: Tensor, row: Tensor, own: Tensor) -> Tensor:
    """The same as one operation, for compilers, which finds its layer when it runs."""
    slots = own
    for batches in _started:
        slots = batches.slots(topk_ids, row, own)
    return slots.clone() if slots is own else slots


@_slots_as_one.register_fake
def _(topk_ids: Tensor, row: Tensor, own: Tensor) -> Tensor:
    return torch.empty_like(own)
