"""Loads in JSON: every layout, and one line for what is none."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplb import FormatError, LoadTrace
from eplb.formats import load_trace
from eplb.formats.loads import json as reader

LOADS = np.array([[0.0, 0.0, 0.0], [5.0, 1.0, 2.0]])

JSON_ERRORS = [
    ("", "not a whole JSON file .Expecting value, character 0"),
    (" ", "not a whole JSON file .Expecting value, character 1"),
    ("{", "not a whole JSON file .Expecting value, character 1"),
    ("{1: 2}", "not a whole JSON file .Expecting property name"),
    ('{"a" 1}', "not a whole JSON file .Expecting ':', character 5"),
    ('{"logical_count": [[1]], ', "not a whole JSON file .Expecting value"),
    ("[[1], ]", "not a whole JSON file .Expecting value"),
    ("[[1]}", "not a whole JSON file .Expecting ',' or ']', character 4"),
    ("[" * 100_000, "nested too deep"),
    ('{"a": 1}', "expected the key 'logical_count' or 'load_history', found"),
    ("{}", "expected the key 'logical_count' or 'load_history', found"),
    ('{"physical_to_logical_map": [[0, 1]]}', "is a placement, and no loads: `eplb evaluate"),
    ('{"logical_count": [[1]], "logical_count": [[2]]}', "key 'logical_count' stands there twice"),
    ("[[1, 2], [3]]", r"the array\[1\] has shape \(1,\), those before \(2,\)"),
    ("[[[1, 2], [3]]]", r"the array\[0\]\[1\] is no row of 2 numbers"),
    ("[[[1]], [[1], [2]]]", r"the array\[1\] has shape \(2, 1\), those before \(1, 1\)"),
    ('[["a", "b"]]', r"the array\[0\] has str, expected real numbers"),
    ("[[1, true]]", r"the array\[0\] has bool, expected real numbers"),
    ("[[null]]", r"the array\[0\] has NoneType, expected real numbers"),
    ("[1, 2]", r"the array\[0\] is int, expected a row of numbers"),
    ("[[[[1]]]]", r"the array\[0\]\[0\] has list, expected real numbers"),
    ("[]", "the array is empty"),
    ("[[]]", r"the array\[0\] is empty"),
    ("[[[]]]", r"the array\[0\]\[0\] is empty"),
    ("[[1, NaN]]", r"loads\[0, 0, 1\] is nan"),
    ("[[1, Infinity]]", r"loads\[0, 0, 1\] is inf"),
    ("[[1, -2]]", r"loads\[0, 0, 1\] is -2"),
    ("[[[1, -2]], [[1, 3]]]", r"loads\[0, 0, 1\] is -2"),
    ("[[1, 1" + "0" * 400 + "]]", r"the array\[0\] has a number too large for a load"),
    ("[[1, 1" + "0" * 10_000 + "]]", "not a whole JSON file .Exceeds the limit"),
    ("[[1]] 2", "not a whole JSON file .Expecting the end, character 6"),
    ('{"logical_count": [[1]]}" x', "not a whole JSON file .Expecting the end, character 24"),
    ('{"load_history": []}', "load_history is empty"),
    ('{"load_history": [[[1]]]}', r"load_history\[0\] is no object with the key 'logical_expert"),
    ('{"load_history": [{"x": 1}]}', r"load_history\[0\] is no object with the key"),
    (
        '{"load_history": [{"logical_expert_load": [[1]]}, {"logical_expert_load": [[1, 2]]}]}',
        r"load_history\[1\] has shape \(1, 2\), those before \(1, 1\)",
    ),
    (
        '{"load_history": [{"logical_expert_load": [[1]], "logical_expert_load": [[2]]}]}',
        "the key 'logical_expert_load' stands there twice",
    ),
]


@pytest.fixture(params=["at once", "in pieces"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Small files are read at once, large ones in pieces: here both ways."""
    if request.param == "in pieces":
        monkeypatch.setattr(reader, "_PIECE", 16)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("text", "message"), JSON_ERRORS)
def test_json_that_is_no_loads(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as raised:
        load_trace(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"logical_count": 3}', "logical_count is int, expected rows of numbers"),
        ("7", "the array is int, expected rows of numbers"),
        ('{"load_history": {}}', "load_history is no list of windows"),
    ],
)
def test_json_without_rows(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        load_trace(tmp_path / "a.json")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_of_every_layout(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "a.json"
    windows = np.stack([LOADS, 2 * LOADS])
    history = [
        {"step": 1, "note": '"load [\\', "logical_expert_load": window.tolist(), "more": {"x": [1]}}
        for window in windows
    ]
    for content, expected in [
        (LOADS.tolist(), LOADS),
        (windows.tolist(), windows),
        ({"note": {"logical_expert_load": 1}, "logical_count": LOADS.tolist()}, LOADS),
        ({"logical_count": windows.tolist(), "more": [[[[1]]], 12345678901234]}, windows),
        ({"logical_count": LOADS.tolist(), "load_history": history}, windows),
        ([[2**63 + 2048, 10**99]], np.array([[2.0**63 + 2048, 1e99]])),
        ({"model": "a", "load_history": history, "end": None}, windows),
    ]:
        for options in ({}, {"indent": 4}, {"separators": (",", ":")}):
            text = json.dumps(content, **options)
            path.write_text(f"{mark} \n{text}\n", encoding="utf-8")
            assert load_trace(path) == LoadTrace(expected)


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> int:
    """Characters of the longest window: here few."""
    monkeypatch.setattr(reader, "_PIECE", 1 << 10)
    monkeypatch.setattr(reader, "_LONGEST", 1 << 16)
    return 1 << 16


def test_what_is_too_long_is_not_read_on(tmp_path: Path, longest: int) -> None:
    """Each would take ever more memory if it were."""
    path = tmp_path / "a.json"
    for text in (
        '{"load_history": [{"x": [' + "[]," * longest,
        '["' + "x" * 2 * longest,
        "[[" + "1, " * longest,
        '{"load_history": [{"' + "x" * 2 * longest,
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match=r"without a whole window|Unterminated string"):
            load_trace(path)


def test_a_window_that_is_just_short_enough(tmp_path: Path, longest: int) -> None:
    path = tmp_path / "a.json"
    window = [[1000 + number for number in range(longest // 6 - 10)]]
    path.write_text(json.dumps({"logical_count": [window] * 3}))
    assert load_trace(path) == LoadTrace(np.array([window] * 3))


def test_what_is_passed_over_may_be_long(tmp_path: Path, longest: int) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"more": [' + "[1, 2, 3], " * longest + '[]], "logical_count": [[1, 2]]}')
    assert load_trace(path).loads.tolist() == [[[1, 2]]]
