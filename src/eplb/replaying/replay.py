"""Replay: walk a trace step by step with a policy, scored on loads that it has not seen."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.balance import Served
from eplb.checks import in_one_line, printable, whole_number
from eplb.cluster import Cluster, check_shape
from eplb.cost.models import expert_bytes_of
from eplb.dispatching.rules import check_rule, name_of
from eplb.errors import ClusterError, EplbError, OptionError, PolicyError
from eplb.loads import LoadTrace
from eplb.moving.service import Service
from eplb.placement import Placement
from eplb.planning.backtest import Schedule
from eplb.planning.forecast import HISTORY, in_no_order
from eplb.planning.pins import Pins
from eplb.planning.plan import Plan
from eplb.replaying.policies import Deciding, Forecasted, Policy, named_policy, phy2log_of, warm_up


@dataclass(frozen=True, eq=False)
class Step:
    """One window served.

    Attributes:
        window: its number in the trace.
        placement: that served it.
        served: how evenly GPUs were loaded in it.
        planned: whether the policy was asked before it.
        seconds: time that the policy took.
        moves: [L] experts that GPUs had to receive before it; 0 for dense layers, which stay.
        moving_seconds: time of these transfers; 0 where no service is known.
    """

    window: int
    placement: Placement
    served: Served
    planned: bool
    seconds: float
    moves: NDArray[np.int64]
    moving_seconds: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Replay(Served):
    """What would have happened: S windows served in turn, none seen before it was.

    Windows in no order are each held out in turn: served by a plan for the others, made from the
    layout that engines start with.

    Attributes:
        name: of the policy.
        cluster: the GPUs.
        dispatch: name of the rule that the windows were served by.
        windows: [S] numbers of the windows in the trace.
        placements: [S] that served them.
        planned: [S] whether the policy was asked before a window.
        seconds: [S] time that it took.
        moves: [S, L] experts that GPUs received before a window; the first plan's moves are from
            the layout that engines start with. Dense layers have none.
        expert_bytes: bytes of one expert of one layer, None where nobody said.
        moving_seconds: [S] time of the transfers before a window; None where no service is known.
        ordered: whether windows follow each other.
    """

    name: str
    cluster: Cluster
    dispatch: str
    windows: NDArray[np.int64]
    placements: tuple[Placement, ...]
    planned: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    moves: NDArray[np.int64]
    expert_bytes: int | None = None
    moving_seconds: NDArray[np.float64] | None = None
    ordered: bool = True

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

    def under(self, trace: LoadTrace, dispatch: Any) -> "Replay":
        """The same placements on the same windows of the trace, served by another rule of dispatch.

        Raises:
            OptionError: neither a rule that is known nor a split of every placement.
        """
        check_rule(dispatch)
        starts = [
            step
            for step in range(self.num_steps)
            if not step or self.placements[step] is not self.placements[step - 1]
        ]
        served = Served.joined(
            self.placements[begin].serve(trace.loads[self.windows[begin:end]], dispatch)
            for begin, end in zip(starts, [*starts[1:], self.num_steps], strict=True)
        )
        return replace(self, **vars(served), dispatch=name_of(dispatch))


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
    dispatch: Any = "even",
    pins: Pins | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Replay:
    """Walk a trace window by window: what is known so far → plan, or keep → score what comes next.

    Before window `first`, and before every `every`-th window after it, the policy is asked with
    the last `history` windows that came before. The placement that then runs is scored on that
    window and those up to the next plan: never on one that the policy has seen. A policy whose
    attribute `sees_next` is true is the exception: it is shown the windows that it will serve.

    Windows in no order (`LoadTrace.ordered`) are held out in turn, `every` at a time: the policy is
    asked with all others, and with the layout that engines start with, and what it answers is
    scored on those held out.

    Example:
        >>> import eplb
        >>> trace = eplb.synthetic.trace(
        ...     "gpt-oss-20b", num_windows=12, tokens_per_window=2048, num_layers=2
        ... )
        >>> cluster = eplb.Cluster(num_gpus=8, slots_per_gpu=5)
        >>> found = eplb.replay(trace, cluster, "eplb", every=4)
        >>> found.num_steps, found.planned.sum().item()
        (11, 3)

    Args:
        trace: T windows, in the order in which they happened or in none.
        cluster: the GPUs and their slots.
        policy: a name in `eplb.policies.POLICIES`, the path of a Python file, or a callable.
        num_groups: groups that the model routes by.
        every: windows from one plan to the next.
        history: most windows that the policy is shown.
        first: the first window served; those before it are only shown.
        expert_bytes: bytes of an expert's weights in one layer; by default those of the trace's
            model, where that is known.
        dispatch: how windows are served: a rule as for `Placement.gpu_load`, or a split, which the
            placements must all take. Where the rule is "best", this planner plans for it.
        pins: what placements must keep to, of the policies of this planner alone. Layers are rows
            of the loads, or their numbers where the trace has them.
        progress: called after each window with how many are done, and how many there are.

    Raises:
        LoadsError: fewer than first + 1 windows.
        ClusterError: numbers that fit nothing, or an expert of 0 bytes or more than 2**50.
        PolicyError: a policy that is unknown, fails, or returns what is no placement.
        OptionError: a rule that is not known, a split that does not fit a placement, or pins that
            no placement keeps, or another policy.
    """
    size = expert_bytes_of(trace.model, expert_bytes)
    steps = []
    schedule = Schedule(every, history, first)
    for step in replay_steps(
        trace, cluster, policy, schedule, num_groups=num_groups, dispatch=dispatch, pins=pins
    ):
        steps.append(step)
        if progress is not None:
            progress(len(steps), schedule.num_served(trace))
    name = (
        os.fsdecode(policy)
        if isinstance(policy, str | os.PathLike)
        else getattr(policy, "__name__", "policy")
    )
    return replay_of(steps, name, cluster, size, dispatch=dispatch, ordered=trace.ordered)


def replay_steps(
    trace: LoadTrace,
    cluster: Cluster,
    policy: Policy | str | os.PathLike[str],
    schedule: Schedule,
    *,
    num_groups: int = 1,
    service: Service | None = None,
    dispatch: Any = "even",
    pins: Pins | None = None,
) -> Iterator[Step]:
    """The steps of a replay one by one, so that a user may stop after any of them.

    Arguments and errors are those of `replay`; the errors come at once, but for the policy's own.
    Of a `service` the steps have the time of transfers.
    """
    called = named_policy(policy) if isinstance(policy, str | os.PathLike) else policy
    if not callable(called):
        raise PolicyError(f"{called!r} is not a policy: give a name, a path or a callable")
    check_replay(trace, cluster, schedule, num_groups, dispatch)
    if isinstance(called, Forecasted | Deciding):
        if isinstance(dispatch, str):
            called = replace(called, dispatch=dispatch)
        if not trace.ordered and not isinstance(called, Deciding):
            called = replace(called, forecast=in_no_order(called.forecast))
        if pins is not None:
            called = replace(called, pins=pins.at_layers(trace.layers))
    elif pins is not None:
        raise OptionError(
            f"pins go with the policies of this planner, and the policy is {policy!r}: leave out "
            "pins, or keep them in the policy"
        )
    return _walk(trace, cluster, called, schedule, num_groups, service, dispatch)


def check_replay(
    trace: LoadTrace, cluster: Cluster, schedule: Schedule, num_groups: int, dispatch: Any = "even"
) -> None:
    """Tell what is wrong with a replay's arguments before any policy is asked.

    Raises:
        EplbError: as for `replay`.
    """
    check_rule(dispatch)
    schedule.check(trace)
    check_shape(
        trace.num_experts, cluster, whole_number(num_groups, "num_groups", error=ClusterError)
    )


def _walk(
    trace: LoadTrace,
    cluster: Cluster,
    policy: Policy,
    schedule: Schedule,
    num_groups: int,
    service: Service | None,
    dispatch: Any,
) -> Iterator[Step]:
    sees_next = bool(getattr(policy, "sees_next", False))
    no_moves = np.zeros(trace.num_layers, np.int64)
    start = current = Placement.contiguous(trace.num_layers, trace.num_experts, cluster)
    warm_up(policy)
    for before, served in schedule.plans(trace):
        if not trace.ordered:
            current = start  # what was made before has seen these windows
        shown = trace.loads[served if sees_next else before]
        begin = time.perf_counter()
        answer = _ask(policy, shown, current, num_groups, served.start)
        seconds = time.perf_counter() - begin
        chosen = _placement_of(answer, current, served.start)
        moves, moving_seconds = no_moves, 0.0
        if chosen is not current:
            moves = np.where(trace.dense, 0, chosen.moves_by_layer(current))
            if service is not None and moves.any():
                moving_seconds = service.moving_seconds(current, chosen, ~trace.dense)
            current = chosen
        for window in range(served.start, served.stop):
            found = current.serve(trace.loads[window : window + 1], dispatch)
            if window == served.start:
                yield Step(window, current, found, True, seconds, moves, moving_seconds)
            else:
                yield Step(window, current, found, False, 0.0, no_moves)


def _ask(
    policy: Policy, loads: NDArray[np.float64], current: Placement, num_groups: int, window: int
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
    dispatch: Any = "even",
    *,
    ordered: bool = True,
) -> Replay:
    """The steps of a replay, however many were done, as one record."""
    served = Served.joined(step.served for step in steps)
    return Replay(
        served.balancedness,
        served.peak,
        served.mean,
        name=name,
        cluster=cluster,
        dispatch=name_of(dispatch),
        windows=np.array([step.window for step in steps]),
        placements=tuple(step.placement for step in steps),
        planned=np.array([step.planned for step in steps]),
        seconds=np.array([step.seconds for step in steps]),
        moves=np.stack([step.moves for step in steps]),
        expert_bytes=expert_bytes,
        moving_seconds=(
            None if service is None else np.array([step.moving_seconds for step in steps])
        ),
        ordered=ordered,
    )
