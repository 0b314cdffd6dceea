"""Starting values from the symmetries of the principal axes of two views, and the scale at which views are compared.

Axes have no sign, and no order where their variances are alike, so that two views of the same cells can lie upon each
other in many ways. `mmdma_core.matching.refinement` finds the best of them in the d dimensions of the axes, whatever n
and p are. MMD-MA is then trained from there, as from any other starting values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.preprocessing import normalize

from mmdma_core.fused.ranks import world
from mmdma_core.inputs import Ranks
from mmdma_core.matching.match_ranks import draw
from mmdma_core.matching.preprocess import Matrix
from mmdma_core.matching.refinement import MANY, Clouds, Flat, Map, search

_GRAM_UP_TO = 2_000  # columns of a dense view up to which its p x p matrix is formed
_BLOCK = 2**15  # rows at a time
_NEAR = 0.01  # MMD2 above the best by which another match of the axes is worth a start
_CONSTANT = 0.9  # share of a constant that a view has to explain


@dataclass(frozen=True)
class Axes:
    """The d leading principal axes of a view, as parameters of a variant.

    weights    (p, d), or of the dual (n, d)
    embedding  (n, d) that these give, of the rows that are here
    constant   (p, 1), or of the dual (n, 1), whose embedding is as near to a constant as the mean of the view allows
    level      (n, 1), that embedding
    """

    weights: np.ndarray
    embedding: np.ndarray
    constant: np.ndarray
    level: np.ndarray

    @classmethod
    def of(cls, view: Matrix, d: int, kernel: bool = False) -> Axes:
        """Find those of a view (n, p) or of a kernel (n, n); of fewer than d directions the others have no weights."""
        ranks = world(view.shape[0])
        mean = ranks.sum(np.asarray(view.sum(axis=0, dtype=np.float64)).ravel()) / ranks.n
        if kernel:
            centred = view - mean - mean[:, None] + mean.mean()
            variances, axes = _largest(centred, d)
            weights = axes - axes.mean(0)
            weights /= np.sqrt(_at_least(variances))
            constant = np.full((len(mean), 1), 1 / len(mean))
        else:
            weights = _largest(_covariance(view, mean, ranks), d)[1]
            constant = mean[:, None]
        weights = np.pad(weights, ((0, 0), (0, d - weights.shape[1]))).astype(np.float32)
        constant = constant.astype(np.float32)
        return cls(weights, np.asarray(view @ weights), constant, np.asarray(view @ constant))

    def of_dual(self) -> Axes:
        """Return the same axes of features with parameters of the dual, X^T alpha = W."""
        centred = self.embedding - self.embedding.mean(0)
        squares = (centred.astype(np.float64) ** 2).sum(0)
        alpha = centred / _at_least(squares)
        n = len(alpha)
        return replace(self, weights=alpha.astype(np.float32), constant=np.full((n, 1), 1 / n, np.float32))

    def placed(self, A: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Return weights whose embedding is embedding @ A + c, or without c where no linear map has a constant.

        Uncentred data have one in their mean; of others it would be made of noise.
        """
        ranks = world(len(self.embedding))
        basis = np.hstack([self.embedding, self.level]).astype(np.float64)
        of_one = np.linalg.lstsq(ranks.sum(basis.T @ basis), ranks.sum(basis.sum(0)), rcond=1e-9)[0]
        share = ranks.sum((basis @ of_one).sum(keepdims=True))[0] / ranks.n  # of a constant's square that is explained
        weights = self.weights @ A
        if share > _CONSTANT:
            weights = weights + np.hstack([self.weights, self.constant]) @ of_one[:, None] * c
        return weights.astype(np.float32)


def starting_values(
    x: Axes, y: Axes, device: torch.device, keep: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the parameters of the best few matches of the axes that differ, the best one first.

    Raises refinement.Flat for a view whose cells coincide.
    """
    clouds = Clouds.of(x.embedding, y.embedding, device)
    weights_x = x.placed(np.eye(clouds.a.shape[1]), -clouds.units[0])
    found = search(clouds, keep, np.random.default_rng(seed))
    near = [one for one in found if one.discrepancy <= found[0].discrepancy + _NEAR]
    return [(weights_x, y.placed(*_about(clouds, one.theta))) for one in near]


def rows_of_one_length(x: Matrix, y: Matrix, d: int, device: torch.device) -> bool:
    """Tell whether the principal axes of both views match better once each cell has length 1.

    That depends on the data: it takes depth and outliers away, and with them the radius, which both views may share. A
    sample of the cells decides, by the MMD2 that the best match of the axes leaves, in units of its own; rows keep
    their lengths unless the other is clearly better.
    """
    left = []
    for unit in (False, True):
        views = []
        for k, view in enumerate((x, y)):
            ranks = world(view.shape[0])
            rows = view[ranks.local(draw(ranks.n, MANY, np.random.default_rng(k)))]
            views.append(normalize(rows) if unit else rows)
        try:
            clouds = Clouds.of(*(Axes.of(view, d).embedding for view in views), device)
        except Flat:
            return False
        left.append(search(clouds, 1, np.random.default_rng(0))[0].discrepancy)
    chance = float(np.mean([1 / n for n in clouds.sizes]))  # what MMD2 of a sample varies by
    return left[1] < left[0] - chance


def _about(clouds: Clouds, theta: Map) -> tuple[np.ndarray, np.ndarray]:
    """A and c that take E_y upon E_x less its mean."""
    A, c = clouds.of_embeddings(theta)
    return A, c - clouds.units[0]


def _at_least(squares: np.ndarray) -> np.ndarray:
    """What is no more than rounding beside the largest one, or beside zero, divides nothing."""
    return np.maximum(squares, max(np.finfo(np.float32).eps * squares[0], np.finfo(np.float32).tiny))


def _covariance(view: Matrix, mean: np.ndarray, ranks: Ranks) -> np.ndarray | LinearOperator:
    """The covariance of the columns (p, p), of a sparse or wide view as a product with vectors alone."""
    p = view.shape[1]
    if scipy.sparse.issparse(view) or p > _GRAM_UP_TO:
        return LinearOperator((p, p), lambda v: _product(view, mean, ranks, v), dtype=np.float64)
    gram = np.zeros((p, p))
    for low in range(0, len(view), _BLOCK):
        block = view[low : low + _BLOCK]
        gram += block.T @ block
    return ranks.sum(gram) / ranks.n - np.outer(mean, mean)


def _product(view: Matrix, mean: np.ndarray, ranks: Ranks, v: np.ndarray) -> np.ndarray:
    v = v.ravel()
    along = view @ v.astype(view.dtype) - mean @ v
    return ranks.sum(np.asarray(view.T @ along - mean * along.sum(), np.float64)) / ranks.n


def _largest(matrix: np.ndarray | LinearOperator, d: int) -> tuple[np.ndarray, np.ndarray]:
    """The d largest eigenvalues, and their vectors in columns; fewer where there are fewer."""
    size = matrix.shape[0]
    if size <= max(3 * d, 500):
        whole = matrix if isinstance(matrix, np.ndarray) else matrix @ np.eye(size)
        values, vectors = np.linalg.eigh(whole)
        return values[::-1][:d], vectors[:, ::-1][:, :d]
    start = np.random.default_rng(0).standard_normal(size)
    values, vectors = eigsh(matrix, d, v0=start, tol=1e-6)
    return values[::-1], vectors[:, ::-1]
