"""Sums of the Gaussian kernel k(a, b) = exp(-|a - b|^2 / (2 sigma)) over pairs of points, in several ways.

Each way is a function (e_x, e_y, sigma) -> (sum_xx, sum_yy, sum_xy) of embeddings e_x (n_x, d) and e_y (n_y, d): the
sums over pairs of different points of x, of y, and over all pairs of a point of x with one of y, as float64 scalars
that PyTorch can differentiate.

    dense_sums      n x n matrices: the paper's variants without KeOps
    keops_sums      symbolic reductions of KeOps (Charlier et al. 2021): the paper's variants with it
    broadcast_sums  tensors of differences (n, d, n): both original implementations
    split_sums, linear_sums    estimates from a part of the pairs, the mean over these times the number of all pairs
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from types import ModuleType

import torch

from mmdma_core import compilers, host
from mmdma_core.errors import OUT_OF_MEMORY

ThreeSums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Sums = Callable[[torch.Tensor, torch.Tensor, float], ThreeSums]
Kernel = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]

_NO_CUDA = re.compile(r"^\[KeOps\] Warning : .*\b(cuda|gpus?)\b", re.IGNORECASE)


def dense_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """Sum n x n matrices, with |x|^2 + |y|^2 - 2 x.y as squared distance: O(n^2) memory.

    Autograd keeps two n x n matrices of each of the three kernels. In float32 that distance has an absolute error of
    about 1e-7 times the squared norms, so the points are centred first, which changes no distance.
    """
    centre = e_y.detach().mean(0)
    return sums_of(gaussian_kernel, e_x - centre, e_y - centre, sigma)


def sums_of(kernel: Kernel, e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """Return the three sums of the n x n matrices kernel(a, b, sigma)."""
    within = (_off_diagonal_sum(kernel(e, e, sigma)) for e in (e_x, e_y))
    return *within, _total(kernel(e_x, e_y, sigma))


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the matrix exp(-|a_i - b_j|^2 / (2 sigma)), a (n, d), b (m, d) -> (n, m)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    distances = (squares - 2 * a @ b.T).clamp(min=0)
    return torch.exp(distances * (-1 / (2 * sigma)))


def _total(kernel: torch.Tensor) -> torch.Tensor:
    # Rows in the kernel's own precision, their total in float64: the three means nearly cancel in MMD2.
    return kernel.sum(1).sum(dtype=torch.float64)


def _off_diagonal_sum(kernel: torch.Tensor) -> torch.Tensor:
    return _total(kernel) - kernel.diagonal().sum(dtype=torch.float64)


def gaussian_kernel_of_differences(a: torch.Tensor, b: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the same matrix from differences (n, d, m), which lose nothing where the norms are large."""
    differences = a[:, :, None] - b.T[None, :, :]
    return torch.exp(differences.square().sum(1) * (-1 / (2 * sigma)))


broadcast_sums = functools.partial(sums_of, gaussian_kernel_of_differences)


def keops_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """Sum by KeOps: O(n) memory, 3 forward and 6 gradient reductions an epoch.

    KeOps needs a C++ compiler at run time and compiles each formula once per machine. On CUDA the reductions name their
    backend, so that KeOps can never fall back to the CPU unnoticed.
    """
    # A point's distance to itself is exactly 0 here, so the diagonal of a view sums to its n.
    sum_xx = _keops_sum(e_x, e_x, sigma) - len(e_x)
    sum_yy = _keops_sum(e_y, e_y, sigma) - len(e_y)
    return sum_xx, sum_yy, _keops_sum(e_x, e_y, sigma)


def load_keops(module: str, gpu: bool = False) -> ModuleType:
    """Import a module that imports KeOps.

    Without CUDA KeOps warns on stdout, in every process that imports it. That matters where a GPU is asked for, and is
    left out elsewhere; on a GPU `keops_works_on` says what is missing, too.
    """
    if gpu or "keopscore" in sys.modules:
        return importlib.import_module(module)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            return importlib.import_module(module)
    finally:
        sys.stdout.write("".join(line for line in said.getvalue().splitlines(True) if not _NO_CUDA.search(line)))


def _keops_sum(a: torch.Tensor, b: torch.Tensor, sigma: float, backend: str | None = None) -> torch.Tensor:
    backend = backend or ("GPU" if a.is_cuda else "CPU")
    if backend == "GPU":
        compilers.prepare_cuda()
    LazyTensor = load_keops("pykeops.torch", backend == "GPU").LazyTensor
    scale = (0.5 / sigma) ** 0.5
    a_i = LazyTensor((a * scale)[:, None, :])
    b_j = LazyTensor((b * scale)[None, :, :])
    kernel = (-((a_i - b_j) ** 2).sum(2)).exp()
    return kernel.sum(1, backend=backend).sum(dtype=torch.float64)


@functools.cache
def keops_works_on(device: torch.device) -> str | None:
    """Return None if KeOps runs on the device, else the reason why it does not, and what to install.

    On CUDA a small reduction is run on the GPU and compared with PyTorch: KeOps switches to the CPU in silence when
    it finds no nvrtc. Raises MemoryError where the GPU's memory does not suffice for that.
    """
    return _runs_on_gpu(torch.arange(12.0, device=device).reshape(4, 3) / 10) if device.type == "cuda" else None


def _runs_on_gpu(points: torch.Tensor) -> str | None:
    with compilers.heard() as said:
        try:
            found = _keops_sum(points, points, 1.0, backend="GPU")
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            ran_out = OUT_OF_MEMORY.search(f"{words}\n{said()}")
            if ran_out:
                raise MemoryError(f"KeOps: {ran_out.group()}") from error
            return f"KeOps does not run on the GPU ({_first_line(words, said())}): {_remedy(said())}"
    expected = torch.exp(-torch.cdist(points.double(), points.double()).square() / 2).sum()
    if found.device != points.device or not torch.isclose(found, expected, rtol=1e-5):
        wrong = f"KeOps gives {found.item()} on {found.device} where {expected.item()} on {points.device} is right"
        return f"{wrong}: {_remedy('')}"
    return None


def _first_line(error: str, said: str) -> str:
    """Return what went wrong, in the words of a compiler or the driver, if there are any, else of the exception."""
    told = (line.strip() for line in said.splitlines() if re.search(r"\b(fatal )?error\b", line))
    return next(told, re.sub(r" \(error at line .*", "", error.splitlines()[0]))


def _remedy(said: str) -> str:
    """Return what to do about a GPU that KeOps does not run on."""
    reason = compilers.why_no_compiler() or compilers.why_no_cuda()
    if reason is None and re.search(r"lib(nvrtc|cudart)\.so\.\d+: cannot open", said):
        return f"what KeOps has compiled is of another CUDA: remove {host.keops_folder()}"
    return reason or "update the GPU's driver, or take a CUDA toolkit that is not newer than it"


def split_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """Estimate from even rows x0, y0 and odd rows x1, y1: four full matrices of a quarter of the pairs each.

    MMD2 = mean k(x0, x1) + mean k(y0, y1) - mean k(x0, y1) - mean k(x1, y0): O(n^2 d) time and memory.
    """

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gaussian_kernel_of_differences(a, b, sigma).mean(dtype=torch.float64)

    (x0, x1), (y0, y1) = ((e[::2], e[1::2]) for e in (e_x, e_y))
    return _sums_from_means(len(e_x), len(e_y), mean(x0, x1), mean(y0, y1), (mean(x0, y1) + mean(x1, y0)) / 2)


def linear_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """Estimate from pairs of neighbouring rows (Gretton et al. 2012, Lemma 14), rows in random order: O(n d).

    MMD2 = mean over i < m of k(x_2i, x_2i+1) + k(y_2i, y_2i+1) - k(x_2i, y_2i+1) - k(x_2i+1, y_2i), with
    m = min(n_x, n_y) / 2. The lemma takes independent draws, and the rows of a data set are often sorted, so a
    permutation, the same in every epoch, comes first.
    """
    pairs = min(len(e_x), len(e_y)) // 2

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.exp((a - b).square().sum(1) * (-1 / (2 * sigma))).mean(dtype=torch.float64)

    (x0, x1), (y0, y1) = (
        e[_random_order(len(e), e.device)[: 2 * pairs]].view(pairs, 2, -1).unbind(1) for e in (e_x, e_y)
    )
    return _sums_from_means(len(e_x), len(e_y), mean(x0, x1), mean(y0, y1), (mean(x0, y1) + mean(x1, y0)) / 2)


def _sums_from_means(
    n_x: int, n_y: int, mean_xx: torch.Tensor, mean_yy: torch.Tensor, mean_xy: torch.Tensor
) -> ThreeSums:
    return n_x * (n_x - 1) * mean_xx, n_y * (n_y - 1) * mean_yy, n_x * n_y * mean_xy


@functools.lru_cache(maxsize=2)
def _random_order(n: int, device: torch.device) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(device)
