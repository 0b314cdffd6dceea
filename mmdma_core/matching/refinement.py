"""Refine a match in the d dimensions of its embedding: an affine map of one cloud onto the other that minimises MMD2.

MMD-MA's distortion keeps each view's own stretch, so that the right match has a residual MMD2 which a mirrored one can
beat. Without it, q = b B + t with B (d, d) and t (d,) free, the right match fits best, and how well each fits can be
compared. The clouds are put into units of their own first: a is E_x less its mean, along its principal axes, with total
variance 1; b is E_y along its own, with variance 1 along the first. A kernel's width is a `sigma` in these units: a
share of the total variance.

MMD2 and its gradient come from the passes of the variants: exact up to EXACT_UP_TO cells, else from Fourier features of
all cells, with frequencies that all maps share. BFGS (SciPy) minimises them: there are d (d + 1) numbers to find.

`search` finds maps. Principal axes have no sign, and the order of those with similar variances is arbitrary. So all
orders and signs of the leading three are tried on a few cells, the best of them refined on more, and then every flip of
one axis and every exchange of two, until nothing is better. The widths go from COARSE to FINE.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import OptimizeResult, OptimizeWarning, minimize

from mmdma_core.errors import Unsupported
from mmdma_core.fused.compose import EXACT_UP_TO, exact_mmd, fourier_mmd, missing_for_exact
from mmdma_core.fused.fourier import Frequencies
from mmdma_core.fused.ranks import world
from mmdma_core.fused.threads import alone
from mmdma_core.inputs import Ranks
from mmdma_core.matching.match_ranks import draw
from mmdma_core.settings import Settings

COARSE, FINE = 1.0, 0.3  # sigma, in shares of the total variance
_LEADING = 3  # principal axes that are tried in every order with every sign
_ROTATIONS = 32  # tried where the variances of leading axes are alike
_ALIKE = 1.3  # the ratio of two variances up to which their axes are arbitrary
_FEW, _SOME, MANY = 300, 1_000, 2_500  # cells of each view in the stages of a search
_LARGE = 60_000  # and before all of many more
_STEPS = (10, 10, 20, 40)  # iterations: of all maps, of the best ones and neighbours on few cells, on some, on more
_KEPT = (24, 8, 8)  # maps after each of the first three
_ROUNDS = 3  # of flips and exchanges
_FREQUENCIES = 128
_FLAT, _DECREASE = 0.2, 0.02  # slope, and gain of an iteration, of no account, in 1 / n
_SAME = 0.05  # mean |q - q'|^2 of two maps up to which they are one; the total variance is 1
_LEAST_VARIANCE = 1e-6  # of an axis, in shares of the largest: none is blown up along what is rounding

Map = np.ndarray  # (d + 1, d): B, and t in the last row


class Flat(ValueError):
    """All points of a cloud coincide: nothing can be mapped onto it, nor it onto anything."""


@dataclass(frozen=True)
class Refined:
    """A map, MMD2 there, and about the inverse of its second derivatives."""

    theta: Map
    discrepancy: float
    inverse: np.ndarray


@dataclass(frozen=True)
class Clouds:
    """Both embeddings of a match in units of their own.

    a, b    (n_x, d) and (n_y, d), float32, of ranks the rows that are here. (Were b white, axes along which it has but
            noise would be as easily moved as any other, and MMD2 hardly tells how far these are.)
    spread  (2, d), the standard deviations of a and of b
    units   what leads back to the embeddings: the mean of E_x and its axes times its scale, the same of E_y
    ranks   of the rows of either cloud
    """

    a: torch.Tensor
    b: torch.Tensor
    spread: np.ndarray
    units: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    ranks: tuple[Ranks, Ranks]

    @classmethod
    def of(cls, e_x: np.ndarray, e_y: np.ndarray, device: torch.device) -> Clouds:
        """Put embeddings into units of their own. Raises Flat if the points of one of them coincide."""
        ranks = world(len(e_x)), world(len(e_y))
        (mean_x, variances_x, axes_x), (mean_y, variances_y, axes_y) = (
            _axes(e, of) for e, of in zip((e_x, e_y), ranks, strict=True)
        )
        if not min(variances_x[0], variances_y[0]) > 0:
            raise Flat("all cells of a view lie at one point, nothing tells them apart")
        scale_x, scale_y = np.sqrt(variances_x.sum()), np.sqrt(variances_y[0])
        a, b = (e_x - mean_x) @ (axes_x / scale_x), (e_y - mean_y) @ (axes_y / scale_y)
        variances = np.array([variances_x / scale_x**2, variances_y / scale_y**2])
        spread = np.sqrt(np.maximum(variances, _LEAST_VARIANCE * variances[:, :1]))
        where = _where(device)
        placed = (torch.from_numpy(np.ascontiguousarray(cloud, np.float32)).to(where) for cloud in (a, b))
        return cls(*placed, spread, (mean_x, axes_x * scale_x, mean_y, axes_y * scale_y), ranks)

    @property
    def sizes(self) -> tuple[int, int]:
        """n_x and n_y, over all ranks."""
        return self.ranks[0].n, self.ranks[1].n

    def sample(self, m: int, rng: np.random.Generator) -> Clouds:
        """Return m cells of each view, drawn anew, which all ranks then have; all cells where they are no more."""
        drawn = [_rows(cloud, of, m, rng) for cloud, of in zip((self.a, self.b), self.ranks, strict=True)]
        return Clouds(*drawn, self.spread, self.units, tuple(Ranks(len(rows)) for rows in drawn))

    def moved(self, theta: Map) -> torch.Tensor:
        """Return b B + t, (n_y, d)."""
        theta = torch.as_tensor(theta, dtype=torch.float32, device=self.b.device)
        return torch.addmm(theta[-1], self.b, theta[:-1])

    def apart(self, theta: Map, other: Map) -> float:
        """Return the mean of |q - q'|^2 over b for two maps."""
        return float((((theta - other) * np.append(self.spread[1], 1)[:, None]) ** 2).sum())

    def as_they_are(self) -> Map:
        """Return the map that moves nothing: b B + t is E_y, in the units of a."""
        mean_x, axes_x, mean_y, axes_y = self.units
        into = axes_x / (axes_x**2).sum(0)
        return np.vstack([axes_y.T @ into, (mean_y - mean_x) @ into])

    def of_embeddings(self, theta: Map) -> tuple[np.ndarray, np.ndarray]:
        """Return A (d, d) and c (d,), such that E_y A + c is where the map takes E_y."""
        mean_x, axes_x, mean_y, axes_y = self.units
        back = axes_y / (axes_y**2).sum(0) @ theta[:-1] @ axes_x.T
        return back, theta[-1] @ axes_x.T + mean_x - mean_y @ back


def _axes(e: np.ndarray, ranks: Ranks) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean of points, and the variances along their principal axes, the largest first."""
    mean = ranks.sum(e.sum(0, dtype=np.float64)) / ranks.n
    centred = e - mean
    variances, axes = np.linalg.eigh(ranks.sum(centred.T @ centred) / ranks.n)
    return mean, np.maximum(variances[::-1], 0), axes[:, ::-1]


def _where(device: torch.device) -> torch.device:
    """The device whose passes are taken: a GPU without those for pairs leaves the work to the CPU."""
    try:
        missing = missing_for_exact(device)
    except Unsupported as error:
        missing = str(error)
    return torch.device("cpu") if missing else device


def _rows(cloud: torch.Tensor, ranks: Ranks, m: int, rng: np.random.Generator) -> torch.Tensor:
    """m rows of a cloud over all ranks, in order, drawn without replacement; all of them, if there are no more."""
    rows = draw(ranks.n, m, rng)
    here = ranks.local(rows)
    first = np.searchsorted(rows, ranks.first)
    drawn = np.zeros((len(rows), cloud.shape[1]))
    drawn[first : first + len(here)] = cloud[torch.from_numpy(here).to(cloud.device)].cpu()
    return torch.from_numpy(ranks.sum(drawn)).to(cloud)


class _AtRest:
    """Ends a minimisation at the first iteration that gains less than that."""

    def __init__(self, least: float) -> None:
        self._least, self._value = least, np.inf

    def __call__(self, intermediate_result: OptimizeResult) -> None:
        before, self._value = self._value, intermediate_result.fun
        if before - self._value < self._least:
            raise StopIteration


class Discrepancy:
    """The unbiased MMD2 of a and b B + t as a function of the map, with its gradient.

    sigma  variance-like width of the kernel, in shares of the total variance of a
    """

    def __init__(self, clouds: Clouds, sigma: float) -> None:
        self.clouds, self._sigma = clouds, sigma
        settings = Settings(n_components=clouds.a.shape[1], sigma=sigma, unbiased=True)
        self._of_a, self._of_q = torch.empty_like(clouds.a), torch.empty_like(clouds.b)
        if max(clouds.sizes) <= EXACT_UP_TO:
            self._pairs, self._frequencies = exact_mmd(*clouds.sizes, settings, clouds.a.device, clouds.ranks), None
        else:
            self._pairs, self._frequencies = None, _frequencies(clouds, sigma)
            self._means_of_a = _means(self._frequencies, clouds.a, clouds.ranks[0])[1]  # a stays where it is

    def __call__(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Return MMD2 and its gradient (d (d + 1),) at a map, given as it is or as one row."""
        clouds, ranks = self.clouds, self.clouds.ranks[1]
        q = clouds.moved(theta.reshape(-1, clouds.a.shape[1]))
        value = self._pairs(clouds.a, q, self._of_a, self._of_q) if self._pairs else self._from_frequencies(q)
        gradient = torch.cat([clouds.b.T @ self._of_q, self._of_q.sum(0, keepdim=True)]).double().cpu().numpy()
        return ranks.broadcast((float(value), ranks.sum(gradient).ravel()))

    def value(self, theta: Map) -> float:
        """Return MMD2 at a map."""
        return self(theta)[0]

    def minimised(self, theta: Map, steps: int = _STEPS[3], inverse: np.ndarray | None = None) -> Refined:
        """Return a map of lower MMD2, after at most so many iterations of BFGS.

        inverse  of the second derivatives, where something is known of it: then few iterations are enough
        """
        chance = float(np.mean([1 / n for n in self.clouds.sizes]))
        options: dict[str, Any] = {"maxiter": steps, "gtol": _FLAT * chance}
        if inverse is not None:
            options["hess_inv0"] = (inverse + inverse.T) / 2  # but for rounding it is symmetric
        stop = _AtRest(_DECREASE * chance) if max(self.clouds.sizes) > 2 * _LARGE else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found = minimize(self, theta.ravel(), jac=True, method="BFGS", options=options, callback=stop)
        return Refined(found.x.reshape(theta.shape), float(found.fun), found.hess_inv)

    def spectrum(self, theta: Map) -> tuple[np.ndarray, np.ndarray]:
        """Return the frequencies (d, D), and of a and of b B + t the means of cosines and of sines, (2, 2, D)."""
        frequencies = self._frequencies or _frequencies(self.clouds, self._sigma)
        pair = zip((self.clouds.a, self.clouds.moved(theta)), self.clouds.ranks, strict=True)
        means = [torch.as_tensor(_means(frequencies, cloud, ranks)[1]).cpu().numpy() for cloud, ranks in pair]
        return 2 * np.pi * frequencies.turns.astype(np.float64), np.array(means)

    def _from_frequencies(self, q: torch.Tensor) -> float:
        """MMD2 as in mmdma_core.fused.fourier; the gradient with respect to q is filled, that of a is not asked for."""
        n_y, of_a = self.clouds.sizes[1], self._means_of_a
        (placed,), of_q = _means(self._frequencies, q, self.clouds.ranks[1])
        cosines, sines = n_y / (n_y - 1) * of_q - of_a
        self._frequencies.gradient(placed, cosines, sines, 2 / (n_y * len(cosines)), self._of_q)
        return self._of_means(of_a, of_q)

    def _of_means(self, of_a: Any, of_q: Any) -> Any:
        within = sum((n * (m**2).sum(0) - 1) / (n - 1) for n, m in zip(self.clouds.sizes, (of_a, of_q), strict=True))
        return (within - 2 * (of_a * of_q).sum(0)).mean()


def _means(frequencies: Frequencies, cloud: torch.Tensor, ranks: Ranks) -> tuple[Any, Any]:
    """The cloud for the passes, and the means of cosines and of sines over all of its points, (2, D)."""
    nowhere = 0 * frequencies.totals((cloud[:1],))[0]  # of the type that the passes take, on their device
    placed = frequencies.centred((cloud,), nowhere, checked=False)
    return placed, ranks.sum(frequencies.sums(placed))[0] / ranks.n


def _frequencies(clouds: Clouds, sigma: float) -> Frequencies:
    """The same frequencies in every run and for all maps, so that these can be compared."""
    settings = Settings(n_components=clouds.a.shape[1], sigma=sigma, n_frequencies=_FREQUENCIES)
    frequencies = fourier_mmd(*clouds.sizes, settings, clouds.a.device).fresh
    frequencies.draw(0, 0)
    return frequencies


def refined(clouds: Clouds, thetas: Iterable[Map], sigma: float, steps: int, keep: int) -> list[Refined]:
    """Minimise MMD2 from each map; return the best few that differ, the best one first."""
    with alone():
        discrepancy = Discrepancy(clouds, sigma)
        return distinct(clouds, [discrepancy.minimised(theta, steps) for theta in thetas], keep)


def distinct(clouds: Clouds, found: Iterable[Refined], keep: int) -> list[Refined]:
    """Return the best few of maps that take b to other places, the best one first."""
    kept: list[Refined] = []
    for one in sorted(found, key=lambda one: one.discrepancy):
        if len(kept) < keep and all(clouds.apart(one.theta, other.theta) > _SAME for other in kept):
            kept.append(one)
    return kept


def search(clouds: Clouds, keep: int, rng: np.random.Generator) -> list[Refined]:
    """Return the best few maps that differ, from samples of the cells, the best one first."""
    few = clouds.sample(_FEW, rng)
    found = refined(few, _symmetries(clouds.spread, rng), COARSE, _STEPS[0], _KEPT[0])
    found = refined(few, [one.theta for one in found], FINE, _STEPS[1], _KEPT[1])
    some, lowest = clouds.sample(_SOME, rng), np.inf
    for _ in range(_ROUNDS):
        few = clouds.sample(_FEW, rng)
        around = [near for one in found[:2] for near in _neighbours(one.theta, clouds.spread[0])]
        nearby = refined(few, around, FINE, _STEPS[1], _KEPT[1] // 2)
        found = refined(some, [one.theta for one in (*found, *nearby)], FINE, _STEPS[2], _KEPT[2])
        if not found[0].discrepancy < lowest - 1e-5:
            break
        lowest = found[0].discrepancy
    return found[:keep]


def _symmetries(spread: np.ndarray, rng: np.random.Generator) -> list[Map]:
    """Maps of the axes of b onto those of a: the leading ones in every order with every sign, the others in order."""
    of_a, of_b = spread
    d, leading = len(of_a), min(_LEADING, len(of_a))
    turns = []
    for order in itertools.permutations(range(leading)):
        for signs in itertools.product((1, -1), repeat=leading):
            turns.append(np.eye(leading)[list(order)] * signs)
    if (spread[:, : leading - 1] < np.sqrt(_ALIKE) * spread[:, 1:leading]).any():
        turns += [np.linalg.qr(rng.standard_normal((leading, leading)))[0] for _ in range(_ROTATIONS)]
    maps = []
    for turn in turns:
        whole = np.eye(d)
        whole[:leading, :leading] = turn
        maps.append(np.vstack([whole / of_b[:, None] * of_a, np.zeros(d)]))
    return maps


def _neighbours(theta: Map, spread: np.ndarray) -> list[Map]:
    """The map followed by a flip of one axis of a, or by an exchange of two with either sign."""
    d = len(spread)
    turns = []
    for i in range(d):
        flip = np.eye(d)
        flip[i, i] = -1
        turns.append(flip)
        for j, sign in itertools.product(range(i), (1, -1)):
            exchange = np.eye(d)
            exchange[[i, j], [i, j]] = 0
            exchange[i, j], exchange[j, i] = sign * spread[j] / spread[i], sign * spread[i] / spread[j]
            turns.append(exchange)
    return [theta @ turn for turn in turns]


def on_all_cells(clouds: Clouds, found: Refined, sigma: float) -> Refined:
    """Refine the map of a sample on all cells at a width; return it with MMD2 at FINE.

    Of many cells a pass takes long: there the sample tells the second derivatives, and few iterations are enough.
    """
    with alone():
        rng = np.random.default_rng(0)
        if sigma != FINE:
            found = replace(found, inverse=Discrepancy(clouds.sample(MANY, rng), sigma).minimised(found.theta).inverse)
        elif max(clouds.sizes) > 2 * _LARGE:
            found = Discrepancy(clouds.sample(_LARGE, rng), sigma).minimised(found.theta, inverse=found.inverse)
        best = Discrepancy(clouds, sigma).minimised(found.theta, inverse=found.inverse)
        if sigma == FINE:
            return best
        return replace(best, discrepancy=Discrepancy(clouds, FINE).value(best.theta))
