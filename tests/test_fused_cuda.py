"""The fused variants' CUDA code without a GPU: its logic in Triton's interpreter, its kernel compiled and counted.

The interpreter multiplies float16 and float32 matrices in float32, so the split into float16 parts is what it is on a
GPU; the tensor cores' own rounding is not seen here. The tests marked gpu, here and in test_variants.py, see it.
"""

import math
import sys

import common
import pytest
import sass
import tensor_cores
import torch
import triton
import triton.language as tl

from benchmarks import roofline
from benchmarks.roofline import COUNTED
from mmdma_core import Settings, Unsupported, simulate, start, variant
from mmdma_core.fused import compose, pair_kernels, pairs_cuda, views_cuda
from mmdma_core.fused import pairs_cuda as kernels
from mmdma_core.fused.pairs_cuda import kd_order
from mmdma_core.matching.starts import Start, run_starts
from mmdma_core.matching.training import train

pytestmark = pytest.mark.slow

FUSED = ["primal-fused", "dual-fused"]
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is used only without a GPU")


@pytest.fixture
def as_on_cuda(monkeypatch):
    """The fused variants run their CUDA code on CPU tensors."""
    monkeypatch.setattr(compose, "on_gpu", lambda device: True)


def exact(n_x, n_y, settings):
    return kernels.FusedMMD(n_x, n_y, settings.n_components, settings.sigma, settings.unbiased)


# Every block is compact and takes the tensor cores; no block is; a wide cloud with near neighbours.
@interpreted
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("spread", "rank"), [(0.3, None), (8.0, None), (500.0, 1)])
@pytest.mark.parametrize(("n_x", "n_y", "d"), [(150, 97, 10), (7, 5, 1), (100, 90, 64), (33, 70, 17)])
def test_mmd_and_its_gradient_whatever_the_norms(n_x, n_y, d, spread, rank, offset):
    common.check_mmd(exact, n_x, n_y, Settings(n_components=d), spread, offset, rank)


@interpreted
@pytest.mark.parametrize("tile", kernels.candidates(10), ids=str)
def test_every_tile_with_compact_and_other_blocks(tile):
    def tiled(n_x, n_y, settings):
        return kernels.FusedMMD(n_x, n_y, settings.n_components, settings.sigma, settings.unbiased, tile)

    # The estimators differ in the weights of the sums, of which a tile knows nothing.
    common.check_mmd(tiled, 300, 270, Settings(n_components=2), spread=40.0, estimators=(True,))


@interpreted
def test_columns_far_away_are_left_out(monkeypatch):
    """Two groups of points within each cloud, whose k is below 2^-48 between them and the sum is the same without."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(512, 10, generator=generator) / 3 for _ in "xy")
    x[256:] += 6.0
    y[256:] += 6.0
    mmd = kernels.FusedMMD(512, 512, 10, 1.0, True)
    mmd.sort(x, y)
    monkeypatch.setattr(pair_kernels, "_LEAST_MEAN", tl.constexpr(0.0))  # or what is left out is taken after all

    def within_x():
        return float(mmd._sums(mmd._sum_pairs(x, y)[0])[0])

    answers, is_near = [], pair_kernels._is_near

    def noted(*given):
        near = bool(is_near(*given))
        answers.append(near)
        return near

    monkeypatch.setattr(pair_kernels, "_is_near", noted)
    found = within_x()
    assert 0.4 < answers.count(False) / len(answers) < 0.7, "the other group's are left out"
    monkeypatch.setattr(pair_kernels, "_LEFT_OUT", tl.constexpr(-1.0))
    assert within_x() < 0.6 * found, "only pairs of a block are left"
    monkeypatch.setattr(pair_kernels, "_LEFT_OUT", tl.constexpr(1e30))
    assert within_x() == pytest.approx(found, rel=1e-12)


@interpreted
def test_means_that_are_too_small_are_formed_again():
    """Clouds so far apart that a mean across is 2^-70, which no compact block could add up."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(140, 3, generator=generator) / 10 for _ in "xy")
    y[:, 0] += 10.0
    mmd = kernels.FusedMMD(140, 140, 3, 1.0, True)
    mmd.sort(x, y)
    sums = mmd._sums(mmd._sum_pairs(x, y)[0])
    right = torch.exp(-torch.cdist(x.double(), y.double()).square() / 2).sum()
    assert right < 140**2 * 2.0**-60
    assert float(sums[2]) == pytest.approx(float(right), rel=1e-4)


@interpreted
@pytest.mark.parametrize("compact", [True, False])
def test_sums_of_k_over_many_groups_lose_nothing(monkeypatch, compact):
    """A program that takes 16 groups of columns finds what 16 programs of a group find; in float32 it would not."""
    if not compact:
        monkeypatch.setattr(pair_kernels, "_COMPACT", tl.constexpr(-1.0))
    x, y = (torch.randn(2048, 3, generator=torch.Generator().manual_seed(seed)) / 10 for seed in (0, 1))
    tensor_cores.only(monkeypatch, {name: [0] for name in ("compact_blocks", "wide_blocks")})
    monkeypatch.setattr(kernels, "_GROUP", 128)
    across = []
    for programs in (1, 512):
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        mmd = kernels.FusedMMD(2048, 2048, 3, 1.0, True)
        mmd.sort(x, y)
        sums, _ = mmd._sum_pairs(x, y)
        assert len(sums) == (1 if programs == 1 else 16)
        across.append(float(sums[:, 0, 1].sum()))
    assert across[0] == pytest.approx(across[1], rel=1e-13)


FAR = (
    7 * 2**25
)  # cells of a view: its coordinates, padded to 16, end at 3.5 x 2^30, and those of both views at 7 x 2^30


@interpreted
@pytest.mark.parametrize("name", ["arrange", "compact_blocks", "wide_blocks"])
def test_offsets_may_exceed_what_32_bits_hold(monkeypatch, name):
    """The last block of y: it reaches the last points and stays in its tensors, where 32 bits would wrap around."""
    n, D, M, d, group = FAR - 5, 16, 128, 10, 256
    blocks_x = -(-n // M)
    if name == "wide_blocks":
        monkeypatch.setattr(pair_kernels, "_COMPACT", tl.constexpr(-1.0))
    real, whole = torch.float32, torch.int64
    last = {"points": 2 * n * D - 1, "blocks": 2 * blocks_x * 3 * D - 1, "radii": 2 * blocks_x - 1}
    if name == "arrange":
        given = {
            "e_x": real,
            "e_y": real,
            "order_x": whole,
            "order_y": whole,
            **dict.fromkeys(last, real),
            "scale": 1.0,
        }
        given |= {"n_x": n, "n_y": n, "blocks_x": blocks_x}
        options, last["order_y"] = {}, n - 1
    else:
        segment = (blocks_x - 3) * M  # of which the second holds the last blocks of columns
        given = dict.fromkeys(last, real) | ({"least_mean": real} if name == "wide_blocks" else {}) | {"scale": 1.0}
        given |= {"sums": torch.float64, "pulls": real, "rank": 0, "ranks": 1, "n_x": n, "n_y": n, "blocks_x": blocks_x}
        given |= {"segment": segment, "weight_x": 1.0, "weight_y": 1.0, "weight_across": 1.0}
        options = {"N": 64, "GROUP": group} | ({"again": False} if name == "wide_blocks" else {})
        last |= {"sums": 2 * 2 * blocks_x * 2 - 1, "pulls": 2 * 2 * n * d - 1}
    kernel = getattr(pair_kernels, name)
    seen = tensor_cores.reached(monkeypatch, kernel, (2 * blocks_x - 1, 1), given, d=d, D=D, M=M, **options)
    assert {tensor: seen[tensor][1] for tensor in last} == last
    assert all(least >= 0 for least, _ in seen.values())
    if name != "arrange":  # and from the last columns of x on, which lie beyond 2^31, too
        assert seen["points"][0] == segment * D > 2**31


@interpreted
def test_an_old_order_is_as_right():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, generator=generator) * 5 for n in (300, 270))
    mmd = kernels.FusedMMD(300, 270, 2, 1.0, True)
    found = {}
    for name, (of_x, of_y) in {"own": (x, y), "another's": (x.flip(0), torch.zeros_like(y))}.items():
        mmd.sort(of_x, of_y)
        out_x, out_y = torch.empty_like(x), torch.empty_like(y)
        found[name] = torch.cat([mmd(x, y, out_x, out_y).float().view(1), out_x.flatten(), out_y.flatten()])
    assert torch.allclose(found["own"], found["another's"], rtol=1e-5, atol=1e-8)


def test_the_order_is_renewed_where_it_lies(as_on_cuda, monkeypatch):
    """Every SORTED_EVERY epochs, and at once after a restart, into the place that a graph knows."""
    sorted_at = []
    x, y, _ = simulate("branch", 60, 20)
    run = start("primal-fused", x, y)
    sort = run.mmd.sort
    monkeypatch.setattr(kernels.FusedMMD, "__call__", lambda self, e_x, e_y, *_: e_x.sum().double())
    monkeypatch.setattr(run.mmd, "sort", lambda *e: sorted_at.append(run.epoch) or sort(*e))
    run.step()
    places = [order.data_ptr() for order in run.mmd._orders]
    for _ in range(kernels.SORTED_EVERY):
        run.step()
    run.restart(1)
    run.step()
    assert sorted_at == [0, kernels.SORTED_EVERY, 0]
    assert [order.data_ptr() for order in run.mmd._orders] == places


@pytest.mark.parametrize("n", [1, 127, 128, 1000, 12_800])
def test_the_tree_makes_blocks_compact(n):
    """Blocks of 128 points in a plane of ten dimensions: radius^2 a hundredth of the cloud's, mostly."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(n, 2, generator=generator) @ torch.randn(2, 10, generator=generator)
    order = kd_order(points, 128)
    assert torch.equal(order.sort().values, torch.arange(n))
    if n == 12_800:
        blocks = points[order].reshape(100, 128, 10)
        radii = (blocks - blocks.mean(1, keepdim=True)).square().sum(2).amax(1)
        assert radii.median() < 0.01 * points.square().sum(1).max()


@pytest.mark.parametrize("n", [100, 256, 300, 1000])
@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_points_that_are_no_numbers_have_an_order(n, what):
    """As a start leaves them that diverges: an index beyond n would end all starts."""
    points = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    for rows, columns in ((slice(7, 8), 2), (slice(3, 5), slice(None)), (slice(None), 1), (slice(None), slice(None))):
        points[rows, columns] = what
        assert torch.equal(kd_order(points, 128).sort().values, torch.arange(n))


def test_a_start_that_diverges_between_two_losses_ends_alone(as_on_cuda, monkeypatch):
    """The points are sorted when they are no numbers any more, and no loss has said so yet."""

    def no_pull(self, e_x, e_y, *outs):
        if self._orders is None:
            self.sort(e_x, e_y)
        for out, order in zip(outs, self._orders, strict=True):
            out.index_copy_(0, order, torch.zeros_like(out))
        return e_x.sum().double() * 0

    monkeypatch.setattr(kernels.FusedMMD, "__call__", no_pull)
    x, y, _ = simulate("branch", 300, 20)
    run = start("primal-fused", x, y, Settings(learning_rate=1e-3))

    def train_one(run, start, _):
        run._adam.learning_rate = 1e30 if start.seed == 1 else 1e-3
        return train(run, 60, loss_every=60)

    both = [Start(1), Start(2)]
    losses, rows, _ = run_starts(both, lambda start: run, train_one, lambda run, history: history.losses[-1].total)
    assert rows["stopped"].tolist() == ["diverged", None]
    assert losses[0] is None
    assert math.isfinite(losses[1])


@interpreted
def test_an_embedding_that_is_no_number_has_no_mmd():
    x, y = (torch.randn(150, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x[7, 1] = math.nan
    out_x, out_y = torch.empty_like(x), torch.empty_like(y)
    assert math.isnan(kernels.FusedMMD(150, 150, 3, 1.0, True)(x, y, out_x, out_y))
    assert out_x.isnan().any()


@pytest.fixture
def a_gpu_to_time(monkeypatch, tmp_path):
    """Times that a GPU would have taken, the third candidate's the least; which candidates were timed."""
    timed = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(
        pairs_cuda, "milliseconds", lambda n, d, tile, device: timed.append((n, tile)) or abs(3 - len(timed) % 5)
    )
    return timed


def test_the_fastest_tile_is_timed_once(a_gpu_to_time, tmp_path):
    chosen = [pairs_cuda.fastest_tile(n, 10, torch.device("cuda")) for n in (1000, 1024, 900)]
    candidates = kernels.candidates(10)
    assert a_gpu_to_time == [(1024, tile) for tile in candidates]
    assert chosen == 3 * [candidates[2]]
    pairs_cuda.fastest_tile(10**6, 10, torch.device("cuda"))
    assert a_gpu_to_time[-1][0] == 16_384
    for kept in tmp_path.iterdir():
        kept.write_text("[16, 3, 5, 1]")
    pairs_cuda.fastest_tile(1000, 10, torch.device("cuda"))
    assert len(a_gpu_to_time) == 3 * len(candidates)


def holding(most, monkeypatch):
    """The GPU of `a_gpu_to_time` holds tiles of up to so many columns alone."""

    def milliseconds(n, d, tile, device):
        if most < tile.N:
            raise pairs_cuda.OutOfResources(147_456 if tile.N == 64 else 90_112, 65_536, "shared memory")
        return 1.0

    monkeypatch.setattr(pairs_cuda, "milliseconds", milliseconds)


@pytest.mark.usefixtures("a_gpu_to_time")
def test_tiles_that_the_gpu_cannot_hold_are_left_out(monkeypatch):
    holding(32, monkeypatch)
    assert pairs_cuda.fastest_tile(1000, 64, torch.device("cuda")) == kernels.candidates(64)[0]
    holding(0, monkeypatch)
    with pytest.raises(Unsupported, match=r"64 components .* need 90,112 bytes of shared memory, this GPU has 65,536"):
        pairs_cuda.fastest_tile(2000, 64, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(compose, "_fourier", lambda n_x, n_y, settings, device, exact, ranks: exact)
    settings = Settings(n_components=64)
    assert compose.fourier_mmd(3000, 900, settings, torch.device("cuda")) is None, "which does without"


def test_without_a_gpu_no_tile_is_timed():
    assert pairs_cuda.fastest_tile(1000, 10, torch.device("cpu")) == kernels.candidates(10)[0]


@interpreted
def test_a_biased_mmd_clipped_at_zero_has_no_gradient():
    common.check_clipped_mmd(exact)


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


SHARED = {
    80: 163,
    86: 99,
    89: 99,
    90: 227,
    100: 227,
    120: 99,
}  # KiB for a program, by compute capability (CUDA's guide)
COMPILED = [(capability, d) for capability in SHARED for d in (10, 62, 64)]  # d padded to 16, 64 and 128


@pytest.fixture(scope="module")
def compiled():
    """The kernels that a pass launches, for (capability, d), with the tile that suits most devices."""
    if reason := sass.missing():
        pytest.skip(reason)
    return dict(zip(COMPILED, sass.launched([("ordered", *key, {}) for key in COMPILED]), strict=True))


other_triton = pytest.mark.skipif(
    not triton.__version__.startswith(f"{roofline.TRITON}."),
    reason=f"counted with Triton {roofline.TRITON}, this is {triton.__version__}",
)
TENSOR_CORES = {90: "HGMMA", 100: "UTCHMMA"}  # the instruction of a product where it is not HMMA


@pytest.mark.parametrize("key", COMPILED, ids=str)
def test_the_kernel_compiles_for_a_gpu_that_can_hold_it(compiled, key):
    """With products on the tensor cores, and nothing that only the device it is compiled on could tell."""
    product = TENSOR_CORES.get(key[0], "HMMA")
    assert any(name.startswith(product) for k in compiled[key] for loop in k.loops for name in loop.instructions)
    assert max(kernel.shared for kernel in compiled[key]) <= 1024 * SHARED[key[0]]


@pytest.mark.parametrize("key", COMPILED, ids=str)
def test_no_pair_costs_an_operation_in_float64(compiled, key):
    """A program forms one sum for each cloud; GPUs that are not for data centres have few units for that."""
    for kernel in compiled[key]:
        assert 2 * kernel.kinds.get("float64", 0) == (0 if kernel.name == "arrange" else roofline.FLOAT64)
        assert not any(loop.kinds["float64"] for loop in kernel.loops)


@pytest.mark.skipif(bool(sass.missing()), reason=str(sass.missing()))
def test_a_measured_instruction_is_one_operation():
    """Two float32 multiply-adds as one instruction, from sm_100 on, would be measured as two instructions."""
    jobs = [("rate", capability, 0, {"of": of}) for capability in (90, 100, 120) for of in CHAINS]
    for (_, capability, _, options), (kernel,) in zip(jobs, sass.launched(jobs), strict=True):
        kind, at_once = CHAINS[options["of"]], kernel.kinds.get("two at once", 0)
        assert kernel.kinds[kind] >= 64, f"of each of 8 numbers a thread, 8 times: {capability}, {kernel.kinds}"
        assert at_once < 8, capability  # before the loop


CHAINS = {"multiply-add": "float32", "exp2": "exp2", "float64": "float64"}


@other_triton
@pytest.mark.parametrize("key", COUNTED, ids=str)
def test_the_instructions_for_a_pair_are_as_counted(compiled, key):
    """Within 10 %, and in the loop over pairs of compact blocks nothing goes to memory for want of registers."""
    kernels_of = {kernel.name: kernel for kernel in compiled[key]}
    compact = min(
        kernels_of["compact_blocks"].loops, key=lambda loop: loop.per_pair(1)
    )  # not that of the rows themselves
    (wide,) = kernels_of["wide_blocks"].loops
    assert compact.per_pair(1) == pytest.approx(COUNTED[key].compact, rel=0.1)
    assert wide.per_pair(key[1]) == pytest.approx(COUNTED[key].wide, rel=0.1)
    assert kernels_of["compact_blocks"].registers <= COUNTED[key].registers
    assert not compact.kinds["spills"]


def test_a_loop_is_counted_with_the_turns_of_the_loop_inside():
    """A loop over pairs with two exp2 and an inner loop; a loop around both; and one without an exp2."""
    (loop,) = [sass.Loop(*found) for found in sass.loops_over_pairs(LISTING)]
    assert loop.kinds == {"float32": 2, "exp2": 2, "spills": 1, "other": 3}
    assert loop.per_pair(5) == (8 + 4 * 2) / 2


LISTING = """
.L_x_0:
        /*0000*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_1:
        /*0010*/                   LDL R2, [R1] ;
.L_x_2:
        /*0020*/                   FADD R2, R2, R3 ;
        /*0030*/               @P0 BRA `(.L_x_2) ;
        /*0040*/                   MUFU.EX2 R2, R2 ;
        /*0050*/                   MUFU.EX2 R3, R3 ;
        /*0060*/              @!P1 FMUL R2, R2, R3 ;
        /*0070*/                   BRA `(.L_x_3) ;
.L_x_3:
        /*0080*/              @!P1 BRA `(.L_x_1) ;
        /*0090*/               @P2 BRA `(.L_x_0) ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4) ;
"""


def test_what_the_fused_variants_do_not_take_on_a_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(Unsupported, match=r"compute capability 8\.0 or more, this GPU has 7\.0"):
        variant("primal-fused").missing(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
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
    found = exact(n, n, settings)(x, y, out_x, out_y)
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
