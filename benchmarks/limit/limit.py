"""How near the one pass over pairs comes to what this machine can do: python -m benchmarks.limit [--n 5000] [--d 10].

On the CPU throughputs and the pass are measured in turn, five times, so that what else the machine does meets both.

The limit is counted from the operations for a pair (docstring of mmdma_core.fused.pairs_tiles; counted.py) and from
throughputs that are measured here, in registers or the first cache:

    CPU   unordered pairs: 3 d multiply-adds and 2 additions for the sums of k, counted alike, then one exponential,
          which the same units compute
    CUDA  ordered pairs, see benchmarks/roofline.py: instructions as counted in the compiled kernel, compact and wide blocks apart
"""

from __future__ import annotations

import argparse
from statistics import median

import torch

from benchmarks.limit.timing import points, rate, seconds
from benchmarks.measuring import machine


def main() -> None:
    """Print the measured throughputs, the limit they give, and the fraction of it that is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="cells of each view, default: %(default)s")
    parser.add_argument("--d", type=int, default=10, help="dimensions, default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, help="on the CPU, default: %(default)s")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    print(machine.gpu()["name"] if on_gpu else f"{machine.cpu_model()}, {torch.get_num_threads()} threads")
    pairs = (2 * options.n) ** 2 / (1 if on_gpu else 2)
    limits, reached = [], []
    for _ in range(1 if on_gpu else options.runs):
        limit, of_pass = (_on_cuda if on_gpu else _on_cpu)(options.n, options.d)
        limits.append(limit)
        reached.append(pairs / of_pass)
    fractions = sorted(one / limit for one, limit in zip(reached, limits, strict=True))
    print(f"limit:   {median(limits):.3g} pairs/s")
    print(
        f"reached: {median(reached):.3g} pairs/s at n = {options.n}, d = {options.d}: {median(fractions):.0%}"
        f" ({fractions[0]:.0%} to {fractions[-1]:.0%}, runs: {len(fractions)})"
    )


def _on_cpu(n: int, d: int) -> tuple[float, float]:
    from benchmarks.limit import rates_cpu
    from mmdma_core.fused.pairs_cpu import FusedMMD

    fma, exponentials = rate(rates_cpu.multiply_adds), rate(rates_cpu.exponentials)
    print(f"multiply-adds: {fma:.3g} /s, exponentials: {exponentials:.3g} /s")
    of_pass = seconds(FusedMMD(n, n, d, 1.0, True), *points(n, d))
    return 1 / ((3 * d + 2) / fma + 1 / exponentials), of_pass


def _on_cuda(n: int, d: int) -> tuple[float, float]:
    from benchmarks import roofline

    return roofline.limit(n, d)
