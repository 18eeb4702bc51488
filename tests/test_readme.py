"""What the README says is so: its Python gives what it says, its files are there.

Its commands run in test_docs.py.
"""

import re
import shlex
from typing import Any

from recorded import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """The README's shell commands."""
    lines = "".join(blocks("console")).splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def test_opens_with_its_two_commands() -> None:
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands():
        if command[0] == "make":
            assert f"\n{command[1]}:" in makefile


def test_python_runs_and_its_comments_are_true() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["phy2log"].shape == (58, 288)
    plan, weight = names["plan"], names["weight"]
    assert plan.placement.phy2log.shape == (58, 288)
    assert round(plan.gap.max(), 4) == 0.0004
    assert round(plan.placement.balancedness(weight), 4) == 0.9996
    assert names["trace"].loads.shape == (40, 24, 32)
    assert names["found"].balancedness.shape == (39, 24)
    assert names["found"].moves.sum() > 0
    assert 0 < names["moved"].moves <= 800
    assert names["decision"].action == "move"


def test_links_and_files_exist() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    tree = blocks("")[0]
    for entry in re.findall(r"^  (\S+)", tree, flags=re.MULTILINE):
        assert (ROOT / "src" / "eplb" / entry).exists(), entry
