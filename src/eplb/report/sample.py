"""What is asked of a report, and samples of its windows."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb.cluster import Cluster
from eplb.loads import LoadTrace
from eplb.placement import Placement
from eplb.planning.forecast import HISTORY, Scenarios
from eplb.planning.plan import Plan, plan
from eplb.planning.solve import planned_rule


@dataclass(frozen=True, eq=False)
class Asked:
    """The loads and the cluster that are reported on.

    Attributes:
        trace: the windows.
        cluster: the GPUs and their slots.
        num_groups: groups that the model routes by.
        dispatch: the rule of dispatch that every figure is under.
        threads: maximum number of threads to plan with, None for one per processor.
    """

    trace: LoadTrace
    cluster: Cluster
    num_groups: int = 1
    dispatch: str = "even"
    threads: int | None = None

    @cached_property
    def seen(self) -> NDArray[np.float64]:
        """[S, L, E] the last windows, that the recommended plan is made from."""
        return self.trace.last(HISTORY)

    @cached_property
    def start(self) -> Placement:
        """The layout that engines start with."""
        trace = self.trace
        return Placement.contiguous(trace.num_layers, trace.num_experts, self.cluster)

    def plan(self, expected: Scenarios) -> Plan:
        """A plan from scratch."""
        return plan(
            expected.loads,
            self.cluster,
            num_groups=self.num_groups,
            weights=expected.weights,
            dispatch=planned_rule(self.dispatch),
            threads=self.threads,
        )
