"""Batches: what is split is a batch, in decode a small one, and not a whole window.

A window is thinned to batches as ranks see them: each token chooses `top_k` different experts, each
as often as its share of the window says. With few tokens, chance decides much of who is busy, and a
placement that is planned for such batches bends where they differ. The tokens of a batch come from
a few sequences and choose alike, so it differs from others as a smaller one of strangers would.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from eplb.checks import whole_number
from eplb.errors import OptionError
from eplb.solver.arrays import F64

if TYPE_CHECKING:
    from eplb.planning.problem import Problem

_DRAWS = 96
"""Batches that are planned for, about: as many of each window."""
_MOST_TOKENS = 1024
"""Tokens that are drawn for all ranks of a batch; of more, what chance does is scaled down."""
_ALIKE = 0.02
"""Correlation of the choices of two tokens of a batch, which come from a few sequences of a topic:
of gpt-oss's decode steps .06 to .07; this much gave the best plans on such steps, and was tried on
no others (docs/experiments.md, dispatch)."""
_BITS = 32
"""Of a random number: whole numbers are the same on every host."""


@dataclass(frozen=True)
class Batch:
    """A step of a service: what is split over copies at once.

    Example:
        >>> import eplb
        >>> cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
        >>> trace = eplb.synthetic.trace(
        ...     "gpt-oss-20b", num_windows=4, tokens_per_window=4096, num_layers=1
        ... )
        >>> decode = eplb.Batch(tokens_per_rank=32, top_k=4, num_ranks=8, together=True)
        >>> made = eplb.plan(trace.loads, cluster, dispatch="best", batch=decode)
        >>> bool(made.bound[0] <= made.peak[0])
        True

    Attributes:
        tokens_per_rank: tokens that a rank brings to a step.
        top_k: experts that a token is routed to in a layer; None for what a `LoadTrace` says.
        num_ranks: ranks that bring tokens.
        together: whether ranks split their tokens together, as `BatchDispatch` with a group, or
            each splits its own and does not know of the others.

    Raises:
        OptionError: a number below 1.
    """

    tokens_per_rank: int
    top_k: int | None
    num_ranks: int
    together: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens_per_rank", "top_k", "num_ranks"):
            value = getattr(self, name)
            if name != "top_k" or value is not None:
                object.__setattr__(self, name, whole_number(value, name))
        if not isinstance(self.together, bool):
            raise OptionError(f"together is {self.together!r}: give True or False")

    def of(self, num_experts: int, top_k: int | None = None) -> "Batch":
        """The same with a `top_k`, of a trace where the batch has none.

        Raises:
            OptionError: there is none, or more than there are experts.
        """
        if self.top_k is None and top_k is None:
            raise OptionError("batch has no top_k, and the loads tell none: give Batch(top_k=...)")
        known = whole_number(self.top_k or top_k, "top_k of batch", most=num_experts)
        return replace(self, top_k=known)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Batches drawn from the windows of a problem.

    Attributes:
        problem: the same problem, its windows [D, L, E] those batches, all ranks together, each of
            the total of the windows.
        parts: [D * R, L, E] what each rank brings where each splits for itself, None where all
            split together.
    """

    problem: "Problem"
    parts: F64 | None


def draw_batches(problem: "Problem", batch: Batch, *, again: bool = False) -> Drawn:
    """Thin the windows of a problem to batches, by seeded draws; `again` for other ones."""
    num_windows, num_layers, num_experts = problem.windows.shape
    each = max(1, round(_DRAWS / num_windows))
    ranks = 1 if batch.together else batch.num_ranks
    tokens = batch.tokens_per_rank * (batch.num_ranks if batch.together else 1)
    top_k = batch.top_k or 1
    # As many draws that know nothing of each other differ as the tokens of a batch do.
    differ = round(tokens / (1.0 + _ALIKE * (tokens - 1)))
    drawn = max(1, min(differ, _MOST_TOKENS // ranks))
    parts = np.zeros((each * num_windows, ranks, num_layers, num_experts))
    for layer in range(num_layers):
        # Layers do not depend on each other.
        random = np.random.Generator(np.random.PCG64(int(again)))
        for window in range(num_windows):
            load = problem.windows[window, layer]
            if not load.any():
                continue
            loads = _draw(load, top_k, drawn, each * ranks, random)
            # The standard deviation of a mean falls with the root of the number.
            loads = np.maximum(load + (loads - load) * np.sqrt(drawn / differ), 0.0) / ranks
            of_window = slice(window * each, (window + 1) * each)
            parts[of_window, :, layer] = loads.reshape(each, ranks, num_experts)
    whole = parts.sum(axis=1)
    total = whole.sum(axis=2, keepdims=True)
    wanted = np.repeat(problem.windows.sum(axis=2, keepdims=True), each, axis=0)
    scale = np.divide(wanted, total, out=np.zeros_like(total), where=total > 0.0)
    weight = np.repeat(problem.weight, each, axis=0) / each
    of_batches = replace(problem, windows=whole * scale, weight=weight)
    if batch.together:
        return Drawn(of_batches, None)
    parts = (parts * scale[:, None]).reshape(-1, num_layers, num_experts)
    return Drawn(of_batches, parts)


def _draw(load: F64, top_k: int, tokens: int, number: int, random: np.random.Generator) -> F64:
    """[number, E] the experts of so many tokens each, drawn by `load` [E] and of its total.

    Systematic sampling (W. G. Madow, 1949): experts stand in a row, each as long as it is often
    chosen, and a token takes those at `top_k` points one apart. So no expert is taken twice by a
    token unless it is longer than 1. Their order is drawn anew for each draw.
    """
    num_experts = load.shape[0]
    counts = np.empty((number, num_experts))
    for draw in range(number):
        order = random.integers(0, 1 << _BITS, num_experts).argsort(kind="stable")
        ends = np.cumsum(load[order])
        first = random.integers(0, 1 << _BITS, tokens) / float(1 << _BITS)
        points = (first[:, None] + np.arange(top_k)).ravel() * (ends[-1] / top_k)
        found = np.minimum(np.searchsorted(ends, points, side="right"), num_experts - 1)
        counts[draw, order] = np.bincount(found, minlength=num_experts)
        counts[draw] *= ends[-1] / (tokens * top_k)
    return counts
