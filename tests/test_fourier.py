"""MMD2 from Fourier features: against float64 at the same frequencies, and against the exact one on average."""

from dataclasses import replace
from functools import partial

import common
import numpy as np
import pytest
import scipy.sparse
import torch

from mmdma_core import Kernel, Settings, Unsupported, objective, simulate
from mmdma_core.fused.compose import compose, exact_mmd, fourier_mmd
from mmdma_core.fused.fourier import CudaFrequencies, FourierMMD, Frequencies
from mmdma_core.inputs import as_views
from mmdma_core.matching.training import train

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
FORMULATIONS = ["primal", "dual"]


def start(formulation, x, y, settings=None, mmd=fourier_mmd, **more):
    """A run on the views of the fused variants with this way to MMD2."""
    views = as_views(x, y, CPU)
    return compose(formulation, mmd)(*views, settings or Settings(), CPU, **more)


def clouds(n_x, n_y, d, spread=1.0, offset=0.0, shift=0.3):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, d, generator=generator) * (spread / d) ** 0.5 + offset for n in (n_x, n_y))
    return x, y + shift


def in_double(x, y, turns, unbiased):
    """MMD2 and its gradients at the given frequencies, in float64, and the size of what is subtracted."""
    x, y = x.double().requires_grad_(), y.double().requires_grad_()
    w = 2 * np.pi * torch.from_numpy(turns).double()
    (c_x, s_x), (c_y, s_y) = (((e @ w).cos().mean(0), (e @ w).sin().mean(0)) for e in (x, y))
    squares = [c_x**2 + s_x**2, c_y**2 + s_y**2]
    if unbiased:
        squares = [(len(e) * q - 1) / (len(e) - 1) for e, q in zip((x, y), squares, strict=True)]
    mmd = (sum(squares) - 2 * (c_x * c_y + s_x * s_y)).mean()
    parts = [torch.autograd.grad(q.mean(), (x, y), retain_graph=True, allow_unused=True) for q in squares]
    sizes = [float(part[i].norm()) for i, part in enumerate(parts)]
    return mmd.item(), torch.autograd.grad(mmd, (x, y)), 1 + len(squares), sizes


def on_cpu(n_x, n_y, settings):
    return fourier_mmd(n_x, n_y, settings, CPU)


def in_blocks(n_x, n_y, settings):
    """What runs on CUDA, on the CPU."""
    return FourierMMD(n_x, n_y, settings, partial(CudaFrequencies, device=CPU))


@pytest.mark.parametrize("make", [on_cpu, in_blocks])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (1.0, 1000.0), (100.0, 0.0), (1e4, 0.0)])
@pytest.mark.parametrize(
    ("n_x", "n_y", "d", "count"), [(300, 517, 10, 256), (7, 5, 1, 100), (100, 90, 64, 256), (33, 70, 17, 300)]
)
def test_mmd_and_its_gradient_are_those_of_float64(n_x, n_y, d, count, spread, offset, unbiased, make):
    settings = Settings(n_components=d, n_frequencies=count, unbiased=unbiased, sigma=1.3)
    x, y = clouds(n_x, n_y, d, spread, offset)
    mmd = make(n_x, n_y, settings)
    mmd.begin(seed=3, epoch=5)
    out = torch.empty_like(x), torch.empty_like(y)
    found = float(mmd(x, y, *out))
    right, gradients, scale, sizes = in_double(x, y, mmd.fresh.turns, unbiased)
    assert found == common.approximately(right, 1e-6 * scale)
    for gradient, exact, size in zip(out, gradients, sizes, strict=True):
        assert (gradient - exact).norm() <= 1e-5 * (size + float(exact.norm()))


def test_frequencies_are_a_function_of_seed_and_epoch():
    first, again = (Frequencies(5, 256, 2.0) for _ in range(2))
    first.draw(1, 2)
    again.draw(7, 7)
    again.draw(1, 2)
    np.testing.assert_array_equal(first.turns, again.turns)
    for other in ((1, 3), (2, 2), (2, 1), (-1, 2)):
        again.draw(*other)
        assert not np.array_equal(first.turns, again.turns)


def test_frequencies_come_in_orthogonal_blocks_with_gaussian_lengths():
    drawn = Frequencies(10, 4000, 2.0)
    drawn.draw(0, 0)
    w = 2 * np.pi * np.sqrt(2.0) * drawn.turns.astype(float)  # ~ N(0, I)
    for block in np.split(w, 400, axis=1):
        inner = block.T @ block
        np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-4)
    assert (w**2).sum(0).mean() == pytest.approx(10, rel=0.05)
    assert (w**2).sum(0).var() == pytest.approx(20, rel=0.2)
    np.testing.assert_allclose(w @ w.T / 4000, np.eye(10), atol=0.08)


def gradients_over_epochs(x, y, settings, epochs):
    mmd = on_cpu(len(x), len(y), settings)
    drawn = []
    for epoch in range(epochs):
        out = torch.empty_like(x), torch.empty_like(y)
        mmd.begin(0, epoch)
        mmd(x, y, *out)
        drawn.append(torch.cat(out).double())
    return torch.stack(drawn)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_mean_over_epochs_is_the_exact_gradient(unbiased):
    settings = Settings(n_components=3, n_frequencies=64, unbiased=unbiased)
    x, y = clouds(40, 30, 3)
    drawn = gradients_over_epochs(x, y, settings, 400)
    e_x, e_y = x.double().requires_grad_(), y.double().requires_grad_()
    means = objective.gaussian_means(e_x, e_y, settings)
    exact = torch.cat(torch.autograd.grad(means[0] + means[1] - 2 * means[2], (e_x, e_y)))
    errors = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 20)
    assert errors.max() < 4


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_mean_over_epochs_is_the_exact_gradient_of_the_parameters(formulation):
    x, y, _ = simulate("branch", 60, 12, p_y=7)
    settings = Settings(n_components=3, n_frequencies=64, sigma=0.5)
    run = start(formulation, x, y, settings, seed=2)
    drawn = []
    for run.epoch in range(400):  # no step: the parameters stay, the frequencies do not
        drawn.append(torch.cat([gradient.double() for gradient in run.gradients()]))
    drawn = torch.stack(drawn)
    exact = torch.cat(objective.reference_gradients(formulation, x, y, *run.parameters, settings))
    errors = (drawn.mean(0) - exact).abs() / (drawn.std(0) / 20)
    assert errors.max() < 4


def test_the_variance_falls_as_one_over_d_and_vanishes_as_the_clouds_meet():
    settings = Settings(n_components=3, unbiased=False)

    def variance(count, shift):
        x, _ = clouds(200, 200, 3)
        y = x.flip(0) + shift
        return float(gradients_over_epochs(x, y, replace(settings, n_frequencies=count), 100).var(0).sum())

    assert variance(60, 0.5) / variance(240, 0.5) == pytest.approx(4, rel=0.3)
    assert variance(60, 0.05) < 0.02 * variance(60, 0.5)  # (0.05 / 0.5)^2 is 0.01
    assert variance(60, 0.0) < 1e-9 * variance(60, 0.5)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_loss_of_few_cells_is_exact(formulation):
    x, y, _ = simulate("branch", 60, 20, p_y=15)
    settings = Settings(n_components=2, learning_rate=1e-3)
    run, exact = (start(formulation, x, y, settings, mmd, seed=1) for mmd in (fourier_mmd, exact_mmd))
    for _ in range(5):
        run.step()
    exact.restore({**exact.state(), "tensors": [t.clone() for t in run.state()["tensors"]]})
    assert run.loss() == exact.loss()


def test_the_loss_of_many_cells_is_the_same_at_all_times():
    x, y, _ = simulate("branch", 20_400, 4)
    runs = [start("primal", x, y, Settings(n_components=2), seed=seed) for seed in (1, 2)]
    for run in runs:
        assert run.loss() == run.loss()
    runs[1].restart(1)
    assert runs[0].loss() == runs[1].loss()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_the_gradient_is_the_exact_one_but_for_noise(formulation):
    x, y, _ = simulate("branch", 80, 20)
    settings = Settings(n_components=2, lambda1=1.0, lambda2=1.0, n_frequencies=20_000)
    rows = [len(p) for p in start(formulation, x, y, settings).parameters]
    parameters = common.informative_parameters(formulation, x, y, rows, settings)
    run, exact = (start(formulation, x, y, settings, mmd, parameters=parameters) for mmd in (fourier_mmd, exact_mmd))
    for a, b in zip(run.gradients(), exact.gradients(), strict=True):
        assert (a - b).norm() < 0.01 * b.norm()


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_a_run_that_is_left_goes_on_to_the_same_numbers_and_begins_again_as_new(formulation):
    settings = Settings(learning_rate=1e-3, n_components=2, amsgrad=True)
    x, y, _ = simulate("branch", 60, 15)
    first, second = (start(formulation, x, y, settings, seed=seed) for seed in (1, 2))
    for _ in range(5):
        first.step()
    second.step()
    second.restore(first.state())
    for run in (first, second):
        run.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
    second.restart(1)
    fresh = start(formulation, x, y, settings, seed=1)
    for run in (second, fresh):
        run.step()
    assert all(torch.equal(a, b) for a, b in zip(second.parameters, fresh.parameters, strict=True))


def test_sparse_views_and_kernels():
    x, y, _ = simulate("branch", 60, 20)
    for name, views in (
        ("primal", [scipy.sparse.csr_array(v.numpy()) for v in (x, y)]),
        ("dual", [Kernel(v @ v.T) for v in (x, y)]),
    ):
        run = start(name, *views, Settings(n_components=2, learning_rate=1e-3))
        before = run.loss().total
        for _ in range(20):
            run.step()
        assert run.loss().total < before


def test_a_step_allocates_nothing_of_the_problems_size():
    x, y, _ = simulate("branch", 6000, 30)
    run = start("primal", x, y)
    common.check_a_step_allocates_nothing(run, 10 * 6000)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_change_rounding_alone(threads):
    x, y, _ = simulate("branch", 900, 30)
    before = torch.get_num_threads()
    runs = []
    for number in (threads, 1):
        torch.set_num_threads(number)
        runs.append(start("primal", x, y, Settings(learning_rate=1e-3)))
        for _ in range(5):
            runs[-1].step()
    torch.set_num_threads(before)
    torch.testing.assert_close(runs[0].parameters[0], runs[1].parameters[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("learning_rate", [1e20, 1e38])
def test_a_start_that_diverges_says_so(monkeypatch, on_gpu, learning_rate):
    """Its points lie too far apart for the frequencies, or are no numbers; other starts go on."""
    monkeypatch.setattr("mmdma_core.fused.compose.EXACT_UP_TO", 0)
    monkeypatch.setattr("mmdma_core.fused.compose.on_gpu", lambda device: on_gpu)
    x, y, _ = simulate("branch", 60, 20)
    with pytest.raises(FloatingPointError):
        train(start("primal", x, y, Settings(learning_rate=learning_rate)), 20, loss_every=20)


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_frequencies_are_counted_in_whole_numbers(value):
    with pytest.raises(ValueError, match="n_frequencies must be an integer of at least 1"):
        Settings(n_frequencies=value)


def test_hard_problems():
    x, y, _ = simulate("branch", 50, 8)
    with pytest.raises(FloatingPointError, match="sigma = 1e-60 is too small for points that lie"):
        start("primal", x, y, Settings(n_components=2, sigma=1e-60)).step()
    run = start("primal", x, y, Settings(n_components=2, sigma=1e-12))
    run.step()
    assert all(torch.isfinite(p).all() for p in run.parameters)
    few = start("primal", x[:3], y[:3], Settings(n_components=1))
    few.step()
    assert np.isfinite(few.loss().total)
    zeros = start("primal", torch.zeros(20, 5), y, Settings(n_components=2))
    zeros.step()
    assert np.isfinite(zeros.loss().total)
    with pytest.raises(Unsupported, match="n_components <= 64"):
        start("primal", x, y, Settings(n_components=65))
