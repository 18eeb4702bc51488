"""How bench/engines.py judges what it measured."""

import pytest
from engines import Row, judge

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
