"""Plans from scratch, for a rule of dispatch."""

from eplb.cluster import check_even
from eplb.dispatching.rules import RULES
from eplb.errors import OptionError
from eplb.placement import Placement
from eplb.planning.batches import Batch
from eplb.planning.best_split import solve_best_split
from eplb.planning.engine_rule import solve_engine_rule
from eplb.planning.passes import solve
from eplb.planning.problem import Effort, Layers, Problem

WALKED = ("even", "best")
"""The rules of dispatch that plans from a current placement are made for."""


def check_dispatch(rule: object) -> None:
    """A rule that placements are planned for.

    Raises:
        OptionError: another, or none at all.
    """
    if not isinstance(rule, str) or rule not in RULES:
        raise OptionError(f"dispatch is {rule!r}: give one of {', '.join(map(repr, RULES))}")


def planned_rule(dispatch: object, current: Placement | None = None) -> str:
    """The rule to plan for, of a placement that is scored under another, or under a split: the
    same, where that can be planned for; else an even split.
    """
    known = isinstance(dispatch, str) and dispatch in (RULES if current is None else WALKED)
    return str(dispatch) if known else "even"


def solve_for(problem: Problem, effort: Effort, rule: str, batch: Batch | None = None) -> Layers:
    """Plan every layer from scratch, for a rule of dispatch."""
    if rule == "even":
        return solve(problem, effort)
    if rule == "best":
        return solve_best_split(problem, effort, batch)
    check_even(problem.cluster)
    return solve_engine_rule(problem, effort, rule)
