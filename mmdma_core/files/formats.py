"""Text in a file, packed or not: UTF-8, or UTF-16 with its mark.

What lies in a file's place without being it: pointers of git, web pages, nothing at all, another compression.

HDF5: the packages that its files need, and the filters that it lacks itself.

Files that hold a bare matrix, by suffix: .npy, .npz, .mtx, .mtx.gz, .pt; tables of text are in tables.py.

No file can run code here: NumPy reads without pickle, PyTorch with weights_only, and the formats of SciPy and pandas
hold numbers and text alone.

Which rows of a view one of several processes reads or makes.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import os
import pickle
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import scipy.sparse
import torch

from mmdma_core.errors import MissingDependency
from mmdma_core.inputs import on_host


class _Text(TextIOWrapper):
    """Text without NUL, at which pandas would end a field and drop what follows."""

    def read(self, size: int | None = -1) -> str:
        return _without_nul(super().read(size))

    def __next__(self) -> str:
        return _without_nul(super().__next__())


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise UnicodeError("it holds NUL, so it is no text; UTF-16 needs its mark")
    return text


@contextmanager
def opened(path: Path, kind: str) -> Iterator[TextIO]:
    """The text of a file of some kind, unpacked if its name ends in .gz. Raises ValueError for what is no text."""
    refused = f"{path} cannot be read as {kind}"
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            encoding = "utf-16" if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            with _Text(file, encoding, newline="") as text:
                yield text
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x}" if error.start < len(error.object) else "its end"
        raise ValueError(f"{refused}: {byte} is not {error.encoding.upper()}, save it as UTF-8") from error
    except (UnicodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{refused}: {error}") from error


_POINTERS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"version https://hawser": "is a Git LFS pointer, not the file itself: git lfs pull fetches it",
    b"/annex/objects/": "is a git-annex pointer, not the file itself: git annex get fetches it",
}
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error>")
_GZIP = b"\x1f\x8b"
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf": "7z"}
_ZIP, _ARE_ZIP = b"PK\x03\x04", (".npy", ".npz", ".pt")  # of .npy, that it is an .npz is said elsewhere


def check_is_there(path: Path) -> None:
    """Raises ValueError for no file; a link that leads nowhere is named as that."""
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"{path}: a folder, not a file")
    if not path.is_symlink():
        raise ValueError(f"{path}: no such file")
    target = os.readlink(path)
    if "annex/objects" in target.replace(os.sep, "/"):
        raise ValueError(f"{path} is a link of git-annex whose file is not here: git annex get fetches it")
    raise ValueError(f"{path}: a link to {target}, where no file is")


def check_is_itself(path: Path) -> None:
    """Raises ValueError of one line for a file that only stands for another one, or is packed as its name does not say.

    What it says is seen from the first bytes alone.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    what = _seen(path, head)
    if what:
        raise ValueError(f"{path} {what}")


def _seen(path: Path, head: bytes) -> str | None:
    if not head:
        return "is empty"
    for start, what in _POINTERS.items():
        if head.startswith(start):
            return what
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "is a web page or a server's message, not the file itself: download it again, by its own address"
    for start, name in _COMPRESSED.items():
        if head.startswith(start):
            return f"is compressed with {name}: unpack it"
    if head.startswith(_ZIP) and path.suffix.lower() not in _ARE_ZIP:
        return "is a zip archive, as .xlsx is too: unpack it, or save it as text"
    named = path.suffix.lower() == ".gz"
    if named and not head.startswith(_GZIP):
        return "ends in .gz and is not compressed with gzip: take .gz off its name"
    if not named and head.startswith(_GZIP):
        return "is compressed with gzip: unpack it, or let its name end in .gz"
    return None


@contextmanager
def hdf5_filters(path: Path, file: Path) -> Iterator[None]:
    """Read an HDF5 file with the filters of hdf5plugin, where that is installed.

    path is what errors call the file. A ValueError becomes a MissingDependency that names the filter, if the file has
    one that is not there.
    """
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")  # registers them
    try:
        yield
    except ValueError:
        lacking = _lacking(file)
        if lacking:
            raise MissingDependency(f"{path} needs a filter of HDF5: {lacking}: pip install hdf5plugin") from None
        raise


def _lacking(file: Path) -> str | None:
    """The first dataset with a filter that HDF5 does not have here, and which; None: there is none."""
    import h5py

    def look(name: str, item: object) -> str | None:
        if not isinstance(item, h5py.Dataset):
            return None
        created = item.id.get_create_plist()
        for k in range(created.get_nfilters()):
            number, _, _, called = created.get_filter(k)
            if not h5py.h5z.filter_avail(number):
                title = called.decode(errors="replace").partition(";")[0] or "no name"
                return f"{name} is packed by filter {number} ({title})"
        return None

    with suppress(OSError, RuntimeError, KeyError), h5py.File(file, "r") as opened:  # damaged in another way
        return opened.visititems(look)
    return None


# What the libraries raise on damaged files, seen by damaging files at random.
DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError)
DAMAGED += (AssertionError, RuntimeError, SyntaxError, tokenize.TokenError)
DAMAGED += (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)
_SAFE_TORCH = (2, 10)  # files can get round weights_only before: CVE-2025-32434 until 2.5.1, CVE-2026-24747 until 2.9
_COPIED = (".h5ad", ".h5mu")  # a copy of such a file takes the embedding
_FIELDS = {"coordinate": ("real", "integer", "pattern"), "array": ("real", "integer")}  # of Matrix Market


@dataclass(frozen=True, eq=False)
class View:
    """A matrix with names: what a reader takes of a file as it is stored, and what `read_view` returns of it, checked.

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
    n : int or None
        Cells of the file, where the matrix has a share of them; names and source are those of all.
    first : int
        Which cell of the file is the matrix's first.
    representation : tuple or None
        (use_rep, layer) of an AnnData object in memory, else None.
    """

    matrix: np.ndarray | scipy.sparse.csr_array
    cells: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    source: Any = None
    path: Path | None = None
    modality: str | None = None
    n: int | None = None
    first: int = 0
    representation: tuple[str, str | None] | None = None

    @property
    def n_cells(self) -> int:
        """The number of cells in the file, of which the matrix may have a share."""
        return self.matrix.shape[0] if self.n is None else self.n

    @property
    def annotated(self) -> Any:
        """The AnnData object of the cells: the source, or its modality; None for a bare matrix."""
        return self.source if self.modality is None else self.source.mod[self.modality]

    @property
    def copied(self) -> bool:
        """Whether the embedding goes into a copy of the file, else into a .npy file."""
        return self.source is not None and suffix(self.path) in _COPIED


@contextmanager
def reading(path: Path, kind: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a library raises on a file that is not of its format into a ValueError of one line."""
    try:
        yield
    except errors as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if "allow_pickle" in reason or "Python objects" in reason:
            # NumPy's own words advise to run what the file brings.
            reason = "it is of another format, or holds Python objects, which could run code: save numbers"
        raise ValueError(f"{path} cannot be read as {kind}: {reason}") from error


def existing(path: str | Path) -> Path:
    """The path of a file that is there and no stand-in for one. Raises ValueError."""
    path = Path(path)
    check_is_there(path)
    check_is_itself(path)
    return path


def suffix(path: Path) -> str:
    """The suffix in lower case, '.mtx.gz' and its like in one."""
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


def _read_npy(path: Path) -> View:
    return View(read_array(path))


def _read_npz(path: Path) -> View:
    """A sparse matrix of scipy.sparse.save_npz, or the one array of numpy.savez."""
    with reading(path, "an archive of NumPy arrays", *DAMAGED):
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            names = archive.files
            dense = archive[names[0]] if len(names) == 1 else None
        if {"format", "shape", "data"} <= set(names):
            return View(scipy.sparse.load_npz(path))
    if dense is None:
        raise ValueError(f"{path} must hold one array or a sparse matrix of SciPy, it holds: {', '.join(names)}")
    return View(dense)


def _read_mtx(path: Path) -> View:
    """A Matrix Market file of coordinates, of which entries of the same place are summed, or of an array.

    scipy.io.mmread is not used: its parser reads beyond its buffer, so that a trailing blank can crash the process.
    Version 1.17.1 still does.
    """
    kind = "a Matrix Market file"
    with opened(path, kind) as file, reading(path, kind, *DAMAGED):
        banner = file.readline().lower().split()
        if banner[:2] != ["%%matrixmarket", "matrix"] or len(banner) != 5 or banner[2] not in _FIELDS:
            raise ValueError(f"its first line is {' '.join(banner)[:80]!r}")
        form, field, symmetry = banner[2:]
        if field not in _FIELDS[form] or symmetry not in ("general", "symmetric"):
            fields = " or ".join(_FIELDS[form])
            raise ValueError(f"it must be {fields}, general or symmetric, it is {field} {symmetry}")
        sizes = next((line for line in file if line.strip() and not line.startswith("%")), "").split()
        read = _coordinates if form == "coordinate" else _entries
        return View(read(file, [int(size) for size in sizes], field, symmetry == "symmetric"))


def _coordinates(file: TextIO, sizes: list[int], field: str, symmetric: bool) -> scipy.sparse.sparray:
    n_rows, n_columns, n_entries = sizes
    rows, columns, values = _triplets(file, n_entries, field)
    matrix = scipy.sparse.coo_array((values, (rows, columns)), shape=(n_rows, n_columns))
    if not symmetric:
        return matrix
    if np.any(rows < columns):
        raise ValueError("it is symmetric and must hold the lower triangle alone")
    return matrix + scipy.sparse.tril(matrix, -1).T


def _entries(file: TextIO, sizes: list[int], _: str, symmetric: bool) -> np.ndarray:
    """A dense matrix: one number a line, column by column; of a symmetric one the lower triangle."""
    n_rows, n_columns = sizes
    if symmetric and n_rows != n_columns:
        raise ValueError(f"it is symmetric and must be square, it is {n_rows} x {n_columns}")
    n_entries = n_rows * (n_rows + 1) // 2 if symmetric else n_rows * n_columns
    frame = pd.read_csv(file, sep=r"\s+", header=None, dtype=np.float64, keep_default_na=False)
    if frame.shape != (n_entries, 1):
        raise ValueError(f"it must have {n_entries} lines of 1 number, it has {frame.shape}")
    if not symmetric:
        return frame[0].to_numpy().reshape(n_columns, n_rows).T
    upper = np.zeros((n_rows, n_rows))
    upper[np.triu_indices(n_rows)] = frame[0]  # row by row, as the lower triangle goes column by column
    return upper + np.triu(upper, 1).T


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


def _read_pt(path: Path) -> View:
    if torch.__version__ < _SAFE_TORCH:
        wanted = ".".join(map(str, _SAFE_TORCH))
        raise MissingDependency(f"{path}: PyTorch {torch.__version__} may run code of the file, .pt needs {wanted}")
    # PyTorch's own message is not passed on: it recommends to load without weights_only.
    try:
        with torch.sparse.check_sparse_tensor_invariants(enable=False):  # SciPy checks them, and allows duplicates
            tensor = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED:
        raise ValueError(f"{path} cannot be read as a tensor: it is damaged or holds other objects") from None
    if not isinstance(tensor, torch.Tensor):
        held = f" with the keys {', '.join(map(str, tensor))}" if isinstance(tensor, dict) else ""
        raise ValueError(f"{path} must hold one tensor, it holds a {type(tensor).__name__}{held}")
    with reading(path, "a matrix", *DAMAGED):
        return View(on_host(tensor))


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


def of_share(n: int, share: tuple[int, int]) -> slice:
    """The rows of share (k, m) of n: as many as of any other, or one more."""
    k, m = share
    return slice(n * k // m, n * (k + 1) // m)
