"""The benchmark of spare slots by layer: how slots are spent, and what is printed."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run_script
from spare import spend

pytestmark = pytest.mark.long


def test_slots_go_where_the_measures_fall_most() -> None:
    rng = np.random.default_rng(0)
    steps = [0, 1, 3]
    for _ in range(20):
        falls = rng.random((3, 4))
        total = int(rng.integers(0, 9))
        chosen = spend(falls, steps, total)
        best = min(
            sum(falls[number, layer] for layer, number in enumerate(numbers))
            for numbers in itertools.product(range(3), repeat=4)
            if sum(steps[number] for number in numbers) <= total
        )
        assert sum(steps[number] for number in chosen) <= total
        assert falls[chosen, np.arange(4)].sum() == pytest.approx(best)


def test_rows(tmp_path: Path) -> None:
    asked = ["--only", "held-out", "--dispatch", "even", "--cases", "1", "--every", "29"]
    done = run_script("spare.py", *asked, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["spare"] for row in rows] == [4, 8, 16, 32]
    for row in rows:
        assert row["chosen"]["hindsight"] >= row["even"]
        assert set(row["chosen"]) == {"seen", "left out", "hindsight"}
