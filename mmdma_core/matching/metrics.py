"""How well two embeddings match, where the truth is known: from the ranks of the true matches, and from labels.

e_x (n_x, d) and e_y (n_y, d) are the embedded views, rows are cells; match (n_x,) says that row i of e_x is the same
cell as row match[i] of e_y. match_ranks.py has what match may be, and how ties count. Memory is O(n)
throughout, time O(n^2 d). The single metrics take all cells; `evaluate` takes a sample of many, and says how well
it tells the metrics, see match_ranks.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch

from mmdma_core.matching import labels
from mmdma_core.matching.match_ranks import (
    Estimate,
    MatchRanks,
    Matrix,
    Sample,
    Undefined,
    Vector,
    as_embeddings,
    match_ranks,
    sample_size,
)

__all__ = [
    "evaluate",
    "foscttm",
    "label_silhouette",
    "label_transfer_accuracy",
    "neighbourhood_overlap",
    "top_k",
]


def __dir__() -> list[str]:
    return __all__


_TOP = {
    "top1_count": {"k": 1},
    "top5_count": {"k": 5},
    "top1_percent": {"k": 1, "percent": True},
    "top5_percent": {"k": 5, "percent": True},
}
OF_MATCH = ("foscttm", *_TOP, "neighbourhood_overlap")
_OF_LABELS = ("label_transfer_accuracy", "label_silhouette")
_ONE_POINT, _ONE_PLACE = 16, 8  # epsilons of the type that the largest coordinate has
_FEWEST = 1e-3  # of the cells: a reader need not know of fewer


@dataclass(frozen=True)
class Evaluation:
    """The metrics that the truth at hand allows.

    Parameters
    ----------
    values : dict
        Metric -> value.
    overlap : numpy.ndarray or None
        (n_y,) the curve of `neighbourhood_overlap`; None without a match.
    left_out : dict
        Metric -> why it has no value.
    notes : tuple of str
        What a reader of the values must know: cells that coincide or have no match or label, ties, few neighbours, that
        cells are a sample.
    sampled : dict
        Metric -> how many cells of x and of y its mean is over; without those that are over all cells.
    intervals : dict
        Metric -> (low, high): with 95 % confidence the value over all cells; likewise.
    overlap_interval : numpy.ndarray or None
        (2, n_y) the same of each entry of overlap for itself; None if it is over all cells.
    """

    values: dict[str, float]
    overlap: np.ndarray | None
    left_out: dict[str, str]
    notes: tuple[str, ...]
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    overlap_interval: np.ndarray | None = None


def foscttm(e_x: Matrix, e_y: Matrix, match: Vector, ties: float = 0.5) -> float:
    """Compute the fraction of samples closer than the true match, 0 (best) to 1; about 0.5 for a random embedding.

    ((mean of rank_x - 1) / (n_y - 1) + (mean of rank_y - 1) / (n_x - 1)) / 2: the mean over matched cells, and over
    both directions, of the fraction of the other cells of the other view that are closer than the true match. A cell
    that is as far as the true match counts half, so that cells in one place are worth what random ones are. In the
    definition of the reference, which the package lsmmdma computes, it does not count: that is ties=0. The two differ
    only where distances are equal.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
    match : array of int
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.
    ties : float
        What a cell counts that is as far as the true match, 0 to 1.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        For embeddings or a match that cannot be, see match_ranks.py, and for other ties.

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
    if not 0 <= ties <= 1:
        raise ValueError(f"ties must be a number from 0 to 1, got {ties!r}")
    return match_ranks(e_x, e_y, match).foscttm(ties).value


def top_k(e_x: Matrix, e_y: Matrix, match: Vector, k: float, percent: bool = False) -> float:
    """Compute how often the true match is among the k nearest cells of the other view, mean of both ways.

    (mean of [rank_x <= k] + mean of [rank_y <= k]) / 2, where [.] is 1 if so, else 0, and ranks count from 1. A match
    that is as far as t other cells has any of t + 1 ranks, and [.] is the fraction of these that are so.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
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
    return match_ranks(e_x, e_y, match).top_k(k, percent).value


def neighbourhood_overlap(e_x: Matrix, e_y: Matrix, match: Vector) -> np.ndarray:
    """Compute for every k how often the true match of a cell of x is among its k nearest cells of y.

    Entry k - 1 is the mean of [rank_x <= k], where [.] is 1 if so, else 0, and ranks count from 1; of tied matches a
    fraction, as in `top_k`.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
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
    """Compute the accuracy with which the labels of one view are predicted from the other, mean of both directions.

    A cell's label is predicted by the vote of its n_neighbors nearest cells of the other view; of tied labels it is the
    first in order, as in scikit-learn's KNeighborsClassifier. Cells that are as far as the last of these neighbours
    share the votes that are left for them, so that the order of cells does not count.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
    labels_x, labels_y : array
        (n_x,) and (n_y,), numbers or text; cells of None or NaN are left out.
    n_neighbors : int
        Cells that vote, at least 1.

    Returns
    -------
    float
        Between 0 and 1 (best).

    Raises
    ------
    ValueError
        For bad embeddings, labels of the wrong length, an n_neighbors that cannot be; `Undefined` for more neighbours
        than a view has cells with a label, and for views without a common label.

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
    return labels.transfer_accuracy(*labels.labelled(e_x, e_y, labels_x, labels_y), n_neighbors).value


def label_silhouette(e_x: Matrix, e_y: Matrix, labels_x: Vector, labels_y: Vector) -> float:
    """Compute the mean silhouette of the labels over the cells of both views together.

    (b - a) / max(a, b) with a the mean distance to the other cells of one's label and b the smallest mean distance to
    the cells of another; 0 for a label of one cell.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
    labels_x, labels_y : array
        (n_x,) and (n_y,), numbers or text; cells of None or NaN are left out.

    Returns
    -------
    float
        Between -1 and 1 (best).

    Raises
    ------
    ValueError
        For bad embeddings and for labels of the wrong length; `Undefined` for a view without a label, for a single
        label and where every cell has a label of its own.

    References
    ----------
    Rousseeuw 1987, as scikit-learn computes it.
    """
    e_x, e_y = as_embeddings(e_x, e_y)
    return labels.silhouette(*labels.labelled(e_x, e_y, labels_x, labels_y)).value


def evaluate(
    e_x: Matrix,
    e_y: Matrix,
    match: Vector | None = None,
    labels_x: Vector | None = None,
    labels_y: Vector | None = None,
    n_neighbors: int = 5,
    sample: Sample = "auto",
) -> Evaluation:
    """Compute every metric that the truth at hand allows, and say why the others are left out.

    Parameters
    ----------
    e_x, e_y : torch.Tensor or numpy.ndarray
        Embeddings of the views, (n_x, d) and (n_y, d), rows are cells.
    match : array of int, optional
        (n_x,): row i of e_x is the same cell as row match[i] of e_y; -1: not known.
    labels_x, labels_y : array, optional
        (n_x,) and (n_y,), numbers or text; cells of None or NaN are left out.
    n_neighbors : int
        Of `label_transfer_accuracy`.
    sample : int or None or "auto"
        Cells of each view to draw, each set against all cells of the other view; the silhouette takes as many of both
        views together. None: all cells. "auto": all if no view has more than 50,000, else 2,000. The draw is the same
        each time.

    Returns
    -------
    Evaluation
        Values, and what has none with the reason; of a sample with intervals.

    Raises
    ------
    ValueError
        For bad input as the single metrics do; what is `Undefined` there is left out here.
    """
    given, (e_x, e_y) = (e_x, e_y), as_embeddings(e_x, e_y)
    notes = _coinciding_note(e_x, given[0], "x") + _coinciding_note(e_y, given[1], "y")
    size = sample_size(sample, len(e_x), len(e_y))
    ranks, metrics, left_out = None, {}, {}
    with _left_out(left_out, OF_MATCH):
        if match is None:
            raise Undefined("no match given")
        ranks = match_ranks(e_x, e_y, match, size)
        metrics |= {"foscttm": ranks.foscttm} | {name: partial(ranks.top_k, **top) for name, top in _TOP.items()}
    with _left_out(left_out, _OF_LABELS):
        absent = [name for name, given in (("labels_x", labels_x), ("labels_y", labels_y)) if given is None]
        if absent:
            raise Undefined(f"{' and '.join(absent)} not given")
        labelled = labels.labelled(e_x, e_y, labels_x, labels_y)
        metrics["label_transfer_accuracy"] = partial(labels.transfer_accuracy, *labelled, n_neighbors, size)
        metrics["label_silhouette"] = partial(labels.silhouette, *labelled, size)
        notes += labels.gaps_note(len(e_x), len(e_y), labelled[-1])
    found = {}
    for name, metric in metrics.items():
        with _left_out(left_out, (name,)):
            found[name] = metric()
    return _evaluation(found, ranks, left_out, notes)


@contextmanager
def _left_out(reasons: dict[str, str], names: Sequence[str]) -> Iterator[None]:
    """Note why metrics have no value, where the block says so."""
    try:
        yield
    except Undefined as reason:
        reasons |= dict.fromkeys(names, str(reason))


def _evaluation(
    found: dict[str, Estimate], ranks: MatchRanks | None, left_out: dict[str, str], notes: tuple[str, ...]
) -> Evaluation:
    intervals = {name: estimate.interval for name, estimate in found.items() if estimate.interval is not None}
    sampled = {name: found[name].sampled for name in intervals}
    overlap, overlap_interval = None, None
    if ranks is not None:
        overlap, overlap_interval, notes = ranks.overlap(), ranks.overlap_interval(), notes + ranks.notes()
        if overlap_interval is not None:
            sampled["neighbourhood_overlap"] = len(ranks.x), 0
    notes += tuple(note for estimate in found.values() for note in estimate.notes)
    if sampled:
        notes += ("metrics in sampled are means over cells drawn at random, with 95 % intervals",)
    values = {name: estimate.value for name, estimate in found.items()}
    return Evaluation(values, overlap, left_out, notes, sampled, intervals, overlap_interval)


def _coinciding_note(e: torch.Tensor, given: object, name: str) -> tuple[str, ...]:
    """Say of an embedding in float64, if its cells coincide to the rounding of the type that was given."""
    unit = _epsilon(given) * float(e.abs().max())
    if float((e.amax(0) - e.amin(0)).max()) <= _ONE_POINT * unit:
        return (f"all {len(e)} cells of {name} lie at one point: no metric can tell them apart",)
    places = (e / (_ONE_PLACE * unit)).round().cpu().numpy() + 0.0  # no -0
    alike = int(pd.DataFrame(places).duplicated(keep=False).sum())
    if alike > _FEWEST * len(e):
        return (f"{alike} of {len(e)} cells of {name} coincide with another cell of it",)
    return ()


def _epsilon(given: object) -> float:
    """Return the epsilon of the type of the coordinates; of integers that of float64."""
    if isinstance(given, torch.Tensor):
        return torch.finfo(given.dtype if given.is_floating_point() else torch.float64).eps
    dtype = np.asarray(given).dtype
    return float(np.finfo(dtype if dtype.kind == "f" else np.float64).eps)
