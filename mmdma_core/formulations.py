"""The two formulations of a view: what is prepared from the data, its embedding, penalty and distortion.

Each keeps the cost per epoch of the published package (Table A1). A sparse view is never made dense, see SparsePrimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from mmdma_core import objective
from mmdma_core.errors import Unsupported
from mmdma_core.inputs import Kernel, Ranks, View, csr, is_sparse


class Formulation(Protocol):
    """One view of the problem: parameters theta (rows, d) to embedding E (n, d), penalty and distortion.

    Attributes
    ----------
    rows : int
        Rows of the parameters: p in the primal, n in the dual.
    """

    rows: int

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        """Embed the cells.

        Parameters
        ----------
        theta : torch.Tensor
            Parameters of the view, (rows, d).

        Returns
        -------
        torch.Tensor
            E, (n, d).
        """

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Penalise columns that are not orthonormal.

        Parameters
        ----------
        theta, e : torch.Tensor
            Parameters of the view, (rows, d), and its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The penalty, a scalar.
        """

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Measure what the embedding changes of the inner products between cells.

        Parameters
        ----------
        theta, e : torch.Tensor
            Parameters of the view, (rows, d), and its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The distortion, a scalar.
        """


class Primal(Formulation):
    """A view in the primal: E = X W, with X (n, p) and parameters W (p, d); nothing is prepared.

    The penalty is |W^T W - I| / sqrt(p), the distortion |X X^T - X W W^T X^T| / (n sqrt(p)). For n > p that comes from
    R = G - W W^T G, with G = X^T X formed in every epoch, as sqrt(trace(R R)): O(n p^2 + p^3). For n <= p it comes from
    the n x n difference: O(n^2 p).

    Parameters
    ----------
    x : torch.Tensor
        X, (n, p), rows are cells.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1 and Table A1.
    """

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.rows = x.shape[1]

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        return self.x @ theta

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return objective.penalty(theta.T @ theta, self.rows)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        n, p = self.x.shape
        if n > p:
            gram = self.x.T @ self.x
            r = gram - theta @ (theta.T @ gram)
            # Rounding can push a trace near 0 below it; the square root has no gradient at 0.
            norm = torch.trace(r @ r).clamp(min=torch.finfo(r.dtype).tiny).sqrt()
        else:
            norm = torch.linalg.matrix_norm(self.x @ self.x.T - e @ e.T)
        return objective.distortion(norm, n, p)


class Dual(Formulation):
    """A view in the dual: E = K alpha, with K = X X^T (n, n), formed once, and parameters alpha (n, d).

    The penalty is |alpha^T K alpha - I| / sqrt(p), the distortion |K - K alpha alpha^T K| / (n sqrt(p)), from the n x n
    difference: O(n^2 d).

    Parameters
    ----------
    x : torch.Tensor or Kernel
        X, (n, p), rows are cells; or K itself, then p is 1.

    References
    ----------
    Meng-Papaxanthos et al., LSMMD-MA, equation 1 and Table A1.
    """

    def __init__(self, x: View) -> None:
        if isinstance(x, Kernel):
            self.kernel, self.rows, self.p = x.matrix, len(x), 1
        else:
            self.kernel = x @ x.T
            self.rows, self.p = x.shape

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        return self.kernel @ theta

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return objective.penalty(theta.T @ e, self.p)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return objective.distortion(torch.linalg.matrix_norm(self.kernel - e @ e.T), self.rows, self.p)


def primal(x: torch.Tensor) -> Formulation:
    """Return the primal of a view, dense or sparse."""
    return SparsePrimal(x) if is_sparse(x) else Primal(x)


_LIMIT = 2**31  # of entries, in libraries that count in 32 bits
_SPARSE_ENTRIES = 2**24  # that a sparse block of a product may have at most
_DENSE_ENTRIES = 2**27  # that a dense block of a product may have at most; a quarter of it is made dense at a time
_AGREE = 1e-10  # to which ways to a quadratic form agree; rounding alone leaves 1e-16

Blocks = Iterator[tuple[slice, torch.Tensor]]


class _Product(torch.autograd.Function):
    """A B for a sparse A, of which the transpose is given, and a dense B; differentiable in B."""

    @staticmethod
    def forward(ctx, a: torch.Tensor, a_t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # noqa: ANN001
        ctx.a_t = a_t
        return _times(a, b)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor]:  # noqa: ANN001
        return None, None, _times(ctx.a_t, gradient.contiguous())


class SparsePrimal(Formulation):
    """The primal of a sparse view, X (n, p) in CSR: O(nnz d) an epoch. X and X^T are kept, in float64.

    With E = X W, T = X^T E (p, d) and B = E^T E (d, d), |X X^T - E E^T|^2 = |X X^T|^2 - 2 |T|^2 + |B|^2, the first term
    formed once. The three cancel near the optimum, so that all is summed in float64.

    Libraries count in 32 bits: MKL the entries of a matrix, cuSPARSE also the products that it adds up in a product of
    two sparse matrices, where it then fails or gives zeros. So a view has fewer than 2^31 entries, no dense matrix in a
    product has more, and on CUDA two sparse matrices are never multiplied: the first term comes from dense blocks.

    held  the rows of the view that are here; None: x has all
    """

    def __init__(self, x: torch.Tensor, ranks: Ranks | None = None) -> None:
        if x.values().numel() >= _LIMIT:
            raise Unsupported(
                f"a sparse view may have fewer than 2^31 entries, this one has {x.values().numel():,}: share its rows "
                "among more processes, or give it dense"
            )
        self._ranks = ranks or Ranks(len(x))
        self.n, self.rows = self._ranks.n, x.shape[1]
        self._x = x.double()
        self._x_t = self._x.t().to_sparse_csr()
        self._constant = _squared_norm_of_kernel(self._x, self._x_t, self._ranks)

    def embed(self, theta: torch.Tensor) -> torch.Tensor:
        return _Product.apply(self._x, self._x_t, theta.double()).to(theta.dtype)

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return objective.penalty(theta.T @ theta, self.rows)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        e = e.double()
        t = self._ranks.sum_with_gradient(_Product.apply(self._x_t, self._x, e))
        b = self._ranks.sum_with_gradient(e.T @ e)
        squared = self._constant - 2 * t.square().sum() + b.square().sum()
        norm = squared.clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        return objective.distortion(norm, self.n, self.rows)


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return A B for a sparse A and a dense B, in panels of columns none of which has _LIMIT entries."""
    width = max(1, (_LIMIT - 1) // max(a.shape))
    if b.shape[1] <= width:
        return a @ b
    return torch.cat([a @ panel.contiguous() for panel in b.split(width, dim=1)], dim=1)


def _squared_norm_of_kernel(x: torch.Tensor, x_t: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """|X X^T|^2 = |M|^2 for M = X^T X (p < n) or X X^T, over all ranks.

    With it r^T M r is summed from the same blocks, for a random r, and compared with |A r|^2 and r^T A^T (A r), where
    M = A^T A. RuntimeError where they differ: then a block is wrong somewhere, as one with zeros is, or A^T is.
    """
    blocks = _dense_blocks if x.is_cuda else _sparse_blocks
    by_features = x.shape[1] < ranks.n
    a, a_t = (x, x_t) if by_features else (x_t, x)
    r = torch.rand(a.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(x.device)
    image = a @ r
    if by_features:
        norm, form = _norm_and_form(blocks(a, a_t, a), r, r, ranks.sum_of_sparse)
        own = image @ image
    else:
        norm_and_form = _norm_and_form(blocks(a, a_t, a), r, r)
        of_others = list(ranks.others(r[:, None]))
        for other, r_other in zip(ranks.others(x), of_others, strict=True):
            norm_and_form += 2 * _norm_and_form(blocks(a, a_t, other.t().to_sparse_csr()), r, r_other[:, 0])
        norm, form = ranks.sum(norm_and_form)
        image = ranks.sum(image)
        own = image @ image / ranks.size
    expected = ranks.sum(torch.stack([own, r @ (a_t @ image)]))
    bound = min(ranks.n, x.shape[1]) * norm.sqrt()  # |r|^2 |M|, which no form exceeds
    if not (form - expected).abs().max() <= _AGREE * bound:
        ways = ", ".join(f"{float(way):.12g}" for way in (form, *expected))
        raise RuntimeError(
            f"products of a sparse view are wrong on {x.device}, three ways to one number give {ways}: give it dense, "
            "or take another device or version of PyTorch"
        )
    return norm


def _norm_and_form(
    blocks: Blocks, u: torch.Tensor, v: torch.Tensor, summed: Callable[[torch.Tensor], torch.Tensor] = lambda m: m
) -> torch.Tensor:
    """|M|^2 and u^T M v (2,) of a matrix M in blocks of rows; summed(block) is that over all ranks."""
    total = u.new_zeros(2)
    for rows, part in blocks:
        block = summed(part)
        entries = block if block.layout == torch.strided else block.values()
        total += torch.stack([entries.square().sum(), u[rows] @ (block @ v)])
        del part, block, entries  # before there is another
    return total


def _sparse_blocks(a: torch.Tensor, a_t: torch.Tensor, b: torch.Tensor) -> Blocks:
    """A^T B (l, m) in blocks of rows, for sparse A (k, l), A^T and B (k, m): sparse blocks, for a CPU."""
    for rows in _slices(a.shape[1], _SPARSE_ENTRIES // b.shape[1]):
        yield rows, _rows(a_t, rows) @ b


def _dense_blocks(a: torch.Tensor, a_t: torch.Tensor, b: torch.Tensor) -> Blocks:
    """Yield the same in dense blocks, each from some dense rows of A and B: 2 k l m operations, for a GPU."""
    (k, width), other = a.shape, b.shape[1]
    for columns in _slices(width, _DENSE_ENTRIES // other):
        block = a.values().new_zeros(columns.stop - columns.start, other)
        for rows in _slices(k, _DENSE_ENTRIES // 4 // max(width, other)):
            left = _rows(a, rows).to_dense()
            right = left if b is a else _rows(b, rows).to_dense()
            block.addmm_(left[:, columns].T, right)
        yield columns, block
        del block


def _slices(size: int, step: int) -> Iterator[slice]:
    for low in range(0, size, max(1, step)):
        yield slice(low, min(size, low + max(1, step)))


def _rows(matrix: torch.Tensor, rows: slice) -> torch.Tensor:
    """Rows of a CSR matrix; its entries are not copied."""
    begins = matrix.crow_indices()[rows.start : rows.stop + 1]
    entries = slice(int(begins[0]), int(begins[-1]))
    size = rows.stop - rows.start, matrix.shape[1]
    return csr(begins - begins[0], matrix.col_indices()[entries], matrix.values()[entries], size)
