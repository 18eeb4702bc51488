"""What README.md and CONTRIBUTING.md say is so: Python gives what they say, their files are there.

The README's commands run in test_docs.py.
"""

import itertools
import re
import shlex
from typing import Any

import pytest
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


def test_it_is_short_and_its_picture_is_on_the_first_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any("](docs/assets/engines.svg)" in line for line in lines[:8])


def test_picture_has_the_figures_of_the_pages_on_engines() -> None:
    """Both come from bench/engines.py; of SGLang's two algorithms the better balanced is drawn."""
    picture = (ROOT / "docs" / "assets" / "engines.svg").read_text(encoding="utf-8")
    (title,) = re.findall(r"<title>(.*)</title>", picture)
    parts = title.split("; ")
    traces = ("288 slots on 32 GPUs", "gpt-oss-20b, 40 slots")
    assert len(parts) == 4
    for part, (trace, engine) in zip(
        parts, itertools.product(traces, ("vLLM", "SGLang")), strict=True
    ):
        page = (ROOT / "docs" / f"{engine.lower()}.md").read_text(encoding="utf-8")
        rows = [line for line in page.splitlines() if trace in line and "| **" in line]
        assert part.startswith(f"{engine} on ")
        figures = re.findall(r"0(\.\d{3})", part)
        assert any(all(figure in row for figure in figures) for row in rows), part


def test_figures_of_splits_are_those_of_the_page_on_dispatch() -> None:
    """Both are of the same command; the page has a digit more, and what engines plan for a rule
    of theirs they plan for an even split.
    """

    def table(page: str, first: str) -> list[list[float]]:
        text = (ROOT / page).read_text(encoding="utf-8").split(f"| {first}", 1)[1]
        rows = text.split("\n\n", 1)[0].splitlines()[2:]
        return [[float(cell) for cell in re.findall(r"\| (\.\d+)", row)] for row in rows]

    command = (
        "`eplb compare DIR/deepseek_v3 --gpus 32 --nodes 4 --slots 288 --policy deepseek,eplb "
    )
    for page in ("README.md", "docs/dispatch.md"):
        assert command in (ROOT / page).read_text(encoding="utf-8")
    theirs, (*ours, sglang, best) = table("docs/dispatch.md", "placed for an even split, split")
    wanted = [theirs, ours, [ours[0], sglang, best]]
    for row, given in zip(table("README.md", "tokens split over"), wanted, strict=True):
        assert row == pytest.approx(given, abs=0.00051)


def test_python_runs_and_its_comments_are_true() -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["phy2log"].shape == (58, 288)
    plan, weight = names["plan"], names["weight"]
    assert plan.placement.phy2log.shape == (58, 288)
    assert round(plan.gap.max(), 4) == 0.0004
    assert round(plan.placement.balancedness(weight), 4) == 0.9996
    assert 0 < names["moved"].moves <= 800
    assert names["split"].shape == (58, 288)


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
