"""One value for each cell, read from a file or a column of obs: matches, and labels, which may have gaps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from mmdma_core.files.annotated import column_of_obs, listed
from mmdma_core.files.formats import View, existing, opened, read_array, suffix
from mmdma_core.files.names import agree_without
from mmdma_core.files.tables import MISSING, counts, is_corner, is_name, is_number, split

_LOG = logging.getLogger("mmdma_core")
_TEXT = (".csv", ".tsv", ".txt")


def read_vector(path: str | Path, name: str, n: int | None = None) -> np.ndarray:
    """Read the values of a .npy file, or of a .txt, .csv or .tsv file with one value a line.

    Integers (in whatever notation) are int64, other numbers float64; if one value is no number, all are text.

    Parameters
    ----------
    path : str or Path
        The file.
    name : str
        What is read, for errors.
    n : int, optional
        How many values there should be: with one line more, the first is a heading.

    Returns
    -------
    numpy.ndarray
        The values, in one dimension.

    Raises
    ------
    ValueError
        For a file that is missing, of another suffix or damaged, for more than one value a line, an empty line, and
        numbers that are not finite.
    """
    path = existing(path)
    if suffix(path) == ".npy":
        return _typed(path, name, _array(path, name))
    lines = _rows(path, name)
    for number, row in enumerate(lines, 1):
        if len(row) != 1 or not row[0]:
            count = len(row) if any(row) else "none"
            raise ValueError(f"{path}: {name} must have one value a line, line {number} has {count}")
    texts = _without_heading(path, [row[0] for row in lines], n)
    return _typed(path, name, np.array(texts))


def read_labels(source: str | Path, n: int, view: View | None = None) -> np.ndarray:
    """Read a label for each cell: a column of obs, if the view is from AnnData and has it, else a file.

    A file has a label a line, in the order of the cells, or the name of a cell and its label, in any order; the names
    must be those of the view. Numbers 1, 2, 3, ... in their place, as R writes them, are rows. There may be a heading.
    What is left out, and how many cells have no label, is told to the logger mmdma_core.

    Parameters
    ----------
    source : str or Path
        Name of the column, or the file.
    n : int
        Cells of the view.
    view : View, optional
        The view that the labels are of.

    Returns
    -------
    numpy.ndarray
        (n,), numbers or text; if cells have no label (empty, NA, NaN, None), objects, None for these.

    Raises
    ------
    ValueError
        For a column that is absent, a file that is missing, damaged or has more columns, names that are not those of
        the view or occur twice, and if there are not n.
    """
    view = view or View(None)
    column = column_of_obs(view, str(source))
    if column is not None:
        labels = _with_gaps(column)
    elif view.annotated is not None and not Path(source).exists():
        there = [*view.annotated.obs, *([] if view.modality is None else view.source.obs)]
        raise ValueError(
            f"labels {str(source)!r}: neither a file nor a column of obs in {view.path}; columns: {listed(there)}"
        )
    else:
        labels = _of_file(existing(source), n, view.cells)
    if len(labels) != n:
        raise ValueError(f"labels {str(source)!r}: {len(labels)} labels for {n} cells")
    gaps = int(pd.isna(labels).sum())
    if gaps == n:
        raise ValueError(f"labels {str(source)!r}: no cell has a label")
    if gaps:
        _LOG.info("labels %r: %d of %d cells have none", str(source), gaps, n)
    return labels


def _of_file(path: Path, n: int, cells: Sequence[str] | None) -> np.ndarray:
    """Read the labels of a file, in the order of the cells."""
    if suffix(path) == ".npy":
        return _with_gaps(pd.Series(_array(path, "labels")), path)
    rows = _rows(path, "labels")
    while rows and not any(rows[-1]) and len(rows) > n:
        rows.pop()
    rows = _divided(rows, cells)
    widths = [len(row) for row in rows if any(row)]
    if widths and widths[0] <= 2 and set(widths[1:]) == {2}:
        texts = _by_name(path, [row for row in rows if any(row)], n, cells)
    elif set(widths) <= {1}:
        texts = _without_heading(path, ["".join(row) for row in rows], n)
    else:
        wrong, row = max(enumerate(rows, 1), key=lambda line: len(line[1]))
        raise ValueError(
            f"{path}: labels must be one a line, or a name and a label, line {wrong} has {len(row)} fields"
        )
    return _with_gaps(pd.Series(texts, dtype=object), path)


def _array(path: Path, name: str) -> np.ndarray:
    values = read_array(path)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise ValueError(f"{path}: {name} must be a vector, it is {values.dtype} of shape {values.shape}")
    return values


def _rows(path: Path, name: str) -> list[list[str]]:
    """Read the fields of each line. In .txt they stand between tabs or, in quotes, blanks; else the line is one."""
    kind = suffix(path).removesuffix(".gz")
    if kind not in _TEXT:
        raise ValueError(f"{path}: {name} must be a .npy, .txt, .csv or .tsv file")
    with opened(path, "text") as file:
        lines = [line.strip("\r\n") for line in file]
        held = [line for line in lines if line.strip()]
        separator = "\t"
        if kind == ".csv":
            separator = ";" if all(";" in line and "," not in line for line in held) else ","
        elif kind == ".txt" and not any("\t" in line for line in held):
            if not all(line.startswith('"') for line in held):
                return [[line.strip()] for line in lines]
            separator = " "
        return [split(line, separator) for line in lines]


def _divided(rows: list[list[str]], cells: Sequence[str] | None) -> list[list[str]]:
    """Part lines of one field that begin with a name of a cell, or count rows, into this and the label."""
    lines = [row[0] for row in rows if any(row)]
    if any(len(row) > 1 for row in rows) or len(lines) < 2:
        return rows
    held = set(cells or ())
    for mark in "\t,; ":
        begins = [line.partition(mark)[0] for line in lines]
        known = held.issuperset(begins[1:]) or counts(begins) or counts(begins[1:])
        if known and all(mark in line for line in lines[1:]):
            return [[part.strip() for part in line.split(mark, 1)] for line in lines]
    return rows


def _without_heading(path: Path, texts: list[str], n: int | None) -> list[str]:
    """Leave out the first text, if it is one too many and unlike the others."""
    first, others = texts[0] if texts else "", texts[1:]
    numbers = [is_number(text) for text in others if text.lower() not in MISSING]
    if len(texts) == n and len(numbers) > 1 and all(numbers) and is_name(first):
        raise ValueError(f"{path}: the first line, {first!r}, reads like a heading, {n - 1} are left for {n} cells")
    if len(others) != n or first in others or (is_number(first) and any(numbers)):
        return texts
    _LOG.info("%s: the first line, %r, is a heading", path, first)
    return others


def _by_name(path: Path, rows: list[list[str]], n: int, cells: Sequence[str] | None) -> list[str]:
    """Bring rows of a name and a label into the order of the cells; empty for cells that are not there."""
    held, first = set(cells or ()), rows[0]
    strange = first[0] not in held and first[-1] not in {row[1] for row in rows[1:]}
    if len(first) == 1 or first[0] == "" or (strange and (bool(held) or is_corner(first[0]) or len(rows) == n + 1)):
        _LOG.info("%s: the first line, %s, is a heading", path, ", ".join(map(repr, first)))
        rows = rows[1:]
    names, texts = ([row[k] for row in rows] for k in (0, 1))
    if counts(names) and (len(names) == n or (names[0] == "1" and "0" in held)):  # rows, as R numbers them
        return texts
    if cells is None:
        _LOG.info("%s: the cells of the view have no names: labels are taken in the order of the file", path)
        return texts
    labels = pd.Series(texts, index=names, dtype=object)
    known = labels[labels.index.isin(held)]
    if known.empty:
        how, pairs = agree_without(cells, names)
        would = f" ({len(pairs)} would {how})" if pairs else ""
        raise ValueError(f"{path}: no label is for a cell of the view{would}: {names[0]!r} here, {cells[0]!r} there")
    twice = known.index[known.index.duplicated()]
    if len(twice):
        raise ValueError(f"{path}: a cell must have one label, {twice[0]!r} has {names.count(twice[0])}")
    if len(known) < len(labels):
        _LOG.info("%s: %d of %d labels are for no cell of the view", path, len(labels) - len(known), len(labels))
    return known.reindex(list(cells), fill_value="").tolist()


def _with_gaps(values: pd.Series, path: Path | None = None) -> np.ndarray:
    """Return numbers or text, None for what is missing or says so; those of a file are parsed and must be finite."""
    gaps = (values.isna() | values.astype(str).str.strip().str.lower().isin(MISSING)).to_numpy()
    found = np.array(values[~gaps].tolist())
    if path is not None:
        found = _typed(path, "labels", found)
    if not gaps.any():
        return found
    labels = np.full(len(gaps), None, dtype=object)
    labels[~gaps] = found.astype(object)
    return labels


def _typed(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    """Turn text that is all numbers into these, and numbers that are all whole into integers; they must be finite."""
    if values.dtype.kind == "U":
        for kind in (np.int64, np.float64):
            with suppress(ValueError, OverflowError):
                values = values.astype(kind)
                break
    if values.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise ValueError(f"{path}: {name} must be finite, entry {wrong[0] + 1} is {values[wrong[0]]}")
        if np.all(values == np.round(values)) and np.all(np.abs(values) < 2**53):
            values = values.astype(np.int64)
    return values
