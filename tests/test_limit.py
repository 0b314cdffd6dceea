"""The machine's limit for a pass over pairs, and the fraction of it that is reached."""

import math
import re
import sys

import pytest
import torch
from triton.runtime.errors import OutOfResources

from benchmarks import roofline
from benchmarks.limit import counted, limit, rates_cuda, timing
from benchmarks.limit.unordered_cuda import unordered_sums
from mmdma_core.fused import pairs_cuda as kernels
from mmdma_core.fused.pair_kernels import COMPACT


@pytest.mark.alone
def test_the_fraction_reached_is_that_of_the_limit(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limit", "--n", "2000", "--d", "4", "--runs", "1"])
    limit.main()
    said = capsys.readouterr().out
    most, reached = (float(re.search(rf"{word}: +([\d.e+]+) pairs/s", said)[1]) for word in ("limit", "reached"))
    percent = 100 * reached / most  # of numbers printed with three digits, each off by 0.5 % at most
    assert int(re.search(r"(\d+)%", said)[1]) == pytest.approx(percent, abs=0.5 + 0.01 * percent)
    assert 0.05 < reached / most < 1.5  # what else runs may meet one of the two alone


def test_the_median_of_the_runs_and_their_spread_are_said(monkeypatch, capsys):
    said = iter([(1e9, 0.04), (1e9, 0.1), (2e9, 0.05)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(limit, "_on_cpu", lambda n, d: next(said))
    monkeypatch.setattr(sys, "argv", ["limit", "--n", "4000", "--runs", "3"])
    limit.main()
    assert "6.4e+08 pairs/s at n = 4000, d = 10: 32% (32% to 80%, runs: 3)" in capsys.readouterr().out


interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU")


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize("double", [7e3, 1.0])
def test_on_cuda_compact_and_other_blocks_are_timed_apart(monkeypatch, capsys, double):
    """With the kernel in Triton's interpreter, and rates that stand in for a GPU's."""
    rates = {rates_cuda.multiply_adds: 7e3, rates_cuda.exponentials: 3e3, rates_cuda.doubles: double}
    monkeypatch.setattr(roofline, "rate", rates.get)
    monkeypatch.setattr(roofline, "_WIDTH", 64)
    monkeypatch.setattr(roofline, "seconds", lambda work, *arguments: (work(*arguments), 2.0)[1])
    most, of_pass = roofline.limit(200, 10, device="cpu")
    counts = counted.COUNTED[90, 10]
    flops = 64**3 / (12 * kernels.candidates(10)[0].D)
    of_pair = 128 * counted.FLOAT64 / (2 * 128 * 128)  # two clouds of two blocks, four warps
    assert most == min(7e3 / counts.compact, 3e3, flops, double / of_pair)
    assert (most == double / of_pair) == (double == 1)
    assert of_pass == 2
    said = capsys.readouterr().out
    assert f"{counts.compact:g} instructions in a compact block, {counts.wide:g} in any other" in said
    assert "floor: 3e+03 pairs/s, 53.3 s for a pass" in said
    assert f"wide blocks: 8e+04 pairs/s of {7e3 / counts.wide:.3g}" in said
    assert f"{of_pair:.2g} in float64, 192 flops" in said
    assert "each unordered pair once, a prototype: 1.00 times as fast as compact blocks" in said


@pytest.mark.slow
@interpreted
def test_a_prototype_that_the_gpu_cannot_hold_is_left_out(monkeypatch, capsys):
    def too_much(*_):
        raise OutOfResources(147_456, 101_376, "shared memory")

    monkeypatch.setattr(roofline, "rate", lambda work: 1e3)
    monkeypatch.setattr(roofline, "_WIDTH", 64)
    monkeypatch.setattr("benchmarks.limit.unordered_cuda.unordered_sums", too_much)
    roofline.limit(20, 62, device="cpu")
    assert "a prototype: not on this GPU (out of resource: shared memory, Required: 147456" in capsys.readouterr().out


@pytest.mark.parametrize("d", [1, 2, 10, 64])
@pytest.mark.parametrize(("kind", "compact"), [("compact", True), ("wide", False)])
def test_blocks_are_of_the_kind_that_is_timed(kind, compact, d):
    """Blocks of 128 points in the order that they have, in the kernel's units of sqrt(2 sigma / log2(e))."""
    for cloud in roofline.blocks_of(kind, 5120, d, "cpu")[:2]:
        blocks = cloud.view(40, 128, d) * (0.5 * math.log2(math.e)) ** 0.5
        radii = (blocks - blocks.mean(1, keepdim=True)).square().sum(2).amax(1)
        assert ((radii <= COMPACT) == compact).all()


@pytest.mark.slow
@interpreted
@pytest.mark.parametrize(("n", "d"), [(300, 10), (129, 1), (270, 62)])
def test_each_unordered_pair_once_gives_both_its_points_their_pulls(n, d):
    cloud = timing.points(n, d, spread=roofline.SPREAD)[0] + 3
    found = unordered_sums(cloud, 0.85).double()
    differences = 0.85 * (cloud[None].double() - cloud[:, None].double())
    block = torch.arange(n) // 128
    k = torch.exp2(-differences.square().sum(2)) * (block[:, None] != block)
    scale = torch.einsum("ij,ijk->ik", k, differences.abs()).norm()
    assert (found[:, d] - k.sum(1)).abs().max() <= 1e-6 * k.sum(1).max()
    assert (found[:, :d] - torch.einsum("ij,ijk->ik", k, differences)).norm() <= 1e-6 * scale
