"""Triton's interpreter with tensor cores that truncate, and only some blocks of rows of a launch.

The interpreter multiplies float16 matrices in float32, to nearest. GPUs are reported to add each step of 16 products to
the sum exactly and to cut the rest of the result off (Fasi et al. 2021, doi:10.7717/peerj-cs.330).
"""

import numpy as np
from triton.runtime import interpreter

_STEP = 16  # products that a tensor core adds up at once


def truncate(monkeypatch):
    """Products of float16 matrices round toward zero after every step."""
    to_nearest = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, total, *options):
        if a.data.dtype != np.float16:
            return to_nearest(self, a, b, total, *options)
        found = total.data
        for k in range(0, a.data.shape[1], _STEP):
            step = a.data[:, k : k + _STEP].astype(np.float64) @ b.data[k : k + _STEP].astype(np.float64)
            found = toward_zero(found + step)
        return interpreter.TensorHandle(found, total.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def toward_zero(values):
    """float64 as float32, none greater in magnitude than it was."""
    found = values.astype(np.float32)
    return np.where(np.abs(found) > np.abs(values), np.nextafter(found, np.float32(0)), found)


def only(monkeypatch, blocks):
    """Kernels named in `blocks` run these blocks of rows alone, among as many as are launched; others run all."""
    run, builder = interpreter.InterpretedFunction.run, interpreter.InterpreterBuilder
    number, launched = builder.create_get_num_programs, []
    identity = builder.create_get_program_id

    def run_some(self, *args, grid, **options):
        its = blocks.get(self.fn.__name__, range(grid[0]))
        launched[:] = its, grid[0]
        return run(self, *args, grid=(len(its), *grid[1:]), **options)

    def handle(value):
        return interpreter.TensorHandle(np.array([value], np.int32), interpreter.tl.int32)

    def program_id(self, axis):
        return identity(self, axis) if axis else handle(launched[0][self.grid_idx[0]])

    def num_programs(self, axis):
        return number(self, axis) if axis else handle(launched[1])

    monkeypatch.setattr(interpreter.InterpretedFunction, "run", run_some)
    monkeypatch.setattr(builder, "create_get_program_id", program_id)
    monkeypatch.setattr(builder, "create_get_num_programs", num_programs)
