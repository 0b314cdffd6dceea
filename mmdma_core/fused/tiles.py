"""The tile that the pairs of points are taken in on CUDA: which is the fastest differs from GPU to GPU, so it is timed.

At `start` a millisecond or so for each candidate that the GPU can hold, on points of the problem's number, 16,384 at
most. Shared memory is what differs: 99 KiB for a program at compute capability 8.6, 8.9 and 12.0, 163 at 8.0, 227 at
9.0 and 10.0. What was found is kept beside what Triton compiles, so that the same problem has the same tile, and the
same rounding, in the next process. Nothing is timed in an epoch.
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
from triton.runtime.errors import OutOfResources

from mmdma_core.errors import Unsupported
from mmdma_core.files.atomic import atomically
from mmdma_core.fused.pairs_cuda import FusedMMD, Tile, candidates
from mmdma_core.inputs import Rows

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
