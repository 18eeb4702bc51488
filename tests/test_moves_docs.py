"""What docs/moves.md and docs/migrate.md say is so: their commands and Python run."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from simulator import held_at_every_instant
from test_cli import run

import eplb
from eplb.synthetic import deepseek_v3

DOCS = Path(__file__).resolve().parents[1] / "docs"

pytestmark = pytest.mark.jit


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
    assert (found.action, found.tried) == ("move", True)
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


@pytest.mark.parametrize(("page", "number"), [("moves.md", 5), ("migrate.md", 1)])
def test_commands_run(
    page: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loads = {name: deepseek_v3(seed=seed)[:2] for seed, name in enumerate(("earlier", "later"))}
    Path("later.json").write_text(json.dumps({"logical_count": loads["later"].tolist()}))
    cluster = eplb.Cluster(32, 1, 9)
    placements = {name: eplb.plan(each, cluster).placement for name, each in loads.items()}
    for name, of in (("running", "earlier"), ("old", "earlier"), ("new", "later")):
        eplb.save_placement(placements[of], f"{name}.json", to="sglang")
    lines = "".join(blocks(page, "console")).splitlines()
    commands = [shlex.split(line.removeprefix("$ eplb ")) for line in lines]
    assert len(commands) == number
    for command in commands:
        done = run(*command)
        assert done.returncode == 0, done.stderr
    written = {path.name for path in tmp_path.iterdir()}
    assert {"moves.md": "frontier.svg", "migrate.md": "transfers.json"}[page] in written
