"""The work of an epoch of each variant, as a function of n, p and d, after the paper's Table A1.

A cost is counted for both views, forward and backward, in kinds of work that a machine does at rates of their own:
matrix products, which run near a machine's peak; passes of element-wise steps and of tall-skinny products over arrays
in memory; the Gaussian kernel evaluated in registers, by KeOps or by this project's own compiled passes. `seconds`
weighs them with the rates of a machine; the ratio of two costs of one variant carries a measured time from one n, p to
another.

Like mmdma_core.models, nothing that computes imports this module.

What a variant costs: operations of an epoch (costs) and bytes (memory), as formulas of n, p and d.

Nothing that computes imports this room but to state a model, and no model is part of a variant's digest, so that a
formula may be made better without measuring anew.

The bytes that a variant needs, as functions of n, p and d, counted term by term from its code.

A model gives the most that is allocated at one moment of `start` or of an epoch (forward, backward, Adam), the two
views included, both n x p in float32. It leaves out what a process holds anyway (libraries, a CUDA context) and what
a library takes for itself. Beside terms in n^2 or p^2, terms in n d and p d are counted where they last.

A model is composed: a formulation states what it holds and what its two distortions take, the Gaussian sums what they
take and what autograd keeps of them until the backward pass. Autograd goes back through the distortions first, while
all of that is still held, so that the peak is

    max(prepare, held + max(sums' peak, sums' saved + distortions))

Nothing that computes imports this module (benchmarks.measuring.fingerprint leaves it out of a variant's fingerprint).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

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


def composed_cost(formulation: CostModel, sums: Callable[[int, int], Cost]) -> CostModel:
    """The cost of a formulation of both views with these Gaussian sums."""
    return lambda n, p, d: formulation(n, p, d) + sums(n, d)


def primal_cost(n: int, p: int, d: int) -> Cost:
    """n > p: G = X^T X, R R and its gradient, 4 n p^2 + 12 p^3. n <= p: the n x n difference, 4 n^2 p.

    Passes: E = X W and its gradient; over the p x p matrices, or over the differences as in the dual without K alpha.
    """
    distortion = Cost(4 * n * p**2 + 12 * p**3, 20 * p**2) if n > p else Cost(4 * n**2 * p, 24 * n**2)
    return distortion + Cost(passes=4 * n * p)


def dual_cost(n: int, p: int, d: int) -> Cost:
    """For each view 2 passes over K for E = K alpha and its gradient, 12 for the n x n difference and its own."""
    return Cost(passes=28 * n**2)


def dense_cost(n: int, d: int) -> Cost:
    """Three n x n kernels, each 12 passes forward and 14 backward."""
    return Cost(passes=78 * n**2)


def keops_cost(n: int, d: int) -> Cost:
    """Three sums and six gradient sums, each of which evaluates the kernel anew."""
    return Cost(evaluated=9 * n**2 * (4 * d + 3 * _EXP), threads=n)


def broadcast_cost(n: int, d: int) -> Cost:
    """Three (n, d, n) tensors of differences, some 8 passes over each."""
    return Cost(passes=24 * n**2 * (d + 1))


def halves_cost(n: int, d: int) -> Cost:
    """Four kernels between even and odd rows, n/2 x n/2 each, through the same differences."""
    return Cost(passes=8 * n**2 * (d + 1))


def pairs_cost(n: int, d: int) -> Cost:
    """Lemma 14 of Gretton et al. 2012: four kernels of n/2 pairs."""
    return Cost(passes=2 * n * (2 * d + 4))


def fused_pairs_cost(n: int, d: int) -> Cost:
    """Each unordered pair of the 2 n points once.

    Pairs that lie too far apart to count are counted here, since where the points will lie is not known.
    """
    return Cost(compiled=2 * n**2 * (6 * d + _EXP))


def fourier_cost(n: int, d: int) -> Cost:
    """Cosines and sines of the 2 n points at 256 frequencies, in two passes, and the gradient's sums in the second."""
    return Cost(compiled=2 * n * 256 * (6 * d + 2 * _EXP))


def fused_primal_cost(n: int, p: int, d: int) -> Cost:
    """For p < n products with X and with G, two of each; else four with X."""
    return Cost(compiled=8 * p**2 * d + 8 * n * p * d if p < n else 16 * n * p * d)


def fused_dual_cost(n: int, p: int, d: int) -> Cost:
    """As `fused_primal`, and two more passes over each X: W = X^T alpha, and the gradient's way back."""
    return fused_primal_cost(n, p, d) + Cost(compiled=8 * n * p * d)


# --- the published package (lsmmdma 0.1.11, mmdma_functions.py) ---


def published_primal_cost(n: int, p: int, d: int) -> Cost:
    """dis_primal: as ours for n >= p. For n < p it forms (X W W^T) X^T beside X X^T, and a gradient: 12 n^2 p."""
    if n < p:
        return Cost(12 * n**2 * p, 24 * n**2 + 4 * n * p)
    return Cost(4 * n * p**2 + 12 * p**3, 20 * p**2 + 4 * n * p)


def published_dual_cost(n: int, p: int, d: int) -> Cost:
    """As ours with E E^T - K in place of K - E E^T, whose gradient is not negated: 2 passes fewer in each view."""
    return Cost(passes=24 * n**2)


def published_dense_cost(n: int, d: int) -> Cost:
    """gaussian_kernel: 14 passes forward and 15 backward; for the two of one view 6 more, to clear the diagonal."""
    return Cost(passes=(3 * 29 + 2 * 6) * n**2)


COST_OF_PUBLISHED: dict[str, CostModel] = {
    "published-primal": composed_cost(published_primal_cost, published_dense_cost),
    "published-primal-keops": composed_cost(published_primal_cost, keops_cost),
    "published-dual": composed_cost(published_dual_cost, published_dense_cost),
    "published-dual-keops": composed_cost(published_dual_cost, keops_cost),
}


MemoryModel = Callable[[int, int, int], int]  # (n, p, d) -> bytes
RankMemoryModel = Callable[..., int]  # (n, p, d, ranks = 1) -> bytes of each of the ranks that share the rows
SINGLE, DOUBLE = 4, 8  # bytes of a number


def in_words(size: float) -> str:
    """Bytes as a text: in GiB, below one in MiB, below one in KiB, with three digits."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            number = size / unit
            return f"{number:,.0f} {name}" if number >= 999.5 else f"{number:.3g} {name}"
    return f"{size:.0f} bytes"


@dataclass(frozen=True)
class FormulationMemory:
    """Bytes of the two views in a formulation.

    prepare      most that is held while they are prepared, the data included
    held         from then on: data or kernels, parameters, their gradients, Adam's two moments, embeddings
    distortions  most that both distortions take beyond that, forward or backward
    """

    prepare: int
    held: int
    distortions: int


@dataclass(frozen=True)
class SumsMemory:
    """Bytes of the three Gaussian sums: the most that they take, and what autograd saves of them."""

    peak: int
    saved: int


def composed_memory(
    formulation: Callable[[int, int, int], FormulationMemory], sums: Callable[[int, int], SumsMemory]
) -> MemoryModel:
    """The model of a formulation of both views with these sums, by the rule above."""

    def model(n: int, p: int, d: int) -> int:
        views, kernels = formulation(n, p, d), sums(n, d)
        return max(views.prepare, views.held + max(kernels.peak, kernels.saved + views.distortions))

    return model


def primal_memory(n: int, p: int, d: int) -> FormulationMemory:
    """mmdma_core.Primal.

    n > p: G and R of both views are saved; back through the second R R come the gradient of its trace and those of
    both factors: 7 p^2. n <= p: both differences, the gradient of the second norm and its negative: 4 n^2.
    """
    return _primal_bytes(n, p, d, 7 * p * p if n > p else 4 * n * n)


def _primal_bytes(n: int, p: int, d: int, distortions: int) -> FormulationMemory:
    data = 2 * n * p
    return FormulationMemory(SINGLE * data, SINGLE * (data + 8 * p * d + 2 * n * d), SINGLE * distortions)


def dual_memory(n: int, p: int, d: int) -> FormulationMemory:
    """mmdma_core.Dual: the data are held until both kernels are formed; the distortions as in the primal, n <= p."""
    kernels = 2 * n * n
    return FormulationMemory(SINGLE * (2 * n * p + kernels), SINGLE * (kernels + 10 * n * d), SINGLE * 4 * n * n)


def dense_memory(n: int, d: int) -> SumsMemory:
    """mmdma_core.kernels: of each kernel autograd saves the clamp's input and the exponential, 6 n^2.

    At the third exponential the first two kernels have 4 n^2, the third has 5: |a|^2 + |b|^2, the clamp's input and
    output, the exponent, the exponential.
    """
    return SumsMemory(SINGLE * 9 * n * n, SINGLE * 6 * n * n)


def keops_memory(n: int, d: int) -> SumsMemory:
    """mmdma_core.kernels: autograd saves two scaled copies of (n, d) and the n sums of each kernel."""
    saved = SINGLE * 3 * n * (2 * d + 1)
    return SumsMemory(saved, saved)


# --- the published package (lsmmdma 0.1.11, mmdma_functions.py) ---


def published_primal_memory(n: int, p: int, d: int) -> FormulationMemory:
    """dis_primal: as ours for n >= p; for n < p the n x n difference and its square are saved, too.

    There the gradient of (X W W^T) X^T with respect to its first factor is n x p.
    """
    return _primal_bytes(n, p, d, 7 * p * p if n >= p else max(5 * n * n, 3 * n * n + n * p))


def published_dense(n: int, d: int) -> SumsMemory:
    """gaussian_kernel: as ours, but at the exponential the third kernel has 4 n^2, |a|^2 + |b|^2 being gone."""
    return SumsMemory(SINGLE * 8 * n * n, SINGLE * 6 * n * n)


# --- the two original implementations: kernels in, squared differences through an (n, d, n) tensor ---


def broadcast_memory(n: int, d: int) -> SumsMemory:
    """Three kernels through (n, d, n) differences, which autograd saves with the n x n exponentials."""
    return _broadcast_bytes(3, n, d)


def halves_memory(n: int, d: int) -> SumsMemory:
    """Four kernels between even and odd rows, n/2 x n/2 each, through the same broadcast."""
    return _broadcast_bytes(4, n / 2, d)


def _broadcast_bytes(kernels: int, rows: float, d: int) -> SumsMemory:
    """Going back through the last square takes three more of its size: the gradient, 2 x, and their product."""
    saved = SINGLE * kernels * (d + 1) * rows**2
    return SumsMemory(int(saved + SINGLE * 3 * d * rows**2), int(saved))


def pairs_memory(n: int, d: int) -> SumsMemory:
    """Lemma 14 of Gretton et al. 2012: four kernels of n/2 pairs, whose differences (n/2, d) autograd saves."""
    saved = SINGLE * 2 * n * (d + 1)
    return SumsMemory(saved, saved)


MEMORY_OF_PUBLISHED: dict[str, MemoryModel] = {
    "published-primal": composed_memory(published_primal_memory, published_dense),
    "published-primal-keops": composed_memory(published_primal_memory, keops_memory),
    "published-dual": composed_memory(dual_memory, published_dense),
    "published-dual-keops": composed_memory(dual_memory, keops_memory),
}
MEMORY_OF_ORIGINALS: dict[str, MemoryModel] = {  # the first two compute the same tensors, in TensorFlow and in PyTorch
    "original-2019": composed_memory(dual_memory, broadcast_memory),
    "original-2020": composed_memory(dual_memory, broadcast_memory),
    "original-2020-stream": composed_memory(dual_memory, halves_memory),
    "linear-time": composed_memory(primal_memory, pairs_memory),
}

# --- the fused variants on the CPU ---

_PANEL, _PULLS, _BOXES = 256, 264, 8  # of mmdma_core.fused.pairs_cpu
_GRAM_ROWS, _NORM_ROWS = 4096, 512  # rows that are converted at a time, mmdma_core.fused.views_cpu
_BYTES_PER_PAIR = 8 + 56 + 32 + 2 * 8  # a slot of CPython's list, a tuple, an integer; two numbers of the array


_COUNTED_PAIRS = 20_000  # cells up to which the Fourier variants' loss is exact, mmdma_core.fused.compose
_FREQUENCIES = 256  # of an epoch, mmdma_core.settings
_FIXED_FREQUENCIES = 4096  # and those of the loss beyond, mmdma_core.fused.fourier


def fused_pairs_memory(n: int, d: int, ranks: int = 1) -> int:
    """FusedMMD: the points in panels twice, their order, pulls in float64 of each thread, the pairs of panels.

    Of several ranks each has this of all points, gathers both clouds, and adds up both gradients, one in float64.
    """
    panels = 2 * -(-n // _PANEL)
    points = panels * _PANEL * (d + 1)
    unordered = panels * (panels + 1) // 2
    boxes = SINGLE * panels * d * 2 * _BOXES
    pulls = 2 * DOUBLE * torch.get_num_threads() * panels * _PULLS * (d + 1)
    shared = (2 * 2 * SINGLE + DOUBLE) * n * d if ranks > 1 else 0
    return boxes + 2 * SINGLE * points + 8 * 2 * n + pulls + _BYTES_PER_PAIR * unordered + shared


def fourier_memory(n: int, d: int, ranks: int = 1) -> int:
    """CpuFourierMMD: for few cells the exact one that gives the loss, else what the loss' frequencies take."""
    if n <= _COUNTED_PAIRS:
        return fused_pairs_memory(n, d, ranks)
    return _FIXED_FREQUENCIES * ((2 * SINGLE + 2 * DOUBLE) * d + (SINGLE + DOUBLE) * 2 * torch.get_num_threads())


def fused_primal_memory(sums: Callable[[int, int, int], int]) -> RankMemoryModel:
    """mmdma_core.fused.views_cpu.CpuView on as many threads as PyTorch has now; sums(n, d, ranks) are MMD2's own.

    The model (n, p, d, ranks = 1) gives what one of `ranks` processes needs that share the n rows of both views.
    """
    return lambda n, p, d, ranks=1: _fused_bytes(n, p, d, p, sums, ranks)


def fused_dual_memory(sums: Callable[[int, int, int], int]) -> MemoryModel:
    """mmdma_core.fused.views_cpu.CpuDualView: its parameters, and their gradient, have n rows."""
    return lambda n, p, d: _fused_bytes(n, p, d, n, sums, 1)


def _fused_bytes(n: int, p: int, d: int, rows: int, sums: Callable[[int, int, int], int], ranks: int) -> int:
    """Peak of preparing the second view, or of what MMD2 holds once both are prepared.

    rows of the parameters. Of several ranks each holds its share of the views' rows; for p >= n it has those of one
    other rank beside them while it prepares.
    """
    threads, own = torch.get_num_threads(), -(-n // ranks)
    products = (SINGLE * (threads + 1) + DOUBLE * threads) * p * d  # TallSkinnyProducts of X
    view = products + SINGLE * (2 * own + rows) * d + DOUBLE * 3 * p * d
    if p < n:
        view += DOUBLE * (p * p + (2 * threads + 3) * p * d)  # G and its products, T and G T
        forming = DOUBLE * (p * p + min(own, _GRAM_ROWS) * p)  # X^T X of a block of rows, and the block
    else:
        forming = DOUBLE * 2 * min(own, _NORM_ROWS) * p + (SINGLE * own * p if ranks > 1 else 0)
    adam = SINGLE * 2 * 3 * rows * d
    return SINGLE * 2 * own * p + 2 * view + max(forming, sums(n, d, ranks) + adam)


# --- the fused variants on CUDA: nothing there depends on the host's threads ---

_AT_ONCE = 2**24  # numbers of X in float64, or phases, that are held at a time
_PROGRAMS, _ROWS = 4096, 128  # of mmdma_core.fused.pairs_cuda, its rows those of the first tile
_SORTED_TWICE = 2  # old and new places of the points while they are parted
_MORE_DIRECTIONS = 8  # of mmdma_core.fused.views_cuda


def cuda_pairs_memory(n: int, d: int, ranks: int = 1) -> int:
    """FusedMMD: the orders, and the most of a sort (kd_order of one cloud) or of a pass over all blocks.

    A pass holds the points, padded, the blocks' boxes, and for each segment of the columns sums and pulls. Of several
    ranks each has this of all points, gathers both clouds, and adds up both gradients, one in float64.
    """
    padded = max(16, 2 ** math.ceil(math.log2(d + 2)))
    of_cloud = -(-n // _ROWS)
    blocks = 2 * of_cloud
    own = -(-blocks // ranks)
    segments = -(-of_cloud // -(-of_cloud // max(1, _PROGRAMS // own)))
    taken = SINGLE * 2 * n * padded + SINGLE * blocks * (3 * padded + 1)
    taken += segments * (DOUBLE * 2 * blocks + SINGLE * 2 * n * d) + SINGLE * 2 * n * d
    places = _ROWS * 2 ** max(0, math.ceil(math.log2(n / _ROWS)))
    sort = SINGLE * n * d + places * (DOUBLE + _SORTED_TWICE * SINGLE * d + d)
    shared = (2 * 2 * SINGLE + DOUBLE) * n * d if ranks > 1 else 0
    return 2 * 8 * n + max(taken, sort) + shared


def cuda_fourier_memory(n: int, d: int, ranks: int = 1) -> int:
    """CudaFourierMMD: a block of phases, three times in float64 and once in float32; for few cells the exact one."""
    own, frequencies = -(-n // ranks), _FREQUENCIES
    exact = cuda_pairs_memory(n, d, ranks) if n <= _COUNTED_PAIRS else 0
    if not exact:
        frequencies = _FIXED_FREQUENCIES  # those of the loss
    block = min(own * frequencies, _AT_ONCE)
    return max(exact, (3 * DOUBLE + SINGLE) * block + SINGLE * 4 * own * d)


def cuda_primal_memory(sums: Callable[[int, int, int], int]) -> RankMemoryModel:
    """mmdma_core.fused.views_cuda.CudaView; the arguments are those of `primal_fused`."""
    return lambda n, p, d, ranks=1: _on_cuda(n, p, d, p, sums, ranks)


def cuda_dual_memory(sums: Callable[[int, int, int], int]) -> MemoryModel:
    """mmdma_core.fused.views_cuda.CudaDualView."""
    return lambda n, p, d: _on_cuda(n, p, d, n, sums, 1)


def _on_cuda(n: int, p: int, d: int, rows: int, sums: Callable[[int, int, int], int], ranks: int) -> int:
    """Peak of preparing the second view, or of an epoch; the arguments are those of `_fused`.

    A block of X is there until the next one is, and beside it: for p >= n one of another loop.
    """
    own = -(-n // ranks)
    if p < n:
        view = DOUBLE * p * p  # G, and to form it blocks of X, then its squares
        forming = DOUBLE * max(min(own * p, 2 * _AT_ONCE), min(own * p, _AT_ONCE) + p * p)
    else:
        k = min(n, d + _MORE_DIRECTIONS)
        view = (2 * DOUBLE * p + SINGLE * own) * k  # U, X^T X U and X U
        products = 2 * DOUBLE * min(own, max(1, _AT_ONCE // p)) ** 2
        forming = DOUBLE * min(2 * own * p, 3 * _AT_ONCE) + products + (SINGLE * own * p if ranks > 1 else 0)
    adam = SINGLE * 2 * 3 * rows * d
    epoch = 2 * (SINGLE * own * d + 2 * DOUBLE * p * d + SINGLE * rows * d)  # E, W and T, the gradient
    taken = max(sums(n, d, ranks), 5 * DOUBLE * p * d + (DOUBLE * own * d if p >= n else 0))
    return SINGLE * 2 * own * p + 2 * (view + SINGLE * own * d) + max(forming, adam + epoch + taken)
