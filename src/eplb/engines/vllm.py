"""The plug-in of vLLM: this planner in place of the engine's policy for expert parallelism.

vLLM calls `register` in each of its processes, as it does with all of `vllm.general_plugins`. It
has no place to register a policy at; its table of policies is read after plug-ins have run, so the
policy called "default" is replaced there. docs/vllm.md tells how to use it.
"""

import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb.engines.control import Command, Control
from eplb.engines.initial import Initial
from eplb.engines.live import Call, History
from eplb.engines.log import failure, switched_on
from eplb.engines.metrics import Counted
from eplb.engines.ranks import Agreement, Member, default_member
from eplb.engines.rebalances import Reason, Rebalances, Seen
from eplb.engines.rows import Rows
from eplb.engines.settings import Settings
from eplb.engines.start import around, compile_kernels, switch_on, unknown_arguments
from eplb.engines.trial import INTERVALS, Trials
from eplb.engines.vllm_batches import VllmBatches
from eplb.errors import LoadsError, PolicyError
from eplb.placement import Placement

# A child of the engine's own logger, so that it is written as the engine's lines are.
_logger = logging.getLogger("vllm.eplb")

_ARGUMENTS = (
    "weight",
    "num_replicas",
    "num_groups",
    "num_nodes",
    "num_ranks",
    "old_global_expert_indices",
)
_CHECKED = ("0.31.0", "0.32.0", "0.33.0")
_OWN = "vLLM's own policy"
_STATE = "vllm.distributed.eplb.eplb_state", "EplbState"


def register() -> None:
    """Put the planner in place where EPLB_POLICY says so; say so, or why not. Never raises."""
    where = (*_STATE, "add_model")
    switch_on(_replace, where, _member, _OWN, "vLLM's own EPLB policy stays", _logger)


def _member() -> Member | None:
    """This process in the group that experts are spread over."""
    try:
        from vllm.distributed.parallel_state import get_ep_group

        group = get_ep_group()
    except Exception:  # no such group has been made
        return default_member()
    # A group that can grow has a store of its own.
    own = getattr(group, "tcp_store_group", None)
    store = getattr(own or default_member(), "store", None)
    if store is None:
        return None
    return Member(group, store, f"rank{group.ranks[0]}", group.rank_in_group, len(group.ranks))


def _replace(settings: Settings) -> Callable[..., object] | None:
    """Put the planner into vLLM's table; what to do where the engine adds a model to its state, or
    nothing where the planner is in the table already.
    """
    import vllm
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    theirs = EPLB_POLICIES["default"]
    if getattr(theirs, "eplb_settings", None) is not None:
        return None
    version = str(getattr(vllm, "__version__", "of an unknown version"))
    wrong = difference()
    if wrong:
        raise PolicyError(f"vLLM {version}: {wrong}")
    rebalances = Rebalances(_logger, settings, _OWN)
    rows = Rows(settings)
    policy = EPLB_POLICIES["default"] = make_policy(theirs, settings, rebalances, rows)
    initial = policy.eplb_initial
    batches = VllmBatches(policy.eplb_agreement, wanted=settings.dispatch == "batch")
    metrics = Counted(rebalances, settings.role, settings.metrics)

    def step(theirs: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        batches.agree()
        answer = initial.step(theirs, state, *args, **kwargs)
        metrics.step(state.expert_rearrangement_step_interval)
        models = getattr(state, "model_states", {}).values()
        # Experts of a model may still be moved in the background.
        if not any(getattr(each, "rebalanced", False) for each in models):
            metrics.in_force()
        return answer

    around(*_STATE, "step", step)

    def at_start(state: Any, model: Any = None, *_: Any, **__: Any) -> None:
        compile_kernels(_logger, tables=settings.dispatch == "table")
        if settings.dispatch == "table":
            rows.take_over()
        batches.read(state, model)
        initial.read(state, model)
        try:
            member = _member()
            if member is None or member.rank == 0:
                switched_on(_logger, "vLLM's policy", settings, f"vLLM {version}", _CHECKED)
                metrics.begin(_logger)
            of_model = model.num_moe_layers, model.num_logical_experts
            rebalances.weigh(lambda: model.expert_weights[0], of_model)
        except Exception as error:
            failure(_logger, error, "the log does not say what the planner does")

    return at_start


def difference() -> str:
    """What vLLM's policy has that this plug-in does not know; nothing where it fits.

    Raises:
        ImportError: there is no vLLM, or none with a table of policies.
    """
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    function = getattr(EPLB_POLICIES["default"], "rebalance_experts", None)
    if function is None:
        return "its policy has no rebalance_experts"
    if wrong := unknown_arguments("rebalance_experts", function, _ARGUMENTS):
        return wrong
    signature = inspect.signature(function)
    returned = str(getattr(signature.return_annotation, "__name__", signature.return_annotation))
    if not returned.endswith("Tensor"):
        return f"rebalance_experts returns {returned}; known is one Tensor, physical to logical"
    return ""


def make_policy(
    theirs: Any,
    settings: Settings,
    rebalances: Rebalances | None = None,
    rows: Rows | None = None,
) -> Any:
    """A policy class for vLLM's table, that answers with vLLM's own class where it fails itself."""
    told = rebalances or Rebalances(_logger, settings, _OWN)
    history, trials = History(settings.windows), Trials()
    parts = rows or Rows(settings)
    # The engine's own thread plans at start and where ranks come or go, another one meanwhile.
    lock = threading.Lock()

    def forget() -> None:
        with lock:
            history.clear()
            trials.clear()
            parts.clear()

    agreement = Agreement(_member, settings, _OWN, _logger, forget)
    initial = Initial(settings.initial, agreement.alike, _logger)
    control = Control(settings.control, agreement.alike, _logger)
    recorder = None
    if settings.record is not None:
        try:
            from eplb.engines.recording import Recorder

            folder = settings.record / (settings.role or "")
            recorder = Recorder(folder, settings.record_files, _logger)
        except Exception as error:
            failure(_logger, error, "loads are not recorded, and planning goes on")
    planner = _Planner(settings, history, trials, initial, recorder)

    class EplbPolicy(theirs):  # type: ignore[misc]  # known where the engine runs
        """vLLM's policy, but for the planning."""

        eplb_settings = settings
        eplb_initial = initial
        eplb_agreement = agreement

        @classmethod
        def rebalance_experts(
            cls,
            weight: Any,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Any = None,
        ) -> Any:
            """As vLLM's: loads [L, E] and the map that runs [L, P'] to a map [L, P], on the CPU."""
            import torch

            call = Call(num_replicas, num_groups, num_nodes, num_ranks)
            old = old_global_expert_indices
            running = None if old is None else old.detach().to("cpu", torch.int64).numpy()
            scaling = running is not None and (
                running.shape[1] != num_replicas or bool((running < 0).any())
            )

            seen = Seen()
            kind = f"{call}/{tuple(weight.shape)}"

            def plan() -> NDArray[np.int64]:
                # Before the lock: ranks wait for each other here.
                asked = control.command(kind, tuple(weight.shape), call.cluster())
                with lock:
                    return planner.plan(call, weight, running, kind, seen, asked, scaling=scaling)

            return agreement.answer(
                kind,
                plan,
                None if scaling or running is None else running.copy(),
                torch.from_numpy,
                lambda: theirs.rebalance_experts(
                    weight, num_replicas, num_groups, num_nodes, num_ranks, old
                ),
                lambda outcome: told.tell(kind, seen, outcome),
                lambda phy2log: parts.make(phy2log, weight.shape[1], call, seen.windows),
            )

    return EplbPolicy


@dataclass(frozen=True)
class _Planner:
    """What plans of one engine go by."""

    settings: Settings
    history: History
    trials: Trials
    initial: Initial
    recorder: Any

    def plan(
        self,
        call: Call,
        weight: Any,
        running: NDArray[np.int64] | None,
        kind: str,
        seen: Seen,
        asked: Command | None,
        *,
        scaling: bool,
    ) -> NDArray[np.int64]:
        """[L, P] the map to run next."""
        from eplb.engines.live import next_placement, running_placement
        from eplb.loads import as_array, check_loads

        loads = as_array(weight)
        self.history.see(call, loads.shape, scaling=scaling)
        try:
            loads = check_loads(loads)
        except LoadsError as error:
            if loads.ndim != 2 or loads.size == 0:
                raise
            # The ranks have added these loads up among them, so each of them leaves the window out.
            failure(_logger, error, "this window is left out")
            loads = np.zeros(loads.shape)
        cluster = call.cluster()
        current = None
        if running is not None:
            current = running_placement(running, loads.shape[1], cluster.slots_per_gpu)
        seen.num_experts, seen.cluster, seen.current = loads.shape[1], cluster, current
        if loads.any():
            seen.windows = self.history.add(call, loads)
            seen.new = 1
            if self.recorder is not None:
                _record(self.recorder, loads)
        begun = self.initial.take((*loads.shape, call.num_slots), loaded=bool(loads.any()))
        if begun is not None:
            seen.reason = Reason("asked", "the placement of EPLB_INITIAL")
            return begun
        if current is not None and loads.any() and not scaling:
            tried = self.trials.judge(kind, current, loads[None])
            if asked is None and tried is not None:
                if tried.phy2log is not None:
                    # It would be made again for the windows before it.
                    self.history.keep(call, loads.shape, INTERVALS)
                asked = tried
            if asked is not None:
                seen.reason = asked.reason
                return asked.map_after(current.phy2log)
        if seen.windows is not None:
            made = next_placement(seen.windows, cluster, call.num_groups, current, self.settings)
            self.trials.begin(kind, current, Placement(made, loads.shape[1], cluster))
            return made
        if current is not None and not scaling:
            # No load is known: so it is when the engine starts and tries what a plan costs.
            phy2log: NDArray[np.int64] = current.phy2log.copy()
            return phy2log
        even = np.ones((1, *loads.shape))
        return next_placement(even, cluster, call.num_groups, current, self.settings)


def _record(recorder: Any, loads: NDArray[np.float64]) -> None:
    """Record loads on the first rank of those that share them.

    It never raises: this rank alone would then answer with another map than the others.
    """
    try:
        from vllm.distributed.parallel_state import get_ep_group

        group = get_ep_group()
        if group.rank_in_group == 0:
            recorder.add(loads, group.ranks[0])
    except Exception as error:
        failure(_logger, error, "loads are not recorded, and planning goes on")
