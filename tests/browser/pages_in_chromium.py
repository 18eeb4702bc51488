"""Pages of `eplb report` in a real Chromium: what a person meets, by eye, by keyboard, by ear.

    make test-browser

Not called `test_*`, so that the ordinary suite, which needs no browser, does not collect it. Where
there is no Chromium this fails, and says how to get one.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from report_traces import CLUSTER, HOSTILE, hostile_trace, small_trace

import eplb
from eplb.checks import printable

WIDTHS = (1440, 390)
SCHEMES = ("light", "dark")
KINDS = ("recorded", "full", "hostile", "one window")

_HEIGHT = 900
_DRAWN = """figure => {
  const shown = [...figure.querySelectorAll('svg')].filter(svg => svg.getClientRects().length);
  return shown.map(svg => {
    const box = svg.getBoundingClientRect();
    const marks = [...svg.querySelectorAll('path, use, image')].filter(mark => {
      const one = mark.getBoundingClientRect();
      return one.width + one.height > 0;
    });
    return {left: box.left, right: box.right, height: box.height, marks: marks.length};
  });
}"""


@dataclass
class Visit:
    """A page that is open, and what it did when it was loaded."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


def made(trace: Path, page: Path, *options: object) -> Path:
    """A page as a user makes it."""
    words = [sys.executable, "-m", "eplb.cli", "report", trace, "-o", page, *options]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return page


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory, traces: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    trace = small_trace(40)
    running = eplb.plan(trace.loads[0], CLUSTER).placement
    eplb.save_placement(running, folder / "current.json", to="sglang", dense=trace.dense)
    eplb.save_trace(trace, folder / "full.npz")
    eplb.save_trace(hostile_trace(9), folder / "hostile.npz")
    eplb.save_trace(small_trace(1, 1), folder / "one.npz")
    small = ("--gpus", 8, "--nodes", 2, "--slots", 40)
    return {
        "recorded": made(
            traces / "deepseek_v3",
            folder / "recorded.html",
            *("--gpus", 32, "--slots", 288, "--model", "DeepSeek-V3"),
        ),
        "full": made(
            folder / "full.npz",
            folder / "full.html",
            *(*small, "--current", folder / "current.json"),
        ),
        "hostile": made(folder / "hostile.npz", folder / "hostile.html", *small),
        "one window": made(folder / "one.npz", folder / "one.html", *small),
    }


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("there is no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        # Root, as in a container, has no sandbox.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def screen(request: pytest.FixtureRequest) -> tuple[int, str]:
    chosen: tuple[int, str] = request.param
    return chosen


@pytest.fixture(params=KINDS)
def visit(
    request: pytest.FixtureRequest,
    browser: Browser,
    pages: dict[str, Path],
    screen: tuple[int, str],
) -> Iterator[Visit]:
    width, scheme = screen
    context = browser.new_context(
        viewport={"width": width, "height": _HEIGHT},
        color_scheme="light" if scheme == "light" else "dark",
    )
    visit = Visit(context.new_page())

    def heard(message: ConsoleMessage) -> None:
        visit.said.append(message.text)

    visit.page.on("console", heard)
    visit.page.on("pageerror", lambda error: visit.said.append(str(error)))
    visit.page.on("request", lambda asked: visit.asked.append(asked.url))
    visit.page.goto(pages[request.param].as_uri())
    yield visit
    context.close()


def test_what_a_person_sees(visit: Visit, screen: tuple[int, str]) -> None:
    page, (width, scheme) = visit.page, screen
    assert visit.said == []
    # Every kind but `file:` and `data:` would be a network's.
    assert [url for url in visit.asked if not url.startswith("data:")] == [page.url]

    box = page.locator(".answer").bounding_box()
    assert box is not None
    assert box["x"] >= 0.0
    assert box["x"] + box["width"] <= width
    assert box["y"] >= 0.0
    assert box["y"] + box["height"] <= _HEIGHT
    command = page.locator("pre").first.bounding_box()
    assert command is not None
    assert command["y"] + command["height"] <= _HEIGHT

    figures = page.locator("figure")
    assert figures.count() >= 4
    for figure in figures.all():
        (shown,) = figure.evaluate(_DRAWN)
        assert shown["left"] >= 0.0
        assert shown["right"] <= width
        assert shown["height"] > 150.0
        assert shown["marks"] > 5

    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) > 384
    assert light == (scheme == "light")


def test_nothing_is_wider_than_the_screen(visit: Visit, screen: tuple[int, str]) -> None:
    page = visit.page
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= screen[0]
    page.evaluate("scrollTo(1000, 0)")
    assert page.evaluate("scrollX") == 0


def test_axe_finds_no_serious_fault(visit: Visit) -> None:
    visit.page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(visit.page).response
    assert len(found["passes"]) > 10
    serious = [
        (fault["id"], fault["impact"], fault["nodes"][0]["html"][:200])
        for fault in found["violations"]
        if fault["impact"] in {"serious", "critical"}
    ]
    assert serious == []


@pytest.mark.parametrize("screen", [(390, "light")], indirect=True, ids=str)
def test_it_can_be_read_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0.0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "answer"
    summary = page.locator("section details summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("section details").first.evaluate("each => each.open")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for table in page.locator(".scroll").all():
        table.focus()
        assert table.evaluate("each => each === document.activeElement")
        if table.evaluate("each => each.scrollWidth > each.clientWidth + 1"):
            page.keyboard.press("ArrowRight")
            page.wait_for_function("each => each.scrollLeft > 0", arg=table.element_handle())


@pytest.mark.parametrize("screen", [(1440, "light")], indirect=True, ids=str)
@pytest.mark.parametrize("visit", ["hostile"], indirect=True)
def test_names_are_read_as_text(visit: Visit) -> None:
    page = visit.page
    assert "owned" not in page.title() or "<script>" in page.title()
    assert page.locator("script").count() == 0
    assert page.locator("img").count() == 0
    assert printable(HOSTILE) in page.locator("h1").inner_text()


@pytest.mark.parametrize("screen", [(1440, "dark")], indirect=True, ids=str)
@pytest.mark.parametrize("visit", ["full"], indirect=True)
def test_it_prints_on_white_and_whole(visit: Visit) -> None:
    page = visit.page
    page.emulate_media(media="print", color_scheme="light")
    page.set_viewport_size({"width": 718, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    for figure in page.locator("figure").all():
        (shown,) = figure.evaluate(_DRAWN)
        assert shown["right"] <= 718
    assert len(page.pdf(format="A4")) > 10_000
