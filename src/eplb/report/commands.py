"""Commands as one types them: the one that makes the plan, and the one that prints its figures."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eplb.cluster import Cluster
from eplb.report.sample import Asked


def typed(**options: object) -> list[str]:
    """Options as one types them, those that were given and say more than the default."""
    words = []
    for name, value in options.items():
        if value is None or value is False or (name, value) == ("merge", "auto"):
            continue
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            words += [option] if each is True else [option, str(each)]
    return words


def of_cluster(cluster: Cluster, num_groups: int, dead: Sequence[int] = ()) -> list[str]:
    """The options that a cluster and its groups are given by."""
    return typed(
        gpus=cluster.num_gpus,
        slots=cluster.num_slots if cluster.slots is None else None,
        slots_per_gpu=",".join(map(str, cluster.slots or ())) or None,
        speed=",".join(map(repr, cluster.speed or ())) or None,
        nodes=cluster.num_nodes if cluster.num_nodes > 1 else None,
        dead=",".join(map(str, dead)) or None,
        groups=num_groups if num_groups > 1 else None,
    )


@dataclass(frozen=True)
class Commands:
    """What is asked, and how one types it.

    Attributes:
        asked: the cluster and the rule of dispatch.
        names: paths of the loads.
        reading: options that say how they are read.
        layers: options that say which layers they have.
        forecast: what is planned for; None of one window.
        current: path of the placement that runs.
    """

    asked: Asked
    names: tuple[str | Path, ...]
    reading: Sequence[str]
    layers: Sequence[str]
    forecast: str | None
    current: str | Path | None

    def plan(self, max_moves: int | None = None) -> str:
        """What makes the plan; with so many moves from the placement that runs."""
        words = [*self._of("plan"), *self.reading, *typed(forecast=self.forecast), *self.layers]
        if max_moves is not None:
            words += typed(current=self.current, max_moves=max_moves)
        return shlex.join([*words, "-o", "placement.json"])

    def compare(self, every: int) -> str:
        """What prints the figures on loads that plans have not seen."""
        policies = ["deepseek", self.forecast or "eplb", "contiguous", "oracle"]
        words = typed(policy=policies, every=every if every > 1 else None)
        return shlex.join([*self._of("compare"), *words, *self.reading])

    def _of(self, command: str) -> list[str]:
        asked = self.asked
        rule = None if asked.dispatch == "even" else asked.dispatch
        words = [*of_cluster(asked.cluster, asked.num_groups), *typed(dispatch=rule)]
        return ["eplb", command, *map(str, self.names), *words]
