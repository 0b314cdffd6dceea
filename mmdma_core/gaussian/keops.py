"""Gaussian kernel sums as symbolic KeOps reductions: O(n) memory, 3 forward and 6 gradient reductions per epoch.

KeOps (Charlier et al. 2021) needs a C++ compiler at run time and compiles each formula once per machine. On CUDA
the reductions name their backend, so that KeOps can never fall back to the CPU unnoticed.
"""

from __future__ import annotations

import functools

import torch

from mmdma_core.gaussian import ThreeSums


def sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """See mmdma_core.gaussian."""
    # A point's distance to itself is exactly 0 here, so the diagonal of a view sums to its n.
    sum_xx = _sum(e_x, e_x, sigma) - len(e_x)
    sum_yy = _sum(e_y, e_y, sigma) - len(e_y)
    return sum_xx, sum_yy, _sum(e_x, e_y, sigma)


def _sum(a: torch.Tensor, b: torch.Tensor, sigma: float, backend: str | None = None) -> torch.Tensor:
    from pykeops.torch import LazyTensor

    scale = (0.5 / sigma) ** 0.5
    a_i = LazyTensor((a * scale)[:, None, :])
    b_j = LazyTensor((b * scale)[None, :, :])
    kernel = (-((a_i - b_j) ** 2).sum(2)).exp()
    backend = backend or ("GPU" if a.is_cuda else "CPU")
    return kernel.sum(1, backend=backend).sum(dtype=torch.float64)


@functools.cache
def works_on(device: torch.device) -> str | None:
    """None if KeOps runs on the device, else the reason why it does not.

    On CUDA a small reduction is run on the GPU and compared with PyTorch: KeOps switches to the CPU in silence when
    it finds no nvrtc or no cudart.
    """
    return _runs_on_gpu(torch.arange(12.0, device=device).reshape(4, 3) / 10) if device.type == "cuda" else None


def _runs_on_gpu(points: torch.Tensor) -> str | None:
    try:
        found = _sum(points, points, 1.0, backend="GPU")
    except torch.OutOfMemoryError:
        raise
    except (ImportError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        return f"KeOps does not run on the GPU ({reason}): it needs CUDA_PATH, and nvrtc and cudart on LD_LIBRARY_PATH"
    expected = torch.exp(-torch.cdist(points.double(), points.double()).square() / 2).sum()
    if found.device != points.device or not torch.isclose(found, expected, rtol=1e-5):
        return f"KeOps gives {found.item()} on {found.device} where {expected.item()} on {points.device} is right"
    return None
