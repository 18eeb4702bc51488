"""Options about tokens that cross nodes, which several commands share, and what they mean."""

from typing import Annotated

import typer

from eplb.cluster import Cluster
from eplb.cost.models import MODELS, find_model
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.planning.traffic import Traffic, with_sources

RoutedBy = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        metavar="TOP_K[,TOPK_GROUPS]|MODEL",
        help="How many experts a token is routed to and, if the model routes by --groups, in how "
        "many of them, or the name of a model that does: to count the other nodes that a token is "
        "sent to. [default: not counted]",
    ),
]


def traffic_of(
    text: str | None, price: float | None, trace: LoadTrace, cluster: Cluster, groups: int = 1
) -> Traffic | None:
    """How tokens are routed, of the texts of --traffic and --node-price, and of the loads, which
    may name a model that routes by as many groups, and from where, if the loads tell.

    Raises:
        OptionError: another text; a price of nodes where nothing says how tokens are routed; or one
            node, which no token leaves.
    """
    if text is None and price is None:
        return None
    if cluster.num_nodes == 1:
        name = "--node-price" if text is None else "--traffic"
        raise OptionError(f"{name} is for tokens that cross nodes, and there is one: give --nodes")
    if text is not None:
        top_k, topk_groups = _routing(text)
    elif trace.top_k is None:
        raise OptionError(
            "--node-price needs --traffic, which says how tokens are routed: the loads do not"
        )
    else:
        known = MODELS.get(trace.model or "")
        by_groups = known is not None and (known.top_k, known.num_groups) == (trace.top_k, groups)
        top_k, topk_groups = trace.top_k, known.topk_groups if known and by_groups else None
    return with_sources(Traffic(top_k, topk_groups, price), trace, cluster.num_nodes)


def _routing(text: str) -> tuple[int, int | None]:
    """Experts of a token, and groups that they are in, of the text of --traffic."""
    words = [word.strip() for word in text.split(",")]
    if len(words) <= 2 and all(word.isascii() and word.isdecimal() for word in words):
        return int(words[0]), int(words[1]) if len(words) > 1 else None
    try:
        model = find_model(text)
    except OptionError:
        raise OptionError(
            f"--traffic is {text!r}: give top_k, or top_k and topk_groups as 8,4 where the "
            f"model routes by --groups, or the name of a model: {', '.join(MODELS)}"
        ) from None
    return model.top_k, model.topk_groups
