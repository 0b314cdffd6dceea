"""Throughput of float32 instructions and of exp2 on a GPU: work whose operands stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PROGRAMS, _WIDTH, _REPEATS = 4096, 1024, 4096


def multiply_adds() -> int:
    """As many float32 multiply-adds as this returns."""
    return _run(False)


def exponentials() -> int:
    """As many exp2 as this returns."""
    return _run(True)


def _run(exponential: bool) -> int:
    out = torch.empty(_PROGRAMS * _WIDTH, device="cuda")
    _chain[_PROGRAMS,](out, _REPEATS, exponential, _WIDTH)
    return _PROGRAMS * _WIDTH * _REPEATS


@triton.jit
def _chain(out, repeats, exponential: tl.constexpr, width: tl.constexpr):  # noqa: ANN001, ANN202
    """A chain of `repeats` operations for each of `width` numbers of a program."""
    at = tl.program_id(0) * width + tl.arange(0, width)
    values = at.to(tl.float32) * 1e-9
    for _ in range(repeats):
        values = tl.exp2(-values) if exponential else values * 0.5 + 1.0
    tl.store(out + at, values)
