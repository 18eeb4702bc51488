"""Estimated time of a report: the plan that ran in each window against what runs now, and against
what engines plan by themselves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eplb.checks import printable
from eplb.cost import Assumptions, Estimate, estimate
from eplb.cost.gpus import Gpu
from eplb.cost.models import MODELS, Model, find_model
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.replaying.sizing import evenly
from eplb.report.figures import Estimated, Missing
from eplb.report.sample import Asked

_WINDOWS = 64
"""Windows that times are estimated on, where there are more."""


def known_model(name: str | None, trace: LoadTrace) -> Model | Missing:
    """The figures of a model, or which are lacking."""
    lacking = (
        "the number of experts a token goes to, the hidden size, the width of an expert and the "
        "bytes of its weights"
    )
    moe = int(np.count_nonzero(~trace.dense))
    alike = [
        each.name
        for each in MODELS.values()
        if (each.num_experts, each.num_moe_layers) == (trace.num_experts, moe)
    ]
    if name is None:
        hint = f"; the loads have the shape of {' and '.join(alike)}" if alike else ""
        return Missing(f"the trace does not name its model (give --model){hint}")
    try:
        found = find_model(name)
    except OptionError:
        known = ", ".join(MODELS)
        return Missing(
            f"the model {printable(name)} is not known, and the estimate needs {lacking}; known "
            f"are {known}: give the most similar, and --expert-bytes"
        )
    if found.num_experts != trace.num_experts:
        return Missing(
            f"{found.name} has {found.num_experts} experts in a layer, but the loads have "
            f"{trace.num_experts}"
        )
    return found


def estimate_times(
    asked: Asked,
    running: Placement,
    engine: Sequence[Placement],
    planned: Sequence[Placement],
    model: Model | Missing,
    gpu: Gpu,
    tokens_per_gpu: float,
    assumptions: Assumptions,
) -> Estimated | Missing:
    """Estimate both on windows that the plans had not seen, or on the one window that there is.

    Args:
        asked: the loads.
        running: the placement that runs.
        engine: [T] what engines planned by themselves for each window, the first aside where they
            are in order: of a trace of one window, for that.
        planned: [T] the same of the plan that is recommended.
        model: figures of the model.
        gpu: figures of the GPU.
        tokens_per_gpu: tokens that each GPU brings into a step.
        assumptions: what is taken for granted.

    Raises:
        OptionError: tokens that are not above 0.
    """
    if isinstance(model, Missing):
        return model
    if not asked.cluster.even:
        return Missing("times are estimated for GPUs that are alike, and these differ")
    loads = asked.trace.loads
    seen = len(loads) == 1
    begin = 0 if seen or not asked.trace.ordered else 1
    loaded = [each for each in range(begin, len(loads)) if loads[each].any()]
    if not loaded:
        return Missing("the windows that plans have not seen have no load")
    chosen = [loaded[each] for each in evenly(len(loaded), _WINDOWS).tolist()]

    def estimated(placement: Placement, windows: Sequence[int]) -> Estimate:
        return estimate(
            placement,
            loads[list(windows)],
            gpu,
            model,
            tokens_per_gpu=tokens_per_gpu,
            assumptions=assumptions,
            dispatch=asked.dispatch,
        )

    def estimated_of(ran: Sequence[Placement]) -> list[tuple[Estimate, int]]:
        """Of windows with the same placement together, and how many they are."""
        groups: list[tuple[Placement, list[int]]] = []
        for window in chosen:
            if not groups or groups[-1][0] is not ran[window]:
                groups.append((ran[window], []))
            groups[-1][1].append(window)
        return [(estimated(placement, windows), len(windows)) for placement, windows in groups]

    before, after = estimated_of([running] * len(loads)), estimated_of(planned)
    layers = np.flatnonzero(before[0][0].layer_seconds)
    first = before[0][0]
    step_before, step_after, step_engine = map(_step, (before, after, estimated_of(engine)))
    # What is no expert layer is what makes these so large a share of an even step.
    share = assumptions.expert_share / (1.0 - assumptions.expert_share)
    tokens = tokens_per_gpu * asked.cluster.num_gpus
    return Estimated(
        gpu=gpu.name,
        model=model.name,
        tokens_per_gpu=float(tokens_per_gpu),
        seen=seen,
        windows=len(chosen),
        layers=tuple(np.array(asked.trace.layer_numbers)[layers].tolist()),
        before_us=_microseconds(before, layers),
        after_us=_microseconds(after, layers),
        even_us=first.balanced_layer_seconds * 1e6,
        step_before=step_before,
        step_after=step_after,
        step_engine=step_engine,
        tokens_before=tokens / step_before,
        tokens_after=tokens / step_after,
        tokens_engine=tokens / step_engine,
        tokens_even=tokens / (first.rest_seconds * (1.0 + share)),
        words=first.words,
    )


def _step(parts: Sequence[tuple[Estimate, int]]) -> float:
    """Seconds of a step, mean over windows."""
    total = sum(number for _, number in parts)
    return sum(found.step_seconds * number for found, number in parts) / total


def _microseconds(
    parts: Sequence[tuple[Estimate, int]], layers: NDArray[np.intp]
) -> tuple[float, ...]:
    """[M] of each layer, mean over the windows of the parts in which it has load."""
    sums, counts = np.zeros(layers.size), np.zeros(layers.size)
    for found, number in parts:
        seconds = found.layer_seconds[layers]
        sums += seconds * number
        counts += np.where(seconds > 0.0, number, 0.0)
    return tuple((sums / np.maximum(counts, 1.0) * 1e6).tolist())
