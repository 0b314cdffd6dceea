"""How near the one pass over pairs comes to what this machine can do: python -m benchmarks.limit [--n 5000] [--d 10].

The limit is counted from the operations for a pair (docstring of mmdma_core.fused.pairs_cpu; counted.py) and from
throughputs that are measured here, in registers or the first cache:

    CPU   unordered pairs: (3 d + 2) multiply-adds, then one exponential, which the same units compute
    CUDA  ordered pairs, see on_cuda.py: instructions as counted in the compiled kernel, compact and wide blocks apart
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.limit.timing import points, rate, seconds
from benchmarks.measuring import machine


def main() -> None:
    """Print the measured throughputs, the limit they give, and the fraction of it that is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="cells of each view, default: %(default)s")
    parser.add_argument("--d", type=int, default=10, help="dimensions, default: %(default)s")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    print(machine.gpu()["name"] if on_gpu else f"{machine.cpu_model()}, {torch.get_num_threads()} threads")
    limit, of_pass = (_on_cuda if on_gpu else _on_cpu)(options.n, options.d)
    pairs = (2 * options.n) ** 2 / (1 if on_gpu else 2)
    print(f"limit:   {limit:.3g} pairs/s")
    print(f"reached: {pairs / of_pass:.3g} pairs/s at n = {options.n}, d = {options.d}: {pairs / of_pass / limit:.0%}")


def _on_cpu(n: int, d: int) -> tuple[float, float]:
    from benchmarks.limit import rates_cpu
    from mmdma_core.fused.pairs_cpu import FusedMMD

    fma, exponentials = rate(rates_cpu.multiply_adds), rate(rates_cpu.exponentials)
    print(f"multiply-adds: {fma:.3g} /s, exponentials: {exponentials:.3g} /s")
    of_pass = seconds(FusedMMD(n, n, d, 1.0, True), *points(n, d))
    return 1 / ((3 * d + 2) / fma + 1 / exponentials), of_pass


def _on_cuda(n: int, d: int) -> tuple[float, float]:
    from benchmarks.limit import on_cuda

    return on_cuda.limit(n, d)
