"""What an estimate assumes, in words, so that it can stand beside the figures."""

from eplb.cluster import Cluster
from eplb.cost_roofline import Assumptions
from eplb.hardware import Gpu
from eplb.models import Model

__all__ = ["words_of"]


def words_of(
    gpu: Gpu,
    model: Model,
    cluster: Cluster,
    tokens_per_gpu: float,
    num_layers: int,
    assumptions: Assumptions,
) -> tuple[str, ...]:
    """What an estimate assumes, a sentence each; `num_layers` had any load."""
    sure = assumptions
    _, computed = gpu.rate(model.number_format)
    words = [
        "This is an estimate from a roofline, not a measurement.",
        f"{cluster.num_gpus} x {gpu.name} on {cluster.num_nodes} "
        f"{'node' if cluster.num_nodes == 1 else 'nodes'} serve {model.name}; each brings "
        f"{tokens_per_gpu:,g} tokens into a step, and each token goes to {model.top_k} experts.",
        f"An expert of a layer is {model.expert_bytes / 1e6:,.1f} MB, read once in a step if any "
        "token needs it.",
        f"Products run at {sure.compute_efficiency:.0%} of the {computed.upper()} peak and memory "
        f"at {sure.memory_efficiency:.0%} of its bandwidth, hiding each other in part.",
    ]
    if computed != model.number_format:
        words.append(
            f"The model computes in {model.number_format.upper()}, for which {gpu.name} has no "
            f"units: {computed.upper()} stands in."
        )
    if cluster.num_gpus > 1:
        words.append(
            f"Dispatch and combine reach {sure.link_efficiency:.0%} of the links within a node and "
            f"{sure.network_efficiency:.0%} of the network between nodes, and take at least "
            f"{sure.exchange_latency * 1e6:g} us each."
        )
        once = "node that has any of its experts" if sure.one_copy_per_node else "expert"
        words.append(f"A token is sent once for each {once}.")
        words.append(
            "Tokens travel while experts compute."
            if sure.overlapped
            else "Tokens travel before and after experts compute, not meanwhile."
        )
    words.append(
        f"Expert layers take {sure.expert_share:.0%} of a perfectly balanced step; the rest, such "
        "as attention, is the same for every placement."
    )
    if num_layers != model.num_moe_layers:
        words.append(
            f"Loads have {num_layers} layers with any load, the model has {model.num_moe_layers}: "
            "a step has as many at their mean time."
        )
    words.append(
        "Each step has its window's shares of load exactly; chance from step to step, which raises "
        "peaks of small batches, is left out, and so is time to plan and move."
    )
    return tuple(words)
