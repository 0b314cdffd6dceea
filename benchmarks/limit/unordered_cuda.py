"""Each unordered pair once on CUDA: a prototype, to be counted and timed beside the kernel that visits ordered pairs.

Half the exponentials, but what a pair gives to its column goes through shared memory into a third product on the tensor
cores, and to the pulls by atomic additions, M rows at once: the same run does not give the same last digits. It takes
compact blocks alone, and leaves out pairs within a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mmdma_core.fused.pair_kernels import _at, _float16_parts, _product_of_parts

_FAR = tl.constexpr(256.0)
_PROGRAMS = 4096


def unordered_sums(points: torch.Tensor, scale: float, M: int = 128, N: int = 64, num_warps: int = 4) -> torch.Tensor:
    """Pulls of points (n, d) float32 on each other, sums of k (u_b - u_a), and last the sum of k: (n, d + 1).

    u = scale x point, k(a, b) = 2^-|u_a - u_b|^2; pairs within M consecutive points are left out.
    """
    n, d = points.shape
    width = max(16, triton.next_power_of_2(d + 2))
    padded = torch.nn.functional.pad(points, (0, width - d))
    pulls = points.new_zeros(n + M, width)  # rows and columns that are not there add 0
    blocks = -(-n // M)
    segment = -(-n // (max(1, min(blocks, _PROGRAMS // blocks)) * M)) * M
    _unordered_pairs[blocks, -(-n // segment)](
        padded, pulls, scale, n, segment, d=d, D=width, M=M, N=N, num_warps=num_warps
    )
    return torch.cat([pulls[:n, :d], pulls[:n, d + 1 : d + 2]], 1)


@triton.jit
def _unordered_pairs(
    points,
    pulls,
    scale,
    n,
    segment,
    d: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One block of rows against the columns of a segment that come after it."""
    block, part = tl.program_id(0), tl.program_id(1)
    rows, dims = block * M + tl.arange(0, M), tl.arange(0, D)
    there = rows < n
    norm, one = (dims == d)[None, :], (dims == d + 1)[None, :]  # of the exponents; of the sums
    own = tl.arange(0, M)[:, None] * D + dims[None, :]
    a = tl.load(_at(points, block * M, D) + own, mask=there[:, None], other=0.0)
    centre = tl.sum(a, 0) / tl.sum(there.to(tl.float32), 0)
    a = tl.where(there[:, None], (a - centre[None, :]) * scale, 0.0)
    factor = tl.exp2(-tl.sum(a * a, 1))[:, None]  # k without it: 2^(2 u_a u_b - |u_b|^2)
    a_high, a_low = _float16_parts(tl.where(norm, 1.0, 2 * a))
    back_high, back_low = _float16_parts(tl.where(there[:, None], tl.where(one, 1.0, a) * factor, 0.0))
    drawn = tl.zeros((M, D), tl.float32)
    for j in range(tl.maximum(part * segment, (block + 1) * M), tl.minimum((part + 1) * segment, n), N):
        columns = j + tl.arange(0, N)
        known = (columns < n)[:, None]
        its = tl.arange(0, N)[:, None] * D + dims[None, :]
        b = tl.load(_at(points, j, D) + its, mask=known, other=1e18)
        b = tl.clamp((b - centre[None, :]) * scale, -_FAR, _FAR)
        square = tl.maximum(-tl.sum(b * b, 1), -60000.0)
        ones = tl.where(one, 1.0, tl.where(norm, square[:, None], b))
        b_high, b_low = _float16_parts(ones)
        kernel = tl.exp2(_product_of_parts(a_high, a_low, tl.trans(b_high), tl.trans(b_low)))
        kernel_high, kernel_low = _float16_parts(kernel)
        drawn += _product_of_parts(kernel_high, kernel_low, b_high, b_low)
        back = _product_of_parts(tl.trans(kernel_high), tl.trans(kernel_low), back_high, back_low)
        total = tl.sum(tl.where(one, back, 0.0), 1)[:, None]
        tl.atomic_add(_at(pulls, j, D) + its, back - total * b, sem="relaxed")
    total = tl.sum(tl.where(one, drawn, 0.0), 1)[:, None]
    drawn = tl.where(there[:, None], (drawn - total * a) * factor, 0.0)
    tl.atomic_add(_at(pulls, block * M, D) + own, drawn, sem="relaxed")
