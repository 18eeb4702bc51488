"""What docs/moves.md and docs/migrate.md say is so. Their commands run in test_docs.py."""

import re
from typing import Any

from recorded import ROOT
from simulator import held_at_every_instant

import eplb

DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def executed(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def test_python_on_moves() -> None:
    names = executed("moves.md")
    running, loads = names["running"], names["loads"]
    assert names["few"].moves <= 500
    assert 0 < names["dear"].moves < 1000
    curve, point = names["curve"], names["point"]
    assert curve.balancedness[point] >= 0.98
    assert curve.placements[point].moves_from(running) == curve.moves[point]
    assert names["few"].placement.balancedness(loads) > running.balancedness(loads)
    found = names["found"]
    assert (found.action, found.verdict.advised) == ("move", True)
    assert found.placement is not None


def test_python_on_migrations() -> None:
    names = executed("migrate.md")
    moving, old, new = names["moving"], names["old"], names["new"]
    assert moving.num_transfers == new.moves_from(old)
    assert moving.num_waves >= moving.fewest_waves
    assert moving.seconds > 0.0
    assert moving.spare_slots.max() <= 9
    some = [0, 1]
    before, after = (eplb.Placement(each.phy2log[some], 256, each.cluster) for each in (old, new))
    few = eplb.migrate(before, after, experts_at_once=4, spare_slots=9)
    held_at_every_instant(before, after, few)
