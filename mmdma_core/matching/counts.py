"""Counts of sequencing, made ready to be matched: depth or composition, logarithm, principal components.

A cell's counts grow with how deeply it was sequenced, and their noise with their size. So cells are brought to one
depth, and the logarithm is taken; of few features, as of a panel of antibodies, the centred log-ratio, since one
abundant protein changes the depth of all. Then principal components: most features hold little but noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from mmdma_core.fused.ranks import world
from mmdma_core.matching.preprocess import Matrix

_COMPONENTS = 30
_PANEL = 500  # features; fewer are few
_LEAST = 10  # features below which "auto" takes whole numbers for something else, as it does 0 and 1 alone
_BLOCK = 2**20  # entries at a time
_MUST = "must hold counts, whole numbers of at least 0"


@dataclass(frozen=True)
class Components:
    """How the counts of a view become principal components.

    depth  the sum that each cell's counts are brought to, the median of those of `fit`; None: centred log-ratio
    mean   (p,), subtracted from the logarithms
    axes   (k, p), the principal axes
    """

    depth: float | None
    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def learnt(cls, counts: Matrix) -> Components:
        """Learn them from the counts (n, p) of all cells."""
        n, p = counts.shape
        depth = None
        if p >= _PANEL:
            sums = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
            depth = float(np.median(sums[sums > 0]))
        pca = PCA(min(_COMPONENTS, n - 1, p - 1), random_state=0).fit(_logarithms(counts, depth))
        return cls(depth, pca.mean_.astype(np.float32), pca.components_.astype(np.float32))

    def logarithms(self, counts: Matrix) -> Matrix:
        """Return what the components are of, (n, p)."""
        return _logarithms(counts, self.depth)

    def of(self, counts: Matrix) -> np.ndarray:
        """Return the principal components (n, k) of cells, in float32."""
        return np.asarray(self.logarithms(counts) @ self.axes.T - self.mean @ self.axes.T)

    def __str__(self) -> str:
        how = "centred log-ratio" if self.depth is None else f"brought to a depth of {self.depth:,.0f} and logged"
        return f"counts, {how}, {len(self.axes)} principal components"


def _logarithms(counts: Matrix, depth: float | None) -> Matrix:
    if depth is not None:
        return np.log1p(normalize(counts, norm="l1") * np.float32(depth))
    logs = np.log1p(counts.toarray() if scipy.sparse.issparse(counts) else counts)
    return logs - logs.mean(axis=1, keepdims=True)


def components(rows: Matrix, name: str, asked: Literal["auto", "counts", "none"]) -> Components | None:
    """Learn what makes the rows of a view ready; None if that is not asked for, or if "auto" finds no counts.

    Raises ValueError of one line under "counts" for rows that are none, and for counts that several ranks share.
    """
    if asked == "none":
        return None
    wrong = _no_count(rows)
    least, above = (_LEAST, 1) if asked == "auto" else (2, 0)
    if not wrong and (rows.shape[1] < least or not rows.max() > above):
        wrong = "there are too few features, or all counts are 0"
    if wrong and asked == "auto":
        return None
    if wrong:
        raise ValueError(f"{name} {_MUST}: {wrong}")
    if world().size > 1:
        raise ValueError(f"{name} holds counts, which one process can prepare: do it before, or preprocess='none'")
    return Components.learnt(rows)


def check(rows: Matrix, name: str) -> None:
    """Raise ValueError for the first entry of new cells that is no count."""
    if wrong := _no_count(rows):
        raise ValueError(f"{name} {_MUST}: {wrong}")


def _no_count(rows: Matrix) -> str | None:
    """Say which entry is the first that is no count."""
    sparse = scipy.sparse.issparse(rows)
    values = rows.data if sparse else rows.reshape(-1)
    for low in range(0, len(values), _BLOCK):  # most views without counts show it in the first block
        block = values[low : low + _BLOCK]
        wrong = (block < 0) | (block != np.floor(block))
        if wrong.any():
            at = low + int(wrong.argmax())
            row, column = (
                (np.searchsorted(rows.indptr, at, "right") - 1, rows.indices[at])
                if sparse
                else divmod(at, rows.shape[1])
            )
            return f"row {row + 1}, column {column + 1} holds {values[at]:g}"
    return None
