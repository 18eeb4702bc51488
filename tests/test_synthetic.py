"""The synthetic load: reproducible, and as skewed as the recorded ones."""

import numpy as np
import pytest

from eplb.errors import LoadsError
from eplb.synthetic import deepseek_v3


def test_shape_and_totals() -> None:
    loads = deepseek_v3(tokens=1_000)
    assert loads.shape == (58, 256)
    assert (loads.sum(axis=1) == 8_000).all()
    assert (loads == loads.round()).all()


def test_seed_decides() -> None:
    assert np.array_equal(deepseek_v3(seed=3), deepseek_v3(seed=3))
    assert not np.array_equal(deepseek_v3(seed=3), deepseek_v3(seed=4))


def test_skew_is_that_of_recorded_loads() -> None:
    """Recorded: hottest 5.6 to 8.1 times the mean, top fifth 41 to 51 %, sigma 0.56 to 0.82."""
    for seed in range(5):
        loads = deepseek_v3(seed=seed)
        hottest = (loads.max(axis=1) / loads.mean(axis=1)).mean()
        top = np.sort(loads, axis=1)[:, -51:].sum(axis=1) / loads.sum(axis=1)
        spread = np.log(loads).std(axis=1)
        assert 5.0 < hottest < 8.5
        assert 0.40 < top.mean() < 0.52
        assert 0.55 < spread.mean() < 0.83


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"seed": -1}])
def test_wrong_arguments(wrong: dict[str, int]) -> None:
    with pytest.raises(LoadsError, match=f"{next(iter(wrong))} is"):
        deepseek_v3(**wrong)
