"""Commands as one types them: the one that makes the plan, and the one that prints its figures."""

import shlex

from eplb.report.sample import Asked

__all__ = ["compare_command", "plan_command"]


def plan_command(
    asked: Asked, name: str, forecast: str | None, merged: int, first_layer: int
) -> str:
    """What makes the plan, in as many lines as it takes."""
    begin = []
    if merged > 1:
        begin = [["eplb", "convert", name, "merged.npz", "--merge", str(merged)]]
        name = "merged.npz"
    words = ["eplb", "plan", name, *_cluster_words(asked)]
    if forecast is not None:
        words += ["--forecast", forecast]
    if first_layer:
        words += ["--first-layer", str(first_layer)]
    return "\n".join(shlex.join(each) for each in [*begin, [*words, "-o", "placement.json"]])


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
