"""Gaussian kernel sums from n x n matrices, with |x|^2 + |y|^2 - 2 x.y as squared distance: O(n^2) memory.

This is what the paper's variants without KeOps compute. Autograd keeps two n x n matrices of each of the three
kernels. In float32 the squared distance has an absolute error of about 1e-7 times the squared norms, so the points
are centred first, which changes no distance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mmdma_core.sums_types import ThreeSums

Kernel = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """See mmdma_core.sums_types."""
    centre = e_y.detach().mean(0)
    return sums_of(gaussian_kernel, e_x - centre, e_y - centre, sigma)


def sums_of(kernel: Kernel, e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """The three sums from the n x n matrices kernel(a, b, sigma)."""
    within = (_off_diagonal_sum(kernel(e, e, sigma)) for e in (e_x, e_y))
    return *within, _sum(kernel(e_x, e_y, sigma))


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor, sigma: float) -> torch.Tensor:
    """The matrix exp(-|a_i - b_j|^2 / (2 sigma)), a (n, d), b (m, d) -> (n, m)."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    distances = (squares - 2 * a @ b.T).clamp(min=0)
    return torch.exp(distances * (-1 / (2 * sigma)))


def _sum(kernel: torch.Tensor) -> torch.Tensor:
    # Rows in the kernel's own precision, their total in float64: the three means nearly cancel in MMD2.
    return kernel.sum(1).sum(dtype=torch.float64)


def _off_diagonal_sum(kernel: torch.Tensor) -> torch.Tensor:
    return _sum(kernel) - kernel.diagonal().sum(dtype=torch.float64)
