"""vLLM's function from logical to physical experts, in whose place each batch is dispatched by
`eplb.torch.BatchDispatch`.

vLLM's own function still runs: with a map of slots to themselves it counts the loads, so that what
vLLM records follows its own rules, and it gives the rows that pad a slot.
"""

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from eplb.engines.commits import after_commits
from eplb.engines.log import by_batch, failure
from eplb.engines.start import unknown_arguments
from eplb.errors import PolicyError

if TYPE_CHECKING:
    from torch import Tensor

    from eplb.engines.batches import Batches
    from eplb.engines.ranks import Agreement

_logger = logging.getLogger("vllm.eplb")

_NAME = "eplb_map_to_physical_and_record"
_MODULE = "vllm.model_executor.layers.fused_moe.router.base_router"
_ARGUMENTS = (
    "topk_ids",
    "expert_load_view",
    "logical_to_physical_map",
    "logical_replica_count",
    "record_enabled",
    "num_unpadded_tokens",
)
_OWN = "vLLM's own choice of copies"


class _Same(NamedTuple):
    """A map of slots to themselves, as vLLM's function takes one."""

    slots: "Tensor"
    counts: "Tensor"
    never: "Tensor"
    """Whether to record: no."""


class VllmBatches:
    """Dispatch batch by batch in the models of one engine, where that is wanted."""

    def __init__(self, agreement: "Agreement", *, wanted: bool) -> None:
        self._agreement = agreement
        self._wanted = wanted
        self._wrong: Exception = PolicyError("there is no model")
        self._batches: Batches | None = None
        self._same: dict[tuple[int, Any], _Same] = {}
        self._waiting = True

    def read(self, state: Any, model: Any) -> None:
        """Make the dispatchers of a model that vLLM has added to its state. Never raises."""
        if not self._wanted:
            return
        self._waiting = True
        try:
            from eplb.engines.batches import Batches

            if state.parallel_config.enable_elastic_ep:
                raise PolicyError("EPLB_DISPATCH=batch does not go with elastic expert parallelism")
            if self._batches is None:
                batches = Batches(_logger, _OWN)
                self._replace(batches)
                self._batches = batches
            known = next(each for each in state.model_states.values() if each.model is model)
            layers = tuple(model.moe_layers) or (None,) * model.num_moe_layers
            self._batches.hold(
                known.logical_to_physical_map,
                known.physical_to_logical_map.cpu().numpy(),
                model.num_physical_experts // model.num_local_physical_experts,
                layers,
            )
            # Before anything is captured in a graph.
            loads = known.expert_load_pass_buffer
            self._same[loads.shape[1], loads.device] = _same_slots(loads)
        except Exception as error:
            self._wrong = error
            failure(_logger, error, f"{_OWN} stays")

    def agree(self) -> None:
        """Switch on where all ranks can, before they step together. Never raises.

        All ranks compare settings here, those too that are set to dispatch otherwise: else they
        would wait in the step for those that wait here.
        """
        if not self._waiting:
            return
        self._waiting = False
        try:
            agreed = self._agreement.agreed() and self._wanted
            if agreed and self._tried() and self._agreement.is_first():
                by_batch(_logger, _OWN)
        except Exception as error:
            failure(_logger, error, f"{_OWN} stays")

    def _tried(self) -> bool:
        alike = self._agreement.timed()
        if self._batches is not None:
            return self._batches.agree(alike)
        # This rank has no dispatchers, and the others are to have none.
        alike("EPLB_DISPATCH", self._wrong)
        return False

    def _replace(self, batches: "Batches") -> None:
        """Put ours in place of vLLM's functions."""
        module = sys.modules.get(_MODULE)
        theirs = getattr(module, _NAME, None)
        wrong = unknown_arguments(_NAME, theirs, _ARGUMENTS)
        if theirs is None or wrong:
            raise PolicyError(wrong)

        def follow(state: Any, phy2log: Any, layer: int | None) -> None:
            maps, rows = state.logical_to_physical_map, phy2log.cpu().numpy()
            if layer is not None:
                maps, rows = maps[layer : layer + 1], rows[None]
            batches.follow(maps, rows)

        after_commits(follow, _logger, f"{_OWN} is used")
        ours = functools.wraps(theirs)(functools.partial(self._slots, theirs))
        # Modules that took the function by its name have it, too.
        for name, each in list(sys.modules.items()):
            if name.startswith("vllm.") and vars(each).get(_NAME) is theirs:
                setattr(each, _NAME, ours)

    def _slots(
        self,
        theirs: Any,
        topk_ids: "Tensor",
        expert_load_view: "Tensor",
        logical_to_physical_map: "Tensor",
        logical_replica_count: "Tensor",
        record_enabled: "Tensor",
        num_unpadded_tokens: "Tensor | None" = None,
    ) -> Any:
        """As vLLM's: the slots of experts [tokens, k], and the loads of slots [P] counted."""
        import torch

        def own(ids: "Tensor", log2phy: "Tensor", counts: "Tensor", record: "Tensor") -> Any:
            return theirs(
                topk_ids=ids,
                expert_load_view=expert_load_view,
                logical_to_physical_map=log2phy,
                logical_replica_count=counts,
                record_enabled=record,
                num_unpadded_tokens=num_unpadded_tokens,
            )

        batches = self._batches
        same = self._same.get((expert_load_view.shape[0], expert_load_view.device))
        slots = None
        if batches is not None and same is not None and not torch.compiler.is_compiling():
            layer = batches.layer_of(logical_to_physical_map)
            if layer is not None:
                # Of gathered tokens, those of all ranks, the first ones are not all that are real.
                real = None if _gathers(layer.owner) else num_unpadded_tokens
                slots = batches.slots(layer, topk_ids, real)
        if slots is None or same is None:
            return own(topk_ids, logical_to_physical_map, logical_replica_count, record_enabled)
        if num_unpadded_tokens is not None:
            pads = own(topk_ids, logical_to_physical_map, logical_replica_count, same.never)
            slots = torch.where(slots < 0, pads, slots)
        return own(slots, same.slots, same.counts, record_enabled)


def _same_slots(loads: "Tensor") -> _Same:
    """The map of slots to themselves, for loads [L, P]."""
    import torch

    number, device = loads.shape[1], loads.device
    return _Same(
        torch.arange(number, device=device)[:, None],
        torch.ones(number, dtype=torch.int64, device=device),
        torch.zeros((), dtype=torch.bool, device=device),
    )


def _gathers(layer: Any) -> bool:
    """Whether a layer gathers the tokens of other ranks before it takes experts to slots."""
    if getattr(layer, "do_naive_dispatch_combine", False):
        return True
    config = getattr(layer, "moe_config", None)
    if config is None or config.pcp_size == 1:
        return False
    return not config.moe_parallel_config.use_all2all_kernels
