"""The work of an epoch of each variant, as a function of n, p and d, after the paper's Table A1.

A cost is counted for both views, forward and backward, in operations of two kinds: those of matrix products, which
run near a machine's peak, and those of element-wise passes and of tall-skinny products, which do not. `seconds` weighs
them with the rates of a machine; the ratio of two costs of one variant carries a measured time from one n, p to
another.

Like mmdma_core.models.memory, nothing that computes imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

_IN_REGISTERS = 8  # how much faster an operation is in one compiled pass than in a pass over memory of its own
_EXP = 20  # operations that an exponential and its factors take


class Cost(NamedTuple):
    """Operations per epoch: of matrix products, and of the rest."""

    products: float
    others: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.products + other.products, self.others + other.others)

    def seconds(self, products_per_s: float = 1e11, others_per_s: float = 1e10) -> float:
        """At the given rates; by default the order of magnitude of a few CPU cores, which is enough to rank."""
        return self.products / products_per_s + self.others / others_per_s


CostModel = Callable[[int, int, int], Cost]  # (n, p, d) -> the work of an epoch


def composed(formulation: CostModel, sums: Callable[[int, int], Cost]) -> CostModel:
    """The cost of a formulation of both views with these Gaussian sums."""
    return lambda n, p, d: formulation(n, p, d) + sums(n, d)


def primal(n: int, p: int, d: int) -> Cost:
    """n > p: G = X^T X, R R and its gradient, 4 n p^2 + 12 p^3. n <= p: the n x n difference, 4 n^2 p."""
    distortion = Cost(4 * n * p**2 + 12 * p**3, 40 * p**2) if n > p else Cost(4 * n**2 * p, 20 * n**2)
    return distortion + Cost(0, 8 * n * p * d)


def dual(n: int, p: int, d: int) -> Cost:
    """E = K alpha, its gradient, and the n x n difference with its own: tall-skinny products of n x n matrices."""
    return Cost(0, n**2 * (16 * d + 20))


def dense(n: int, d: int) -> Cost:
    """Three n x n kernels and their gradients: some 15 passes over each, and tall-skinny products."""
    return Cost(0, 3 * n**2 * (6 * d + 15 * 4 + _EXP))


def keops(n: int, d: int) -> Cost:
    """Three sums and six gradient sums, each of which evaluates the kernel anew."""
    return Cost(0, 9 * n**2 * (4 * d + 3 * _EXP))


def broadcast(n: int, d: int) -> Cost:
    """Three (n, d, n) tensors of differences, some 8 passes over each."""
    return Cost(0, 3 * n**2 * (32 * d + _EXP))


def halves(n: int, d: int) -> Cost:
    """Four kernels between even and odd rows, n/2 x n/2 each, through the same differences."""
    return Cost(0, n**2 * (32 * d + _EXP))


def pairs(n: int, d: int) -> Cost:
    """Lemma 14 of Gretton et al. 2012: four kernels of n/2 pairs."""
    return Cost(0, 2 * n * (6 * d + _EXP))


def fused_pairs(n: int, d: int) -> Cost:
    """Each unordered pair of the 2 n points once.

    Pairs that lie too far apart to count are counted here, since where the points will lie is not known.
    """
    return Cost(0, 2 * n**2 * (6 * d + _EXP) / _IN_REGISTERS)


def fourier(n: int, d: int) -> Cost:
    """Cosines and sines of the 2 n points at 256 frequencies, in two passes, and the gradient's sums in the second."""
    return Cost(0, 2 * n * 256 * (6 * d + 2 * _EXP) / _IN_REGISTERS)


def fused_primal(n: int, p: int, d: int) -> Cost:
    """For p < n products with X and with G, two of each; else four with X."""
    return Cost(0, (8 * p**2 * d + 8 * n * p * d if p < n else 16 * n * p * d) / _IN_REGISTERS)


def fused_dual(n: int, p: int, d: int) -> Cost:
    """As `fused_primal`, and two more passes over each X: W = X^T alpha, and the gradient's way back."""
    return fused_primal(n, p, d) + Cost(0, 8 * n * p * d / _IN_REGISTERS)
