"""MMD2 and its gradient in one pass over the pairs of points, on the CPU, with Numba.

One evaluation of k(a, b) = exp(-|a - b|^2 / (2 sigma)) serves the sum and both points' gradients, see fused/run.py.
Every unordered pair is visited once: half of the pairs within x and within y, all of those across. Distances come from
differences of coordinates, and a point never meets itself.

The points are cut into panels of 256. A pair of panels is treated four rows at a time: squared distances go into a
buffer that stays in the first cache, their exponentials take their place, then k b is added up for the rows and k a, in
a buffer of the panel's size, for the columns. Points are centred between the means of both clouds, and have a last
coordinate of 1, whose sum is that of k itself. Sums run in float32 over at most 256 terms, beyond that in float64.

Where the points lie so wide that a mean pair has k < 2^-48, they are ordered so that neighbours follow one another
(mmdma_core.fused.neighbours), with a box around every 32. Columns whose box lies so far from the four rows that
k < 2^-48 are left out: of a mean of at least 2^-24 this is less than float32's rounding, and where a mean is smaller
the pass is done again down to 2^-100. Of a gradient no pair that is left out makes up more than 2^-44 / sqrt(sigma)
times the pair's weight in the mean.

Operations for a pair in d dimensions: d subtractions, d + 2 (d + 1) multiply-adds, and about 14 for the exponential,
which is a polynomial because LLVM vectorises every loop here but no call of math.exp.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from mmdma_core.fused.neighbours import kd_orders
from mmdma_core.fused.run import MMD
from mmdma_core.fused.tall_skinny import aligned_zeros
from mmdma_core.objective.terms import squared_mmd
from mmdma_core.ranks import Rows

PANEL = 256
ROWS = 4
_BOX = 32  # columns that are left out together
_LEAF = 16  # points that are not parted any more
_CHUNK = 5  # dimensions of two points that are held in registers at a time

_F = np.float32
_ZERO, _HALF = _F(0), _F(0.5)
_LOWEST = _F(-100.0)  # less counts as 2^-100 or 0: products are never denormal, which is slow
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
_FAR = _F(-48.0)  # less is left out, where the means are at least 2^(_FAR / 2)
_ALL = _F(-1e30)  # nothing is left out
_ABSENT = _F(1e18)  # coordinates of a box of nothing
# 2^f on [-1/2, 1/2], interpolated at the Chebyshev points: relative error 1.0e-7
_SERIES = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
_C0, _C1, _C2, _C3, _C4, _C5 = (_F(c) for c in _SERIES.convert(kind=np.polynomial.Polynomial).coef)


@intrinsic
def _float_of_bits(typing_context, bits):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@numba.njit(fastmath=True, inline="always")
def exp2(t: float) -> float:
    """2^t for t <= 0 in float32: the integer part into the exponent's bits, the rest by a polynomial."""
    above = max(t, _LOWEST)
    whole = np.int32(above - _HALF)
    f = above - _F(whole)
    power = _C0 + f * (_C1 + f * (_C2 + f * (_C3 + f * (_C4 + f * _C5))))
    return power * _float_of_bits((whole + _BIAS) << _MANTISSA_BITS)


@numba.njit(cache=True)
def _bounds(span):
    """Where the columns of a span begin and end; of None, which is all of them, this is known when it is compiled."""
    if span is None:
        return np.uintp(0), np.uintp(PANEL)
    return span


@numba.njit(fastmath=True, cache=True)
def _distances(rows, columns, zeros, span, kernel):
    """Add squared distances in len(zeros) dimensions to kernel (ROWS, PANEL), for the columns in the span.

    The length of a tuple is known when this is compiled, so that the coordinates of two rows stay in registers.
    """
    begin, end = _bounds(span)
    for r in range(0, ROWS, 2):
        a, b = zeros, zeros
        for k in range(len(zeros)):
            a, b = tuple_setitem(a, k, rows[r, k]), tuple_setitem(b, k, rows[r + 1, k])
        for j in range(begin, end):
            of_a, of_b = kernel[r, j], kernel[r + 1, j]
            for k in range(len(zeros)):
                from_a, from_b = a[k] - columns[k, j], b[k] - columns[k, j]
                of_a += from_a * from_a
                of_b += from_b * from_b
            kernel[r, j], kernel[r + 1, j] = of_a, of_b


@numba.njit(fastmath=True, cache=True)
def _exponentials(kernel, scale, span):
    begin, end = _bounds(span)
    for r in range(ROWS):
        for j in range(begin, end):
            kernel[r, j] = exp2(kernel[r, j] * scale)


@numba.njit(fastmath=True, cache=True)
def _pulls(rows, columns, kernel, span, row_pull, column_pull):
    """Add k b, summed over columns, to row_pull (d + 1, ROWS), and k a, over rows, to column_pull (d + 1, PANEL)."""
    begin, end = _bounds(span)
    for k in range(columns.shape[0]):
        a0, a1, a2, a3 = rows[0, k], rows[1, k], rows[2, k], rows[3, k]
        s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
        for j in range(begin, end):
            b = columns[k, j]
            k0, k1, k2, k3 = kernel[0, j], kernel[1, j], kernel[2, j], kernel[3, j]
            s0 += k0 * b
            s1 += k1 * b
            s2 += k2 * b
            s3 += k3 * b
            column_pull[k, j] += (k0 * a0 + k1 * a1) + (k2 * a2 + k3 * a3)
        row_pull[k, 0] += s0
        row_pull[k, 1] += s1
        row_pull[k, 2] += s2
        row_pull[k, 3] += s3


@numba.njit(fastmath=True, cache=True)
def _near_columns(four, boxes, scale, lowest, gaps):
    """From where to where the columns of a panel have an exponent of `lowest` or more with any of the four rows.

    boxes (d, 2, boxes): the least and the greatest coordinates of every _BOX columns
    Unsigned, because Numba would ask of every index whether it is negative.
    """
    gaps[:] = _ZERO
    for k in range(boxes.shape[0]):
        least = min(min(four[0, k], four[1, k]), min(four[2, k], four[3, k]))
        greatest = max(max(four[0, k], four[1, k]), max(four[2, k], four[3, k]))
        for box in range(len(gaps)):
            gap = max(max(boxes[k, 0, box] - greatest, least - boxes[k, 1, box]), _ZERO)
            gaps[box] += gap * gap
    begin, end = 0, len(gaps)
    while begin < end and gaps[begin] * scale < lowest:
        begin += 1
    while begin < end and gaps[end - 1] * scale < lowest:
        end -= 1
    return np.uintp(begin * _BOX), np.uintp(end * _BOX)


@numba.njit(fastmath=True, cache=True)
def _row_block(four, columns, span, scale, chunk, rest, there, count, own, kernel, row_pull, column_pull):
    """Four rows, of which so many are `there`, and the columns in a span, of which the first `count` are there.

    own   where the first of the rows is among the columns, below 0 if it is not
    """
    whole = columns.shape[0] - 1 - len(rest)
    kernel[:] = _ZERO
    for k in range(0, whole, _CHUNK):
        _distances(four[:, k:], columns[k:], chunk, span, kernel)
    _distances(four[:, whole:], columns[whole:], rest, span, kernel)
    _exponentials(kernel, scale, span)
    kernel[:, count:] = _ZERO
    kernel[there:] = _ZERO
    if own >= 0:
        for r in range(ROWS):
            kernel[r, own + r] = _ZERO
    _pulls(four, columns, kernel, span, row_pull, column_pull)


@numba.njit(fastmath=True, cache=True)
def _panel_pair(i, j, rows, columns, boxes, counts, scale, lowest, chunk, rest, gaps, kernel, column_pull, pulls):
    """One pair of panels: the pulls of its points, added to pulls (panels, d + 1, PANEL)."""
    column_pull[:] = _ZERO
    for low in range(0, counts[i], ROWS):
        four, pull = rows[i, low : low + ROWS], pulls[i, :, low : low + ROWS]
        there, own = counts[i] - low, low if i == j else -1
        if lowest == _ALL:
            _row_block(four, columns[j], None, scale, chunk, rest, there, counts[j], own, kernel, pull, column_pull)
            continue
        span = _near_columns(four, boxes[j], scale, lowest, gaps)
        if span[0] < span[1]:
            _row_block(four, columns[j], span, scale, chunk, rest, there, counts[j], own, kernel, pull, column_pull)
    if i != j:  # the square on the diagonal has each pair in both orders
        pulls[j] += column_pull


@numba.njit(parallel=True, cache=True)
def _all_pairs(pairs, across, panels, scale, lowest, zeros, gaps, kernels, column_pulls, pulls):
    """Thread t takes every T-th pair of panels and adds to pulls[t, across or not].

    panels  what `_pack` fills, and how many points each panel has
    zeros   a 0 for each coordinate taken at a time, and for each of the last ones
    """
    threads, (rows, columns, boxes, counts), (chunk, rest) = len(kernels), panels, zeros
    for t in numba.prange(threads):
        pulls[t] = 0.0
        for q in range(t, len(pairs), threads):
            i, j = pairs[q]
            into = pulls[t, across[q]]
            buffers = gaps[t], kernels[t], column_pulls[t]
            _panel_pair(i, j, rows, columns, boxes, counts, scale, lowest, chunk, rest, *buffers, into)


@numba.njit(fastmath=True, cache=True)
def _mean_square(x, y, centre):
    """The mean of |z - centre|^2 over the points of both clouds."""
    total = 0.0
    for points in (x, y):
        for i in range(points.shape[0]):
            for k in range(points.shape[1]):
                total += (points[i, k] - centre[k]) ** 2
    return total / (len(x) + len(y))


@numba.njit(cache=True)
def _pack(points, order, centre, first, rows, columns, boxes):
    """Copy points (n, d), in the order, into panels from `first` on, with their boxes.

    rows (panels, PANEL, d + 1), columns (panels, d + 1, PANEL), boxes (panels, d, 2, BOXES)
    """
    d = points.shape[1]
    for panel in range(first, first + (len(order) + PANEL - 1) // PANEL):
        boxes[panel, :, 0], boxes[panel, :, 1] = _ABSENT, -_ABSENT
    for i in range(len(order)):
        panel, place = first + i // PANEL, i % PANEL
        for k in range(d):
            rows[panel, place, k] = columns[panel, k, place] = at = points[order[i], k] - centre[k]
            box = boxes[panel, k, :, place // _BOX]
            box[0], box[1] = min(box[0], at), max(box[1], at)


@numba.njit(cache=True)
def _unpack(pulls, order, first, rows, within, across, out):
    """out (n, d) = the weighted sums of k (b - a), added up over threads in float64; returns both sums of k."""
    d = out.shape[1]
    sum_within, sum_across = 0.0, 0.0
    for i in range(out.shape[0]):
        panel, place = first + i // PANEL, i % PANEL
        k_within, k_across = 0.0, 0.0
        for t in range(pulls.shape[0]):
            k_within += pulls[t, 0, panel, d, place]
            k_across += pulls[t, 1, panel, d, place]
        for k in range(d):
            a = rows[panel, place, k]
            total = -a * (within * k_within + across * k_across)
            for t in range(pulls.shape[0]):
                total += within * pulls[t, 0, panel, k, place] + across * pulls[t, 1, panel, k, place]
            out[order[i], k] = total
        sum_within += k_within
        sum_across += k_across
    return sum_within, sum_across


def threads() -> int:
    """As many threads as PyTorch uses, or as Numba has."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


class FusedMMD(MMD):
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32 on the CPU; all memory is taken here.

    O(threads (n_x + n_y) d) bytes. The threads are those of PyTorch.

    held  the rows of each view that are here: then a rank takes its share of the pairs of panels of all points, which
          it gathers, and the gradients of its own points are added up over the ranks
    """

    def __init__(
        self, n_x: int, n_y: int, d: int, sigma: float, unbiased: bool, held: tuple[Rows, Rows] | None = None
    ) -> None:
        self._held = held or (Rows(n_x), Rows(n_y))
        self.n_x, self.n_y, self.sigma, self.unbiased = n_x, n_y, sigma, unbiased
        self._scale = _F(-0.5 * np.log2(np.e) / sigma)
        many = threads()
        panels_x, panels_y = -(-n_x // PANEL), -(-n_y // PANEL)
        panels = panels_x + panels_y
        self._first_y = panels_x
        self._counts = np.full(panels, PANEL)
        self._counts[panels_x - 1] = n_x - (panels_x - 1) * PANEL
        self._counts[-1] = n_y - (panels_y - 1) * PANEL
        pairs = [(i, j) for i in range(panels) for j in range(i, panels)][self._held[0].rank :: self._held[0].size]
        self._pairs = np.array(pairs, np.int64).reshape(-1, 2)
        of_x = self._pairs < panels_x
        self._across = (of_x[:, 0] & ~of_x[:, 1]).astype(np.int64)
        self._rows, self._columns = aligned_zeros((panels, PANEL, d + 1)), aligned_zeros((panels, d + 1, PANEL))
        self._rows[:, :, d] = self._columns[:, d] = 1
        self._boxes, self._gaps = aligned_zeros((panels, d, 2, PANEL // _BOX)), aligned_zeros((many, PANEL // _BOX))
        self._orders = np.arange(n_x), np.arange(n_y)
        self._kernels = aligned_zeros((many, ROWS, PANEL))
        self._column_pulls = aligned_zeros((many, d + 1, PANEL))
        self._pulls = np.zeros((many, 2, panels, d + 1, PANEL))
        self._zeros = (_ZERO,) * _CHUNK, (_ZERO,) * (d % _CHUNK or _CHUNK)

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> float:
        """MMD2; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        numba.set_num_threads(len(self._kernels))
        outs = out_x, out_y
        e_x, e_y = (held.gather(e) for held, e in zip(self._held, (e_x, e_y), strict=True))
        out_x, out_y = (held.room(out) for held, out in zip(self._held, outs, strict=True))
        centre = ((e_x.mean(0) + e_y.mean(0)) / 2).numpy()
        # Of clouds of one size twice the mean square of the points is the mean square of their distances.
        squares = 2 * _mean_square(e_x.numpy(), e_y.numpy(), centre)
        lowest = _FAR if squares * self._scale < _FAR else _ALL
        self._arrange(e_x, e_y, centre, lowest)
        sums = self._sum_pairs(lowest, out_x, out_y)
        n_x, n_y, diagonal = self.n_x, self.n_y, 0 if self.unbiased else 1
        means = (sums[0] / n_x + diagonal) / n_x, (sums[1] / n_y + diagonal) / n_y, sums[2] / (n_x * n_y)
        if lowest == _FAR and min(means) < 2.0 ** (_FAR / 2):
            sums = self._sum_pairs(_LOWEST, out_x, out_y)
        mmd = squared_mmd(*torch.from_numpy(sums), n_x, n_y, self.unbiased).item()
        if not self.unbiased and mmd == 0:  # clipped: no gradient
            out_x.zero_()
            out_y.zero_()
        for held, part, out in zip(self._held, (out_x, out_y), outs, strict=True):
            held.give(part, out)
        return mmd

    def _arrange(self, e_x: torch.Tensor, e_y: torch.Tensor, centre: np.ndarray, lowest: np.float32) -> None:
        """Put the points into panels, neighbours together if pairs may be left out."""
        if lowest > _ALL:
            kd_orders(e_x.numpy(), e_y.numpy(), _LEAF, *self._orders)
        else:
            for order in self._orders:
                order.sort()
        for e, order, first in zip((e_x, e_y), self._orders, (0, self._first_y), strict=True):
            _pack(e.numpy(), order, centre, first, self._rows, self._columns, self._boxes)

    def _sum_pairs(self, lowest: np.float32, out_x: torch.Tensor, out_y: torch.Tensor) -> np.ndarray:
        """The sums of k within x, within y and across, from pairs whose exponent may be `lowest` or more.

        Sums over all pairs; out_x (n_x, d) and out_y (n_y, d) become this rank's part of the gradients.
        """
        _all_pairs(
            self._pairs,
            self._across,
            (self._rows, self._columns, self._boxes, self._counts),
            self._scale,
            lowest,
            self._zeros,
            self._gaps,
            self._kernels,
            self._column_pulls,
            self._pulls,
        )
        n_x, n_y = self.n_x, self.n_y
        less = 1 if self.unbiased else 0  # cells that a cell is not paired with
        unit = 2 / self.sigma
        across = -unit / (n_x * n_y)
        within_x, within_y = unit / (n_x * (n_x - less)), unit / (n_y * (n_y - less))
        (order_x, order_y), rows = self._orders, self._rows
        sum_xx, sum_xy = _unpack(self._pulls, order_x, 0, rows, within_x, across, out_x.numpy())
        sum_yy, _ = _unpack(self._pulls, order_y, self._first_y, rows, within_y, across, out_y.numpy())
        return self._held[0].sum(np.array([sum_xx, sum_yy, sum_xy]))
