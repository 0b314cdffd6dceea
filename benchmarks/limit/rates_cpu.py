"""Throughput of multiply-adds and of the pass's own exponential on the CPU: work whose operands stay in the caches."""

from __future__ import annotations

import numba
import numpy as np

from mmdma_core.fused.pairs_tiles import LANES, exp2
from mmdma_core.fused.threads import in_threads, threads

_LANES = 96  # numbers a thread holds: enough independent chains to hide the latency of a multiply-add
_REPEATS = 5_000_000
_F = np.float32


def multiply_adds() -> int:
    """As many float32 multiply-adds as this returns."""
    in_threads(_multiply_adds, threads(), np.zeros(threads(), _F), _REPEATS)
    return threads() * _REPEATS * _LANES


def exponentials() -> int:
    """As many float32 exponentials as this returns."""
    values = np.full((threads(), 1024), -1.5, _F)
    in_threads(_exponentials, threads(), values, np.empty_like(values), _REPEATS // 100)
    return threads() * (_REPEATS // 100) * 1024


@numba.njit(fastmath={"contract"}, nogil=True, cache=True)  # no more, or two steps of a chain become one
def _multiply_adds(t, threads, out, repeats):  # noqa: ANN001, ANN202
    values = np.zeros(_LANES, _F)
    for _ in range(repeats):
        for lane in range(_LANES):
            values[lane] = values[lane] * _F(0.5) + _F(1)
    for lane in range(_LANES):
        out[t] += values[lane]


@numba.njit(nogil=True, cache=True)
def _exponentials(t, threads, values, out, repeats):  # noqa: ANN001, ANN202
    for _ in range(repeats):
        for i in range(0, values.shape[1], LANES):
            exp2(values, out, t, i)
