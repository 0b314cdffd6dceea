"""Files that hold a bare matrix, by suffix: .npy, .npz, .mtx, .mtx.gz, .pt; tables of text are in tables.py.

No file can run code here: NumPy reads without pickle, PyTorch with weights_only, and the formats of SciPy and pandas
hold numbers and text alone.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from mmdma_core.errors import MissingDependency

# What the libraries raise on damaged files, seen by damaging files at random.
DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError)
DAMAGED += (AssertionError, RuntimeError, SyntaxError, tokenize.TokenError)
DAMAGED += (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)
_SAFE_TORCH = (2, 10)  # files can get round weights_only before: CVE-2025-32434 until 2.5.1, CVE-2026-24747 until 2.9


class Table(NamedTuple):
    """What a file holds, as it is stored: the matrix, and the names of its rows and columns or None."""

    matrix: np.ndarray | scipy.sparse.sparray | scipy.sparse.spmatrix
    rows: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None


class _Text(TextIOWrapper):
    """Text without NUL, at which pandas would end a field and drop what follows."""

    def read(self, size: int | None = -1) -> str:
        text = super().read(size)
        if "\0" in text:
            raise UnicodeError("it holds NUL, so it is no text")
        return text


def _open(path: Path) -> _Text:
    file = gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb")
    return _Text(file, encoding="utf-8-sig", newline="")


@contextmanager
def reading(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on a file that is not of its format into a ValueError of one line."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error


def existing(path: str | Path) -> Path:
    """The path of a file that is there. Raises ValueError."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    return path


def suffix(path: Path) -> str:
    """The suffix in lower case, '.mtx.gz' in one."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped: pages are read as they are used, and never written. Raises ValueError."""
    with reading(path, "a NumPy array", *DAMAGED):
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive of arrays: name it .npz")
    return array


def _read_npy(path: Path) -> Table:
    return Table(read_array(path))


def _read_npz(path: Path) -> Table:
    """A sparse matrix of scipy.sparse.save_npz, or the one array of numpy.savez."""
    with reading(path, "an archive of NumPy arrays", *DAMAGED):
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            names = archive.files
            dense = archive[names[0]] if len(names) == 1 else None
        if {"format", "shape", "data"} <= set(names):
            return Table(scipy.sparse.load_npz(path))
    if dense is None:
        raise ValueError(f"{path} must hold one array or a sparse matrix of SciPy, it holds: {', '.join(names)}")
    return Table(dense)


def _read_mtx(path: Path) -> Table:
    """A Matrix Market file of coordinates. Entries of the same place are summed.

    scipy.io.mmread is not used: its parser reads beyond its buffer, so that a trailing blank can crash the process.
    """
    with reading(path, "a Matrix Market file of coordinates", *DAMAGED), _open(path) as file:
        banner = file.readline().lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or len(banner) != 5:
            raise ValueError(f"its first line is {' '.join(banner)[:80]!r}")
        field, symmetry = banner[3:]
        if field not in ("real", "integer", "pattern") or symmetry not in ("general", "symmetric"):
            raise ValueError(f"it must be real, integer or pattern, general or symmetric, it is {field} {symmetry}")
        sizes = next((line for line in file if line.strip() and not line.startswith("%")), "").split()
        n_rows, n_columns, n_entries = map(int, sizes)
        rows, columns, values = _triplets(file, n_entries, field)
        matrix = scipy.sparse.coo_array((values, (rows, columns)), shape=(n_rows, n_columns))
        if symmetry == "symmetric":
            if np.any(rows < columns):
                raise ValueError("it is symmetric and must hold the lower triangle alone")
            matrix = matrix + scipy.sparse.tril(matrix, -1).T
    return Table(matrix)


def _triplets(file: TextIO, n_entries: int, field: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column, counted from 0, and value of each entry in the lines left."""
    if n_entries == 0 and not file.read().strip():
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0)
    types = {0: np.int64, 1: np.int64} | ({} if field == "pattern" else {2: np.float64})
    frame = pd.read_csv(file, sep=r"\s+", header=None, dtype=types, keep_default_na=False)
    if frame.shape != (n_entries, len(types)):
        raise ValueError(f"it must have {n_entries} lines of {len(types)} numbers, it has {frame.shape}")
    values = np.ones(n_entries) if field == "pattern" else frame[2].to_numpy()
    return frame[0].to_numpy() - 1, frame[1].to_numpy() - 1, values


def _read_pt(path: Path) -> Table:
    if torch.__version__ < _SAFE_TORCH:
        wanted = ".".join(map(str, _SAFE_TORCH))
        raise MissingDependency(f"{path}: PyTorch {torch.__version__} may run code of the file, .pt needs {wanted}")
    # PyTorch's own message is not passed on: it recommends to load without weights_only.
    try:
        with torch.sparse.check_sparse_tensor_invariants():
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED:
        raise ValueError(f"{path} cannot be read as a tensor: it is damaged or holds other objects") from None
    if not isinstance(tensor, torch.Tensor):
        held = f" with the keys {', '.join(map(str, tensor))}" if isinstance(tensor, dict) else ""
        raise ValueError(f"{path} must hold one tensor, it holds a {type(tensor).__name__}{held}")
    with reading(path, "a matrix", *DAMAGED):
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.float()  # NumPy has no bfloat16
        if tensor.layout == torch.strided:
            return Table(tensor.numpy())
        tensor = tensor.to_sparse_coo().coalesce()
        return Table(scipy.sparse.coo_array((tensor.values().numpy(), tensor.indices().numpy()), shape=tensor.shape))


def place(rows: object, row: int, columns: object, column: int) -> str:
    """In words where an entry is: by name where there are names, else counted from 1."""
    at = [names[i] if names is not None else None for names, i in ((rows, row), (columns, column))]
    texts = [repr(str(name)) if name is not None else str(i + 1) for name, i in zip(at, (row, column), strict=True)]
    return f"row {texts[0]}, column {texts[1]}"


READERS = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mtx": _read_mtx,
    ".mtx.gz": _read_mtx,
    ".pt": _read_pt,
}
