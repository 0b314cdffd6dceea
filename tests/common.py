"""The checks that every registered variant inherits: put a variant's name in, and see that it is MMD-MA.

The problems, the tolerances and what is compared are those of benchmarks/experiments/correctness.py.
"""

import tracemalloc
import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch

from benchmarks.experiments import correctness
from benchmarks.experiments.correctness import (  # noqa: F401  (some for other tests)
    CASES,
    GRADIENT_TOLERANCE,
    MMD_TOLERANCE,
    NORM_TOLERANCE,
    ONE_P,
    formulation_of,
    informative_parameters,
    tolerances,
)
from mmdma_core import Kernel, Settings, objective, reference_gradients, reference_loss, simulate, start


def check_loss_and_gradients(name, case, device="cpu"):
    """Terms and gradients agree with the reference at the same parameters."""
    for deviation in correctness.deviations(name, case, device):
        assert deviation.within, deviation


def compare(run, problem):
    """The run's terms and gradients are those of the reference for the problem, within the tolerances."""
    for deviation in correctness.from_reference(run, problem):
        assert deviation.within, deviation


def check_sparse(name, case, device="cpu"):
    """Sparse views give the terms, gradients and embeddings of the same views made dense, and stay sparse."""
    x, y = (view * (view.abs() > 1) for view in case.views())
    sparse = [scipy.sparse.csr_array(view.numpy()) for view in (x, y)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = [p.shape[0] for p in start(name, *sparse, case.settings, device).parameters]
        parameters = informative_parameters("primal", x, y, rows, case.settings)
        run = start(name, *sparse, case.settings, device, parameters=parameters)
    compare(run, ("primal", x, y, *parameters, case.settings))


def check_kernel(name, case, device="cpu"):
    """Kernels give the dual of their factors with p = 1, whatever the factors' width."""
    views = [view.double() for view in case.views()]
    x, y = (torch.linalg.qr(view.T)[1].T if view.shape[1] > view.shape[0] else view for view in views)
    parameters = informative_parameters("dual", x, y, [len(x), len(y)], case.settings)
    kernels = [Kernel((view @ view.T).float()) for view in (x, y)]
    run = start(name, *kernels, case.settings, device, parameters=parameters)
    expected = reference_loss("dual", x, y, *parameters, case.settings)
    found = run.loss()
    for suffix, view in zip("xy", (x, y), strict=True):
        scale = view.shape[1] ** 0.5
        n, size = len(view), float((view @ view.T).norm())
        assert getattr(found, f"pen_{suffix}") == pytest.approx(getattr(expected, f"pen_{suffix}") * scale, rel=1e-4)
        wanted = getattr(expected, f"dis_{suffix}") * scale
        assert getattr(found, f"dis_{suffix}") == approximately(wanted, 2 * NORM_TOLERANCE * size / n)
    assert found.mmd == approximately(expected.mmd, 3 * MMD_TOLERANCE)


def check_training(name, device="cpu"):
    """After 30 epochs the loss is that of float64 Adam on the reference."""
    before, expected, deviation = correctness.trained(name, device)
    assert expected < before
    assert deviation.within, deviation


def check_state(name, device="cpu"):
    """A run that is restored, into another, goes on to the same numbers; begun again, it is as new."""
    settings = Settings(lambda1=0.1, lambda2=0.1, learning_rate=1e-3, n_components=2, amsgrad=True)
    x, y, _ = simulate("branch", 60, 15)
    first, second = (start(name, x, y, settings, device, seed=seed) for seed in (1, 2))
    for _ in range(5):
        first.step()
    state = first.state()
    second.step()
    second.restore(state)
    for run in (first, second):
        run.step()
    assert first.epoch == second.epoch == 6
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, second.parameters, strict=True))
    second.restart(1)
    fresh = start(name, x, y, settings, device, seed=1)
    for run in (second, fresh):
        run.step()
    assert second.epoch == 1
    assert all(torch.equal(a, b) for a, b in zip(second.parameters, fresh.parameters, strict=True))


def check_starting_values(name, device="cpu"):
    """The seed alone decides the start, as Settings.draw has it; `parameters=` overrides it and is copied."""
    x, y, _ = simulate("branch", 30, 11, p_y=11 if name in ONE_P else 13)
    first, again, other = (start(name, x, y, device=device, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(first.parameters, again.parameters, other.parameters, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    drawn = Settings().draw(*(len(p) for p in first.parameters), seed=1)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(first.parameters, drawn, strict=True))
    given = tuple(np.full(p.shape, 0.25, dtype=np.float32) for p in first.parameters)
    run = start(name, x, y, device=device, parameters=given)
    run.step()
    assert all((values == 0.25).all() for values in given)
    assert not all((p.detach().cpu().numpy() == 0.25).all() for p in run.parameters)


def check_mmd(make, n_x, n_y, settings, spread, offset=0.0, rank=None, estimators=(True, False)):
    """A fused MMD2 and its gradient, for points of mean squared norm `spread` around `offset`, unbiased and biased.

    make(n_x, n_y, settings) gives a function that fills the gradient's two tensors. With `rank` the points lie in a
    subspace of that dimension, so that a wide cloud has near neighbours, too.
    """
    d = settings.n_components
    rank = min(d, rank or d)
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(d, rank, generator=generator))[0].T * (spread / rank) ** 0.5
    x, y = (torch.randn(n, rank, generator=generator) @ axes + offset for n in (n_x, n_y))
    for unbiased in estimators:
        settings = replace(settings, unbiased=unbiased)
        out_x, out_y = torch.empty_like(x), torch.empty_like(y)
        found = float(make(n_x, n_y, settings)(x, y, out_x, out_y))
        e_x, e_y = x.double().requires_grad_(), y.double().requires_grad_()
        means = objective.gaussian_means(e_x, e_y, settings)
        mmd = means[0] + means[1] - 2 * means[2]
        assert found == approximately(mmd.item(), MMD_TOLERANCE * sum(means).item())
        parts = [torch.autograd.grad(mean, (e_x, e_y), retain_graph=True, allow_unused=True) for mean in means]
        for which, (gradient, point) in enumerate(((out_x, e_x), (out_y, e_y))):
            right = torch.autograd.grad(mmd, point, retain_graph=True)[0]
            scale = sum(float(part[which].norm()) for part in parts if part[which] is not None)
            assert (gradient - right).norm() <= GRADIENT_TOLERANCE * scale


def check_clipped_mmd(make):
    """Where a biased MMD2 is clipped at 0 it has no gradient."""
    x = torch.zeros(40, 3)
    out_x, out_y = x + 1, x + 1
    assert make(40, 40, Settings(n_components=3, unbiased=False))(x, x, out_x, out_y) == 0
    assert not out_x.any()
    assert not out_y.any()


def check_distortion_near_the_optimum(name, n, p, length=1.0):
    """W spans the data's leading subspace: the three terms of the squared norm cancel, to a part in 10^4 or less.

    length  of W's columns; the terms that are left grow with 1 - length^2
    """
    x, y, _ = simulate("branch", n, p)
    settings = Settings(n_components=3)
    doubles = x.double()
    left, values, right = torch.linalg.svd(doubles, full_matrices=False)
    w = length * right[:3].T
    alpha = length * left[:, :3] / values[:3]
    parameters = {"primal-fused": w, "dual-fused": alpha}[name].float()
    other = start(name, x, y, settings).parameters[1]
    run = start(name, x, y, settings, parameters=(parameters, other))
    formulation = name.split("-")[0]
    expected = reference_loss(formulation, x, y, parameters, other, settings)
    fraction = expected.dis_x * n * p**0.5 / float((doubles @ doubles.T).norm())
    assert fraction < 0.05 + 1 - length**2
    assert run.loss().dis_x == pytest.approx(expected.dis_x, rel=1e-5)
    gradient = run.gradients()[0]
    right = reference_gradients(formulation, x, y, parameters, other, settings)[0]
    t = doubles.T @ (doubles @ w)
    terms = doubles.T @ (doubles @ t), t @ (w.T @ t)  # that cancel in the distortion's gradient
    size = sum(float((doubles @ term if formulation == "dual" else term).norm()) for term in terms)
    scale = 2 * settings.lambda2 * size / (expected.dis_x * n**2 * p)
    assert (gradient - right).norm() <= GRADIENT_TOLERANCE * scale


def check_a_step_allocates_nothing(run, size):
    """Once warm: no NumPy array of half the bytes of an (n, d) matrix, size = n d numbers in float32."""
    for _ in range(2):
        run.step()
    tracemalloc.start()
    run.step()
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    run.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - before < 4 * size / 2


def approximately(value, tolerance):
    """A number within an absolute tolerance."""
    return pytest.approx(value, rel=0, abs=tolerance)
