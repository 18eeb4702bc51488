"""Commands as one types them: the one that makes the plan, and the one that prints its figures."""

import shlex

from eplb.report.sample import Asked

__all__ = ["MERGED", "compare_command", "moves_command", "plan_command"]

MERGED = "merged.npz"
"""What windows that were added up are written to, for a command that cannot add them up."""


def plan_command(
    asked: Asked,
    name: str,
    forecast: str | None,
    merged: int,
    layers: tuple[str, ...],
    current: tuple[str, int] | None = None,
) -> str:
    """What makes the plan, in as many lines as it takes; from what runs, with so many moves."""
    lines = []
    if merged > 1:
        lines.append(["eplb", "convert", name, MERGED, "--merge", str(merged)])
        name = MERGED
    words = _plan_words(asked, name, forecast, layers)
    if current is not None:
        words += ["--current", current[0], "--max-moves", str(current[1])]
    return "\n".join(map(shlex.join, [*lines, [*words, "-o", "placement.json"]]))


def moves_command(
    asked: Asked,
    name: str,
    forecast: str | None,
    layers: tuple[str, ...],
    current: str,
    moves: int,
) -> str:
    """What makes a plan so many moves from the placement that runs."""
    return plan_command(asked, name, forecast, 1, layers, (current, moves))


def _plan_words(
    asked: Asked, name: str, forecast: str | None, layers: tuple[str, ...]
) -> list[str]:
    words = ["eplb", "plan", name, *_cluster_words(asked)]
    words += [] if forecast is None else ["--forecast", forecast]
    return [*words, *layers]


def compare_command(asked: Asked, name: str, forecast: str | None, merged: int, every: int) -> str:
    """What prints the figures on loads that plans have not seen."""
    words = ["eplb", "compare", name, *_cluster_words(asked)]
    for policy in ("contiguous", "seed", forecast or "eplb", "oracle"):
        words += ["--policy", policy]
    words += ["--every", str(every)] if every > 1 else []
    words += ["--merge", str(merged)] if merged > 1 else []
    return shlex.join(words)


def _cluster_words(asked: Asked) -> list[str]:
    cluster = asked.cluster
    words = ["--gpus", str(cluster.num_gpus), "--slots", str(cluster.num_slots)]
    words += ["--nodes", str(cluster.num_nodes)] if cluster.num_nodes > 1 else []
    words += ["--groups", str(asked.num_groups)] if asked.num_groups > 1 else []
    return words
