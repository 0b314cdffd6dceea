"""What a variant costs: the work of an epoch and the bytes that it needs, as functions of n, p and d.

A cost is counted for both views, forward and backward, after the paper's Table A1, in kinds of work that a machine does
at rates of their own: matrix products, which run near a machine's peak; passes of element-wise steps and of tall-skinny
products over arrays in memory; the Gaussian kernel evaluated in registers, by KeOps or by this project's own compiled
passes. `Cost.seconds` weighs them with the rates of a machine; the ratio of two costs of one variant carries a measured
time from one n, p to another.

Memory is counted term by term from the code: the most that is allocated at one moment of `start` or of an epoch
(forward, backward, Adam), the two views included, both n x p in float32. It leaves out what a process holds anyway
(libraries, a CUDA context) and what a library takes for itself. Beside terms in n^2 or p^2, terms in n d and p d are
counted where they last.

Both are composed: of what a formulation of the two views takes, and of what the Gaussian sums take. A model is no part
of a variant's fingerprint, so that a formula may be made better without measuring anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

EXPONENTIAL = 20  # operations that an exponential and its factors take
SINGLE, DOUBLE = 4, 8  # bytes of a number


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
        """Return the sum of the kinds at their rates: an epoch waits for its last result before the next begins."""
        waiting = max(1.0, rates.filled_by / self.threads) if self.threads else 1.0
        kinds = (self.products, self.passes, waiting * self.evaluated, self.compiled)
        return rates.epoch_s + sum(work / rate for work, rate in zip(kinds, rates[:4], strict=True))


class ViewsNeed(NamedTuple):
    """What both views in a formulation take: the work of an epoch, and numbers in float32.

    prepare      most that is there while they are prepared, the data included
    lasting      from then on: data or kernels, parameters, their gradients, Adam's two moments, embeddings
    distortions  most that both distortions take beyond that, forward or backward
    """

    cost: Cost
    prepare: int
    lasting: int
    distortions: int


class SumsNeed(NamedTuple):
    """What the three Gaussian sums take: the work of an epoch, and numbers in float32.

    peak   most that they take
    saved  what autograd saves of them
    """

    cost: Cost
    peak: float
    saved: float


CostModel = Callable[[int, int, int], Cost]  # (n, p, d) -> the work of an epoch
MemoryModel = Callable[..., int]  # (n, p, d) -> bytes; (n, p, d, ranks): of each of the ranks that share the rows


def composed(
    views: Callable[[int, int, int], ViewsNeed], sums: Callable[[int, int], SumsNeed]
) -> dict[str, CostModel | MemoryModel]:
    """Return the models of a formulation of both views with these sums, as keywords of `register`.

    Autograd goes back through the distortions first, while all that it saved of the sums is still there. So the most
    that is allocated is max(prepare, lasting + max(peak, saved + distortions)).
    """

    def cost(n: int, p: int, d: int) -> Cost:
        return views(n, p, d).cost + sums(n, d).cost

    def memory(n: int, p: int, d: int) -> int:
        own, kernels = views(n, p, d), sums(n, d)
        later = own.lasting + max(kernels.peak, kernels.saved + own.distortions)
        return int(SINGLE * max(own.prepare, later))

    return {"cost_model": cost, "memory_model": memory}


def in_words(size: float) -> str:
    """Return bytes as a text: in GiB, below one in MiB, below one in KiB, with three digits."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            number = size / unit
            return f"{number:,.0f} {name}" if number >= 999.5 else f"{number:.3g} {name}"
    return f"{size:.0f} bytes"


# --- formulations ---


def primal(n: int, p: int, d: int) -> ViewsNeed:
    """mmdma_core.Primal.

    n > p: G = X^T X, R R and its gradient, 4 n p^2 + 12 p^3. G and R of both views are saved; back through the second
    R R come the gradient of its trace and those of both factors: 7 p^2. n <= p: the n x n difference, 4 n^2 p; both
    differences, the gradient of the second norm and its negative: 4 n^2.

    Passes go over the p x p matrices, or over the differences as in the dual without K alpha.
    """
    if n > p:
        return _primal(n, p, d, Cost(4 * n * p**2 + 12 * p**3, 20 * p**2), 7 * p**2)
    return _primal(n, p, d, Cost(4 * n**2 * p, 24 * n**2), 4 * n**2)


def published_primal(n: int, p: int, d: int) -> ViewsNeed:
    """dis_primal of the published package (lsmmdma 0.1.11, mmdma_functions.py): as ours for n >= p.

    For n < p it forms (X W W^T) X^T beside X X^T, and a gradient: 12 n^2 p. The n x n difference and its square are
    saved, too; the gradient of (X W W^T) X^T with respect to its first factor is n x p.
    """
    if n >= p:
        return _primal(n, p, d, Cost(4 * n * p**2 + 12 * p**3, 20 * p**2), 7 * p**2)
    return _primal(n, p, d, Cost(12 * n**2 * p, 24 * n**2), max(5 * n**2, 3 * n**2 + n * p))


def _primal(n: int, p: int, d: int, distortions: Cost, numbers: int) -> ViewsNeed:
    """The two distortions, with E = X W and its gradient."""
    data = 2 * n * p
    return ViewsNeed(distortions + Cost(passes=4 * n * p), data, data + 8 * p * d + 2 * n * d, numbers)


def dual(n: int, p: int, d: int) -> ViewsNeed:
    """mmdma_core.Dual: the data are there until both kernels are formed; the distortions as in the primal, n <= p.

    In each view 2 passes over K for E = K alpha and its gradient, 12 for the n x n difference and its own.
    """
    kernels = 2 * n**2
    return ViewsNeed(Cost(passes=28 * n**2), 2 * n * p + kernels, kernels + 10 * n * d, 4 * n**2)


def published_dual(n: int, p: int, d: int) -> ViewsNeed:
    """As ours with E E^T - K in place of K - E E^T, whose gradient is not negated: 2 passes fewer in each view."""
    return dual(n, p, d)._replace(cost=Cost(passes=24 * n**2))


# --- Gaussian sums, those of mmdma_core.kernels first ---


def dense(n: int, d: int) -> SumsNeed:
    """Three n x n kernels, each 12 passes forward and 14 backward.

    Of each autograd saves the clamp's input and the exponential, 6 n^2. At the third exponential the first two kernels
    have 4 n^2, the third has 5: |a|^2 + |b|^2, the clamp's input and output, the exponent, the exponential.
    """
    return SumsNeed(Cost(passes=78 * n**2), 9 * n**2, 6 * n**2)


def published_dense(n: int, d: int) -> SumsNeed:
    """gaussian_kernel of the published package: 14 passes forward and 15 backward.

    For the two of one view 6 more, to clear the diagonal. Memory is as ours, but at the exponential the third kernel
    has 4 n^2, |a|^2 + |b|^2 being gone.
    """
    return SumsNeed(Cost(passes=(3 * 29 + 2 * 6) * n**2), 8 * n**2, 6 * n**2)


def keops(n: int, d: int) -> SumsNeed:
    """Three sums and six gradient sums, each of which evaluates the kernel anew.

    Autograd saves two scaled copies of (n, d) and the n sums of each kernel.
    """
    saved = 3 * n * (2 * d + 1)
    return SumsNeed(Cost(evaluated=9 * n**2 * (4 * d + 3 * EXPONENTIAL), threads=n), saved, saved)


def broadcast(n: int, d: int) -> SumsNeed:
    """Three kernels through (n, d, n) differences, which autograd saves with the n x n exponentials: some 8 passes."""
    return _broadcast(3, n**2, d)


def split(n: int, d: int) -> SumsNeed:
    """Four kernels between even and odd rows, n/2 x n/2 each, through the same differences."""
    return _broadcast(4, n**2 / 4, d)


def _broadcast(kernels: int, pairs: float, d: int) -> SumsNeed:
    """Going back through the last square takes three more of its size: the gradient, 2 x, and their product."""
    saved = kernels * pairs * (d + 1)
    return SumsNeed(Cost(passes=8 * kernels * pairs * (d + 1)), saved + 3 * d * pairs, saved)


def linear(n: int, d: int) -> SumsNeed:
    """Lemma 14 of Gretton et al. 2012: four kernels of n/2 pairs, whose differences (n/2, d) autograd saves."""
    saved = 2 * n * (d + 1)
    return SumsNeed(Cost(passes=2 * n * (2 * d + 4)), saved, saved)
