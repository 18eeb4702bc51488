"""The layout of the source: a package a stage, in the order in which data flows.

A module imports from its own package and from those above it in this list, inside functions too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from recorded import ROOT

SOURCE = ROOT / "src" / "eplb"

ORDER = (
    *("errors", "checks", "files", "cluster", "merging", "loads", "describe", "balance", "solver"),
    *("dispatching", "placement", "torch", "formats", "synthetic", "cost", "planning", "moving"),
    "replaying",
    *("engines", "report", "cli"),
)

MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Packages and flat modules of the project that a file imports, wherever it does; an empty
    name for the package as a whole, of which the version alone is for everybody.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, *rest = name.split(".")
            if package == "eplb":
                yield rest[0] if rest and rest[0] in {*ORDER, "_moved", "__version__"} else ""


def place(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path",
    [each for each in MODULES if place(each) not in {"__init__", "__main__", "_moved"}],
    ids=str,
)
def test_imports_lead_up_the_list(path: Path) -> None:
    here = ORDER.index(place(path))
    found = set(imported(path))
    assert "" not in found, "import what is needed, not the whole package"
    wrong = {name for name in found if name in ORDER and ORDER.index(name) > here}
    assert not wrong, f"{place(path)} comes before {', '.join(sorted(wrong))}"


def test_all_is_in_the_list() -> None:
    flat = {place(path) for path in MODULES} - {"__init__", "__main__", "_moved"}
    assert flat == set(ORDER)


def test_few_modules_stand_flat() -> None:
    """`__main__`, which Python looks for there, is none of them."""
    assert len(list(SOURCE.glob("*.py"))) - 1 <= 12


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
