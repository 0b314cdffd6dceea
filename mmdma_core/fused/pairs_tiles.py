"""All pairs of points, tile by tile in vector registers, on the CPU, with Numba: the inner loops of pairs_cpu.

The points are cut into panels of 256. A pair of panels is treated in tiles of four rows and 64 columns (16 where there
is no AVX-512): the exponents, their exponentials and what these pull stay in vector registers. Four rows' sums of k b
are vectors, too, and are summed over lanes after the last of a panel's columns; the columns' sums of k a lie in a
buffer of the panel's size. Both stay in the first cache. In float32 a lane sums at most 32 terms of a row and 256 of a
column, beyond that sums run in float64.

Operations for a pair in d dimensions: 3 d multiply-adds, d of them for the exponent, 3 additions, and for the
exponential 5 multiply-adds and 6 other instructions. Differences take d subtractions more. LLVM would not keep a tile
in registers from loops, so that it is written out in its vectors. (All is in one file, since Numba's cache of a
function does not see a change in another.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from mmdma_core.fused.tall_skinny import INT, LONG, Vectors, index_vector

PANEL = 256
ROWS = 4
LANES = 16  # room for a vector
BOX = 32  # columns of a box, which are left out together
# Buffers of threads do not lie side by side: a core would fetch ahead those of the next one, again and again.
APART = 2
PULLS = PANEL + 8  # numbers of a row of pulls: rows of 2 KiB would share few places of the first cache

_F = np.float32
_ZERO = _F(0)
LOWEST = _F(-100.0)  # less counts as 2^-100: products are never denormal, which is slow
ALL = _F(-1e30)  # nothing is left out
# 2^f on [-1/2, 1/2], interpolated at the Chebyshev points: relative error 1.0e-7
_SERIES = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial)
_ROUND = 1.5 * 2.0**23  # added to a small number, the last bits are those of the nearest integer
_MANTISSA_BITS = 23


def _matrix(context, builder, kind, array) -> Callable[[ir.Value, ir.Value], ir.Value]:
    """Return a function of the address of an element of a C-contiguous array, by row and by place in it."""
    array = context.make_array(kind)(context, builder, array)
    shape = cgutils.unpack_tuple(builder, array.shape, kind.ndim)
    width = shape[1]
    for length in shape[2:]:
        width = builder.mul(width, length)
    return lambda row, place: builder.gep(array.data, [builder.add(builder.mul(row, width), place)])


@intrinsic
def exp2(typing_context, matrix, out, row, place):
    """Fill out with 2^t for LANES numbers t <= 0 of a matrix, from one on."""

    def generate(context, builder, signature, values):
        vectors = _Vectors(context, builder)
        source, target = (_matrix(context, builder, matrix, value)(*values[2:]) for value in values[:2])
        for k in range(0, LANES, vectors.vector.count):
            t = vectors.load(builder.gep(source, [LONG(k)]))
            vectors.store(vectors.exp2(t), builder.gep(target, [LONG(k)]))
        return context.get_dummy_value()

    return types.void(matrix, out, types.int64, types.int64), generate


def _tile_shape(context) -> tuple[int, int]:
    """Floats of a vector, and vectors of columns in a tile, by the machine that this is compiled for.

    Its four rows times these vectors stay in registers: AVX-512 has 32 of 16 floats, AVX2 and others 16 of 8 or less.
    """
    return (16, 4) if "+avx512f" in context.codegen().magic_tuple()[2].split(",") else (8, 2)


@intrinsic
def _tile_columns(typing_context):
    """Return how many columns a tile has on the machine that this is compiled for."""

    def generate(context, builder, signature, values):
        return context.get_constant(types.int64, math.prod(_tile_shape(context)))

    return types.int64(), generate


@intrinsic
def _tile(typing_context, rows, low, columns, first, scale, own, row_sums, column_pull):
    """Four rows, from `low` on, and a tile's columns, from `first` on: k b to the rows' sums, k a to the columns'.

    rows (PANEL, d + 1), columns (d + 1, PANEL), row_sums (d + 1, ROWS, LANES), column_pull (d + 1, PANEL)
    scale  t is that times the squared distance, of differences; 0: t is a dot product
    own    whether a row meets itself here: then it takes later columns alone
    """

    def generate(context, builder, signature, values):
        _Tile(context, builder, signature, values).write()
        return context.get_dummy_value()

    return types.void(rows, low, columns, first, scale, own, row_sums, column_pull), generate


@intrinsic
def _move_row_sums(typing_context, row_sums, pull, low):
    """pull (d + 1, PULLS) += row_sums (d + 1, ROWS, LANES), summed over lanes, from the row `low` on; row_sums = 0."""

    def generate(context, builder, signature, values):
        vectors = _Vectors(context, builder)
        sums, pulls = (_matrix(context, builder, signature.args[k], values[k]) for k in range(2))
        array = context.make_array(signature.args[0])(context, builder, values[0])
        with cgutils.for_range(builder, cgutils.unpack_tuple(builder, array.shape, 3)[0]) as loop:
            places = [sums(loop.index, LONG(vectors.vector.count * r)) for r in range(ROWS)]
            doubles = ir.VectorType(ir.DoubleType(), ROWS)
            more = builder.fpext(vectors.sums([vectors.load(place) for place in places]), doubles)
            for place in places:
                vectors.store(vectors.constant(0), place)
            total = builder.bitcast(pulls(loop.index, values[2]), doubles.as_pointer())
            builder.store(builder.fadd(builder.load(total, align=8), more), total, align=8)
        return context.get_dummy_value()

    return types.void(row_sums, pull, types.int64), generate


class _Vectors(Vectors):
    """The instructions on as many floats as a vector has."""

    def __init__(self, context, builder: ir.IRBuilder) -> None:
        lanes, self._count = _tile_shape(context)
        super().__init__(builder, ir.VectorType(ir.FloatType(), lanes))
        self._integers = ir.VectorType(INT, lanes)

    def constant(self, number: float) -> ir.Constant:
        return ir.Constant(self.vector, [float(_F(number))] * self.vector.count)

    def load(self, address: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()), align=4)

    def store(self, vector: ir.Value, address: ir.Value) -> None:
        self.builder.store(vector, self.builder.bitcast(address, self.vector.as_pointer()), align=4)

    def exp2(self, t: ir.Value) -> ir.Value:
        """2^t for t <= 0: t = n + f, a polynomial of f, and n added to its exponent's bits."""
        builder, lanes, shift = self.builder, self.vector.count, self.constant(_ROUND)
        # The bits of a negative number are the larger, the further it lies from 0.
        lowest = index_vector([int(LOWEST.view(np.int32))] * lanes)
        bits = self.call(f"llvm.umin.v{lanes}i32", self._integers, builder.bitcast(t, self._integers), lowest)
        t = builder.bitcast(bits, self.vector)
        rounded = builder.fadd(t, shift)
        f = builder.fsub(t, builder.fsub(rounded, shift))
        *lower, power = map(self.constant, _SERIES.coef)
        for coefficient in reversed(lower):
            power = self.multiply_add(power, f, coefficient)
        whole = builder.shl(builder.bitcast(rounded, self._integers), index_vector([_MANTISSA_BITS] * lanes))
        return builder.bitcast(builder.add(builder.bitcast(power, self._integers), whole), self.vector)


class _Tile(_Vectors):
    """What `_tile` does. In every list, [r][c] is of row r and of the columns' vector c.

    t  places of the squared distances, the exponents and then k, which LLVM keeps in registers
    """

    def __init__(self, context, builder, signature, values) -> None:
        super().__init__(context, builder)
        _, low, _, self._first, self._scale, self._own, _, _ = values
        of = [_matrix(context, builder, signature.args[k], values[k]) for k in (0, 2, 6, 7)]
        lanes = self.vector.count
        starts = [builder.add(self._first, LONG(lanes * c)) for c in range(self._count)]
        self._rows = lambda k: [of[0](builder.add(low, LONG(r)), k) for r in range(ROWS)]
        self._columns, self._pulls = (lambda k, m=m: [m(k, start) for start in starts] for m in (of[1], of[3]))
        self._row_sums = lambda k: [of[2](k, LONG(lanes * r)) for r in range(ROWS)]
        self._low, shape = low, context.make_array(signature.args[2])(context, builder, values[2]).shape
        self._d = builder.sub(cgutils.unpack_tuple(builder, shape, 2)[0], LONG(1))
        self._t = [[cgutils.alloca_once(builder, self.vector) for _ in starts] for _ in range(ROWS)]

    def write(self) -> None:
        from_dots = self.builder.fcmp_ordered("==", self._scale, ir.Constant(ir.FloatType(), 0.0))
        self._change(lambda t, a, b: self.builder.fadd(a, b), self._d)
        with self.builder.if_else(from_dots) as (dots, differences):
            with dots, cgutils.for_range(self.builder, self._d) as loop:
                self._change(lambda t, a, b: self.multiply_add(a, b, t), loop.index)
            with differences:
                self._from_differences()
        self._change(lambda t, *_: self.exp2(t))
        with self.builder.if_then(self._own, likely=False):
            self._leave_out_earlier()
        with cgutils.for_range(self.builder, self._d) as loop:
            self._pull(loop.index)
        self._add_up()

    def _change(self, how: Callable[..., ir.Value], k: ir.Value | None = None) -> None:
        """Make t of every pair how(t, a, b), with the coordinates k of its row and of its column."""
        columns = [self.load(address) for address in self._columns(k)] if k else [None] * len(self._t[0])
        for r, of_row in enumerate(self._t):
            row = self.splat(self._rows(k)[r]) if k else None
            for place, column in zip(of_row, columns, strict=True):
                self.builder.store(how(self.builder.load(place), row, column), place)

    def _from_differences(self) -> None:
        def add_square(t: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
            difference = self.builder.fsub(a, b)
            return self.multiply_add(difference, difference, t)

        with cgutils.for_range(self.builder, self._d) as loop:
            self._change(add_square, loop.index)
        scale = self.splat_of(self._scale, self.vector)
        self._change(lambda t, *_: self.builder.fmul(t, scale))

    def _leave_out_earlier(self) -> None:
        """k = 0 where the column does not come after the row."""
        builder, lanes = self.builder, self.vector.count
        before = builder.trunc(builder.sub(self._low, self._first), INT)
        for r, of_row in enumerate(self._t):
            row = self.splat_of(builder.add(before, INT(r)), self._integers)
            for c, place in enumerate(of_row):
                later = builder.icmp_signed(">", index_vector(range(lanes * c, lanes * (c + 1))), row)
                builder.store(builder.select(later, builder.load(place), self.constant(0)), place)

    def _pull(self, k: ir.Value) -> None:
        """Coordinate k of k b to the rows' sums, of k a to the columns'."""
        columns = [self.load(address) for address in self._columns(k)]
        pulls = [self.load(address) for address in self._pulls(k)]
        for of_row, row, sums in zip(self._t, self._rows(k), self._row_sums(k), strict=True):
            a, total = self.splat(row), self.load(sums)
            for c, place in enumerate(of_row):
                kernel = self.builder.load(place)
                total = self.multiply_add(kernel, columns[c], total)
                pulls[c] = self.multiply_add(kernel, a, pulls[c])
            self.store(total, sums)
        for pull, address in zip(pulls, self._pulls(k), strict=True):
            self.store(pull, address)

    def _add_up(self) -> None:
        """k itself to both sums."""
        pulls = [self.load(address) for address in self._pulls(self._d)]
        for of_row, sums in zip(self._t, self._row_sums(self._d), strict=True):
            total = self.load(sums)
            for c, place in enumerate(of_row):
                kernel = self.builder.load(place)
                total, pulls[c] = self.builder.fadd(total, kernel), self.builder.fadd(pulls[c], kernel)
            self.store(total, sums)
        for pull, address in zip(pulls, self._pulls(self._d), strict=True):
            self.store(pull, address)


@numba.njit(fastmath=True, cache=True)
def near_columns(four, boxes, scale, lowest, gaps):
    """From where to where the columns of a panel have an exponent of `lowest` or more with any of the four rows.

    boxes (d, 2, boxes): the least and the greatest coordinates of every BOX columns
    """
    gaps[:] = _ZERO
    for k in range(boxes.shape[0]):
        least = min(min(four[0, k], four[1, k]), min(four[2, k], four[3, k]))
        greatest = max(max(four[0, k], four[1, k]), max(four[2, k], four[3, k]))
        for box in range(len(gaps)):
            gap = max(max(boxes[k, 0, box] - greatest, least - boxes[k, 1, box]), _ZERO)
            gaps[box] += gap * gap
    begin, end = 0, len(gaps)
    while begin < end and gaps[begin] * scale < lowest:
        begin += 1
    while begin < end and gaps[end - 1] * scale < lowest:
        end -= 1
    return begin * BOX, end * BOX


@numba.njit(cache=True)  # no fastmath, which Numba would give to the tile's instructions, too
def _panel_pair(i, j, panels, scale, lowest, buffers, pulls):
    """One pair of panels: the pulls of its points, added to pulls (panels, d + 1, PULLS)."""
    (rows, columns, boxes, counts), (gaps, row_sums, column_pull) = panels, buffers
    of_i, of_j, pull, tile = rows[i], columns[j], pulls[i], _tile_columns()
    row_sums[:] = column_pull[:] = _ZERO
    for low in range(0, counts[i], ROWS):
        begin, end = 0, counts[j]
        if lowest != ALL:
            begin, end = near_columns(of_i[low : low + ROWS], boxes[j], scale, lowest, gaps)
        if i == j:  # each pair once
            begin = max(begin, low)
        if begin < end:
            for first in range(begin // tile * tile, end, tile):
                own = i == j and first <= low
                _tile(of_i, low, of_j, first, scale, own, row_sums, column_pull)
            _move_row_sums(row_sums, pull, low)
    pull = pulls[j]
    for k in range(column_pull.shape[0]):
        for place in range(PANEL):
            pull[k, place] += column_pull[k, place]


@numba.njit(nogil=True, cache=True)
def all_pairs(t, threads, pairs, across, panels, scale, lowest, buffers, pulls):
    """Thread t takes every T-th pair of panels and adds to pulls[t, across or not].

    panels   what `_pack` fills, and how many points each panel has
    scale    of the squared distances, 0 if t comes from dot products
    buffers  gaps of boxes, sums of rows and of columns, APART for every thread
    """
    gaps, row_sums, column_pulls = buffers
    pulls[t] = 0.0
    for q in range(t, len(pairs), threads):
        i, j = pairs[q]
        own = APART * t
        of_thread = gaps[own], row_sums[own], column_pulls[own]
        _panel_pair(i, j, panels, scale, lowest, of_thread, pulls[t, across[q]])
