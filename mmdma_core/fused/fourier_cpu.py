"""MMD2 from Fourier features on the CPU, with Numba: O((n_x + n_y) D d), and nothing of size n x D in memory.

Two passes over the points: the means of cosines and sines, then the gradients. A pass takes four points and 256
frequencies at a time; their phases, in turns, stay in the first cache. sin and cos of x turns, |x| <= 1/2, come from
half the angle by two polynomials in x^2; in the second pass one sine will do, since with c + i s = A exp(i u)
s cos(t) - c sin(t) = A sin(u - t). Points are centred between the means of both clouds, which changes no |phi| and no
gradient. Phases of more than _MANY turns are formed in float64. Sums run in float32 over at most 256 terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from numba.cpython.unsafe.tuple import tuple_setitem
from numba.extending import overload

from mmdma_core.fused.fourier import Clouds, Frequencies
from mmdma_core.fused.tall_skinny import aligned_zeros
from mmdma_core.fused.threads import in_threads

ROWS = 4
PANEL = 256  # frequencies at a time
_CHUNK = 5  # dimensions of two points that stay in registers at a time
_FLUSH = 256  # points whose cosines are summed in float32
_MANY = 32.0  # turns, of which float32 keeps parts of 2^-19

_F = np.float32
_ZERO, _HALF, _ONE, _FOUR = _F(0), _F(0.5), _F(1), _F(4)


def _series(function: Callable[[np.ndarray], np.ndarray], degree: int) -> list[np.float32]:
    """Coefficients of a polynomial in x^2 for a function of 0 < x < 1/2."""
    fitted = np.polynomial.Chebyshev.interpolate(lambda square: function(np.sqrt(square)), degree, domain=[0.0, 0.25])
    return [_F(c) for c in fitted.convert(kind=np.polynomial.Polynomial).coef]


# sin(pi x) = x S(x^2), cos(pi x) = C(x^2), sin(2 pi x) = x (1 - 4 x^2) T(x^2)
_S0, _S1, _S2, _S3, _S4 = _series(lambda x: np.pi * np.sinc(x), 4)
_C0, _C1, _C2, _C3, _C4 = _series(lambda x: np.cos(np.pi * x), 4)
_T0, _T1, _T2, _T3, _T4, _T5 = _series(lambda x: 2 * np.pi * np.sinc(2 * x) / (1 - 4 * x**2), 5)


@numba.njit(fastmath=True, cache=True)
def _products(points, turns, first, zeros, phases):
    """Add the products in len(zeros) dimensions from `first` on to phases (ROWS, PANEL).

    The length of a tuple is known when this is compiled, so that the coordinates of two points stay in registers.
    """
    for r in range(0, ROWS, 2):
        a, b = zeros, zeros
        for k in range(len(zeros)):
            a, b = tuple_setitem(a, k, points[r, first + k]), tuple_setitem(b, k, points[r + 1, first + k])
        for j in range(turns.shape[1]):
            of_a, of_b = phases[r, j], phases[r + 1, j]
            for k in range(len(zeros)):
                of_a += a[k] * turns[first + k, j]
                of_b += b[k] * turns[first + k, j]
            phases[r, j], phases[r + 1, j] = of_a, of_b


@numba.njit(fastmath=True, cache=True)
def _phases(points, turns, begin, chunk, rest, phases):
    """Fill phases (ROWS, width) with begin + the products of four points with a panel of frequencies (d, width)."""
    for r in range(ROWS):
        for j in range(len(begin)):
            phases[r, j] = begin[j]
    whole = len(turns) - len(rest)
    for k in range(0, whole, len(chunk)):
        _products(points, turns, k, chunk, phases)
    _products(points, turns, whole, rest, phases)


def _narrow(phases, folded):
    """Phases in float64 as float32, within half a turn of 0, in `folded`; phases in float32 as they are."""


@overload(_narrow, inline="always")
def _narrow_of_type(phases, folded):
    if phases.dtype == numba.float32:
        return lambda phases, folded: phases

    def fold(phases, folded):
        for r in range(ROWS):
            for j in range(phases.shape[1]):
                folded[r, j] = phases[r, j] - np.floor(phases[r, j] + 0.5)
        return folded

    return fold


@numba.njit(fastmath=True, cache=True)
def _add_cosines_and_sines(phases, of_cos, of_sin):
    for j in range(len(of_cos)):
        c, s = _ZERO, _ZERO
        for r in range(ROWS):
            x = phases[r, j] - np.floor(phases[r, j] + _HALF)
            q = x * x
            half = x * (_S0 + q * (_S1 + q * (_S2 + q * (_S3 + q * _S4))))
            s += (half + half) * (_C0 + q * (_C1 + q * (_C2 + q * (_C3 + q * _C4))))
            c += _ONE - (half + half) * half
        of_cos[j] += c
        of_sin[j] += s


@numba.njit(fastmath=True, cache=True)
def _weighted_sines(phases, weights):
    """Replace the phases by weights sin(2 pi phases)."""
    for r in range(ROWS):
        for j in range(len(weights)):
            x = phases[r, j] - np.floor(phases[r, j] + _HALF)
            q = x * x
            sine = x * (_ONE - _FOUR * q) * (_T0 + q * (_T1 + q * (_T2 + q * (_T3 + q * (_T4 + q * _T5)))))
            phases[r, j] = weights[j] * sine


@numba.njit(fastmath=True, cache=True)
def _add_pulls(sines, turns, pulls):
    """Add the sums over frequencies of sine x frequency to pulls (ROWS, d), two dimensions at a time."""
    d, count = turns.shape
    for k in range(0, d, 2):
        m = min(k + 1, d - 1)
        a0, a1, a2, a3 = _ZERO, _ZERO, _ZERO, _ZERO
        b0, b1, b2, b3 = _ZERO, _ZERO, _ZERO, _ZERO
        for j in range(count):
            w, v = turns[k, j], turns[m, j]
            s0, s1, s2, s3 = sines[0, j], sines[1, j], sines[2, j], sines[3, j]
            a0 += s0 * w
            a1 += s1 * w
            a2 += s2 * w
            a3 += s3 * w
            b0 += s0 * v
            b1 += s1 * v
            b2 += s2 * v
            b3 += s3 * v
        for r, of_k in enumerate((a0, a1, a2, a3)):
            pulls[r, k] += of_k
        if m > k:
            for r, of_m in enumerate((b0, b1, b2, b3)):
                pulls[r, m] += of_m


@numba.njit(cache=True)
def _take_points(e, low, high, centre, points):
    """Copy four points from `low` on, centred; beyond `high` the centre itself, whose phases are 0."""
    for r in range(ROWS):
        for k in range(e.shape[1]):
            points[r, k] = e[low + r, k] - centre[k] if low + r < high else 0


@numba.njit(nogil=True, cache=True)
def _sum_cosines_and_sines(t, many, e, centre, turns, begin, zeros, buffers, partial, totals):
    """Fill totals[t] (2, panels, width) with the sums of cosines and sines over thread t's points, in float64.

    turns (panels, d, width). A point that is absent has a cosine of 1, which is subtracted at the end.
    """
    n = len(e)
    (points, phases, folded), (chunk, rest) = buffers, zeros
    totals[t], partial[t] = 0.0, 0.0
    low, high = n * t // many, n * (t + 1) // many
    done = 0
    for i in range(low, high, ROWS):
        _take_points(e, i, high, centre, points[t])
        for panel in range(len(turns)):
            _phases(points[t], turns[panel], begin[panel], chunk, rest, phases[t])
            _add_cosines_and_sines(_narrow(phases[t], folded[t]), partial[t, 0, panel], partial[t, 1, panel])
        done += ROWS
        if done >= _FLUSH or i + ROWS >= high:
            for q in range(2):
                for panel in range(len(turns)):
                    for j in range(turns.shape[2]):
                        totals[t, q, panel, j] += partial[t, q, panel, j]
                        partial[t, q, panel, j] = 0
            done = 0
    totals[t, 0] -= (low - high) % ROWS


@numba.njit(nogil=True, cache=True)
def _gradient(t, many, e, centre, turns, begin, zeros, buffers, weights, pulls, out):
    """Fill out_i with the sum over frequencies of weight x frequency x sin(2 pi (frequency . e_i + begin))."""
    n = len(e)
    (points, phases, folded), (chunk, rest) = buffers, zeros
    low, high = n * t // many, n * (t + 1) // many
    for i in range(low, high, ROWS):
        _take_points(e, i, high, centre, points[t])
        pulls[t] = 0.0
        for panel in range(len(turns)):
            _phases(points[t], turns[panel], begin[panel], chunk, rest, phases[t])
            sines = _narrow(phases[t], folded[t])
            _weighted_sines(sines, weights[panel])
            _add_pulls(sines, turns[panel], pulls[t])
        for r in range(min(ROWS, high - i)):
            for k in range(out.shape[1]):
                out[i + r, k] = pulls[t, r, k]


@numba.njit(nogil=True, fastmath=True, cache=True)
def _square_radius(t, many, e, centre, largest):
    """Fill largest[t] with the largest |e_i - centre|^2 of thread t's points."""
    n = len(e)
    most = _ZERO
    for i in range(n * t // many, n * (t + 1) // many):
        square = _ZERO
        for k in range(e.shape[1]):
            square += (e[i, k] - centre[k]) ** 2
        most = max(most, square)
    largest[t] = most


class CpuFrequencies(Frequencies):
    """Frequencies on the CPU, see Frequencies; the memory of the passes is allocated once."""

    def __init__(self, d: int, count: int, sigma: float) -> None:
        super().__init__(d, count, sigma)
        many, panels = torch.get_num_threads(), -(-count // PANEL)
        width = -(-count // panels)
        self._zeros = (_ZERO,) * _CHUNK, (_ZERO,) * (d % _CHUNK or _CHUNK)
        self._panels = aligned_zeros((panels, d, width))
        folded = aligned_zeros((many, ROWS, width))
        self._of_type = {
            dtype: (aligned_zeros((many, ROWS, d), dtype), aligned_zeros((many, ROWS, width), dtype), folded)
            for dtype in (np.float32, np.float64)
        }
        self._partial, self._totals = aligned_zeros((many, 2, panels, width)), np.zeros((many, 2, panels, width))
        self._begin, self._weights = aligned_zeros((panels, width)), aligned_zeros((panels, width))
        self._pulls, self._largest = aligned_zeros((many, ROWS, d)), np.zeros(many, np.float32)

    def draw(self, seed: int, epoch: int) -> None:
        super().draw(seed, epoch)
        width = self._panels.shape[2]
        for panel, turns in enumerate(self._panels):
            drawn = self.turns[:, panel * width : (panel + 1) * width]
            turns[:, : drawn.shape[1]] = drawn

    def totals(self, clouds: Clouds) -> np.ndarray:
        # by NumPy: PyTorch's threads would spin on while ours want to run
        return np.array([e.numpy().sum(0) for e in clouds], np.float64)

    def centred(self, clouds: Clouds, centre: np.ndarray, checked: bool) -> list[np.ndarray]:
        """Return the clouds as they are; choose the precision by their radius around the centre."""
        clouds = [e.numpy() for e in clouds]
        self._centre = centre.astype(np.float32)
        square = 0.0
        for e in clouds:
            in_threads(_square_radius, len(self._largest), e, self._centre, self._largest)
            square = max(square, float(self._largest.max()))
        wide = self.check(math.sqrt(square)) > _MANY
        self._buffers = self._of_type[np.float64 if wide else np.float32]
        return clouds

    def sums(self, clouds: list[np.ndarray]) -> np.ndarray:
        return np.array([self._sums(e) for e in clouds])

    def _sums(self, e: np.ndarray) -> np.ndarray:
        self._begin[:] = 0
        in_threads(_sum_cosines_and_sines, len(self._totals), *self._of(e), self._partial, self._totals)
        return self._totals.sum(0).reshape(2, -1)[:, : self.turns.shape[1]]

    def gradient(self, e: np.ndarray, c: np.ndarray, s: np.ndarray, scale: float, out: torch.Tensor) -> None:
        self._begin.reshape(-1)[: len(c)] = np.arctan2(s, c) / (-2 * np.pi)
        self._weights.reshape(-1)[: len(c)] = -2 * np.pi * scale * np.hypot(c, s)
        in_threads(_gradient, len(self._pulls), *self._of(e), self._weights, self._pulls, out.numpy())

    def _of(self, e: np.ndarray) -> tuple:
        return e, self._centre, self._panels, self._begin, self._zeros, self._buffers
