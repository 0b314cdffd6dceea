"""The views of mmdma_core.fused on the CPU, with all memory taken before the first epoch.

The Gram matrix is held in float64; in the passes over X, T and B are formed anew in float64 where they have cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from mmdma_core.fused import FusedRun, FusedView
from mmdma_core.gaussian.fused_cpu import FusedMMD, threads
from mmdma_core.inputs import View
from mmdma_core.settings import Settings
from mmdma_core.thin import ThinProducts, add_outer, inner

_CANCELLED = 0.02  # below this fraction of |X X^T|^2 float32 leaves fewer than five digits


class CpuView:
    """One view in the primal, see mmdma_core.fused.FusedView."""

    def __init__(self, data: torch.Tensor, settings: Settings) -> None:
        self.x = x = data.contiguous().numpy()
        self.settings = settings
        self.n, self.p = x.shape
        self.rows = self.p
        d = settings.n_components
        self._products = ThinProducts(x, d, threads())
        self.e, self.d_e = torch.empty(self.n, d), torch.empty(self.n, d)
        self._e, self._d_e = self.e.numpy(), self.d_e.numpy()
        self.gradient = torch.empty(self.p, d)
        # In float64, (p, d) and (d, d): it is here that terms cancel.
        self._w, self._t, self._g_t, self._sum = (np.empty((self.p, d)) for _ in range(4))
        self._a, self._b = np.empty((d, d)), np.empty((d, d))
        self._t_single = np.empty((self.p, d), np.float32)
        self._through_gram = self.p < self.n
        if self._through_gram:
            gram = _gram(x)
            self._constant = _squared_norm(gram)
            self._gram_products = ThinProducts(gram, d, threads())
        else:
            self._constant = _squared_kernel_norm(x)

    def embed(self, w: torch.Tensor) -> None:
        """E = X W; for p >= n also T, in the same pass over X."""
        self._w[:] = w.numpy()
        if self._through_gram:
            self._products.rows(w.numpy(), self._e)
        else:
            self._e[:] = 0
            self._products.rows_then_sums(w.numpy(), 1.0, self._e, self._t)

    def add_up(self) -> tuple[float, float]:
        inner(self._w, self._w, self._a)
        self._a.flat[:: len(self._a) + 1] -= 1
        penalty = math.sqrt(_squared_norm(self._a) / self.p)
        distortion = self._distortion_through_gram() if self._through_gram else self._distortion_through_passes()
        if penalty > 0:
            add_outer(self._w, self._a, self.settings.lambda1 * 2 / (penalty * self.p), self._sum)
        self.gradient.numpy()[:] = self._sum
        return penalty, distortion

    def _distortion_through_gram(self) -> float:
        self._gram_products.rows(self._w, self._t)
        inner(self._w, self._t, self._b)
        norm, weight = self._norm_and_weight()
        self._gram_products.rows(self._t, self._g_t)
        self._g_t *= -4 * weight
        self._products.sums(self._d_e, self._sum)
        self._sum += self._g_t
        add_outer(self._t, self._b, 4 * weight, self._sum)
        return norm / (self.n * math.sqrt(self.p))

    def _distortion_through_passes(self) -> float:
        inner(self._e, self._e, self._b)
        if self._squared_distortion() < _CANCELLED * self._constant:
            self._form_in_double()
        norm, weight = self._norm_and_weight()
        self._t_single[:] = self._t
        add_outer(self._e, self._b, 4 * weight, self._d_e)
        self._products.rows_then_sums(self._t_single, -4 * weight, self._d_e, self._sum)
        return norm / (self.n * math.sqrt(self.p))

    def _form_in_double(self) -> None:
        """T and B from blocks of X converted one at a time."""
        self._t[:] = 0
        self._b[:] = 0
        for low in range(0, self.n, 256):
            x = self.x[low : low + 256].astype(np.float64)
            e = x @ self._w
            self._t += x.T @ e
            self._b += e.T @ e

    def _squared_distortion(self) -> float:
        return self._constant - 2 * _squared_norm(self._t) + _squared_norm(self._b)

    def _norm_and_weight(self) -> tuple[float, float]:
        """|X X^T - E E^T|, and the derivative of lambda2 x distortion with respect to its square."""
        norm = math.sqrt(max(self._squared_distortion(), 0.0))
        scale = self.settings.lambda2 / (self.n * math.sqrt(self.p))
        return norm, scale / (2 * norm) if norm > 0 else 0.0


class CpuDualView(CpuView):
    """The same view with parameters alpha (n, d): W = X^T alpha."""

    def __init__(self, data: torch.Tensor, settings: Settings) -> None:
        super().__init__(data, settings)
        self.rows = self.n
        self._theta = torch.empty(self.p, settings.n_components)
        self._w_gradient, self.gradient = self.gradient, torch.empty(self.n, settings.n_components)

    def embed(self, alpha: torch.Tensor) -> None:
        self._products.sums(alpha.numpy(), self._sum)
        self._theta.numpy()[:] = self._sum
        super().embed(self._theta)

    def add_up(self) -> tuple[float, float]:
        self.gradient, own = self._w_gradient, self.gradient
        terms = super().add_up()
        self.gradient = own
        self._products.rows(self._w_gradient.numpy(), own.numpy())
        return terms


VIEWS = {"primal": CpuView, "dual": CpuDualView}


def start(
    view: Callable[[View, Settings], FusedView],
    x: View,
    y: View,
    settings: Settings,
    seed: int,
    parameters: Sequence[torch.Tensor | np.ndarray] | None,
) -> FusedRun:
    """A run whose two views are made by `view`."""
    mmd = FusedMMD(x.shape[0], y.shape[0], settings.n_components, settings.sigma, settings.unbiased)
    return FusedRun((view(x, settings), view(y, settings)), mmd, settings, x, seed, parameters)


def _gram(x: np.ndarray) -> np.ndarray:
    """X^T X in float64, from blocks of rows."""
    gram = np.zeros((x.shape[1], x.shape[1]))
    for low in range(0, len(x), 4096):
        block = x[low : low + 4096].astype(np.float64)
        gram += block.T @ block
    return gram


def _squared_kernel_norm(x: np.ndarray) -> float:
    """|X X^T|^2 in float64 without X X^T, from blocks of rows."""
    total = 0.0
    for i in range(0, len(x), 512):
        block = x[i : i + 512].astype(np.float64)
        for j in range(i, len(x), 512):
            product = block @ x[j : j + 512].T.astype(np.float64)
            total += (1 if i == j else 2) * _squared_norm(product)
    return total


def _squared_norm(matrix: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", matrix, matrix))
