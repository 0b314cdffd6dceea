"""A matrix with names (View), and the readers of bare matrices by suffix: .npy, .npz, .mtx, .mtx.gz and .pt.

No file can run code here: NumPy reads without pickle, PyTorch with weights_only, and the formats of SciPy and pandas
hold numbers and text alone. What every reader needs stands here, too: text that may be packed, files that only stand
for others, filters of HDF5, words for what is damaged.
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

# What the libraries raise on damaged files, seen by damaging files at random.
DAMAGED = (OSError, EOFError, ValueError, KeyError, IndexError, OverflowError, AttributeError, TypeError)
DAMAGED += (AssertionError, RuntimeError, SyntaxError, tokenize.TokenError)
DAMAGED += (pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)
_SAFE_TORCH = (2, 10)  # files can get round weights_only before: CVE-2025-32434 until 2.5.1, CVE-2026-24747 until 2.9
_COPIED = (".h5ad", ".h5mu")  # a copy of such a file takes the embedding
_FIELDS = {"coordinate": ("real", "integer", "pattern"), "array": ("real", "integer")}  # of Matrix Market

_LFS = "is a Git LFS pointer, not the file itself: git lfs pull fetches it"
# How a file begins that is not what it is called, and what to do.
_HEADS = {
    b"version https://git-lfs": _LFS,
    b"version https://hawser": _LFS,
    b"/annex/objects/": "is a git-annex pointer, not the file itself: git annex get fetches it",
    b"BZh": "is compressed with bzip2: unpack it",
    b"\xfd7zXZ\0": "is compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: unpack it",
    b"7z\xbc\xaf": "is compressed with 7z: unpack it",
}
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error>")
_GZIP = b"\x1f\x8b"


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


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there, and is no placeholder of it. Raises ValueError."""
    path = Path(path)
    check_is_there(path)
    check_is_itself(path)
    return path


def check_is_there(path: Path) -> None:
    """Raise ValueError for no file; a link that leads nowhere is named as that."""
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
    """Raise ValueError for a file that only stands for another one, or is packed as its name does not say.

    Its first bytes alone tell.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    packed, named_so = head.startswith(_GZIP), path.suffix.lower() == ".gz"
    if not head:
        raise ValueError(f"{path} is empty")
    for start, what in _HEADS.items():
        if head.startswith(start):
            raise ValueError(f"{path} {what}")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        page = "is a web page or a server's message, not the file itself: download it again, by its own address"
        raise ValueError(f"{path} {page}")
    if head.startswith(b"PK\x03\x04") and path.suffix.lower() not in (".npy", ".npz", ".pt"):
        raise ValueError(f"{path} is a zip archive, as .xlsx is too: unpack it, or save it as text")
    if named_so and not packed:
        raise ValueError(f"{path} ends in .gz and is not compressed with gzip: take .gz off its name")
    if packed and not named_so:
        raise ValueError(f"{path} is compressed with gzip: unpack it, or let its name end in .gz")


def suffix(path: Path) -> str:
    """Return the suffix in lower case, '.mtx.gz' and its like in one."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ending if ending == ".gz" else ending


class _Text(TextIOWrapper):
    """Text without NUL, at which pandas would end a field and drop what follows."""

    def read(self, size: int | None = -1) -> str:
        return self._checked(super().read(size))

    def __next__(self) -> str:
        return self._checked(super().__next__())

    def _checked(self, text: str) -> str:
        if "\0" in text:
            raise UnicodeError("it holds NUL, so it is no text; UTF-16 needs its mark")
        return text


@contextmanager
def opened(path: Path, kind: str) -> Iterator[TextIO]:
    """Open the text of a file, unpacked if its name ends in .gz. Raises ValueError for what is no text."""
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


@contextmanager
def hdf5_filters(path: Path, file: Path) -> Iterator[None]:
    """Read an HDF5 file with the filters of hdf5plugin, where that is installed.

    path is what errors call the file. A ValueError becomes a MissingDependency where a filter is lacking.
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
    """Name the first dataset with a filter that HDF5 does not have here, and which; None: there is none."""
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


def read_array(path: Path) -> np.ndarray:
    """Map the array of a .npy file: pages are read as they are used, and never written. Raises ValueError."""
    with reading(path, "a NumPy array", *DAMAGED):
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path} is an archive of arrays: name it .npz")
    return array


def _read_npy(path: Path) -> View:
    return View(read_array(path))


def _read_npz(path: Path) -> View:
    """Read a sparse matrix of scipy.sparse.save_npz, or the one array of numpy.savez."""
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
    """Read a Matrix Market file of coordinates, of which entries of the same place are summed, or of an array.

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
    places, numbers = [np.int64, np.int64], [] if field == "pattern" else [np.float64]
    rows, columns, *values = _columns(file, n_entries, places + numbers)
    entries = values[0] if values else np.ones(n_entries)
    matrix = scipy.sparse.coo_array((entries, (rows - 1, columns - 1)), shape=(n_rows, n_columns))
    if not symmetric:
        return matrix
    if np.any(rows < columns):
        raise ValueError("it is symmetric and must hold the lower triangle alone")
    return matrix + scipy.sparse.tril(matrix, -1).T


def _entries(file: TextIO, sizes: list[int], _: str, symmetric: bool) -> np.ndarray:
    """Read a dense matrix: one number a line, column by column; of a symmetric one the lower triangle."""
    n_rows, n_columns = sizes
    if symmetric and n_rows != n_columns:
        raise ValueError(f"it is symmetric and must be square, it is {n_rows} x {n_columns}")
    n_entries = n_rows * (n_rows + 1) // 2 if symmetric else n_rows * n_columns
    (values,) = _columns(file, n_entries, [np.float64])
    if not symmetric:
        return values.reshape(n_columns, n_rows).T
    upper = np.zeros((n_rows, n_rows))
    upper[np.triu_indices(n_rows)] = values  # row by row, as the lower triangle goes column by column
    return upper + np.triu(upper, 1).T


def _columns(file: TextIO, n: int, types: list[type]) -> list[np.ndarray]:
    """Read the n lines that are left, with a number of each type."""
    if n == 0 and not file.read().strip():
        return [np.zeros(0, kind) for kind in types]
    frame = pd.read_csv(file, sep=r"\s+", header=None, dtype=dict(enumerate(types)), keep_default_na=False)
    if frame.shape != (n, len(types)):
        raise ValueError(f"it must have {n} lines of {len(types)} number{'s' * (len(types) > 1)}, it has {frame.shape}")
    return [frame[k].to_numpy() for k in range(len(types))]


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


READERS = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mtx": _read_mtx,
    ".mtx.gz": _read_mtx,
    ".pt": _read_pt,
}


def place(rows: object, row: int, columns: object, column: int) -> str:
    """Say where an entry is: by name where there are names, else counted from 1."""
    at = [names[i] if names is not None else None for names, i in ((rows, row), (columns, column))]
    texts = [repr(str(name)) if name is not None else str(i + 1) for name, i in zip(at, (row, column), strict=True)]
    return f"row {texts[0]}, column {texts[1]}"


def of_share(n: int, share: tuple[int, int]) -> slice:
    """Return the rows of share (k, m) of n: as many as any other has, or one more."""
    k, m = share
    return slice(n * k // m, n * (k + 1) // m)
