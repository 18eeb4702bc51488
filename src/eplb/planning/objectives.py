"""What plans keep low on the busiest GPU: its tokens, the experts that it touches, or its time.

An expert is touched in a step where any of its tokens is there, and a copy where any comes to it.
Time is that of `eplb.cost`: what a GPU computes for tokens, reads of experts that are touched, and
receives. The planner adds up what experts bring to a GPU, and computing and reading hide each other
in part, so time is planned for by its slope at the mean GPU, which is exact where GPUs are even,
and judged as it is.
"""

from dataclasses import dataclass

import numpy as np

from eplb.cluster import Cluster
from eplb.cost.gpus import Gpu, find_gpu
from eplb.cost.models import Model, find_model, model_of_shape
from eplb.cost.roofline import DEFAULTS, Roofline
from eplb.dispatching.dispatch import of_gpus
from eplb.errors import ClusterError, OptionError
from eplb.placement import Placement
from eplb.planning.batches import Batch
from eplb.solver.arrays import F64

OBJECTIVES = ("tokens", "activated", "time")
"""What plans keep low on the busiest GPU: the names of `eplb.torch.BatchDispatch`, and time."""


def check_objective(objective: object, batch: object, dispatch: str, traffic: object) -> None:
    """What a plan keeps low on the busiest GPU, with a batch where that needs one.

    Raises:
        OptionError: anything else, or what a plan for it does not go with.
    """
    if not isinstance(objective, str) or objective not in OBJECTIVES:
        raise OptionError(
            f"objective is {objective!r}: give one of {', '.join(map(repr, OBJECTIVES))}"
        )
    if objective == "tokens":
        return
    if not isinstance(batch, Batch):
        raise OptionError(
            f'objective="{objective}" needs the size of a step: give batch=eplb.Batch('
            "tokens_per_rank, top_k, num_ranks)"
        )
    if dispatch not in ("even", "best"):
        raise OptionError(
            f'objective="{objective}" goes with dispatch="even" or "best", and dispatch is '
            f"{dispatch!r}"
        )
    if traffic is not None:
        raise OptionError(
            f'objective="{objective}" does not count the nodes that tokens cross: leave out '
            'traffic, or plan with objective="tokens"'
        )


def activated(windows: F64, batch: Batch) -> F64:
    """[T, L, E] the chance that any token of a step is routed to an expert, by its share of each
    window.
    """
    return _touched(_shares(windows), batch)


def _shares(windows: F64) -> F64:
    """Windows [T, L, E] that add up to 1, or to 0 where there is no load."""
    total = windows.sum(axis=2, keepdims=True)
    shares: F64 = np.divide(windows, total, out=np.zeros_like(windows), where=total > 0.0)
    return shares


def _touched(shares: F64, batch: Batch) -> F64:
    """The chance that any token of a step goes where such a share of them goes:
    1 - (1 - top_k * share)^tokens, as if tokens chose on their own.
    """
    missed = 1.0 - np.minimum((batch.top_k or 1) * shares, 1.0)
    none, left = np.ones_like(missed), batch.tokens_per_rank * batch.num_ranks
    # By squaring: the same bits on every processor.
    while left:
        if left % 2:
            none *= missed
        missed *= missed
        left //= 2
    some: F64 = 1.0 - none
    return some


@dataclass(frozen=True)
class Clock:
    """How long steps take.

    Attributes:
        batch: a step.
        gpu, model: their figures.
        cluster: whose GPUs are alike.
    """

    batch: Batch
    gpu: Gpu
    model: Model
    cluster: Cluster

    @property
    def note(self) -> str:
        """What times are of, in words."""
        return f"times are those that eplb.cost estimates for {self.model.name} on {self.gpu.name}"

    def seconds(self, placement: Placement, windows: F64, dispatch: str) -> F64:
        """[T, L] the layers of a step of each window, under a rule of dispatch."""
        shares = placement.slot_load(_shares(windows), dispatch)
        of_gpu = (
            of_gpus(each, self.cluster.num_gpus)
            for each in (shares * self._tokens, _touched(shares, self.batch))
        )
        return self._roofline.time(*of_gpu).seconds

    def least(self, windows: F64) -> F64:
        """[T, L] proven: a step takes no less with any placement and split, as it would take no
        less on even GPUs, each expert touched in one place.
        """
        shares = _shares(windows)
        of_all = (shares * self._tokens, _touched(shares, self.batch))
        even = (each.sum(axis=2, keepdims=True) / len(self.cluster.alive) for each in of_all)
        return self._roofline.time(*even).seconds

    def weigh(self, placement: Placement, windows: F64, dispatch: str) -> F64:
        """[T, L, E] windows of the same totals in which experts have the time that they take with
        the copies of a placement, at the slope of the mean GPU.
        """
        shares = placement.slot_load(_shares(windows), dispatch)
        touched = np.zeros(windows.shape)
        layers = np.arange(placement.num_layers)
        for slot, expert in enumerate(placement.phy2log.T):
            # An empty slot is not touched.
            touched[:, layers, expert] += _touched(shares[:, :, slot], self.batch)
        compute, memory, travel = self._roofline.stages(_shares(windows) * self._tokens, touched)
        both = [each.sum(axis=2, keepdims=True) for each in (compute, memory)]
        together = np.sqrt(both[0] * both[0] + both[1] * both[1])
        slope = np.where(together > 0.0, together, 1.0)
        times = (compute * both[0] + memory * both[1]) / slope + travel
        weighed: F64 = _shares(times) * windows.sum(axis=2, keepdims=True)
        return weighed

    @property
    def _tokens(self) -> float:
        """Of a step, each counted once for each of its experts."""
        return float(self.batch.tokens_per_rank * self.batch.num_ranks * (self.batch.top_k or 1))

    @property
    def _roofline(self) -> Roofline:
        tokens = self.batch.tokens_per_rank * self.batch.num_ranks / len(self.cluster.alive)
        num_gpus, num_nodes = self.cluster.num_gpus, self.cluster.num_nodes
        return Roofline(self.gpu, self.model, num_gpus, num_nodes, DEFAULTS.for_batch(tokens))


def clock_of(
    batch: Batch, gpu: str | Gpu, model: str | Model | None, cluster: Cluster, num_experts: int
) -> Clock:
    """How long steps of a model take on a cluster; `model` is None for one that is known to have as
    many experts, of which a token goes to as many.

    Raises:
        OptionError: figures that are not known, or of another number of experts.
        ClusterError: GPUs that differ.
    """
    batch = batch.of(num_experts)
    if cluster.speed is not None:
        raise ClusterError(
            'objective="time" is for GPUs that are alike, as eplb.cost is: leave out speed, or '
            'plan with objective="tokens"'
        )
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    found = find_model(model) if isinstance(model, str) else model
    if found is None:
        found = model_of_shape(num_experts, batch.top_k)
    if found is None:
        raise OptionError(
            f'objective="time" needs a model, and none that is known routes to {batch.top_k} of '
            f"{num_experts} experts: give model=, a name or an eplb.cost.Model"
        )
    if not isinstance(card, Gpu) or not isinstance(found, Model):
        raise OptionError("gpu and model are names that eplb.cost knows, or figures of its kind")
    if found.num_experts != num_experts:
        raise OptionError(
            f"{found.name} has {found.num_experts} experts in a layer, the loads have "
            f"{num_experts}: give another model"
        )
    return Clock(batch, card, found, cluster)
