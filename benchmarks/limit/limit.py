"""How near the one pass over pairs comes to what this machine can do: python -m benchmarks.limit [--n 5000] [--d 10].

The limit is counted from the operations for a pair (docstrings of mmdma_core.fused.pairs_cpu and pairs_cuda) and
from throughputs that are measured here, in registers or the first cache:

    CPU   unordered pairs: (3 d + 2) multiply-adds, then one exponential, which the same units compute
    CUDA  ordered pairs: 12 D float16 flops on the tensor cores (D = d padded to 16, 32, 64), one exp2 and 6 other
          float32 instructions, each on units of its own: the slowest of the three is the limit
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.measuring import machine


def main() -> None:
    """Print the measured throughputs, the limit they give, and the fraction of it that is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="cells of each view, default: %(default)s")
    parser.add_argument("--d", type=int, default=10, help="dimensions, default: %(default)s")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    print(machine.gpu()["name"] if on_gpu else f"{machine.cpu_model()}, {torch.get_num_threads()} threads")
    limit, seconds = (_on_cuda if on_gpu else _on_cpu)(options.n, options.d)
    pairs = (2 * options.n) ** 2 / (1 if on_gpu else 2)
    print(f"limit:   {limit:.3g} pairs/s")
    print(f"reached: {pairs / seconds:.3g} pairs/s at n = {options.n}, d = {options.d}: {pairs / seconds / limit:.0%}")


def _on_cpu(n: int, d: int) -> tuple[float, float]:
    from benchmarks.limit import rates_cpu
    from mmdma_core.fused.pairs_cpu import FusedMMD

    fma, exponentials = _rate(rates_cpu.multiply_adds), _rate(rates_cpu.exponentials)
    print(f"multiply-adds: {fma:.3g} /s, exponentials: {exponentials:.3g} /s")
    seconds = _seconds(FusedMMD(n, n, d, 1.0, True), *_points(n, d, "cpu"))
    return 1 / ((3 * d + 2) / fma + 1 / exponentials), seconds


def _on_cuda(n: int, d: int) -> tuple[float, float]:
    from benchmarks.limit import rates_cuda
    from mmdma_core.fused.pairs_cuda import FusedMMD, candidates

    fma, exponentials = _rate(rates_cuda.multiply_adds), _rate(rates_cuda.exponentials)
    half = torch.ones(8192, 8192, dtype=torch.float16, device="cuda")
    flops = 2 * 8192**3 / _seconds(torch.matmul, half, half)
    print(f"float32 instructions: {fma:.3g} /s, exp2: {exponentials:.3g} /s, float16 matrix flops: {flops:.3g} /s")
    seconds = _seconds(FusedMMD(n, n, d, 1.0, True), *_points(n, d, "cuda"))
    return min(fma / 6, exponentials, flops / (12 * candidates(d)[0].D)), seconds


def _points(n: int, d: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = [(torch.randn(n, d, generator=generator) / d**0.5).to(device) for _ in "xy"]
    return points + [torch.empty_like(p) for p in points]


def _rate(work: Callable[[], int]) -> float:
    """Operations a second of work(), which returns how many it did."""
    return work() / _seconds(work)


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    """Median of 7 calls, after one that compiles."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work(*arguments)
    taken = []
    for _ in range(7):
        wait()
        begin = time.perf_counter()
        work(*arguments)
        wait()
        taken.append(time.perf_counter() - begin)
    return median(taken)
