"""Every block of shell and Python in README.md and docs/ runs, in order, and prints what is shown.

A page runs in a folder of its own, which has the files that pages speak of; see `pages.py` for what
a page may say to this test.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import run
from pages import alike, read, run_python, steps_of
from recorded import ROOT

import eplb
from eplb import synthetic

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_ENGINE = "starts an engine"
_STUDY = "takes minutes, and recorded loads"
NOT_RUN = {
    "dispatch.md": [_STUDY],
    "placements.md": [_ENGINE, _ENGINE],
    "replay.md": ["needs a cluster"] * 2,
    "sglang.md": [_ENGINE],
    "study.md": [_STUDY] * 4,
    "vllm.md": [
        _ENGINE,
        "serves until Ctrl-C",
        "compiles for a minute",
        _ENGINE,
        "reads what an engine recorded",
        *["reads what an engine records"] * 2,
    ],
}
"""Reasons for what is not run, by page: the fewer the better."""

NOT_OF_A_PAGE = {
    "make demo": "tests/cli/test_demo.py runs the demo",
    "make test": "this is it",
    "pip install .": "it is installed",
}
"""Commands of the README that are not run, and why."""


def _trace(num_windows: int, seed: int) -> eplb.LoadTrace:
    return synthetic.trace(
        "deepseek-v3", num_windows=num_windows, tokens_per_window=20_000, seed=seed, num_layers=2
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that pages speak of, by name: loads with a dense layer, and placements for them."""
    folder = tmp_path_factory.mktemp("prepared")
    cluster = eplb.Cluster(num_gpus=32, num_nodes=4, slots_per_gpu=9)
    for name, seed in (("loads", 1), ("later", 2)):
        loads = np.pad(_trace(4, seed).loads, ((0, 0), (1, 0), (0, 0)))
        text = json.dumps({"logical_count": loads.astype(int).tolist()})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        placement = eplb.plan(loads, cluster).placement
        for called in {"loads": ("running", "old"), "later": ("new", "next")}[name]:
            eplb.save_placement(placement, folder / f"{called}.json", to="sglang")
    eplb.save_trace(_trace(16, 3), folder / "trace.npz")
    policy = "import eplb\n\n\ndef policy(loads, cluster, *, current, num_groups):\n"
    policy += "    return eplb.plan(loads.sum(axis=0), cluster)\n"
    for called in ("mine", "my_eplb"):
        (folder / f"{called}.py").write_text(policy, encoding="utf-8")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def place(tmp_path: Path, prepared: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with these files and the `eplb` of this environment, for commands and Python."""
    programs = tmp_path / "bin"
    folder = tmp_path / "page"
    programs.mkdir()
    folder.mkdir()
    for name, content in prepared.items():
        (folder / name).write_bytes(content)
    program = programs / "eplb"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m eplb.cli "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(folder)
    return folder


def _run_shell(command: str, where: str) -> str:
    words = shlex.split(command, comments=True)
    plain = words[:1] == ["eplb"] and not set("|&;<>$`*") & set(command)
    # A sweep has processes of its own: as for a user, they are those of one command.
    if plain and words[1] != "sweep":
        done = run(*words[1:])  # here, where kernels are loaded
    else:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    assert done.returncode == 0, f"{where}: {command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_true(path: Path) -> None:
    names: dict[str, Any] = {"__name__": path.stem}
    for step in read(path):
        if step.not_run or step.text.split("  #")[0].strip() in NOT_OF_A_PAGE:
            continue
        where = f"{path.name}:{step.line}"
        if step.kind == "python":
            printed = run_python(step, names, path.name)
        else:
            printed = _run_shell(step.text, where)
        if step.shown is not None:
            unlike = alike(step.shown, printed)
            assert unlike is None, f"{where} prints {unlike}"


def test_what_is_not_run_is_listed() -> None:
    skipped = {path.name: [step.not_run for step in read(path) if step.not_run] for path in PAGES}
    assert {page: reasons for page, reasons in skipped.items() if reasons} == NOT_RUN
    commands = {step.text.split("  #")[0].strip() for step in read(ROOT / "README.md")}
    assert set(NOT_OF_A_PAGE) <= commands


def test_pages_are_read_as_they_are_meant() -> None:
    page = (
        "<!-- first: touch a -->\n\n```console\n$ ls \\\n  a\na\n$ true\n```\n\n"
        "<!-- not run: no such program -->\n\n  ```sh\n  engine\n  ```\n\n"
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\nand\n\n```text\nno output\n```\n"
    )
    steps = [(step.line, step.kind, step.text, step.shown, step.not_run) for step in steps_of(page)]
    assert steps == [
        (1, "shell", "touch a", None, None),
        (4, "shell", "ls \\\n  a", "a\n", None),
        (7, "shell", "true", None, None),
        (13, "shell", "engine\n", None, "no such program"),
        (17, "python", "print(1)\n", "1\n", None),
    ]
    with pytest.raises(ValueError, match="says no language"):
        steps_of("```\n$ eplb demo\n```\n")
    with pytest.raises(ValueError, match="above no block"):
        steps_of("<!-- not run: lost -->\n\nwords\n")


@pytest.mark.parametrize(
    ("shown", "printed", "like"),
    [
        ("a  1.5 ms\n", "a 220 ms\n", True),
        ("a 1\n", "a 1\nb 2\n", False),
        ("a 1\n...\nc\n", "a 1\nb 2\nc\n", True),
        ("...\nc\n...\na 1\n", "a 1\nb 2\nc\n", False),
        ("a 1\n...\nc\n", "a 1\nc\nd\n", False),
        ("b 2\n...\n", "a 1\nb 2\n", False),
        ("it took 1 s ...\n", "it took\n20 s of 3\n", True),
        ("a 1\n", "b 1\n", False),
        ("━━━\n a │ 1,024 \n", "a 7\n", True),
    ],
)
def test_what_is_like_what_is_shown(shown: str, printed: str, *, like: bool) -> None:
    assert (alike(shown, printed) is None) is like


@pytest.mark.parametrize(
    "code",
    [
        "x = (1, 2)  # [3]",
        "x = [[1.0, 2.0]]  # [layers]",
        "0.25  # 0.3",
        "0.25  # 0.255, or so",
        "'moved'  # \"wait\": nothing gains",
        "[1], [1, 2]  # [1] each",
    ],
)
def test_comments_that_are_not_true_are_found(code: str) -> None:
    (step,) = steps_of(f"```python\n{code}\n```\n")
    with pytest.raises(AssertionError, match="page:2"):
        run_python(step, {}, "page")


def _files(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    values = nav.values() if isinstance(nav, dict) else nav
    return [file for each in values for file in _files(each)]


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!ENV", "")
    nav = yaml.safe_load(text)["nav"]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert {file for file in _files(nav) if file.endswith(".md")} == pages
    assert len(_files(nav)) == len(set(_files(nav)))


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = set(re.findall(r"^::: eplb(?:\.planning)?\.(\w+)$", text, flags=re.MULTILINE))
    errors = {name for name in eplb.__all__ if name.endswith("Error")}
    assert "errors" in shown
    assert set(eplb.__all__) - errors - {"__version__"} <= shown


def test_every_command_is_in_the_table_of_commands() -> None:
    from eplb.cli.commands import app

    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"(#eplb-{command.name})" in page or command.name == "demo", command.name


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pictures_are_what_their_script_draws() -> None:
    for name, draw in _module(DOCS / "assets" / "draw.py").PICTURES.items():
        drawn = (DOCS / "assets" / name).read_text(encoding="utf-8")
        assert drawn == draw(), f"{name}: run docs/assets/draw.py, and look at what changed"


def test_figures_take_the_colours_of_their_page() -> None:
    hooks = _module(DOCS / "hooks.py")
    for page in ("study.md", "dispatch.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        shown = hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=page)))
        assert ".svg)" not in shown
        assert "currentColor" in shown
    for drawn in [*(DOCS / "figures").iterdir(), DOCS / "assets" / "dispatch.svg"]:
        picture = drawn.read_text(encoding="utf-8")
        assert "prefers-color-scheme:dark" in picture
        assert not {"#ffffff", "#000000"} & set(re.findall(r"#\w{6}", picture)), drawn.name


def test_what_pages_include_is_there() -> None:
    hooks = _module(DOCS / "hooks.py")
    seen = 0
    for path in PAGES:
        for found in hooks.INCLUDE.finditer(path.read_text(encoding="utf-8")):
            assert hooks.included(**found.groupdict()).strip()
            seen += 1
    assert seen >= 3
    with pytest.raises(ValueError, match="0 parts"):
        hooks.included("README.md", ": ", "nowhere")
