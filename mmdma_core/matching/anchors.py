"""Anchors: pairs of features, one of each view, that are known to rise and fall together, as a gene and its protein do.

They choose among the matches that were found, which MMD2 alone may not tell apart. In a match each cell of x gets, for
each pair, the mean of y's feature over its nearest cells of y. The rank correlation with x's feature (Spearman),
averaged over the pairs, says how well the match agrees with what is known. It is a mean over cells, so that the
difference of two matches has a standard error; as neighbours are shared by the cells around, _SHARED cells count as
one. A match that is _DECISIVE errors better than all others is taken, whatever their MMD2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from scipy.spatial import KDTree
from scipy.stats import rankdata
from sklearn.preprocessing import scale

from mmdma_core.fused.ranks import world
from mmdma_core.matching.choice import DECISIVE, Candidate, Choice
from mmdma_core.matching.counts import Components
from mmdma_core.matching.match_ranks import draw
from mmdma_core.matching.preprocess import Matrix
from mmdma_core.matching.refinement import COARSE, on_all_cells
from mmdma_core.settings import is_whole, plain

_LOG = logging.getLogger("mmdma_core")
_SHARED = 15  # nearest cells
_CELLS = 5_000  # of x, drawn

Pairs = Mapping[str | int, str | int] | Sequence[tuple[str | int, str | int]] | None


@dataclass(frozen=True)
class Anchors:
    """Pairs of features, and their values.

    names  of each pair
    x, y   (n_x, m), (n_y, m)
    """

    names: list[tuple[str, str]]
    x: np.ndarray
    y: np.ndarray

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        features: Sequence[Sequence[str] | None],
        views: Sequence[Matrix],
        components: Sequence[Components | None],
    ) -> Anchors | None:
        """Take the features of the pairs out of both views, of counts their logarithms; None without pairs.

        features    names of X's and of Y's features, None without
        components  what made principal components of either view

        Raises ValueError of one line for what is no pair of features, and for one that is the same in all cells.
        """
        if pairs is None:
            return None
        items = as_pairs(pairs)
        if world().size > 1:
            raise ValueError("anchors are for a fit in one process")
        values = []
        for k, (name, view, made) in enumerate(zip("XY", views, components, strict=True)):
            columns = [_column(pair[k], name, features[k], view.shape[1]) for pair in items]
            asked = [pair[k] for pair in items]
            values.append(_values(made.logarithms(view) if made else view, columns, name, asked))
        return cls([(str(x), str(y)) for x, y in items], *values)

    def table(self, e_x: np.ndarray, e_y: np.ndarray) -> pd.DataFrame:
        """Return the rank correlation of each pair across two embeddings."""
        table = pd.DataFrame(self.names, columns=["x", "y"])
        return table.assign(correlation=self._products(e_x, e_y).mean(0))

    def chosen(self, choice: Choice) -> Choice:
        """Return the choice that they lead to: another match, the same one without doubt, or what it was."""
        best_of_each: dict[int, Candidate] = {one.match: one for one in (*choice.others[::-1], choice.chosen)}
        for one in sorted(choice.candidates, key=lambda one: one.found.discrepancy):
            best_of_each.setdefault(one.match, one)
        products = {match: self._of(one) for match, one in best_of_each.items()}
        first, *others = sorted(products, key=lambda match: -products[match].mean())
        own = products[choice.chosen.match].mean()
        if products[first].mean() <= 0:
            _LOG.warning("anchors agree with no match: rank correlation %.2f at best", products[first].mean())
            return choice
        errors = min((_errors(products[first] - products[other]) for other in others), default=None)
        if errors is None or errors < DECISIVE:
            return choice
        if first == choice.chosen.match:
            return replace(choice, errors=max(errors, choice.errors or 0))
        _LOG.warning(
            "anchors contradict the match of the lowest MMD2 (rank correlation %.2f), another one is taken (%.2f)",
            own,
            products[first].mean(),
        )
        one = best_of_each[first]
        settled = replace(one, found=on_all_cells(one.clouds, one.found, COARSE))
        others = [other for other in (choice.chosen, *choice.others) if other.match != first]
        return replace(choice, chosen=settled, others=others, errors=errors)

    def _of(self, one: Candidate) -> np.ndarray:
        """The products of a match, averaged over the pairs."""
        return self._products(one.clouds.a.cpu().numpy(), one.clouds.moved(one.found.theta).cpu().numpy()).mean(1)

    def _products(self, e_x: np.ndarray, e_y: np.ndarray) -> np.ndarray:
        """Products (cells, m) of standardised ranks, whose mean is the rank correlation."""
        cells = draw(len(e_x), _CELLS, np.random.default_rng(4))
        near = KDTree(e_y).query(e_x[cells], k=range(1, 1 + min(_SHARED, len(e_y))), workers=-1)[1]
        return np.multiply(*(scale(rankdata(values, axis=0)) for values in (self.x[cells], self.y[near].mean(1))))


def as_pairs(asked: Pairs) -> list[list[str | int]] | None:
    """Return the pairs as lists of plain values, as JSON holds them. Raises ValueError for what are none."""
    if asked is None:
        return None
    items = list(asked.items() if isinstance(asked, Mapping) else asked)
    if not items or any(isinstance(pair, str) or len(pair) != 2 for pair in items):
        raise ValueError(f"anchors must be pairs of a feature of X and one of Y, got {asked!r}")
    return [[plain(one), plain(other)] for one, other in items]


def _errors(differences: np.ndarray) -> float:
    """The mean difference of two matches in standard errors."""
    spread = differences.std() * np.sqrt(_SHARED / len(differences))
    return float(differences.mean() / max(spread, np.finfo(np.float64).tiny))


def _column(asked: Any, name: str, features: Sequence[str] | None, width: int) -> int:
    """The column of a feature, by its name, or by its number. Raises ValueError."""
    if features is not None and str(asked) in features:
        return list(features).index(str(asked))
    by_number = is_whole(plain(asked)) or (features is None and str(asked).isdigit())
    if by_number and 0 <= int(asked) < width:
        return int(asked)
    known = f"columns 0 to {width - 1}" if features is None else f"features such as {features[0]!r}"
    raise ValueError(f"anchors: {name} has no feature {asked!r}, it has {known}")


def _values(rows: Matrix, columns: list[int], name: str, asked: Sequence[Any]) -> np.ndarray:
    """The columns (n, m), dense. Raises ValueError for one that is the same in all cells."""
    taken = rows[:, columns]
    values = np.asarray(taken.toarray() if scipy.sparse.issparse(taken) else taken, np.float64)
    same = np.flatnonzero(values.min(0) == values.max(0))
    if same.size:
        raise ValueError(f"anchors: {asked[same[0]]!r} of {name} is the same in all cells")
    return values
