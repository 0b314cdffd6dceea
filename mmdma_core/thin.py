"""Products of a large matrix with a thin one, on the CPU, with Numba: each reads the large matrix once.

With X (n, p) and thin matrices of d columns, for every row x_i:

    rows:   out_i = base_i + alpha x_i W         W (p, d)
    sums:   total = sum_i x_i^T out_i            (p, d)

Four rows at a time are taken through both, so that X is read from memory once where the two follow each other, and two
columns of the thin matrices, so that what is loaded is used more than once.
"""

from __future__ import annotations

import numba
import numpy as np
import torch

_ROWS = 4
_CHUNK = 8192  # columns of X whose four rows stay in the second cache
_FLUSH = 256  # rows after which partial sums go into float64


@numba.njit(fastmath=True, cache=True)
def _add_rows(x, low, w_t, alpha, out):
    """out (4, d) += alpha x[low : low + 4] W, W given as w_t (d, p), d even."""
    for first in range(0, x.shape[1], _CHUNK):
        last = min(first + _CHUNK, x.shape[1])
        x0, x1, x2, x3 = (x[low][first:last], x[low + 1][first:last], x[low + 2][first:last], x[low + 3][first:last])
        for k in range(0, w_t.shape[0], 2):
            u, v = w_t[k][first:last], w_t[k + 1][first:last]
            r0 = r1 = r2 = r3 = s0 = s1 = s2 = s3 = x.dtype.type(0)
            for j in range(len(x0)):
                r0 += x0[j] * u[j]
                r1 += x1[j] * u[j]
                r2 += x2[j] * u[j]
                r3 += x3[j] * u[j]
                s0 += x0[j] * v[j]
                s1 += x1[j] * v[j]
                s2 += x2[j] * v[j]
                s3 += x3[j] * v[j]
            out[0, k] += alpha * r0
            out[1, k] += alpha * r1
            out[2, k] += alpha * r2
            out[3, k] += alpha * r3
            out[0, k + 1] += alpha * s0
            out[1, k + 1] += alpha * s1
            out[2, k + 1] += alpha * s2
            out[3, k + 1] += alpha * s3


@numba.njit(fastmath=True, cache=True)
def _add_sums(x, low, rows, total_t):
    """total_t (d, p) += (x[low : low + 4]^T rows)^T, rows (4, d), d even."""
    for first in range(0, x.shape[1], _CHUNK):
        last = min(first + _CHUNK, x.shape[1])
        x0, x1, x2, x3 = (x[low][first:last], x[low + 1][first:last], x[low + 2][first:last], x[low + 3][first:last])
        for k in range(0, total_t.shape[0], 2):
            u, v = total_t[k][first:last], total_t[k + 1][first:last]
            r0, r1, r2, r3 = rows[0, k], rows[1, k], rows[2, k], rows[3, k]
            s0, s1, s2, s3 = rows[0, k + 1], rows[1, k + 1], rows[2, k + 1], rows[3, k + 1]
            for j in range(len(x0)):
                y0, y1, y2, y3 = x0[j], x1[j], x2[j], x3[j]
                u[j] += (y0 * r0 + y1 * r1) + (y2 * r2 + y3 * r3)
                v[j] += (y0 * s0 + y1 * s1) + (y2 * s2 + y3 * s3)


@numba.njit(cache=True)
def _flush(partial, total):
    """total += partial, partial = 0; loops, because `total += partial` would take a matrix for the conversion."""
    for k in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[k, j] += partial[k, j]
            partial[k, j] = 0


@numba.njit(parallel=True, cache=True)
def _sweep(x, w_t, alpha, out, with_rows, with_sums, fours, partial, totals):
    """Thread t takes a contiguous share of the rows; totals[t] (d, p) in float64 are its sums."""
    n, threads = x.shape[0], len(totals)
    groups = (n + _ROWS - 1) // _ROWS
    for t in numba.prange(threads):
        totals[t] = 0.0
        partial[t] = 0.0
        begin, end = groups * t // threads, groups * (t + 1) // threads
        done = 0
        for group in range(begin, end):
            low = max(0, min(group * _ROWS, n - _ROWS))
            fresh = group * _ROWS - low  # rows of the last group that the one before has done already
            four = fours[t]
            four[:] = 0
            if with_rows:
                _add_rows(x, low, w_t, alpha, four)
            for r in range(_ROWS):
                for k in range(out.shape[1]):
                    if r < fresh:
                        four[r, k] = 0
                    else:
                        four[r, k] += out[low + r, k]
                        out[low + r, k] = four[r, k]
            if with_sums:
                _add_sums(x, low, four, partial[t])
                done += _ROWS
                if done >= _FLUSH or group == end - 1:
                    _flush(partial[t], totals[t])
                    done = 0


@numba.njit(fastmath=True, cache=True)
def inner(a, b, out):
    """out (d, d) = A^T B for thin A, B (n, d), summed in out's type.

    BLAS would wake its own threads for this, and they keep a core busy for a while after.
    """
    out[:] = 0
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            for m in range(b.shape[1]):
                out[k, m] += a[i, k] * b[i, m]


@numba.njit(fastmath=True, cache=True)
def add_outer(a, b, scale, out):
    """out (n, d) += scale A B for thin A (n, d) and B (d, d)."""
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            factor = scale * a[i, k]
            for m in range(b.shape[1]):
                out[i, m] += factor * b[k, m]


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Zeros that begin at a cache line, as PyTorch's do and NumPy's need not."""
    return torch.from_numpy(np.zeros((), dtype)).new_zeros(shape).numpy()


class ThinProducts:
    """The products of one matrix X (n, p) with thin matrices of d columns; all memory is taken here."""

    def __init__(self, x: np.ndarray, d: int, threads: int) -> None:
        self._short = max(0, _ROWS - len(x))
        self._x = np.pad(x, ((0, self._short), (0, 0))) if self._short else x
        self._out = np.zeros((len(self._x), d), x.dtype)
        self._d, even = d, d + d % 2
        self._w_t = aligned_zeros((even, x.shape[1]), x.dtype)
        self._fours = np.zeros((threads, _ROWS, even), x.dtype)
        self._partial = aligned_zeros((threads, even, x.shape[1]), x.dtype)
        self._totals = np.zeros((threads, even, x.shape[1]))
        self._sum = np.zeros((even, x.shape[1]))

    def rows(self, w: np.ndarray, out: np.ndarray) -> None:
        """out (n, d) = X W."""
        out[:] = 0
        self._run(w, 1.0, out, True, False)

    def sums(self, rows: np.ndarray, total: np.ndarray) -> None:
        """total (p, d) = X^T rows, rows (n, d)."""
        self._run(None, 0.0, rows, False, True)
        self._finish(total)

    def rows_then_sums(self, w: np.ndarray, alpha: float, out: np.ndarray, total: np.ndarray) -> None:
        """out (n, d) += alpha X W, then total (p, d) = X^T out."""
        self._run(w, alpha, out, True, True)
        self._finish(total)

    def _run(self, w: np.ndarray | None, alpha: float, out: np.ndarray, with_rows: bool, with_sums: bool) -> None:
        numba.set_num_threads(len(self._totals))
        if w is not None:
            self._w_t[: self._d] = w.T
        target = out
        if self._short:
            target = self._out
            target[: len(out)] = out
        _sweep(
            self._x,
            self._w_t,
            self._x.dtype.type(alpha),
            target,
            with_rows,
            with_sums,
            self._fours,
            self._partial,
            self._totals,
        )
        if self._short:
            out[:] = target[: len(out)]

    def _finish(self, total: np.ndarray) -> None:
        np.sum(self._totals, axis=0, out=self._sum)
        total[:] = self._sum[: self._d].T
