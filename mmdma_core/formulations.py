"""The two formulations of one view: what is prepared from the data, its embedding, penalty and distortion.

A formulation of a view offers `rows` (the number of rows of its parameters), `embed(theta) -> E`,
`penalty(theta, e)` and `distortion(theta, e)`. Each keeps the cost per epoch of the published package (Table A1).
"""

from __future__ import annotations

from typing import Protocol

import torch

from mmdma_core import terms
from mmdma_core.inputs import Kernel, View, is_sparse
from mmdma_core.sparse import SparsePrimal


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
        theta : torch.Tensor
            Parameters of the view, (rows, d).
        e : torch.Tensor
            Its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The penalty, a scalar.
        """

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Measure what the embedding changes of the inner products between cells.

        Parameters
        ----------
        theta : torch.Tensor
            Parameters of the view, (rows, d).
        e : torch.Tensor
            Its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The distortion, a scalar.
        """


class Primal:
    """A view in the primal: E = X W, with X (n, p) and parameters W (p, d); nothing is prepared.

    The penalty is |W^T W - I| / sqrt(p), the distortion |X X^T - X W W^T X^T| / (n sqrt(p)).

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
        """Embed the cells: E = X W.

        Parameters
        ----------
        theta : torch.Tensor
            Parameters W, (p, d).

        Returns
        -------
        torch.Tensor
            E, (n, d).
        """
        return self.x @ theta

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Penalise columns of W that are not orthonormal: |W^T W - I| / sqrt(p).

        Parameters
        ----------
        theta : torch.Tensor
            Parameters W, (p, d).
        e : torch.Tensor
            Its embedding, (n, d); not used.

        Returns
        -------
        torch.Tensor
            The penalty, a scalar.
        """
        return terms.penalty(theta.T @ theta, self.rows)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Measure what the embedding changes of the inner products between cells.

        For n > p from R = G - W W^T G, with G = X^T X formed anew, as sqrt(trace(R R)): O(n p^2 + p^3). For n <= p from
        the n x n difference: O(n^2 p).

        Parameters
        ----------
        theta : torch.Tensor
            Parameters of the view, (rows, d).
        e : torch.Tensor
            Its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The distortion, a scalar.
        """
        n, p = self.x.shape
        if n > p:
            gram = self.x.T @ self.x
            r = gram - theta @ (theta.T @ gram)
            # Rounding can push a trace near 0 below it; the square root has no gradient at 0.
            norm = torch.trace(r @ r).clamp(min=torch.finfo(r.dtype).tiny).sqrt()
        else:
            norm = torch.linalg.matrix_norm(self.x @ self.x.T - e @ e.T)
        return terms.distortion(norm, n, p)


class Dual:
    """A view in the dual: E = K alpha, with K = X X^T (n, n), formed once, and parameters alpha (n, d).

    The penalty is |alpha^T K alpha - I| / sqrt(p), the distortion |K - K alpha alpha^T K| / (n sqrt(p)): O(n^2 d).

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
        """Embed the cells: E = K alpha.

        Parameters
        ----------
        theta : torch.Tensor
            Parameters alpha, (n, d).

        Returns
        -------
        torch.Tensor
            E, (n, d).
        """
        return self.kernel @ theta

    def penalty(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Penalise columns of X^T alpha that are not orthonormal: |alpha^T K alpha - I| / sqrt(p).

        Parameters
        ----------
        theta : torch.Tensor
            Parameters alpha, (n, d).
        e : torch.Tensor
            Its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The penalty, a scalar.
        """
        return terms.penalty(theta.T @ e, self.p)

    def distortion(self, theta: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Measure what the embedding changes of the inner products between cells.

        It is |K - K alpha alpha^T K| / (n sqrt(p)), from the n x n difference: O(n^2 d).

        Parameters
        ----------
        theta : torch.Tensor
            Parameters alpha, (n, d); not used.
        e : torch.Tensor
            Its embedding, (n, d).

        Returns
        -------
        torch.Tensor
            The distortion, a scalar.
        """
        return terms.distortion(torch.linalg.matrix_norm(self.kernel - e @ e.T), self.rows, self.p)


def primal(x: torch.Tensor) -> Formulation:
    """The primal of a view, dense or sparse."""
    return SparsePrimal(x) if is_sparse(x) else Primal(x)
