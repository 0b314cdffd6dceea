"""The Triton kernels of mmdma_core.fused.pairs_cuda.

With u = sqrt(log2(e) / (2 sigma)) (point - centre), k(a, b) = 2^-|u_a - u_b|^2 is one exp2. A program takes a block of
M rows and a segment of the columns of both clouds, and adds up k and k (u_b - u_a) for its rows: every ordered pair is
visited once, without atomics, so that the same run gives the same numbers. A point never meets itself.

Sums run in float32 over a group of GROUP columns. Beyond that they are pairs of float32, a sum and its rounding
error, which together have as many digits as float64: GPUs that are not for data centres do 1 operation in float64
where they do 64 in float32. A program converts one number of each cloud to float64, its sum of k.

The centre is the mean of the block, so only its radius counts, not how far it lies from the origin:

- A compact block (radius^2 at most COMPACT) takes its products on the tensor cores, each float32 as a sum of two
  float16 parts (22 bits; three products, the fourth is below rounding). One product of the rows (2 u_a, 1, -|u_a|^2)
  with the columns (u_b, -|u_b|^2, 1) is the whole exponent, and one of k with these columns gives the pulls and, from
  the column of ones, the sum of k. Tensor cores may truncate, so every product begins at 0. The error of the exponent
  is about 2^-21 radius |u_b|. Coordinates beyond _FAR are cut off: such a point has k = 0 with every point of the
  block. k is scaled by 2^15, where float16 is densest; less than 2^-40 counts as 0.
- Any other block takes squared differences of coordinates, and its pulls as tf32x3 products, which have float32's
  range. This is a kernel of its own, so that neither pays for the other's registers.

A group of columns is left out where the boxes around its blocks lie so far from the rows' box that k < 2^-_LEFT_OUT
for every pair: of a mean of at least 2^-24 that is less than float32's rounding. Where a mean is smaller, the second
kernel runs once more for all blocks, and leaves out k < 2^-_LEFT_OUT_AGAIN; whether it does is read on the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

COMPACT = 16.0
_COMPACT = tl.constexpr(COMPACT)
_FAR = tl.constexpr(256.0)
_FARTHEST = tl.constexpr(60000.0)  # a squared norm that float16 holds, and k = 0
_ABSENT = tl.constexpr(1e18)  # coordinates of a column that is not there: its k is 0
_SCALE_OF_K = tl.constexpr(2.0**15)
_LEFT_OUT = tl.constexpr(48.0)
_LEFT_OUT_AGAIN = tl.constexpr(100.0)
_LEAST_MEAN = tl.constexpr(2.0**-24)
_ANY = ("blocks_x",)  # one program for all values: Triton would ask whether 16 divides them


@triton.jit
def _at(start, place, width: tl.constexpr):
    """Return where row `place` begins: its offset may exceed 2^31, which those from there on, in int32, do not."""
    return start + tl.cast(place, tl.int64) * width


@triton.jit(do_not_specialize=_ANY)
def arrange(
    e_x,
    e_y,
    order_x,
    order_y,
    points,
    blocks,
    radii,
    scale,
    n_x,
    n_y,
    blocks_x,
    d: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
):
    """Copy a block of points into its place, and form its box, centre and radius.

    e_x, e_y          (n, d) float32
    order_x, order_y  (n) int64: which point comes where
    points            (n_x + n_y, D) float32: coordinates, columns d.. are 0
    blocks            (blocks, 3, D) float32: the least and the greatest coordinates, and the centre
    radii             (blocks) float32: the squared radius, in units of u
    """
    block = tl.program_id(0)
    of_x = block < blocks_x
    places = tl.where(of_x, block, block - blocks_x) * M + tl.arange(0, M)
    there = places < tl.where(of_x, n_x, n_y)
    there_x, there_y = there & of_x, there & (block >= blocks_x)
    dims = tl.arange(0, D)
    from_x, from_y = tl.load(order_x + places, mask=there_x, other=0), tl.load(order_y + places, mask=there_y, other=0)
    known = (dims < d)[None, :]
    a = tl.load(e_x + from_x[:, None] * d + dims[None, :], mask=there_x[:, None] & known, other=0.0)
    a += tl.load(e_y + from_y[:, None] * d + dims[None, :], mask=there_y[:, None] & known, other=0.0)
    out = _at(points, tl.where(of_x, block, block - blocks_x) * M + tl.where(of_x, 0, n_x), D)
    tl.store(out + tl.arange(0, M)[:, None] * D + dims[None, :], a, mask=there[:, None])
    centre = tl.sum(a, 0) / tl.sum(there.to(tl.float32), 0)
    box = _at(blocks, block, 3 * D) + dims
    tl.store(box, tl.min(tl.where(there[:, None], a, _ABSENT), 0))
    tl.store(box + D, tl.max(tl.where(there[:, None], a, -_ABSENT), 0))
    tl.store(box + 2 * D, centre)
    u = tl.where(there[:, None], (a - centre[None, :]) * scale, 0.0)
    tl.store(radii + block, tl.max(tl.sum(u * u, 1), 0))


@triton.jit
def _rows(points, blocks, scale, block, n_x, n_y, blocks_x, D: tl.constexpr, M: tl.constexpr):
    """Return begin and size of a block's cloud and of the other one, its first row in its cloud, its rows, u, centre.

    Rows beyond the cloud lie at the centre.
    """
    of_x = block < blocks_x
    first, end = tl.where(of_x, 0, n_x), tl.where(of_x, n_x, n_x + n_y)
    other, other_end = tl.where(of_x, n_x, 0), tl.where(of_x, n_x + n_y, n_x)
    low = tl.where(of_x, block, block - blocks_x) * M
    rows = first + low + tl.arange(0, M)
    dims = tl.arange(0, D)
    centre = tl.load(_at(blocks, block, 3 * D) + 2 * D + dims)
    a = _at(points, first + low, D) + tl.arange(0, M)[:, None] * D + dims[None, :]
    a = tl.load(a, mask=(rows < end)[:, None], other=0.0)
    a = tl.where((rows < end)[:, None], (a - centre[None, :]) * scale, 0.0)
    return first, end - first, other, other_end - other, low, rows, a, centre


@triton.jit
def _is_near(
    blocks,
    block,
    first,
    low,
    end,
    scale,
    left_out,
    D: tl.constexpr,
    M: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Tell whether the block's box and one of columns low..end, GROUP at most, leave room for k >= 2^-left_out.

    first  the block with which the columns' cloud begins
    """
    dims = tl.arange(0, D)
    box = _at(blocks, block, 3 * D) + dims
    least, greatest = tl.load(box), tl.load(box + D)
    others = tl.arange(0, GROUP // M)
    there = ((low // M + others) * M < end)[:, None]
    boxes = _at(blocks, first + low // M, 3 * D) + others[:, None] * (3 * D) + dims[None, :]
    of_least, of_greatest = tl.load(boxes, mask=there, other=_ABSENT), tl.load(boxes + D, mask=there, other=_ABSENT)
    gap = tl.maximum(tl.maximum(of_least - greatest[None, :], least[None, :] - of_greatest), 0.0) * scale
    return tl.min(tl.sum(gap * gap, 1), 0) < left_out


@triton.jit
def _float16_parts(values):
    """Split float32 into the sum of two float16."""
    high = values.to(tl.float16)
    return high, (values - high.to(tl.float32)).to(tl.float16)


@triton.jit
def _product_of_parts(a_high, a_low, b_high, b_low):
    """Return (a_high + a_low) (b_high + b_low) without the product of the low parts."""
    total = tl.dot(a_low, b_high)
    total = tl.dot(a_high, b_low, total)
    return tl.dot(a_high, b_high, total)


@triton.jit
def _columns(points, there, centre, scale, D: tl.constexpr):
    """Return u_b (N, D) of the points that follow one another from `points` on."""
    dims = tl.arange(0, D)
    b = tl.load(points + tl.arange(0, there.shape[0])[:, None] * D + dims[None, :], mask=there[:, None], other=_ABSENT)
    return (b - centre[None, :]) * scale


@triton.jit
def _compact_tile(
    points,
    rows,
    columns,
    there,
    centre,
    scale,
    a_high,
    a_low,
    d: tl.constexpr,
    D: tl.constexpr,
    own: tl.constexpr,
):
    """Return the sums of 2^15 k (u_b, -|u_b|^2, 1) over N columns, (M, D); own: a row may be one of the columns."""
    dims = tl.arange(0, D)
    b = tl.clamp(_columns(points, there, centre, scale, D), -_FAR, _FAR)
    norms = tl.minimum(tl.sum(b * b, 1), _FARTHEST)
    b = tl.where((dims == d)[None, :], -norms[:, None], b)
    b = tl.where((dims == d + 1)[None, :], 1.0, b)
    b_high, b_low = _float16_parts(b)
    kernel = tl.exp2(_product_of_parts(a_high, a_low, tl.trans(b_high), tl.trans(b_low))) * _SCALE_OF_K
    if own:
        kernel = tl.where(rows[:, None] == columns[None, :], 0.0, kernel)
    kernel_high, kernel_low = _float16_parts(kernel)
    return _product_of_parts(kernel_high, kernel_low, b_high, b_low)


@triton.jit
def _plus(total, lost, more):
    """Return total + more, and lost + the rounding error of that sum, exactly (Knuth 1969, two-sum)."""
    new = total + more
    added = new - total
    return new, lost + ((total - (new - added)) + (more - added))


@triton.jit
def _plus_parts(total, lost, more, more_lost):
    return _plus(total, lost + more_lost, more)


@triton.jit
def _store(of_sum, out, adds, there, total, total_lost, drawn, drawn_lost, a, weight, unit, d: tl.constexpr):
    """Store a program's sums of a block with the points of one cloud; adds: to the pulls that are there.

    of_sum, out  where the sum of k and the pulls of the block's first row lie
    total        sums of k (M), and `drawn`, those of k u_b (M, D), in units of `unit`, each with its rounding error
    """
    dims = tl.arange(0, a.shape[1])
    pull = tl.fma(-total[:, None], a, drawn) + (drawn_lost - total_lost[:, None] * a)
    out += tl.arange(0, a.shape[0])[:, None] * d + dims[None, :]
    known = there[:, None] & (dims < d)[None, :]
    before = tl.load(out, mask=known & adds, other=0.0)
    tl.store(out, before + (weight * unit) * pull, mask=known)
    total, lost = tl.reduce((tl.where(there, total, 0.0), tl.where(there, total_lost, 0.0)), 0, _plus_parts)
    tl.store(of_sum, (total * unit).to(tl.float64) + lost * unit)


@triton.jit(do_not_specialize=_ANY)
def compact_blocks(
    points,
    blocks,
    radii,
    scale,
    sums,
    pulls,
    rank,
    ranks,
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
    GROUP: tl.constexpr,
):
    """Sum over pairs of a compact block of rows and one segment of both clouds' columns; leave any other block out.

    points, blocks, radii  of `arrange`
    scale                  sqrt(log2(e) / (2 sigma))
    sums                   (segments, blocks, 2) float64: the sums of k within the rows' cloud and across
    pulls                  (segments, n_x + n_y, d) float32: weighted sums of k (u_b - u_a)
    rank, ranks            which blocks a launch takes: those that leave `rank` when divided by `ranks`
    """
    block = rank + ranks * tl.program_id(0)
    if tl.load(radii + block) <= _COMPACT:
        first, own, other, others, low, rows, a, centre = _rows(points, blocks, scale, block, n_x, n_y, blocks_x, D, M)
        dims = tl.arange(0, D)
        norms = tl.sum(a * a, 1)
        a_high, a_low = _float16_parts(
            tl.where((dims == d)[None, :], 1.0, tl.where((dims == d + 1)[None, :], -norms[:, None], 2 * a))
        )
        begin = tl.program_id(1) * segment
        end = begin + segment
        weight = tl.where(block < blocks_x, weight_x, weight_y)
        count = blocks_x + tl.cdiv(n_y, M)
        drawn, lost = tl.zeros((M, D), tl.float32), tl.zeros((M, D), tl.float32)
        if (low >= begin) & (low < end):
            for j in range(low, low + M, N):
                columns = j + tl.arange(0, N)
                there, its_points = columns < own, _at(points, first + j, D)
                drawn += _compact_tile(
                    its_points, rows, first + columns, there, centre, scale, a_high, a_low, d, D, True
                )
        # The own cloud before the rows, and after them; the other cloud.
        for stretch in range(3):
            its = tl.where(stretch == 2, other, first)
            its_block = tl.where(its == 0, 0, blocks_x)
            from_column = tl.maximum(begin, tl.where(stretch == 1, low + M, 0))
            to_column = tl.minimum(end, tl.where(stretch == 0, low, tl.where(stretch == 1, own, others)))
            for at in range(from_column, to_column, GROUP):
                last = tl.minimum(at + GROUP, to_column)
                if _is_near(blocks, block, its_block, at, last, scale, _LEFT_OUT, D, M, GROUP):
                    more = tl.zeros((M, D), tl.float32)
                    for j in range(at, last, N):
                        columns = j + tl.arange(0, N)
                        there, its_points = columns < last, _at(points, its + j, D)
                        more += _compact_tile(
                            its_points, rows, columns, there, centre, scale, a_high, a_low, d, D, False
                        )
                    drawn, lost = _plus(drawn, lost, more)
            if stretch > 0:  # that was all of a cloud
                ones = (dims == d + 1)[None, :]
                total, total_lost = tl.sum(tl.where(ones, drawn, 0.0), 1), tl.sum(tl.where(ones, lost, 0.0), 1)
                its_weight = tl.where(stretch == 2, weight_across, weight)
                of_sum = sums + (tl.program_id(1) * count + block) * 2 + stretch - 1
                out = _at(pulls, tl.program_id(1).to(tl.int64) * (n_x + n_y) + first + low, d)
                there = rows < first + own
                _store(
                    of_sum, out, stretch == 2, there, total, total_lost, drawn, lost, a, its_weight, 1 / _SCALE_OF_K, d
                )
                drawn, lost = tl.zeros((M, D), tl.float32), tl.zeros((M, D), tl.float32)


@triton.jit
def _wide_tile(
    of_rows,
    of_columns,
    rows,
    rows_there,
    columns,
    there,
    centre,
    scale,
    drawn,
    d: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Return the sums of k (M) over N columns, and those of k u_b (M, D) added to `drawn`."""
    squares = tl.zeros((M, N), tl.float32)
    for k in range(d):
        of_row = tl.load(of_rows + tl.arange(0, M) * D + k, mask=rows_there, other=0.0)
        of_column = tl.load(of_columns + tl.arange(0, N) * D + k, mask=there, other=_ABSENT)
        difference = of_row[:, None] - of_column[None, :]
        squares += difference * difference
    kernel = tl.where(rows[:, None] == columns[None, :], 0.0, tl.exp2(squares * (-scale * scale)))
    b = tl.where(there[:, None], _columns(of_columns, there, centre, scale, D), 0.0)
    return tl.sum(kernel, 1), tl.dot(kernel, b, drawn, input_precision="tf32x3")


@triton.jit(do_not_specialize=_ANY)
def wide_blocks(
    points,
    blocks,
    radii,
    least_mean,
    scale,
    sums,
    pulls,
    rank,
    ranks,
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
    GROUP: tl.constexpr,
    again: tl.constexpr,
):
    """Sum as `compact_blocks`, for the other blocks; `again`: for every block, if one of the means is too small.

    least_mean  float32: the smallest of the means of k within x, within y and across; read if `again`
    """
    block = rank + ranks * tl.program_id(0)
    compact = tl.load(radii + block) <= _COMPACT  # a radius that is not a number is not
    computes = tl.load(least_mean) < _LEAST_MEAN if again else compact == 0
    if computes:
        first, own, other, others, low, rows, a, centre = _rows(points, blocks, scale, block, n_x, n_y, blocks_x, D, M)
        there = rows < first + own
        begin = tl.program_id(1) * segment
        end = begin + segment
        left_out = _LEFT_OUT_AGAIN if again else _LEFT_OUT
        of_rows = _at(points, first + low, D)
        count = blocks_x + tl.cdiv(n_y, M)
        for cloud in range(2):  # the own one and the other
            its = tl.where(cloud == 0, first, other)
            its_block = tl.where(its == 0, 0, blocks_x)
            to_column = tl.minimum(end, tl.where(cloud == 0, own, others))
            total, total_lost = tl.zeros((M,), tl.float32), tl.zeros((M,), tl.float32)
            drawn, drawn_lost = tl.zeros((M, D), tl.float32), tl.zeros((M, D), tl.float32)
            for at in range(begin, to_column, GROUP):
                last = tl.minimum(at + GROUP, to_column)
                if _is_near(blocks, block, its_block, at, last, scale, left_out, D, M, GROUP):
                    some, more = tl.zeros((M,), tl.float32), tl.zeros((M, D), tl.float32)
                    for j in range(at, last, N):
                        columns = j + tl.arange(0, N)
                        of_columns, known = _at(points, its + j, D), columns < last
                        found, more = _wide_tile(
                            of_rows, of_columns, rows, there, its + columns, known, centre, scale, more, d, D, M, N
                        )
                        some += found
                    total, total_lost = _plus(total, total_lost, some)
                    drawn, drawn_lost = _plus(drawn, drawn_lost, more)
            weight = tl.where(cloud == 1, weight_across, tl.where(block < blocks_x, weight_x, weight_y))
            of_sum = sums + (tl.program_id(1) * count + block) * 2 + cloud
            out = _at(pulls, tl.program_id(1).to(tl.int64) * (n_x + n_y) + first + low, d)
            _store(of_sum, out, cloud == 1, there, total, total_lost, drawn, drawn_lost, a, weight, 1.0, d)
