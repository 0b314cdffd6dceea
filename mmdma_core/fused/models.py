"""What the fused variants cost, as mmdma_core.models has it for the others: counted term by term from the code here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from mmdma_core.models import DOUBLE, EXPONENTIAL, SINGLE, Cost, CostModel, MemoryModel

_FREQUENCIES = 256  # of an epoch, mmdma_core.settings
_FIXED_FREQUENCIES = 4096  # and those of the loss beyond, mmdma_core.fused.fourier
_COUNTED_PAIRS = 20_000  # cells up to which the Fourier variants' loss is exact, mmdma_core.fused.compose


class FusedSums(NamedTuple):
    """What a way to MMD2 takes, for n cells, d components and so many ranks.

    cost     (n, d): the work of an epoch
    on_cpu   (n, d, ranks): bytes of each rank, on as many threads as PyTorch has now
    on_cuda  the same on CUDA, where nothing depends on the host's threads
    """

    cost: Callable[[int, int], Cost]
    on_cpu: Callable[[int, int, int], int]
    on_cuda: Callable[[int, int, int], int]


def composed(formulation: str, sums: FusedSums) -> dict[str, CostModel | MemoryModel]:
    """Return the models of a fused variant as keywords of `register`; a fourth argument of memory is the ranks."""

    def rows(n: int, p: int) -> int:
        return p if formulation == "primal" else n

    def cost(n: int, p: int, d: int) -> Cost:
        """For p < n products with X and with G, two of each; else four with X.

        In the dual two more passes over each X: W = X^T alpha, and the gradient's way back.
        """
        views = 8 * p**2 * d + 8 * n * p * d if p < n else 16 * n * p * d
        mapped = 8 * n * p * d if formulation == "dual" else 0
        return Cost(compiled=views + mapped) + sums.cost(n, d)

    def memory(n: int, p: int, d: int, ranks: int = 1) -> int:
        return _on_cpu(n, p, d, rows(n, p), ranks, sums.on_cpu(n, d, ranks))

    def cuda_memory(n: int, p: int, d: int, ranks: int = 1) -> int:
        return _on_cuda(n, p, d, rows(n, p), ranks, sums.on_cuda(n, d, ranks))

    return {"cost_model": cost, "memory_model": memory, "cuda_memory_model": cuda_memory}


# --- on the CPU ---

_PANEL, _PULLS, _BOXES = 256, 264, 8  # of mmdma_core.fused.pairs_cpu
_GRAM_ROWS, _NORM_ROWS = 4096, 512  # rows that are converted at a time, mmdma_core.fused.views_cpu
_BYTES_PER_PAIR = 8 + 56 + 32 + 2 * 8  # a slot of CPython's list, a tuple, an integer; two numbers of the array


def _on_cpu(n: int, p: int, d: int, rows: int, ranks: int, sums: int) -> int:
    """views_cpu: peak of preparing the second view, or of what MMD2 takes once both are prepared.

    rows of the parameters. Of several ranks each has its share of the views' rows; for p >= n it has those of one other
    rank beside them while it prepares.
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
    return SINGLE * 2 * own * p + 2 * view + max(forming, sums + adam)


def _pairs_on_cpu(n: int, d: int, ranks: int) -> int:
    """pairs_cpu: the points in panels twice, their order, pulls in float64 of each thread, the pairs of panels."""
    panels = 2 * -(-n // _PANEL)
    points = panels * _PANEL * (d + 1)
    unordered = panels * (panels + 1) // 2
    boxes = SINGLE * panels * d * 2 * _BOXES
    pulls = 2 * DOUBLE * torch.get_num_threads() * panels * _PULLS * (d + 1)
    return boxes + 2 * SINGLE * points + 8 * 2 * n + pulls + _BYTES_PER_PAIR * unordered + _gathered(n, d, ranks)


def _fourier_on_cpu(n: int, d: int, ranks: int) -> int:
    """fourier_cpu: for few cells the exact one that gives the loss, else what the loss' frequencies take."""
    if n <= _COUNTED_PAIRS:
        return _pairs_on_cpu(n, d, ranks)
    return _FIXED_FREQUENCIES * ((2 * SINGLE + 2 * DOUBLE) * d + (SINGLE + DOUBLE) * 2 * torch.get_num_threads())


def _gathered(n: int, d: int, ranks: int) -> int:
    """Of several ranks each gathers both clouds, and adds up both gradients, one in float64."""
    return (2 * 2 * SINGLE + DOUBLE) * n * d if ranks > 1 else 0


# --- on CUDA ---

_AT_ONCE = 2**24  # numbers of X in float64, or phases, that are there at a time
_PROGRAMS, _ROWS = 4096, 128  # of mmdma_core.fused.pairs_cuda, its rows those of the first tile
_SORTED_TWICE = 2  # old and new places of the points while they are parted
_MORE_DIRECTIONS = 8  # of mmdma_core.fused.views_cuda


def _on_cuda(n: int, p: int, d: int, rows: int, ranks: int, sums: int) -> int:
    """views_cuda: peak of preparing the second view, or of an epoch; the arguments are those of `_on_cpu`.

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
    taken = max(sums, 5 * DOUBLE * p * d + (DOUBLE * own * d if p >= n else 0))
    return SINGLE * 2 * own * p + 2 * (view + SINGLE * own * d) + max(forming, adam + epoch + taken)


def _pairs_on_cuda(n: int, d: int, ranks: int) -> int:
    """pairs_cuda: the orders, and the most of a sort (kd_order of one cloud) or of a pass over all blocks.

    A pass has the points, padded, the blocks' boxes, and for each segment of the columns sums and pulls.
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
    return 2 * 8 * n + max(taken, sort) + _gathered(n, d, ranks)


def _fourier_on_cuda(n: int, d: int, ranks: int) -> int:
    """CudaFrequencies: a block of phases, three times in float64 and once in float32; for few cells the exact one."""
    own, frequencies = -(-n // ranks), _FREQUENCIES
    exact = _pairs_on_cuda(n, d, ranks) if n <= _COUNTED_PAIRS else 0
    if not exact:
        frequencies = _FIXED_FREQUENCIES  # those of the loss
    block = min(own * frequencies, _AT_ONCE)
    return max(exact, (3 * DOUBLE + SINGLE) * block + SINGLE * 4 * own * d)


# Each unordered pair of the 2 n points once. Pairs that lie too far apart to count are counted here, since where the
# points will lie is not known.
PAIRS = FusedSums(lambda n, d: Cost(compiled=2 * n**2 * (6 * d + EXPONENTIAL)), _pairs_on_cpu, _pairs_on_cuda)
# Cosines and sines of the 2 n points at all frequencies, in two passes, and the gradient's sums in the second.
FOURIER = FusedSums(
    lambda n, d: Cost(compiled=2 * n * _FREQUENCIES * (6 * d + 2 * EXPONENTIAL)), _fourier_on_cpu, _fourier_on_cuda
)
