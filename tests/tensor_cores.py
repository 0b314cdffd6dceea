"""Triton's interpreter with tensor cores that truncate, only some blocks of rows of a launch, or no memory at all.

The interpreter multiplies float16 matrices in float32, to nearest. GPUs are reported to add each step of 16 products to
the sum exactly and to cut the rest of the result off (Fasi et al. 2021, doi:10.7717/peerj-cs.330).
"""

from types import SimpleNamespace

import numpy as np
import torch
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


def reached(monkeypatch, kernel, program, arguments, **sizes):
    """(least, greatest) element that a program reads or writes of each tensor, which need not exist: it reads zeros.

    program    its number on either axis of the grid
    arguments  of the kernel by name, in order: a tensor by its type
    """
    apart, seen = 2**52, {}  # bytes from one tensor to the next
    names, builder = list(arguments), interpreter.InterpreterBuilder

    def note(pointers, mask):
        addresses = pointers.data[mask.data.astype(bool)].astype(np.int64)
        nearest = (addresses + apart // 2) // apart
        for which in np.unique(nearest):
            name = names[which - 1]
            its = (addresses[nearest == which] - which * apart) // arguments[name].itemsize
            least, greatest = seen.get(name, (its[0], its[0]))
            seen[name] = min(least, its.min()), max(greatest, its.max())

    def load(self, pointers, mask, *_):
        note(pointers, mask)
        dtype = pointers.get_element_ty()
        return interpreter.TensorHandle(np.zeros(pointers.data.shape, interpreter._get_np_dtype(dtype)), dtype)

    def program_id(self, axis):
        return interpreter.TensorHandle(np.array([program[axis]], np.int32), interpreter.tl.int32)

    def fake(place, value):
        is_tensor = isinstance(value, torch.dtype)
        return SimpleNamespace(data_ptr=lambda: (1 + place) * apart, dtype=value) if is_tensor else value

    with monkeypatch.context() as patch:
        patch.setattr(builder, "create_masked_load", load)
        patch.setattr(builder, "create_masked_store", lambda self, pointers, value, mask, *_: note(pointers, mask))
        patch.setattr(builder, "create_get_program_id", program_id)
        patch.setattr(interpreter.GridExecutor, "_init_args_hst", lambda self, given, options: (given, options))
        patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        kernel[1,](*(fake(*argument) for argument in enumerate(arguments.values())), **sizes)
    return seen
