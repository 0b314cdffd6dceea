"""10x Genomics' counts, of CellRanger 2 and of 3 and later: folders with a matrix.mtx, and .h5 files.

Features are in rows there; here cells are. Kept by hand: scanpy's readers need umap-learn, statsmodels and more, and
scipy.io.mmread, which damaged files crash.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import scipy.sparse

from mmdma_core.files.annotated import names, of_type
from mmdma_core.files.formats import DAMAGED, READERS, View, existing, hdf5_filters, opened, reading, suffix

FOLDER, FILE = "10x folder", ".h5"  # the kinds, as errors call them
_PARTS = {
    "matrix": ("matrix.mtx",),
    "barcodes": ("barcodes.tsv",),
    "features": ("features.tsv", "genes.tsv", "peaks.bed"),  # of version 3, of version 2, of ATAC
}
_GENES, _PEAKS = "Gene Expression", "Peaks"  # the types, where the files have none


def read_tenx_folder(folder: Path, feature_type: str | None) -> View:
    """Read matrix.mtx, barcodes.tsv and features.tsv (or genes.tsv, peaks.bed), each .gz or not. Raises ValueError.

    The names may have a prefix, as those of GEO do. Features are named by their ids.
    """
    parts = {name: existing(_part(folder, endings)) for name, endings in _PARTS.items()}
    fields = {name: _fields(parts[name]) for name in ("barcodes", "features")}
    matrix = READERS[suffix(parts["matrix"])](parts["matrix"]).matrix
    ids, types = _described(parts["features"], fields["features"])
    barcodes = [row[0] for row in fields["barcodes"]]
    if matrix.shape != (len(ids), len(barcodes)):
        turned = matrix.shape == (len(barcodes), len(ids))
        raise ValueError(
            f"{parts['matrix']} must have {len(ids)} rows as {parts['features'].name} has lines and {len(barcodes)} "
            f"columns as {parts['barcodes'].name}, its shape is {matrix.shape}"
            + (": cells are in its rows, so give the .mtx file itself" if turned else "")
        )
    return _taken(folder, scipy.sparse.csr_array(matrix.T), barcodes, ids, types, feature_type)


def _part(folder: Path, endings: tuple[str, ...]) -> Path:
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    found = [file for file in files if file.name.removesuffix(".gz").endswith(endings)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{folder} must have one {' or '.join(endings)}, it has {', '.join(f.name for f in found)}")
    below = sorted({str(file.parent) for file in folder.glob("*/*matrix.mtx*")})
    hint = f"; did you mean {' or '.join(below)}?" if below else ""
    raise ValueError(f"{folder} is a folder, neither .zarr nor of 10x: it has no {' or '.join(endings)}(.gz){hint}")


def _fields(path: Path) -> list[list[str]]:
    """Read the fields of each line, between tabs."""
    with opened(path, "a table of 10x") as file:
        rows = [[field.strip() for field in line.split("\t")] for line in file]
    while rows and rows[-1] == [""]:
        rows.pop()
    for number, row in enumerate(rows, 1):
        if not row[0]:
            raise ValueError(f"{path}: line {number} has no name")
    return rows


def _described(path: Path, rows: list[list[str]]) -> tuple[list[str], list[str]]:
    """Return the id and the type of each feature."""
    if path.name.removesuffix(".gz").endswith("peaks.bed"):
        short = next((number for number, row in enumerate(rows, 1) if len(row) < 3), None)
        if short is not None:
            raise ValueError(f"{path}: line {short} must have a chromosome, a start and an end")
        return [f"{row[0]}:{row[1]}-{row[2]}" for row in rows], [_PEAKS] * len(rows)
    return [row[0] for row in rows], [row[2] if len(row) > 2 and row[2] else _GENES for row in rows]


def read_tenx_file(path: Path, feature_type: str | None) -> View:
    """Read a .h5 file: the group matrix of version 3, or the one of a genome of version 2. Raises ValueError."""
    with hdf5_filters(path, path), reading(path, "a .h5 file of 10x", *DAMAGED):
        counts = _read_groups(path)
    return _taken(path, *counts, feature_type)


def _read_groups(path: Path) -> tuple[scipy.sparse.csr_array, list[str], list[str], list[str]]:
    import h5py

    with h5py.File(path, "r") as file:
        there = list(file)
        if {"obs", "var"} <= set(there) or "mod" in there:
            raise ValueError(
                f"it is a file of {'mudata: name it .h5mu' if 'mod' in there else 'anndata: name it .h5ad'}"
            )
        genomes = [name for name in there if isinstance(file[name], h5py.Group) and "genes" in file[name]]
        if "matrix" not in there and len(genomes) != 1:
            held = f"it has {', '.join(map(repr, there)) or 'nothing'}"
            raise ValueError(f"it must have a group 'matrix', or one of a genome with 'genes', {held}")
        group = file["matrix" if "matrix" in there else genomes[0]]
        n_features, n_cells = (int(size) for size in group["shape"][()])
        parts = tuple(group[name][()] for name in ("data", "indices", "indptr"))
        matrix = scipy.sparse.csr_array(parts, shape=(n_cells, n_features))  # CSC of features by cells
        barcodes = _texts(group["barcodes"])
        if group.name != "/matrix":
            ids = _texts(group["genes"])
            types = [_GENES] * len(ids)
        else:
            ids, types = (_texts(group[f"features/{name}"]) for name in ("id", "feature_type"))
        for name, texts, size in (("barcodes", barcodes, n_cells), ("features", ids, n_features)):
            if len(texts) != size:
                raise ValueError(f"it has {len(texts)} {name} for a matrix with {size}")
        if len(types) != len(ids):
            raise ValueError(f"it has {len(types)} feature types for {len(ids)} features")
        return matrix, barcodes, ids, types


def _texts(dataset: Any) -> list[str]:
    return [text.decode() if isinstance(text, bytes) else str(text) for text in dataset[()].tolist()]


def _taken(
    path: Path,
    matrix: scipy.sparse.csr_array,
    barcodes: list[str],
    ids: list[str],
    types: list[str],
    feature_type: str | None,
) -> View:
    """Return the features of one type, whose names are made unique by -1, -2, ..., as scverse has it."""
    from anndata.utils import make_index_unique

    with reading(path, "counts of 10x", ValueError):
        matrix.check_format(full_check=True)  # SciPy would follow a bad index out of the array
    view = of_type(str(path), View(matrix, tuple(barcodes), tuple(ids)), types, feature_type)
    with warnings.catch_warnings(category=UserWarning, action="ignore"):
        return replace(view, features=names(make_index_unique(pd.Index(view.features))))
