"""Dispatch of one batch: a slot for each expert that a token chose."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from eplb.checks import counted, whole_number
from eplb.dispatching.dispatch import Placed
from eplb.errors import OptionError
from eplb.torch import on_cpu
from eplb.torch.copies import Copies, copies_of, usual_room
from eplb.torch.level import LARGEST, NO_GPU, level, level_as_one

_OBJECTIVES = ("tokens", "activated")
_TYPES = (torch.int16, torch.int32, torch.int64)


class BatchDispatch(torch.nn.Module):
    """Which slot takes each token of a batch, in one layer: each batch is split over the copies of
    its experts so that the busiest GPU has as little to do as the placement allows, nearly.

    It is made of torch operations of fixed shapes and waits for nothing, so it can be captured in a
    CUDA graph and compiled. On a GPU, where Triton is installed, three kernels take their place,
    and on a CPU two, which are compiled at the first batch and kept. All numbers are whole ones:
    the same ids give the same slots on every processor, by operations and by kernels. The instances
    for the layers of a placement have arrays of the same shapes, so that compiling one of them
    serves all.

    Example:
        >>> import eplb, torch
        >>> from eplb.torch import BatchDispatch
        >>> cluster = eplb.Cluster(num_gpus=2, slots_per_gpu=2)
        >>> placement = eplb.Placement([[0, 1, 0, 2]], 3, cluster)
        >>> dispatch = BatchDispatch(placement, layer=0)
        >>> dispatch(torch.tensor([[0], [0], [0], [1], [1], [2]]))
        tensor([[0],
                [2],
                [2],
                [1],
                [1],
                [3]])

    Args:
        placement: an `eplb.Placement`.
        layer: which of its layers, from 0.
        group: None for a rank that levels its own tokens and sends nothing; or a process group of
            torch, whose ranks gather their counts of tokens and level them together. Each of them
            must call then, one without tokens with an empty batch.
        objective: "tokens", for batches whose time goes with tokens; or "activated", for small ones
            whose time goes with the experts that a GPU touches: each expert goes to one copy, so
            that the most that a GPU touches are as few as can be, nearly.
        device: where the batches are; `to` moves it later, as other modules.
        lasting: whether other placements are to come, by `update`. Arrays then have room for what
            plans usually need; copies beyond that are not used.

    Raises:
        OptionError: a layer or an objective that is none, or what is no group.
        PlacementError: an expert of a layer that no slot holds.
    """

    gpus: Tensor
    experts: Tensor
    alone: Tensor
    most: Tensor
    empty: Tensor
    of_slot: Tensor
    expert_of_slot: Tensor
    part: Tensor
    parts: Tensor
    jumps: Tensor
    class_ends: Tensor
    slots: Tensor
    first_slot: Tensor

    def __init__(
        self,
        placement: Placed,
        layer: int,
        *,
        group: Any = None,
        objective: Literal["tokens", "activated"] = "tokens",
        device: Any = None,
        lasting: bool = False,
    ) -> None:
        super().__init__()
        if objective not in _OBJECTIVES:
            raise OptionError(f"objective is {objective!r}: give one of {', '.join(_OBJECTIVES)}")
        layer = whole_number(layer, "layer", least=0, most=placement.phy2log.shape[0] - 1)
        self._rank, self._num_ranks = _member_of(group)
        self._group = group
        self._objective = objective
        self._num_experts = int(placement.num_experts)
        self._num_slots = int(placement.phy2log.shape[1])
        self._num_gpus = int(placement.cluster.num_gpus)
        self._layer = layer
        sizes = (self._num_experts, self._num_slots, self._num_gpus)
        self._room = usual_room(*sizes) if lasting else None
        copies = copies_of(placement, layer, self._room)
        arrays = _arrays(copies, self._num_experts, self._num_gpus)
        self._ends = [end for _, end in copies.classes]
        self._largest_class = max((end - begin for begin, end in copies.classes), default=0)
        self._kernels = _kernels_for(*copies.gpus.shape)
        for name, values in arrays.items():
            tensor = torch.as_tensor(values, dtype=torch.int64, device=device)
            self.register_buffer(name, tensor, persistent=False)

    def update(self, placement: Placed) -> None:
        """Dispatch for another placement from now on, of as many experts, slots and GPUs. Arrays
        are written where they are, so that a CUDA graph that was captured before goes by them.

        Raises:
            OptionError: where it was not made to be `lasting`, or the placement is of other sizes.
            PlacementError: an expert of the layer that no slot holds.
        """
        if self._room is None:
            raise OptionError("this dispatch has no room for another placement: make it lasting")
        found = placement.num_experts, placement.phy2log.shape[1], placement.cluster.num_gpus
        known = self._num_experts, self._num_slots, self._num_gpus
        if found != known or placement.phy2log.shape[0] <= self._layer:
            raise OptionError(
                f"the placement has {counted(len(placement.phy2log), 'layer')} and experts, slots "
                f"and GPUs {found}: this dispatch is for layer {self._layer} and {known}"
            )
        copies = copies_of(placement, self._layer, self._room)
        for name, values in _arrays(copies, self._num_experts, self._num_gpus).items():
            getattr(self, name).copy_(torch.as_tensor(values, dtype=torch.int64))

    def forward(self, topk_ids: Tensor, num_tokens: Tensor | int | None = None) -> Tensor:
        """The slots [tokens, k] that take the tokens, of the experts [tokens, k] that they chose.

        Where an expert has several copies, its first tokens go to the first of them, and so on.
        An id of -1 pads: it counts for nothing, and its slot is -1. So do all ids of the rows from
        `num_tokens` on. An id that is no expert is an error on a CPU; where nothing can be said
        without waiting for the device, and in compiled code, it is treated as -1.

        Args:
            topk_ids: whole numbers [tokens, k], of a type that has room for slots.
            num_tokens: how many of the rows are real, a tensor of one whole number, so that it can
                change while shapes stay. None for all.

        Raises:
            OptionError: ids of another shape, type or device; experts that there are none of.
        """
        self._check(topk_ids, num_tokens)
        if self._kernels is not None and topk_ids.is_cuda:
            return self._by_kernels(topk_ids, num_tokens)
        if topk_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._on_cpu(topk_ids, num_tokens)
        return self._by_operations(topk_ids, num_tokens)

    def _by_operations(self, topk_ids: Tensor, num_tokens: Tensor | int | None) -> Tensor:
        """The slots, by torch operations."""
        num_experts = self._num_experts
        chosen = topk_ids.clamp(-1, num_experts)
        if num_tokens is not None:
            row = torch.arange(chosen.shape[0], device=chosen.device)
            chosen = chosen.masked_fill((row >= num_tokens)[:, None], -1)
        # In the order of experts, -1 first and what is no expert last.
        narrow = torch.int16 if num_experts < 1 << 15 else torch.int32
        ordered, order = chosen.reshape(-1).to(narrow).sort(stable=True)
        bounds = torch.arange(num_experts + 1, dtype=narrow, device=chosen.device)
        begin = torch.searchsorted(ordered, bounds)
        counts = begin.diff()
        every = counts[None]
        if self._group is not None:
            every = _gathered(counts, self._num_ranks, self._group)
        takes = self._takes(every.sum(0))
        if self._group is None:
            ends = begin[:1] + takes.cumsum(0)
        else:
            ends = self._mine(takes, every, begin)
        # Along this order slots change where a copy has its tokens.
        changes = ends.new_zeros(order.shape[0] + 1)
        changes.index_add_(0, torch.cat((begin[:1], ends)), self.jumps)
        slots = changes[:-1].cumsum(0, dtype=topk_ids.dtype) - 1
        return torch.empty_like(slots).scatter_(0, order, slots).reshape(topk_ids.shape)

    def _on_cpu(self, topk_ids: Tensor, num_tokens: Tensor | int | None) -> Tensor:
        """The same slots, by the solver's kernels."""
        rows = len(topk_ids) if num_tokens is None else num_tokens
        limit = torch.as_tensor(rows).to(torch.int64).reshape(1)
        counts = on_cpu.count(topk_ids, limit, self._num_experts)
        every = counts[None]
        if self._group is not None:
            every = _gathered(counts, self._num_ranks, self._group)
        copies = [
            self.gpus, self.experts, self.class_ends, self.alone, self.most, self.of_slot,
            self.part, self.parts, self.slots, self.first_slot,
        ]  # fmt: skip
        activated = self._objective == "activated"
        slots: Tensor = on_cpu.place(
            topk_ids, limit, every, copies, self._rank, self._num_gpus, activated
        )
        return slots

    def _by_kernels(self, topk_ids: Tensor, num_tokens: Tensor | int | None) -> Tensor:
        """The same, by Triton's kernels."""
        ids = topk_ids.contiguous()
        limited = num_tokens is not None
        if isinstance(num_tokens, int):
            num_tokens = ids.new_full((1,), num_tokens, dtype=torch.int64)
        limit = ids if num_tokens is None else num_tokens.to(ids.device)
        known = self._kernels
        count, place = known.count, known.place
        if torch.compiler.is_compiling():
            count, place = known.count_as_one, known.place_as_one
        counts = count(ids, limit, self._num_experts, limited)
        every = counts
        if self._group is not None:
            every = _gathered(counts.sum(0), self._num_ranks, self._group)
        copies = [
            self.gpus, self.experts, self.class_ends, self.alone, self.most, self.of_slot,
            self.expert_of_slot, self.part, self.parts, self.slots, self.first_slot,
        ]  # fmt: skip
        slots: Tensor = place(
            ids, limit, counts, every, copies, self._rank, self.empty.shape[0] - 1,
            self._largest_class, limited, self._objective == "activated",
        )  # fmt: skip
        return slots

    def _takes(self, counts: Tensor) -> Tensor:
        """How many of its expert's tokens [E] each slot takes, in the order of experts."""
        activated = self._objective == "activated"
        loads = (counts > 0).to(torch.int64) if activated else counts
        found = level_as_one if torch.compiler.is_compiling() else level
        flow = found(loads, self.gpus, self.experts, self._ends, self.alone, self.most, self.empty)
        nothing = counts.new_zeros(1)
        takes = torch.cat((loads, nothing, flow.reshape(-1)))[self.of_slot]
        takes = _floor(takes * (self.part + 1), self.parts) - _floor(takes * self.part, self.parts)
        return takes * torch.cat((counts, nothing))[self.expert_of_slot] if activated else takes

    def _mine(self, takes: Tensor, every: Tensor, begin: Tensor) -> Tensor:
        """Where the tokens of each slot end among those of this rank. All ranks' tokens of an
        expert [R, E] count as one queue, in the order of ranks: so all take together what each slot
        is to take, to a token.
        """
        every = torch.nn.functional.pad(every, (0, 1))
        of_all = every.sum(0)
        ahead = of_all.cumsum(0) - of_all + every[: self._rank].sum(0)
        ends = takes.cumsum(0) - ahead[self.expert_of_slot]
        most = every[self._rank][self.expert_of_slot]
        return begin[self.expert_of_slot] + torch.minimum(ends.clamp(min=0), most)

    def _check(self, topk_ids: Tensor, num_tokens: Tensor | int | None) -> None:
        """Refuse what is no batch of this layer."""
        if not isinstance(topk_ids, Tensor) or topk_ids.ndim != 2:
            shape = getattr(topk_ids, "shape", type(topk_ids).__name__)
            raise OptionError(f"topk_ids are {shape}: give a tensor [tokens, k]")
        if topk_ids.dtype not in _TYPES:
            raise OptionError(f"topk_ids have type {topk_ids.dtype}: give int16, int32 or int64")
        if self._num_slots > torch.iinfo(topk_ids.dtype).max:
            raise OptionError(f"topk_ids of type {topk_ids.dtype} have no room for the slots")
        if topk_ids.device != self.gpus.device:
            raise OptionError(
                f"topk_ids are on {topk_ids.device}, the dispatch on {self.gpus.device}: "
                "move it there with `to`"
            )
        if topk_ids.numel() * self._num_ranks >= LARGEST:
            raise OptionError(
                f"topk_ids are {topk_ids.numel()} on each of {self._num_ranks} ranks: "
                f"give fewer than {LARGEST} in all"
            )
        if isinstance(num_tokens, Tensor):
            if num_tokens.numel() != 1 or num_tokens.dtype not in _TYPES:
                raise OptionError("num_tokens is no tensor of one whole number")
        elif num_tokens is not None and not torch.compiler.is_compiling():
            whole_number(num_tokens, "num_tokens", least=0)


def _arrays(copies: Copies, num_experts: int, num_gpus: int) -> dict[str, Any]:
    """The arrays of one layer by the names of buffers."""
    return {
        "gpus": copies.gpus,
        "experts": copies.experts,
        "alone": copies.alone,
        "most": copies.most,
        "empty": [0] * num_gpus + [NO_GPU * copies.most],
        "of_slot": copies.of_slot,
        "expert_of_slot": copies.expert_of_slot,
        "part": copies.part,
        "parts": copies.parts,
        "jumps": np.diff(copies.slots, prepend=-1, append=-1),
        "class_ends": [0, *(end for _, end in copies.classes)],
        "slots": copies.slots,
        "first_slot": np.searchsorted(copies.expert_of_slot, np.arange(num_experts + 1)),
    }


@lru_cache
def _kernels_for(rows: int, width: int) -> Any:
    """The kernels, where there are a GPU and Triton and they have room for arrays of this shape."""
    if not torch.cuda.is_available():
        return None
    try:
        from eplb.torch import kernels
    except ImportError:
        return None
    return kernels if kernels.has_room(rows, width) else None


def _member_of(group: Any) -> tuple[int, int]:
    """This process' rank in a group, and how many there are."""
    if group is None:
        return 0, 1
    if not torch.distributed.is_available() or not isinstance(
        group, torch.distributed.ProcessGroup
    ):
        raise OptionError(f"group is {group!r}: give a process group of torch.distributed, or None")
    return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)


def _gathered(counts: Tensor, num_ranks: int, group: Any) -> Tensor:
    """The counts of all ranks of a group [R, E]."""
    every = counts.new_empty(num_ranks * counts.shape[0])
    torch.distributed.all_gather_into_tensor(every, counts, group=group)
    return every.reshape(num_ranks, -1)


def _floor(above: Tensor, below: Tensor) -> Tensor:
    """Whole quotients."""
    return torch.div(above, below, rounding_mode="floor")
