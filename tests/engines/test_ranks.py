"""Ranks that are set unalike or fail, as processes of a group: all answer the same, and say why."""

import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb.engines import ranks
from eplb.engines.ranks import _named, _verdict
from eplb.engines.settings import Settings

torch = pytest.importorskip("torch", reason="ranks compare through torch's stores")

PROCESS = Path(__file__).with_name("rank_process.py")
STEPS = [{"loads": number} for number in range(4)]

Group = Callable[..., list[dict[str, Any]]]


def begun() -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(PROCESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(process: "subprocess.Popen[str]") -> str:
    """The next line of a process, or the test fails: one that hangs would be waited for."""
    assert process.stdout is not None
    assert connection.wait([process.stdout.fileno()], timeout=300.0), "a rank hangs"
    return process.stdout.readline()


@pytest.fixture(scope="module")
def processes() -> Iterator[list["subprocess.Popen[str]"]]:
    started = [begun() for _ in range(3)]
    for each in started:
        assert told(each) == "ready\n"
    yield started
    for each in started:
        each.kill()
        each.communicate()


@pytest.fixture
def group(processes: list["subprocess.Popen[str]"], tmp_path: Path) -> Group:
    """Run ranks, each in a process; what they did."""
    stores = itertools.count()

    def run(*given: dict[str, Any], places: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
        store = str(tmp_path / f"store{next(stores)}")
        chosen = [processes[place] for place in places[: len(given)]]
        for rank, (each, process) in enumerate(zip(given, chosen, strict=True)):
            line = {"environment": {}, "calls": STEPS, "store": store, "rank": rank}
            assert process.stdin is not None
            process.stdin.write(json.dumps(line | {"size": len(given)} | each) + "\n")
            process.stdin.flush()
        return [json.loads(told(process)) for process in chosen]

    return run


def agreed(did: list[dict[str, Any]]) -> list[Any]:
    """The maps, which all ranks have."""
    assert all(each["maps"] == did[0]["maps"] for each in did)
    maps: list[Any] = did[0]["maps"]
    assert all(sorted(set(row)) == list(range(8)) for each in maps for row in each)
    return maps


def test_ranks_that_are_alike_plan_and_say_nothing(group: Group) -> None:
    maps = agreed(group({}, {}, {}))
    assert maps == agreed(group({}))
    did = group({"environment": None}, {"environment": None})
    assert maps[0] != agreed(did)[0]


def test_the_first_rank_tells_of_each_rebalance(group: Group) -> None:
    odd = [*STEPS[:2], STEPS[2] | {"fault": "raises"}, STEPS[3]]
    first, *others = group({}, {"calls": odd}, {})
    assert not any(each["told"] for each in others)
    numbers = [line.split(":")[1].removeprefix(" rebalance ") for line in first["told"]]
    assert numbers == ["1", "2", "3", "4"]
    assert "experts move: first plan, from" in first["told"][0]
    assert "nothing moves: ranks disagree, what runs stays" in first["told"][2]
    first, _ = group({}, {"environment": None})
    assert all("vLLM's own policy answers" in line for line in first["told"])


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"EPLB_WINDOWS": "1"}, "rank 1 has EPLB_WINDOWS 1, rank 0 has EPLB_WINDOWS 16"),
        ({"EPLB_MAX_MOVES": "2"}, "rank 1 has EPLB_MAX_MOVES 2, rank 0 has EPLB_MAX_MOVES 5%"),
        ({"EPLB_EFFORT": "default"}, "rank 1 has EPLB_EFFORT default, rank 0 has EPLB_EFFORT fast"),
        ({"EPLB_DISPATCH": "table"}, "rank 1 has EPLB_DISPATCH table, rank 0 has EPLB_DISPATCH"),
        (None, "rank 1 did not answer"),
    ],
)
def test_a_rank_that_is_set_otherwise_leaves_planning_to_the_engine(
    environment: dict[str, str] | None, said: str, group: Group
) -> None:
    did = group({}, {"environment": environment}, {})
    maps = agreed(did)
    assert maps == agreed(group({"environment": None}))
    for rank, each in enumerate(did):
        if rank != 1 or environment is not None:
            assert sum(said in line for line in each["said"]) == len(STEPS)
            assert all("vLLM's own policy answers on all ranks" in line for line in each["said"])
        assert sum(each["seconds"]) < 15.0


def test_ranks_follow_what_all_of_them_are_asked(group: Group, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("pause", "also-pause", "resume")]
    for file in files:
        file.write_text(file.name.removeprefix("also-"))
    pause, also, resume = ({"environment": {"EPLB_CONTROL": str(file)}} for file in files)
    paused = agreed(group(pause, also, pause))
    assert all(each == paused[0] for each in paused)
    for engine in ({}, {"engine": "SGLang"}):
        did = group(pause | engine, also | engine, resume | engine)
        assert agreed(did) == agreed(group(engine, engine))
        for each in did:
            assert len(each["said"]) == len(STEPS)
            assert all("EPLB_CONTROL for" in line and "rank 2" in line for line in each["said"])
    did = group(pause, {}, pause)
    assert "rank 1 has EPLB_CONTROL none, rank 0 has EPLB_CONTROL set" in did[0]["said"][0]


def test_threads_that_plan_need_not_be_alike(group: Group) -> None:
    did = group({"environment": {"EPLB_THREADS": "1"}}, {"environment": {"EPLB_RECORD_FILES": "2"}})
    assert agreed(did) == agreed(group({}))
    assert not any(each["said"] for each in did)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raises", "rank 1 cannot plan (MemoryError: none is left)"),
        ("no history", "rank 1 has a map of digest"),
    ],
)
def test_what_runs_stays_where_a_rank_has_another_map_and_the_next_call_agrees(
    fault: str, said: str, group: Group
) -> None:
    odd = [*STEPS[:2], STEPS[2] | {"fault": fault}, STEPS[3]]
    did = group({}, {"calls": odd}, {})
    maps = agreed(did)
    assert maps[2] == maps[1]
    assert maps[3] != maps[2]
    for each in did:
        assert sum(said in line and "what runs stays" in line for line in each["said"]) == 1
    # All have dropped their histories: the last plan is for the last window alone.
    assert maps[:2] == agreed(group({}))[:2]
    assert maps[3] != agreed(group({}))[3]


def test_where_all_fail_alike_the_engine_answers_and_planning_goes_on(group: Group) -> None:
    odd = [STEPS[0], STEPS[1] | {"fault": "raises"}, STEPS[2]]
    maps = agreed(group({"calls": odd}, {"calls": odd}))
    own = agreed(group({"environment": None}))
    assert maps[1] == own[1]
    assert maps[2] != own[2]


@pytest.mark.parametrize("count", [3, 6])
def test_where_ranks_come_or_go_the_engine_answers_on_all(count: int, group: Group) -> None:
    scaled = {"loads": 2, "ranks": count}
    after = {"loads": 3, "ranks": count}
    calls = [*STEPS[:2], scaled, after]
    odd = [*STEPS[:2], scaled | {"fault": "raises"}, after]
    did = group({"calls": calls}, {"calls": odd})
    maps = agreed(did)
    assert len(maps[2][0]) == 3 * count
    own = agreed(group({"environment": None, "calls": calls}))
    assert maps[2] == own[2]
    assert maps[3] != own[3]
    assert any("vLLM's own policy answers on all ranks" in line for line in did[0]["said"])


def test_two_threads_in_another_order_agree(group: Group) -> None:
    both = [{"loads": 1, "ranks": 4}, {"loads": 2, "ranks": 6}]
    after = [{"loads": number, "ranks": 6} for number in (3, 4, 5)]
    did = group({"calls": [both, *after]}, {"calls": [both[::-1], *after]})
    maps = agreed(did)
    assert sum(each["seconds"][0] for each in did) < 3.0
    assert not any("did not answer" in line for each in did for line in each["said"])
    assert maps[-1] != agreed(group({"environment": None, "calls": [both, *after]}))[-1]


def test_a_rank_that_was_replaced_between_calls_agrees(group: Group) -> None:
    """4 ranks, others, 4 again, without a call between: those who stay know what others do not."""
    agreed(group({}, {}))
    did = group({"again": True}, {}, places=(0, 2))
    assert agreed(did) == agreed(group({}))
    assert not any(each["said"] for each in did)


def test_a_rank_that_ends_between_calls_holds_up_nobody(group: Group) -> None:
    did = group({"meet": False}, {"calls": STEPS[:2], "meet": False})
    assert did[0]["maps"][:2] == did[1]["maps"]
    assert "rank 1 did not answer" in did[0]["said"][0]
    assert max(did[0]["seconds"]) < 10.0
    assert did[0]["seconds"][3] < 1.0  # nobody is waited for twice


SGLANG = {"engine": "SGLang"}


def test_ranks_of_sglang_agree_too(group: Group) -> None:
    own = agreed(group({"environment": None}))
    maps = agreed(group(SGLANG, SGLANG))
    assert all(one != other for one, other in zip(maps, own, strict=True))
    did = group(SGLANG, SGLANG | {"environment": {"EPLB_WINDOWS": "3"}})
    assert agreed(did) == own
    assert all("rank 1 has EPLB_WINDOWS 3" in line for each in did for line in each["said"])
    odd = [STEPS[0], STEPS[1] | {"fault": "raises"}, *STEPS[2:]]
    did = group(SGLANG, SGLANG | {"calls": odd}, SGLANG)
    assert agreed(did)[1] == maps[0]
    assert agreed(did)[2] != own[2]
    assert "rank 1 cannot plan" in did[0]["said"][0]
    assert "what runs stays on all ranks" in did[0]["said"][0]


def test_the_first_rank_of_sglang_plans_alone_where_its_map_is_broadcast(group: Group) -> None:
    scaled = SGLANG | {"scaled": True, "meet": False}
    first, other = group(scaled, scaled | {"calls": []})
    assert first["maps"] == agreed(group(SGLANG, SGLANG))
    assert not other["maps"]
    assert max(first["seconds"]) < 2.0


def test_ranks_of_sglang_plan_around_one_that_died_and_with_it_once_it_is_back(
    group: Group,
) -> None:
    died = [{"loads": number, "alive": [1, 1, 0, 1]} for number in (1, 2)]
    back = {"loads": 3, "alive": [1, 1, 1, 1]}
    elastic = SGLANG | {"elastic": True, "meet": False}
    alive = elastic | {"calls": [STEPS[0], *died, "await it", back]}
    did = group(alive, alive, elastic | {"calls": [STEPS[0], "start again", back]})
    first, *around, last = agreed(did[:2])
    assert did[2]["maps"] == [first, last]
    assert first == agreed(group(SGLANG, SGLANG))[0]
    for phy2log in around:
        assert all(row[6:9] == [0, 0, 0] for row in phy2log)  # as its own algorithm has them
        assert all(set(row[:6] + row[9:]) == set(range(8)) for row in phy2log)
    assert all(any(row[6:9]) for row in last)
    assert not any(each["said"] for each in did)
    assert "experts move: ranks changed, as some have come or gone" in did[0]["told"][1]
    assert "experts move: ranks changed, as some have come or gone" not in did[0]["told"][2]
    assert "experts move: ranks changed, as some have come or gone" in did[0]["told"][3]


def test_a_rank_of_sglang_that_dies_unseen_holds_up_the_others_once(group: Group) -> None:
    elastic = SGLANG | {"elastic": True, "meet": False}
    died = {"loads": 2, "alive": [1, 1, 0, 1]}
    alive = elastic | {"calls": [*STEPS[:2], died, died]}
    did = group(alive, alive, elastic | {"calls": STEPS[:1]})
    maps = agreed(did[:2])
    assert maps[1] == agreed(group({"environment": None}))[1]
    assert all("rank 2 did not answer" in line for each in did[:2] for line in each["said"])
    assert max(max(each["seconds"]) for each in did) < 10.0
    assert max(max(each["seconds"][2:]) for each in did[:2]) < 2.0
    assert all(row[6:9] == [0, 0, 0] for phy2log in maps[2:] for row in phy2log)


def test_lines_stay_short() -> None:
    given = [[1, [f"EPLB_WINDOWS {1 + rank % 64}"], ""] for rank in range(4096)]
    line, missing = json.loads(_verdict(given, 1))
    assert not missing
    assert len(line) < 1500
    assert _named(range(20)) == "each of ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
    missing_line, missing = json.loads(_verdict([None] * 4096, 1))
    assert missing
    assert len(missing_line) < 300


class _Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        self.asked += 1
        return getattr(self.store, name)


@pytest.mark.parametrize("size", [2, 8])
def test_messages_of_a_rank_do_not_depend_on_their_number(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = torch.distributed.HashStore()
    counting = [_Counting(store) for _ in range(size)]
    members = [ranks._Ranks(ranks.Member(object(), store, "x", rank, size)) for rank in range(size)]
    for each, counted in zip(members, counting, strict=True):
        monkeypatch.setattr(each, "_store", lambda counted=counted: counted)
    answers = [ranks._of_map(np.arange(6)) for _ in range(size)]
    for step in range(3):
        for counted in counting:
            counted.asked = 0
        threads = [
            threading.Thread(target=each.compare, args=("map", answer))
            for each, answer in zip(members, answers, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert all(not each.wrong for each in members)
        assert max(counted.asked for counted in counting) <= 5 + (step == 0)


def test_ranks_that_meet_say_at_once_who_is_set_otherwise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = torch.distributed.HashStore()
    logger = logging.getLogger("sglang.eplb")
    both = []
    for rank, windows in enumerate((16, 3)):
        # An object of each rank's own, as processes have.
        mine = torch.distributed.PrefixStore("ranks", store)
        member = ranks.Member(logger, mine, "x", rank, 2)
        settings = Settings(windows=windows)
        both.append(
            ranks.Agreement(
                lambda member=member: member,  # type: ignore[misc]
                settings,
                "SGLang",
                logger,
                lambda: None,
            )
        )
        both[-1]._current()
    for _ in range(2):
        threads = [threading.Thread(target=each.meet) for each in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert not any(thread.is_alive() for thread in threads)
    lines = [record.message for record in caplog.records]
    said = "rank 1 has EPLB_WINDOWS 3, rank 0 has EPLB_WINDOWS 16; SGLang answers on all ranks"
    assert lines == [f"eplb: {said}"] * 2
