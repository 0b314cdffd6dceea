"""What goes with a person's views: known matches and labels, read from files, and embeddings, written to them."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdma_core.files.annotated import as_stored
from mmdma_core.files.atomic import atomically
from mmdma_core.files.formats import View, suffix
from mmdma_core.files.labels import read_labels, read_vector
from mmdma_core.files.names import align_by_name, compare_names
from mmdma_core.files.views import read_view

__all__ = [
    "View",
    "align_by_name",
    "atomically",
    "compare_names",
    "read_labels",
    "read_match",
    "read_vector",
    "read_view",
    "write_array",
    "write_embedding",
]

_ROOM = 2**16  # bytes of an HDF5 file that names and parameters take at most


def read_match(path: str | Path, n_x: int, n_y: int) -> np.ndarray:
    """Read the known match of two views.

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
    match = read_vector(path, "match vector", n_x)
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


def write_array(array: np.ndarray, path: str | Path) -> None:
    """Write a .npy file in one step.

    Parameters
    ----------
    array : numpy.ndarray
        Of numbers.
    path : str or Path
        The file.
    """
    with atomically(Path(path)) as part, part.open("w+b") as file:  # opened so, NumPy says why it cannot write
        np.save(file, array)


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
    check_suffix(view, path)
    n = view.n_cells
    if embedding.ndim != 2 or len(embedding) != n or embedding.dtype.kind != "f":
        raise ValueError(f"embedding must be {n} rows of floats, got {embedding.dtype} of shape {embedding.shape}")
    if not np.isfinite(embedding).all():
        raise ValueError("embedding must be finite, it holds NaN or infinity")
    stored = as_stored("parameters", parameters)
    if suffix(path) == ".npy":
        write_array(embedding, path)
        return
    with atomically(path) as part:
        if not view.path.exists():
            raise FileNotFoundError(errno.ENOENT, f"{view.path}, which it is a copy of, is no longer there")
        shutil.copyfile(view.path, part)
        with part.open("r+b") as file:  # HDF5 would complain at length of a disk that fills; it gives back what is left
            os.posix_fallocate(file.fileno(), part.stat().st_size, embedding.nbytes + _ROOM)
        _add_elements(part, f"mod/{view.modality}/" if view.modality else "", embedding, stored)


def check_suffix(view: View, path: Path) -> None:
    """Refuse a file that an embedding of the view cannot go into.

    Parameters
    ----------
    view : View
        Whose cells they are.
    path : Path
        The file to write.

    Raises
    ------
    ValueError
        For another suffix than .npy and that of the view's file.
    """
    allowed = (".npy", suffix(view.path)) if view.copied else (".npy",)
    if suffix(path) not in allowed:
        raise ValueError(f"{path}: an embedding of {view.path} is written to {' or '.join(allowed)}")


def _add_elements(path: Path, group: str, embedding: np.ndarray, parameters: dict) -> None:
    """Add both elements to an HDF5 file and leave the rest of it as it is, whatever its writer's version was."""
    import h5py
    from anndata.io import write_elem

    try:
        with h5py.File(path, "r+") as file:
            for name, key, element in (("obsm", "X_mmdma", embedding), ("uns", "mmdma", parameters)):
                held = file.get(f"{group}{name}")
                if isinstance(held, h5py.Dataset):  # one table, as anndata before 0.7 had it, takes no further entry
                    table = held[()]
                    del file[f"{group}{name}"]
                    for column in table.dtype.names:
                        file[f"{group}{name}/{column}"] = table[column]
                write_elem(file, f"{group}{name}/{key}", element)
    except (OSError, RuntimeError, ValueError) as error:  # HDF5 has the system's reason among many words, if any
        number = re.search(r"errno = (\d+)", str(error))
        reason = os.strerror(int(number[1])) if number else str(error).partition("\n")[0]
        raise OSError(int(number[1]) if number else None, reason) from error
