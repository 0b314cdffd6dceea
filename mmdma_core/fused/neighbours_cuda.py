"""An order of points in which neighbours follow one another, with PyTorch on any device, without waiting for it."""

from __future__ import annotations

import math

import torch


def kd_order(points: torch.Tensor, leaf: int) -> torch.Tensor:
    """An order (n,) in which every `leaf` points (n, d) that follow one another lie together: a k-d tree.

    As mmdma_core.fused.neighbours, with sorts: the halves of n, n / 2, ... 2 leaf places are parted at the median of
    the coordinate that extends furthest. Places beyond n are filled with a point at infinity, which stays the last; a
    coordinate that is no number counts as infinite, or sorting would put it behind that.
    """
    n, d = points.shape
    size = leaf * 2 ** max(0, math.ceil(math.log2(n / leaf)))
    order = torch.arange(size, device=points.device).clamp_(max=n)
    points = torch.cat([points, points.new_full((1, d), math.inf)])
    points.masked_fill_(points.isnan(), math.inf)
    while size > leaf:
        parts = order.view(-1, size)
        at = points[parts]
        least = at.amin(1)
        widest = (at.masked_fill_(at.isinf(), -math.inf).amax(1) - least).argmax(1)
        along = points.view(-1)[parts * d + widest[:, None]]
        order = parts.gather(1, along.argsort(dim=1, stable=True)).view(-1)
        size //= 2
    return order[:n]
