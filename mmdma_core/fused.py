"""Runs whose gradient is written out, on the CPU, with all memory taken before the first epoch.

With E = X W, T = X^T E (p, d) and B = E^T E (d, d), the squared norm of the distortion is

    |X X^T - E E^T|^2 = |X X^T|^2 - 2 |T|^2 + |B|^2

The first term is formed once. For p < n, T = G W and B = W^T T come from the Gram matrix G = X^T X, formed once, too:
O(p^2 d) an epoch. Otherwise they come from two passes over X: O(n p d), with nothing of size p x p or n x n.
The three terms cancel near the optimum, below float32's resolution, so G is held in float64, and T and B are formed
anew in float64 where they have cancelled.

The gradient: d|.|^2/dW = -4 G T + 4 T B, or through E, d|.|^2/dE = -4 X T + 4 E B. That of MMD2 comes from a pass
over the pairs of points (mmdma_core.gaussian.fused_cpu). In the dual W = X^T alpha, its gradient mapped back by X.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from mmdma_core.adam import Adam
from mmdma_core.gaussian.fused_cpu import FusedMMD, threads
from mmdma_core.objective import LossTerms, total_loss
from mmdma_core.run import Pair, starting_values
from mmdma_core.settings import Settings
from mmdma_core.thin import ThinProducts, add_outer, inner

_CANCELLED = 0.02  # below this fraction of |X X^T|^2 float32 leaves fewer than five digits


class FusedView:
    """One view in the primal: embedding, penalty, distortion and their gradient at W (p, d), all float32.

    e and d_e (n, d) are the embedding and the gradient of the loss with respect to it; gradient (p, d) that of W.
    """

    def __init__(self, x: np.ndarray, settings: Settings) -> None:
        self.x, self.settings = x, settings
        self.n, self.p = x.shape
        self.rows = self.p
        d = settings.n_components
        self._products = ThinProducts(x, d, threads())
        self.e, self.d_e = np.empty((self.n, d), np.float32), np.empty((self.n, d), np.float32)
        self.gradient = np.empty((self.p, d), np.float32)
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

    def embed(self, w: np.ndarray) -> None:
        """Fill e; for p >= n also T, in the same pass over X."""
        self._w[:] = w
        if self._through_gram:
            self._products.rows(w, self.e)
        else:
            self.e[:] = 0
            self._products.rows_then_sums(w, 1.0, self.e, self._t)

    def add_up(self) -> tuple[float, float]:
        """Penalty and distortion at the W of the last `embed`; `gradient` becomes that of the loss, from d_e."""
        inner(self._w, self._w, self._a)
        self._a.flat[:: len(self._a) + 1] -= 1
        penalty = math.sqrt(_squared_norm(self._a) / self.p)
        distortion = self._distortion_through_gram() if self._through_gram else self._distortion_through_passes()
        if penalty > 0:
            add_outer(self._w, self._a, self.settings.lambda1 * 2 / (penalty * self.p), self._sum)
        self.gradient[:] = self._sum
        return penalty, distortion

    def _distortion_through_gram(self) -> float:
        self._gram_products.rows(self._w, self._t)
        inner(self._w, self._t, self._b)
        norm, weight = self._norm_and_weight()
        self._gram_products.rows(self._t, self._g_t)
        self._g_t *= -4 * weight
        self._products.sums(self.d_e, self._sum)
        self._sum += self._g_t
        add_outer(self._t, self._b, 4 * weight, self._sum)
        return norm / (self.n * math.sqrt(self.p))

    def _distortion_through_passes(self) -> float:
        inner(self.e, self.e, self._b)
        if self._squared_distortion() < _CANCELLED * self._constant:
            self._form_in_double()
        norm, weight = self._norm_and_weight()
        self._t_single[:] = self._t
        add_outer(self.e, self._b, 4 * weight, self.d_e)
        self._products.rows_then_sums(self._t_single, -4 * weight, self.d_e, self._sum)
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


class FusedDualView(FusedView):
    """The same view with parameters alpha (n, d): W = X^T alpha."""

    def __init__(self, x: np.ndarray, settings: Settings) -> None:
        super().__init__(x, settings)
        self.rows = self.n
        self._theta = np.empty((self.p, settings.n_components), np.float32)
        self._w_gradient, self.gradient = self.gradient, np.empty((self.n, settings.n_components), np.float32)

    def embed(self, alpha: np.ndarray) -> None:
        self._products.sums(alpha, self._sum)
        self._theta[:] = self._sum
        super().embed(self._theta)

    def add_up(self) -> tuple[float, float]:
        self.gradient, own = self._w_gradient, self.gradient
        terms = super().add_up()
        self.gradient = own
        self._products.rows(self._w_gradient, own)
        return terms


class FusedRun:
    """A run of full-batch Adam on written-out gradients, see mmdma_core.run.Run. Float32 views on the CPU."""

    def __init__(
        self,
        view: type[FusedView],
        x: torch.Tensor,
        y: torch.Tensor,
        settings: Settings,
        seed: int = 0,
        parameters: Sequence[torch.Tensor | np.ndarray] | None = None,
    ) -> None:
        self.settings, self.epoch = settings, 0
        self.views = tuple(view(data.contiguous().numpy(), settings) for data in (x, y))
        self._mmd = FusedMMD(len(x), len(y), settings.n_components, settings.sigma, settings.unbiased)
        self.parameters = starting_values([v.rows for v in self.views], settings, x, seed, parameters)
        self._gradients = [torch.from_numpy(v.gradient) for v in self.views]
        self._adam = Adam(self.parameters, settings.learning_rate)

    def step(self) -> None:
        self._evaluate()
        self._adam.step(self._gradients)
        self.epoch += 1

    def loss(self) -> LossTerms:
        terms = self._evaluate()
        return LossTerms(total_loss(self.settings, *terms), *terms)

    def gradients(self) -> Pair:
        self._evaluate()
        return tuple(gradient.clone() for gradient in self._gradients)

    def embeddings(self) -> Pair:
        self._embed()
        return tuple(torch.tensor(view.e) for view in self.views)

    def _embed(self) -> None:
        for view, theta in zip(self.views, self.parameters, strict=True):
            view.embed(theta.numpy())

    def _evaluate(self) -> tuple[float, ...]:
        """MMD2, both penalties, both distortions; the gradients are filled."""
        self._embed()
        x, y = self.views
        mmd = self._mmd(x.e, y.e, x.d_e, y.d_e)
        (pen_x, dis_x), (pen_y, dis_y) = x.add_up(), y.add_up()
        return mmd, pen_x, pen_y, dis_x, dis_y


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
