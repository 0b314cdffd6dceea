"""Rows of a view of the fast mode on CUDA, in one launch: the numbers of mmdma_core.philox, by Triton.

Every number is formed in registers and written once, where PyTorch's operations are some 150 launches for a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MOST_QUADS = 256  # of columns that a program makes
_UNIT = tl.constexpr(2.0**-24)  # of the uniform numbers
_TURN = tl.constexpr(6.283185307179586 * 2.0**-24)


def noisy_rows(
    cells: torch.Tensor, points: torch.Tensor, mapping: torch.Tensor, key: tuple[int, int], noise: float
) -> torch.Tensor:
    """points[cells] @ mapping + noise * philox.normal_rows(cells, p, key), float32 on their device.

    cells (rows,) int64; points (n, 2) and mapping (2, p), float32
    """
    p = mapping.shape[1]
    quads = min(_MOST_QUADS, triton.next_power_of_2(triton.cdiv(p, 4)))
    rows = torch.empty(len(cells), p, dtype=torch.float32, device=cells.device)
    with torch.cuda.device_of(rows):
        _noisy_rows[len(cells), triton.cdiv(p, 4 * quads)](
            rows,
            cells,
            points,
            mapping,
            p,
            key[0] | key[1] << 32,
            noise,
            QUADS=quads,
            num_warps=max(1, quads // 64),
            enable_fp_fusion=False,  # two products and a sum, rounded as PyTorch's are
        )
    return rows


@triton.jit
def _noisy_rows(rows, cells, points, mapping, p, key, noise, QUADS: tl.constexpr):
    """Program (row, part): 4 QUADS columns of a row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    cell = tl.load(cells + row)
    words = _words(cell, part * QUADS + tl.arange(0, QUADS), key)
    a, b = _normals(words[0], words[1])
    c, d = _normals(words[2], words[3])
    normals = tl.interleave(tl.interleave(a, c), tl.interleave(b, d))
    column = 4 * QUADS * part + tl.arange(0, 4 * QUADS)
    there = column < p
    x, y = tl.load(points + 2 * cell), tl.load(points + 2 * cell + 1)
    mean = x * tl.load(mapping + column, there) + y * tl.load(mapping + p + column, there)
    tl.store(rows + row * p + column, mean + noise * normals, there)


@triton.jit
def _words(cell, quads, key):
    """Four words of each quad of columns of a cell, as philox.philox gives them."""
    counter = quads.to(tl.uint32)
    zero = counter * 0
    return tl.philox(key, counter, zero + cell.to(tl.uint32), zero + (cell >> 32).to(tl.uint32), zero)


@triton.jit
def _normals(u, v):
    """Two normal numbers from two words, as philox.normal_rows forms them."""
    radius = tl.sqrt_rn(-2 * tl.log(((u >> 8).to(tl.float32) + 0.5) * _UNIT))
    angle = (v >> 8).to(tl.float32) * _TURN
    return radius * tl.cos(angle), radius * tl.sin(angle)
