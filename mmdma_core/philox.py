"""Standard normal numbers from a counter: number k of a stream depends on (key, k) alone.

Philox4x32-10 of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3"), written with PyTorch's integer
operations, so that any block of a stream can be drawn on any device, in any order.
"""

from __future__ import annotations

import math

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Four words of 32 random bits for each counter; words and counters (four each) are int64 in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = (
            c0 * _MULTIPLIERS[0],
            c2 * _MULTIPLIERS[1],
        )  # wrap in int64; the two halves are right all the same
        c0, c2 = (
            ((product >> 32) ^ word).bitwise_xor_(k).bitwise_and_(_MASK)
            for product, word, k in ((second, c1, k0), (first, c3, k1))
        )
        c1, c3 = second, first  # of which the lower halves count
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)


def normal_rows(rows: torch.Tensor, p: int, key: tuple[int, int]) -> torch.Tensor:
    """Rows `rows` (int64) of an endless (., p) matrix of independent N(0, 1) numbers, float32 on the rows' device.

    Row r and column j depend on (key, r, j) alone. Uniforms have 24 bits, so the tails end near 5.9 (Box-Muller).
    """
    quads = -(-p // 4)
    column = torch.arange(quads, device=rows.device)[None, :]
    row = rows[:, None] & _MASK
    words = philox((column, row, rows[:, None] >> 32, torch.zeros_like(row)), key)
    normals = []
    for u, v in ((words[0], words[1]), (words[2], words[3])):
        radius = (u >> 8).float().add_(0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
        angle = (v >> 8).float().mul_(2 * math.pi * 2.0**-24)
        normals += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(normals, dim=-1).reshape(len(rows), 4 * quads)[:, :p]
