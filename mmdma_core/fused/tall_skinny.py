"""Products of a large matrix with a tall-skinny one, on the CPU, with Numba: each reads the large matrix once.

With X (n, p) and tall-skinny matrices of d columns, for every row x_i:

    rows:   out_i = base_i + alpha x_i W         out (n, d)
    sums:   total = sum_i x_i^T out_i

W and total have a row for each feature and lie as their transposes w_t and total_t, (d, p).

Six rows at a time go through both, so that X is read from memory once where the two follow each other. The inner
loops multiply them with two columns of the narrow matrix: for every row two sums or factors stay in registers, and
every number that is loaded is used twice or six times. They also ask for the cache lines that come next, else the wait
for memory would add to the arithmetic. LLVM vectorises no loop that prefetches, so they are written out in its vectors,
by `Vectors`.

Numba's cache of a function does not see a change in another file: after one in `Vectors`, remove the caches of
pairs_tiles, which imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.base import BaseContext
from numba.core.typing import Signature
from numba.extending import intrinsic

from mmdma_core.fused.threads import in_threads

INT, LONG = ir.IntType(32), ir.IntType(64)
_ROWS = 6  # 12 sums or factors, 2 of the narrow columns and 1 of a row: of 16 registers
_VECTOR_BYTES = 32
_ADDRESS = ir.IntType(8).as_pointer()
_CHUNK_BYTES = 2048  # of each row at a time, so that all of them stay in the first cache
_PARTIAL_ROWS = 256  # rows after which partial sums go into float64


class TallSkinnyProducts:
    """The products of one matrix X (n, p) with tall-skinny matrices of d columns; memory is allocated once.

    w_t and total_t are (d, p), total_t float64.
    """

    def __init__(self, x: np.ndarray, d: int, threads: int) -> None:
        self._padding_rows = max(0, _ROWS - len(x))
        self._x = np.ascontiguousarray(np.pad(x, ((0, self._padding_rows), (0, 0))) if self._padding_rows else x)
        self._out = np.zeros((_ROWS, d), x.dtype)  # for fewer rows than that
        self._d, even = d, d + d % 2
        self._w_t = aligned_zeros((even, x.shape[1]), x.dtype)
        self._row_products = np.zeros((threads, _ROWS, even), x.dtype)
        self._partial = aligned_zeros((threads, even, x.shape[1]), x.dtype)
        self._totals = np.zeros((threads, even, x.shape[1]))

    def rows(self, w_t: np.ndarray, out: np.ndarray) -> None:
        """out (n, d) = X W."""
        out[:] = 0
        self.rows_then_sums(w_t, 1.0, out, None)

    def sums(self, rows: np.ndarray, total_t: np.ndarray) -> None:
        """total = X^T rows, rows (n, d)."""
        self.rows_then_sums(None, 0.0, rows, total_t)

    def rows_then_sums(self, w_t: np.ndarray | None, alpha: float, out: np.ndarray, total_t: np.ndarray | None) -> None:
        """out (n, d) += alpha X W, then total = X^T out; None leaves one of the two away."""
        if w_t is not None:
            self._w_t[: self._d] = w_t
        target = out
        if self._padding_rows:
            target = self._out
            target[: len(out)] = out
        in_threads(
            _pass_over_rows,
            len(self._totals),
            self._x,
            self._w_t,
            self._x.dtype.type(alpha),
            target,
            w_t is not None,
            total_t is not None,
            self._row_products,
            self._partial,
            self._totals,
        )
        if self._padding_rows:
            out[:] = target[: len(out)]
        if total_t is not None:
            np.sum(self._totals[:, : self._d], axis=0, out=total_t)


@numba.njit(fastmath=True, cache=True)
def inner(a, b, out):
    """out (d, d) = A B^T for A, B (d, p), where this is symmetric.

    BLAS would wake its own threads for this, and they keep a core busy for a while after.
    """
    for k in range(a.shape[0]):
        for m in range(k + 1):
            total = 0.0
            for j in range(a.shape[1]):
                total += a[k, j] * b[m, j]
            out[k, m] = out[m, k] = total


@numba.njit(fastmath=True, cache=True)
def add_product(a, b, scale, out):
    """out (d, p) += scale A^T B for A (d, d) and B (d, p)."""
    d = len(b)
    for k in range(d):
        for m in range(0, d - 1, 2):
            factor, next_factor = scale * a[m, k], scale * a[m + 1, k]
            for j in range(out.shape[1]):
                out[k, j] += factor * b[m, j] + next_factor * b[m + 1, j]
        if d % 2:
            for j in range(out.shape[1]):
                out[k, j] += scale * a[d - 1, k] * b[d - 1, j]


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Return zeros that begin at a cache line, as PyTorch's do and NumPy's need not."""
    return torch.from_numpy(np.zeros((), dtype)).new_zeros(shape).numpy()


@numba.njit(nogil=True, cache=True)
def _pass_over_rows(t, threads, x, w_t, alpha, out, with_rows, with_sums, row_products, partial, totals):
    """Thread t takes a contiguous share of the rows; totals[t] (d, p) in float64 are its sums.

    partial[t] (d, p) is 0 before and after, and totals[t] stays 0 where a thread has no share.
    """
    n = x.shape[0]
    groups = (n + _ROWS - 1) // _ROWS
    times = w_t.shape[0] // 2 * (2 if with_rows and with_sums else 1)  # that each vector of x is loaded
    stride = _ROWS * _VECTOR_BYTES // times
    begin, end = groups * t // threads, groups * (t + 1) // threads
    first, done = True, 0
    for group in range(begin, end):
        low = max(0, min(group * _ROWS, n - _ROWS))
        repeated = group * _ROWS - low  # rows of the last group that the one before has done already
        rows = row_products[t]
        rows[:] = 0
        ahead = x.ctypes.data + (low + _ROWS) * x.strides[0]
        if with_rows:
            ahead = _multiply_rows(x, low, rows, w_t, True, ahead, stride)
        for r in range(_ROWS):
            for k in range(out.shape[1]):
                if r < repeated:
                    rows[r, k] = 0
                else:
                    rows[r, k] = out[low + r, k] + alpha * rows[r, k]
                    out[low + r, k] = rows[r, k]
        if with_sums:
            _multiply_rows(x, low, rows, partial[t], False, ahead, stride)
            done += _ROWS
            if done >= _PARTIAL_ROWS or group == end - 1:
                _add_to_totals(partial[t], totals[t], first)
                first, done = False, 0


@numba.njit(fastmath=True, cache=True)
def _multiply_rows(x, low, rows, narrow, into_rows, ahead, stride):
    """For _ROWS rows from `low` on: rows += x narrow^T if into_rows, else narrow += rows^T x.

    rows (_ROWS, d), narrow (d, p); d is even. The addresses from `ahead` on, `stride` for each vector,
    are prefetched; returns where this has come to.
    """
    d, p = narrow.shape
    chunk = _CHUNK_BYTES // x.itemsize
    for first in range(0, p, chunk):
        count = min(chunk, p - first)
        for k in range(0, d, 2):
            if into_rows:
                _add_dots(x, low, first, count, rows, narrow, k, ahead, stride)
            else:
                _add_rows(x, low, first, count, rows, narrow, k, ahead, stride)
            ahead += count * x.itemsize // _VECTOR_BYTES * stride
    return ahead


@numba.njit(cache=True)
def _add_to_totals(partial, total, first):
    """total += partial, or total = partial for the first; partial = 0.

    In loops, because `total += partial` would take a matrix for the conversion.
    """
    for k in range(total.shape[0]):
        for j in range(total.shape[1]):
            total[k, j] = partial[k, j] if first else total[k, j] + partial[k, j]
            partial[k, j] = 0


class Vectors:
    """A writer of LLVM's instructions on vectors of one type.

    vector  their type, of any length: LLVM takes as many registers as it needs
    """

    def __init__(self, builder: ir.IRBuilder, vector: ir.VectorType) -> None:
        self.builder, self.vector = builder, vector

    def call(self, intrinsic_name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Call one of LLVM's intrinsics."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, intrinsic_name), arguments)

    def multiply_add(self, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
        """total + a b, as one instruction where there is one."""
        return self.builder.fadd(total, self.builder.fmul(a, b, flags=["contract"]), flags=["contract"])

    def splat(self, address: ir.Value) -> ir.Value:
        """A vector of the number at an address."""
        return self.splat_of(self.builder.load(address), self.vector)

    def splat_of(self, number: ir.Value, vector: ir.VectorType) -> ir.Value:
        """A vector of a number."""
        undefined = ir.Constant(vector, ir.Undefined)
        one = self.builder.insert_element(undefined, number, INT(0))
        return self.builder.shuffle_vector(one, undefined, index_vector([0] * vector.count))

    def sum(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's numbers, by halves."""
        return self.builder.extract_element(self.sums([vector]), INT(0))

    def sums(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """A vector of the sums of 1, 2, 4, ... vectors, of which each is summed by halves, together with another."""
        width = self.vector.count
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self._add_halves(*pair, range(0, 2 * self.vector.count, width), width) for pair in pairs]
            width //= 2
        (vector,) = vectors
        while width > 1:
            vector = self._add_halves(vector, vector, range(0, vector.type.count, width), width)
            width //= 2
        return vector

    def _add_halves(self, a: ir.Value, b: ir.Value, starts: range, width: int) -> ir.Value:
        """The second half of each group of so many numbers added to its first, where a and b follow one another."""
        first = [start + k for start in starts for k in range(width // 2)]
        second = [k + width // 2 for k in first]
        return self.builder.fadd(*(self.builder.shuffle_vector(a, b, index_vector(half)) for half in (first, second)))


def index_vector(numbers: Iterable[int]) -> ir.Constant:
    """A constant vector of 32-bit integers."""
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(INT, len(numbers)), numbers)


def _kernel(write: Callable[[ir.IRBuilder, _Loop], None]) -> Callable[..., None]:
    """Return a function (x, low, first, count, rows, narrow, k, ahead, stride) with the code that `write` writes.

    x (n, p), rows (_ROWS, d), narrow (d, p)  C-contiguous, of one type: float32 or float64
    low, k                                    the rows of x from `low` on, and the rows k, k + 1 of `narrow`
    first, count                              the columns: so many from `first` on
    ahead, stride                             the i-th vector of them prefetches the address ahead + i stride
    """

    @intrinsic
    def kernel(typing_context, x, low, first, count, rows, narrow, k, ahead, stride):
        def generate(context, builder, signature, values):
            write(builder, _Loop(context, builder, signature, values))
            return context.get_dummy_value()

        return types.void(x, low, first, count, rows, narrow, k, ahead, stride), generate

    return kernel


@_kernel
def _add_dots(builder, loop):
    """rows[r, m] += the dot product of x[low + r] and narrow[m], for r < _ROWS and m in k, k + 1."""
    sums = [[cgutils.alloca_once(builder, loop.vector) for _ in range(_ROWS)] for _ in range(2)]
    for total in sums[0] + sums[1]:
        builder.store(ir.Constant(loop.vector, None), total)

    def body() -> None:
        factors = [loop.load(row) for row in loop.narrow]
        for r in range(_ROWS):
            numbers = loop.load(loop.x[r])
            for m in range(2):
                builder.store(loop.multiply_add(numbers, factors[m], builder.load(sums[m][r])), sums[m][r])

    loop.over_columns(body)
    for m in range(2):
        for r in range(_ROWS):
            total = builder.fadd(builder.load(loop.rows[m][r]), loop.sum(builder.load(sums[m][r])))
            builder.store(total, loop.rows[m][r])


@_kernel
def _add_rows(builder, loop):
    """narrow[m] += the sum over r < _ROWS of rows[r, m] x[low + r], for m in k, k + 1."""
    factors = [[loop.splat(address) for address in loop.rows[m]] for m in range(2)]

    def body() -> None:
        totals = [loop.load(row) for row in loop.narrow]
        for r in range(_ROWS):
            numbers = loop.load(loop.x[r])
            totals = [loop.multiply_add(numbers, factors[m][r], totals[m]) for m in range(2)]
        for m in range(2):
            loop.store(totals[m], loop.narrow[m])

    loop.over_columns(body)


class _Loop(Vectors):
    """The addresses that a kernel works on, and the vector instructions it is made of.

    x, narrow, rows  of the first elements: of _ROWS rows of x, of two rows of `narrow`, of `rows` [m][r]
    vector           the type of a vector
    """

    def __init__(
        self, context: BaseContext, builder: ir.IRBuilder, signature: Signature, values: Sequence[ir.Value]
    ) -> None:
        _, low, first, self._count, _, _, k, self._ahead, self._stride = values
        dtype = signature.args[0].dtype
        self._mask, self._bytes = None, dtype.bitwidth // 8
        super().__init__(builder, ir.VectorType(context.get_data_type(dtype), _VECTOR_BYTES // self._bytes))
        self._name = f"v{self.vector.count}f{dtype.bitwidth}"

        def elements(argument: int) -> tuple[ir.Value, ir.Value]:
            array = context.make_array(signature.args[argument])(context, builder, values[argument])
            return array.data, cgutils.unpack_tuple(builder, array.shape, 2)[1]

        def address(matrix: tuple[ir.Value, ir.Value], row: ir.Value, column: ir.Value) -> ir.Value:
            return builder.gep(matrix[0], [builder.add(builder.mul(row, matrix[1]), column)])

        x, rows, narrow = elements(0), elements(4), elements(5)
        both = k, builder.add(k, LONG(1))
        self.x = [address(x, builder.add(low, LONG(r)), first) for r in range(_ROWS)]
        self.narrow = [address(narrow, m, first) for m in both]
        self.rows = [[address(rows, LONG(r), m) for r in range(_ROWS)] for m in both]

    def over_columns(self, body: Callable[[], None]) -> None:
        """The code of `body` for every vector of the columns; one that is not whole is masked."""
        builder, width = self.builder, LONG(self.vector.count)
        whole = builder.udiv(self._count, width)
        with cgutils.for_range(builder, whole) as step:
            self._column = builder.mul(step.index, width)
            body()
            self._prefetch(builder.add(self._ahead, builder.mul(step.index, self._stride)))
        self._column = builder.mul(whole, width)
        rest = builder.sub(self._count, self._column)
        with cgutils.if_unlikely(builder, cgutils.is_not_null(builder, rest)):
            count = self.splat_of(builder.trunc(rest, INT), ir.VectorType(INT, self.vector.count))
            self._mask = builder.icmp_signed("<", index_vector(range(self.vector.count)), count)
            body()

    def _prefetch(self, address: ir.Value) -> None:
        """Ask for a cache line, into the second cache; an address where nothing lies does no harm."""
        self.call("llvm.prefetch.p0", ir.VoidType(), self.builder.inttoptr(address, _ADDRESS), INT(0), INT(2), INT(1))

    def load(self, row: ir.Value) -> ir.Value:
        """The present vector of the row that begins at an address."""
        address = self._address(row)
        if self._mask is None:
            return self.builder.load(address, align=self._bytes)
        zero = ir.Constant(self.vector, None)
        return self.call(f"llvm.masked.load.{self._name}.p0", self.vector, address, INT(self._bytes), self._mask, zero)

    def store(self, vector: ir.Value, row: ir.Value) -> None:
        """Make the vector the present one of the row that begins at an address."""
        address = self._address(row)
        if self._mask is None:
            self.builder.store(vector, address, align=self._bytes)
        else:
            self.call(
                f"llvm.masked.store.{self._name}.p0", ir.VoidType(), vector, address, INT(self._bytes), self._mask
            )

    def _address(self, row: ir.Value) -> ir.Value:
        return self.builder.bitcast(self.builder.gep(row, [self._column]), self.vector.as_pointer())
