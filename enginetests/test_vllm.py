"""vLLM's own registry, state, maps and transfers, with this planner in.

Stand-ins are those of vllm_ranks.py, where the engine's state runs in several processes; here the
engine's functions are called as they are.
"""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from processes import in_processes
from recorded import DEEPSEEK_V3, load_recorded
from vllm.distributed.eplb import policy as policies
from vllm.distributed.eplb.eplb_state import compute_logical_maps
from vllm.distributed.eplb.policy import EPLB_POLICIES, DefaultEplbPolicy

import eplb
from eplb.engines.rows import Rows
from eplb.engines.settings import Settings
from eplb.engines.vllm import make_policy, register
from eplb.formats.placements import save_placement

try:
    from vllm.distributed.eplb.migration_scheduler import schedule_migration_batches_for_layers
except ModuleNotFoundError:  # before 0.32
    schedule_migration_batches_for_layers = None

EXPERTS, SLOTS, RANKS = 256, 288, 32


@pytest.fixture
def policy(switched_on: None) -> Iterator[Any]:
    """What stands in vLLM's table after it has loaded this plug-in."""
    register()
    yield EPLB_POLICIES["default"]
    EPLB_POLICIES["default"] = DefaultEplbPolicy


@pytest.fixture(scope="module")
def loads(traces: Path) -> torch.Tensor:
    """[6, L, E] as vLLM adds them up."""
    windows = np.stack([load_recorded(traces, name)[3:] for name in DEEPSEEK_V3])
    return torch.from_numpy(windows).to(torch.int64)


def start(num_layers: int, num_slots: int = SLOTS) -> torch.Tensor:
    """The map that vLLM starts with."""
    return (torch.arange(num_slots) % EXPERTS).repeat(num_layers, 1)


def placement(phy2log: torch.Tensor, num_ranks: int = RANKS) -> eplb.Placement:
    cluster = eplb.Cluster.with_slots(phy2log.shape[1], num_ranks)
    return eplb.Placement(phy2log.numpy(), EXPERTS, cluster)


def answers(policy: Any, loads: torch.Tensor) -> list[torch.Tensor]:
    """The maps that one rank runs, window by window."""
    maps = [start(loads.shape[1])]
    for window in loads:
        maps.append(policy.rebalance_experts(window, SLOTS, 8, 4, RANKS, maps[-1]))
    return maps


def ranks(
    tmp_path: Path, *cases: list[dict[str, Any]], interpreted: bool = False
) -> list[list[dict[str, Any]]]:
    """What ranks of an engine did in each case, by rank; a case has each rank's settings."""
    given = list(zip(*cases, strict=True))
    arguments = [(rank, len(given), tmp_path, list(mine)) for rank, mine in enumerate(given)]
    if interpreted:
        variables = {"EPLB_POLICY": "eplb", "TRITON_INTERPRET": "1"}
        did = in_processes(None, "vllm_interpreted.rank_of", *arguments, environment=variables)
    else:
        did = in_processes("vllm_loaded", "vllm_ranks.rank_of", *arguments)
    return [list(case) for case in zip(*did, strict=True)]


def test_ranks_run_the_same_maps_and_hold_the_weights_that_these_say(tmp_path: Path) -> None:
    usual = {"environment": {"EPLB_POLICY": "eplb"}, "async": False, "fault": "", "loaded": True}
    ((first, *others),) = ranks(tmp_path, [usual] * 4)
    assert first["policy"] == "EplbPolicy"
    assert all(rank["maps"] == first["maps"] for rank in others)
    assert not any(rank["wrong"] for rank in [first, *others])
    maps = np.array(first["maps"])
    changed = (maps[1:] != maps[:-1]).any(axis=(1, 2)).sum()
    assert 0 < changed < len(maps) - 1  # when it rebalances, and only then
    loud = [
        [sum(each in line for line in rank["lines"]) for each in ("this planner replaces", "kB)")]
        for rank in (first, *others)
    ]
    # The first rebalance comes in the first pass, before a map is noted.
    assert loud == [[1, changed + 1], [0, 0], [0, 0], [0, 0]]


def case(background: bool, odd: dict[str, str], fault: str = "") -> list[dict[str, Any]]:
    """Two ranks, of which the second is set otherwise, or fails."""
    usual = {"EPLB_POLICY": "eplb", "EPLB_MAX_MOVES": "20%"}
    return [
        {"async": background, "environment": usual, "fault": ""},
        {"async": background, "environment": {**usual, **odd}, "fault": fault},
    ]


@pytest.mark.parametrize("background", [False, True])
def test_ranks_unlike_run_the_same_maps_and_say_which_rank(
    background: bool, tmp_path: Path
) -> None:
    odd = {
        "": case(background, {}),
        "EPLB_WINDOWS 2": case(background, {"EPLB_WINDOWS": "2"}),
        "EPLB_MAX_MOVES 4": case(background, {"EPLB_MAX_MOVES": "4"}),
        "EPLB_EFFORT default": case(background, {"EPLB_EFFORT": "default"}),
        "EPLB_WINDOWS is 0": case(background, {"EPLB_WINDOWS": "0"}),
        "EPLB_POLICY is 'on'": case(background, {"EPLB_POLICY": "on"}),
        "did not answer": case(background, {"EPLB_POLICY": "default"}),
        "none is left": case(background, {}, "raises"),
        "a map of digest": case(background, {}, "history"),
    }
    for rank in odd["did not answer"]:
        rank["patience"] = 3.0
    did = dict(zip(odd, ranks(tmp_path, *odd.values()), strict=True))
    own = did["did not answer"][0]["maps"]
    for said, both in did.items():
        assert both[0]["maps"] == both[1]["maps"], said
        assert both[0]["wrong"] == both[1]["wrong"] == 0, said
        assert both[0]["seconds"] < 10.0, said
        told = [line for line in both[0]["lines"] if "rank 1" in line]
        assert bool(told) == bool(said)
        assert all(said in line for line in told)
        if said in ("none is left", "a map of digest", ""):
            assert both[0]["maps"] != own
            assert len(told) == bool(said)
        else:
            assert both[0]["maps"] == own
            assert len(told) == 4  # the profile run and three rebalances


@pytest.mark.parametrize("background", [False, True])
def test_it_starts_with_the_placement_of_our_file(background: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = eplb.plan(rng.lognormal(5.0, 1.0, (4, 16)), eplb.Cluster(2, 1, 12)).placement
    other = eplb.plan(rng.lognormal(5.0, 1.0, (3, 16)), eplb.Cluster(2, 1, 12)).placement
    paths = [tmp_path / name for name in ("made.json", "other.json")]
    for placement, path in zip((made, other), paths, strict=True):
        save_placement(placement, path, to="vllm")
    wanted, wrong = ({"EPLB_INITIAL": str(path)} for path in paths)
    cases = [
        case(background, {}),
        case(background, {}),
        case(background, {}),
        case(background, wrong),
    ]
    for each in cases[1]:
        each["environment"] |= wanted
    for each in cases[2]:
        each["environment"] |= wrong
    cases[3][0]["environment"] |= wanted
    plain, begun, of_another_model, unlike = ranks(tmp_path, *cases)
    for both in (plain, begun, of_another_model, unlike):
        assert both[0]["maps"] == both[1]["maps"]
        assert both[0]["wrong"] == both[1]["wrong"] == 0
    assert begun[0]["maps"][0] == made.phy2log.tolist()  # after the first pass
    assert plain[0]["maps"][0] != begun[0]["maps"][0]
    assert of_another_model[0]["maps"] == plain[0]["maps"]
    assert sum("other.json: has 3 layers" in line for line in of_another_model[0]["lines"]) == 1
    assert any("rank 1 has EPLB_INITIAL of digest" in line for line in unlike[0]["lines"])


def test_copies_take_the_parts_planned_for(tmp_path: Path) -> None:
    table = {"EPLB_DISPATCH": "table"}
    now, meanwhile = (
        [each | {"environment": each["environment"] | table} for each in case(background, {})]
        for background in (False, True)
    )
    odd = [
        ("", now),
        ("", meanwhile),
        ("EPLB_DISPATCH table", case(False, table)),
        ("a map of digest", [meanwhile[0], meanwhile[1] | {"fault": "history"}]),
    ]
    did = ranks(tmp_path, *(each for _, each in odd))
    for (said, _), both in zip(odd, did, strict=True):
        for what in ("maps", "parts"):
            assert both[0][what] == both[1][what], said
        assert both[0]["wrong"] == both[1]["wrong"] == 0, said
        assert all(said in line for line in both[0]["lines"] if "rank 1" in line)
    for first, _ in did[:2]:
        parts, maps = np.array(first["parts"]), np.array(first["maps"])
        logcnt = (maps[-1][:, :, None] == np.arange(16)).sum(axis=1)
        copied = np.take_along_axis(logcnt, maps[-1], axis=1) > 1
        assert (parts[-1][~copied] == 1).all()
        assert parts[-1][copied].sum() == 1024 * (logcnt > 1).sum()
        assert len(set(parts[-1][copied].tolist())) > 4
        assert any("copies take tokens by the loads" in line for line in first["lines"])
    assert np.max(did[2][0]["parts"]) == 1


def peak(did: dict[str, Any]) -> float:
    """The part of its real tokens that a rank sends to the busier of two, on average."""
    slots = np.array(did["slots"])[:, :, :-8]  # the last rows pad
    second = (slots >= slots.max() // 2 + 1).mean(axis=(2, 3))
    return float(np.maximum(second, 1.0 - second).mean())


def test_tokens_are_dispatched_by_a_table_or_by_batch_in_its_own_kernel(tmp_path: Path) -> None:
    """By vLLM's router, kernel and state: every token goes to its expert and is counted there."""
    by_batch = {"EPLB_DISPATCH": "batch"}
    both = [case(background, by_batch) for background in (False, True)]
    for each in both:
        each[0]["environment"] |= by_batch
    unlike, failing = case(False, by_batch), [both[0][0], both[0][1] | {"fault": "tries"}]
    table = case(False, {"EPLB_DISPATCH": "table"})
    table[0] = table[1]
    cases = [case(False, {}), both[0], failing, unlike, both[1], table]
    did = ranks(tmp_path, *cases, interpreted=True)
    engine, now, fails, odd, meanwhile, by_table = did
    for each in did:
        assert each[0]["maps"] == each[1]["maps"]
        assert each[0]["wrong"] == each[1]["wrong"] == 0
    # The planner is shown the same loads, whoever takes experts to slots.
    assert now[0]["maps"] == engine[0]["maps"] == fails[0]["maps"]
    for rank in (0, 1):
        assert peak(engine[rank]) > 0.52
        assert max(peak(each[rank]) for each in (now, meanwhile)) < 0.502
        assert fails[rank]["slots"] == engine[rank]["slots"]
    said = "each batch is split over copies by its own tokens"
    assert [[sum(said in line for line in rank["lines"]) for rank in each] for each in did] == [
        [0, 0],
        [1, 0],
        [0, 0],
        [0, 0],
        [1, 0],
        [0, 0],
    ]
    for did_by_table in by_table:
        parts, logical = (np.array(did_by_table[name][-1]) for name in ("parts", "maps"))
        rows = [
            [of_layer[experts == expert].sum() for expert in experts]
            for of_layer, experts in zip(parts, logical, strict=True)
        ]
        # Each expert's tokens are at as many places as its row has entries, or that row has one.
        assert np.max(rows) == 1024
        assert np.array_equal(did_by_table["taken"], parts * 1024 // np.array(rows))
    assert any("rank 1 has EPLB_DISPATCH batch" in line for line in odd[0]["lines"])
    assert any("none is left; vLLM's own choice" in line for line in fails[1]["lines"])
    assert any(
        "EPLB_DISPATCH: rank 1 cannot plan (MemoryError: none is left)" in line
        for line in fails[0]["lines"]
    )


def commits() -> dict[str, Any]:
    from vllm.distributed.eplb import eplb_state

    return {name: getattr(eplb_state, name) for name in vars(eplb_state) if "_commit" in name}


def test_an_engine_with_other_commits_keeps_its_rows(
    policy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.distributed.eplb import eplb_state

    monkeypatch.setattr(eplb_state, "_commit_eplb_maps_for_layer", lambda state, layer: None)
    theirs = commits()
    Rows(Settings(dispatch="table")).take_over()
    assert commits() == theirs
    assert "_commit_eplb_maps_for_layer takes state, layer" in caplog.text
    assert "vLLM's own map of copies stays" in caplog.text


@pytest.mark.parametrize("fails", ["", "make", "write"])
def test_tokens_go_to_their_experts_by_our_rows_and_by_its_own_where_these_fail(
    fails: str,
    loads: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from vllm.distributed.eplb import eplb_state

    for name, function in commits().items():
        monkeypatch.setattr(eplb_state, name, function)  # put back afterwards
    monkeypatch.setattr(eplb_state, "PIN_MEMORY", False)
    settings = Settings(dispatch="table")
    rows = Rows(settings)
    rows.take_over()
    windows, layers = loads[:3, :4], 4
    *_, new = answers(make_policy(DefaultEplbPolicy, settings, rows=rows), windows)
    if fails:
        broken = {"make": "entries_by_slot", "write": "rows_of_slots"}[fails]
        with patch(f"eplb.engines.rows.{broken}", side_effect=MemoryError("all is used")):
            again = make_policy(DefaultEplbPolicy, settings, rows=rows)
            new = again.rebalance_experts(windows[1], SLOTS, 8, 4, RANKS, new)
            state = committed(new, layers)
        assert caplog.text.count("all is used; vLLM's own map of copies is used") == 1
    else:
        state = committed(new, layers)
        by_layer = committed(new, layers, by_layer=True)
        assert torch.equal(by_layer.logical_to_physical_map, state.logical_to_physical_map)
        assert torch.equal(by_layer.logical_replica_count, state.logical_replica_count)
    # As vLLM's kernel maps, and counts what slots take.
    ours = placement(new)
    made = eplb.dispatch(ours, windows.numpy())
    for layer in range(layers):
        token = torch.arange(200_000)
        chance = windows[:, layer].sum(dim=0).double()
        chosen = torch.multinomial(chance, len(token), True, generator=torch.manual_seed(0))
        count = state.logical_replica_count[layer][chosen]
        slots = state.logical_to_physical_map[layer][
            chosen, (token * 2654435769 & 0xFFFFFFFF) % count
        ]
        assert torch.equal(new[layer][slots], chosen)
        recorded = torch.bincount(slots, minlength=SLOTS)
        counted = torch.zeros(EXPERTS, dtype=torch.int64).index_add_(0, new[layer], recorded)
        assert torch.equal(counted, torch.bincount(chosen, minlength=EXPERTS))
        parts = (recorded / counted[new[layer]]).numpy()
        even = 1.0 / ours.logcnt[layer, new[layer].numpy()]
        busy = counted[new[layer]].numpy() > 2000
        wanted = even if fails else (even + made.split[layer]) / 2
        assert np.abs(parts - wanted)[busy].max() < 0.05


def committed(new: torch.Tensor, layers: int, *, by_layer: bool = False) -> Any:
    """vLLM's state after its own functions have put a map in force."""
    from vllm.distributed.eplb import eplb_state

    state = SimpleNamespace(
        physical_to_logical_map=torch.zeros_like(new),
        logical_to_physical_map=torch.full((layers, EXPERTS, 1024), -1),
        logical_replica_count=torch.zeros((layers, EXPERTS), dtype=torch.int64),
    )
    if by_layer:
        for layer in range(layers):
            eplb_state._commit_eplb_maps_for_layer(
                state, new_physical_to_logical_map=new[layer], layer=layer
            )
    else:
        eplb_state._commit_eplb_maps(state, new_physical_to_logical_map=new)
    return state


def test_maps_and_transfer_plans_are_made_of_our_answer(policy: Any, loads: torch.Tensor) -> None:
    *_, old, new = answers(policy, loads[:3])
    assert (new.dtype, new.device.type, new.shape) == (torch.int64, "cpu", (58, SLOTS))
    ours = placement(new)
    log2phy, logcnt = compute_logical_maps(new, EXPERTS)
    assert np.array_equal(logcnt.numpy(), ours.logcnt)
    assert np.array_equal(log2phy.numpy(), ours.log2phy)
    if schedule_migration_batches_for_layers is None:
        return
    batches = schedule_migration_batches_for_layers(SLOTS // RANKS, old.numpy(), new.numpy())
    sent = sum(len(flow.expert_ids) for layer in batches for batch in layer for flow in batch)
    assert 0 < sent == ours.moves_from(placement(old))


def test_unseen_loads_are_balanced_better_than_by_its_own_policy(
    policy: Any, loads: torch.Tensor
) -> None:
    ours = answers(policy, loads[:5])[-1]
    theirs = answers(DefaultEplbPolicy, loads[:5])[-1]
    unseen = loads[5].numpy()
    gained = placement(ours).balancedness(unseen) - placement(theirs).balancedness(unseen)
    assert gained > 0.05


def test_noise_moves_few_experts(policy: Any, loads: torch.Tensor) -> None:
    draw = np.random.default_rng(3)
    windows = [
        torch.from_numpy(np.rint(loads[0].numpy() * draw.uniform(0.95, 1.05, loads[0].shape)))
        for _ in range(5)
    ]
    maps = answers(policy, torch.stack(windows).to(torch.int64))
    all_slots = 58 * SLOTS
    for old, new in itertools.pairwise(maps[1:]):
        assert placement(new).moves_from(placement(old)) <= 0.05 * all_slots
    theirs = answers(DefaultEplbPolicy, torch.stack(windows).to(torch.int64))
    assert placement(theirs[3]).moves_from(placement(theirs[2])) > 0.5 * all_slots


def test_experts_that_stay_on_a_rank_stay_in_their_slot(policy: Any, loads: torch.Tensor) -> None:
    *_, old, new = answers(policy, loads[:3])
    by_rank = zip(old.reshape(-1, 9).tolist(), new.reshape(-1, 9).tolist(), strict=True)
    for before, after in by_rank:
        for slot, expert in enumerate(after):
            assert expert not in before or before[slot] == expert or after.count(expert) > 1


def test_no_load_keeps_what_runs(policy: Any, loads: torch.Tensor) -> None:
    maps = answers(policy, loads[:2])
    none = torch.zeros_like(loads[0])
    for running in (maps[0], maps[-1]):
        kept = policy.rebalance_experts(none, SLOTS, 8, 4, RANKS, running)
        assert torch.equal(kept, running)
        assert kept.data_ptr() != running.data_ptr()


def test_what_a_joining_rank_has_not_seen_counts_for_no_rank(
    switched_on: None, loads: torch.Tensor
) -> None:
    """Ranks come: old ones know of loads that new ones do not, and all must answer alike."""

    def rank() -> Any:
        EPLB_POLICIES["default"] = DefaultEplbPolicy
        register()
        return EPLB_POLICIES["default"]

    veteran, joining = rank(), rank()
    EPLB_POLICIES["default"] = DefaultEplbPolicy
    running = answers(veteran, loads[:4])[-1]
    grown = torch.cat([running, torch.full((58, 72), -1)], dim=1)
    maps = [each.rebalance_experts(loads[3], 360, 8, 5, 40, grown) for each in (veteran, joining)]
    assert torch.equal(*maps)
    assert placement(maps[0], 40).num_duplicates == 0
    later = [
        each.rebalance_experts(loads[4], 360, 8, 5, 40, maps[0]) for each in (veteran, joining)
    ]
    assert torch.equal(*later)
    # Ranks go, and others come in their place.
    fewer = [veteran.rebalance_experts(loads[4], SLOTS, 8, 4, RANKS, later[0]) for _ in range(2)]
    assert placement(fewer[0]).num_duplicates == 0
    again = torch.cat([fewer[0], torch.full((58, 72), -1)], dim=1)
    new_again = rank()
    EPLB_POLICIES["default"] = DefaultEplbPolicy
    maps = [each.rebalance_experts(loads[5], 360, 8, 5, 40, again) for each in (veteran, new_again)]
    assert torch.equal(*maps)


def test_where_it_fails_the_engine_answers(
    policy: Any, loads: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = (loads[0], SLOTS, 8, 4, RANKS, start(58))
    with patch("eplb.engines.live.plan", side_effect=MemoryError("all is used")):
        ours = [policy.rebalance_experts(*arguments) for _ in range(3)]
    theirs = DefaultEplbPolicy.rebalance_experts(*arguments)
    assert all(torch.equal(each, theirs) for each in ours)
    assert caplog.text.count("all is used; vLLM's own policy answers") == 1


def test_what_its_own_policy_raises_it_still_raises(
    policy: Any, loads: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(AssertionError):
        policy.rebalance_experts(loads[0], 250, 8, 4, RANKS, start(58))
    assert "250 slots do not divide over 32 GPUs" in caplog.text


def test_off_unless_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for value in ("", "default", "off"):
        monkeypatch.setenv("EPLB_POLICY", value)
        register()
        assert list(EPLB_POLICIES.values()) == [DefaultEplbPolicy]
    assert not caplog.text
    monkeypatch.setenv("EPLB_POLICY", "eplb")
    monkeypatch.setenv("EPLB_WINDOWS", "0")
    register()
    assert list(EPLB_POLICIES.values()) == [DefaultEplbPolicy]
    assert "EPLB_WINDOWS is 0" in caplog.text
    assert "vLLM's own EPLB policy stays" in caplog.text


class _Older:
    """The policy of vLLM 0.13: three maps, and no map that runs."""

    @classmethod
    def rebalance_experts(
        cls, weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_ranks: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raise AssertionError("the plug-in goes by the signature alone")


class _Tuples(DefaultEplbPolicy):  # type: ignore[misc]
    """The policy of vLLM 0.17: three maps."""

    @classmethod
    def rebalance_experts(
        cls,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raise AssertionError("the plug-in goes by the signature alone")


@pytest.mark.parametrize(
    ("theirs", "said"),
    [(_Older, "known is weight"), (_Tuples, "known is one Tensor"), (object, "has no rebal")],
)
def test_an_engine_with_another_interface_is_left_alone(
    theirs: Any, said: str, switched_on: None, caplog: pytest.LogCaptureFixture
) -> None:
    with patch.object(policies, "EPLB_POLICIES", {"default": theirs}):
        register()
        assert policies.EPLB_POLICIES["default"] is theirs
    assert said in caplog.text


def test_loads_are_recorded_by_the_first_rank(
    switched_on: None,
    loads: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EPLB_RECORD", str(tmp_path / "made" / "here"))
    monkeypatch.setenv("EPLB_ROLE", "decode")
    from vllm.distributed import parallel_state

    for rank in (0, 1):
        register()
        group = SimpleNamespace(ranks=[0, 1], rank_in_group=rank)
        monkeypatch.setattr(parallel_state, "_EP", group)
        answers(EPLB_POLICIES["default"], loads[: 3 - rank])
        EPLB_POLICIES["default"] = DefaultEplbPolicy
    folder = tmp_path / "made" / "here" / "decode" / "58x256"
    for _ in range(100):
        if len(list(folder.glob("loads-*.npz"))) == 3:
            break
        time.sleep(0.05)
    assert np.array_equal(eplb.load_trace(folder).loads, loads[:3].numpy())
