"""The plug-in of SGLang: this planner in place of the engine's algorithms.

SGLang calls `register` in each of its processes, as it does with all of `sglang.srt.plugins`, and
wraps its `rebalance_experts` in what is registered there. docs/sglang.md tells how to use it.
"""

import functools
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.engines.control import Control
from eplb.engines.log import failure, once, switched_on
from eplb.engines.metrics import Counted
from eplb.engines.ranks import Agreement, Member, default_member
from eplb.engines.rebalances import Outcome, Rebalances, Seen
from eplb.engines.settings import Settings
from eplb.engines.start import after, around, compile_kernels, switch_on, unknown_arguments
from eplb.engines.tables import Planned
from eplb.engines.trial import Trials
from eplb.errors import PolicyError
from eplb.placement import Placement, empty_slots

_logger = logging.getLogger("sglang.eplb")

_ARGUMENTS = (
    "tokens_per_expert",
    "num_physical_experts",
    "num_local_physical_experts",
    "num_groups",
    "num_nodes",
    "algorithm",
)
_CHECKED = ("0.5.21", "0.5.22", "0.5.23")
_MANAGER = "sglang.srt.eplb.eplb_manager", "EPLBManager"
_OWN = "SGLang's own algorithm"
_TARGET = "sglang.srt.eplb.eplb_algorithms.rebalance_experts"
_OF_TABLE = (
    "logical_to_all_physical_map",
    "ep_size",
    "num_physical_experts",
    "ep_rank",
    "seed",
)
_OWN_TABLE = "SGLang's own table of dispatch"
_TABLE = "sglang.srt.eplb.expert_location.compute_logical_to_rank_dispatch_physical_map"


def register() -> None:
    """Put the planner in place where EPLB_POLICY says so; say so, or why not. Never raises."""
    where = (*_MANAGER, "__init__")
    switch_on(_hook, where, _member, _OWN, "SGLang's own EPLB algorithm stays", _logger)


def _hook(settings: Settings) -> Callable[..., object]:
    """Register the planner with SGLang; what to do where the engine makes its EPLB manager."""
    import sglang
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    version = str(getattr(sglang, "__version__", "of an unknown version"))
    wrong = difference()
    if wrong:
        raise PolicyError(f"SGLang {version}: {wrong}")
    planned = Planned()
    rebalances = Rebalances(_logger, settings, _OWN)
    trials = Trials()
    agreement = Agreement(_member, settings, _OWN, _logger, trials.clear)
    hook = make_hook(settings, planned, rebalances, agreement, trials)
    HookRegistry.register(_TARGET, hook, HookType.AROUND)
    if settings.dispatch == "table":
        _hook_table(settings, planned, version)
    batches = None
    if settings.dispatch == "batch":
        from eplb.engines.sglang_batches import SglangBatches

        batches = SglangBatches(agreement)
        batches.hook(version)

    metrics = Counted(rebalances, settings.role, settings.metrics)

    def stepped(manager: Any) -> None:
        if _stages() == 1 and _elastic() is None:
            # Ranks end their first pass together. Stages of a pipeline do not, nor does a rank
            # that is started again: they meet at the first rebalance.
            agreement.meet()
        metrics.step(int(getattr(manager, "_rebalance_num_iterations", 0)))

    after(*_MANAGER, "on_forward_pass_end", stepped)

    def then_in_force(moving: Iterator[Any]) -> Iterator[Any]:
        yield from moving
        metrics.in_force()

    def rebalance(theirs: Any, *args: Any, **kwargs: Any) -> Any:
        moving = theirs(*args, **kwargs)
        # It stops before each part of the layers, and goes on in the next pass.
        return then_in_force(moving) if inspect.isgenerator(moving) else moving

    around(*_MANAGER, "rebalance", rebalance)

    def at_start(manager: Any, *_: Any, **__: Any) -> None:
        if batches is not None:
            # Before anything that takes longer on one host than on another.
            batches.start()
        compile_kernels(_logger, tables=settings.dispatch == "table")
        try:
            _count_start()
            member = default_member()
            if member is None or member.rank == 0:
                switched_on(_logger, "SGLang's algorithms", settings, f"SGLang {version}", _CHECKED)
                metrics.begin(_logger)
                if settings.initial is not None:
                    instead = "EPLB_INITIAL is for vLLM: give SGLang --init-expert-location"
                    once(_logger, "initial", instead)
            rebalances.weigh(functools.partial(_expert_weights, manager))
        except Exception as error:
            failure(_logger, error, "the log does not say what the planner does")

    return at_start


def difference() -> str:
    """What SGLang's function has that this plug-in does not know; nothing where it fits.

    Raises:
        ImportError: there is no SGLang, or none that loads plug-ins.
    """
    from sglang.srt.eplb import eplb_algorithms
    from sglang.srt.plugins import hook_registry

    del hook_registry
    return unknown_arguments("rebalance_experts", eplb_algorithms.rebalance_experts, _ARGUMENTS)


@functools.cache
def _stages() -> int:
    """Stages of the pipeline that the ranks are; 0 where that is not known."""
    try:
        from sglang.srt.runtime_context import get_parallel

        return int(get_parallel().pp_size)
    except Exception as error:
        failure(_logger, error, "ranks meet at the first rebalance")
        return 0


def _expert_weights(manager: Any) -> Any:
    """Tensors [slots of this rank, ...] of one layer; the model is loaded after the manager."""
    return next(iter(manager._get_model().routed_experts_weights_of_layer.values()))


def _hook_table(settings: Settings, planned: Planned, version: str) -> None:
    """Put our tables in place of the engine's; say so, or why not."""
    from sglang.srt.eplb import expert_location
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    name = _TABLE.rsplit(".", 1)[-1]
    if wrong := unknown_arguments(name, getattr(expert_location, name, None), _OF_TABLE):
        failure(_logger, PolicyError(f"SGLang {version}: {wrong}"), f"{_OWN_TABLE} stays")
        return
    HookRegistry.register(_TABLE, make_table_hook(settings, planned), HookType.AROUND)
    _logger.warning(
        "eplb: after each rebalance, a table for the loads planned for replaces %s; it is used "
        "with --ep-dispatch-algorithm static",
        _OWN_TABLE,
    )


def make_table_hook(settings: Settings, planned: Planned) -> Callable[..., Any]:
    """A hook around SGLang's `compute_logical_to_rank_dispatch_physical_map`, that calls it where
    no loads have been planned for, and where it fails itself.
    """

    def compute_logical_to_rank_dispatch_physical_map(
        theirs: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """As SGLang's: slots of each expert [L, E, X] to the slot [L, E] that this rank uses."""
        try:
            given = inspect.signature(theirs).bind(*args, **kwargs).arguments
            table = _table(given, planned.windows, settings)
        except Exception as error:
            failure(_logger, error, f"{_OWN_TABLE} is used")
            table = None
        return theirs(*args, **kwargs) if table is None else table

    return compute_logical_to_rank_dispatch_physical_map


def _table(given: dict[str, Any], windows: NDArray[np.float64] | None, settings: Settings) -> Any:
    """This rank's slots [L, E] as SGLang takes them; None where there is nothing to go by."""
    import torch

    from eplb.cluster import Cluster
    from eplb.engines.tables import slots_by_rank

    log2phy, num_ranks = given["logical_to_all_physical_map"], given["ep_size"]
    if windows is None or windows.shape[1:] != tuple(log2phy.shape[:2]):
        return None
    if getattr(_elastic(), "has_scaled", False):  # the map of the first rank alone would have one
        return None
    cluster = Cluster.with_slots(given["num_physical_experts"], num_ranks, _nodes_of(num_ranks))
    slots = slots_by_rank(log2phy.to("cpu", torch.int64).numpy(), windows, cluster, settings)
    if slots is None:
        return None
    mine = np.ascontiguousarray(slots[:, given["ep_rank"]])
    return torch.from_numpy(mine).to(log2phy.device, log2phy.dtype)


def _nodes_of(num_ranks: int) -> int:
    """The nodes that SGLang's own table keeps tokens on; 1 where it does not look at nodes."""
    from sglang.srt.eplb import expert_location

    if not expert_location._prefer_same_node_experts():
        return 1
    parallel = expert_location.get_parallel()
    divide = parallel.ep_size == num_ranks and num_ranks % parallel.nnodes == 0
    return int(parallel.nnodes) if divide else 1


def make_hook(
    settings: Settings,
    planned: Planned | None = None,
    rebalances: Rebalances | None = None,
    agreement: Agreement | None = None,
    trials: Trials | None = None,
) -> Callable[..., Any]:
    """A hook around SGLang's `rebalance_experts`, that calls it where it fails itself, and says in
    `planned` what its last answer was planned for. The agreement forgets the trials.
    """
    told = rebalances or Rebalances(_logger, settings, _OWN)
    tried = Trials() if trials is None else trials
    ranks = agreement or Agreement(_member, settings, _OWN, _logger, tried.clear)
    planned = Planned() if planned is None else planned
    control = Control(settings.control, ranks.alike, _logger)

    def rebalance_experts(theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As SGLang's: loads [steps, L, E] to phy2log, log2phy and logcnt."""

        def own() -> Any:
            planned.windows = None
            return theirs(*args, **kwargs)

        def answer() -> NDArray[np.int64]:
            asked = None
            if cluster.dead:  # a table would be for all ranks, and a placement asked for, too
                planned.windows = None
            else:
                asked = control.command(kind, tuple(tokens.shape[1:]), cluster)
            windows = _windows(tokens, settings.windows)
            if windows.any():
                # The steps are those since the last call.
                seen.windows = windows
                planned.windows = None if cluster.dead else windows
                seen.new = len(windows)
                back = tried.judge(kind, current, windows)
                asked = back if asked is None else asked
                if asked is not None and running is not None:
                    seen.reason = asked.reason
                    return asked.map_after(running)
            phy2log = _plan(windows, cluster, num_groups, current, settings)
            if seen.windows is not None:
                tried.begin(kind, current, Placement(phy2log, seen.num_experts, cluster))
            return phy2log

        def tell(outcome: Outcome) -> None:
            phy2log = outcome.phy2log.copy()
            phy2log[:, empty_slots(cluster)] = -1
            told.tell(kind, seen, outcome._replace(phy2log=phy2log))

        try:
            given = inspect.signature(theirs).bind(*args, **kwargs).arguments
            tokens = given["tokens_per_expert"]
            cluster, num_groups = _shape(given)
            current = _current(tokens.shape[1:], cluster)
            same = current is not None and current.cluster == cluster
            running = current.phy2log.copy() if same else None
            kind = f"{tuple(tokens.shape[1:])} on {cluster}"
            seen = Seen(num_experts=tokens.shape[2], cluster=cluster, current=current)
        except Exception as error:
            failure(_logger, error, f"{_OWN} answers")
            return own()
        return ranks.answer(
            kind,
            answer,
            running,
            lambda phy2log: _maps(phy2log, tokens.shape[2], cluster),
            own,
            tell,
        )

    return rebalance_experts


def _elastic() -> Any:
    """SGLang's state of ranks that may come and go; None where they may not."""
    from sglang.srt.elastic_ep.elastic_ep import ElasticEPStateManager

    return ElasticEPStateManager.instance()


_STARTS = "eplb/starts"


def _count_start() -> None:
    """Count that this rank was started, where ranks may come and go."""
    member = default_member()
    if _elastic() is not None and member is not None:
        member.store.add(f"{_STARTS}/{member.rank}", 1)


def _member() -> Member | None:
    """This process among the ranks that plan; None where the first one plans for all.

    After scaling, SGLang has the first rank plan, and broadcasts what it answers. Where ranks have
    died, those alive plan. They are another group whenever ranks have died, or were started again
    since: such a rank knows nothing of the rounds before.
    """
    state, member = _elastic(), default_member()
    if state is None or member is None:
        return member
    if state.has_scaled:
        return None
    dead = _dead_ranks(member.size)
    alive = [rank for rank in range(member.size) if rank not in dead]
    if member.rank in dead:
        return None
    keys = [f"{_STARTS}/{rank}" for rank in alive]
    # Where one has not counted, it has no plug-in, which the ranks find out together.
    starts = member.store.multi_get(keys) if member.store.check(keys) else []
    group = _group(member.group, tuple(alive), tuple(starts))
    return Member(group, member.store, group.name, alive.index(member.rank), len(alive))


@functools.lru_cache(maxsize=1)
def _group(_: Any, *of: Any) -> SimpleNamespace:
    """A group of ranks that were started so often; the same object while nothing changes."""
    return SimpleNamespace(name=hashlib.blake2b(repr(of).encode(), digest_size=8).hexdigest())


def _dead_ranks(num_gpus: int) -> list[int]:
    """Ranks that elastic expert parallelism has lost."""
    state = _elastic()
    if state is None:
        return []
    active = state.active_ranks.tolist()[:num_gpus]
    return [rank for rank, each in enumerate(active) if not each]


def _shape(given: dict[str, Any]) -> tuple[Any, int]:
    """The ranks and the groups: these stay on nodes only where the user's algorithm keeps them, and
    no rank has died.
    """
    from eplb.cluster import Cluster

    num_slots = given["num_physical_experts"]
    num_gpus = num_slots // given["num_local_physical_experts"]
    dead = _dead_ranks(num_gpus)
    if given["num_groups"] and given["algorithm"].name.endswith("hierarchical") and not dead:
        return Cluster.with_slots(num_slots, num_gpus, given["num_nodes"]), given["num_groups"]
    return Cluster.with_slots(num_slots, num_gpus, 1).without(dead), 1


def _plan(
    windows: NDArray[np.float64], cluster: Any, num_groups: int, current: Any, settings: Settings
) -> NDArray[np.int64]:
    from eplb.engines.live import next_placement

    if current is not None and not windows.any():
        if current.cluster == cluster:
            phy2log: NDArray[np.int64] = current.phy2log.copy()
            return phy2log
        windows = np.ones_like(windows)
    return next_placement(windows, cluster, num_groups, current, settings, len(windows))


def _maps(phy2log: NDArray[np.int64], num_experts: int, cluster: Any) -> tuple[Any, ...]:
    """The three maps that SGLang takes."""
    import torch

    placement = Placement(phy2log, num_experts, cluster)
    # As its own algorithm has the slots of dead ranks.
    filled = np.maximum(phy2log, 0)
    maps = (filled, placement.log2phy.copy(), placement.logcnt.copy())
    return tuple(map(torch.from_numpy, maps))


def _windows(tokens: Any, most: int) -> NDArray[np.float64]:
    """Steps [S, L, E] added up to a few windows [T, L, E], in float64.

    Steps that are unused, or hold what is no number of tokens, are left out. The others are added
    up where they lie, on the GPU as a rule, so that little is copied.
    """
    import torch

    steps = tokens.flatten(1)
    # Comparisons with NaN are false.
    sound = (steps.amin(dim=1) >= 0) & (steps.amax(dim=1) < float("inf"))
    if not sound.all():
        once(_logger, "unsound", "steps with loads that are no numbers of tokens are left out")
    used = torch.nonzero(steps.any(dim=1) & sound).flatten()
    if len(used) == 0:
        return np.zeros((1, *tokens.shape[1:]))
    wide = torch.float64 if tokens.is_floating_point() else torch.int64
    parts = torch.tensor_split(used, min(most, len(used)))
    sums = [tokens[part].sum(dim=0, dtype=wide) for part in parts]
    windows: NDArray[np.float64] = torch.stack(sums).to("cpu", torch.float64).numpy()
    return windows


def _current(shape: tuple[int, ...], cluster: Any) -> Any:
    """The placement that runs, None at start and where it is of other ranks.

    A rank whose every slot has expert 0 was dead at the last plan.
    """
    from sglang.srt.eplb.expert_location import get_global_expert_location_metadata

    from eplb.errors import EplbError

    try:
        metadata = get_global_expert_location_metadata()
        running = np.asarray(metadata.physical_to_logical_map_cpu)
        if running.shape != (shape[0], cluster.num_slots):
            return None
        of_ranks = running.reshape(shape[0], cluster.num_gpus, -1)
        idle = np.flatnonzero(~of_ranks.any(axis=(0, 2)))
        may_die = len(idle) > 0 and _elastic() is not None
        had = replace(cluster, dead=tuple(idle.tolist()) if may_die else ())
        held = np.where(empty_slots(had), -1, running)
        return Placement(held, shape[1], had)
    except (AttributeError, EplbError):
        return None
