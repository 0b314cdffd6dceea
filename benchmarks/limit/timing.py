"""Median times, rates of operations, and points for a pass over pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def points(n: int, d: int, device: str = "cpu", spread: float = 1.0) -> list[torch.Tensor]:
    """Two normal clouds (n, d) of the mean squared norm `spread`, and room for their gradients."""
    generator = torch.Generator().manual_seed(0)
    clouds = [(torch.randn(n, d, generator=generator) * (spread / d) ** 0.5).to(device) for _ in "xy"]
    return clouds + [torch.empty_like(cloud) for cloud in clouds]


def rate(work: Callable[[], int]) -> float:
    """Operations a second of work(), which returns how many it did."""
    return work() / seconds(work)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Median of 7 calls, after one that compiles."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work(*arguments)
    taken = []
    for _ in range(7):
        wait()
        begin = time.perf_counter()
        work(*arguments)
        wait()
        taken.append(time.perf_counter() - begin)
    return median(taken)
