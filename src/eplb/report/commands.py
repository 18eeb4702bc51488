"""Commands as one types them: the one that makes the plan, and the one that prints its figures."""

import shlex

from eplb.report.sample import Asked

__all__ = ["compare_command", "plan_command"]


def plan_command(
    asked: Asked,
    names: tuple[str, ...],
    forecast: str | None,
    reading: tuple[str, ...],
    layers: tuple[str, ...],
    running: tuple[str, int] | None = None,
) -> str:
    """What makes the plan; from the placement that runs in a file, with so many moves."""
    words = ["eplb", "plan", *names, *_cluster_words(asked), *reading]
    words += [] if forecast is None else ["--forecast", forecast]
    words += layers
    if running is not None:
        words += ["--current", running[0], "--max-moves", str(running[1])]
    return shlex.join([*words, "-o", "placement.json"])


def compare_command(
    asked: Asked,
    names: tuple[str, ...],
    forecast: str | None,
    reading: tuple[str, ...],
    every: int,
) -> str:
    """What prints the figures on loads that plans have not seen."""
    words = ["eplb", "compare", *names, *_cluster_words(asked)]
    for policy in ("deepseek", forecast or "eplb", "contiguous", "oracle"):
        words += ["--policy", policy]
    words += ["--every", str(every)] if every > 1 else []
    return shlex.join([*words, *reading])


def _cluster_words(asked: Asked) -> list[str]:
    cluster = asked.cluster
    words = ["--gpus", str(cluster.num_gpus)]
    if cluster.slots is None:
        words += ["--slots", str(cluster.num_slots)]
    else:
        words += ["--slots-per-gpu", ",".join(map(str, cluster.slots))]
    words += [] if cluster.speed is None else ["--speed", ",".join(map(repr, cluster.speed))]
    words += ["--nodes", str(cluster.num_nodes)] if cluster.num_nodes > 1 else []
    words += ["--groups", str(asked.num_groups)] if asked.num_groups > 1 else []
    words += ["--dispatch", asked.dispatch] if asked.dispatch != "even" else []
    return words
