"""Gaussian kernel sums from tensors of all coordinate differences, (n, d, n): O(n^2 d) memory.

This is what the two original implementations of MMD-MA compute, three times per epoch. Differences lose nothing where
the norms are large.
"""

from __future__ import annotations

import functools

import torch

from mmdma_core import dense


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor, sigma: float) -> torch.Tensor:
    """The matrix exp(-|a_i - b_j|^2 / (2 sigma)), a (n, d), b (m, d) -> (n, m)."""
    differences = a[:, :, None] - b.T[None, :, :]
    return torch.exp(differences.square().sum(1) * (-1 / (2 * sigma)))


sums = functools.partial(dense.sums_of, gaussian_kernel)
