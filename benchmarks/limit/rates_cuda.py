"""Throughput of instructions, of exp2 and of float64 on a GPU, with operands in registers; how products round."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PROGRAMS, _WIDTH, _REPEATS = 4096, 1024, 4096


def multiply_adds() -> int:
    """As many float32 multiply-adds as this returns, each an instruction of its own."""
    return _run("multiply-add")


def exponentials() -> int:
    """As many exp2 as this returns."""
    return _run("exp2")


def doubles() -> int:
    """As many float64 multiply-adds as this returns."""
    return _run("float64")


def truncates(device: str = "cuda") -> bool:
    """Whether a product of float16 matrices cuts off what it cannot hold: 1 + 1.5 x 2^-24 is then 1, not 1 + 2^-23."""
    a, b = (torch.zeros(64, 64, dtype=torch.float16, device=device) for _ in "ab")
    a[:, 0], a[:, 1] = 1, 2.0**-12
    b[0], b[1] = 1, 1.5 * 2.0**-12
    out = torch.empty(64, 64, device=device)
    _product[1,](a, b, out, 64)
    return bool((out == 1).all())


def _run(kind: str) -> int:
    out = torch.empty(_PROGRAMS * _WIDTH, device="cuda")
    _chain[_PROGRAMS,](out, _REPEATS, kind, _WIDTH)
    return _PROGRAMS * _WIDTH * _REPEATS


@triton.jit
def _chain(out, repeats, kind: tl.constexpr, width: tl.constexpr):  # noqa: ANN001, ANN202
    """A chain of `repeats` operations for each of `width` numbers of a program."""
    at = tl.program_id(0) * width + tl.arange(0, width)
    values = at.to(tl.float64 if kind == "float64" else tl.float32) * 1e-9
    for _ in range(repeats):
        if kind == "exp2":
            values = tl.exp2(-values)
        elif kind == "float64":
            values = values * 0.5 + 1.0
        else:  # as assembly, or from compute capability 10.0 on two would be one instruction
            values = tl.inline_asm_elementwise(
                "fma.rn.f32 $0, $1, 0f3F000000, 0f3F800000;", "=f,f", [values], tl.float32, is_pure=True, pack=1
            )
    tl.store(out + at, values)


@triton.jit
def _product(a, b, out, width: tl.constexpr):  # noqa: ANN001, ANN202
    at = tl.arange(0, width)[:, None] * width + tl.arange(0, width)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))
