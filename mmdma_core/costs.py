"""The work of an epoch of each variant, as a function of n, p and d, after the paper's Table A1.

A cost is counted for both views, forward and backward, in kinds of work that a machine does at rates of their own:
matrix products, which run near a machine's peak; passes of element-wise steps and of tall-skinny products over arrays
in memory; the Gaussian kernel evaluated in registers, by KeOps or by this project's own compiled passes. `seconds`
weighs them with the rates of a machine; the ratio of two costs of one variant carries a measured time from one n, p to
another.

Like mmdma_core.models, nothing that computes imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_EXP = 20  # operations that an exponential and its factors take


class Rates(NamedTuple):
    """What a machine does in a second; by default a few CPU cores, in order of magnitude, which is enough to rank.

    products   operations of matrix products
    passes     numbers that are read from or written to memory
    evaluated  operations of KeOps, where it has cells enough
    compiled   operations of this project's own compiled passes
    filled_by  cells from which on KeOps' threads, one a cell, fill the device; with fewer it is no faster per thread
    epoch_s    seconds of an epoch, whatever its size: launches, the host's own work
    """

    products: float = 1e11
    passes: float = 2e9
    evaluated: float = 1e10
    compiled: float = 8e10
    filled_by: float = 1.0
    epoch_s: float = 0.0


NOMINAL = Rates()


class Cost(NamedTuple):
    """The work of an epoch, in the units of Rates; threads: those that KeOps has at once, 0 where it has no part."""

    products: float = 0.0
    passes: float = 0.0
    evaluated: float = 0.0
    compiled: float = 0.0
    threads: int = 0

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(self[:-1], other[:-1], strict=True)
        return Cost(*(a + b for a, b in pairs), threads=max(self.threads, other.threads))

    def seconds(self, rates: Rates = NOMINAL) -> float:
        """The sum of the kinds at their rates, for an epoch waits for its last result before the next begins."""
        waiting = max(1.0, rates.filled_by / self.threads) if self.threads else 1.0
        kinds = (self.products, self.passes, waiting * self.evaluated, self.compiled)
        return rates.epoch_s + sum(work / rate for work, rate in zip(kinds, rates[:4], strict=True))


CostModel = Callable[[int, int, int], Cost]  # (n, p, d) -> the work of an epoch


def composed(formulation: CostModel, sums: Callable[[int, int], Cost]) -> CostModel:
    """The cost of a formulation of both views with these Gaussian sums."""
    return lambda n, p, d: formulation(n, p, d) + sums(n, d)


def primal(n: int, p: int, d: int) -> Cost:
    """n > p: G = X^T X, R R and its gradient, 4 n p^2 + 12 p^3. n <= p: the n x n difference, 4 n^2 p.

    Passes: E = X W and its gradient; over the p x p matrices, or over the differences as in the dual without K alpha.
    """
    distortion = Cost(4 * n * p**2 + 12 * p**3, 20 * p**2) if n > p else Cost(4 * n**2 * p, 24 * n**2)
    return distortion + Cost(passes=4 * n * p)


def dual(n: int, p: int, d: int) -> Cost:
    """For each view 2 passes over K for E = K alpha and its gradient, 12 for the n x n difference and its own."""
    return Cost(passes=28 * n**2)


def dense(n: int, d: int) -> Cost:
    """Three n x n kernels, each 12 passes forward and 14 backward."""
    return Cost(passes=78 * n**2)


def keops(n: int, d: int) -> Cost:
    """Three sums and six gradient sums, each of which evaluates the kernel anew."""
    return Cost(evaluated=9 * n**2 * (4 * d + 3 * _EXP), threads=n)


def broadcast(n: int, d: int) -> Cost:
    """Three (n, d, n) tensors of differences, some 8 passes over each."""
    return Cost(passes=24 * n**2 * (d + 1))


def halves(n: int, d: int) -> Cost:
    """Four kernels between even and odd rows, n/2 x n/2 each, through the same differences."""
    return Cost(passes=8 * n**2 * (d + 1))


def pairs(n: int, d: int) -> Cost:
    """Lemma 14 of Gretton et al. 2012: four kernels of n/2 pairs."""
    return Cost(passes=2 * n * (2 * d + 4))


def fused_pairs(n: int, d: int) -> Cost:
    """Each unordered pair of the 2 n points once.

    Pairs that lie too far apart to count are counted here, since where the points will lie is not known.
    """
    return Cost(compiled=2 * n**2 * (6 * d + _EXP))


def fourier(n: int, d: int) -> Cost:
    """Cosines and sines of the 2 n points at 256 frequencies, in two passes, and the gradient's sums in the second."""
    return Cost(compiled=2 * n * 256 * (6 * d + 2 * _EXP))


def fused_primal(n: int, p: int, d: int) -> Cost:
    """For p < n products with X and with G, two of each; else four with X."""
    return Cost(compiled=8 * p**2 * d + 8 * n * p * d if p < n else 16 * n * p * d)


def fused_dual(n: int, p: int, d: int) -> Cost:
    """As `fused_primal`, and two more passes over each X: W = X^T alpha, and the gradient's way back."""
    return fused_primal(n, p, d) + Cost(compiled=8 * n * p * d)


# --- the published package (lsmmdma 0.1.11, mmdma_functions.py) ---


def published_primal(n: int, p: int, d: int) -> Cost:
    """dis_primal: as ours for n >= p. For n < p it forms (X W W^T) X^T beside X X^T, and a gradient: 12 n^2 p."""
    if n < p:
        return Cost(12 * n**2 * p, 24 * n**2 + 4 * n * p)
    return Cost(4 * n * p**2 + 12 * p**3, 20 * p**2 + 4 * n * p)


def published_dual(n: int, p: int, d: int) -> Cost:
    """As ours with E E^T - K in place of K - E E^T, whose gradient is not negated: 2 passes fewer in each view."""
    return Cost(passes=24 * n**2)


def published_dense(n: int, d: int) -> Cost:
    """gaussian_kernel: 14 passes forward and 15 backward; for the two of one view 6 more, to clear the diagonal."""
    return Cost(passes=(3 * 29 + 2 * 6) * n**2)


PUBLISHED_PACKAGE: dict[str, CostModel] = {
    "published-primal": composed(published_primal, published_dense),
    "published-primal-keops": composed(published_primal, keops),
    "published-dual": composed(published_dual, published_dense),
    "published-dual-keops": composed(published_dual, keops),
}
