"""The label that a cell's nearest neighbours vote for, whatever the order in which the neighbours come."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import mode
from sklearn.neighbors import NearestNeighbors

from mmdma_core.matching.blocks import distances, in_blocks, rounding

_CLEAR = 1e-12  # of the largest squared norm: scikit-learn's squared distances are right to less


def transfer(points: np.ndarray, codes: np.ndarray, asked: np.ndarray, k: int) -> tuple[np.ndarray, int]:
    """Labels (m,) of the cells asked, (m, d), by the vote of their k nearest points, (n, d), which have codes, (n,).

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
    """The labels, with all distances at hand, and whether points share: slower, and right where distances are equal."""
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
