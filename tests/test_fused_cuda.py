"""The fused variants' CUDA code without a GPU: its logic in Triton's interpreter, its kernel compiled for sm_80, sm_90.

The interpreter multiplies float16 and float32 matrices in float32, so the split into float16 parts is what it is on a
GPU; the tensor cores' own rounding is not seen here. The tests marked gpu, here and in test_variants.py, see it.
"""

import json
import os
import subprocess
import sys

import common
import pytest
import torch
from conftest import ROOT

from mmdma_core import Settings, Unsupported, simulate, start, variant
from mmdma_core.fused import compose, views_cuda
from mmdma_core.fused import pairs_cuda as kernels

pytestmark = pytest.mark.slow

FUSED = ["primal-fused", "dual-fused"]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU")


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The fused variants run their CUDA code on CPU tensors."""
    monkeypatch.setattr(compose, "on_gpu", lambda device: True)


def unsorted(n_x, n_y, settings):
    return kernels.FusedMMD(n_x, n_y, settings.n_components, settings.sigma, settings.unbiased, sort=False)


def in_order(n_x, n_y, settings):
    return kernels.FusedMMD(n_x, n_y, settings.n_components, settings.sigma, settings.unbiased, sort=True)


# Every block is compact and takes the tensor cores; no block is; a wide cloud with near neighbours.
@interpreted
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("spread", "rank"), [(0.3, None), (2.0, None), (500.0, 1)])
@pytest.mark.parametrize(("n_x", "n_y", "d"), [(150, 97, 10), (7, 5, 1), (100, 90, 64), (33, 70, 17)])
def test_mmd_and_its_gradient_whatever_the_norms(n_x, n_y, d, spread, rank, offset):
    common.check_mmd(unsorted, n_x, n_y, Settings(n_components=d), spread, offset, rank)


@interpreted
def test_sorted_points_with_compact_and_other_blocks():
    common.check_mmd(in_order, 300, 270, Settings(n_components=2), spread=40.0)


def test_the_curve_makes_blocks_compact():
    """Blocks of 128 of 10,000 points in a plane of ten dimensions: radius^2 a hundredth of the cloud's, mostly."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(12_800, 2, generator=generator) @ torch.randn(2, 10, generator=generator)
    order = kernels.morton_order(points)
    assert torch.equal(order.sort().values, torch.arange(len(points)))
    blocks = points[order].reshape(100, 128, 10)
    radii = (blocks - blocks.mean(1, keepdim=True)).square().sum(2).amax(1)
    assert radii.median() < 0.01 * points.square().sum(1).max()


@interpreted
def test_a_biased_mmd_clipped_at_zero_has_no_gradient():
    common.check_clipped_mmd(unsorted)


@interpreted
@pytest.mark.parametrize("case", common.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", FUSED)
def test_loss_and_gradients(as_on_cuda, name, case):
    common.check_loss_and_gradients(name, case)


@interpreted
@pytest.mark.parametrize("name", FUSED)
def test_training(as_on_cuda, name):
    common.check_training(name)
    common.check_starting_values(name)


@interpreted
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("n", "p"), [(400, 60), (60, 400), (80, 80)])
def test_the_distortion_near_the_optimum(as_on_cuda, name, n, p):
    common.check_distortion_near_the_optimum(name, n, p)


@pytest.fixture(scope="module")
def compiled():
    """The kernel in PTX for (capability, d), compiled in a process where Triton is no interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps([(c, d) for c in INSTRUCTION for d in WIDTHS])],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {(c, d): ptx for c, d, ptx in map(json.loads, done.stdout.splitlines())}


INSTRUCTION = {80: "mma.sync", 90: "wgmma.mma_async"}  # of the tensor cores, by compute capability
WIDTHS = [10, 64]
COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from mmdma_core.fused.pairs_cuda import pair_sums, tile

for capability, d in json.loads(sys.argv[1]):
    sizes = tile(d)
    warps = sizes.pop("num_warps")
    types = dict.fromkeys(("n_x", "n_y", "blocks_x", "segment"), "i32")
    types |= dict.fromkeys(("scale", "weight_x", "weight_y", "weight_across"), "fp32")
    types |= {"points": "*fp32", "sums": "*fp64", "pulls": "*fp32"}
    constants = {"d": d} | sizes
    source = ASTSource(pair_sums, types | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert built.asm["cubin"]
    print(json.dumps([capability, d, built.asm["ptx"]]))
"""


@pytest.mark.parametrize("d", WIDTHS)
@pytest.mark.parametrize("capability", INSTRUCTION)
def test_the_kernel_compiles(compiled, capability, d):
    """With products on the tensor cores, and nothing that only the device it is compiled on could tell."""
    assert INSTRUCTION[capability] in compiled[capability, d]


def test_what_the_fused_variants_do_not_take_on_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(Unsupported, match=r"compute capability 8\.0 or more, this GPU has 7\.0"):
        variant("primal-fused").missing(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert variant("primal-fused").missing(torch.device("cuda")) is None
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in variant("primal-fused").missing(torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", FUSED)
def test_a_captured_epoch_is_an_epoch(name, monkeypatch):
    """Graph replays and epochs launched one by one end at the same loss, and replays wait for nothing."""
    x, y, _ = simulate("branch", 700, 30)
    captured = start(name, x, y, Settings(learning_rate=1e-3), "cuda")
    monkeypatch.setattr(views_cuda, "CAPTURED_POINTS", 0)
    launched = start(name, x, y, Settings(learning_rate=1e-3), "cuda")
    captured.step()
    launched.step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(20):
        captured.step()
    torch.cuda.set_sync_debug_mode("default")
    for _ in range(20):
        launched.step()
    assert captured.epoch == launched.epoch == 21
    assert captured.loss() == pytest.approx(launched.loss(), rel=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("n", "spread"), [(20_000, 2.0), (20_000, 100.0), (60_000, 100.0)])
def test_large_clouds_on_the_gpu(n, spread):
    """Against sums in float64, formed row by row: the means to 1e-6, gradients to 1e-5 of their uncancelled scale."""
    generator = torch.Generator().manual_seed(0)
    x, y = ((torch.randn(n, 2, generator=generator) @ torch.randn(2, 10, generator=generator)) for _ in "xy")
    x, y = (points.cuda() * (spread / points.square().sum(1).mean()) ** 0.5 for points in (x, y))
    settings = Settings()
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    found = in_order(n, n, settings)(x, y, out_x, out_y)
    mean, across, gradient, scale = 0.0, 0.0, torch.zeros(n, 10).cuda().double(), torch.zeros(()).cuda().double()
    for rows in torch.arange(n, device="cuda").split(500):
        for cloud, weight in ((x, 1 / (n * (n - 1))), (y, -1 / n**2)):
            differences = cloud[None].double() - x[rows, None].double()
            k = torch.exp(differences.square().sum(2) / -2)
            if cloud is x:
                k[torch.arange(len(rows)), rows] = 0
                mean += k.sum() * weight
            else:
                across -= k.sum() * weight
            part = 2 * weight * torch.einsum("ij,ijk->ik", k, differences)
            gradient[rows] += part
            scale += part.square().sum()
    mean_y = 0.0
    for rows in torch.arange(n, device="cuda").split(500):
        mean_y += torch.exp(torch.cdist(y[rows].double(), y.double()).square() / -2).sum()
    mean_y = (mean_y - n) / (n * (n - 1))
    assert abs(found - (mean + mean_y - 2 * across)) <= 1e-6 * (mean + mean_y + 2 * across)
    assert (out_x.double() - gradient).norm() <= 1e-5 * scale.sqrt()
