"""Choose among the matches that several starts have found, and tell whether the data can tell them apart.

Every start is refined (mmdma_core.matching.refinement), so that its own stretch no longer counts; then MMD2 at the
width FINE, in units in which the total variance is 1, is comparable between starts. Starts that pair the same cells are
one match. The match of the lowest MMD2 on all cells is chosen, and compared with the best of the other matches.

The comparison allows for the cells being a sample. Let w be the difference of the two clouds' mean kernels, a function
of the place, for either match. The difference of the two MMD2, D, changes with the cells by 2 (w - w') at each of them,
so that its standard error is 2 sqrt(var_y / n_y + var_x / n_x), with the variances of w - w' over the same cells of y
and of x: it is paired. A mirrored match of the very same cells has a D of the order of 1 / n, and so has its error,
yet D is the larger one the finer the width. Hence widths are taken from coarse to fine, and the first at which |D| is
DECISIVE errors decides. Where none does, the data do not tell which of the two matches is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.spatial import KDTree

from mmdma_core.fused.threads import alone
from mmdma_core.matching.refinement import COARSE, FINE, MANY, Clouds, Discrepancy, Refined, on_all_cells

_WIDTHS = (FINE, 0.03, 0.01)
DECISIVE = 3.0
_FINER_STEPS = 20  # iterations at each of the finer ones
_PAIRED = 1_000  # cells of x whose partners are compared, among as many of y as are in a sample
_OTHER = 0.5  # mean squared distance of two partners of a cell above which matches differ; of random ones it is 2
_WITHIN = 8.0  # matches whose MMD2 in a sample of m cells is within so many m are refined on all cells
_KEPT = 3  # matches that are


@dataclass(frozen=True)
class Candidate:
    """A start as the choice sees it.

    start        its number
    loss         of MMD-MA, as it was trained; 0 if it was not
    clouds       its embeddings in units of their own
    found        the map of y that refines it, and MMD2 there: in a sample, then on all cells
    before       MMD2 at FINE as it was trained, in the sample
    match        the number of its match: 0 is the one of the lowest MMD2 in the sample
    """

    start: int
    loss: float
    clouds: Clouds
    found: Refined
    before: float
    match: int = 0


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, the best of each other match that might have been, and what tells them apart.

    errors  D of the chosen and the next match in standard errors, at the width that decides, or at the finest; None
            where no other match comes near
    """

    candidates: list[Candidate]
    chosen: Candidate
    others: list[Candidate]
    errors: float | None

    @property
    def ambiguous(self) -> bool:
        """Whether the data do not tell the chosen match from another."""
        return self.errors is not None and self.errors < DECISIVE


def candidate(start: int, loss: float, clouds: Clouds) -> Candidate:
    """Refine a start in a sample of its cells: the same ones of every start."""
    sample = clouds.sample(MANY, np.random.default_rng(0))
    as_it_is = clouds.as_they_are()
    centred = np.vstack([as_it_is[:-1], 0 * as_it_is[-1:]])
    with alone():
        discrepancy = Discrepancy(sample, FINE)
        before = discrepancy.value(as_it_is)
        nearer = as_it_is if before <= discrepancy.value(centred) else centred
        return Candidate(start, loss, clouds, discrepancy.minimised(nearer), before)


def choose(candidates: Sequence[Candidate]) -> Choice:
    """Number the matches, refine the best of those that come near the best one on all cells, and choose."""
    numbered = _numbered(sorted(candidates, key=lambda one: one.found.discrepancy))
    near = _WITHIN * sum(1 / min(n, MANY) for n in numbered[0].clouds.sizes) / 2
    best_of_each = [_best(numbered, k, near) for k in range(1 + max(one.match for one in numbered))]
    limit = numbered[0].found.discrepancy + near
    best = [_whole(one) for one in best_of_each[:_KEPT] if one.found.discrepancy <= limit]
    best.sort(key=lambda one: one.found.discrepancy)
    errors = None
    if len(best) > 1:
        errors = difference(*best[:2])
        if errors < 0:  # a finer width has decided for the other one
            best[:2], errors = best[1::-1], -errors
    unclear = errors is not None and errors < DECISIVE
    settled = [replace(one, found=on_all_cells(one.clouds, one.found, COARSE)) for one in best[: 1 + unclear]]
    of_start = {one.start: one for one in (*numbered, *best)}  # all at one width
    return Choice([of_start[k] for k in sorted(of_start)], settled[0], [*settled[1:], *best[1 + unclear :]], errors)


def _best(candidates: Sequence[Candidate], match: int, near: float) -> Candidate:
    """Of the candidates of a match that fit about as well, sorted by how well, the one of the lowest loss.

    Of those without a loss it is the first, which matches the axes best.
    """
    own = [one for one in candidates if one.match == match]
    as_good = [one for one in own if one.found.discrepancy <= own[0].found.discrepancy + near]
    return min(as_good, key=lambda one: (one.loss, one.start))


def _whole(one: Candidate) -> Candidate:
    """The candidate refined on all cells, if these are more than its sample."""
    if max(one.clouds.sizes) <= MANY:
        return one
    return replace(one, found=on_all_cells(one.clouds, one.found, FINE))


def _numbered(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Number the matches in the order of the candidates: one that pairs the cells as an earlier one has its number."""
    firsts, numbered = [], []
    for one in candidates:
        pairing = _Pairing.of(one)
        match = next((k for k, first in enumerate(firsts) if pairing.apart(first) < _OTHER), len(firsts))
        if match == len(firsts):
            firsts.append(pairing)
        numbered.append(replace(one, match=match))
    return numbered


@dataclass(frozen=True)
class _Pairing:
    """Of some cells of x the nearest of some cells of y, and where all of these lie."""

    q: np.ndarray
    partners: np.ndarray

    @classmethod
    def of(cls, one: Candidate) -> _Pairing:
        sample = one.clouds.sample(MANY, np.random.default_rng(1))
        a, q = sample.a.cpu().numpy(), sample.moved(one.found.theta).cpu().numpy()
        return cls(q, KDTree(q).query(a[:: -(-len(a) // _PAIRED)])[1])

    def apart(self, other: _Pairing) -> float:
        """Return the mean squared distance between both partners of a cell, in the units of either."""
        between = [e[self.partners] - e[other.partners] for e in (self.q, other.q)]
        return float(np.mean([(d**2).sum(1).mean() for d in between]))


def difference(one: Candidate, other: Candidate) -> float:
    """Return by how many standard errors MMD2 of the other is above that of the first, at the width that decides.

    At each width either map is refined a little more: what a finer width sees of a coarser one's remainder says nothing
    about the match.
    """
    n_x, n_y = one.clouds.sizes
    first, second = one.found, other.found
    for sigma in _WIDTHS:
        first, of_first = _at(one.clouds, first, sigma)
        second, of_second = _at(other.clouds, second, sigma)
        per_cell = [(w - v).var() / n for w, v, n in zip(of_first, of_second, (n_y, n_x), strict=True)]
        errors = (second.discrepancy - first.discrepancy) / max(2 * np.sqrt(sum(per_cell)), np.finfo(np.float32).tiny)
        if abs(errors) >= DECISIVE:
            break
    return float(errors)


def _at(clouds: Clouds, found: Refined, sigma: float) -> tuple[Refined, list[np.ndarray]]:
    """Return the map refined at a width with MMD2 there, and w at MANY cells of y and of x, the same for all maps."""
    with alone():
        discrepancy = Discrepancy(clouds, sigma)
        if sigma != FINE:
            found = discrepancy.minimised(found.theta, _FINER_STEPS, found.inverse)
        waves, means = (torch.from_numpy(of) for of in discrepancy.spectrum(found.theta))
    c, s = means[1] - means[0]
    sample = clouds.sample(MANY, np.random.default_rng(2))
    phases = (points.cpu().double() @ waves for points in (sample.moved(found.theta), sample.a))
    return found, [((each.cos() @ c + each.sin() @ s) / len(c)).numpy() for each in phases]
