"""What mkdocs does not do by itself: text that stands once in the repository and is shown here too.

    <!-- include PATH -->            a whole file of the repository, without its first heading
    <!-- include PATH: name -->      the lines between `<!-- name: begin ... -->` and its end
    <!-- include PATH # heading -->  what stands under a heading
    <!-- commands: MODULE -->        the command line, as typer tells it

Links to sources become links to their reference, and pictures of assets/ and figures/ stand in the
page itself, where they take its colours.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["INCLUDE", "included", "on_page_markdown", "on_post_page"]

ROOT = Path(__file__).resolve().parents[1]

INCLUDE = re.compile(
    r"^<!-- include (?P<path>[^\s:#]+)(?:(?P<how>: | # )(?P<what>.+?))? -->$", re.M
)
_COMMANDS = re.compile(r"^<!-- commands: (\S+) -->$", re.M)
_PICTURE = re.compile(r"^!\[(?P<says>[^\]]*)\]\((?P<path>(?:assets|figures)/[^)]+\.svg)\)$", re.M)
_SOLVER = re.compile(r"\]\(\.\./src/eplb/solver/(\w+)\.py\)")
_OUTSIDE = {
    re.compile(r"\]\(\.\./bench/(?:README\.md|\w+\.py)\)"): "benchmarks.md",
    re.compile(r"\]\(\.\./README\.md\)"): "index.md",
    re.compile(r"\]\(\.\./docs/(\w+\.md)\)"): r"\1",
}
_EXAMPLE = re.compile(r"^Example:\n\n\x08\n((?:  .*\n?)+)", re.M)
_STYLE = re.compile(r"<style>.*?</style>\s*", re.S)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page's text with what it includes."""
    markdown = INCLUDE.sub(lambda found: included(**found.groupdict()), markdown)
    markdown = _COMMANDS.sub(lambda found: _commands(found[1]), markdown)
    markdown = _PICTURE.sub(lambda found: _picture(found["path"], found["says"]), markdown)
    up = "../" * page.file.src_uri.count("/")
    markdown = _SOLVER.sub(rf"]({up}api/solver.md#eplb.solver.\1)", markdown)
    for link, target in _OUTSIDE.items():
        markdown = link.sub(rf"]({up}{target})", markdown)
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """A page as it is written: the theme's search is a dialog without a name."""
    return output.replace(' role="dialog"', ' role="dialog" aria-label="Search"', 1)


def included(path: str, how: str | None = None, what: str | None = None) -> str:
    """A file of the repository, or a part of it.

    Raises:
        ValueError: it has no such part, or more than one.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    if how is None or what is None:
        return text.split("\n", 1)[1]
    if how == ": ":
        pattern = rf"<!-- {re.escape(what)}: begin[^\n]*-->\n(.*?)<!-- {re.escape(what)}: end -->"
    else:
        pattern = rf"^## {re.escape(what)}\n(.*?)(?=^## |\Z)"
    parts: list[str] = re.findall(pattern, text, flags=re.S | re.M)
    if len(parts) != 1:
        raise ValueError(f"{path}: {len(parts)} parts are called {what!r}")
    return parts[0].strip()


def _commands(module: str) -> str:
    command = [sys.executable, "-m", "typer", module, "utils", "docs", "--name", "eplb"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = done.stdout[done.stdout.index("\n## ") :]  # before it, commands are cut short
    return _EXAMPLE.sub(r"Example:\n\n```sh\n\1\n```", told)


def _picture(path: str, says: str) -> str:
    svg = _STYLE.sub("", (ROOT / "docs" / path).read_text(encoding="utf-8")).strip()
    return f'<figure class="drawn">{svg}<figcaption>{says}</figcaption></figure>'
