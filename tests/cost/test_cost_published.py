"""The roofline against published times of expert layers; `bench/cost.py` has them, with sources."""

import subprocess
import sys

import pytest
from recorded import ROOT

BENCH = ROOT / "bench"

import cost  # noqa: E402  # the path comes first

PUBLISHED = list(cost.published())


@pytest.mark.parametrize(
    "row", PUBLISHED, ids=[f"{row.what} {row.source[:4]}" for row in PUBLISHED]
)
def test_within_15_percent_of_each(row: cost.Published) -> None:
    assert abs(row.ratio - 1.0) <= 0.15, row
    assert "https://" in row.source


def test_most_were_not_in_sight_when_the_factors_were_set() -> None:
    checked = [row for row in PUBLISHED if not row.set_factors]
    assert len({row.source for row in checked}) >= 2
    assert len({row.source for row in PUBLISHED}) >= 4
    assert len(checked) > len(PUBLISHED) / 2
    assert {row.source for row in checked}.isdisjoint(
        row.source for row in PUBLISHED if row.set_factors
    )


def test_published_times_are_those_of_the_sources() -> None:
    """Two tables give rates: their times by hand."""
    by_what = {row.what: row.seconds for row in PUBLISHED}
    gate_and_up = 2 * 8 * 4096 * 4096 * 7168 / 1288e12
    down = 2 * 8 * 4096 * 7168 * 2048 / 1093e12
    what = "H800, DeepSeek-V3, products of 8 experts with 4096 tokens each"
    assert by_what[what] == pytest.approx(gate_and_up + down)
    what = "64 H800, DeepSeek-V3, dispatch and combine of 128 tokens a GPU"
    assert by_what[what] == pytest.approx((173 + 314) * 1e-6)


def test_misses_are_misses() -> None:
    assert any(abs(row.ratio - 1.0) > cost.FAR for row in cost.beyond())


def test_script_prints_ratios_and_judges() -> None:
    done = subprocess.run(
        [sys.executable, BENCH / "cost.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(PUBLISHED)} of {len(PUBLISHED)} within 15%" in done.stdout
    assert "https://github.com/deepseek-ai/DeepGEMM/pull/316" in done.stdout
    wrong = subprocess.run(
        [sys.executable, BENCH / "cost.py", "--chek"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
