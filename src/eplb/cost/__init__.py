"""From loads to time: what a placement's imbalance costs, estimated as a roofline.

    import eplb
    from eplb.cost import estimate, saving

    before = estimate(current, loads, "H200", "DeepSeek-V3", tokens_per_gpu=128)
    after = estimate(plan.placement, loads, "H200", "DeepSeek-V3", tokens_per_gpu=128)
    print(saving(before, after))

Everything here is an estimate. It says so wherever it is shown, and carries what it assumes in
words.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eplb.checks import more, real_number
from eplb.cluster import Cluster
from eplb.cost.gpus import GPUS, Gpu, find_gpu
from eplb.cost.models import MODELS, Model, find_model
from eplb.cost.roofline import (
    DEFAULTS,
    Assumptions,
    LayerTime,
    Roofline,
    layer_time,
    words_of,
)
from eplb.errors import LoadsError, OptionError
from eplb.loads import as_array, check_values
from eplb.placement import Placement

__all__ = [
    "GPUS",
    "MODELS",
    "Assumptions",
    "Estimate",
    "Gpu",
    "LayerTime",
    "Model",
    "Saving",
    "estimate",
    "find_gpu",
    "find_model",
    "layer_time",
    "saving",
    "seconds_saved",
]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Estimated time of a step of a placement; windows are averaged.

    Attributes:
        gpu: figures of the GPU.
        model: figures of the model.
        cluster: the GPUs.
        tokens_per_gpu: tokens that each GPU brings into a step.
        assumptions: what is taken for granted, as figures; `words` says it.
        layer_seconds: [L] of each expert layer; 0 for one without load, such as a dense layer.
        experts_seconds: [L] of it, computing and reading weights on the slowest GPU.
        exchange_seconds: [L] of it, tokens on their way to experts and back.
        balanced_layer_seconds: of a layer whose tokens are spread evenly, no copies of experts.
        moe_seconds: all expert layers of the model together.
        rest_seconds: everything else of a step, which no placement changes.
    """

    gpu: Gpu
    model: Model
    cluster: Cluster
    tokens_per_gpu: float
    assumptions: Assumptions
    layer_seconds: NDArray[np.float64]
    experts_seconds: NDArray[np.float64]
    exchange_seconds: NDArray[np.float64]
    balanced_layer_seconds: float
    moe_seconds: float
    rest_seconds: float

    @property
    def step_seconds(self) -> float:
        """A whole step."""
        return self.moe_seconds + self.rest_seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens through all GPUs in a second."""
        return self.tokens_per_gpu * self.cluster.num_gpus / self.step_seconds

    @property
    def words(self) -> tuple[str, ...]:
        """What is assumed, a sentence each."""
        return words_of(self)

    def __str__(self) -> str:
        return (
            f"Estimate: {self.tokens_per_second:,.0f} tokens/s, {self.step_seconds * 1e3:.2f} ms "
            f"a step, {self.moe_seconds * 1e3:.2f} ms of it in expert layers"
        )


@dataclass(frozen=True, eq=False)
class Saving:
    """Two estimates of the same work side by side.

    Attributes:
        before: with one placement.
        after: with the other.
    """

    before: Estimate
    after: Estimate

    @property
    def seconds(self) -> float:
        """Saved in a step; below 0 where the second placement is slower."""
        return self.before.moe_seconds - self.after.moe_seconds

    @property
    def speedup(self) -> float:
        """Tokens per second after / before."""
        return self.after.tokens_per_second / self.before.tokens_per_second

    def __str__(self) -> str:
        saved = "lost" if self.seconds < 0.0 else "saved"
        return (
            f"Estimate: {self.before.tokens_per_second:,.0f} tokens/s before, "
            f"{self.after.tokens_per_second:,.0f} after ({more(self.speedup - 1.0, 1)}); "
            f"{abs(self.seconds) * 1e3:.2f} ms {saved} in a step"
        )


def estimate(
    placement: Placement,
    loads: Any,
    gpu: str | Gpu,
    model: str | Model,
    *,
    tokens_per_gpu: float,
    assumptions: Assumptions = DEFAULTS,
    dispatch: Any = "even",
) -> Estimate:
    """Estimated time of a step: how long the expert layers of a placement take on these loads.

    Args:
        placement: experts on GPUs.
        loads: [..., L, E] tokens routed to each expert, of any number of windows and in any unit:
            a step has the shares of its window. Windows and layers without load are left out.
        gpu: a name that `eplb.cost.find_gpu` knows, or figures.
        model: a name that `eplb.cost.find_model` knows, or figures.
        tokens_per_gpu: tokens that each GPU brings into a step: requests of a decoding batch, or
            tokens of a prefill batch.
        assumptions: what is taken for granted.
        dispatch: how windows are split over slots: a rule or a split as for `Placement.gpu_load`.

    Raises:
        OptionError: a GPU, model or rule that is not known, or a model of another number of
            experts; tokens that are not above 0.
        LoadsError: loads of another shape, values that are no numbers of tokens, or none above 0.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    model = find_model(model) if isinstance(model, str) else model
    real_number(tokens_per_gpu, "tokens_per_gpu", "tokens")
    assumptions = assumptions.for_batch(tokens_per_gpu)
    if placement.num_experts != model.num_experts:
        raise OptionError(
            f"the placement has {placement.num_experts} experts, {model.name} has "
            f"{model.num_experts}: give that model's figures as an eplb.cost.Model"
        )
    array = as_array(loads)
    if array.ndim < 2:
        raise LoadsError(f"loads have shape {array.shape}: give layers and experts [..., L, E]")
    check_values(array)
    windows = array.reshape(-1, *array.shape[-2:])
    cluster, tokens = placement.cluster, tokens_per_gpu * placement.cluster.num_gpus * model.top_k
    roof = Roofline(gpu, model, cluster.num_gpus, cluster.num_nodes, assumptions)
    sums = np.zeros((3, placement.num_layers))
    counts, moe_seconds, num_windows = np.zeros(placement.num_layers), 0.0, 0
    # Window after window: slots of a thousand windows at once would fill the memory.
    for window in windows:
        total = window.sum(axis=-1)
        counted = total > 0.0
        if not counted.any():
            continue
        shares = window / np.where(counted, total, 1.0)[:, None]
        slots = placement.slot_load(shares, dispatch) * tokens
        by_gpu = slots.reshape(placement.num_layers, cluster.num_gpus, -1)
        # Of many tokens, one reaches a slot with this probability, each by itself.
        active = -np.expm1(-by_gpu).sum(axis=-1)
        found = roof.time(by_gpu.sum(axis=-1), active)
        sums += np.stack([found.seconds, found.experts, found.exchange])
        counts += counted
        moe_seconds += float(found.seconds[counted].mean()) * model.num_moe_layers
        num_windows += 1
    if not num_windows:
        raise LoadsError("loads are all 0: there is no time to estimate")
    layer, experts, exchange = sums / np.maximum(counts, 1.0)
    even = tokens_per_gpu * model.top_k
    active = np.array([-math.expm1(-tokens / model.num_experts)]) * model.num_experts
    at_best = float(roof.time(np.array([even]), active / cluster.num_gpus).seconds)
    share = assumptions.expert_share
    return Estimate(
        gpu,
        model,
        cluster,
        tokens_per_gpu,
        assumptions,
        layer,
        experts,
        exchange,
        at_best,
        moe_seconds / num_windows,
        at_best * model.num_moe_layers * (1.0 - share) / share,
    )


def saving(before: Estimate, after: Estimate) -> Saving:
    """Two estimates of the same work side by side.

    Raises:
        OptionError: estimates for another GPU, model, batch, number of GPUs or nodes, or under
            other assumptions, whose difference would say nothing of the placements.
    """
    same = (
        ("GPU", before.gpu, after.gpu),
        ("model", before.model, after.model),
        ("tokens_per_gpu", before.tokens_per_gpu, after.tokens_per_gpu),
        ("number of GPUs", before.cluster.num_gpus, after.cluster.num_gpus),
        ("number of nodes", before.cluster.num_nodes, after.cluster.num_nodes),
        ("assumptions", before.assumptions, after.assumptions),
    )
    for what, first, second in same:
        if first != second:
            raise OptionError(f"the estimates differ in their {what}: {first} and {second}")
    return Saving(before, after)


def seconds_saved(
    peak_before: ArrayLike,
    peak_after: ArrayLike,
    total: ArrayLike,
    cluster: Cluster,
    gpu: Gpu,
    model: Model,
    *,
    tokens_per_gpu: float,
    assumptions: Assumptions = DEFAULTS,
) -> NDArray[np.float64]:
    """Estimated seconds that a lower peak saves in a step, layer by layer.

    A pure function of sums and products, so it gives the same on every host. Every slot of the GPU
    with the peak is taken to be read, before and after.

    Args:
        peak_before: [..., L] greatest load of a GPU.
        peak_after: [..., L] the same with another placement.
        total: [..., L] load of the layer on all GPUs, in the unit of the peaks.
        cluster: the GPUs.
        gpu: their figures.
        model: that is served.
        tokens_per_gpu: tokens that each GPU brings into a step.
        assumptions: what is taken for granted.

    Returns:
        [..., L] seconds, below 0 where the peak rises, 0 where a layer has no load.

    Raises:
        LoadsError: values that are no numbers of tokens, or a peak above the total.
        OptionError: tokens that are not above 0.
    """
    real_number(tokens_per_gpu, "tokens_per_gpu", "tokens")
    assumptions = assumptions.for_batch(tokens_per_gpu)
    of_all = as_array(total, "total")
    check_values(np.atleast_1d(of_all))
    tokens = tokens_per_gpu * cluster.num_gpus * model.top_k
    roof = Roofline(gpu, model, cluster.num_gpus, cluster.num_nodes, assumptions)
    seconds = []
    for name, peak in (("peak_before", peak_before), ("peak_after", peak_after)):
        array = as_array(peak, name)
        check_values(np.atleast_1d(array))
        # Peaks are sums in another order than the total, so they may be a rounding above it.
        if array.shape != of_all.shape or (array > of_all * (1.0 + 1e-9)).any():
            raise LoadsError(f"{name} has a load above the total, or another shape: {array.shape}")
        part = np.zeros(of_all.shape)
        np.divide(array, of_all, out=part, where=of_all > 0.0)
        of_step = (part * tokens)[..., None]
        read = np.full(of_step.shape, float(cluster.slots_per_gpu))
        seconds.append(roof.time(of_step, read).seconds)
    saved: NDArray[np.float64] = np.asarray(seconds[0] - seconds[1])
    return saved
