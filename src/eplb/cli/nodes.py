"""Options about tokens that cross nodes, which several commands share, and what they mean."""

from typing import Annotated

import typer

from eplb.cluster import Cluster
from eplb.errors import OptionError
from eplb.loads import LoadTrace
from eplb.planning.traffic import Traffic

__all__ = ["NodePrice", "RoutedBy", "traffic_of"]

RoutedBy = Annotated[
    str | None,
    typer.Option(
        "--traffic",
        metavar="TOP_K[,TOPK_GROUPS]",
        help="How many experts a token is routed to and, if the model routes by --groups, in how "
        "many of them: to count the other nodes that a token is sent to. [default: not counted]",
        show_default=False,
    ),
]
NodePrice = Annotated[
    float | None,
    typer.Option(
        help="The peak that it may cost, as a share of a GPU's load, that a token is sent to one "
        "node fewer. Groups then need not stay on their nodes. It goes with --traffic, unless the "
        "loads say how many experts a token is routed to. [default: none]",
        show_default=False,
    ),
]


def traffic_of(
    text: str | None, price: float | None, trace: LoadTrace, cluster: Cluster
) -> Traffic | None:
    """How tokens are routed, of the texts of --traffic and --node-price, and of the loads.

    Raises:
        OptionError: another text; a price of nodes where nothing says how tokens are routed; or one
            node, which no token leaves.
    """
    if text is None and price is None:
        return None
    if cluster.num_nodes == 1:
        name = "--node-price" if text is None else "--traffic"
        raise OptionError(f"{name} is for tokens that cross nodes, and there is one: give --nodes")
    if text is None:
        if trace.top_k is None:
            raise OptionError(
                "--node-price needs --traffic, which says how tokens are routed: the loads do not"
            )
        return Traffic(trace.top_k, price=price)
    words = [word.strip() for word in text.split(",")]
    if len(words) > 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise OptionError(
            f"--traffic is {text!r}: give top_k, or top_k and topk_groups as 8,4 where the model "
            "routes by --groups"
        )
    return Traffic(int(words[0]), int(words[1]) if len(words) > 1 else None, price)
