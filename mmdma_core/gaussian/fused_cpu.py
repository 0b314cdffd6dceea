"""MMD2 and its gradient in one pass over the pairs of points, on the CPU, with Numba.

The sum S of k(a, b) = exp(-|a - b|^2 / (2 sigma)) over pairs has the gradient dS/da = sum of k(a, b) (b - a) / sigma,
so one evaluation of k serves the sum and both points' gradients. Every unordered pair is visited once: half of the
pairs within x and within y, all of those across. Coordinates enter as differences only, so that large norms cost no
accuracy, and a point never meets itself.

The points are cut into panels of 256. A pair of panels is treated four rows at a time: squared distances go into a
buffer that stays in the first cache, their exponentials take their place, then k (b - a) is added up for the rows and,
in a buffer of the panel's size, for the columns. Sums run in float32 over at most 256 terms, beyond that in float64.

Operations for a pair in d dimensions: 2 d subtractions, 3 d multiply-adds, and about 14 for the exponential, which is a
polynomial because LLVM vectorises every loop here but no call of math.exp.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import intrinsic

from mmdma_core.objective import squared_mmd

PANEL = 256
ROWS = 4
_WITHIN_X, _WITHIN_Y, _ACROSS = range(3)
_CHUNK = 16  # dimensions of a point that are held in registers at a time

_F = np.float32
_ZERO, _HALF = _F(0), _F(0.5)
_LOWEST = _F(-100.0)  # 2^-100 and less counts as 0, so that its products are never denormal, which is slow
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)
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
    power *= _float_of_bits((whole + _BIAS) << _MANTISSA_BITS)
    return power if t > _LOWEST else _ZERO


@numba.njit(fastmath=True, cache=True)
def _distances(rows, columns, zeros, kernel):
    """Add squared distances in len(zeros) dimensions to kernel (ROWS, PANEL).

    The length of a tuple is known when this is compiled, so that a row's coordinates stay in registers.
    """
    for r in range(ROWS):
        a = zeros
        for k in range(len(zeros)):
            a = tuple_setitem(a, k, rows[r, k])
        for j in range(PANEL):
            total = kernel[r, j]
            for k in range(len(zeros)):
                difference = a[k] - columns[k, j]
                total += difference * difference
            kernel[r, j] = total


@numba.njit(fastmath=True, cache=True)
def _exponentials(kernel, scale):
    for r in range(ROWS):
        for j in range(PANEL):
            kernel[r, j] = exp2(kernel[r, j] * scale)


@numba.njit(fastmath=True, cache=True)
def _pulls(rows, columns, kernel, row_pull, column_pull):
    """Add k (b - a), summed over columns, to row_pull (d, ROWS), and over rows to column_pull (d, PANEL); sum k."""
    for k in range(columns.shape[0]):
        a0, a1, a2, a3 = rows[0, k], rows[1, k], rows[2, k], rows[3, k]
        s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
        for j in range(PANEL):
            b = columns[k, j]
            t0, t1 = kernel[0, j] * (b - a0), kernel[1, j] * (b - a1)
            t2, t3 = kernel[2, j] * (b - a2), kernel[3, j] * (b - a3)
            s0 += t0
            s1 += t1
            s2 += t2
            s3 += t3
            column_pull[k, j] -= (t0 + t1) + (t2 + t3)
        row_pull[k, 0] += s0
        row_pull[k, 1] += s1
        row_pull[k, 2] += s2
        row_pull[k, 3] += s3
    total = _ZERO
    for j in range(PANEL):
        total += (kernel[0, j] + kernel[1, j]) + (kernel[2, j] + kernel[3, j])
    return total


@numba.njit(fastmath=True, cache=True)
def _panel_pair(i, j, across, rows, columns, counts, scale, chunk, rest, kernel, column_pull, pulls):
    """One pair of panels: its sum of k, and the pulls of its points added to pulls (panels, d, PANEL)."""
    d = columns.shape[1]
    whole = d - len(rest)
    total = 0.0
    column_pull[:] = _ZERO
    diagonal = not across and i == j
    for low in range(0, counts[i], ROWS):
        four = rows[i, low : low + ROWS]
        kernel[:] = _ZERO
        for k in range(0, whole, _CHUNK):
            _distances(four[:, k:], columns[j, k:], chunk, kernel)
        _distances(four[:, whole:], columns[j, whole:], rest, kernel)
        _exponentials(kernel, scale)
        kernel[:, counts[j] :] = _ZERO
        kernel[counts[i] - low :] = _ZERO
        if diagonal:
            for r in range(ROWS):
                kernel[r, low + r] = _ZERO
        total += _pulls(four, columns[j], kernel, pulls[i, :, low : low + ROWS], column_pull)
    if not diagonal:  # the square on the diagonal has each pair in both orders
        pulls[j] += column_pull
    return total if diagonal or across else 2 * total


@numba.njit(parallel=True, cache=True)
def _all_pairs(pairs, kinds, rows, columns, counts, scale, chunk, rest, kernels, column_pulls, pulls, sums):
    """Thread t takes every T-th pair of panels and adds to pulls[t, across or not] and sums[t, kind]."""
    threads = len(kernels)
    for t in numba.prange(threads):
        pulls[t] = 0.0
        sums[t] = 0.0
        for q in range(t, len(pairs), threads):
            across = 1 if kinds[q] == _ACROSS else 0
            sums[t, kinds[q]] += _panel_pair(
                pairs[q, 0],
                pairs[q, 1],
                across == 1,
                rows,
                columns,
                counts,
                scale,
                chunk,
                rest,
                kernels[t],
                column_pulls[t],
                pulls[t, across],
            )


@numba.njit(cache=True)
def _pack(points, first, rows, columns):
    """Copy points (n, d) into panels from `first` on: rows (panels, PANEL, d), columns (panels, d, PANEL)."""
    for i in range(points.shape[0]):
        panel, place = first + i // PANEL, i % PANEL
        for k in range(points.shape[1]):
            rows[panel, place, k] = points[i, k]
            columns[panel, k, place] = points[i, k]


@numba.njit(cache=True)
def _unpack(pulls, first, within, across, out):
    """out (n, d) = within x pulls[:, 0] + across x pulls[:, 1], summed over threads in float64."""
    for i in range(out.shape[0]):
        panel, place = first + i // PANEL, i % PANEL
        for k in range(out.shape[1]):
            total = 0.0
            for t in range(pulls.shape[0]):
                total += within * pulls[t, 0, panel, k, place] + across * pulls[t, 1, panel, k, place]
            out[i, k] = total


def threads() -> int:
    """As many threads as PyTorch uses, or as Numba has."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


class FusedMMD:
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32 on the CPU; all memory is taken here.

    O(threads (n_x + n_y) d) bytes. The threads are those of PyTorch.
    """

    def __init__(self, n_x: int, n_y: int, d: int, sigma: float, unbiased: bool) -> None:
        self.n_x, self.n_y, self.sigma, self.unbiased = n_x, n_y, sigma, unbiased
        many = threads()
        panels_x, panels_y = -(-n_x // PANEL), -(-n_y // PANEL)
        panels = panels_x + panels_y
        self._first_y = panels_x
        self._counts = np.full(panels, PANEL)
        self._counts[panels_x - 1] = n_x - (panels_x - 1) * PANEL
        self._counts[-1] = n_y - (panels_y - 1) * PANEL
        self._pairs = np.array([(i, j) for i in range(panels) for j in range(i, panels)])
        of_x = self._pairs < panels_x
        self._kinds = np.where(of_x[:, 1], _WITHIN_X, np.where(of_x[:, 0], _ACROSS, _WITHIN_Y))
        self._rows = np.zeros((panels, PANEL, d), _F)
        self._columns = np.zeros((panels, d, PANEL), _F)
        self._kernels = np.zeros((many, ROWS, PANEL), _F)
        self._column_pulls = np.zeros((many, d, PANEL), _F)
        self._pulls = np.zeros((many, 2, panels, d, PANEL))
        self._sums = np.zeros((many, 3))
        self._chunk = (_ZERO,) * _CHUNK
        self._rest = (_ZERO,) * (d % _CHUNK or _CHUNK)

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> float:
        """MMD2; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        numba.set_num_threads(len(self._sums))
        _pack(e_x.numpy(), 0, self._rows, self._columns)
        _pack(e_y.numpy(), self._first_y, self._rows, self._columns)
        scale = _F(-0.5 * np.log2(np.e) / self.sigma)
        _all_pairs(
            self._pairs,
            self._kinds,
            self._rows,
            self._columns,
            self._counts,
            scale,
            self._chunk,
            self._rest,
            self._kernels,
            self._column_pulls,
            self._pulls,
            self._sums,
        )
        return self._finish(out_x.numpy(), out_y.numpy())

    def _finish(self, out_x: np.ndarray, out_y: np.ndarray) -> float:
        n_x, n_y = self.n_x, self.n_y
        less = 1 if self.unbiased else 0  # cells that a cell is not paired with
        pairs_x, pairs_y = n_x * (n_x - less), n_y * (n_y - less)
        within, across = 2 / self.sigma, -2 / (self.sigma * n_x * n_y)
        mmd = squared_mmd(*torch.from_numpy(self._sums.sum(0)), n_x, n_y, self.unbiased).item()
        if not self.unbiased and mmd == 0:  # clipped: no gradient
            within, across = 0.0, 0.0
        _unpack(self._pulls, 0, within / pairs_x, across, out_x)
        _unpack(self._pulls, self._first_y, within / pairs_y, across, out_y)
        return mmd
