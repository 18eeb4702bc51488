"""The examples in docstrings of public functions are true."""

import doctest
import sys

import pytest

import eplb

SHOWN = (
    "Balancer",
    "backtest",
    "compare",
    "decide",
    "dispatch",
    "frontier",
    "load_placement",
    "load_trace",
    "migrate",
    "plan",
    "rebalance_experts",
    "replay",
    "save_placement",
    "save_trace",
    "sweep",
)


@pytest.mark.parametrize("name", SHOWN)
def test_example_is_true(name: str) -> None:
    value = getattr(eplb, name)
    examples = doctest.DocTestFinder(recurse=False).find(
        value, name, sys.modules[value.__module__], globs={}
    )
    runner = doctest.DocTestRunner()
    found = [runner.run(example) for example in examples]
    assert sum(each.attempted for each in found) > 0
    assert sum(each.failed for each in found) == 0
