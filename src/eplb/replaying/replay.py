"""Replay: walk a trace step by step with a policy, scored on loads that it has not seen."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import ratios
from eplb.checks import in_one_line, printable, whole_number
from eplb.cluster import Cluster
from eplb.cost.models import expert_bytes_of
from eplb.errors import EplbError, LoadsError, PolicyError
from eplb.loads import LoadTrace
from eplb.moving.service import Service
from eplb.placement import Placement
from eplb.planning.plan import Plan, check_shape
from eplb.replaying.policies import Policy, named_policy, phy2log_of, warm_up

__all__ = ["HISTORY", "Replay", "Step", "check_replay", "replay", "replay_of", "replay_steps"]

HISTORY = 32
"""Windows that a policy is shown, unless a user says otherwise."""


@dataclass(frozen=True, eq=False)
class Step:
    """One window served, by the placement that ran then.

    Attributes:
        window: its number in the trace.
        planned: whether the policy was asked before it.
        seconds: time that the policy took.
        balancedness: [L] mean / max GPU load, NaN where a layer has no load.
        peak: [L] max GPU load, in the unit of the trace.
        mean: [L] mean GPU load.
        moves: [L] experts that GPUs had to receive before it; 0 for dense layers, which stay.
        moving_seconds: time of these transfers; 0 where no service is known.
    """

    window: int
    planned: bool
    seconds: float
    balancedness: NDArray[np.float64]
    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    moves: NDArray[np.int64]
    moving_seconds: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Replay:
    """What would have happened: S windows served in turn, none seen before it was.

    Attributes:
        name: of the policy.
        cluster: the GPUs.
        windows: [S] numbers of the windows in the trace.
        planned: [S] whether the policy was asked before a window.
        seconds: [S] time that it took.
        balancedness: [S, L] mean / max GPU load, NaN where a layer has no load.
        peak: [S, L] max GPU load, in the unit of the trace.
        mean: [S, L] mean GPU load.
        moves: [S, L] experts that GPUs received before a window; the first plan's moves are from
            the layout that engines start with. Dense layers have none.
        expert_bytes: bytes of one expert of one layer, None where nobody said.
        moving_seconds: [S] time of the transfers before a window; None where no service is known.
    """

    name: str
    cluster: Cluster
    windows: NDArray[np.int64]
    planned: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    balancedness: NDArray[np.float64]
    peak: NDArray[np.float64]
    mean: NDArray[np.float64]
    moves: NDArray[np.int64]
    expert_bytes: int | None = None
    moving_seconds: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return (
            f"Replay({printable(self.name)} on {self.cluster.num_gpus} GPUs, "
            f"{self.num_steps} windows, balancedness {self.average():.4f})"
        )

    @property
    def num_steps(self) -> int:
        """S."""
        return int(self.windows.size)

    @property
    def bytes_moved(self) -> NDArray[np.int64] | None:
        """[S, L] bytes that GPUs received before a window; None where an expert's are unknown."""
        return None if self.expert_bytes is None else self.moves * self.expert_bytes

    def average(self) -> float:
        """Balancedness, the mean over windows and layers that have load; 1 where none has."""
        known = ~np.isnan(self.balancedness)
        return float(self.balancedness[known].mean()) if known.any() else 1.0

    def pooled(self) -> float:
        """Balancedness, the sum of mean GPU loads / the sum of max GPU loads."""
        peak = self.peak.sum()
        return min(float(self.mean.sum() / peak), 1.0) if peak > 0.0 else 1.0


def replay(
    trace: LoadTrace,
    cluster: Cluster,
    policy: Policy | str | os.PathLike[str],
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int = 1,
    expert_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Walk a trace window by window: what is known so far → plan, or keep → score what comes next.

    Before window `first`, and before every `every`-th window after it, the policy is asked with
    the last `history` windows that came before. The placement that then runs is scored on that
    window and those up to the next plan: never on one that the policy has seen. A policy whose
    attribute `sees_next` is true is the exception: it is shown the windows that it will serve.

    Args:
        trace: T windows, in the order in which they happened.
        cluster: the GPUs and their slots.
        policy: a name in `eplb.policies.POLICIES`, the path of a Python file, or a callable.
        num_groups: groups that the model routes by.
        every: windows from one plan to the next.
        history: most windows that the policy is shown.
        first: the first window served; those before it are only shown.
        expert_bytes: bytes of an expert's weights in one layer; by default those of the trace's
            model, where that is known.
        progress: called after each window with how many are done, and how many there are.

    Raises:
        LoadsError: fewer than first + 1 windows.
        ClusterError: numbers that fit nothing, or an expert of 0 bytes or more than 2**50.
        PolicyError: a policy that is unknown, fails, or returns what is no placement.
    """
    size = expert_bytes_of(trace.model, expert_bytes)
    steps = []
    for step in replay_steps(
        trace, cluster, policy, num_groups=num_groups, every=every, history=history, first=first
    ):
        steps.append(step)
        if progress is not None:
            progress(len(steps), trace.num_windows - first)
    name = (
        os.fsdecode(policy)
        if isinstance(policy, str | os.PathLike)
        else getattr(policy, "__name__", "policy")
    )
    return replay_of(steps, name, cluster, size)


def replay_steps(
    trace: LoadTrace,
    cluster: Cluster,
    policy: Policy | str | os.PathLike[str],
    *,
    num_groups: int = 1,
    every: int = 1,
    history: int = HISTORY,
    first: int = 1,
    service: Service | None = None,
) -> Iterator[Step]:
    """The steps of a replay one by one, so that a user may stop after any of them.

    Arguments and errors are those of `replay`; the errors come at once, but for the policy's own.
    Of a `service` the steps have the time of transfers.
    """
    called = named_policy(policy) if isinstance(policy, str | os.PathLike) else policy
    if not callable(called):
        raise PolicyError(f"{called!r} is no policy: give a name, a path or a callable")
    check_replay(trace, cluster, num_groups=num_groups, every=every, history=history, first=first)
    start = Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
    return _walk(trace, start, called, num_groups, every, history, first, service)


def check_replay(
    trace: LoadTrace, cluster: Cluster, *, num_groups: int, every: int, history: int, first: int
) -> None:
    """Tell what is wrong with a replay's arguments before any policy is asked.

    Raises:
        EplbError: as for `replay`.
    """
    whole = {"num_groups": num_groups, "every": every, "history": history, "first": first}
    for name, value in whole.items():
        whole_number(value, name)
    if trace.num_windows <= first:
        raise LoadsError(
            f"the trace has {trace.num_windows} windows: to serve window {first} after the ones "
            f"before it takes {first + 1}"
        )
    check_shape(trace.num_experts, cluster, num_groups)


def _walk(
    trace: LoadTrace,
    current: Placement,
    policy: Policy,
    num_groups: int,
    every: int,
    history: int,
    first: int,
    service: Service | None,
) -> Iterator[Step]:
    sees_next = bool(getattr(policy, "sees_next", False))
    no_moves = np.zeros(trace.num_layers, np.int64)
    warm_up(policy)
    for window in range(first, trace.num_windows):
        planned = (window - first) % every == 0
        seconds, moves, moving_seconds = 0.0, no_moves, 0.0
        if planned:
            shown = (
                slice(window, window + every)
                if sees_next
                else slice(max(0, window - history), window)
            )
            begin = time.perf_counter()
            answer = _ask(policy, trace.loads[shown], current, num_groups, window)
            seconds = time.perf_counter() - begin
            chosen = _placement_of(answer, current, window)
            if chosen is not current:
                moves = np.where(trace.dense, 0, chosen.moves_by_layer(current))
                if service is not None and moves.any():
                    moving_seconds = service.moving_seconds(current, chosen, ~trace.dense)
                current = chosen
        load = current.gpu_load(trace.loads[window])
        peak, mean = load.max(axis=-1), load.mean(axis=-1)
        yield Step(window, planned, seconds, ratios(load), peak, mean, moves, moving_seconds)


def _ask(
    policy: Policy,
    loads: NDArray[np.float64],
    current: Placement,
    num_groups: int,
    window: int,
) -> Any:
    try:
        return policy(loads, current.cluster, current=current, num_groups=num_groups)
    except EplbError:
        raise
    except (Exception, SystemExit) as error:
        raise PolicyError(
            f"the policy fails before window {window}: {in_one_line(error)}"
        ) from error


def _placement_of(answer: Any, current: Placement, window: int) -> Placement:
    """What a policy meant by its answer."""
    if answer is None:
        return current
    if isinstance(answer, Plan):
        answer = answer.placement
    try:
        if not isinstance(answer, Placement):
            phy2log = phy2log_of(answer, current.num_layers, current.cluster.num_slots)
            return Placement(phy2log, current.num_experts, current.cluster)
    except EplbError as error:
        raise PolicyError(f"the policy's answer before window {window}: {error}") from None
    if (answer.num_layers, answer.num_experts, answer.cluster) != (
        current.num_layers,
        current.num_experts,
        current.cluster,
    ):
        raise PolicyError(
            f"the policy's answer before window {window} is {answer!r}: "
            f"{current!r} runs, and only experts may change"
        )
    return answer


def replay_of(
    steps: Sequence[Step],
    name: str,
    cluster: Cluster,
    expert_bytes: int | None = None,
    service: Service | None = None,
) -> Replay:
    """The steps of a replay, however many were done, as one record."""
    return Replay(
        name,
        cluster,
        np.array([step.window for step in steps]),
        np.array([step.planned for step in steps]),
        np.array([step.seconds for step in steps]),
        np.stack([step.balancedness for step in steps]),
        np.stack([step.peak for step in steps]),
        np.stack([step.mean for step in steps]),
        np.stack([step.moves for step in steps]),
        expert_bytes,
        None if service is None else np.array([step.moving_seconds for step in steps]),
    )
