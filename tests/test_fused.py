"""The fused variants beyond the common checks: accuracy where it is hard, memory, allocations, limits."""

import math
import os
import subprocess
import sys
from pathlib import Path

import common
import numpy as np
import pytest
import torch
from conftest import ROOT

from benchmarks.measuring import records
from mmdma_core import Settings, Unsupported, objective, simulate, start

FUSED = ["primal-fused", "dual-fused"]
CPU_FLAGS = set(Path("/proc/cpuinfo").read_text().split())


def on_cpu(n_x, n_y, settings):
    from mmdma_core.fused.pairs_cpu import FusedMMD

    return FusedMMD(n_x, n_y, settings.n_components, settings.sigma, settings.unbiased)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("n_x", "n_y", "d"), [(300, 517, 10), (7, 5, 1), (256, 512, 2), (100, 90, 64), (33, 70, 17)])
def test_mmd_and_its_gradient_whatever_the_norms(n_x, n_y, d, offset):
    """Coordinates enter as differences, so points far from the origin lose nothing but their own rounding."""
    common.check_mmd(on_cpu, n_x, n_y, Settings(n_components=d), spread=2.0, offset=offset)


@pytest.mark.parametrize(("spread", "dots"), [(15.0, True), (17.0, False), (100.0, False)])
@pytest.mark.parametrize("sigma", [1.0, 7.0])
def test_mmd_and_its_gradient_up_to_the_width_where_differences_are_taken(spread, dots, sigma):
    """|z - centre|^2 / sigma is about `spread` on average; dot products round by its multiple."""
    settings, made = Settings(n_components=10, sigma=sigma), []

    def make(*of):
        made.append(on_cpu(*of))
        return made[-1]

    common.check_mmd(make, 600, 500, settings, spread=spread * sigma)
    assert all((mmd._unit > 0) == dots for mmd in made)


def test_one_cell_far_away_lets_differences_be_taken():
    x = torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    x[7] *= 17 / x[7].norm()
    mmd, out = on_cpu(500, 500, Settings(n_components=5)), torch.empty_like(x)
    mmd(x, x, out, out)
    assert mmd._unit == 0


def test_the_exponential():
    import numba

    from mmdma_core.fused import pairs_tiles

    @numba.njit
    def of_all(t, out):
        for place in range(0, t.shape[1], pairs_tiles.LANES):
            pairs_tiles.exp2(t, out, 0, place)

    t = np.linspace(-100, 0, 1_600_000, dtype=np.float32)[None]
    out = np.empty_like(t)
    of_all(t, out)
    np.testing.assert_allclose(out, np.exp2(t.astype(np.float64)), rtol=2.5e-7)
    t[:] = np.float32([-101, -1e6, -1e30, -np.inf] * (t.size // 4))  # less counts as 2^-100
    of_all(t, out)
    np.testing.assert_allclose(out, 2.0**-100, rtol=2.5e-7)


@pytest.mark.parametrize(
    ("name", "features"), [("haswell", "+avx2,+fma"), ("generic", ""), ("skylake-avx512", "+avx512f,+avx2,+fma")]
)
def test_other_processors(name, features, tmp_path):
    """Tiles by the registers that there are, in a process that compiles for another processor."""
    if not set(features.replace("+", "").split(",")) - {""} <= CPU_FLAGS:
        pytest.skip(f"this processor has not all of {features}")
    code = (
        "import common, test_fused\n"
        "from mmdma_core import Settings\n"
        "for spread in (2.0, 200.0):\n"
        "    common.check_mmd(test_fused.on_cpu, 300, 517, Settings(), spread=spread, rank=2)\n"
    )
    environment = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tests", env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("spread", "rank"), [(200.0, 2), (2000.0, 3), (2e4, 2)])
def test_mmd_and_its_gradient_of_wide_clouds(spread, rank):
    """Here pairs of neighbours count and others are left out."""
    common.check_mmd(on_cpu, 700, 900, Settings(), spread=spread, rank=rank)


def test_means_that_come_from_far_pairs_alone():
    """Each cell is nearest to one of the other view, with k = 2^-50: that may be left out beside larger ones only."""
    step, aside = ((2 * exponent / math.log2(math.e)) ** 0.5 for exponent in (80, 50))
    x, y = torch.zeros(600, 2), torch.zeros(500, 2)
    x[:, 0], y[:, 0], y[:, 1] = step * torch.arange(600), step * torch.arange(500), aside
    settings = Settings(n_components=2)
    out = torch.empty_like(x), torch.empty_like(y)
    found = on_cpu(600, 500, settings)(x, y, *out)
    points = x.double().requires_grad_(), y.double().requires_grad_()
    means = objective.gaussian_means(*points, settings)
    mmd = means[0] + means[1] - 2 * means[2]
    assert found == pytest.approx(mmd.item(), rel=1e-4, abs=0)
    for gradient, right in zip(out, torch.autograd.grad(mmd, points), strict=True):
        assert (gradient - right).norm() <= 1e-4 * right.norm()


def test_pairs_in_a_wide_plane_are_mostly_left_out():
    from mmdma_core.fused import pairs_tiles
    from mmdma_core.fused.pairs_cpu import _FAR

    points = torch.zeros(2000, 10)
    points[:, :2] = 30 * torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    mmd, out = on_cpu(2000, 2000, Settings()), torch.empty_like(points)
    mmd(points, points, out, out)
    gaps = np.empty_like(mmd._gaps[0])
    blocks = [panel[low : low + pairs_tiles.ROWS] for panel in mmd._rows for low in range(0, 256, pairs_tiles.ROWS)]
    spans = [pairs_tiles.near_columns(block, boxes, mmd._scale, _FAR, gaps) for block in blocks for boxes in mmd._boxes]
    taken = sum(int(end) - int(begin) for begin, end in spans) / (len(spans) * pairs_tiles.PANEL)
    assert 0.05 < taken < 0.4  # of the columns; of the pairs 0.02 have k >= 2^-48


@pytest.mark.parametrize(("n", "leaf"), [(1, 16), (16, 16), (17, 16), (1000, 16), (333, 4)])
def test_neighbours_follow_one_another(n, leaf):
    from mmdma_core.fused.pairs_cpu import kd_orders

    points = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)).round(decimals=1).numpy()  # with ties
    orders = [np.zeros(n, np.int64) for _ in "xy"]
    for t in range(2):
        kd_orders(t, 2, points, points[::-1].copy(), leaf, *orders)
    for cloud, order in zip((points, points[::-1]), orders, strict=True):
        assert sorted(order) == list(range(n))
        size = leaf
        while size < n:
            for begin in range(0, n - size, 2 * size):
                both = cloud[order[begin : begin + 2 * size]]
                along = both[:, np.ptp(both, axis=0).argmax()]
                assert along[:size].max() <= along[size:].min()
            size *= 2


def test_a_biased_mmd_clipped_at_zero_has_no_gradient():
    common.check_clipped_mmd(on_cpu)


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("length", [1.0, 0.93, 0.9])  # 0.93: just below where float32 no longer does, 0.9: just above
@pytest.mark.parametrize(("n", "p"), [(400, 60), (60, 400), (80, 80)])
def test_the_distortion_near_the_optimum(name, n, p, length):
    common.check_distortion_near_the_optimum(name, n, p, length)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("n", "p", "d"), [(1, 1, 1), (5, 7, 3), (6, 513, 10), (7, 8, 10), (1300, 100, 3), (900, 1100, 10), (13, 1031, 1)]
)
def test_products_with_tall_skinny_matrices(n, p, d, threads, dtype):
    """Several flushes and chunks, rows and columns that fill no group or vector; twice, since buffers are kept."""
    from mmdma_core.fused.tall_skinny import TallSkinnyProducts

    stream = np.random.default_rng(0)
    x, w, rows = (stream.standard_normal(shape).astype(dtype) for shape in ((n, p), (p, d), (n, d)))
    products, exact = TallSkinnyProducts(x, d, threads), x.astype(np.float64)
    close = {"rtol": 0, "atol": {np.float32: 2e-5, np.float64: 1e-12}[dtype] * (n * p) ** 0.5}
    for _ in range(2):
        out, total = np.empty((n, d), dtype), np.empty((d, p))
        products.rows(w.T, out)
        np.testing.assert_allclose(out, exact @ w, **close)
        products.sums(rows, total)
        np.testing.assert_allclose(total, rows.T @ exact, **close)
        out[:] = rows
        products.rows_then_sums(w.T, 0.5, out, total)
        np.testing.assert_allclose(out, rows + 0.5 * (exact @ w), **close)
        np.testing.assert_allclose(total, out.T @ exact, **close)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(300, 40), (60, 90)])
def test_five_hundred_epochs_end_where_float64_does(shape):
    n, p = shape
    x, y, _ = simulate("branch", n, p)
    settings = Settings(learning_rate=1e-3)
    fused = start("primal-fused", x, y, settings, seed=1)
    exact = start("primal", x.double(), y.double(), settings, seed=1)
    for _ in range(500):
        fused.step()
        exact.step()
    assert fused.loss().total == pytest.approx(exact.loss().total, rel=1e-4)


@pytest.mark.parametrize("name", FUSED)
def test_the_same_run_twice_gives_the_same_numbers(name):
    x, y, _ = simulate("branch", 700, 30)
    runs = [start(name, x, y, seed=2) for _ in range(2)]
    for run in runs:
        for _ in range(3):
            run.step()
    assert torch.equal(runs[0].parameters[0], runs[1].parameters[0])


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize(("n", "p"), [(3000, 30), (200, 3000)])
def test_a_step_allocates_nothing_of_the_problems_size(name, n, p):
    """Once warm: no tensor, and no NumPy array as large as half an (n, d) or (p, d) matrix, whichever is larger."""
    x, y, _ = simulate("branch", n, p)
    run = start(name, x, y)
    run.step()
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run.step()
    taken = [event.cpu_memory_usage for event in profile.events() if event.name == "[memory]"]
    assert sum(size for size in taken if size > 0) < 4 * 10 * min(n, p)
    common.check_a_step_allocates_nothing(run, 10 * max(n, p))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n", "p", "most"),
    [
        ("primal-fused", 20_000, 20, 150),  # one n x n matrix is 1.5 GiB
        ("dual-fused", 20_000, 20, 150),
        ("primal-fused", 100, 20_000, 150),  # one p x p matrix is 1.5 GiB
        ("dual-fused", 100, 20_000, 150),
    ],
)
def test_nothing_of_size_n_x_n_or_p_x_p_is_held(name, n, p, most, configure, command):
    study = {"n": [90, n], "p": [p], "variants": [name], "epochs": 2}  # the small cell compiles
    root = configure(study)
    command("sweep")
    record = records.read(records.record_path(root, name, p, n))
    assert record.status == "ok", record.detail
    assert record.peak_host_bytes - 8 * n * p < most * 2**20


def test_what_the_fused_variants_do_not_take_is_said():
    x, y, _ = simulate("branch", 100, 80)
    with pytest.raises(Unsupported, match="n_components <= 64, got 65"):
        start("primal-fused", x, y, Settings(n_components=65))
    with pytest.raises(Unsupported, match="give float32 views"):
        start("dual-fused", x.double(), y.double())
