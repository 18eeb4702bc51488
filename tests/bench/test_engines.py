"""How bench/engines.py judges what it measured, and how that is drawn."""

from dataclasses import asdict, replace
from xml.etree import ElementTree as ET

import pytest
from engines import Row, judge
from engines_picture import CELLS, drawing, pairs_of

pytestmark = pytest.mark.long

OURS = Row("noise", "vLLM", "eplb", 0.97, 0.01, 5.0)
THEIRS = Row("noise", "vLLM", "its own", 0.96, 0.9, 9.0)
TIMES = {"its own": 16.0, "one": 2.0, "eight": 16.0}


def missed(ours: Row, times: dict[str, float] | None) -> list[str]:
    rows = [THEIRS, ours, Row("noise", "SGLang", "deepseek", 0.99, 0.9, 9.0)]
    return [bar.what for bar in judge(rows, times) if not bar.met]


def test_all_met() -> None:
    assert missed(OURS, TIMES) == []
    assert len(judge([THEIRS, OURS], None)) == 2


@pytest.mark.parametrize(
    ("ours", "times", "said"),
    [
        (Row("noise", "vLLM", "eplb", 0.96, 0.01, 5.0), TIMES, "balancedness"),
        (Row("noise", "vLLM", "eplb", 0.97, 0.051, 5.0), TIMES, "moved"),
        (OURS, TIMES | {"one": 2.1}, "first window"),
        (OURS, TIMES | {"eight": 16.1}, "eight windows"),
    ],
)
def test_each_is_missed(ours: Row, times: dict[str, float], said: str) -> None:
    (what,) = missed(ours, times)
    assert said in what


def test_the_best_balanced_of_an_engines_own_is_drawn_beside_ours() -> None:
    rows = [
        asdict(replace(row, cell=cell, engine=engine))
        for cell in CELLS
        for engine in ("vLLM", "SGLang")
        for row in (replace(THEIRS, balancedness=0.91), THEIRS, OURS)
    ]
    pairs = pairs_of(rows)
    assert {(pair.own, pair.ours) for pair in pairs} == {((0.96, 0.9), (0.97, 0.01))}
    drawn = ET.fromstring(drawing(pairs))
    texts = [element.text for element in drawn.iter() if element.tag.endswith("text")]
    for text, times in (("0.960", 4), ("0.970", 4), ("90.0%", 4), ("1.0%", 4), ("vLLM", 2)):
        assert texts.count(text) == times
    with pytest.raises(ValueError, match="not both of its rows are there"):
        pairs_of(rows[1:-1])
