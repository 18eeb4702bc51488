"""What README.md and CONTRIBUTING.md say is so: Python gives what they say, their files are there.

The README's commands run in test_docs.py.
"""

import re
import shlex
from typing import Any

from recorded import ROOT

SOURCE = ROOT / "src" / "eplb"


def blocks(language: str, page: str = "README.md") -> list[str]:
    """A page's code blocks of a language, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for tongue, block in found if tongue == language]


def commands(page: str = "README.md") -> list[list[str]]:
    """A page's shell commands."""
    lines = "".join(blocks("console", page)).splitlines()
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def test_opens_with_its_two_commands() -> None:
    assert commands()[:2] == [["make", "demo"], ["make", "test"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in (*commands(), *commands("CONTRIBUTING.md")):
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


def test_the_tree_is_the_source() -> None:
    """Every line names what is there, and no package or flat module is left out."""
    (tree,) = blocks("", "CONTRIBUTING.md")
    package, shown = SOURCE, set()
    for indent, name, says in re.findall(r"^( {2}| {4})(\S+) +(\S.*)$", tree, flags=re.MULTILINE):
        assert says
        entry = (SOURCE if len(indent) == 2 else package) / name
        if len(indent) == 2:
            package = entry
            shown.add(entry)
        assert entry.exists(), f"CONTRIBUTING.md shows {entry.relative_to(SOURCE)}"
    there = {path for path in SOURCE.iterdir() if path.is_dir() or path.suffix == ".py"}
    private = {path for path in there if path.name.startswith("_")}
    assert shown == there - private
