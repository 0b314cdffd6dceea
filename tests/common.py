"""The checks that every registered variant inherits: put a variant's name in, and see that it is MMD-MA.

The problems have embeddings of about the kernel's width, so that every term says something. The tolerances are for
float32 arithmetic against a reference in float64 (one rounding is 6e-8):

- MMD2 is a difference of means, each an average of n^2 kernel values whose errors are a few roundings and average
  out: 1e-6 of the sum of the means. (With embeddings of large norm |x|^2 + |y|^2 - 2 x.y loses more: its absolute
  error is a rounding of the squared norm. That bound has a test of its own.)
- Penalty and distortion are norms of a difference: 1e-5 of the norms of what is subtracted, sums of up to n or p
  rounded products.
- The gradient is a sum of the gradients of the parts of the loss, which cancel: 1e-5 of the sum of their norms.
"""

import tracemalloc
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse
import torch

from mmdma_core import Kernel, Settings, reference_gradients, reference_loss, simulate, start, variant
from mmdma_core.objective import reference

MMD_TOLERANCE = 1e-6
NORM_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5
EMBEDDING_TOLERANCE = 1e-6

# Variants that treat no views with different numbers of features -> why; their cases have p_x features in both.
ONE_P = dict.fromkeys(("published-dual", "published-dual-keops"), "the package has one weight, lambda / sqrt(p)")


@dataclass(frozen=True)
class Case:
    """A problem: sizes, settings, and how far apart the two embedded views lie."""

    name: str
    n_x: int
    n_y: int
    p_x: int
    p_y: int
    settings: Settings
    shift: float | None = 0.0  # of the second view; None: it is the first one, a little moved

    def views(self):
        x, y, _ = simulate("branch", max(self.n_x, self.n_y), self.p_x, p_y=self.p_y)
        x = x[: self.n_x]
        return x, (x + 0.01 if self.shift is None else y[: self.n_y] + self.shift)


# Weights of 1 let no term hide behind another; sizes are multiples of no block.
_SETTINGS = Settings(lambda1=1.0, lambda2=1.0)
CASES = [
    Case("more cells than features", 137, 101, 23, 31, _SETTINGS),
    Case("more features than cells", 45, 53, 77, 61, _SETTINGS),
    Case("biased", 67, 45, 23, 31, replace(_SETTINGS, unbiased=False)),
    Case("biased, more features than cells", 37, 45, 77, 61, replace(_SETTINGS, unbiased=False)),
    Case("one feature of one view", 67, 45, 23, 1, replace(_SETTINGS, n_components=1)),
    Case("d = 1", 67, 45, 23, 31, replace(_SETTINGS, n_components=1)),
    Case("d = 2, wide kernel", 67, 45, 77, 31, replace(_SETTINGS, n_components=2, sigma=7.5)),
    Case("d = 16, narrow kernel", 67, 45, 23, 31, replace(_SETTINGS, n_components=16, sigma=0.3)),
    Case("far apart", 67, 45, 23, 31, _SETTINGS, shift=3.0),
    Case("both views of one distribution", 67, 67, 23, 23, _SETTINGS, shift=None),
]


def check_loss_and_gradients(name, case, device="cpu"):
    """Terms and gradients agree with the reference at the same parameters."""
    if name in ONE_P:
        case = replace(case, p_y=case.p_x)
    x, y = case.views()
    settings = variant(name).taken(case.settings)
    rows = [p.shape[0] for p in start(name, x, y, settings, device).parameters]
    formulation = {case.p_x: "primal", case.n_x: "dual"}[rows[0]]
    parameters = informative_parameters(formulation, x, y, rows, settings)
    run = start(name, x, y, settings, device, parameters=parameters)
    problem = (formulation, x, y, *parameters, settings)

    compare(run, problem)
    for e, right in zip(run.embeddings(), reference.reference_embeddings(*problem[:-1]), strict=True):
        assert (e.cpu() - right).norm() <= EMBEDDING_TOLERANCE * right.norm()


def compare(run, problem):
    """The run's terms and gradients are those of the reference for the problem, within the tolerances."""
    settings = problem[-1]
    found, expected, allowed = run.loss(), reference_loss(*problem), tolerances(*problem)
    for term in ("mmd", "pen_x", "pen_y", "dis_x", "dis_y"):
        assert getattr(found, term) == approximately(getattr(expected, term), allowed[term]), term
    total = found.mmd + settings.lambda1 * (found.pen_x + found.pen_y) + settings.lambda2 * (found.dis_x + found.dis_y)
    assert found.total == pytest.approx(total, rel=1e-12)
    for gradient, right, most in zip(run.gradients(), reference_gradients(*problem), allowed["gradients"], strict=True):
        assert gradient.shape == right.shape
        assert (gradient.cpu() - right).norm() <= most


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


def informative_parameters(formulation, x, y, rows, settings):
    """Random parameters whose embeddings have squared norms of about sigma, where kernel values are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(row, settings.n_components, generator=generator) for row in rows]
    if torch.equal(x + 0.01, y):
        raw[1] = raw[0]
    embeddings = reference.reference_embeddings(formulation, x, y, *raw)
    return tuple(
        theta * float((settings.sigma * len(e)) ** 0.5 / e.norm()) for theta, e in zip(raw, embeddings, strict=True)
    )


def tolerances(formulation, x, y, theta_x, theta_y, settings):
    """The absolute tolerance of each term and of each gradient's norm, see the module's docstring."""
    thetas = [theta.double().requires_grad_() for theta in (theta_x, theta_y)]
    views = [view.double() for view in (x, y)]
    each = [reference._VIEWS[formulation](view, theta) for view, theta in zip(views, thetas, strict=True)]
    means = reference.gaussian_means(each[0][0], each[1][0], settings)
    parts = [*means, *(settings.lambda1 * pen for _, pen, _ in each), *(settings.lambda2 * dis for _, _, dis in each)]
    allowed = {"mmd": MMD_TOLERANCE * (means[0] + means[1] + 2 * means[2]).item(), "gradients": []}
    for theta in thetas:
        gradients = [torch.autograd.grad(part, theta, retain_graph=True, allow_unused=True)[0] for part in parts]
        norms = [float(gradient.norm()) for gradient in gradients if gradient is not None]
        allowed["gradients"].append(GRADIENT_TOLERANCE * sum(norms))
    for suffix, view, theta, (e, _, _) in zip("xy", views, thetas, each, strict=True):
        n, p = view.shape
        theta, e = theta.detach(), e.detach()
        gram = theta.norm() ** 2 if formulation == "primal" else theta.norm() * e.norm()
        allowed[f"pen_{suffix}"] = NORM_TOLERANCE * float(gram + settings.n_components**0.5) / p**0.5
        allowed[f"dis_{suffix}"] = NORM_TOLERANCE * float((view @ view.T).norm() + e.norm() ** 2) / (n * p**0.5)
    return allowed


def check_training(name, device="cpu"):
    """After 30 epochs the loss is that of float64 Adam on the reference, and the run has counted its epochs."""
    settings = variant(name).taken(Settings(lambda1=0.1, lambda2=0.1, learning_rate=1e-3, n_components=2))
    x, y, _ = simulate("branch", 60, 15, p_y=15 if name in ONE_P else 12)
    run = start(name, x, y, settings, device)
    formulation = formulation_of(run, x)
    parameters = [p.detach().cpu().double().clone().requires_grad_() for p in run.parameters]
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, amsgrad=getattr(run, "amsgrad", False))
    before = run.loss().total
    for _ in range(30):
        run.step()
        for parameter, gradient in zip(
            parameters, reference_gradients(formulation, x, y, *parameters, settings), strict=True
        ):
            parameter.grad = gradient
        adam.step()
    assert run.epoch == 30
    expected = reference_loss(formulation, x, y, *parameters, settings).total
    assert expected < before
    # Adam divides by the root of the second moment, so that gradients near 0 keep no relative accuracy: 1e-4.
    assert run.loss().total == approximately(expected, 1e-4 * abs(expected))


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


def check_mmd(make, n_x, n_y, settings, spread, offset=0.0, rank=None):
    """A fused MMD2 and its gradient, for points of mean squared norm `spread` around `offset`, both estimators.

    make(n_x, n_y, settings) gives a function that fills the gradient's two tensors. With `rank` the points lie in a
    subspace of that dimension, so that a wide cloud has near neighbours, too.
    """
    d = settings.n_components
    rank = min(d, rank or d)
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(d, rank, generator=generator))[0].T * (spread / rank) ** 0.5
    x, y = (torch.randn(n, rank, generator=generator) @ axes + offset for n in (n_x, n_y))
    for unbiased in (True, False):
        settings = replace(settings, unbiased=unbiased)
        out_x, out_y = torch.empty_like(x), torch.empty_like(y)
        found = float(make(n_x, n_y, settings)(x, y, out_x, out_y))
        e_x, e_y = x.double().requires_grad_(), y.double().requires_grad_()
        means = reference.gaussian_means(e_x, e_y, settings)
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


def formulation_of(run, x):
    """'primal' or 'dual', from the rows of the parameters."""
    rows = {x.shape[1]: "primal", x.shape[0]: "dual"}
    return rows[run.parameters[0].shape[0]]


def approximately(value, tolerance):
    """A number within an absolute tolerance."""
    return pytest.approx(value, rel=0, abs=tolerance)
