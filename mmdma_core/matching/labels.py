"""The metrics of labels, over all cells or a sample of them: transfer accuracy and silhouette.

Cells of a sample are set against all cells; memory is O(n) either way.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.stats import mode
from sklearn.neighbors import NearestNeighbors

from mmdma_core.matching import match_ranks
from mmdma_core.matching.match_ranks import Estimate, Undefined, Vector, as_array, distances, in_blocks, rounding
from mmdma_core.settings import is_whole, plain

_SURELY = 3  # standard errors below chance at which labels have been exchanged
_CLEAR = 1e-12  # of the largest squared norm: scikit-learn's squared distances are right to less


def labelled(
    e_x: torch.Tensor, e_y: torch.Tensor, labels_x: Vector, labels_y: Vector
) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
    """Return the cells of both views that have a label, and the labels as integers, equal where labels are equal.

    None and NaN are no label. Raises ValueError for a bad vector, Undefined for a view without a label.
    """
    cells, labels = [], []
    for name, e, given in (("x", e_x, labels_x), ("y", e_y, labels_y)):
        if isinstance(given, np.ma.MaskedArray):
            given = np.where(np.ma.getmaskarray(given), None, given.data)
        given = as_array(given if hasattr(given, "dtype") else np.array(given, dtype=object))  # NaN would become text
        if given.shape != (len(e),):
            rows = f"each of the {len(e)} rows of e_{name}"
            raise ValueError(f"labels_{name} must have one entry for {rows}, got shape {given.shape}")
        known = ~pd.isna(given)
        if not known.any():
            raise Undefined(f"no cell of {name} has a label")
        cells.append(e if known.all() else e[torch.from_numpy(known).to(e.device)])
        labels.append(given[known].astype(object))  # NumPy would turn a number and the text of it into one label
    codes, _ = pd.factorize(np.concatenate(labels), sort=True)
    return *cells, np.split(codes, [len(labels[0])])


def gaps_note(n_x: int, n_y: int, codes: list[np.ndarray]) -> tuple[str, ...]:
    """Say how many of the cells have no label, if any."""
    absent = n_x - len(codes[0]), n_y - len(codes[1])
    if not any(absent):
        return ()
    cells = f"{absent[0]} of {n_x} cells of x and {absent[1]} of {n_y} cells of y"
    return (f"{cells} have no label: metrics of labels leave them out",)


def transfer_accuracy(
    e_x: torch.Tensor,
    e_y: torch.Tensor,
    codes: list[np.ndarray],
    n_neighbors: int,
    sample: int | None = None,
    seed: int = match_ranks.SEED,
) -> Estimate:
    """Estimate `mmdma_core.metrics.label_transfer_accuracy`; of a sample its cells alone get labels."""
    n_neighbors = plain(n_neighbors)
    if not is_whole(n_neighbors) or n_neighbors < 1:
        raise ValueError(f"n_neighbors must be an integer of at least 1, got {n_neighbors!r}")
    smaller = min(len(e_x), len(e_y))
    if n_neighbors > smaller:
        raise Undefined(f"n_neighbors = {n_neighbors} exceeds the {smaller} cells of the smaller view")
    if not np.intersect1d(*codes).size:
        raise Undefined("no label occurs in both views")
    views, rng = _centred(e_x, e_y), np.random.default_rng(seed)
    sampled = [match_ranks.draw(len(view), sample, rng) for view in views]
    counts = len(sampled[0]), len(sampled[1])
    accuracies, shared = [], 0
    for j, k in ((1, 0), (0, 1)):
        predicted, tied = transfer(views[k], codes[k], views[j][sampled[j]], n_neighbors)
        accuracies.append(np.mean(predicted == codes[j][sampled[j]]))
        shared += tied
    value, notes = float(np.mean(accuracies)), []
    shares = [np.bincount(of, minlength=1 + max(map(max, codes))) / len(of) for of in codes]
    chance = float(shares[0] @ shares[1])
    if value < chance - _SURELY * np.sqrt(chance * (1 - chance) / sum(counts)):
        notes.append(f"label transfer is below chance ({value:.2g}, {chance:.2g}): the match has exchanged the labels")
    if 2 * n_neighbors > smaller:
        notes.append(f"n_neighbors = {n_neighbors} is more than half of the {smaller} cells of the smaller view")
    if shared:
        further = f"further neighbours as far as number {n_neighbors}"
        notes.append(f"{shared} of {sum(counts)} cells have {further}: these share its vote")
    if counts == (len(e_x), len(e_y)):
        return Estimate(value, counts, None, tuple(notes))
    sizes = (counts[1], len(e_y)), (counts[0], len(e_x))
    ends = [match_ranks.of_fraction(hit, *size) for hit, size in zip(accuracies, sizes, strict=True)]
    return Estimate(value, counts, match_ranks.of_both(accuracies, ends), tuple(notes))


def silhouette(
    e_x: torch.Tensor,
    e_y: torch.Tensor,
    codes: list[np.ndarray],
    sample: int | None = None,
    seed: int = match_ranks.SEED,
) -> Estimate:
    """Estimate `mmdma_core.metrics.label_silhouette`; of a sample of the cells of both views together.

    As many cells are drawn as `sample` says, from both views at once: half as many as of other metrics, for each of
    them is set against twice as many.
    """
    n_x, of_both = len(e_x), np.concatenate(codes)
    n, n_labels = len(of_both), len(np.unique(of_both))
    if n_labels == 1:
        raise Undefined("all cells have one label, a silhouette needs two")
    if n_labels == n:
        raise Undefined("every cell has a label of its own, a silhouette needs two cells of one label")
    drawn = match_ranks.draw(n, sample, np.random.default_rng(seed))
    values = _silhouettes(torch.cat([e_x, e_y]).cpu().numpy(), of_both, drawn)
    from_x = int(np.count_nonzero(drawn < n_x))
    interval = match_ranks.of_mean(values, n, (-1, 1)) if len(drawn) < n else None
    return Estimate(float(values.mean()), (from_x, len(drawn) - from_x), interval)


def transfer(points: np.ndarray, codes: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Return labels (m,) of cells, asked (m, d), by the vote of their k nearest points (n, d), which have codes (n,).

    Points that are as far as the k-th share the votes that are left for them: of t such points and r votes each has
    r / t of a vote. Of labels with equally many votes it is the first in order. Also how many cells have points that
    share.
    """
    places, of_cell = np.unique(asked, axis=0, return_inverse=True)  # many cells may lie in one place
    of_cell, shared = of_cell.reshape(-1), np.zeros(len(places), dtype=bool)
    squared, found = NearestNeighbors(n_neighbors=min(k + 1, len(points))).fit(points).kneighbors(places)
    squared **= 2
    predicted = mode(codes[found[:, :k]], axis=1).mode
    if k < len(points):
        largest = max(float((view**2).sum(1).max()) for view in (points, places))
        unclear = squared[:, k] - squared[:, k - 1] <= _CLEAR * largest
        if unclear.any():
            predicted[unclear], shared[unclear] = _shared(points, codes, places[unclear], k)
    return predicted[of_cell], int(shared[of_cell].sum())


def _shared(points: np.ndarray, codes: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels from all distances, and whether points share: slower, and right where distances are equal."""
    order = codes.argsort(kind="stable")
    names, begins = np.unique(codes[order], return_index=True)
    sorted_points, queries = torch.from_numpy(points[order]), torch.from_numpy(asked)
    slack = rounding(sorted_points, queries)

    def vote(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        block = distances(queries[rows], sorted_points).numpy()
        kth = np.partition(block, k - 1, axis=1)[:, k - 1, None]
        closer, up_to = block < kth - slack, block <= kth + slack
        left = k - closer.sum(1, keepdims=True)
        tied = up_to.sum(1, keepdims=True) - closer.sum(1, keepdims=True)
        votes = np.where(closer, tied, np.where(up_to, left, 0))  # whole numbers: tied times the votes
        return names[np.add.reduceat(votes, begins, axis=1).argmax(1)], tied[:, 0] > left[:, 0]

    labels, shared = zip(*in_blocks(len(asked), len(points), vote), strict=True)
    return np.concatenate(labels), np.concatenate(shared)


def _centred(e_x: torch.Tensor, e_y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Subtract the common mean of both embeddings: scikit-learn's |a|^2 + |b|^2 - 2 a.b loses what lies far from 0."""
    mean = torch.cat([e_x, e_y]).mean(0)
    return (e_x - mean).cpu().numpy(), (e_y - mean).cpu().numpy()


def _silhouettes(points: np.ndarray, codes: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the silhouette of each cell drawn, among all: (b - a) / max(a, b), or 0."""
    order = codes.argsort(kind="stable")
    others, counts = torch.from_numpy(points[order]), np.bincount(codes)  # every code occurs
    begins = np.concatenate([[0], counts.cumsum()[:-1]])

    def silhouettes(rows: slice) -> np.ndarray:
        cells = drawn[rows]
        each, own = np.arange(len(cells)), codes[cells]
        sums = np.add.reduceat(distances(torch.from_numpy(points[cells]), others).numpy(), begins, axis=1)
        within = sums[each, own] / np.maximum(counts[own] - 1, 1)
        means = sums / counts
        means[each, own] = np.inf
        between = means.min(1)
        largest = np.maximum(np.maximum(within, between), np.finfo(float).tiny)
        return np.where(counts[own] > 1, (between - within) / largest, 0)

    return np.concatenate(in_blocks(len(drawn), len(others), silhouettes))
