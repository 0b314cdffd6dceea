"""How well the median of a cell's epochs is known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from scipy.stats import binom

ENOUGH = 6  # epochs from which order statistics can give 95 %: 1 - 2 / 2^6


def median_interval(epoch_s: Sequence[float]) -> tuple[float, float]:
    """The interval that holds the median epoch with 95 % (order statistics, no distribution assumed), in seconds.

    It goes from the k-th shortest to the k-th longest epoch, with the largest k for which fewer than k of the epochs
    lie below the median with at most 2.5 %. Under 6 epochs it is the whole range, which holds the median less often:
    with 1 - 2 / 2^m for m epochs.
    """
    ordered = sorted(epoch_s)
    k = _rank_of_bound(len(ordered))
    return ordered[k - 1], ordered[-k]


@cache
def _rank_of_bound(m: int) -> int:
    return max(int(binom.ppf(0.025, m, 0.5)), 1)
