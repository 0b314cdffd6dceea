"""Which cell of one view is which of the other, once both are embedded, and what is carried over from one to the other.

The noise between the two points of a cell is not known, nor whether the other view has the cell at all. But both show
in MMD2. Let m = min(n_x, n_y) cells be in both views, and let the two clouds have one distribution. Then each pair of a
cell with itself, at the distance r, adds its kernel to what chance would have, so that

    c(sigma) = -MMD2(sigma) n_x n_y / (2 m) = E exp(-r^2 / (2 sigma)) = share (1 + s^2 / sigma)^(-d / 2)

with the unbiased MMD2, where a share of the cells has its counterpart, and the noise is Gaussian with the variance s^2
along each axis. Both are fitted to c at widths from fine to coarse. Of cells that are not in both views c is about 0,
and where the clouds differ it is below: then no cell is sure of its match, however near it lies.

Of the cells j of the other view at the distances r_ij, cell i has its counterpart in j with the probability

    confidence_ij = share exp(-r_ij^2 / (2 s^2)) / sum_j' exp(-r_ij'^2 / (2 s^2)),

times n_o / n for the n cells of a view whose other one has but n_o. The sum is over all cells: the nearest ones are
counted, and the others are as dense as these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from scipy.optimize import minimize
from scipy.spatial import KDTree
from scipy.special import expit, gamma, gammaincc, logit
from sklearn.utils.validation import check_is_fitted

from mmdma_core.fused.ranks import world
from mmdma_core.fused.threads import alone
from mmdma_core.matching.match_ranks import Vector
from mmdma_core.matching.refinement import Clouds, Discrepancy, Flat
from mmdma_core.settings import is_whole

_WIDTHS = np.geomspace(1e-5, 0.1, 9)  # sigma, in shares of the total variance
MOST = 30  # nearest cells that are found, and that a confidence counts
_BLOCK = 2**16  # cells at a time
_OTHER = {"x": "y", "y": "x"}
_LEAST = np.finfo(np.float64).tiny
_SHARE_FROM, _NOISE_FROM = (0.1, 0.5, 0.9), np.geomspace(1e-6, 0.1, 6)  # where the fit begins


@dataclass(frozen=True)
class Counterparts:
    """What tells how sure a match is.

    share  of the cells of the smaller view that have their counterpart where they lie
    noise  variance along each axis of the difference of counterparts, in squared units of the embedding
    """

    share: float
    noise: float

    @classmethod
    def of(cls, e_x: np.ndarray, e_y: np.ndarray, device: torch.device) -> Counterparts:
        """Estimate both from two embeddings (n_x, d) and (n_y, d)."""
        try:
            clouds = Clouds.of(e_x.astype(np.float64), e_y.astype(np.float64), device)
        except Flat:  # nothing tells the cells of a view apart
            return cls(0.0, _LEAST)
        n_x, n_y = clouds.sizes
        theta = clouds.as_they_are()
        with alone():
            mmd2 = np.array([Discrepancy(clouds, sigma).value(theta) for sigma in _WIDTHS])
        share, noise = _fitted(-mmd2 * n_x * n_y / (2 * min(n_x, n_y)), e_x.shape[1])
        return cls(share, noise * float((clouds.units[1] ** 2).sum() / e_x.shape[1]))

    def confidence(self, distances: np.ndarray, d: int, n: int) -> np.ndarray:
        """Return that of each cell's nearest ones.

        distances  (m, k) to the nearest of n cells, the nearest first, in d dimensions
        """
        kernels = np.exp(-(distances.astype(np.float64) ** 2) / (2 * self.noise))
        return self.share * kernels / np.maximum(kernels.sum(1) + self._beyond(distances[:, -1], d, n), _LEAST)[:, None]

    def _beyond(self, radius: np.ndarray, d: int, n: int) -> np.ndarray:
        """The sum of the kernels beyond the k-th neighbour, if cells are as dense there as within: k / radius^d."""
        k = min(MOST, n)
        u = np.maximum(radius**2 / (2 * self.noise), _LEAST)
        with np.errstate(over="ignore"):
            return np.minimum(k * d / 2 * u ** (-d / 2) * gamma(d / 2) * gammaincc(d / 2, u), n - k)


def _fitted(c: np.ndarray, d: int) -> tuple[float, float]:
    """The share and s^2, in units of the widths, whose curve is nearest to c."""

    def of(at: np.ndarray) -> tuple[float, float]:
        return float(expit(at[0])), float(np.exp(min(at[1], 0)))  # no noise is larger than the cloud

    def apart(at: np.ndarray) -> float:
        share, noise = of(at)
        return float(((share * (1 + noise / _WIDTHS) ** (-d / 2) - np.clip(c, 0, 1)) ** 2).sum())

    begins = [(logit(share), np.log(noise)) for share in _SHARE_FROM for noise in _NOISE_FROM]
    found = min((minimize(apart, at, method="Nelder-Mead") for at in begins), key=lambda one: one.fun)
    return of(found.x)


@dataclass(frozen=True)
class Nearest:
    """The nearest cells of another view, of each cell.

    cells, distances  (n, 30), the nearest first; fewer columns where the other view has fewer cells
    """

    cells: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, e: np.ndarray, others: np.ndarray) -> Nearest:
        """Find the nearest of others (n_o, d) for each point of e (n, d)."""
        ranks = range(1, 1 + min(MOST, len(others)))
        cells, distances = (np.empty((len(e), len(ranks)), of) for of in (np.int32, np.float32))
        tree = KDTree(others)
        for low in range(0, len(e), _BLOCK):
            block = slice(low, low + _BLOCK)
            distances[block], cells[block] = tree.query(e[block], k=ranks, workers=-1)
        return cls(cells, distances)

    def mutual(self, back: Nearest, k: int) -> np.ndarray:
        """Whether each of the k nearest has the cell among its own k nearest, (n, k)."""
        own = np.arange(len(self.cells))[:, None]
        return np.logical_or.reduce([column[self.cells[:, :k]] == own for column in back.cells[:, :k].T])

    def weights(self, k: int, noise: float, n_others: int) -> scipy.sparse.csr_array:
        """Return (n, n_o): in each row the weights of the k nearest cells, by how near they are; their sum is 1."""
        distances = self.distances[:, :k].astype(np.float64)
        near = np.exp((distances[:, :1] ** 2 - distances**2) / (2 * noise))
        near /= near.sum(1, keepdims=True)
        n, k = near.shape
        return scipy.sparse.csr_array(
            (near.ravel(), self.cells[:, :k].ravel(), np.arange(0, n * k + 1, k)), (n, n_others)
        )


class Neighbours:
    """The nearest cells between two embeddings, in either direction, and how sure they are; found when first asked for.

    x, y  (n_x, d), (n_y, d)
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, device: torch.device) -> None:
        self.embeddings, self._device, self._nearest = {"x": x, "y": y}, device, {}

    @cached_property
    def counterparts(self) -> Counterparts:
        """What MMD2 tells of them."""
        return Counterparts.of(*self.embeddings.values(), self._device)

    def nearest(self, view: str) -> Nearest:
        """Of the cells of a view."""
        if view not in self._nearest:
            self._nearest[view] = Nearest.of(self.embeddings[view], self.embeddings[_OTHER[view]])
        return self._nearest[view]

    def confidence(self, view: str) -> np.ndarray:
        """Of the nearest cells of a view's; where the other view has fewer cells, not all can be there."""
        e, others = self.embeddings[view], self.embeddings[_OTHER[view]]
        there = min(1, len(others) / len(e))
        return there * self.counterparts.confidence(self.nearest(view).distances, e.shape[1], len(others))

    def weights(self, view: str, k: int) -> scipy.sparse.csr_array:
        """Of the k nearest cells, see `Nearest.weights`."""
        return self.nearest(view).weights(k, self.counterparts.noise, len(self.embeddings[_OTHER[view]]))


class MatchesMixin:
    """Matches of a fitted estimator: the cells of `embedding_x_` and `embedding_y_` that lie near each other."""

    embedding_x_: np.ndarray
    embedding_y_: np.ndarray
    lacking_x_: np.ndarray
    lacking_y_: np.ndarray
    device_: torch.device

    def matches(self, view: Literal["x", "y"] = "x", k: int = 5) -> pd.DataFrame:
        """Find the nearest cells of the other view of each cell of `fit`, and how sure they are.

        Parameters
        ----------
        view : {'x', 'y'}
            Whose cells are matched.
        k : int
            Nearest cells of each, at most 30.

        Returns
        -------
        pandas.DataFrame
            A row for each cell and each of its nearest, the nearest first: cell and match, their numbers; distance, of
            the embeddings; mutual, whether either is among the k nearest of the other; confidence, the probability that
            they are one cell if the match as a whole is right, see docs/trust.md; lacking, whether the other view has
            no counterpart of the cell.

        Raises
        ------
        ValueError
            For another view or number, NotFittedError before `fit`.
        """
        between = self._between(view, k)
        there, back = (between.nearest(of) for of in (view, _OTHER[view]))
        columns = {"match": there.cells, "distance": there.distances, "mutual": there.mutual(back, k)}
        lacking = getattr(self, f"lacking_{view}_")
        columns["confidence"] = np.where(lacking[:, None], 0, between.confidence(view)).astype(np.float32)
        cells = np.repeat(np.arange(len(there.cells)), min(k, there.cells.shape[1]))
        table = {"cell": cells} | {name: of[:, :k].ravel() for name, of in columns.items()}
        return pd.DataFrame(table | {"lacking": lacking[cells]})

    def transfer(self, labels: Vector, view: Literal["x", "y"] = "x", k: int = 15) -> pd.DataFrame:
        """Carry labels of the other view's cells over to the cells of a view.

        Parameters
        ----------
        labels : array
            One for each cell of the other view; None and NaN are no label.
        view : {'x', 'y'}
            Whose cells get labels.
        k : int
            Nearest cells that vote, at most 30, with weights by how near they are.

        Returns
        -------
        pandas.DataFrame
            Label and confidence, its share of the votes, of each cell; None where none of the nearest has a label, and
            of cells that the other view lacks.

        Raises
        ------
        ValueError
            For labels of another number, or none at all, and what `matches` raises.
        """
        between = self._between(view, k)
        given, n = np.asarray(labels, dtype=object), len(between.embeddings[_OTHER[view]])
        if given.shape != (n,):
            raise ValueError(f"labels must have one entry for each of the {n} cells, got shape {given.shape}")
        codes, names = pd.factorize(given)
        known = np.flatnonzero(codes >= 0)
        if not len(known):
            raise ValueError("no cell has a label")
        ones = scipy.sparse.csr_array((np.ones(len(known)), (known, codes[known])), (n, len(names)))
        votes = between.weights(view, k) @ ones
        best, total = votes.max(axis=1).toarray().ravel(), votes.sum(axis=1)
        label = names[np.asarray(votes.argmax(axis=1)).ravel()].astype(object)
        unknown = (total == 0) | getattr(self, f"lacking_{view}_")
        label[unknown] = None
        return pd.DataFrame({"label": label, "confidence": np.where(unknown, 0, best / np.maximum(total, _LEAST))})

    def transfer_features(self, values: Any, view: Literal["x", "y"] = "x", k: int = 15) -> np.ndarray:
        """Carry features of the other view's cells over to the cells of a view: means of the nearest ones.

        Parameters
        ----------
        values : array or sparse matrix
            (n_other, q), rows are the other view's cells in the order of `fit`.
        view : {'x', 'y'}
            Whose cells get values.
        k : int
            Nearest cells, at most 30, with weights by how near they are.

        Returns
        -------
        numpy.ndarray
            (n, q).

        Raises
        ------
        ValueError
            For values of another number of rows, and what `matches` raises.
        """
        between = self._between(view, k)
        n = len(between.embeddings[_OTHER[view]])
        values = values if scipy.sparse.issparse(values) else np.asarray(values)
        if values.ndim != 2 or values.shape[0] != n:
            raise ValueError(f"values must have a row for each of the {n} cells, got shape {values.shape}")
        found = between.weights(view, k) @ values
        return found.toarray() if scipy.sparse.issparse(found) else found

    def _between(self, view: str, k: int) -> Neighbours:
        """Return the neighbours between both embeddings, which are found once."""
        check_is_fitted(self, "embedding_x_")
        if view not in _OTHER:
            raise ValueError(f"view must be 'x' or 'y', got {view!r}")
        if not (is_whole(k) and 1 <= k <= MOST):
            raise ValueError(f"k must be a whole number from 1 to {MOST}, got {k!r}")
        if world().size > 1:
            raise ValueError("matches are found in one process: load the saved model in one")
        held, now = getattr(self, "_neighbours", None), (self.embedding_x_, self.embedding_y_)
        if held is None or any(then is not e for then, e in zip(held.embeddings.values(), now, strict=True)):
            self._neighbours = Neighbours(*now, self.device_)
        return self._neighbours
