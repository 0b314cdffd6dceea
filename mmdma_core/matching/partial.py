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
import torch
from scipy.optimize import minimize
from scipy.spatial import KDTree

from mmdma_core.fused.threads import alone
from mmdma_core.kernels import gaussian_kernel
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
    a, b = drawn.a.cpu().double(), drawn.b.cpu().double()
    whole = _Weighted(a, b, found.theta).value()
    weighted = [_Weighted(a, b, found.theta).minimised(of) for of in (0, 1)]
    of = min((0, 1), key=lambda of: weighted[of].value())
    again = _Weighted(a, b, weighted[of].theta).minimised(of)  # from where the first turns have led
    best = min(weighted[of], again, key=_Weighted.value)
    # The same on all ranks.
    of, theta, weights, left, whole = clouds.ranks[0].broadcast(
        (of, best.theta, best.weights[of].numpy(), best.value(), whole)
    )
    if left > _EXPLAINED * whole:
        return None
    ranks, points = clouds.ranks[of], best.points[of].numpy()
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
    """MMD2 of weighted points a and b B + t, in float64."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, theta: Map) -> None:
        self._a, self._b, self.theta = a, b, theta
        self.weights = [torch.full((len(points),), 1 / len(points), dtype=a.dtype) for points in (a, b)]

    @property
    def points(self) -> list[torch.Tensor]:
        """Both clouds as the map places them."""
        return [self._a, self._moved(torch.from_numpy(self.theta))]

    def value(self, sigma: float = _WIDTHS[-1]) -> float:
        """Return it at a width, the biased one."""
        return self.value_and_gradient(self.theta, sigma)[0]

    def minimised(self, of: int) -> _Weighted:
        """Find the map and the weights of the points of a (of: 0) or of b (1)."""
        for sigma in _WIDTHS:
            for _ in range(_TURNS):
                arguments = {"args": (sigma,), "jac": True, "method": "BFGS", "options": {"maxiter": _STEPS}}
                self.theta = minimize(self.value_and_gradient, self.theta.ravel(), **arguments).x.reshape(
                    self.theta.shape
                )
                own, others = self.points[of], self.points[1 - of]
                mean = gaussian_kernel(own, others, sigma) @ self.weights[1 - of]
                self.weights[of] = _nearest_mean(gaussian_kernel(own, own, sigma), mean, self.weights[of])
        return self

    def value_and_gradient(self, theta: np.ndarray, sigma: float) -> tuple[float, np.ndarray]:
        """Return MMD2 and its gradient (d (d + 1),) at a map, given as it is or as one row."""
        (w, u), a = self.weights, self._a
        theta = torch.from_numpy(theta.reshape(-1, a.shape[1])).requires_grad_()
        q = self._moved(theta)
        of_q = gaussian_kernel(q, q, sigma) @ u - 2 * gaussian_kernel(q, a, sigma) @ w
        value = u @ of_q + w @ gaussian_kernel(a, a, sigma) @ w
        (gradient,) = torch.autograd.grad(value, theta)
        return value.item(), gradient.numpy().ravel()

    def _moved(self, theta: torch.Tensor) -> torch.Tensor:
        return self._b @ theta[:-1] + theta[-1]


def _nearest_mean(kernel: torch.Tensor, mean: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weights w of the lowest w^T K w - 2 w^T m, by accelerated projected gradients (Nesterov 1983)."""
    step, ahead, t = 1 / kernel.sum(1).max(), weights, 1.0
    for _ in range(_GRADIENTS):
        new = _projected(ahead - step * (kernel @ ahead - mean), _MOST / len(weights))
        before, t = t, (1 + np.sqrt(1 + 4 * t * t)) / 2
        ahead, weights = new + (before - 1) / t * (new - weights), new
    return weights


def _projected(weights: torch.Tensor, most: float) -> torch.Tensor:
    """Return the nearest weights from 0 to most whose sum is 1: all less one number, found by bisection."""
    low, high = float(weights.min()) - most, float(weights.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if (weights - middle).clamp(0, most).sum() > 1 else (low, middle)
    return (weights - high).clamp(0, most)
