"""Names of cells: which cells of two views have the same, and what is to be said where they have not."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mmdma_core.files.views import View

_NUMBERED = re.compile(r"(0|[1-9]\d*)(-\d+)?")  # as AnnData and pandas number, and AnnData after a concatenation
_APART = re.compile(r"[-_.:#|/ ]+")
# What a sample, a run or a program may have changed: each takes the parts of a name and leaves what may be its own.
_STRIPPED = {
    "but for case and separators": lambda parts: [part.lower() for part in parts],
    "without a prefix": lambda parts: parts[1:] or parts,
    "without a suffix": lambda parts: parts[:-1] or parts,
    "without prefix and suffix": lambda parts: parts[1:-1] or parts,
    "by their longest part alone": lambda parts: [max(parts, key=len)],
}


def align_by_name(x: View, y: View) -> np.ndarray | None:
    """The match of cells that have the same name in both views.

    Parameters
    ----------
    x : View
        The first view.
    y : View
        The second view.

    Returns
    -------
    numpy.ndarray or None
        (n_x,), -1 for a cell that y lacks. None if a view has no names, names that occur twice or that only number its
        cells (0, 1, 2, ..., as AnnData and pandas do where none are given), or if no name is in both.
    """
    if x.cells is None or y.cells is None or are_numbers(x.cells) or are_numbers(y.cells):
        return None
    names_x, names_y = pd.Index(x.cells), pd.Index(y.cells)
    if not (names_x.is_unique and names_y.is_unique):
        return None
    match = names_y.get_indexer(names_x)
    return match.astype(np.int64) if np.any(match >= 0) else None


def are_numbers(cells: Sequence[str]) -> bool:
    """Whether names say no more than a row: whole numbers, of the order of their count, in whatever order.

    Names of a part of the cells are so too. Larger numbers (7157, 18952) may be names that somebody has given.
    """
    found = [_NUMBERED.fullmatch(name) for name in cells]
    return all(found) and max(int(number[1]) for number in found) <= 10 * len(found)


def compare_names(x: View, y: View) -> str | None:
    """What the names of two views say of their match, in one line.

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
    match = align_by_name(x, y)
    n_x, n_same = len(x.cells), 0 if match is None else int(np.count_nonzero(match >= 0))
    said = f"{n_same:,} of {n_x:,} cells of x have a namesake in y"
    if n_same == min(n_x, len(y.cells)):
        return said
    how, pairs = agree_without(x.cells, y.cells)
    if len(pairs) > n_same:
        here, there = pairs[0]
        return (
            f"{said}, {len(pairs):,} would {how}, as {here!r} in x and {there!r} in y; only the same names "
            f"match: rename the cells, or give --match"
        )
    return said if n_same else f"{said}: {x.cells[0]!r} in x, {y.cells[0]!r} in y; give --match, or rename the cells"


def agree_without(names: Sequence[str], others: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """Which names agree without a suffix, a prefix or both, behind the words for it; of all ways the one with most.

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
    """For each way, '' for none: what is left of a name -> the name, of those that are left alone."""
    parts = [_APART.split(name) for name in names]
    ways = {"": dict(zip(names, names, strict=True))}
    for way, strip in _STRIPPED.items():
        left = pd.Series(["-".join(strip(part)) for part in parts], dtype=object)
        kept = ~left.duplicated(keep=False) & (left != "")
        ways[way] = {own: names[i] for i, own in left[kept].items()}
    return ways
