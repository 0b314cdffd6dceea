"""The interval of a median."""

import numpy as np
import pytest

from benchmarks.analysis.table import ENOUGH, median_interval


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (0, 0)), (2, (0, 1)), (5, (0, 4)), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (15, (3, 11)), (100, (39, 60))],
)
def test_order_statistics(count, expected):
    """Those of the binomial tables, e.g. the 2nd and 8th of 9."""
    values = np.random.default_rng(0).permutation(count).tolist()
    assert median_interval(values) == expected


@pytest.mark.parametrize("count", [ENOUGH, 11, 40])
def test_the_interval_holds_the_median_as_often_as_it_says(count):
    """Of a skew distribution, as epochs are; 95 % or more; with few epochs order statistics are coarse."""
    draws = np.random.default_rng(1).exponential(size=(4000, count))
    low, high = np.array([median_interval(draw) for draw in draws]).T
    held = np.mean((low <= np.log(2)) & (np.log(2) <= high))
    assert 0.95 <= held <= 0.992
