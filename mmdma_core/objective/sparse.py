"""The primal of a sparse view, which is never made dense: O(nnz d) an epoch.

With E = X W, T = X^T E (p, d) and B = E^T E (d, d), |X X^T - E E^T|^2 = |X X^T|^2 - 2 |T|^2 + |B|^2, the first term
formed once. The three cancel near the optimum, so that all is held and summed in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from mmdma_core.objective import terms
from mmdma_core.ranks import Rows

_BLOCK_ENTRIES = 2**24  # that a product of a block may have at most


def csr(begins: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A sparse matrix in CSR, its structure checked; without PyTorch's greeting that this layout is young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(begins, columns, values, size=size, check_invariants=True)


class _Product(torch.autograd.Function):
    """A B for a sparse A, of which the transpose is given, and a dense B; differentiable in B."""

    @staticmethod
    def forward(ctx, a: torch.Tensor, a_t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
        ctx.a_t = a_t
        return a @ b

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor]:  # noqa: ANN001
        return None, None, ctx.a_t @ gradient.contiguous()


class SparsePrimal:
    """E = X W, with X (n, p) in CSR, see mmdma_core.objective.formulations.Primal; X and X^T are held, in float64."""

    def __init__(self, x: torch.Tensor, held: Rows | None = None) -> None:
        self._held = held or Rows(len(x))
        self.n, self.rows = self._held.n, x.shape[1]
        self._x = x.double()
        self._x_t = self._x.t().to_sparse_csr()
        if self.rows < self.n:
            self._constant = _squared_norm_of_product(self._x_t, self._x, self._held.sum_of_sparse)
        else:
            own = _squared_norm_of_product(self._x, self._x_t)
            for other in self._held.others(self._x):
                own += 2 * _squared_norm_of_product(self._x, other.t().to_sparse_csr())
            self._constant = self._held.sum(own)

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        return _Product.apply(self._x, self._x_t, theta.double()).to(theta.dtype)

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return terms.penalty(theta.T @ theta, self.rows)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """In float64, from T and B."""
        e = e.double()
        t = self._held.sum_of_graph(_Product.apply(self._x_t, self._x, e))
        b = self._held.sum_of_graph(e.T @ e)
        squared = self._constant - 2 * t.square().sum() + b.square().sum()
        norm = squared.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        return terms.distortion(norm, self.n, self.rows)


def _squared_norm_of_product(
    a: torch.Tensor, b: torch.Tensor, entries_of: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """|A B|^2 for sparse A (m, k) and B (k, l), from blocks of rows of A; no product has more than _BLOCK_ENTRIES.

    entries_of  a block of the product to its entries over all ranks; None: those here
    """
    begins, total = a.crow_indices(), a.values().new_zeros(())
    rows, k = a.shape
    step = max(1, _BLOCK_ENTRIES // b.shape[1])
    for low in range(0, rows, step):
        high = min(rows, low + step)
        entries = slice(int(begins[low]), int(begins[high]))
        block = csr(
            begins[low : high + 1] - begins[low], a.col_indices()[entries], a.values()[entries], (high - low, k)
        )
        total += (entries_of or torch.Tensor.values)(block @ b).square().sum()
    return total
