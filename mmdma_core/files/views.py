"""Reading a view from a file: one matrix of cells by features, checked, with its names."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from mmdma_core.files import formats, tables, tenx
from mmdma_core.files.annotated import ANNOTATED, Keys, called, read_annotated
from mmdma_core.files.formats import View, check_is_there, existing, of_share, place, reading, suffix
from mmdma_core.inputs import canonical, unmasked

READERS = formats.READERS | tables.READERS
# Key of read_view -> the kinds that it is for, and in words.
_TAKE = {
    "layer": (tuple(ANNOTATED), ".h5ad, .h5mu and .zarr"),
    "obsm": (tuple(ANNOTATED), ".h5ad, .h5mu and .zarr"),
    "modality": ((".h5mu",), ".h5mu files"),
    "feature_type": ((tenx.FOLDER, tenx.FILE, *ANNOTATED), "10x folders, .h5, .h5ad, .h5mu and .zarr"),
    "transpose": (tuple(READERS), "bare matrices"),
    "header": (tuple(tables.READERS), "tables of text"),
    "index": (tuple(tables.READERS), "tables of text"),
}


def read_view(
    path: str | Path,
    *,
    layer: str | None = None,
    obsm: str | None = None,
    modality: str | None = None,
    feature_type: str | None = None,
    transpose: bool = False,
    header: bool | None = None,
    index: bool | None = None,
    least: int = 2,
    share: tuple[int, int] = (0, 1),
) -> View:
    """Read and check the view in a file; no file brings code that is run.

    The suffix says what is read. .h5ad, .h5ad.gz, .zarr (AnnData): X, or the named layer, or the named entry of obsm.
    .h5mu (MuData): the same of the named modality. .npy: an array. .npz: a sparse matrix of scipy.sparse.save_npz, or
    an archive of exactly one array. .mtx, .mtx.gz: Matrix Market, in coordinates or an array. .pt: one PyTorch tensor,
    dense or sparse; it needs PyTorch 2.10.

    10x Genomics: a folder with matrix.mtx, barcodes.tsv and features.tsv (genes.tsv, peaks.bed), each .gz or not, or a
    .h5 file; features lie in rows there and are named by their ids. Where features of several types are in it, such as
    'Gene Expression' and 'Antibody Capture', feature_type must say which.

    .csv, .tsv, .txt, also with .gz: text, the separator found by itself. The first row is one of names if none of its
    fields is a number or missing, the first column if its first entry below is neither; the corner may be empty or left
    out. Numbers are names under an empty or usual corner (gene, cell_id) and in quotes where other numbers have none;
    what may be read in two ways is refused, unless `header` and `index` say which is meant.

    Sparse matrices stay sparse, in float32; float64 stays float64; all else becomes float32. Text is float64. A damaged
    file of HDF5 is mostly refused, but it can crash the HDF5 library and with it the process.

    Parameters
    ----------
    path : str or Path
        The file or folder.
    layer : str, optional
        A layer of AnnData in the place of X.
    obsm : str, optional
        An entry of obsm of AnnData in the place of X.
    modality : str, optional
        Of MuData, where it is required.
    feature_type : str, optional
        Of 10x, or of AnnData the value in var["feature_types"]: only the features of this type.
    transpose : bool
        The file has features in rows; only for bare matrices.
    header : bool, optional
        Whether the first row of a table of text holds names; None: as it looks.
    index : bool, optional
        Whether its first column does.
    least : int
        Cells that it must have at least.
    share : tuple of int
        (k, m): of m shares of the cells the k-th, counted from 0. Of .npy and of X in .h5ad no others are read.

    Returns
    -------
    View
        The matrix, rows are cells, with its names.

    Raises
    ------
    ValueError
        Of one line that names the file, the key and what is there instead: for a file that is missing or not of its
        format, for a key that it does not have or cannot have, for cell names that occur twice, for entries that are
        not finite real numbers, for fewer than `least` cells or 1 feature.
    MissingDependency
        Without anndata or mudata; for HDF5's chunks that hdf5plugin alone can read; and for .pt with a PyTorch before
        2.10, whose weights_only is not safe.
    """
    path = Path(path)
    kind = _kind(path)
    keys = Keys(modality, layer, obsm, feature_type)
    of_text = {"header": header, "index": index}
    for name, key in (keys._asdict() | {"transpose": transpose or None} | of_text).items():
        kinds, words = _TAKE[name]
        if key is not None and kind not in kinds:
            this = kind if path.is_dir() else f"{kind} file"
            given = name if isinstance(key, bool) else f"{name} {key!r}"
            raise ValueError(f"{path}: {given} is for {words}, this is a {this}")
    if layer is not None and obsm is not None:
        raise ValueError(f"{path}: give layer or obsm, not both, got {layer!r} and {obsm!r}")
    if kind in ANNOTATED:
        view = read_annotated(path, kind, keys, share)
    else:
        with reading(path, f"a {kind} file", EOFError, zlib.error, gzip.BadGzipFile):  # an end that is cut off
            view = _read_bare(path, kind, feature_type, of_text)
    if transpose:
        view = View(view.matrix.T, view.features, view.cells)
    return _checked(called(str(path), keys), _shared(replace(view, path=path), share), least)


def _read_bare(path: Path, kind: str, feature_type: str | None, of_text: dict[str, bool | None]) -> View:
    if kind == tenx.FOLDER:
        return tenx.read_tenx_folder(path, feature_type)
    if kind == tenx.FILE:
        return tenx.read_tenx_file(path, feature_type)
    return READERS[kind](path, **of_text) if kind in tables.READERS else READERS[kind](path)


def _shared(view: View, share: tuple[int, int]) -> View:
    """Return the view with the rows of the share, unless its reader has taken no others."""
    if share[1] == 1:
        return view
    found = view.matrix.shape[0]
    n = found if view.cells is None else len(view.cells)
    rows = of_share(n, share)
    matrix = view.matrix.tocsr() if scipy.sparse.issparse(view.matrix) else view.matrix
    return replace(view, matrix=matrix[rows] if found == n else matrix, n=n, first=rows.start)


def _kind(path: Path) -> str:
    """Return the suffix, or 10x folder, of what is there. Raises ValueError."""
    kinds = (*ANNOTATED, tenx.FILE, *READERS)
    if path.is_dir():
        return ".zarr" if suffix(path) == ".zarr" else tenx.FOLDER
    check_is_there(path)
    kind = suffix(path)
    if kind not in kinds:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(kinds)}, or it is a 10x folder, got {kind!r}")
    existing(path)
    if kind == ".zarr":
        raise ValueError(f"{path} must be a folder, it is a file")
    return kind


def _checked(where: str, view: View, least: int) -> View:
    """Return the view with its matrix as floats, once it is seen to be one of finite real numbers."""
    if view.cells is not None and len(set(view.cells)) < len(view.cells):
        double = pd.Index(view.cells)[pd.Index(view.cells).duplicated()][0]
        raise ValueError(f"{where}: cell names must differ, {double!r} occurs {view.cells.count(double)} times")
    matrix = unmasked(where, view.matrix.to_numpy() if isinstance(view.matrix, pd.DataFrame) else view.matrix)
    if not isinstance(matrix, np.ndarray) and not scipy.sparse.issparse(matrix):
        raise ValueError(f"{where} must be a matrix of numbers, it is a {type(matrix).__name__}")
    if matrix.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold real numbers, it holds {matrix.dtype}")
    if matrix.ndim != 2:
        raise ValueError(f"{where} must be a matrix (cells, features), it has {matrix.ndim} dimension(s)")
    if matrix.shape[0] < least or matrix.shape[1] < 1:
        cells = f"{least} cell{'s' if least > 1 else ''}"
        raise ValueError(f"{where} must have at least {cells} and 1 feature, its shape is {matrix.shape}")
    matrix = _floats(where, matrix)
    _check_finite(where, matrix, view)
    return replace(view, matrix=matrix)


def _check_finite(where: str, matrix: np.ndarray | scipy.sparse.csr_array, view: View) -> None:
    values = matrix.data if scipy.sparse.issparse(matrix) else matrix
    if values.size == 0 or np.isfinite([values.min(), values.max()]).all():  # no n x p mask
        return
    if scipy.sparse.issparse(matrix):
        entries = matrix.tocoo()
        first = np.flatnonzero(~np.isfinite(entries.data))[0]
        row, column = entries.row[first], entries.col[first]
    else:
        row, column = np.argwhere(~np.isfinite(matrix))[0]
    at = place(view.cells, view.first + row, view.features, column)
    raise ValueError(f"{where} must be finite in {matrix.dtype}, {at} holds {matrix[row, column]}")


def _floats(where: str, matrix: Any) -> np.ndarray | scipy.sparse.csr_array:
    with np.errstate(over="ignore"):  # what becomes infinite is reported as that
        if not scipy.sparse.issparse(matrix):
            double = matrix.dtype.kind == "f" and matrix.dtype.itemsize >= 8
            return np.ascontiguousarray(matrix, dtype=np.float64 if double else np.float32)
        try:
            return canonical(matrix).astype(np.float32, copy=False)
        except ValueError as error:
            raise ValueError(f"{where} is no valid sparse matrix: {error}") from error
