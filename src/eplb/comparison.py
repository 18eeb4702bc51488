"""Policies side by side on one trace: what each would have given, and how sure that is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.confidence import Interval, difference_interval, ratio_interval
from eplb.models import EXPERT_BYTES
from eplb.policies import Policy, named_policies
from eplb.replayer import HISTORY, Replay, Step, replay_of, replay_steps
from eplb.trace import LoadTrace

__all__ = ["Comparison", "Score", "compare", "score"]


@dataclass(frozen=True)
class Score:
    """What one policy gave.

    Attributes:
        policy: its name.
        balancedness: mean GPU load / max GPU load, mean over windows and layers.
        balancedness_interval: where that is with 95 % confidence; None of fewer than 4 windows.
        pooled: the same as sum of means / sum of maxima.
        pooled_interval: of that.
        worst_window: balancedness of the least balanced window.
        gain: balancedness above that of the first policy compared.
        gain_interval: of that; both policies' windows are drawn together.
        plans: times that the policy was asked.
        moved: share of the slots of layers with any load that GPUs had to receive at a plan, the
            first left out, on average; None where there was no other.
        bytes_per_plan: the same in bytes, None where an expert's bytes are unknown.
        plan_ms: median time of a plan in milliseconds; longest_plan_ms: the longest, in which
            kernels may have been compiled.
    """

    policy: str
    balancedness: float
    balancedness_interval: Interval | None
    pooled: float
    pooled_interval: Interval | None
    worst_window: float
    gain: float
    gain_interval: Interval | None
    plans: int
    moved: float | None
    bytes_per_plan: float | None
    plan_ms: float
    longest_plan_ms: float


@dataclass(frozen=True)
class Comparison:
    """Several policies on the same windows.

    Attributes:
        windows: windows served by every policy; wanted: those that were to be.
        layers: L; dense_layers: those with no load in any window; experts: E.
        scores: one a policy, in the order asked for.
        replays: the records that the scores come from.
    """

    windows: int
    wanted: int
    layers: int
    dense_layers: int
    experts: int
    gpus: int
    nodes: int
    slots: int
    groups: int
    every: int
    history: int
    first: int
    scores: list[Score]
    replays: list[Replay]

    def to_json(self) -> dict[str, Any]:
        """The figures as plain values, without the records."""
        fields = {name: value for name, value in vars(self).items() if name != "replays"}
        return {**fields, "scores": [asdict(score) for score in self.scores]}


def compare(
    trace: LoadTrace,
    cluster: Cluster,
    policies: Sequence[str] | Mapping[str, Policy],
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int = 1,
    expert_bytes: int | None = None,
    progress: Callable[[int, int], bool] | None = None,
) -> Comparison:
    """Replay policies in step, each window by all of them before the next.

    Args:
        trace: the windows, in the order in which they happened.
        cluster: the GPUs and their slots.
        policies: names in `eplb.policies.POLICIES` and paths of Python files, or callables by name.
        num_groups: as in `eplb.replay`; so are every, history, first and expert_bytes.
        every: windows from one plan to the next.
        history: most windows that a policy is shown.
        first: the first window served.
        expert_bytes: bytes of an expert's weights in one layer.
        progress: called after each window with how many are done, and how many there are; False
            ends the replays, and what was done counts.

    Raises:
        EplbError: as for `eplb.replay`.
    """
    if not isinstance(policies, Mapping):
        policies = named_policies(policies)
    walks = [
        replay_steps(
            trace, cluster, policy, num_groups=num_groups, every=every, history=history, first=first
        )
        for policy in policies.values()
    ]
    wanted = trace.num_windows - first
    rounds: list[tuple[Step, ...]] = []
    for steps in zip(*walks, strict=True):
        rounds.append(steps)
        if progress is not None and not progress(len(rounds), wanted):
            break
    if expert_bytes is None:
        expert_bytes = EXPERT_BYTES.get(trace.model or "")
    replays = [
        replay_of(steps, name, cluster, expert_bytes)
        for name, steps in zip(policies, zip(*rounds, strict=True), strict=True)
    ]
    return Comparison(
        windows=len(rounds),
        wanted=wanted,
        layers=trace.num_layers,
        dense_layers=int(trace.dense.sum()),
        experts=trace.num_experts,
        gpus=cluster.num_gpus,
        nodes=cluster.num_nodes,
        slots=cluster.num_slots,
        groups=num_groups,
        every=every,
        history=history,
        first=first,
        scores=[score(replay, replays[0]) for replay in replays],
        replays=replays,
    )


def score(replay: Replay, reference: Replay | None = None) -> Score:
    """The figures of one replay, and its gain over another of the same windows."""
    reference = reference or replay
    sums, known = _of_windows(replay)
    other_sums, _known = _of_windows(reference)
    means, peaks = replay.mean.sum(axis=1), replay.peak.sum(axis=1)
    loaded = known > 0.0
    worst = (sums[loaded] / known[loaded]).min() if loaded.any() else 1.0
    later = np.flatnonzero(replay.planned)[1:]
    moe = replay.peak.any(axis=0)  # a dense layer has nothing to move
    received = replay.moves[np.ix_(later, moe)].sum(axis=1)
    slots = max(1, int(moe.sum())) * replay.cluster.num_slots
    seconds = replay.seconds[replay.planned]
    return Score(
        policy=replay.name,
        balancedness=replay.average(),
        balancedness_interval=ratio_interval(sums, known),
        pooled=replay.pooled(),
        pooled_interval=ratio_interval(means, peaks),
        worst_window=float(worst),
        gain=replay.average() - reference.average(),
        gain_interval=difference_interval(sums, known, other_sums, known),
        plans=int(replay.planned.sum()),
        moved=float(received.mean()) / slots if later.size else None,
        bytes_per_plan=_times(float(received.mean()) if later.size else None, replay.expert_bytes),
        plan_ms=float(np.median(seconds)) * 1e3,
        longest_plan_ms=float(seconds.max()) * 1e3,
    )


def _of_windows(replay: Replay) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[S] sums of the balancedness of layers that have load, and how many have."""
    known = ~np.isnan(replay.balancedness)
    sums: NDArray[np.float64] = np.where(known, replay.balancedness, 0.0).sum(axis=1)
    return sums, known.sum(axis=1).astype(np.float64)


def _times(moves: float | None, expert_bytes: int | None) -> float | None:
    return None if moves is None or expert_bytes is None else moves * expert_bytes
