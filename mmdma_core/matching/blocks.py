"""Distances from some cells to many, in blocks of rows that are formed beside each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from scipy.spatial.distance import cdist

_EPSILONS = 8  # of float64, what a few operations on coordinates round off
_BLOCK_ELEMENTS = 2**18  # distances that a thread holds at a time, 2 MiB, which a cache holds too

Found = TypeVar("Found")


def in_blocks(n_rows: int, n_columns: int, work: Callable[[slice], Found]) -> list[Found]:
    """What `work` finds for each block of rows, in order; SciPy and NumPy let other threads run meanwhile."""
    rows = max(1, _BLOCK_ELEMENTS // n_columns)
    slices = [slice(low, min(low + rows, n_rows)) for low in range(0, n_rows, rows)]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(work, slices))


def distances(e: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Euclidean, (m, n), from differences of coordinates; equal pairs of points get equal distances.

    SciPy's on the CPU, which lets two threads run beside each other and is the faster one for few components.
    """
    if e.device.type == "cpu":
        return torch.from_numpy(cdist(e.numpy(), others.numpy()))
    return torch.cdist(e, others, compute_mode="donot_use_mm_for_euclid_dist")


def rounding(*views: torch.Tensor) -> float:
    """Distances between points of these views are equal if they differ by no more: what float64 rounds off."""
    largest = max(float(view.abs().max()) for view in views)
    return _EPSILONS * torch.finfo(torch.float64).eps * largest
