"""Vector instructions for Numba's intrinsics, where LLVM would not find them in a loop by itself.

Numba's cache of a function does not see a change in another file: after one here, remove the caches of what imports it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llvmlite import ir
from numba.core import cgutils

INT, LONG = ir.IntType(32), ir.IntType(64)


class Vectors:
    """What writes instructions on vectors of one type.

    vector  their type, as long as one likes: LLVM takes as many registers as it needs
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
