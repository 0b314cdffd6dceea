"""The tile that the pairs of points are taken in on CUDA: which is the fastest differs from GPU to GPU, so it is timed.

At `start` a millisecond or so for each candidate, on points of the problem's number, 16,384 at most. What was found
is kept beside what Triton compiles, so that the same problem has the same tile, and the same rounding, in the next
process. Nothing is timed in an epoch.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import torch
import triton

from mmdma_core.files.atomic import atomically
from mmdma_core.fused.pairs_cuda import FusedMMD, Tile, candidates
from mmdma_core.ranks import Rows

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
    """
    tile = _known_tile(max(n_x, n_y), d, device)
    return FusedMMD(n_x, n_y, d, sigma, unbiased, Tile(*held[0].of_first(tuple(tile))) if held else tile, held)


def milliseconds(n: int, d: int, tile: Tile, device: torch.device) -> float:
    """Median time of MMD2 and its gradient for n and n points whose blocks are all compact."""
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
    best = min(tiles, key=lambda tile: milliseconds(n, d, tile, device))
    with suppress(OSError), atomically(path) as part:  # else it is measured again next time
        part.write_text(json.dumps(best))
    return best


def _kept_in() -> Path:
    """Triton's folder, as mmdma_core.caches names it."""
    return Path(os.environ.get("TRITON_CACHE_DIR") or triton.knobs.cache.dir)


def _of_this(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device).replace(" ", "-").replace("/", "-")
    return f"{name}-triton{triton.__version__}"
