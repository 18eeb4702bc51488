"""Commands as one types them: the one that makes the plan, and the one that prints its figures."""

import shlex

from eplb.report.sample import Asked

__all__ = ["compare_command", "moves_command", "plan_command"]


def plan_command(
    asked: Asked, name: str, forecast: str | None, reading: tuple[str, ...], layers: tuple[str, ...]
) -> str:
    """What makes the plan."""
    words = _plan_words(asked, name, forecast, reading, layers)
    return shlex.join([*words, "-o", "placement.json"])


def moves_command(
    asked: Asked,
    name: str,
    forecast: str | None,
    reading: tuple[str, ...],
    layers: tuple[str, ...],
    current: str,
    moves: int,
) -> str:
    """What makes a plan so many moves from the placement that runs."""
    return shlex.join(
        [
            *_plan_words(asked, name, forecast, reading, layers),
            *("--current", current, "--max-moves", str(moves)),
            *("-o", "placement.json"),
        ]
    )


def _plan_words(
    asked: Asked, name: str, forecast: str | None, reading: tuple[str, ...], layers: tuple[str, ...]
) -> list[str]:
    words = ["eplb", "plan", name, *_cluster_words(asked), *reading]
    words += [] if forecast is None else ["--forecast", forecast]
    return [*words, *layers]


def compare_command(
    asked: Asked, name: str, forecast: str | None, reading: tuple[str, ...], every: int
) -> str:
    """What prints the figures on loads that plans have not seen."""
    words = ["eplb", "compare", name, *_cluster_words(asked)]
    for policy in ("contiguous", "seed", forecast or "eplb", "oracle"):
        words += ["--policy", policy]
    words += ["--every", str(every)] if every > 1 else []
    return shlex.join([*words, *reading])


def _cluster_words(asked: Asked) -> list[str]:
    cluster = asked.cluster
    words = ["--gpus", str(cluster.num_gpus), "--slots", str(cluster.num_slots)]
    words += ["--nodes", str(cluster.num_nodes)] if cluster.num_nodes > 1 else []
    words += ["--groups", str(asked.num_groups)] if asked.num_groups > 1 else []
    return words
