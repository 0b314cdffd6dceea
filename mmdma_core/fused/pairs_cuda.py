"""MMD2 and its gradient in one pass over the pairs of points, on CUDA, with Triton.

The points are put in an order in which neighbours follow one another, and cut into blocks. Compact blocks and the other
ones have a kernel each, see mmdma_core.fused.pair_kernels. The order comes from a k-d tree. It is made anew every
SORTED_EVERY epochs: with an older one the sums are as right, and fewer blocks are compact. Nothing waits for the
device, so that an epoch can be captured in a graph.

Operations for an ordered pair in a compact block, d <= 14: on the tensor cores 2 x 3 x 32 float16 flops; one exp2; and
8 or 9 instructions with it (scale k, split it in two parts, and a share of what is done once for a column).

The tile that the pairs of points are taken in on CUDA: which is the fastest differs from GPU to GPU, so it is timed.

At `start` a millisecond or so for each candidate that the GPU can hold, on points of the problem's number, 16,384 at
most. Shared memory is what differs: 99 KiB for a program at compute capability 8.6, 8.9 and 12.0, 163 at 8.0, 227 at
9.0 and 10.0. What was found is kept beside what Triton compiles, so that the same problem has the same tile, and the
same rounding, in the next process. Nothing is timed in an epoch.

An order of points in which neighbours follow one another, with PyTorch on any device, without waiting for it.
"""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources

from mmdma_core.errors import Unsupported
from mmdma_core.files.atomic import atomically
from mmdma_core.fused.pair_kernels import arrange, compact_blocks, wide_blocks
from mmdma_core.fused.run import MMD
from mmdma_core.inputs import Rows
from mmdma_core.objective import squared_mmd

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
    """For d <= 64 dimensions, from which mmdma_core.fused.pairs_cuda chooses; the first is for where nothing is timed.

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


_TIMED_POINTS = 16_384  # 10^9 pairs, about a millisecond
_RUNS = 5
_SPREAD = 0.1  # of the points in each dimension, in units of sqrt(sigma)


def fastest(
    n_x: int,
    n_y: int,
    d: int,
    sigma: float,
    unbiased: bool,
    device: torch.device,
    held: tuple[Rows, Rows] | None = None,
) -> FusedMMD:
    """The pass over the pairs for a problem on a device, with the tile that is the fastest there.

    held  the rows of each view that are here, see FusedMMD; then rank 0's tile is that of all

    Raises Unsupported if the device can hold none.
    """
    tile = _known_tile(max(n_x, n_y), d, device)
    return FusedMMD(n_x, n_y, d, sigma, unbiased, Tile(*held[0].of_first(tuple(tile))) if held else tile, held)


def milliseconds(n: int, d: int, tile: Tile, device: torch.device) -> float:
    """Median time of MMD2 and its gradient for n and n points whose blocks are all compact.

    Raises OutOfResources for a tile that the device cannot hold.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = ((_SPREAD * torch.randn(n, d, generator=generator)).to(device) for _ in "xy")
    mmd, out_x, out_y = FusedMMD(n, n, d, 1.0, True, tile), torch.empty_like(x), torch.empty_like(y)
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    taken = []
    for _ in range(1 + _RUNS):  # the first compiles
        wait()
        begin = time.perf_counter()
        mmd(x, y, out_x, out_y)
        wait()
        taken.append(1000 * (time.perf_counter() - begin))
    return median(taken[1:])


def _known_tile(n: int, d: int, device: torch.device) -> Tile:
    """The fastest candidate, from a measurement or an earlier one; the first where there is no GPU to measure on."""
    tiles = candidates(d)
    if device.type != "cuda" or not torch.cuda.is_available():
        return tiles[0]
    n = min(triton.next_power_of_2(n), _TIMED_POINTS)
    path = _kept_in() / f"mmdma-tile-{_of_this(device)}-n{n}-d{tiles[0].D}.json"
    with suppress(OSError, ValueError, TypeError):
        tile = Tile(*json.loads(path.read_text()))
        if tile in tiles:
            return tile
    times = _times(n, d, device)
    best = min(times, key=times.get)
    with suppress(OSError), atomically(path) as part:  # else it is measured again next time
        part.write_text(json.dumps(best))
    return best


def _times(n: int, d: int, device: torch.device) -> dict[Tile, float]:
    """Milliseconds of the candidates that the device can hold; Unsupported if there are none."""
    times, lacking = {}, []
    for tile in candidates(d):
        try:
            times[tile] = milliseconds(n, d, tile, device)
        except OutOfResources as error:
            lacking.append(error)
    if not times:
        least = min(lacking, key=lambda error: error.required)
        of = f"bytes of {least.name}" if least.name == "shared memory" else least.name
        raise Unsupported(
            f"for {d} components the fused variants need {least.required:,} {of}, this GPU has {least.limit:,}: "
            "lower n_components, or take a variant that is not fused"
        )
    return times


def _kept_in() -> Path:
    """Triton's folder, as mmdma_core.compilers names it."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or triton.knobs.cache.dir)


def _of_this(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    return f"{name}-triton{triton.__version__}"


def kd_order(points: torch.Tensor, leaf: int) -> torch.Tensor:
    """An order (n,) in which every `leaf` points (n, d) that follow one another lie together: a k-d tree.

    As mmdma_core.fused.pairs_cpu, with sorts: the halves of n, n / 2, ... 2 leaf places are parted at the median of
    the coordinate that extends furthest. Places beyond n are filled with a point at infinity, which stays the last; a
    coordinate that is no number counts as infinite, or sorting would put it behind that.
    """
    n, d = points.shape
    size = leaf * 2 ** max(0, math.ceil(math.log2(n / leaf)))
    order = torch.arange(size, device=points.device).clamp_(max=n)
    points = torch.cat([points, points.new_full((1, d), math.inf)])
    points.masked_fill_(points.isnan(), math.inf)
    while size > leaf:
        parts = order.view(-1, size)
        at = points[parts]
        least = at.amin(1)
        widest = (at.masked_fill_(at.isinf(), -math.inf).amax(1) - least).argmax(1)
        along = points.view(-1)[parts * d + widest[:, None]]
        order = parts.gather(1, along.argsort(dim=1, stable=True)).view(-1)
        size //= 2
    return order[:n]
