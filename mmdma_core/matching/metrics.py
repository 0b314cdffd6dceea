"""How well two embeddings match, where the truth is known: from the ranks of the true matches, and from labels.

e_x (n_x, d) and e_y (n_y, d) are the embedded views, rows are cells; match (n_x,) says that row i of e_x is the same
cell as row match[i] of e_y. What match may be, and how ties count, is said in match_ranks.py. Memory is O(n)
throughout, time O(n^2 d).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
import pandas as pd
import sklearn
import torch
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from mmdma_core.matching.match_ranks import MatchRanks, Matrix, Undefined, Vector, as_array, as_embeddings, match_ranks

_WORKING_MEMORY_MIB = 32  # of scikit-learn, for its own blocks of distances


@dataclass(frozen=True)
class Evaluation:
    """All that the truth at hand allows.

    Parameters
    ----------
    values : dict
        Metric -> value.
    overlap : numpy.ndarray or None
        (n_y,) the curve of `neighbourhood_overlap`; None without a match.
    left_out : dict
        Metric -> why it has no value.
    notes : tuple of str
        What a reader of the values must know: cells without match, ties.
    """

    values: dict[str, float]
    overlap: np.ndarray | None
    left_out: dict[str, str]
    notes: tuple[str, ...]


def foscttm(e_x: Matrix, e_y: Matrix, match: Vector) -> float:
    """Fraction of samples closer than the true match, 0 (best) to 1; about 0.5 for a random embedding.

    ((mean of rank_x - 1) / (n_y - 1) + (mean of rank_y - 1) / (n_x - 1)) / 2: the mean over matched cells, and over
    both directions, of the fraction of the other cells of the other view that are strictly closer than the true match.

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    match : array of int
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        For embeddings or a match that cannot be, see match_ranks.py.

    References
    ----------
    Liu et al. 2019, Jointly embedding multiple single-cell omics measurements.

    Examples
    --------
    >>> import numpy as np
    >>> from mmdma_core import metrics
    >>> e = np.arange(6.0).reshape(3, 2)
    >>> metrics.foscttm(e, e, np.arange(3))
    0.0
    """
    return match_ranks(e_x, e_y, match).foscttm()


def top_k(e_x: Matrix, e_y: Matrix, match: Vector, k: float, percent: bool = False) -> float:
    """Fraction of matched cells whose true match is among the k nearest cells of the other view, mean of both ways.

    (mean of [rank_x <= k] + mean of [rank_y <= k]) / 2, where [.] is 1 if so, else 0, and ranks count from 1.

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    match : array of int
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.
    k : float
        Cells, an integer of at least 1; with percent a percentage in (0, 100].
    percent : bool
        Among the k per cent nearest: floor(k n / 100) cells, n the number of cells of the other view.

    Returns
    -------
    float
        Between 0 and 1 (best).

    Raises
    ------
    ValueError
        For embeddings, a match or a k that cannot be; `Undefined` where k per cent are less than one cell.

    References
    ----------
    The package lsmmdma.
    """
    return match_ranks(e_x, e_y, match).top_k(k, percent)


def neighbourhood_overlap(e_x: Matrix, e_y: Matrix, match: Vector) -> np.ndarray:
    """For every k the fraction of matched cells of x whose true match is among their k nearest cells of y.

    Entry k - 1 is the mean of [rank_x <= k], where [.] is 1 if so, else 0, and ranks count from 1.

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    match : array of int
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.

    Returns
    -------
    numpy.ndarray
        (n_y,), for k = 1 to n_y.

    Raises
    ------
    ValueError
        For embeddings or a match that cannot be.

    References
    ----------
    The package lsmmdma, which however takes for ranks the diagonal of an argsort.
    """
    return match_ranks(e_x, e_y, match).overlap()


def label_transfer_accuracy(
    e_x: Matrix, e_y: Matrix, labels_x: Vector, labels_y: Vector, n_neighbors: int = 5
) -> float:
    """Accuracy with which the labels of one view are predicted from the other, mean of both directions.

    A cell's label is predicted by the vote of its n_neighbors nearest cells of the other view (scikit-learn's
    KNeighborsClassifier: of tied labels the first in order).

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    labels_x : array
        (n_x,) numbers or text.
    labels_y : array
        (n_y,), likewise.
    n_neighbors : int
        Cells that vote, at least 1.

    Returns
    -------
    float
        Between 0 and 1 (best).

    Raises
    ------
    ValueError
        For bad embeddings, labels of the wrong length or missing, an n_neighbors that cannot be; `Undefined` for more
        neighbours than a view has cells and for views without a common label.

    References
    ----------
    The package lsmmdma.

    Examples
    --------
    >>> import numpy as np
    >>> from mmdma_core import metrics
    >>> e = np.arange(6.0).reshape(3, 2)
    >>> metrics.label_transfer_accuracy(e, e, ["a", "b", "b"], ["a", "b", "b"], n_neighbors=1)
    1.0
    """
    e_x, e_y = as_embeddings(e_x, e_y)
    return _label_transfer_accuracy(e_x, e_y, *_label_codes(e_x, e_y, labels_x, labels_y), n_neighbors)


def label_silhouette(e_x: Matrix, e_y: Matrix, labels_x: Vector, labels_y: Vector) -> float:
    """Mean silhouette of the labels over the cells of both views together.

    (b - a) / max(a, b) with a the mean distance to the other cells of one's label and b the smallest mean distance to
    the cells of another; 0 for a label of one cell.

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    labels_x : array
        (n_x,) numbers or text.
    labels_y : array
        (n_y,), likewise.

    Returns
    -------
    float
        Between -1 and 1 (best).

    Raises
    ------
    ValueError
        For bad embeddings and for labels of the wrong length or missing; `Undefined` for a single label and where every
        cell has a label of its own.

    References
    ----------
    Rousseeuw 1987, as scikit-learn computes it.
    """
    e_x, e_y = as_embeddings(e_x, e_y)
    return _label_silhouette(e_x, e_y, *_label_codes(e_x, e_y, labels_x, labels_y))


_OF_MATCH = {
    "foscttm": MatchRanks.foscttm,
    "top1_count": partial(MatchRanks.top_k, k=1),
    "top5_count": partial(MatchRanks.top_k, k=5),
    "top1_percent": partial(MatchRanks.top_k, k=1, percent=True),
    "top5_percent": partial(MatchRanks.top_k, k=5, percent=True),
}


def evaluate(
    e_x: Matrix,
    e_y: Matrix,
    match: Vector | None = None,
    labels_x: Vector | None = None,
    labels_y: Vector | None = None,
    n_neighbors: int = 5,
) -> Evaluation:
    """Every metric that the truth at hand allows, and why the others are left out.

    Parameters
    ----------
    e_x : torch.Tensor or numpy.ndarray
        Embedding of the first view, (n_x, d), rows are cells.
    e_y : torch.Tensor or numpy.ndarray
        Embedding of the second view, (n_y, d).
    match : array of int, optional
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.
    labels_x : array, optional
        (n_x,) numbers or text.
    labels_y : array, optional
        (n_y,), likewise.
    n_neighbors : int
        Of `label_transfer_accuracy`.

    Returns
    -------
    Evaluation
        Values, and what has none with the reason.

    Raises
    ------
    ValueError
        For bad input as the single metrics do; what is `Undefined` there is left out here.
    """
    e_x, e_y = as_embeddings(e_x, e_y)
    overlap, notes, metrics, left_out = None, (), {}, {}
    if match is None:
        left_out |= dict.fromkeys((*_OF_MATCH, "neighbourhood_overlap"), "no match given")
    else:
        try:
            ranks = match_ranks(e_x, e_y, match)
        except Undefined as reason:
            left_out |= dict.fromkeys((*_OF_MATCH, "neighbourhood_overlap"), str(reason))
        else:
            overlap, notes = ranks.overlap(), ranks.notes()
            metrics |= {name: partial(metric, ranks) for name, metric in _OF_MATCH.items()}
    absent = [name for name, labels in (("labels_x", labels_x), ("labels_y", labels_y)) if labels is None]
    if absent:
        names = ("label_transfer_accuracy", "label_silhouette")
        left_out |= dict.fromkeys(names, f"{' and '.join(absent)} not given")
    else:
        labelled = (e_x, e_y, *_label_codes(e_x, e_y, labels_x, labels_y))
        metrics["label_transfer_accuracy"] = partial(_label_transfer_accuracy, *labelled, n_neighbors)
        metrics["label_silhouette"] = partial(_label_silhouette, *labelled)
    values = {}
    for name, metric in metrics.items():
        try:
            values[name] = metric()
        except Undefined as reason:
            left_out[name] = str(reason)
    return Evaluation(values, overlap, left_out, notes)


def _label_transfer_accuracy(
    e_x: torch.Tensor, e_y: torch.Tensor, codes_x: np.ndarray, codes_y: np.ndarray, n_neighbors: int
) -> float:
    if not isinstance(n_neighbors, Integral) or n_neighbors < 1:
        raise ValueError(f"n_neighbors must be an integer of at least 1, got {n_neighbors!r}")
    smaller = min(len(e_x), len(e_y))
    if n_neighbors > smaller:
        raise Undefined(f"n_neighbors = {n_neighbors} exceeds the {smaller} cells of the smaller view")
    if not np.intersect1d(codes_x, codes_y).size:
        raise Undefined("no label occurs in both views")
    x, y = _centred(e_x, e_y)
    accuracies = [
        KNeighborsClassifier(n_neighbors).fit(*known).score(*asked)
        for known, asked in (((x, codes_x), (y, codes_y)), ((y, codes_y), (x, codes_x)))
    ]
    return float(np.mean(accuracies))


def _label_silhouette(e_x: torch.Tensor, e_y: torch.Tensor, codes_x: np.ndarray, codes_y: np.ndarray) -> float:
    codes = np.concatenate([codes_x, codes_y])
    n_labels = len(np.unique(codes))
    if n_labels == 1:
        raise Undefined("all cells have one label, a silhouette needs two")
    if n_labels == len(codes):
        raise Undefined("every cell has a label of its own, a silhouette needs two cells of one label")
    with sklearn.config_context(working_memory=_WORKING_MEMORY_MIB):
        return float(silhouette_score(np.concatenate(_centred(e_x, e_y)), codes))


def _centred(e_x: torch.Tensor, e_y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both embeddings less their common mean: scikit-learn's |a|^2 + |b|^2 - 2 a.b loses what lies far from 0."""
    mean = torch.cat([e_x, e_y]).mean(0)
    return (e_x - mean).cpu().numpy(), (e_y - mean).cpu().numpy()


def _label_codes(e_x: torch.Tensor, e_y: torch.Tensor, labels_x: Vector, labels_y: Vector) -> list[np.ndarray]:
    """The labels of both views as integers, equal where labels are equal. Raises ValueError for a bad vector."""
    vectors = {"labels_x": (as_array(labels_x), len(e_x)), "labels_y": (as_array(labels_y), len(e_y))}
    for name, (labels, n) in vectors.items():
        if labels.shape != (n,):
            rows = f"each of the {n} rows of e_{name[-1]}"
            raise ValueError(f"{name} must have one entry for {rows}, got shape {labels.shape}")
        if pd.isna(labels).any():
            raise ValueError(f"{name} must have no missing entry, row {pd.isna(labels).argmax()} has none")
    # As objects: NumPy would turn a number and the text of it into one label.
    both = np.concatenate([labels.astype(object) for labels, _ in vectors.values()])
    codes, _ = pd.factorize(both, sort=True)
    return np.split(codes, [len(e_x)])
