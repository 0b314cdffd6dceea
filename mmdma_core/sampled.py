"""Estimates of the Gaussian kernel sums from a part of the pairs: the mean over these times the number of all pairs.

Through the unbiased MMD2 (mmdma_core.terms) the number of pairs cancels, and the means alone are left.
"""

from __future__ import annotations

import functools

import torch

from mmdma_core.sums_types import ThreeSums
from mmdma_core.broadcast import gaussian_kernel


def split_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """From even rows x0, y0 and odd rows x1, y1: four full matrices of a quarter of the pairs each.

    MMD2 = mean k(x0, x1) + mean k(y0, y1) - mean k(x0, y1) - mean k(x1, y0): O(n^2 d) time and memory.
    """

    def mean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return gaussian_kernel(a, b, sigma).mean(dtype=torch.float64)

    (x0, x1), (y0, y1) = ((e[::2], e[1::2]) for e in (e_x, e_y))
    return _sums_from_means(len(e_x), len(e_y), mean(x0, x1), mean(y0, y1), (mean(x0, y1) + mean(x1, y0)) / 2)


def linear_sums(e_x: torch.Tensor, e_y: torch.Tensor, sigma: float) -> ThreeSums:
    """From pairs of neighbouring rows (Gretton et al. 2012, Lemma 14), rows in random order: O(n d).

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
