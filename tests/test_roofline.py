"""The roofline of a pass over pairs on this machine, and the fraction of it that is reached."""

import math
import re

import pytest
import torch

from benchmarks import roofline
from mmdma_core.fused import pairs_cuda as kernels
from mmdma_core.fused.pair_kernels import COMPACT


@pytest.mark.alone
def test_the_fraction_reached_is_that_of_the_roofline(command):
    said = command("roofline", "--n", "2000", "--d", "4", "--runs", "1", "--set", "device=cpu")
    most, reached = (float(re.search(rf"{word}: +([\d.e+]+) pairs/s", said)[1]) for word in ("roofline", "reached"))
    percent = 100 * reached / most  # of numbers printed with three digits, each off by 0.5 % at most
    assert int(re.search(r"(\d+)%", said)[1]) == pytest.approx(percent, abs=0.5 + 0.01 * percent)
    assert 0.05 < reached / most < 1.5  # what else runs may meet one of the two alone


def test_the_median_of_the_runs_and_their_spread_are_said(monkeypatch, capsys):
    said = iter([(1e9, 0.04), (1e9, 0.1), (2e9, 0.05)])
    monkeypatch.setattr(roofline, "on_a_cpu", lambda n, d: next(said))
    roofline.run("cpu", 4000, 10, 3)
    assert "6.4e+08 pairs/s at n = 4000, d = 10: 32% (32% to 80%, runs: 3)" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="--runs must be at least 1, got 5000, 10 and 0"):
        roofline.run("cpu", 5000, 10, 0)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU")
@pytest.mark.parametrize("double", [7e3, 1.0])
def test_on_cuda_compact_and_other_blocks_are_timed_apart(monkeypatch, capsys, double):
    """With the kernel in Triton's interpreter, and rates in the place of a GPU's."""
    rates = {"multiply-add": 7e3, "exp2": 3e3, "float64": double}
    monkeypatch.setattr(roofline, "rate", lambda work, kind: rates[kind])
    monkeypatch.setattr(roofline, "_WIDTH", 64)
    monkeypatch.setattr(roofline, "seconds", lambda work, *arguments: (work(*arguments), 2.0)[1])
    most, of_pass = roofline.on_cuda(200, 10, device="cpu")
    counts = roofline.COUNTED[90, 10]
    flops = 64**3 / (12 * kernels.candidates(10)[0].D)
    of_pair = 128 * roofline.FLOAT64 / (2 * 128 * 128)  # two clouds of two blocks, four warps
    assert most == min(7e3 / counts.compact, 3e3, flops, double / of_pair)
    assert (most == double / of_pair) == (double == 1)
    assert of_pass == 2
    said = capsys.readouterr().out
    assert f"{counts.compact:g} instructions in a compact block, {counts.wide:g} in any other" in said
    assert "floor: 3e+03 pairs/s, 53.3 s for a pass" in said
    assert f"wide blocks: 8e+04 pairs/s of {7e3 / counts.wide:.3g}" in said
    assert f"{of_pair:.2g} in float64, 192 flops" in said


@pytest.mark.parametrize("d", [1, 2, 10, 64])
@pytest.mark.parametrize(("kind", "compact"), [("compact", True), ("wide", False)])
def test_blocks_are_of_the_kind_that_is_timed(kind, compact, d):
    """Blocks of 128 points in the order that they have, in the kernel's units of sqrt(2 sigma / log2(e))."""
    for cloud in roofline.blocks_of(kind, 5120, d, "cpu")[:2]:
        blocks = cloud.view(40, 128, d) * (0.5 * math.log2(math.e)) ** 0.5
        radii = (blocks - blocks.mean(1, keepdim=True)).square().sum(2).amax(1)
        assert ((radii <= COMPACT) == compact).all()
