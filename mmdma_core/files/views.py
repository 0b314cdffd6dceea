"""A view that a person brings in a file: one matrix of cells by features, checked, with its names."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from mmdma_core.errors import MissingDependency
from mmdma_core.files import formats, tables
from mmdma_core.files.formats import DAMAGED, existing, place, reading, suffix

READERS = formats.READERS | tables.READERS
# Suffix -> the package that reads it, and what every such file has at its top.
_ANNOTATED = {".h5ad": ("anndata", ("obs", "var")), ".h5mu": ("mudata", ("mod",))}


@dataclass(frozen=True, eq=False)
class View:
    """A view as read from a file.

    Parameters
    ----------
    matrix : numpy.ndarray or scipy.sparse.csr_array
        (n, p), rows are cells: float32 or float64, or sparse in float32.
    cells : tuple of str or None
        Names, n of them, no two the same; None: the file has none.
    features : tuple of str or None
        Names, p of them, or None.
    source : object
        The AnnData or MuData object that the matrix is from, else None.
    path : Path
        The file.
    modality : str or None
        The modality of a MuData object, else None.
    """

    matrix: np.ndarray | scipy.sparse.csr_array
    cells: tuple[str, ...] | None
    features: tuple[str, ...] | None
    source: Any
    path: Path
    modality: str | None = None

    @property
    def annotated(self) -> Any:
        """The AnnData object of the cells: the source, or its modality; None for a bare matrix."""
        return self.source if self.modality is None else self.source.mod[self.modality]


def read_view(
    path: str | Path,
    *,
    layer: str | None = None,
    obsm: str | None = None,
    modality: str | None = None,
    transpose: bool = False,
) -> View:
    """Read and check the view in a file; no file brings code that is run.

    The suffix says what is read. .h5ad (AnnData): X, or the named layer, or the named entry of obsm. .h5mu (MuData):
    the same of the named modality. .npy: an array. .npz: a sparse matrix of scipy.sparse.save_npz, or an archive of
    exactly one array. .mtx, .mtx.gz: Matrix Market, in coordinates. .pt: one PyTorch tensor, dense or sparse; it needs
    PyTorch 2.10.

    .csv, .tsv, .txt, also with .gz: text, the separator found by itself. The first row is one of names if none of its
    fields is a number or missing, the first column if its first entry below is neither; the corner may be empty or left
    out. Numbers are names under an empty or usual corner (gene, cell_id) and in quotes where other numbers have none;
    what may be read in two ways is refused.

    Sparse matrices stay sparse, in float32; float64 stays float64; all else becomes float32. Text is float64. A damaged
    .h5ad or .h5mu file is mostly refused, but it can crash the HDF5 library and with it the process.

    Parameters
    ----------
    path : str or Path
        The file.
    layer : str, optional
        A layer of AnnData in the place of X.
    obsm : str, optional
        An entry of obsm of AnnData in the place of X.
    modality : str, optional
        Of MuData, where it is required.
    transpose : bool
        The file has features in rows, as the .mtx files of 10x have; only for bare matrices.

    Returns
    -------
    View
        The matrix, rows are cells, with its names.

    Raises
    ------
    ValueError
        Of one line that names the file, the key and what is there instead: for a file that is missing or not of its
        format, for a key that it does not have or cannot have, for cell names that occur twice, for entries that are
        not finite real numbers, for fewer than 2 cells or 1 feature.
    MissingDependency
        Without anndata or mudata, and for .pt with a PyTorch before 2.10, whose weights_only is not safe.
    """
    path = existing(path)
    kind = suffix(path)
    if kind not in _ANNOTATED and kind not in READERS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join((*_ANNOTATED, *READERS))}, got {kind!r}")
    if kind in _ANNOTATED:
        if transpose:
            raise ValueError(f"{path}: transpose is for bare matrices, the cells of a {kind} file are its obs")
        return _read_annotated(path, kind, layer, obsm, modality)
    for name, key in (("layer", layer), ("obsm", obsm), ("modality", modality)):
        if key is not None:
            raise ValueError(f"{path}: {name} {key!r} is for {' and '.join(_ANNOTATED)} files, this is a {kind} file")
    matrix, rows, columns = READERS[kind](path)
    if transpose:
        matrix, rows, columns = matrix.T, columns, rows
    return _checked(str(path), View(matrix, rows, columns, None, path))


def _read_annotated(path: Path, kind: str, layer: str | None, obsm: str | None, modality: str | None) -> View:
    if layer is not None and obsm is not None:
        raise ValueError(f"{path}: give layer or obsm, not both, got {layer!r} and {obsm!r}")
    if kind == ".h5ad" and modality is not None:
        raise ValueError(f"{path}: modality {modality!r} is for .h5mu files, this is a .h5ad file")
    package = _package(_ANNOTATED[kind][0], path)
    modalities = _contents(path, kind)
    if kind == ".h5mu" and modality not in modalities:
        got = "none was given" if modality is None else f"there is no {modality!r}"
        raise ValueError(f"{path}: modality must be one of {_listed(modalities)}; {got}")
    from anndata._io.specs.registry import IORegistryError  # it has no public name

    read = package.read_h5ad if kind == ".h5ad" else package.read_h5mu
    with (
        reading(path, f"a {kind} file", *DAMAGED, IORegistryError),
        warnings.catch_warnings(category=FutureWarning, action="ignore"),  # of mudata, about its own next version
    ):
        source = read(path)
    data = source if modality is None else source.mod[modality]
    where = f"{path}, modality {modality!r}" if modality is not None else str(path)
    where, matrix, features = _chosen(where, data, layer, obsm)
    return _checked(where, View(matrix, _names(data.obs_names), features, source, path, modality))


def _contents(path: Path, kind: str) -> list[str]:
    """The modalities of a .h5mu file, none for .h5ad. Raises ValueError for a file that is neither."""
    import h5py  # comes with anndata

    package, needed = _ANNOTATED[kind]
    with reading(path, f"a {kind} file", *DAMAGED), h5py.File(path, "r") as file:
        there = list(file)
        modalities = list(file["mod"]) if kind == ".h5mu" and "mod" in there else []
    if not set(needed) <= set(there):
        raise ValueError(f"{path} is no file of {package}: it has no {' and '.join(needed)}, it has {_listed(there)}")
    return modalities


def _chosen(where: str, data: Any, layer: str | None, obsm: str | None) -> tuple[str, Any, tuple[str, ...] | None]:
    """What the errors call it, the matrix, and the names of its features."""
    for name, key, held in (("layer", layer, data.layers), ("obsm", obsm, data.obsm)):
        keys = [key for key in held if key is not None]
        if key is not None and key not in keys:
            raise ValueError(f"{where}: there is no {name} {key!r}; {name}: {_listed(keys)}")
    if obsm is not None:
        matrix = data.obsm[obsm]
        names = _names(matrix.columns) if isinstance(matrix, pd.DataFrame) else None
        return f"{where}, obsm {obsm!r}", matrix, names
    if layer is not None:
        return f"{where}, layer {layer!r}", data.layers[layer], _names(data.var_names)
    if data.X is None:
        raise ValueError(f"{where}: X is empty; layer: {_listed(data.layers)}; obsm: {_listed(data.obsm)}")
    return where, data.X, _names(data.var_names)


def _checked(where: str, view: View) -> View:
    """The view with its matrix as floats, once it is seen to be one of finite real numbers."""
    if view.cells is not None and len(set(view.cells)) < len(view.cells):
        double = pd.Index(view.cells)[pd.Index(view.cells).duplicated()][0]
        raise ValueError(f"{where}: cell names must differ, {double!r} occurs {view.cells.count(double)} times")
    matrix = view.matrix.to_numpy() if isinstance(view.matrix, pd.DataFrame) else view.matrix
    if not isinstance(matrix, np.ndarray) and not scipy.sparse.issparse(matrix):
        raise ValueError(f"{where} must be a matrix of numbers, it is a {type(matrix).__name__}")
    if matrix.dtype.kind not in "biuf":
        raise ValueError(f"{where} must hold real numbers, it holds {matrix.dtype}")
    if matrix.ndim != 2:
        raise ValueError(f"{where} must be a matrix (cells, features), it has {matrix.ndim} dimension(s)")
    if matrix.shape[0] < 2 or matrix.shape[1] < 1:
        raise ValueError(f"{where} must have at least 2 cells and 1 feature, its shape is {matrix.shape}")
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
    at = place(view.cells, row, view.features, column)
    raise ValueError(f"{where} must be finite in {matrix.dtype}, {at} holds {matrix[row, column]}")


def _floats(where: str, matrix: Any) -> np.ndarray | scipy.sparse.csr_array:
    with np.errstate(over="ignore"):  # what becomes infinite is reported as that
        if not scipy.sparse.issparse(matrix):
            double = matrix.dtype.kind == "f" and matrix.dtype.itemsize >= 8
            return np.ascontiguousarray(matrix, dtype=np.float64 if double else np.float32)
        if matrix.format in ("csr", "csc", "bsr"):
            try:
                matrix.check_format(full_check=True)  # SciPy would follow a bad index out of the array
            except ValueError as error:
                raise ValueError(f"{where} is no valid sparse matrix: {error}") from error
        return scipy.sparse.csr_array(matrix).astype(np.float32, copy=False)


def _package(name: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{path} needs {error.name}: pip install 'mmdma-benchmark[anndata]'") from error


def _names(index: pd.Index) -> tuple[str, ...]:
    return tuple(map(str, index))


def _listed(keys: Any) -> str:
    return ", ".join(repr(key) for key in keys if key is not None) or "none"
