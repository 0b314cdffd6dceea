"""Gaussian kernel sums as symbolic KeOps reductions: O(n) memory, 3 forward and 6 gradient reductions per epoch.

KeOps (Charlier et al. 2021) needs a C++ compiler at run time and compiles each formula once per machine. On CUDA
the reductions name their backend, so that KeOps can never fall back to the CPU unnoticed.
"""

from __future__ import annotations

import functools
import importlib
import io
import re
import sys
from contextlib import redirect_stdout
from types import ModuleType

import torch

from mmdma_core import compilers, compiler, toolkit
from mmdma_core.errors import OUT_OF_MEMORY
from mmdma_core.sums_types import ThreeSums

_NO_CUDA = re.compile(r"^\[KeOps\] Warning : .*\b(cuda|gpus?)\b", re.IGNORECASE)


def sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """See mmdma_core.sums_types."""
    # A point's distance to itself is exactly 0 here, so the diagonal of a view sums to its n.
    sum_xx = _sum(e_x, e_x, sigma) - len(e_x)
    sum_yy = _sum(e_y, e_y, sigma) - len(e_y)
    return sum_xx, sum_yy, _sum(e_x, e_y, sigma)


def load(module: str, gpu: bool = False) -> ModuleType:
    """Import a module that imports KeOps.

    Without CUDA KeOps warns on stdout, in every process that imports it. That matters where a GPU is asked for, and is
    left out elsewhere; on a GPU `works_on` says what is missing, too.
    """
    if gpu or "keopscore" in sys.modules:
        return importlib.import_module(module)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            return importlib.import_module(module)
    finally:
        sys.stdout.write("".join(line for line in said.getvalue().splitlines(True) if not _NO_CUDA.search(line)))


def _sum(a: torch.Tensor, b: torch.Tensor, sigma: float, backend: str | None = None) -> torch.Tensor:
    backend = backend or ("GPU" if a.is_cuda else "CPU")
    if backend == "GPU":
        toolkit.prepare()
    LazyTensor = load("pykeops.torch", backend == "GPU").LazyTensor
    scale = (0.5 / sigma) ** 0.5
    a_i = LazyTensor((a * scale)[:, None, :])
    b_j = LazyTensor((b * scale)[None, :, :])
    kernel = (-((a_i - b_j) ** 2).sum(2)).exp()
    return kernel.sum(1, backend=backend).sum(dtype=torch.float64)


@functools.cache
def works_on(device: torch.device) -> str | None:
    """None if KeOps runs on the device, else the reason why it does not, and what to install.

    On CUDA a small reduction is run on the GPU and compared with PyTorch: KeOps switches to the CPU in silence when
    it finds no nvrtc. Raises MemoryError where the GPU's memory does not suffice for that.
    """
    return _runs_on_gpu(torch.arange(12.0, device=device).reshape(4, 3) / 10) if device.type == "cuda" else None


def _runs_on_gpu(points: torch.Tensor) -> str | None:
    with compiler.heard() as said:
        try:
            found = _sum(points, points, 1.0, backend="GPU")
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
    """What went wrong: in the words of a compiler or of the driver, if they said something, else of the exception."""
    told = (line.strip() for line in said.splitlines() if re.search(r"\b(fatal )?error\b", line))
    return next(told, re.sub(r" \(error at line .*", "", error.splitlines()[0]))


def _remedy(said: str) -> str:
    """What to do about a GPU that KeOps does not run on."""
    reason = compiler.why_not() or toolkit.why_not()
    if reason is None and re.search(r"lib(nvrtc|cudart)\.so\.\d+: cannot open", said):
        return f"what KeOps has compiled is of another CUDA: remove {compilers.keops_folder()}"
    return reason or "update the GPU's driver, or take a CUDA toolkit that is not newer than it"
