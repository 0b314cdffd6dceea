"""Cells that the other view lacks: which they are, and a map of the clouds that leaves them out.

MMD2 counts both clouds whole: where one of them has a type of cells of which the other has none, the other one is
stretched over all of it. So where a match leaves more of MMD2 than two samples of one distribution would, the cells of
one cloud get weights,

    min over w and the map of |sum_i w_i k(a_i, .) - 1 / n_y sum_j k(q_j, .)|^2,  0 <= w_i <= 2 / n_x, sum_i w_i = 1,

by turns: w, of which it is a convex function, by projected gradients, then the map by BFGS, from wide kernels to
narrow ones. First the cells of a are weighted, then, apart from that, those of b. Where the better of both leaves less
than half of what the clouds leave as they are, cells of a weight near 0 are lacking in the other view. At most half of
the cells can be; and where two views have the same cells in other proportions, some of those that one has more of are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from mmdma_core.fused.threads import alone
from mmdma_core.matching.refinement import COARSE, FINE, Clouds, Discrepancy, Map, Refined

_CELLS = 1_000  # of each view, drawn
_SUSPECT, _BY_CHANCE = 0.008, 2.0  # MMD2 up to which nothing is looked for: what noise leaves, and so many 1 / n
_WIDTHS = (COARSE, FINE, 0.1, 0.05)
_TURNS, _STEPS, _GRADIENTS = 4, 6, 50  # at each width; in each turn iterations of BFGS, and for the weights
_MOST = 2.0  # weight of a cell, where without weights it is 1
_EXPLAINED = 0.5  # of MMD2 that may be left
_LACKING, _AROUND = 0.4, 50  # weight, the mean of so many drawn cells around, below which a cell is lacking
_LEAST = 0.02  # share of cells that are lacking, below which there are none


@dataclass(frozen=True)
class Partial:
    """Two clouds of which one has cells that the other lacks.

    found    the map, and MMD2 of both clouds as they are under it
    left     MMD2 of the weighted clouds: the lower, the better does the match explain both
    lacking  of the cells of x, and of those of y, that are here, whether the other view lacks them
    """

    found: Refined
    left: float
    lacking: tuple[np.ndarray, np.ndarray]


def partial(clouds: Clouds, found: Refined) -> Partial | None:
    """Return which cells the other view lacks, and the map without them; None where there are none to speak of."""
    if found.discrepancy < _SUSPECT + _BY_CHANCE * np.mean([1 / n for n in clouds.sizes]):
        return None
    drawn = clouds.sample(_CELLS, np.random.default_rng(3))
    a, b = (cloud.cpu().double().numpy() for cloud in (drawn.a, drawn.b))
    whole = _Weighted(a, b, found.theta).value(_WIDTHS[-1])
    weighted = [_Weighted(a, b, found.theta).minimised(of) for of in (0, 1)]
    of = int(np.argmin([one.value(_WIDTHS[-1]) for one in weighted]))
    again = _Weighted(a, b, weighted[of].theta).minimised(of)  # from where the first turns have led
    best = min(weighted[of], again, key=lambda one: one.value(_WIDTHS[-1]))
    found_there = of, best.theta, best.weights[of], best.value(_WIDTHS[-1]), whole
    of, theta, weights, left, whole = clouds.ranks[0].broadcast(found_there)  # the same on all ranks
    ranks = clouds.ranks[of]
    if left > _EXPLAINED * whole:
        return None
    points = (a, _moved(b, theta))[of]
    here = (clouds.a, clouds.moved(theta))[of].cpu().double().numpy()
    around = KDTree(points).query(here, k=min(_AROUND, len(points)), workers=-1)[1]
    lacking = [np.zeros(len(cloud), bool) for cloud in (clouds.a, clouds.b)]
    lacking[of] = weights[around].mean(1) * len(points) < _LACKING
    if ranks.sum(np.array([float(lacking[of].sum())]))[0] < _LEAST * ranks.n:
        return None
    with alone():
        at = replace(found, theta=theta, discrepancy=Discrepancy(clouds, FINE).value(theta))
    return Partial(at, left, tuple(lacking))


class _Weighted:
    """MMD2 of weighted points a and b B + t."""

    def __init__(self, a: np.ndarray, b: np.ndarray, theta: Map) -> None:
        self._a, self._b, self.theta = a, b, theta
        self.weights = [np.full(len(points), 1 / len(points)) for points in (a, b)]

    def value(self, sigma: float) -> float:
        """Return it at a width, the biased one."""
        return self._value_and_gradient(self.theta, sigma, self._within(sigma))[0]

    def minimised(self, of: int) -> _Weighted:
        """Find the map and the weights of the points of a (of: 0) or of b (1)."""
        for sigma in _WIDTHS:
            for _ in range(_TURNS):
                within = self._within(sigma)

                def function(
                    theta: np.ndarray, sigma: float = sigma, within: float = within
                ) -> tuple[float, np.ndarray]:
                    value, gradient = self._value_and_gradient(theta.reshape(self.theta.shape), sigma, within)
                    return value, gradient.ravel()

                found = minimize(function, self.theta.ravel(), jac=True, method="BFGS", options={"maxiter": _STEPS})
                self.theta = found.x.reshape(self.theta.shape)
                points = [self._a, _moved(self._b, self.theta)]
                mean = _kernel(points[of], points[1 - of], sigma) @ self.weights[1 - of]
                self.weights[of] = _nearest_mean(_kernel(points[of], points[of], sigma), mean, self.weights[of])
        return self

    def _within(self, sigma: float) -> float:
        return self.weights[0] @ _kernel(self._a, self._a, sigma) @ self.weights[0]

    def _value_and_gradient(self, theta: Map, sigma: float, within: float) -> tuple[float, np.ndarray]:
        """Return MMD2 and its gradient with respect to the map; within: its term of a, which no map changes."""
        (w, u), a, q = self.weights, self._a, _moved(self._b, theta)
        of_a, of_q = w[:, None] * _kernel(a, q, sigma), u[:, None] * _kernel(q, q, sigma)
        sum_a, sum_q = of_a.sum(0), of_q.sum(0)
        pulls = (sum_a - sum_q)[:, None] * q - of_a.T @ a + of_q.T @ q
        gradient = 2 / sigma * u[:, None] * pulls
        return within + (sum_q - 2 * sum_a) @ u, np.vstack([self._b.T @ gradient, gradient.sum(0)])


def _moved(b: np.ndarray, theta: Map) -> np.ndarray:
    return b @ theta[:-1] + theta[-1]


def _kernel(a: np.ndarray, b: np.ndarray, sigma: float) -> np.ndarray:
    return np.exp(cdist(a, b, "sqeuclidean") / (-2 * sigma))


def _nearest_mean(kernel: np.ndarray, mean: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weights w of the lowest w^T K w - 2 w^T m, by accelerated projected gradients (Nesterov 1983)."""
    step, ahead, t = 1 / kernel.sum(1).max(), weights, 1.0
    for _ in range(_GRADIENTS):
        new = _projected(ahead - step * (kernel @ ahead - mean), _MOST / len(weights))
        before, t = t, (1 + np.sqrt(1 + 4 * t * t)) / 2
        ahead, weights = new + (before - 1) / t * (new - weights), new
    return weights


def _projected(weights: np.ndarray, most: float) -> np.ndarray:
    """Return the nearest weights from 0 to most whose sum is 1: all less one number, found by bisection."""
    low, high = weights.min() - most, weights.max()
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(weights - middle, 0, most).sum() > 1 else (low, middle)
    return np.clip(weights - high, 0, most)
