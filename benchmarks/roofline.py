"""The limit of the pass over pairs on a GPU, and how near compact and other blocks come to it, apart.

An ordered pair takes one exp2, the instructions that are counted (`counted.py`) and, in a compact block, 12 D float16
flops on the tensor cores, D = d padded. A program of pairs adds up its sums of k in float64. Each has units of its own,
so the slowest of the four is the limit. No kernel that visits ordered pairs is faster than their exponentials: they are
the floor of its seconds.
"""

from __future__ import annotations

import torch

from benchmarks.limit import counted
from benchmarks.limit.timing import points, rate, seconds

_WIDTH = 8192  # of the matrices whose product measures the tensor cores
SPREAD = 0.1  # mean squared norm, in units of sigma, of points whose blocks are all compact
_FAR_POINTS, _AWAY = 32, 20.0  # every so many points one lies so far away that no block is compact


def limit(n: int, d: int, device: str = "cuda") -> tuple[float, float]:
    """Print what is counted and measured; pairs a second at the limit, and seconds of a pass, for compact blocks.

    device  'cuda', or 'cpu' where Triton is an interpreter
    """
    from triton.runtime.errors import OutOfResources

    from benchmarks.limit import rates_cuda
    from benchmarks.limit.unordered_cuda import unordered_sums
    from mmdma_core.fused.pairs_cuda import FusedMMD

    works = rates_cuda.multiply_adds, rates_cuda.exponentials, rates_cuda.doubles
    instructions, exponentials, doubles = (rate(work) for work in works)
    half = torch.ones(_WIDTH, _WIDTH, dtype=torch.float16, device=device)
    flops = 2 * _WIDTH**3 / seconds(torch.matmul, half, half)
    print(
        f"instructions: {instructions:.3g} /s, exp2: {exponentials:.3g} /s, float64: {doubles:.3g} /s, "
        f"float16 matrix flops: {flops:.3g} /s"
    )
    key, counts = counted.nearest(_capability(device), d)
    summing = FusedMMD(n, n, d, 1.0, True)
    of_pair = 12 * summing.tile.D
    doubles_of_pair = 32 * summing.tile.num_warps * counted.FLOAT64 / summing.pairs_of_a_program
    print(
        f"an ordered pair: {counts.compact:g} instructions in a compact block, {counts.wide:g} in any other, "
        f"{doubles_of_pair:.2g} in float64, {of_pair} flops "
        f"(counted for sm_{key[0]}, d = {key[1]}, Triton {counted.TRITON})"
    )
    print(f"the exponentials' floor: {exponentials:.3g} pairs/s, {4 * n * n / exponentials:.3g} s for a pass")
    most = {
        "compact": min(instructions / counts.compact, exponentials, doubles / doubles_of_pair, flops / of_pair),
        "wide": min(instructions / counts.wide, exponentials),
    }
    taken = apart(n, d, device)
    for kind, of_pass in taken.items():
        reached = 4 * n * n / of_pass
        print(f"{kind} blocks: {reached:.3g} pairs/s of {most[kind]:.3g}: {reached / most[kind]:.0%}")
    try:
        once = seconds(unordered_sums, points(2 * n, d, device, SPREAD)[0], 1.0)
        said = f"{taken['compact'] / once:.2f} times as fast as compact blocks"
    except OutOfResources as error:
        said = f"not on this GPU ({error})"
    print(f"each unordered pair once, a prototype: {said}")
    return most["compact"], taken["compact"]


def apart(n: int, d: int, device: str = "cuda") -> dict[str, float]:
    """Seconds of a pass over the pairs of n and n points in d dimensions: 'compact' blocks alone, and 'wide' alone."""
    from mmdma_core.fused.pairs_cuda import fastest

    in_line = torch.arange(n, dtype=torch.float32, device=device)[:, None]
    taken = {}
    for kind in ("compact", "wide"):
        summing = fastest(n, n, d, 1.0, True, torch.device(device))
        summing.sort(in_line, in_line)  # as they come
        taken[kind] = seconds(summing, *blocks_of(kind, n, d, device))
    return taken


def blocks_of(kind: str, n: int, d: int, device: str) -> list[torch.Tensor]:
    """Two clouds (n, d) whose blocks, as the points come, are all 'compact' or all 'wide', and room for gradients."""
    clouds = points(n, d, device, SPREAD)
    if kind == "wide":
        for cloud in clouds[:2]:
            cloud[::_FAR_POINTS, 0] += _AWAY
    return clouds


def _capability(device: str) -> int:
    major, minor = torch.cuda.get_device_capability() if device == "cuda" else (9, 0)
    return 10 * major + minor
