"""The roofline of the pass over pairs: what this machine could reach, and how near to it the pass comes.

It is counted from the operations for a pair, and from throughputs that are measured here with operands in registers or
the first cache. On the CPU throughputs and the pass are measured in turn, so that what else runs there meets both.

    CPU   unordered pairs (docstring of mmdma_core.fused.pairs_tiles): 3 d multiply-adds and 2 additions for the sums of
          k, counted alike, then one exponential, which the same units compute
    CUDA  ordered pairs, each with one exp2, the instructions that are counted in the compiled kernel (COUNTED) and, in
          a compact block, 12 D float16 flops on the tensor cores, D = d padded. A program of pairs adds up its sums of
          k in float64. Each of these has units of its own, so the slowest of the four is the roofline. No kernel that
          visits ordered pairs is faster than their exponentials: they are the floor of its seconds.

`python -m benchmarks roofline`; gpu-check takes its times of kinds of blocks, and how products round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numba
import numpy as np
import torch

from benchmarks.measuring import machine
from mmdma_core.fused.pairs_tiles import LANES, exp2
from mmdma_core.fused.threads import in_threads

try:
    import triton
    import triton.language as tl
except ImportError:  # which a CPU does without
    triton = None

TRITON = "3.7"  # the version that the instructions were counted with
FLOAT64 = 6  # instructions in float64 of a thread of a program, for the sums of k of both clouds; none for a pair
SPREAD = 0.1  # mean squared norm, in units of sigma, of points whose blocks are all compact
_FAR_POINTS, _AWAY = 32, 20.0  # every so many points one lies so far away that no block is compact
_WIDTH = 8192  # of the matrices whose product measures the tensor cores
_CHAINS = 96  # numbers that a thread of the CPU holds: enough to hide the latency of a multiply-add
_REPEATS_CPU = 5_000_000
_PROGRAMS, _NUMBERS, _REPEATS_CUDA = 4096, 1024, 4096
_F = np.float32


@dataclass(frozen=True)
class Counted:
    """What a thread executes for an ordered pair, counted in what Triton makes of it for a GPU that need not be there.

    compact, wide  instructions for a pair, in a compact block and in any other
    registers      of a thread, in the kernel of compact blocks
    """

    compact: float
    wide: float
    registers: int


# tests/test_fused_cuda.py counts again and holds these numbers to 10 %, FLOAT64 as it is.
COUNTED = {  # (compute capability, d), with the tile that suits most devices
    (80, 10): Counted(9.9, 77.8, 255),
    (80, 62): Counted(24.4, 307.8, 255),
    (89, 10): Counted(9.9, 72.7, 254),
    (89, 62): Counted(24.4, 308.1, 255),
    (90, 10): Counted(9.0, 73.6, 250),
    (90, 62): Counted(17.3, 293.5, 255),
    (100, 10): Counted(10.3, 71.9, 236),
    (100, 62): Counted(22.3, 228.2, 255),
    (120, 10): Counted(9.8, 77.3, 255),
    (120, 62): Counted(25.5, 301.1, 255),
}


def run(device: str, n: int, d: int, runs: int) -> None:
    """Print the measured throughputs, the roofline they give, and the fraction of it that is reached.

    n, d  cells of each view, and dimensions
    runs  how often all is measured, on the CPU
    """
    if min(n, d, runs) < 1:
        raise ValueError(f"--n, --d and --runs must be at least 1, got {n}, {d} and {runs}")
    on_cpu = device == "cpu"
    print(f"{machine.cpu_model()}, {torch.get_num_threads()} threads" if on_cpu else machine.gpu()["name"])
    pairs = (2 * n) ** 2 / (2 if on_cpu else 1)
    rooflines, reached = [], []
    for _ in range(runs if on_cpu else 1):
        roofline, of_pass = (on_a_cpu if on_cpu else on_cuda)(n, d)
        rooflines.append(roofline)
        reached.append(pairs / of_pass)
    fractions = sorted(one / most for one, most in zip(reached, rooflines, strict=True))
    print(f"roofline: {median(rooflines):.3g} pairs/s")
    print(
        f"reached:  {median(reached):.3g} pairs/s at n = {n}, d = {d}: {median(fractions):.0%}"
        f" ({fractions[0]:.0%} to {fractions[-1]:.0%}, runs: {len(fractions)})"
    )


def on_a_cpu(n: int, d: int) -> tuple[float, float]:
    """Print the throughputs; return pairs a second at the roofline, and the seconds of a pass."""
    from mmdma_core.fused.pairs_cpu import FusedMMD

    fma, exp2s = rate(multiply_adds), rate(exponentials)
    print(f"multiply-adds: {fma:.3g} /s, exponentials: {exp2s:.3g} /s")
    of_pass = seconds(FusedMMD(n, n, d, 1.0, True), *points(n, d))
    return 1 / ((3 * d + 2) / fma + 1 / exp2s), of_pass


def on_cuda(n: int, d: int, device: str = "cuda") -> tuple[float, float]:
    """Print what is counted and measured; return pairs a second at the roofline, and the seconds of a pass.

    Both are those of compact blocks.

    device  'cuda', or 'cpu' where Triton is an interpreter
    """
    from mmdma_core.fused.pairs_cuda import FusedMMD

    instructions, exp2s, doubles = (rate(operations, kind) for kind in ("multiply-add", "exp2", "float64"))
    half = torch.ones(_WIDTH, _WIDTH, dtype=torch.float16, device=device)
    flops = 2 * _WIDTH**3 / seconds(torch.matmul, half, half)
    print(
        f"instructions: {instructions:.3g} /s, exp2: {exp2s:.3g} /s, float64: {doubles:.3g} /s, "
        f"float16 matrix flops: {flops:.3g} /s"
    )
    key, counts = nearest(_capability(device), d)
    summing = FusedMMD(n, n, d, 1.0, True)
    of_pair = 12 * summing.tile.D
    doubles_of_pair = 32 * summing.tile.num_warps * FLOAT64 / summing.pairs_of_a_program
    print(
        f"an ordered pair: {counts.compact:g} instructions in a compact block, {counts.wide:g} in any other, "
        f"{doubles_of_pair:.2g} in float64, {of_pair} flops "
        f"(counted for sm_{key[0]}, d = {key[1]}, Triton {TRITON})"
    )
    print(f"the exponentials' floor: {exp2s:.3g} pairs/s, {4 * n * n / exp2s:.3g} s for a pass")
    most = {
        "compact": min(instructions / counts.compact, exp2s, doubles / doubles_of_pair, flops / of_pair),
        "wide": min(instructions / counts.wide, exp2s),
    }
    taken = apart(n, d, device)
    for kind, of_pass in taken.items():
        reached = 4 * n * n / of_pass
        print(f"{kind} blocks: {reached:.3g} pairs/s of {most[kind]:.3g}: {reached / most[kind]:.0%}")
    return most["compact"], taken["compact"]


def nearest(capability: int, d: int) -> tuple[tuple[int, int], Counted]:
    """Return the counts for the nearest compute capability (10 major + minor) that is not above, and the nearest d."""
    of = max([c for c, _ in COUNTED if c <= capability], default=min(COUNTED)[0])
    key = min((key for key in COUNTED if key[0] == of), key=lambda key: abs(key[1] - d))
    return key, COUNTED[key]


def _capability(device: str) -> int:
    major, minor = torch.cuda.get_device_capability() if device == "cuda" else (9, 0)
    return 10 * major + minor


def apart(n: int, d: int, device: str = "cuda") -> dict[str, float]:
    """Time a pass over the pairs of n and n points (n, d): seconds of 'compact' blocks alone, and of 'wide' ones."""
    from mmdma_core.fused.pairs_cuda import FusedMMD, fastest_tile

    in_line = torch.arange(n, dtype=torch.float32, device=device)[:, None]
    taken = {}
    for kind in ("compact", "wide"):
        summing = FusedMMD(n, n, d, 1.0, True, fastest_tile(n, d, torch.device(device)))
        summing.sort(in_line, in_line)  # as they come
        taken[kind] = seconds(summing, *blocks_of(kind, n, d, device))
    return taken


def blocks_of(kind: str, n: int, d: int, device: str) -> list[torch.Tensor]:
    """Return what `points` does, but such that all blocks, as the points come, are 'compact' or all are 'wide'."""
    clouds = points(n, d, device, SPREAD)
    if kind == "wide":
        for cloud in clouds[:2]:
            cloud[::_FAR_POINTS, 0] += _AWAY
    return clouds


def points(n: int, d: int, device: str = "cpu", spread: float = 1.0) -> list[torch.Tensor]:
    """Draw two normal clouds (n, d) of the mean squared norm `spread`; return them, and room for their gradients."""
    generator = torch.Generator().manual_seed(0)
    clouds = [(torch.randn(n, d, generator=generator) * (spread / d) ** 0.5).to(device) for _ in "xy"]
    return clouds + [torch.empty_like(cloud) for cloud in clouds]


def rate(work: Callable[..., int], *arguments: object) -> float:
    """Return the operations a second of work, which returns how many it did."""
    return work(*arguments) / seconds(work, *arguments)


def seconds(work: Callable[..., object], *arguments: object) -> float:
    """Return the median seconds of 7 calls, after one that compiles."""
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


# Work whose operations are known. On the CPU with Numba, and the pass's own exponential


def multiply_adds() -> int:
    """Do as many float32 multiply-adds on the CPU as this returns."""
    in_threads(_multiply_adds, torch.get_num_threads(), np.zeros(torch.get_num_threads(), _F), _REPEATS_CPU)
    return torch.get_num_threads() * _REPEATS_CPU * _CHAINS


def exponentials() -> int:
    """Do as many float32 exponentials on the CPU as this returns."""
    values = np.full((torch.get_num_threads(), 1024), -1.5, _F)
    in_threads(_exponentials, torch.get_num_threads(), values, np.empty_like(values), _REPEATS_CPU // 100)
    return torch.get_num_threads() * (_REPEATS_CPU // 100) * 1024


@numba.njit(fastmath={"contract"}, nogil=True, cache=True)  # no more, or two steps of a chain become one
def _multiply_adds(t, threads, out, repeats):  # noqa: ANN001, ANN202
    values = np.zeros(_CHAINS, _F)
    for _ in range(repeats):
        for chain in range(_CHAINS):
            values[chain] = values[chain] * _F(0.5) + _F(1)
    for chain in range(_CHAINS):
        out[t] += values[chain]


@numba.njit(nogil=True, cache=True)
def _exponentials(t, threads, values, out, repeats):  # noqa: ANN001, ANN202
    for _ in range(repeats):
        for i in range(0, values.shape[1], LANES):
            exp2(values, out, t, i)


# The same on a GPU, with Triton


def operations(kind: str) -> int:
    """Do as many operations on the GPU as this returns.

    kind  'multiply-add' in float32, each an instruction of its own; 'exp2'; 'float64', a multiply-add
    """
    out = torch.empty(_PROGRAMS * _NUMBERS, device="cuda")
    _chain[_PROGRAMS,](out, _REPEATS_CUDA, kind, _NUMBERS)
    return _PROGRAMS * _NUMBERS * _REPEATS_CUDA


def products_truncate(device: str = "cuda") -> bool:
    """Whether a product of float16 matrices cuts off what it cannot hold: 1 + 1.5 x 2^-24 is then 1, not 1 + 2^-23."""
    a, b = (torch.zeros(64, 64, dtype=torch.float16, device=device) for _ in "ab")
    a[:, 0], a[:, 1] = 1, 2.0**-12
    b[0], b[1] = 1, 1.5 * 2.0**-12
    out = torch.empty(64, 64, device=device)
    _product[1,](a, b, out, 64)
    return bool((out == 1).all())


if triton:

    @triton.jit
    def _chain(out, repeats, kind: tl.constexpr, width: tl.constexpr):  # noqa: ANN001, ANN202
        """A chain of `repeats` operations for each of `width` numbers of a program."""
        at = tl.program_id(0) * width + tl.arange(0, width)
        values = at.to(tl.float64 if kind == "float64" else tl.float32) * 1e-9
        for _ in range(repeats):
            if kind == "exp2":
                values = tl.exp2(-values)
            elif kind == "float64":
                values = values * 0.5 + 1.0
            else:  # as assembly, or from compute capability 10.0 on two would be one instruction
                values = tl.inline_asm_elementwise(
                    "fma.rn.f32 $0, $1, 0f3F000000, 0f3F800000;", "=f,f", [values], tl.float32, is_pure=True, pack=1
                )
        tl.store(out + at, values)

    @triton.jit
    def _product(a, b, out, width: tl.constexpr):  # noqa: ANN001, ANN202
        at = tl.arange(0, width)[:, None] * width + tl.arange(0, width)[None, :]
        tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))
