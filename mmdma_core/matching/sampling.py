"""Metrics from a sample of cells: how many, which, and the 95 % interval of a mean over them.

A direction (from x to y, or from y to x) has N cells, of which m are drawn at random without replacement. Its mean has
an interval: of fractions Wilson's, which is sensible at 0 and 1, of other values the normal one. Both have the
correction (N - m) / (N - 1) or (N - m) / N of a finite population: all cells drawn, the interval is a point. The
metric is the mean of both directions, drawn apart, and its interval takes the distances d of its parts' ends as those
of standard errors, sqrt(d_1^2 + d_2^2) / 2: for normal intervals that is the stratified formula.

Sources: Wilson 1927, Probable inference; Newcombe 1998, Interval estimation for the difference between independent
proportions, method 10; Cochran 1977, Sampling techniques.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm

from mmdma_core.settings import is_whole, plain

EXACT_UP_TO = 50_000  # cells of the larger view
SAMPLED_CELLS = 2_000  # of each view, beyond
SEED = 0  # the same numbers each time

Interval = tuple[float, float]
Sample = int | Literal["auto"] | None  # cells of each view; None: all

_Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """The value of a metric, and how well a sample of cells tells it.

    value     the mean over the cells drawn
    sampled   how many of them are of x, and of y
    interval  with 95 % confidence the value over all cells lies in it; None where all cells were drawn
    notes     what a reader of the value must know
    """

    value: float
    sampled: tuple[int, int]
    interval: Interval | None = None
    notes: tuple[str, ...] = ()


def sample_size(sample: Sample, n_x: int, n_y: int) -> int | None:
    """The cells to draw of each view, None for all. Raises ValueError for what is no number of cells."""
    sample = plain(sample)
    if sample == "auto":
        return SAMPLED_CELLS if max(n_x, n_y) > EXACT_UP_TO else None
    if sample is not None and (not is_whole(sample) or sample < 2):
        raise ValueError(f"sample must be an integer of at least 2, None or 'auto', got {sample!r}")
    return sample


def draw(n: int, sample: int | None, rng: np.random.Generator) -> np.ndarray:
    """Which of n to take, in order: all, or a simple random sample without replacement."""
    if sample is None or sample >= n:
        return np.arange(n)
    return np.sort(rng.choice(n, sample, replace=False, shuffle=False))


def of_fraction(hits: np.ndarray | float, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval (low, high) of a fraction `hits` of m cells drawn from n; of each where there are several."""
    hits = np.asarray(hits, dtype=float)
    spread = _Z**2 * (n - m) / max(n - 1, 1) / m
    middle = hits + spread / 2
    half = np.sqrt(spread * (hits * (1 - hits) + spread / 4))
    return np.clip((middle - half) / (1 + spread), 0, hits), np.clip((middle + half) / (1 + spread), hits, 1)


def of_mean(values: np.ndarray, n: int, bounds: Interval = (0, 1)) -> Interval:
    """The normal interval of the mean of values, m drawn from n; between the bounds that no value leaves.

    Values that are all the same have no spread to go by: then Wilson's, since none has more than 0 and 1 have.
    """
    m, mean = len(values), float(values.mean())
    low, high = bounds
    if m < 2 or np.ptp(values) == 0:
        return tuple(float(low + (high - low) * end) for end in of_fraction((mean - low) / (high - low), m, n))
    half = float(_Z * values.std(ddof=1) * np.sqrt((n - m) / n / m))
    return max(low, mean - half), min(high, mean + half)


def of_both(means: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """The interval of the mean of two directions, from theirs."""
    mean = float(np.mean(means))
    ends = np.array(intervals, dtype=float) - np.array(means)[:, None]
    low, high = np.sqrt((ends**2).sum(0)) / len(means)
    return float(mean - low), float(mean + high)
