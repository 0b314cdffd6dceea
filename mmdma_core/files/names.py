"""Names of cells: which cells of two views have the same name, and what would make more of them agree."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mmdma_core.files.annotated import rows_of_obs
from mmdma_core.files.formats import View

_NUMBERED = re.compile(r"(0|[1-9]\d*)(-\d+)?")  # as AnnData and pandas number, and AnnData after a concatenation
_BARCODES = 737_280  # on 10x Genomics' list of 2016, of which a lane's cells are a draw
_APART = re.compile(r"[-_.:#|/ ]+")
# What a sample, a run or a program may have changed: each takes the parts of a name and leaves what may be its own.
_STRIPPED = {
    "but for case and separators": lambda parts: [part.lower() for part in parts],
    "without a prefix": lambda parts: parts[1:] or parts,
    "without a suffix": lambda parts: parts[:-1] or parts,
    "without prefix and suffix": lambda parts: parts[1:-1] or parts,
    "by their longest part alone": lambda parts: [max(parts, key=len)],
}


def align_by_name(x: View, y: View, insist: bool = False) -> np.ndarray | None:
    """Match the cells that have the same name in both views; of two modalities of one MuData file by its obs.

    Parameters
    ----------
    x : View
        The first view.
    y : View
        The second view.
    insist : bool
        Take names, too, that only number the cells, and as few common ones as chance may give.

    Returns
    -------
    numpy.ndarray or None
        (n_x,), -1 for a cell that y lacks. None if a view has no names, names that occur twice or that only number its
        cells (0, 1, 2, ..., as AnnData and pandas do where none are given), or if no name is in both, or no more than
        chance explains, see `least_common`.
    """
    if x.cells is None or y.cells is None:
        return None
    if not insist and (are_numbers(x.cells) or are_numbers(y.cells)):
        return None
    match = _same_names(x, y)
    n_same = np.count_nonzero(match >= 0)
    least = 1 if insist or _of_one_mudata(x, y) else least_common(len(x.cells), len(y.cells))
    return match if n_same >= least else None


def least_common(n_x: int, n_y: int) -> int:
    """Return how many names must be common to two views before they are taken for the same cells.

    Barcodes of unrelated cells collide: two random draws from a list of N have n_x n_y / N in common, a share of
    max(n_x, n_y) / N of the smaller view. 10x Genomics' shorter list has N = 737,280, its longer one 6,794,880; so that
    share is 3 % for the 20,000 cells of a full lane. Cells that were measured together and filtered apart have most
    names in common. So it takes 10 % of the smaller view's names, twice the share of chance where that is more, and
    never more than half of them.

    Parameters
    ----------
    n_x : int
        Cells of the first view.
    n_y : int
        Cells of the second view.

    Returns
    -------
    int
        At least 1.
    """
    share = min(0.5, max(0.1, 2 * max(n_x, n_y) / _BARCODES))
    return max(1, math.ceil(share * min(n_x, n_y)))


def _same_names(x: View, y: View) -> np.ndarray:
    """Return (n_x,): for each cell of x that of y of the same name, or in the same row of MuData's obs; -1 for none."""
    if _of_one_mudata(x, y):
        of_x, of_y = (rows_of_obs(view.source, view.modality, view.cells) for view in (x, y))
        of_row = np.full(x.source.n_obs + 1, -1)  # the last one for cells that are in no row
        of_row[of_y] = np.arange(len(of_y))
        of_row[-1] = -1
        return of_row[of_x].astype(np.int64)
    names_x, names_y = pd.Index(x.cells), pd.Index(y.cells)
    if not (names_x.is_unique and names_y.is_unique):
        return np.full(len(names_x), -1)
    return names_y.get_indexer(names_x).astype(np.int64)


def _of_one_mudata(x: View, y: View) -> bool:
    return None not in (x.modality, y.modality) and Path(x.path).resolve() == Path(y.path).resolve()


def are_numbers(cells: Sequence[str]) -> bool:
    """Return whether names say no more than a row: whole numbers, of the order of their count, in whatever order.

    Names of a part of the cells are so too. Larger numbers (7157, 18952) may be names that somebody has given.
    """
    found = [_NUMBERED.fullmatch(name) for name in cells]
    return all(found) and max(int(number[1]) for number in found) <= 10 * len(found)


def compare_names(x: View, y: View) -> str | None:
    """Say in one line what the names of two views tell of their match.

    Parameters
    ----------
    x : View
        The first view.
    y : View
        The second view.

    Returns
    -------
    str or None
        How many names agree as they are and, if more would, without a prefix or a suffix; one of each view. None if
        a view has no names.
    """
    if x.cells is None or y.cells is None:
        return None
    for name, view in (("x", x), ("y", y)):
        if are_numbers(view.cells):
            return (
                f"none is made of names, the cells of {name} are only numbered ({view.cells[0]!r}, {view.cells[1]!r}, "
                f"...): --same-cells says that row i of x is row i of y, --match which row is which"
            )
    n_x, n_y = len(x.cells), len(y.cells)
    n_same = int(np.count_nonzero(_same_names(x, y) >= 0))
    if _of_one_mudata(x, y):
        return f"{n_same:,} of {n_x:,} cells of x share a row of MuData's obs with a cell of y"
    said = f"{n_same:,} of {n_x:,} cells of x are in y by name"
    if n_same == min(n_x, n_y):
        return said
    how, pairs = agree_without(x.cells, y.cells)
    if len(pairs) > n_same:
        here, there = pairs[0]
        return (
            f"{said}, {len(pairs):,} would {how}, as {here!r} in x and {there!r} in y; only the same names "
            f"match: rename the cells, or give --match"
        )
    if 0 < n_same < least_common(n_x, n_y):
        return (
            f"{said}, which chance may explain, as barcodes of unrelated cells collide (it takes "
            f"{least_common(n_x, n_y):,}); --match names takes them for the same cells"
        )
    return said if n_same else f"{said}: {x.cells[0]!r} in x, {y.cells[0]!r} in y; give --match, or rename the cells"


def agree_without(names: Sequence[str], others: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Find which names agree without a suffix, a prefix or both, and the words for it; of all ways the one with most.

    A pair has one name of each; those that are no longer the only ones of their kind are left out.
    """
    ours, theirs = _stripped(names), _stripped(others)
    ways = [(a, b) for a in ours for b in theirs if a != b and "" in (a, b)] + [(a, a) for a in ours if a]
    best, found = "", []
    for a, b in ways:
        pairs = [(name, theirs[b][own]) for own, name in ours[a].items() if own in theirs[b]]
        if len(pairs) > len(found):
            best, found = a or b, pairs
    found.sort(key=lambda pair: pair[0] == pair[1])
    return best, found


def _stripped(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Map for each way, '' for none, what is left of a name to the name, of those that stay distinct."""
    parts = [_APART.split(name) for name in names]
    ways = {"": dict(zip(names, names, strict=True))}
    for way, strip in _STRIPPED.items():
        left = pd.Series(["-".join(strip(part)) for part in parts], dtype=object)
        kept = ~left.duplicated(keep=False) & (left != "")
        ways[way] = {own: names[i] for i, own in left[kept].items()}
    return ways
