"""The views of mmdma_core.fused.run on the CPU, which allocate all memory before the first epoch.

For p < n a pass over the Gram matrix, in float64, forms T = G W and G T. Otherwise one pass over X forms E and T, and a
second one X^T (X T); there T and B are formed anew in float64 where they have cancelled.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mmdma_core.fused.run import FusedRun
from mmdma_core.fused.tall_skinny import TallSkinnyProducts, add_product, inner
from mmdma_core.inputs import Ranks
from mmdma_core.settings import Settings

_CANCELLED = 0.02  # below this fraction of |X X^T|^2 float32 leaves fewer than five digits
_FEW = 6  # rows below which TallSkinnyProducts takes a copy


class _Cells:
    """Rows of X, with their products, their embedding and its gradient."""

    def __init__(self, x: np.ndarray, d: int) -> None:
        self.x, self.products = x, TallSkinnyProducts(x, d, torch.get_num_threads())
        self.e, self.d_e = torch.empty(len(x), d), torch.empty(len(x), d)


class CpuView:
    """One view in the primal, see mmdma_core.fused.run.FusedView.

    W, T, G T and the gradient with respect to W lie as (d, p), in float64: it is here that terms cancel.
    """

    def __init__(self, data: torch.Tensor, settings: Settings, ranks: Ranks | None = None) -> None:
        self.x = x = data.contiguous().numpy()
        self.settings = settings
        self.ranks = ranks or Ranks(len(x))
        self.n, self.p = self.ranks.n, x.shape[1]
        self.rows = self.p
        d = settings.n_components
        self._of_all = _Cells(x, d)
        self._of_batch: _Cells | None = None
        self._use(self._of_all)
        self.gradient = torch.empty(self.p, d)
        self._w, self._t, self._w_gradient = (np.empty((d, self.p)) for _ in range(3))
        self._w_inner, self._b = np.empty((d, d)), np.empty((d, d))
        self._through_gram = self.p < self.n
        if self._through_gram:
            gram = self.ranks.sum(_gram(x))
            self._constant = _squared_norm(gram)
            self._gram_products = TallSkinnyProducts(gram, d, torch.get_num_threads())
            self._t_rows, self._g_t = np.empty((self.p, d)), np.empty((d, self.p))
        else:
            self._constant = _squared_kernel_norm(data, self.ranks)

    def take(self, rows: np.ndarray | None) -> None:
        """See mmdma_core.fused.run.BatchView."""
        if rows is None:
            self._use(self._of_all)
            return
        rows = self.ranks.local(rows)
        if self._of_batch is None or len(self._of_batch.x) != len(rows) or len(rows) < _FEW:
            self._of_batch = _Cells(self.x[rows], self.settings.n_components)
        else:
            np.take(self.x, rows, axis=0, out=self._of_batch.x, mode="clip")
        self._use(self._of_batch)

    def _use(self, cells: _Cells) -> None:
        self._products, self.e, self.d_e = cells.products, cells.e, cells.d_e
        self._e, self._d_e = self.e.numpy(), self.d_e.numpy()

    def forward(self, w: torch.Tensor) -> None:
        """E = X W, T and B; for p >= n in one pass over X."""
        self._w[:] = w.numpy().T
        self._form_products()

    def _form_products(self) -> None:
        if self._through_gram:
            self._products.rows(self._w, self._e)
            self._t_rows[:] = 0
            self._gram_products.rows_then_sums(self._w, 1.0, self._t_rows, self._g_t)
            self._t[:] = self._t_rows.T
        else:
            self._e[:] = 0
            self._products.rows_then_sums(self._w, 1.0, self._e, self._t)
            self.ranks.sum(self._t)
        inner(self._w, self._t, self._b)
        if not self._through_gram and self._squared_distortion() < _CANCELLED * self._constant:
            self._form_in_double()

    def _form_in_double(self) -> None:
        """T and B from blocks of X converted one at a time."""
        self._t[:] = 0
        for low in range(0, len(self.x), 256):
            x = self.x[low : low + 256].astype(np.float64)
            self._t += (x @ self._w.T).T @ x
        self.ranks.sum(self._t)
        inner(self._w, self._t, self._b)

    def backward(self) -> tuple[float, float]:
        inner(self._w, self._w, self._w_inner)
        self._w_inner.flat[:: len(self._w_inner) + 1] -= 1
        penalty = math.sqrt(_squared_norm(self._w_inner) / self.p)
        norm = math.sqrt(max(self._squared_distortion(), 0.0))
        scale = 1 / (self.n * math.sqrt(self.p))
        # The derivative of lambda2 x distortion with respect to the square of this norm.
        weight = self.settings.lambda2 * scale / (2 * norm) if norm > 0 else 0.0
        size = self.ranks.size  # a term that every rank forms enters the sum over ranks divided by it
        if self._through_gram:
            self._products.sums(self._d_e, self._w_gradient)
            self._g_t *= -4 * weight / size
            self._w_gradient += self._g_t
        else:
            self._products.rows_then_sums(self._t, -4 * weight, self._d_e, self._w_gradient)
        add_product(self._b, self._t, 4 * weight / size, self._w_gradient)
        if penalty > 0:
            of_penalty = self.settings.lambda1 * 2 / (penalty * self.p)
            add_product(self._w_inner, self._w, of_penalty / size, self._w_gradient)
        self.ranks.sum(self._w_gradient)
        self._gradient_of_parameters()
        return penalty, norm * scale

    def _squared_distortion(self) -> float:
        return self._constant - 2 * _squared_norm(self._t) + _squared_norm(self._b)

    def _gradient_of_parameters(self) -> None:
        """The gradient with respect to the parameters, from that with respect to W."""
        self.gradient.numpy()[:] = self._w_gradient.T


class CpuDualView(CpuView):
    """The same view with parameters alpha (n, d): W = X^T alpha."""

    def __init__(self, data: torch.Tensor, settings: Settings, ranks: Ranks | None = None) -> None:
        super().__init__(data, settings, ranks)
        self.rows = self.n
        self.gradient = torch.empty(self.n, settings.n_components)

    def forward(self, alpha: torch.Tensor) -> None:
        self._products.sums(alpha.numpy(), self._w)
        self._form_products()

    def _gradient_of_parameters(self) -> None:
        self._products.rows(self._w_gradient, self.gradient.numpy())


VIEWS, RUN = {"primal": CpuView, "dual": CpuDualView}, FusedRun


def _gram(x: np.ndarray) -> np.ndarray:
    """X^T X in float64, from blocks of rows."""
    gram = np.zeros((x.shape[1], x.shape[1]))
    for low in range(0, len(x), 4096):
        block = x[low : low + 4096].astype(np.float64)
        gram += block.T @ block
    return gram


def _squared_kernel_norm(x: torch.Tensor, ranks: Ranks) -> float:
    """|X X^T|^2 in float64 without X X^T, from blocks of rows; each unordered pair of blocks, and of ranks, once."""
    total, own = np.zeros(1), x.numpy()
    for columns in (own, *(other.numpy() for other in ranks.others(x))):
        for i in range(0, len(own), 512):
            block = own[i : i + 512].astype(np.float64)
            for j in range(i if columns is own else 0, len(columns), 512):
                product = block @ columns[j : j + 512].T.astype(np.float64)
                total += (1 if columns is own and i == j else 2) * _squared_norm(product)
    return float(ranks.sum(total)[0])


def _squared_norm(matrix: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", matrix, matrix))
