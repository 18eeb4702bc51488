"""A report's page and text: what they say, that names are only text, and that they stand alone."""

import io
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from report_traces import CLUSTER, HOSTILE, hostile_trace, small_trace
from rich.console import Console

import eplb
from eplb.checks import printable
from eplb.errors import MissingExtraError
from eplb.report import Figures, Missing, measure, print_report, render_page
from eplb.report.story import tell

SECTIONS = ("balance", "heat", "hot", "time", "spare", "windows", "moves", "through", "drift")


class Page(HTMLParser):
    """Tags, text and tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        self._in_cell = tag in {"th", "td"}
        if self._in_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in {"th", "td"}

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._in_cell:
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.words)

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def full() -> Figures:
    """Every part: a placement that runs, a known model, times."""
    trace = small_trace()
    running = eplb.plan(trace.loads[0], CLUSTER).placement
    return measure(trace, CLUSTER, name="trace.npz", current=running, current_name="now.json")


@pytest.fixture(scope="module")
def hostile() -> Figures:
    return measure(hostile_trace(9), CLUSTER, name=f"/tmp/{HOSTILE}.npz")


@pytest.fixture(scope="module")
def page(full: Figures) -> str:
    return render_page(full)


def printed(figures: Figures, width: int = 100, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_report(Console(file=file, width=width), figures)
    file.seek(0)
    return file.read()


def test_every_section_has_its_finding_its_chart_and_its_data(full: Figures, page: str) -> None:
    read = Page(page)
    story = tell(full)
    assert [each.key for each in story.sections] == list(SECTIONS)
    assert [each["id"] for each in read.having("section")] == list(SECTIONS)
    for section in story.sections:
        assert section.missing is None
        assert section.finding in read.text
        assert section.tables
        for table in section.tables:
            assert list(table.headings) in read.rows
            for row in table.rows:
                assert list(row) in read.rows
    assert len(read.having("figure")) == len(SECTIONS)
    assert story.sentence in read.text
    assert full.choice.command is not None
    assert full.choice.command in read.text


def test_figures_on_the_page_are_the_figures(full: Figures) -> None:
    story = tell(full)
    for value in (full.now.unseen, full.plan.unseen):
        assert f"{value:.4f}" in story.sentence
    balance = story.sections[0].tables[0]
    for standing, row in zip(full.standings, balance.rows, strict=True):
        assert row[2].split()[0] == f"{standing.unseen:.4f}"
        assert row[3] == f"{standing.worst:.4f}"
    heat = next(each for each in story.sections if each.key == "heat").tables[0]
    assert len(heat.rows) == 2 * len(full.heat.layers)
    assert heat.rows[0][1:] == tuple(f"{load:.2f}" for load in full.heat.before[0])
    assert "estimate" in story.sentence
    time = next(each for each in story.sections if each.key == "time")
    assert "Estimate" in time.finding
    assert not isinstance(full.estimated, Missing)
    assert set(full.estimated.words) <= set(time.notes)


def test_a_map_of_many_gpus_tells_the_ends(full: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eplb.report.sections._MOST_CELLS", 20)
    heat = next(each for each in tell(full).sections if each.key == "heat").tables[0]
    assert len(heat.rows) == 2 * len(full.heat.layers)
    for row, loads in zip(heat.rows, full.heat.before, strict=False):
        assert loads[int(row[1])] == max(loads)
        assert row[2] == f"{max(loads):.2f}"
        assert loads[int(row[3])] == min(loads)


def test_the_page_stands_alone_and_is_in_order(page: str) -> None:
    text, read = page, Page(page)
    assert not read.having("script")
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            target = attributes.get(name) or "#"
            assert target.startswith(("#", "data:")), (tag, target)
    assert "url(http" not in text
    assert "@import" not in text
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    pointed = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert set(pointed) <= set(ids)
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert [tag for tag, _ in read.tags if tag in {"header", "main", "nav", "footer"}] == [
        "header",
        "main",
        "nav",
        "footer",
    ]
    for attributes in read.having("figure"):
        assert attributes["role"] == "img"
        assert len(attributes["aria-label"] or "") > 40


def test_charts_are_whole_drawings_in_the_colours_of_the_page(page: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2 * len(SECTIONS)
    known = set(re.findall(r"--(\w+):", page))
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.replace("<svg", '<svg xmlns:xlink="x"', 1))
        shapes = [each.tag for each in root.iter()]
        assert sum(tag in {"path", "use", "image"} for tag in shapes) > 5
        assert root.attrib["viewBox"].split()[2] == root.attrib["width"]
        assert set(re.findall(r"var\(--(\w+)\)", drawing)) <= known
        assert "#0102" not in drawing
        words = "".join(root.itertext())
        assert "layer" in words or "balancedness" in words or "correlation" in words


def test_names_are_text_and_never_markup(hostile: Figures) -> None:
    text = render_page(hostile)
    page = Page(text)
    assert not page.having("script")
    assert not [each for each in page.tags if any(key.startswith("on") for key in each[1])]
    assert not page.having("img")
    assert printable(HOSTILE) in page.text
    assert "49" not in tell(hostile).title
    assert not [each for each in text if ord(each) < 32 and each != "\n"]
    assert isinstance(hostile.estimated, Missing)
    shown = printed(hostile)
    assert not [each for each in shown if ord(each) < 32 and each != "\n"]
    assert printable(HOSTILE).split()[0] in shown


def test_the_same_figures_make_the_same_page(full: Figures, page: str) -> None:
    assert render_page(full) == page


def test_the_text_tells_the_same_story(full: Figures) -> None:
    story = tell(full)
    shown = " ".join(printed(full, 200).split())
    assert " ".join(story.sentence.split()) in shown
    assert story.command is not None
    assert story.command in shown
    for section in story.sections:
        assert section.finding in shown


def test_the_text_has_maps_and_the_hottest_experts(full: Figures) -> None:
    file = io.StringIO()
    print_report(Console(file=file, width=80), full)
    lines = file.getvalue().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("layer now "))
    assert lines[start].endswith(" with a plan")
    number = len(full.heat.layers)
    rows = lines[start + 1 : start + 1 + min(number, 16)]
    assert all(line.count("|") == 4 for line in rows)
    assert rows[-1].split("|")[0].split("-")[-1].strip() == str(full.heat.layers[-1])
    hottest = max((share, -at) for at, hot in enumerate(full.hot) for share in hot.shares)
    hot = full.hot[-hottest[1]]
    said = " ".join(lines)
    assert f"copies planned): {hot.experts[0]} of layer {hot.layer} (" in said


@pytest.mark.parametrize("width", [20, 40, 80])
def test_the_text_fits_a_narrow_terminal(full: Figures, width: int) -> None:
    lines = printed(full, width).split("\n")
    commands = [line for line in lines if line.startswith("eplb plan")]
    assert len(commands) == 2
    longest = max(len(line.rstrip()) for line in lines if line not in commands)
    assert longest <= max(width, 36)


def test_the_text_does_without_colour_and_unicode(full: Figures) -> None:
    shown = printed(full, 80, "ascii")
    assert shown.isascii()
    assert "\x1b" not in shown
    assert "->" not in tell(full).sentence
    assert "us" in shown


@pytest.mark.parametrize("windows", [1, 2, 3, 7])
def test_few_windows_say_what_they_cannot_tell(windows: int) -> None:
    found = measure(small_trace(windows, 2), CLUSTER)
    page = Page(render_page(found))
    assert "nan" not in page.text
    if windows == 1:
        assert "the plan cannot be scored on loads that it has not seen" in page.text
        assert "unseen loads" not in page.text
    else:
        assert "too few to show if it lasts" in page.text
    assert "not show how loads change" in page.text
    assert "nan" not in printed(found)


def test_without_its_extra_the_page_says_what_to_install(
    full: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("jinja2", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(MissingExtraError, match=rf"{package}: pip install {package}"):
                render_page(full)
