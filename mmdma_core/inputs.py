"""Checks of what a user hands in, each with a one-line error that names the argument and what is allowed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import scipy.sparse
import torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Array = TypeVar("Array", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Kernel:
    """A view that is given as its kernel matrix and has no features: the dual's p is 1.

    Parameters
    ----------
    matrix : torch.Tensor or numpy.ndarray
        K, (n, n), symmetric.
    """

    matrix: torch.Tensor | np.ndarray

    def __len__(self) -> int:
        return len(self.matrix)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the matrix, (n, n)."""
        return tuple(self.matrix.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of its entries."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """Return where it lies."""
        return self.matrix.device


View: TypeAlias = torch.Tensor | Kernel  # a checked view: dense (n, p), sparse CSR (n, p), or a kernel (n, n)
_DEVICE = re.compile(r"cpu(?::0)?|cuda(?::(0|[1-9]\d*))?")  # of a GPU the index
Given: TypeAlias = torch.Tensor | np.ndarray | scipy.sparse.sparray | scipy.sparse.spmatrix | Kernel


class Ranks:
    """The processes that share a run, as one of them sees them. This form: a single process, which has all rows.

    A rank is a process of a torch.distributed group, see mmdma_core.fused.ranks. Each has some rows of both views, rank
    0 the first ones, and all of the parameters. What computes calls these methods and asks nowhere how many ranks there
    are. Sums run in float64. A term that every rank computes for itself enters a sum divided by `size`, so that all
    ranks end with the same bits.

    rank, size  the number of this rank, and how many there are
    group       of torch.distributed; None for a single process
    n           rows of a view, over all ranks
    first, own  which of them is the first here, and how many are here; None: of no view
    """

    rank, size = 0, 1
    group: ProcessGroup | None = None

    def __init__(self, own: int | None = None) -> None:
        self.n, self.first, self.own = own, 0, own

    def local(self, rows: np.ndarray) -> np.ndarray:
        """Of rows of the whole view, in order, return those that are here, counted from `first`."""
        return rows

    def sum(self, values: Array) -> Array:
        """Sum values, float64, over the ranks, in place."""
        return values

    def sum_with_gradient(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks what autograd follows: each rank's gradient is the part of its own rows."""
        return values

    def sum_of_sparse(self, matrix: torch.Tensor) -> torch.Tensor:
        """Sum a matrix, sparse or dense, over the ranks; of several ranks the sum is dense."""
        return matrix

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value, a plain one or tensors on the CPU."""
        return value

    def all_gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return all rows (n, d) of a matrix of which (own, d) are here."""
        return rows

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return at rank 0 all rows (n, d) of a matrix of which (own, d) are here, elsewhere these."""
        return rows

    def whole(self, rows: torch.Tensor) -> torch.Tensor:
        """Return a matrix (n, d) to fill with this rank's term of a sum, for `reduce_scatter`."""
        return rows

    def reduce_scatter(self, term: torch.Tensor, rows: torch.Tensor) -> None:
        """Fill rows (own, d) with those rows of the sum of the terms (n, d) over the ranks."""

    def others(self, rows: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the rows of other ranks, dense or CSR, such that each unordered pair of ranks meets once."""
        yield from ()


def csr(begins: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return a sparse matrix in CSR, its structure checked; without PyTorch's greeting that this layout is young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(begins, columns, values, size=size, check_invariants=True)


def as_device(device: str | torch.device) -> torch.device:
    """Return the device, checked to be there. Raises ValueError for an unknown one, or a GPU that is absent."""
    name = str(device)
    known = _DEVICE.fullmatch(name) if isinstance(device, str | torch.device) else None
    if known is None:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:INDEX', got {name if known else device!r}")
    if name.startswith("cuda"):
        index, count = int(known[1] or 0), torch.cuda.device_count()
        if index >= count:  # before PyTorch, which reads 'cuda:256' as 'cuda:0'
            has = f"has {', '.join(f'cuda:{k}' for k in range(count))}" if count else "finds none"
            raise ValueError(f"device {name!r}: no such GPU here, PyTorch {has}")
        if torch.version.cuda and (why_not := _why_it_does_not_compute(name)):
            raise ValueError(f"device {name!r}: {why_not}; docs/gpu.md says which PyTorch a card needs")
    return torch.device(name)


@cache
def _why_it_does_not_compute(name: str) -> str | None:
    """Return what CUDA says to a sum on the device, such as that this PyTorch has no kernels for it."""
    try:
        torch.ones(2, device=name).sum().item()
    except torch.cuda.OutOfMemoryError:  # it does compute
        return None
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def as_views(x: Given, y: Given, device: torch.device) -> tuple[View, View]:
    """Return the two views as tensors of one floating type on the device: dense, or CSR where they are given sparse.

    x (n_x, p_x) and y (n_y, p_y), rows are cells; or both a Kernel. float64 if both are float64, else float32.
    Raises ValueError for anything that is not two finite matrices of at least 2 cells and 1 feature.
    """
    given = {"x": x, "y": y}
    kernels = [isinstance(value, Kernel) for value in given.values()]
    if any(kernels) and not all(kernels):
        raise ValueError("x and y must both be kernels, or both be matrices of features")
    tensors = {n: _as_tensor(n, v.matrix if isinstance(v, Kernel) else v) for n, v in given.items()}
    if tensors["x"].device != tensors["y"].device:
        raise ValueError(f"x is on {tensors['x'].device} and y on {tensors['y'].device}: give both on one device")
    double = all(t.dtype == torch.float64 for t in tensors.values())
    dtype = torch.float64 if double else torch.float32
    views = {name: t.to(device=device, dtype=dtype) for name, t in tensors.items()}
    for name, view in views.items():
        _check_finite(name, view.values() if is_sparse(view) else view)
    if all(kernels):
        for name, view in views.items():
            _check_symmetric(name, view)
        return Kernel(views["x"]), Kernel(views["y"])
    return views["x"], views["y"]


def is_sparse(view: View) -> bool:
    """Return whether the view is a sparse matrix in CSR."""
    return isinstance(view, torch.Tensor) and view.layout == torch.sparse_csr


def canonical(matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> scipy.sparse.csr_array:
    """Return the matrix in CSR as SciPy means it: entries of one place are summed, those of a row lie in order.

    The matrix itself is left as it is; what need not change is shared with it. Raises ValueError for indices that lead
    out of it, which SciPy would follow.
    """
    if matrix.format in ("csr", "csc", "bsr"):
        own = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
        own.check_format(full_check=True)
        matrix = own
    rows = scipy.sparse.csr_array(matrix)
    if not rows.has_canonical_format:
        rows = rows.copy()
        rows.sum_duplicates()
    return rows


def on_host(tensor: torch.Tensor) -> np.ndarray | scipy.sparse.csr_array:
    """Return a tensor of any layout for NumPy and SciPy, half precision in float32: neither has bfloat16."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype != torch.float64:
        tensor = tensor.float()
    if tensor.layout != torch.strided and (tensor.ndim != 2 or tensor.dense_dim()):
        tensor = tensor.to_dense()
    if tensor.layout == torch.strided:
        return tensor.numpy(force=True)
    return canonical(_scipy_of(tensor))


def _scipy_of(tensor: torch.Tensor) -> scipy.sparse.sparray:
    """Return what shares the entries of a sparse tensor; PyTorch's own conversions trust what is said of them."""
    if tensor.layout == torch.sparse_coo:
        return scipy.sparse.coo_array((tensor._values().numpy(), tensor._indices().numpy()), shape=tensor.shape)
    values = tensor.values().numpy()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        make = scipy.sparse.csr_array if values.ndim == 1 else scipy.sparse.bsr_array
        return make((values, tensor.col_indices().numpy(), tensor.crow_indices().numpy()), shape=tensor.shape)
    parts = tensor.row_indices().numpy(), tensor.ccol_indices().numpy()
    if values.ndim == 1:
        return scipy.sparse.csc_array((values, *parts), shape=tensor.shape)
    return scipy.sparse.bsr_array((values.transpose(0, 2, 1), *parts), shape=tensor.shape[::-1]).T


def unmasked(name: str, value: object) -> object:
    """Return what a masked array has, if no entry of it is masked. Raises ValueError; anything else goes as it is."""
    masked = 0
    if isinstance(value, np.ma.MaskedArray):
        masked, value = np.count_nonzero(np.ma.getmaskarray(value)), value.data
    elif isinstance(value, torch.masked.MaskedTensor):
        masked, value = int((~value.get_mask()).sum()), value.get_data()
    if masked:
        entries = "entry is" if masked == 1 else "entries are"
        raise ValueError(f"{name}: {masked:,} {entries} masked: fill them (.filled), or drop their rows or columns")
    return value


def _as_tensor(name: str, value: Given) -> torch.Tensor:
    value = unmasked(name, value)
    if scipy.sparse.issparse(value):
        tensor = _from_scipy(name, value)
    elif isinstance(value, torch.Tensor):
        tensor = value
    else:
        tensor = _from_array(name, value)
    tensor = tensor.detach()
    if tensor.is_inference():
        tensor = tensor.clone()  # autograd takes no tensor of the caller's inference mode
    if tensor.ndim != 2:
        raise ValueError(f"{name} must be a matrix (cells, features), got {tensor.ndim} dimension(s)")
    if tensor.is_complex():
        raise ValueError(f"{name} must be a real matrix, got {tensor.dtype}")
    if tensor.shape[0] < 2 or tensor.shape[1] < 1:
        raise ValueError(f"{name} must have at least 2 cells and 1 feature, got shape {tuple(tensor.shape)}")
    if tensor.layout != torch.strided and isinstance(value, torch.Tensor):
        held = on_host(tensor)
        tensor = (_from_scipy(name, held) if scipy.sparse.issparse(held) else torch.from_numpy(held)).to(tensor.device)
    return tensor


def _from_array(name: str, value: object) -> torch.Tensor:
    """Return a tensor that shares the array, unless PyTorch has no such type or order of bytes or of entries."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of different length
        array = np.empty(0, object)
    if array.dtype.kind not in "biufc":
        raise ValueError(f"{name} must be a numeric matrix, got {type(value).__name__}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if not array.dtype.isnative or min(array.strides, default=0) < 0:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(array)


def _from_scipy(name: str, matrix: scipy.sparse.sparray | scipy.sparse.spmatrix) -> torch.Tensor:
    """Return a CSR tensor with memory of its own."""
    if matrix.ndim != 2 or matrix.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be a real matrix, got {matrix.ndim} dimension(s) of {matrix.dtype}")
    try:
        matrix = canonical(matrix)
    except ValueError as error:
        raise ValueError(f"{name} is no valid sparse matrix: {error}") from error
    values = matrix.data if matrix.dtype in (np.float32, np.float64) else matrix.data.astype(np.float32)
    parts = (torch.from_numpy(np.array(part)) for part in (matrix.indptr, matrix.indices, values))
    return csr(*parts, matrix.shape)


def _check_finite(name: str, values: torch.Tensor) -> None:
    if values.numel() and not all(torch.isfinite(extreme) for extreme in torch.aminmax(values)):  # no n x p mask
        raise ValueError(f"{name} must be finite, it holds NaN or infinity")


def _check_symmetric(name: str, matrix: torch.Tensor) -> None:
    if is_sparse(matrix) or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name}: a kernel must be a dense square matrix, got shape {tuple(matrix.shape)}")
    scale = matrix.abs().max()
    for low in range(0, len(matrix), 1024):
        if (matrix[low : low + 1024] - matrix[:, low : low + 1024].T).abs().max() > 1e-4 * scale:
            raise ValueError(f"{name}: a kernel must be symmetric")
