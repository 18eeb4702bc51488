"""Rules of dispatch: which copy of an expert each engine sends a token to.

A rule is a function of a placement's slots and says, for each source rank (a GPU that tokens come
from), the slot that an expert's tokens go to: a table [L, R, E]. `even` is no table: it is what
vLLM's hash of a token's place in the batch comes to.

Each rule is the engine's own, written anew from its source and held against it by
`make test-engines`:
    sglang: SGLang 0.5.23, `compute_logical_to_rank_dispatch_physical_map` (`static`, its default
        with an all-to-all backend). A source uses the copy on its own GPU, else the first on its
        node where the node has some copies but not all, else what a fair draw with a fixed seed
        gives it.
    ascend: vllm-ascend 0.18.0, `generate_log2phy_map` without tensor parallelism: source rank
        modulo the number of copies.
"""

import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from eplb.cluster import Cluster
from eplb.errors import OptionError
from eplb.solver.arrays import F64, I64

_SEED = 42
"""Of SGLang's draws."""


def split_of_table(table: I64, num_slots: int, sources: F64) -> F64:
    """[L, P] part of its expert's load that each slot takes under a table [L, R, E], where source
    rank r brings the share `sources[r]` of every expert's tokens.
    """
    num_layers = table.shape[0]
    slots = (table + np.arange(num_layers)[:, None, None] * num_slots).ravel()
    shares = np.broadcast_to(sources[:, None], table.shape).ravel()
    split = np.bincount(slots, weights=shares, minlength=num_layers * num_slots)
    return split.reshape(num_layers, num_slots).astype(np.float64, copy=False)


def near_share(table: I64, loads: F64, cluster: Cluster, sources: F64 | None = None) -> float:
    """Part of all tokens of loads [L, E] that a table [L, R, E] keeps on the node they come from,
    the part `sources` [R] of them coming from each source; None for the same from each.
    """
    num_sources = table.shape[1]
    nodes = table // (cluster.num_slots // cluster.num_nodes)
    mine = np.arange(num_sources) * cluster.num_nodes // num_sources
    near = np.average(nodes == mine[:, None], axis=1, weights=sources)
    return float((near * loads).sum() / loads.sum())


def sglang(log2phy: I64, cluster: Cluster) -> I64:
    """SGLang's table [L, G, E] of slots [L, E, X], padded with -1."""
    from eplb.solver.engine_rules import _sglang_layers

    num_layers, num_experts, most = log2phy.shape
    num_gpus = cluster.num_gpus
    table = np.empty((num_layers, num_gpus, num_experts), np.int64)
    # Half of the numbers that are read are thrown away at worst, as expected.
    number = 2 * (num_gpus + most) * int((log2phy[:, :, 1:2] >= 0).sum())
    number = 1 << number.bit_length()
    per_gpu, per_node = cluster.slots_per_gpu, num_gpus // cluster.num_nodes
    # A copy: kernels would be compiled once more for an array that is read-only.
    slots = np.array(log2phy)
    while not _sglang_layers(slots, per_gpu, per_node, _random_words(number), table):
        number *= 2
    return table


@lru_cache(maxsize=1)
def _random_words(number: int) -> I64:
    """So many words of 32 random bits, in the order in which SGLang's draws read them."""
    drawn = random.Random(_SEED).getrandbits(32 * number).to_bytes(4 * number, "little")
    return np.frombuffer(drawn, "<u4").astype(np.int64)


def ascend(log2phy: I64, cluster: Cluster) -> I64:
    """vllm-ascend's table [L, G, E] of slots [L, E, X], padded with -1. The engine knows one copy
    of an expert on a GPU, the last.
    """
    gpus = np.where(log2phy >= 0, log2phy // cluster.slots_per_gpu, -1)
    last = np.ones(log2phy.shape, np.bool_)
    last[..., :-1] = gpus[..., :-1] != gpus[..., 1:]
    last &= log2phy >= 0
    order = np.argsort(~last, axis=2, kind="stable")
    slots = np.take_along_axis(log2phy, order, axis=2)
    copies = last.sum(axis=2)
    index = np.arange(cluster.num_gpus)[None, :, None] % copies[:, None, :]
    table: I64 = np.take_along_axis(slots.transpose(0, 2, 1), index, axis=1)
    return table


TABLES: dict[str, Callable[[I64, Cluster], I64]] = {"sglang": sglang, "ascend": ascend}
"""Rules that are tables: a function of log2phy and the cluster each."""

RULES = ("even", *TABLES, "best")
"""Every rule that has a name; `best` splits each window anew."""

GIVEN = "split"
"""What a split that a user gives is called beside the names of rules."""

_WORDS = {
    "even": "Choice among copies: even (each copy of an expert takes the same part of its tokens).",
    "sglang": "Choice among copies: SGLang's rule (a GPU sends to its own copy or one on its node, "
    "else to one drawn fairly).",
    "ascend": "Choice among copies: vllm-ascend's rule (a GPU sends to the copy of its rank modulo "
    "copies).",
    "best": "Choice among copies: best (each window is split so that GPUs are as evenly loaded as "
    "can be).",
    GIVEN: "Choice among copies: the split that is given, in every window.",
}

_UNDER = {
    "even": "",
    "sglang": " under SGLang's rule of dispatch",
    "ascend": " under vllm-ascend's rule of dispatch",
    "best": " with each window split best",
}


def check_rule(dispatch: Any, name: str = "dispatch") -> Any:
    """What is a rule, or may be a split; that is found out when it is known of what placement.

    Raises:
        OptionError: a rule that is not known; the message calls it by `name`.
    """
    if dispatch is None or (isinstance(dispatch, str) and dispatch not in RULES):
        or_split = "" if name.startswith("--") else ", or a split"
        raise OptionError(f"{name} is {dispatch!r}: give one of {', '.join(RULES)}{or_split}")
    return dispatch


def check_named(dispatch: Any) -> str:
    """A rule, where placements are compared.

    Raises:
        OptionError: a rule that is not known, or a split: it fits no placement but its own.
    """
    if name_of(check_rule(dispatch)) == GIVEN:
        raise OptionError(
            "a split fits one placement, and others stand beside it: give a rule of dispatch, one "
            f"of {', '.join(RULES)}"
        )
    rule: str = dispatch
    return rule


def name_of(dispatch: Any) -> str:
    """What a rule is called in figures, or "split" where a split is given."""
    return dispatch if isinstance(dispatch, str) else GIVEN


def under(name: str) -> str:
    """The rule of that name as an end of a clause: " under SGLang's rule of dispatch"; nothing
    where tokens are split evenly.
    """
    return _UNDER[name]


def in_words(name: str) -> str:
    """A sentence on the rule of that name, for whoever reads figures under it."""
    return _WORDS[name]
