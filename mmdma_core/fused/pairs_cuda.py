"""MMD2 and its gradient in one pass over the pairs of points, on CUDA, with Triton.

The points are put in an order in which neighbours follow one another, and cut into blocks. Compact blocks and the other
ones have a kernel each, see mmdma_core.fused.pair_kernels. The order comes from a k-d tree. It is made anew every
SORTED_EVERY epochs: with an older one the sums are as right, and fewer blocks are compact. Nothing waits for the
device, so that an epoch can be captured in a graph.

Operations for an ordered pair in a compact block, d <= 14: on the tensor cores 2 x 3 x 32 float16 flops; one exp2; and
8 or 9 instructions with it (scale k, split it in two parts, and a share of what is done once for a column).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton

from mmdma_core.fused.neighbours_cuda import kd_order
from mmdma_core.fused.pair_kernels import arrange, compact_blocks, wide_blocks
from mmdma_core.fused.run import MMD
from mmdma_core.inputs import Rows
from mmdma_core.terms import squared_mmd

SORTED_EVERY = 50  # epochs
_PROGRAMS = 4096  # so many that the last ones leave few multiprocessors idle
_GROUP, _LARGE_GROUP = 256, 1024  # columns that are left out together
_LARGE = 100_000  # cells from which on the larger groups leave out as many


class Tile(NamedTuple):
    """What the kernels are compiled for.

    D          coordinates of a point, with the two further columns, padded
    M, N       rows of a block; columns of a compact one that are taken at a time
    num_warps  warps of a program for a compact block
    """

    D: int
    M: int
    N: int
    num_warps: int

    @property
    def wide(self) -> dict[str, int]:
        """The same for any other block: a thread has at most 32 pairs and 32 sums, so that its registers suffice."""
        columns = min(64, 8192 // self.M)
        return {"D": self.D, "M": self.M, "N": columns, "num_warps": self.M * max(columns, self.D) // 1024}

    @property
    def compact(self) -> dict[str, int]:
        """What the kernel of compact blocks takes."""
        return self._asdict()


def candidates(d: int) -> list[Tile]:
    """For d <= 64 dimensions, from which mmdma_core.fused.tiles chooses; the first is for where nothing is timed.

    Every GPU of compute capability 8.0 or more can hold the first.
    """
    padded = max(16, triton.next_power_of_2(d + 2))
    if padded <= 32:
        sizes = [(128, 64, 4), (128, 64, 8), (256, 64, 8), (128, 128, 8), (64, 64, 4)]
    elif padded == 64:
        sizes = [(128, 64, 8), (64, 64, 4)]
    else:
        sizes = [(64, 32, 8), (64, 64, 8), (64, 32, 4)]  # with 64 columns in up to 144 KiB of shared memory, else 88
    return [Tile(padded, *size) for size in sizes]


class FusedMMD(MMD):
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32; O((n_x + n_y) d) bytes.

    tile  of the kernels, None: that which suits most devices
    held  the rows of each view that are here: then a rank takes its share of the blocks of all points, which it
          gathers, and the gradients of its own points are added up over the ranks
    """

    sorted_every = SORTED_EVERY

    def __init__(
        self,
        n_x: int,
        n_y: int,
        d: int,
        sigma: float,
        unbiased: bool,
        tile: Tile | None = None,
        held: tuple[Rows, Rows] | None = None,
    ) -> None:
        self._held = held or (Rows(n_x), Rows(n_y))
        self._ranks = self._held[0].rank, self._held[0].size
        self.n_x, self.n_y, self.d, self.unbiased = n_x, n_y, d, unbiased
        self.tile = tile or candidates(d)[0]
        self._blocks_x, blocks_y = -(-n_x // self.tile.M), -(-n_y // self.tile.M)
        self._blocks = self._blocks_x + blocks_y
        of_largest = max(self._blocks_x, blocks_y)
        self._own_blocks = len(range(self._blocks)[slice(self._ranks[0], None, self._ranks[1])])
        parts = max(1, _PROGRAMS // max(1, self._own_blocks))
        self._segment = -(-of_largest // parts) * self.tile.M  # columns of a program
        self._segments = -(-of_largest * self.tile.M // self._segment)
        self._scale = math.sqrt(0.5 * math.log2(math.e) / sigma)
        less = 1 if unbiased else 0  # cells that a cell is not paired with
        unit = 2 / (sigma * self._scale)
        self._weights = unit / (n_x * (n_x - less)), unit / (n_y * (n_y - less)), -unit / (n_x * n_y)
        self._orders: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def pairs_of_a_program(self) -> int:
        """Ordered pairs, at most."""
        return 2 * self.tile.M * self._segment

    def sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        """Put neighbours in order; never in a graph, which knows where the order lies."""
        self._sort(*self._gathered(e_x, e_y))

    def _gathered(self, e_x: torch.Tensor, e_y: torch.Tensor) -> list[torch.Tensor]:
        return [held.gather(e.contiguous()) for held, e in zip(self._held, (e_x, e_y), strict=True)]

    def _sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        if self._orders is None:
            self._orders = tuple(torch.empty(len(e), dtype=torch.int64, device=e.device) for e in (e_x, e_y))
        for order, e in zip(self._orders, (e_x, e_y), strict=True):
            order.copy_(kd_order(e, self.tile.M))

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> torch.Tensor:
        """MMD2, a float64 scalar on the device; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        outs = out_x, out_y
        e_x, e_y = self._gathered(e_x, e_y)
        if self._orders is None:
            self._sort(e_x, e_y)
        sums, pulls = self._sum_pairs(e_x, e_y)
        mmd = squared_mmd(*self._sums(sums), self.n_x, self.n_y, self.unbiased)
        gradient = pulls.sum(0)
        if not self.unbiased:
            gradient *= mmd > 0  # clipped: no gradient
        of_clouds = gradient.split([self.n_x, self.n_y])
        for held, out, order, of_cloud in zip(self._held, outs, self._orders, of_clouds, strict=True):
            whole = held.room(out)
            whole.index_copy_(0, order, of_cloud)
            held.give(whole, out)
        return mmd

    def _sum_pairs(self, e_x: torch.Tensor, e_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `compact_blocks` gives, of all blocks."""
        (D, M, _, num_warps), n = self.tile, self.n_x + self.n_y
        points, radii = e_x.new_empty(n, D), e_x.new_empty(self._blocks)
        blocks = e_x.new_empty(self._blocks, 3, D)
        where = self.n_x, self.n_y, self._blocks_x
        arrange[(self._blocks,)](
            e_x, e_y, *self._orders, points, blocks, radii, self._scale, *where, d=self.d, D=D, M=M, num_warps=num_warps
        )
        sums = e_x.new_zeros(self._segments, self._blocks, 2, dtype=torch.float64)  # of other ranks' blocks 0
        pulls = e_x.new_zeros(self._segments, n, self.d)
        given = self._scale, sums, pulls, *self._ranks, *where, self._segment, *self._weights
        group = max(M, _GROUP if max(self.n_x, self.n_y) < _LARGE else _LARGE_GROUP)
        grid, tile, sizes = (self._own_blocks, self._segments), self.tile, {"d": self.d, "GROUP": group}
        compact_blocks[grid](points, blocks, radii, *given, **sizes, **tile.compact)
        wide_blocks[grid](points, blocks, radii, sums, *given, again=False, **sizes, **tile.wide)
        wide_blocks[grid](points, blocks, radii, self._least_mean(sums), *given, again=True, **sizes, **tile.wide)
        return sums, pulls

    def _sums(self, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sums of k within x, within y and across, each pair in both orders, over all ranks."""
        of_x, of_y = sums.sum(0).split([self._blocks_x, self._blocks - self._blocks_x])
        return self._held[0].sum(torch.stack([of_x[:, 0].sum(), of_y[:, 0].sum(), of_x[:, 1].sum()])).unbind()

    def _least_mean(self, sums: torch.Tensor) -> torch.Tensor:
        """As `wide_blocks` takes it."""
        n_x, n_y, diagonal = self.n_x, self.n_y, 0 if self.unbiased else 1
        within_x, within_y, across = self._sums(sums)
        means = (within_x / n_x + diagonal) / n_x, (within_y / n_y + diagonal) / n_y, across / (n_x * n_y)
        return torch.stack(means).amin().float()
