"""What decides a placement in a replay: one call, and a dict of those that have a name.

A policy is any callable `(loads, cluster, *, current, num_groups)`: `loads` [T, L, E] are the
windows known so far, the last one last, `current` the Placement that runs now. It returns the next
one, as a Placement, a Plan or phy2log [L, P]; or None, to keep the current one.
"""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from eplb.checks import Budget, in_one_line
from eplb.cluster import Cluster, check_even
from eplb.errors import PolicyError
from eplb.loads import is_tensor
from eplb.moving.decide import decide
from eplb.moving.service import DEFAULT_SERVICE, Service
from eplb.placement import Placement, spread
from eplb.planning.best_split import bend
from eplb.planning.engine import engine_placement
from eplb.planning.forecast import FORECASTS, Forecast, Recent
from eplb.planning.pins import Pins
from eplb.planning.plan import plan
from eplb.planning.problem import Effort, Layers, check_problem
from eplb.planning.solve import WALKED, planned_rule

__all__ = [
    "POLICIES",
    "Deciding",
    "Forecasted",
    "Moving",
    "Peer",
    "Policies",
    "Policy",
    "Staying",
    "compile_bending",
    "list_of",
    "load_peer",
    "named_policies",
    "named_policy",
    "phy2log_of",
    "plans_for",
    "policy_from",
    "told",
    "warm_up",
]


Loads: TypeAlias = NDArray[np.float64]


class Policy(Protocol):
    """Decides which placement to run next."""

    def __call__(
        self, loads: Loads, cluster: Cluster, /, *, current: Placement, num_groups: int
    ) -> Any:
        """The next Placement, Plan or phy2log [L, P], or None to keep `current`."""


Policies: TypeAlias = (
    str
    | os.PathLike[str]
    | Sequence[str | os.PathLike[str]]
    | Mapping[str, Policy | str | os.PathLike[str]]
)
"""Names in `POLICIES` and paths of Python files, a lone one or several, or policies by name."""


def _contiguous(_loads: Loads, _cluster: Cluster, *, current: Placement, num_groups: int) -> None:
    """The layout that engines start with, kept for ever."""
    del current, num_groups


@dataclass(frozen=True)
class Staying:
    """One placement, kept for ever."""

    placement: Placement

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> Placement:
        """Whatever the loads, the same."""
        del loads, cluster, current, num_groups
        return self.placement


@dataclass(frozen=True)
class _Greedy:
    """DeepSeek's algorithm on the sum of the windows, from scratch each time; the layout that
    engines start with where GPUs differ, which it does not plan for.
    """

    swaps: bool

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> NDArray[np.int64]:
        if not cluster.even:
            return engine_placement(loads, cluster).phy2log
        from eplb.solver.greedy import greedy

        del current
        alive = cluster.survivors
        return spread(greedy(loads.sum(axis=0), alive, num_groups, swaps=self.swaps), cluster)


@dataclass(frozen=True)
class Forecasted:
    """This planner, on the windows that a forecast expects, from scratch each time."""

    forecast: Forecast
    effort: Effort = "default"
    threads: int | None = None
    sees_next: bool = False
    dispatch: str = "even"
    pins: Pins | None = None

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> Placement:
        """Plan for what the forecast makes of the windows [T, L, E] so far."""
        del current
        return self._planned(loads, cluster, num_groups)

    def _planned(
        self,
        loads: Loads,
        cluster: Cluster,
        num_groups: int,
        current: Placement | None = None,
        max_moves: int | None = None,
    ) -> Placement:
        expected = self.forecast(loads)
        return plan(
            expected.loads,
            cluster,
            num_groups=num_groups,
            weights=expected.weights,
            current=current,
            max_moves=max_moves,
            dispatch=planned_rule(self.dispatch, current),
            pins=self.pins,
            effort=self.effort,
            threads=self.threads,
        ).placement


@dataclass(frozen=True)
class Moving(Forecasted):
    """This planner from the placement that runs, moving what gains by its default price; afresh
    from the layout that engines start with.

    With a budget, a share of slots is one of those of layers with load, and moves have no price.
    """

    budget: Budget | None = None

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> Placement:
        """Move what gains by what the forecast makes of the windows [T, L, E] so far."""
        if _is_first(current):
            return self._planned(loads, cluster, num_groups)
        most = None
        if self.budget is not None:
            loaded = int(loads.any(axis=(0, 2)).sum())
            most = self.budget.of(loaded * cluster.num_slots)
        return self._planned(loads, cluster, num_groups, current, most)


@dataclass(frozen=True)
class Deciding:
    """`eplb.decide` on the windows shown: move what pays, or wait; at first as `Moving`.

    `seconds` is the time from one decision to the next, `dispatch` the rule that windows are served
    by.
    """

    service: Service = DEFAULT_SERVICE
    seconds: float = 60.0
    threads: int | None = None
    dispatch: str = "even"
    pins: Pins | None = None

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> Placement | None:
        """Decide by the windows [T, L, E] so far."""
        if not loads.any():
            return None
        if _is_first(current):
            return plan(
                loads,
                cluster,
                num_groups=num_groups,
                dispatch=planned_rule(self.dispatch),
                pins=self.pins,
                threads=self.threads,
            ).placement
        return decide(
            loads,
            cluster,
            current,
            self.service,
            self.seconds,
            num_groups=num_groups,
            dispatch=self.dispatch,
            pins=self.pins,
            threads=self.threads,
        ).placement


def _is_first(current: Placement) -> bool:
    """Whether it is the layout that engines start with."""
    return current == Placement.contiguous(current.num_layers, current.num_experts, current.cluster)


POLICIES: dict[str, Policy] = {
    "contiguous": _contiguous,
    "deepseek": _Greedy(swaps=False),
    "seed": _Greedy(swaps=True),
    "eplb": Forecasted(Recent()),
    "moving": Moving(Recent()),
    "deciding": Deciding(),
    **{name: Forecasted(forecast) for name, forecast in FORECASTS.items()},
    "oracle": Forecasted(Recent(), sees_next=True),
}
"""Policies by name.

contiguous: the layout that engines start with. deepseek: DeepSeek's EPLB, as engines run it.
seed: the evolved version of it that this project started from. eplb: this planner on the last
windows, each a scenario. moving: the same from the placement that runs, as far as moves gain.
deciding: `eplb.decide`, which waits where moving does not pay. oracle: eplb, shown the windows that
come next: what knowing the future would give. The others are this planner with the forecasts of
`eplb.forecast`.
"""


def warm_up(policy: Policy) -> None:
    """Compile the kernels of a policy of `POLICIES`, or load them, so that no plan waits for it.

    A rule of a user's own is not called: it may know its own model only.
    """
    if isinstance(policy, _Greedy):
        _plan_once("greedy")
    elif isinstance(policy, Moving | Deciding):
        _plan_once("moving", policy.dispatch)
    elif isinstance(policy, Forecasted):
        _plan_once("afresh", policy.dispatch)


@cache
def _plan_once(how: Literal["greedy", "afresh", "moving"], dispatch: str = "even") -> None:
    loads, cluster, start = _small_layer()
    if how == "greedy":
        for swaps in (False, True):
            _Greedy(swaps)(loads, cluster, current=start, num_groups=1)
        return
    made = plan(loads, cluster, dispatch=planned_rule(dispatch)).placement
    if how == "moving":
        plan(loads[::-1], cluster, current=made)


def compile_bending() -> None:
    """Compile what plans for the best split take beyond those for an even one, and only that."""
    loads, cluster, start = _small_layer()
    problem = check_problem(loads, cluster, 1, None, None)
    bend(problem, Layers(start.phy2log.copy(), np.zeros(1), np.zeros(1)), "fast")


def _small_layer() -> tuple[NDArray[np.float64], Cluster, Placement]:
    """Two windows of one layer, uneven, and where its experts may be."""
    hot = np.array([[600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0]])
    cluster = Cluster(num_gpus=8, slots_per_gpu=2)
    return np.stack([hot, hot[:, ::-1]]), cluster, Placement.contiguous(1, 8, cluster)


@dataclass(frozen=True)
class _Peer:
    """A file's `rebalance_experts`, called as DeepSeek's with the sum of the windows."""

    rebalance_experts: Callable[..., Any]

    def __call__(
        self, loads: Loads, cluster: Cluster, *, current: Placement, num_groups: int
    ) -> NDArray[np.int64]:
        del current
        check_even(cluster)
        total: Any = loads.sum(axis=0)
        num_layers = total.shape[0]
        if importlib.util.find_spec("torch") is not None:
            import torch

            total = torch.from_numpy(total)
        alive = cluster.survivors
        answer = self.rebalance_experts(
            total, alive.num_slots, num_groups, alive.num_nodes, alive.num_gpus
        )
        return spread(phy2log_of(answer, num_layers, alive.num_slots), cluster)


def policy_from(path: str | os.PathLike[str]) -> Policy:
    """The policy in a Python file, which is run: its `policy`, or its `rebalance_experts`.

    `policy` is called as any policy is, `rebalance_experts` as DeepSeek's EPLB with the sum of the
    windows (a torch tensor where torch is installed).

    Raises:
        PolicyError: a file that is not there, that fails, or that has neither.
    """
    found = load_peer(Path(path), ("policy", "rebalance_experts"))
    return found.function if found.kind == "policy" else _Peer(found.function)


def named_policies(
    names: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], threads: int | None = None
) -> dict[str, Policy]:
    """The policies of names in `POLICIES`, or in the Python files of those paths, by their names.

    Args:
        names: of one or more; files are called as they are without their folder, and numbered where
            two are called alike, or one as a policy of `POLICIES` that is given too.
        threads: most threads of this planner, None for one a processor.

    Raises:
        PolicyError: none of the two.
    """
    given = [_name(name) for name in list_of(names, str | os.PathLike, "policies")]
    if not given:
        raise PolicyError("no policy is given")
    built_in = {name for name in given if name in POLICIES}
    policies: dict[str, Policy] = {}
    for name in given:
        if name in POLICIES:
            if name in policies:
                raise PolicyError(f"policy {name} is given twice")
            policy = POLICIES[name]
            if isinstance(policy, Forecasted | Deciding):
                policy = replace(policy, threads=threads)
            policies[name] = policy
        elif name.endswith(".py"):
            called, number = Path(name).stem, 1
            while called in policies or called in built_in:
                number += 1
                called = f"{Path(name).stem} {number}"
            policies[called] = policy_from(name)
        else:
            known = ", ".join(POLICIES)
            raise PolicyError(f"no policy is called {name!r}: give {known} or a .py file")
    return policies


def told(
    policy: Policy | str | os.PathLike[str], service: Service, seconds: float
) -> Policy | str | os.PathLike[str]:
    """A policy that knows the service and the time between decisions, where it takes them."""
    if policy == "deciding":
        policy = POLICIES["deciding"]
    if isinstance(policy, Deciding):
        return replace(policy, service=service, seconds=seconds)
    return policy


def plans_for(policy: Policy | str | os.PathLike[str], rule: Any) -> bool:
    """Whether a policy makes placements for a rule of dispatch: this planner does, from scratch for
    every rule, from what runs for some.
    """
    called = POLICIES.get(policy) if isinstance(policy, str) else policy
    if isinstance(called, Moving | Deciding):
        return rule in WALKED
    return isinstance(called, Forecasted)


def list_of(values: Any, one: Any, name: str) -> list[Any]:
    """Values as a list; a lone one, of a type of `one`, is a list of itself.

    Raises:
        PolicyError: neither.
    """
    if isinstance(values, one):
        return [values]
    if not np.iterable(values):
        raise PolicyError(f"{name} are {values!r}: give a list")
    return list(values)


def _name(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise PolicyError(f"{value!r} is not the name or path of a policy: give callables by name")
    return os.fsdecode(value)


def named_policy(name: str | os.PathLike[str], threads: int | None = None) -> Policy:
    """One of `named_policies`."""
    (policy,) = named_policies([name], threads).values()
    return policy


@dataclass(frozen=True)
class Peer:
    """Another planner.

    Attributes:
        name: the name of its file.
        kind: what its function is called.
        function: as DeepSeek's `rebalance_experts(weight, num_replicas, num_groups, num_nodes,
            num_gpus)`, torch tensors in and out, of which only phy2log need be returned; or as its
            kind says.
    """

    name: str
    kind: str
    function: Callable[..., Any]


def load_peer(path: Path, kinds: Sequence[str] = ("rebalance_experts",)) -> Peer:
    """Load a Python file and take the first function of `kinds` that it has.

    Raises:
        PolicyError: a file that is not there, that raises when it is imported, or that has no such
            function.
    """
    module = _import(path)
    for kind in kinds:
        function = getattr(module, kind, None)
        if callable(function):
            return Peer(path.stem, kind, function)
    raise PolicyError(f"{path}: it has no function {' or '.join(kinds)}")


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise PolicyError(f"{path}: there is no such file")
    name = f"_peer_{path.resolve()}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # it may import files that lie beside it, as a script does
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise PolicyError(f"{path}: importing it raises {in_one_line(error)}") from None
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)
    return module


def phy2log_of(result: Any, num_layers: int, num_slots: int) -> NDArray[np.int64]:
    """[L, P] of what a planner returned: phy2log, or a sequence that begins with it.

    Raises:
        PolicyError: something else.
    """
    if isinstance(result, tuple | list) and len(result) > 0 and _depth(result[0]) == 2:
        result = result[0]
    if is_tensor(result):
        result = result.detach()
    try:
        array = np.asarray(result.cpu() if is_tensor(result) else result)
    except Exception as error:
        raise PolicyError(f"phy2log is no array: {in_one_line(error)}") from None
    if array.shape != (num_layers, num_slots) or array.dtype.kind not in "ui":
        raise PolicyError(
            f"phy2log has shape {array.shape} and type {array.dtype}: "
            f"expected whole numbers of shape {(num_layers, num_slots)}"
        )
    return array.astype(np.int64)


def _depth(value: Any) -> int:
    """Axes of an array, a tensor or nested lists."""
    if isinstance(value, tuple | list):
        return 1 + (_depth(value[0]) if len(value) > 0 else 0)
    return getattr(value, "ndim", 0)
