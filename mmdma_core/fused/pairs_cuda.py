"""MMD2 and its gradient in one pass over the pairs of points, on CUDA, with Triton.

With u = sqrt(log2(e) / (2 sigma)) (point - centre), k(a, b) = 2^-|u_a - u_b|^2 is one exp2. A program takes a block of
rows and a segment of the columns of both clouds, and adds up k and k (u_b - u_a) for its rows: every ordered pair is
visited once, without atomics, so that the same run gives the same numbers. Sums run in float32 over
_PARTIAL_COLUMNS columns, beyond that in float64. A point never meets itself.

The centre is the mean of the block, so only its radius counts, not how far it lies from the origin:

- A compact block (radius^2 at most _COMPACT) takes |u_a - u_b|^2 = |u_a|^2 + |u_b|^2 - 2 u_a.u_b and the pulls on the
  tensor cores, each float32 as a sum of two float16 parts (22 bits; three products, the fourth is below rounding). The
  error of the exponent is about 2^-21 radius |u_b|. Coordinates beyond _FAR are cut off there: such a point has k = 0
  with every point of the block. k is scaled by 2^15, where float16 is densest; that is enough, because within a
  compact block k is at least 2^-(4 _COMPACT).
- Any other block takes squared differences of coordinates, and its pulls as tf32x3 products, which have float32's
  range.

Large clouds are sorted along a space-filling curve (`morton_order`) first, so that nearly all blocks are compact.

Operations for an ordered pair and d <= 16: on the tensor cores 2 x 3 x 32 float16 flops; one exp2; and about 6
instructions (subtract a norm, split k in two parts, sum it).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from mmdma_core.fused.run import MMD
from mmdma_core.objective.terms import squared_mmd

COMPACT = 2.0
_COMPACT = tl.constexpr(COMPACT)
_FAR = tl.constexpr(256.0)
_ABSENT = tl.constexpr(1e18)  # coordinates of a column that is not there: its k is 0
_SHIFT = tl.constexpr(15.0)
_PARTIAL_COLUMNS = tl.constexpr(1024)
_PROGRAMS = 1024  # enough for every multiprocessor to have several
_CURVE_BITS = 10


@triton.jit
def _float16_parts(values):
    """A float32 as the sum of two float16."""
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _add_product_of_parts(a_high, a_low, b_high, b_low, total):
    """total + (a_high + a_low) (b_high + b_low) without the product of the low parts."""
    total = tl.dot(a_low, b_high, total)
    total = tl.dot(a_high, b_low, total)
    return tl.dot(a_high, b_high, total)


@triton.jit
def _sum_over_columns(
    points,
    scale,
    rows,
    row_there,
    a,
    centre,
    first,
    begin,
    end,
    d: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    compact: tl.constexpr,
):
    """Sums of k (M) and of k u_b (M, D) over columns begin..end of the cloud from `first` on, float64."""
    dims = tl.arange(0, D)
    total, pull = tl.zeros((M,), tl.float64), tl.zeros((M, D), tl.float64)
    shift = _SHIFT if compact else 0.0
    if compact:
        norms = shift - tl.sum(a * a, 1)
        a_high, a_low = _float16_parts(2 * a)
    for low in range(begin, end, _PARTIAL_COLUMNS):
        some, drawn = tl.zeros((M,), tl.float32), tl.zeros((M, D), tl.float32)
        for j in range(low, tl.minimum(low + _PARTIAL_COLUMNS, end), N):
            columns = j + tl.arange(0, N)
            there = columns < end
            columns += first
            b = tl.load(points + columns[:, None] * D + dims[None, :], mask=there[:, None], other=_ABSENT)
            b = (b - centre[None, :]) * scale
            if compact:
                b = tl.clamp(b, -_FAR, _FAR)
                b_high, b_low = _float16_parts(b)
                exponents = norms[:, None] - tl.sum(b * b, 1)[None, :]
                exponents = _add_product_of_parts(a_high, a_low, tl.trans(b_high), tl.trans(b_low), exponents)
            else:
                exponents = tl.zeros((M, N), tl.float32)
                for k in range(d):
                    of_rows = tl.load(points + rows * D + k, mask=row_there, other=0.0)
                    of_columns = tl.load(points + columns * D + k, mask=there, other=_ABSENT)
                    difference = of_rows[:, None] - of_columns[None, :]
                    exponents += difference * difference
                exponents *= -scale * scale
            kernel = tl.exp2(exponents)
            if not compact:
                kernel = tl.where(rows[:, None] == columns[None, :], 0.0, kernel)
            some += tl.sum(kernel, 1)
            if compact:
                kernel_high, kernel_low = _float16_parts(kernel)
                drawn = _add_product_of_parts(kernel_high, kernel_low, b_high, b_low, drawn)
            else:
                drawn = tl.dot(kernel, tl.where(there[:, None], b, 0.0), drawn, input_precision="tf32x3")
        total += some.to(tl.float64)
        pull += drawn.to(tl.float64)
    if compact:
        return total * 2.0**-15, pull * 2.0**-15
    else:
        return total, pull


@triton.jit
def pair_sums(
    points,
    scale,
    sums,
    pulls,
    n_x,
    n_y,
    blocks_x,
    segment,
    weight_x,
    weight_y,
    weight_across,
    d: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One block of rows against one segment of the columns of both clouds.

    points (n_x + n_y, D) float32: coordinates, columns d.. are 0
    scale  sqrt(log2(e) / (2 sigma))
    sums   (segments, blocks, 2) float64: the sums of k within the rows' cloud and across
    pulls  (segments, n_x + n_y, d) float32: weighted sums of k (u_b - u_a)
    """
    block, part, blocks = tl.program_id(0), tl.program_id(1), tl.num_programs(0)
    of_x = block < blocks_x
    own_first = tl.where(of_x, 0, n_x)
    own, other = tl.where(of_x, n_x, n_y), tl.where(of_x, n_y, n_x)
    own_block = tl.where(of_x, block, block - blocks_x) * M
    places = own_block + tl.arange(0, M)
    there = places < own
    rows = own_first + places
    dims = tl.arange(0, D)
    a = tl.load(points + rows[:, None] * D + dims[None, :], mask=there[:, None], other=0.0)
    centre = tl.sum(a, 0) / tl.sum(there.to(tl.float32), 0)
    a = tl.where(there[:, None], (a - centre[None, :]) * scale, 0.0)
    compact = tl.max(tl.sum(a * a, 1), 0) <= _COMPACT
    pull = tl.zeros((M, D), tl.float64)
    within, across = tl.zeros((M,), tl.float64), tl.zeros((M,), tl.float64)
    begin = part * segment
    # The own cloud before the rows, the rows themselves, the own cloud after them, the other cloud.
    for stretch in range(4):
        first = tl.where(stretch < 3, own_first, tl.where(of_x, n_x, 0))
        low = tl.where(stretch == 1, own_block, tl.where(stretch == 2, own_block + M, 0))
        high = tl.where(
            stretch == 0, own_block, tl.where(stretch == 1, own_block + M, tl.where(stretch == 2, own, other))
        )
        low, high = (
            tl.maximum(low, begin),
            tl.minimum(tl.minimum(high, begin + segment), tl.where(stretch < 3, own, other)),
        )
        if compact & (stretch != 1):
            total, drawn = _sum_over_columns(points, scale, rows, there, a, centre, first, low, high, d, D, M, N, True)
        else:
            total, drawn = _sum_over_columns(points, scale, rows, there, a, centre, first, low, high, d, D, M, N, False)
        weight = tl.where(stretch < 3, tl.where(of_x, weight_x, weight_y), weight_across)
        pull += weight * (drawn - total[:, None] * a.to(tl.float64))
        total = tl.where(there, total, 0.0)
        within += tl.where(stretch < 3, total, 0.0)
        across += tl.where(stretch < 3, 0.0, total)
    tl.store(sums + (part * blocks + block) * 2, tl.sum(within, 0))
    tl.store(sums + (part * blocks + block) * 2 + 1, tl.sum(across, 0))
    out = pulls + (part * (n_x + n_y) + rows[:, None]).to(tl.int64) * d + dims[None, :]
    tl.store(out, pull.to(tl.float32), mask=there[:, None] & (dims < d)[None, :])


def tile(d: int) -> dict[str, int]:
    """The compile-time sizes for d <= 64 dimensions: D, M rows and N columns of a tile, warps."""
    padded = max(16, triton.next_power_of_2(d))
    return {"D": padded, "M": 128 if padded <= 32 else 64, "N": 64, "num_warps": 4}


class FusedMMD(MMD):
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32; O((n_x + n_y) d) bytes.

    sort  order the points along a space-filling curve first, which pays for large clouds
    """

    def __init__(self, n_x: int, n_y: int, d: int, sigma: float, unbiased: bool, sort: bool) -> None:
        self.n_x, self.n_y, self.d, self.unbiased, self.sort = n_x, n_y, d, unbiased, sort
        self._tile = tile(d)
        rows, columns = self._tile["M"], self._tile["N"]
        self._blocks_x, blocks_y = -(-n_x // rows), -(-n_y // rows)
        self._blocks = self._blocks_x + blocks_y
        segments = max(1, min(_PROGRAMS // self._blocks, max(n_x, n_y) // columns))
        self._segment = -(-max(n_x, n_y) // (segments * columns)) * columns
        self._segments = -(-max(n_x, n_y) // self._segment)
        self._scale = math.sqrt(0.5 * math.log2(math.e) / sigma)
        less = 1 if unbiased else 0  # cells that a cell is not paired with
        unit = 2 / (sigma * self._scale)
        self._weights = unit / (n_x * (n_x - less)), unit / (n_y * (n_y - less)), -unit / (n_x * n_y)

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> torch.Tensor:
        """MMD2, a float64 scalar on the device; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        if not self.sort:
            mmd, gradient_x, gradient_y = self._sum_pairs(e_x, e_y)
            out_x.copy_(gradient_x)
            out_y.copy_(gradient_y)
            return mmd
        order_x, order_y = morton_order(e_x), morton_order(e_y)
        mmd, gradient_x, gradient_y = self._sum_pairs(e_x[order_x], e_y[order_y])
        out_x.index_copy_(0, order_x, gradient_x)
        out_y.index_copy_(0, order_y, gradient_y)
        return mmd

    def _sum_pairs(self, e_x: torch.Tensor, e_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n_x, n_y = self.n_x, self.n_y
        points = e_x.new_zeros(n_x + n_y, self._tile["D"])
        points[:n_x, : self.d], points[n_x:, : self.d] = e_x, e_y
        sums = e_x.new_empty(self._segments, self._blocks, 2, dtype=torch.float64)
        pulls = e_x.new_empty(self._segments, n_x + n_y, self.d)
        pair_sums[self._blocks, self._segments](
            points,
            self._scale,
            sums,
            pulls,
            n_x,
            n_y,
            self._blocks_x,
            self._segment,
            *self._weights,
            d=self.d,
            **self._tile,
        )
        of_blocks, gradient = sums.sum(0), pulls.sum(0)
        of_x, of_y = of_blocks[: self._blocks_x], of_blocks[self._blocks_x :]
        mmd = squared_mmd(of_x[:, 0].sum(), of_y[:, 0].sum(), of_x[:, 1].sum(), n_x, n_y, self.unbiased)
        if not self.unbiased:
            gradient *= mmd > 0  # clipped: no gradient
        return mmd, gradient[:n_x], gradient[n_x:]


def morton_order(points: torch.Tensor) -> torch.Tensor:
    """The order of points (n, d) along a Morton curve through their three leading principal directions."""
    centred = points - points.mean(0)
    directions = torch.linalg.eigh((centred.T @ centred).cpu().double())[1].flip(1)[:, :3]
    at = centred @ directions.to(centred)
    low = at.amin(0)
    places = ((at - low) * ((2**_CURVE_BITS - 1) / (at - low).amax().clamp(min=1e-30))).long()
    curve = torch.zeros_like(places[:, 0])
    for bit in range(_CURVE_BITS):
        for axis in range(places.shape[1]):
            curve |= ((places[:, axis] >> bit) & 1) << (bit * places.shape[1] + axis)
    return torch.argsort(curve, stable=True)
