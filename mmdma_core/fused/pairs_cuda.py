"""MMD2 and its gradient in one pass over the pairs of points, on CUDA, with Triton.

The points are put in an order in which neighbours follow one another, and cut into blocks. Compact blocks and the other
ones have a kernel each, see mmdma_core.fused.pair_kernels. The order comes from a k-d tree. It is made anew every
SORTED_EVERY epochs: with an older one the sums are as right, and fewer blocks are compact. Nothing waits for the
device, so that an epoch can be captured in a graph.

Operations for an ordered pair in a compact block, d <= 14: on the tensor cores 2 x 3 x 32 float16 flops; one exp2; and
8 or 9 instructions with it (scale k, split it in two parts, and a share of the work for a column).

Which tile of rows and columns is the fastest differs from GPU to GPU, so it is timed: at `start`, a millisecond or so
for each candidate that the GPU can hold, on points of the problem's number, 16,384 at most. Shared memory is what
differs: 99 KiB for a program at compute capability 8.6, 8.9 and 12.0, 163 at 8.0, 227 at 9.0 and 10.0. The choice is
kept beside what Triton compiles, so that the same problem has the same tile, and the same rounding, in the next
process. Nothing is timed in an epoch.
"""

from __future__ import annotations

import json
import math
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
from mmdma_core.fused.run import PairsMMD
from mmdma_core.inputs import Ranks
from mmdma_core.objective import squared_mmd

SORTED_EVERY = 50  # epochs
_PROGRAMS = 4096  # so many that the last ones leave few multiprocessors idle
_GROUP, _LARGE_GROUP = 256, 1024  # columns that are left out together
_LARGE = 100_000  # cells from which on the larger groups leave out as many
_TIMED_POINTS = 16_384  # 10^9 pairs, about a millisecond
_RUNS = 5
_SPREAD = 0.1  # of the points in each dimension, in units of sqrt(sigma)


class Tile(NamedTuple):
    """The sizes that the kernels are compiled for.

    D          coordinates of a point, with the two further columns, padded
    M, N       rows of a block; columns of a compact one at a time
    num_warps  warps of a program for a compact block
    """

    D: int
    M: int
    N: int
    num_warps: int

    @property
    def wide(self) -> dict[str, int]:
        """The arguments of the kernel of wide blocks: at most 32 pairs and 32 sums a thread, which registers hold."""
        columns = min(64, 8192 // self.M)
        return {"D": self.D, "M": self.M, "N": columns, "num_warps": self.M * max(columns, self.D) // 1024}

    @property
    def compact(self) -> dict[str, int]:
        """The arguments of the kernel of compact blocks."""
        return self._asdict()


def candidates(d: int) -> list[Tile]:
    """Return the tiles to choose from for d <= 64 dimensions.

    The first one is for where nothing is timed; every GPU of compute capability 8.0 or more can hold it.
    """
    padded = max(16, triton.next_power_of_2(d + 2))
    if padded <= 32:
        sizes = [(128, 64, 4), (128, 64, 8), (256, 64, 8), (128, 128, 8), (64, 64, 4)]
    elif padded == 64:
        sizes = [(128, 64, 8), (64, 64, 4)]
    else:
        sizes = [(64, 32, 8), (64, 64, 8), (64, 32, 4)]  # with 64 columns in up to 144 KiB of shared memory, else 88
    return [Tile(padded, *size) for size in sizes]


class FusedMMD(PairsMMD):
    """MMD2 and its gradient for embeddings (n_x, d) and (n_y, d), float32; O((n_x + n_y) d) bytes.

    tile  of the kernels, None: that which suits most devices
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
        ranks: tuple[Ranks, Ranks] | None = None,
    ) -> None:
        super().__init__(n_x, n_y, unbiased, ranks)
        self.d, self.tile = d, tile or candidates(d)[0]
        self._blocks_x, blocks_y = -(-n_x // self.tile.M), -(-n_y // self.tile.M)
        self._blocks = self._blocks_x + blocks_y
        of_largest = max(self._blocks_x, blocks_y)
        self._own_blocks = len(range(self._rank, self._blocks, self._n_ranks))
        parts = max(1, _PROGRAMS // max(1, self._own_blocks))
        self._segment = -(-of_largest // parts) * self.tile.M  # columns of a program
        self._segments = -(-of_largest * self.tile.M // self._segment)
        self._scale = math.sqrt(0.5 * math.log2(math.e) / sigma)
        self._unit = 2 / (sigma * self._scale)
        self._orders: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def pairs_of_a_program(self) -> int:
        """Ordered pairs of a program, at most."""
        return 2 * self.tile.M * self._segment

    def sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        """Put neighbours in order, in the tensors that a graph knows."""
        self._sort(*self._all_points(e_x, e_y))

    def _sort(self, e_x: torch.Tensor, e_y: torch.Tensor) -> None:
        if self._orders is None:
            self._orders = tuple(torch.empty(len(e), dtype=torch.int64, device=e.device) for e in (e_x, e_y))
        for order, e in zip(self._orders, (e_x, e_y), strict=True):
            order.copy_(kd_order(e, self.tile.M))

    def __call__(self, e_x: torch.Tensor, e_y: torch.Tensor, out_x: torch.Tensor, out_y: torch.Tensor) -> torch.Tensor:
        """MMD2, a float64 scalar on the device; its gradient goes to out_x (n_x, d) and out_y (n_y, d)."""
        outs = out_x, out_y
        e_x, e_y = self._all_points(e_x, e_y)
        if self._orders is None:
            self._sort(e_x, e_y)
        sums, pulls = self._sum_pairs(e_x, e_y)
        mmd = squared_mmd(*self._sums(sums), self.n_x, self.n_y, self.unbiased)
        gradient = pulls.sum(0)
        if not self.unbiased:
            gradient *= mmd > 0  # clipped: no gradient
        of_clouds = gradient.split([self.n_x, self.n_y])
        for ranks, out, order, of_cloud in zip(self._ranks, outs, self._orders, of_clouds, strict=True):
            whole = ranks.whole(out)
            whole.index_copy_(0, order, of_cloud)
            ranks.reduce_scatter(whole, out)
        return mmd

    def _sum_pairs(self, e_x: torch.Tensor, e_y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`sums` and `pulls` of `compact_blocks`, of all blocks."""
        (D, M, _, num_warps), n = self.tile, self.n_x + self.n_y
        points, radii = e_x.new_empty(n, D), e_x.new_empty(self._blocks)
        blocks = e_x.new_empty(self._blocks, 3, D)
        where = self.n_x, self.n_y, self._blocks_x
        arrange[(self._blocks,)](
            e_x, e_y, *self._orders, points, blocks, radii, self._scale, *where, d=self.d, D=D, M=M, num_warps=num_warps
        )
        sums = e_x.new_zeros(self._segments, self._blocks, 2, dtype=torch.float64)  # of other ranks' blocks 0
        pulls = e_x.new_zeros(self._segments, n, self.d)
        weights = self._weights(self._unit)
        common = self._scale, sums, pulls, self._rank, self._n_ranks, *where, self._segment, *weights
        group = max(M, _GROUP if max(self.n_x, self.n_y) < _LARGE else _LARGE_GROUP)
        grid, tile, sizes = (self._own_blocks, self._segments), self.tile, {"d": self.d, "GROUP": group}
        compact_blocks[grid](points, blocks, radii, *common, **sizes, **tile.compact)
        wide_blocks[grid](points, blocks, radii, sums, *common, again=False, **sizes, **tile.wide)
        wide_blocks[grid](points, blocks, radii, self._least_mean(sums), *common, again=True, **sizes, **tile.wide)
        return sums, pulls

    def _sums(self, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The sums of k within x, within y and across, each pair in both orders, over all ranks."""
        of_x, of_y = sums.sum(0).split([self._blocks_x, self._blocks - self._blocks_x])
        return self._ranks[0].sum(torch.stack([of_x[:, 0].sum(), of_y[:, 0].sum(), of_x[:, 1].sum()])).unbind()

    def _least_mean(self, sums: torch.Tensor) -> torch.Tensor:
        """`least_mean` of `wide_blocks`."""
        return torch.stack(self._means(self._sums(sums))).amin().float()


def fastest_tile(n: int, d: int, device: torch.device) -> Tile:
    """Return the candidate that is the fastest for n points, timed now or before; the first one where there is no GPU.

    Raises Unsupported if the device can hold none.
    """
    tiles = candidates(d)
    if device.type != "cuda" or not torch.cuda.is_available():
        return tiles[0]
    n = min(triton.next_power_of_2(n), _TIMED_POINTS)
    gpu = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    name = f"mmdma-tile-{gpu}-triton{triton.__version__}-n{n}-d{tiles[0].D}.json"
    path = Path(triton.knobs.cache.dir, name)
    with suppress(OSError, ValueError, TypeError):
        tile = Tile(*json.loads(path.read_text()))
        if tile in tiles:
            return tile
    times, lacking = {}, []
    for tile in tiles:
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
    best = min(times, key=times.get)
    with suppress(OSError), atomically(path) as part:  # else it is timed again next time
        part.write_text(json.dumps(best))
    return best


def milliseconds(n: int, d: int, tile: Tile, device: torch.device) -> float:
    """Time MMD2 and its gradient for n and n points whose blocks are all compact: the median of a few runs.

    Raises OutOfResources for a tile that the device cannot hold.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = ((_SPREAD * torch.randn(n, d, generator=generator)).to(device) for _ in "xy")
    mmd, out_x, out_y = FusedMMD(n, n, d, 1.0, True, tile), torch.empty_like(x), torch.empty_like(y)
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    times = []
    for _ in range(1 + _RUNS):  # the first compiles
        wait()
        begin = time.perf_counter()
        mmd(x, y, out_x, out_y)
        wait()
        times.append(1000 * (time.perf_counter() - begin))
    return median(times[1:])


def kd_order(points: torch.Tensor, leaf: int) -> torch.Tensor:
    """Return an order (n,) in which every `leaf` points (n, d) that follow one another lie together: a k-d tree.

    As `kd_order` of mmdma_core.fused.pairs_cpu, with sorts, on any device and without waiting for it: the halves of n,
    n / 2, ... 2 leaf places are parted at the median of the coordinate that extends furthest. Places beyond n are
    filled with a point at infinity, which stays the last; a coordinate that is no number counts as infinite, or sorting
    would put it behind that.
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
