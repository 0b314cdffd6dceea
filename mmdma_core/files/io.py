"""What goes with a person's views: known matches and labels, read from files, and embeddings, written to them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmdma_core.files.atomic import atomically
from mmdma_core.files.formats import existing, read_array, reading, suffix
from mmdma_core.files.names import align_by_name, compare_names
from mmdma_core.files.views import View, read_view

__all__ = [
    "View",
    "align_by_name",
    "atomically",
    "compare_names",
    "read_labels",
    "read_match",
    "read_vector",
    "read_view",
    "write_embedding",
]

_DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": None}


def read_vector(path: str | Path, name: str) -> np.ndarray:
    """The values of a .npy file, or of a .txt, .csv or .tsv file with one value a line and no heading.

    Integers (in whatever notation) are int64, other numbers float64; if one value is no number, all are text.

    Parameters
    ----------
    path : str or Path
        The file.
    name : str
        What is read, for errors.

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
        values = read_array(path)
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        if values.ndim != 1 or values.dtype.kind not in "biufU":
            raise ValueError(f"{path}: {name} must be a vector, it is {values.dtype} of shape {values.shape}")
    elif suffix(path) in _DELIMITERS:
        values = _parsed(_lines(path, name))
    else:
        raise ValueError(f"{path}: {name} must be a .npy, .txt, .csv or .tsv file")
    if values.dtype.kind == "f":
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise ValueError(f"{path}: {name} must be finite, entry {wrong[0] + 1} is {values[wrong[0]]}")
        if np.all(values == np.round(values)) and np.all(np.abs(values) < 2**53):
            values = values.astype(np.int64)
    return values


def _lines(path: Path, name: str) -> list[str]:
    """The value on each line; in .csv and .tsv files it may be quoted, in .txt it is the whole line."""
    delimiter = _DELIMITERS[suffix(path)]
    with reading(path, "text", UnicodeError, csv.Error), path.open(encoding="utf-8-sig", newline="") as file:
        rows = (
            list(csv.reader(file, delimiter=delimiter)) if delimiter else [[line] for line in file.read().splitlines()]
        )
    for number, row in enumerate(rows, 1):
        if len(row) != 1 or not row[0].strip():
            count = len(row) if any(row) else "none"
            raise ValueError(f"{path}: {name} must have one value a line, line {number} has {count}")
    return [row[0].strip() for row in rows]


def _parsed(texts: list[str]) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return np.array(texts).astype(kind)
        except (ValueError, OverflowError):
            continue
    return np.array(texts)


def read_match(path: str | Path, n_x: int, n_y: int) -> np.ndarray:
    """The known match of two views.

    Parameters
    ----------
    path : str or Path
        The file, as for `read_vector`.
    n_x : int
        Cells of the first view.
    n_y : int
        Cells of the second view.

    Returns
    -------
    numpy.ndarray
        (n_x,), int64: row i of x is the same cell as row match[i] of y, counted from 0; -1: not known.

    Raises
    ------
    ValueError
        Unless it has an integer for each row of x, in -1 ... n_y - 1, with no row of y twice.
    """
    match = read_vector(path, "match vector")
    if len(match) != n_x:
        raise ValueError(f"{path}: match vector has {len(match)} entries, x has {n_x} cells: is x transposed?")
    if match.dtype.kind not in "iu":
        raise ValueError(f"{path}: match vector must hold integers, it holds {match[0].item()!r} ({match.dtype})")
    outside = np.flatnonzero((match < -1) | (match >= n_y))
    if outside.size:
        raise ValueError(
            f"{path}: match vector must hold -1 or rows of y counted from 0, 0 to {n_y - 1}; "
            f"entry {outside[0] + 1} is {match[outside[0]]}"
        )
    match = match.astype(np.int64)
    rows, counts = np.unique(match[match >= 0], return_counts=True)
    twice = np.flatnonzero(counts > 1)
    if twice.size:
        row, count = rows[twice[0]], counts[twice[0]]
        raise ValueError(f"{path}: match vector must be one to one, row {row} of y is the match of {count} cells")
    return match


def read_labels(source: str | Path, n: int, view: View | None = None) -> np.ndarray:
    """A label for each cell: a column of obs, if the view is from AnnData and has it, else a file.

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
        (n,), numbers or text.

    Raises
    ------
    ValueError
        For a column that is absent or has gaps, for what `read_vector` refuses, and if there are not n.
    """
    data = None if view is None else view.annotated
    if data is not None and source in data.obs.columns:
        labels = _column(f"{view.path}, obs {source!r}", data.obs[source])
    elif data is not None and not Path(source).exists():
        raise ValueError(
            f"labels {str(source)!r}: neither a file nor a column of obs in {view.path}; "
            f"columns: {', '.join(map(repr, data.obs.columns)) or 'none'}"
        )
    else:
        labels = read_vector(source, "labels")
    if len(labels) != n:
        raise ValueError(f"labels {str(source)!r}: {len(labels)} labels for {n} cells")
    return labels


def _column(where: str, column: pd.Series) -> np.ndarray:
    gaps = np.flatnonzero(column.isna())
    if gaps.size:
        raise ValueError(f"{where}: {gaps.size} cells have no label, the first is {column.index[gaps[0]]!r}")
    labels = np.asarray(column)
    return labels if labels.dtype.kind in "biuf" else labels.astype(str)


def write_embedding(view: View, embedding: np.ndarray, path: str | Path, parameters: Mapping[str, Any]) -> None:
    """Write the embedding of a view's cells in one step, in the format of the path's suffix.

    .npy holds the array alone. .h5ad or .h5mu, for a view from such a file, is a copy of that file as it lies at
    view.path, with the embedding in obsm["X_mmdma"] and the parameters in uns["mmdma"], of the view's modality in
    .h5mu. For a second modality in the same output, view.path must be that output: dataclasses.replace(view,
    path=path).

    Parameters
    ----------
    view : View
        Whose cells they are.
    embedding : numpy.ndarray
        (n, d), finite.
    path : str or Path
        The file to write.
    parameters : mapping
        Strings, booleans, numbers, lists of one of these, or mappings of them by name; None and lists of mixed types
        are stored as JSON text.

    Raises
    ------
    ValueError
        For other parameters, for a shape that does not fit, entries that are not finite, and a suffix that does not go
        with the view.
    """
    path, embedding = Path(path), np.asarray(embedding)
    allowed = (".npy",) if view.source is None else (".npy", suffix(view.path))
    if suffix(path) not in allowed:
        raise ValueError(f"{path}: an embedding of {view.path} is written to {' or '.join(allowed)}")
    n = view.matrix.shape[0]
    if embedding.ndim != 2 or len(embedding) != n or embedding.dtype.kind != "f":
        raise ValueError(f"embedding must be {n} rows of floats, got {embedding.dtype} of shape {embedding.shape}")
    if not np.isfinite(embedding).all():
        raise ValueError("embedding must be finite, it holds NaN or infinity")
    stored = _as_stored("parameters", parameters)
    with atomically(path) as part:
        if suffix(path) == ".npy":
            np.save(part, embedding)
        else:
            shutil.copyfile(view.path, part)
            _add_elements(part, "" if view.modality is None else f"mod/{view.modality}/", embedding, stored)


def _add_elements(path: Path, group: str, embedding: np.ndarray, parameters: dict) -> None:
    """Add both elements to an HDF5 file and leave the rest of it as it is, whatever its writer's version was."""
    import h5py
    from anndata.io import write_elem

    with h5py.File(path, "r+") as file:
        write_elem(file, f"{group}obsm/X_mmdma", embedding)
        write_elem(file, f"{group}uns/mmdma", parameters)


def _as_stored(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or not key or "/" in key:
                raise ValueError(f"{name} must have names without '/' as keys, got {key!r}")
        return {key: _as_stored(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        kinds = {type(entry) for entry in value}
        if len(kinds) == 1 and issubclass(*kinds, (str, bool, int, float, np.generic)):
            value = np.array(value)
    if not isinstance(value, (list, tuple)) and np.asarray(value).dtype.kind in "biufU":
        return value
    try:
        return json.dumps(value)
    except TypeError:
        raise ValueError(f"{name} must be text, numbers, lists or mappings of them, got {value!r}") from None
