"""Whether a variant computes MMD-MA: problems, tolerances, and how far it is from the reference in float64.

The problems have embeddings of about the kernel's width, so that every term says something. The tolerances are for
float32 arithmetic against a reference in float64 (one rounding is 6e-8):

- MMD2 is a difference of means, each an average of n^2 kernel values whose errors are a few roundings and average
  out: 1e-6 of the sum of the means. (With embeddings of large norm |x|^2 + |y|^2 - 2 x.y loses more: its absolute
  error is a rounding of the squared norm. That bound has a test of its own.)
- Penalty and distortion are norms of a difference: 1e-5 of the norms of what is subtracted, sums of up to n or p
  rounded products.
- The gradient is a sum of the gradients of the parts of the loss, which cancel: 1e-5 of the sum of their norms.
- Adam divides by the root of the second moment, so that gradients near 0 keep no relative accuracy: 1e-4 of the loss
  after 30 epochs.

An approximation is held to what it declares (Variant.tolerance, Variant.bias), in DRAWS runs with a seed and an order
of the cells of their own, neither of which the objective depends on:

- The mean of each term and of the gradient is that of the reference, but for the bias, STANDARD_ERRORS of the mean, and
  the tolerances above. The gradient counts as a vector, so that its direction is held, too: 1 - the cosine of the angle
  between its mean and the reference is at most the variant's tolerance.
- One estimate is off by the variant's tolerance at most, in root mean square. So noise cannot hide a wrong mean.
- After 30 epochs the loss, as the reference has it, has fallen by what it falls exactly, but for that tolerance.

A variant of another objective has nothing to be compared with here.

The tests of every variant (tests/common.py) and `gpu-check` rest on what is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from mmdma_core import (
    LossTerms,
    Run,
    Settings,
    Variant,
    objective,
    reference_gradients,
    reference_loss,
    simulate,
    start,
    variant,
)

MMD_TOLERANCE = 1e-6
NORM_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-5
EMBEDDING_TOLERANCE = 1e-6
TRAINING_TOLERANCE = 1e-4
TRAINING_EPOCHS = 30
DRAWS = 32
STANDARD_ERRORS = 5.0  # the mean of a right estimate is further off once in a million times

# Variants that treat no views with different numbers of features -> why; their cases have p_x features in both.
ONE_P = dict.fromkeys(("published-dual", "published-dual-keops"), "the package has one weight, lambda / sqrt(p)")

Problem = tuple[Any, ...]  # formulation, x, y, theta_x, theta_y, settings: the arguments of the reference


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

    def views(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw x (n_x, p_x) and y (n_y, p_y)."""
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


class Deviation(NamedTuple):
    """How far a number, or the norm of a difference, is from what is right, and how far it may be."""

    what: str
    off: float
    allowed: float

    @property
    def within(self) -> bool:
        """Whether it is no further off than allowed; of a NaN it is not."""
        return self.off <= self.allowed

    def __str__(self) -> str:
        return f"{self.what} is off by {self.off:.2g}, {self.allowed:.2g} is allowed"


def deviations(name: str, case: Case, device: str) -> Iterator[Deviation]:
    """Yield those of a variant's terms, gradients and embeddings in a case, at the same parameters: see the module.

    Raises ValueError for a variant of another objective.
    """
    if variant(name).objective:
        raise ValueError(f"variant {name!r} has {variant(name).remark}: it is not compared with MMD-MA's")
    if name in ONE_P:
        case = replace(case, p_y=case.p_x)
    x, y = case.views()
    settings = variant(name).taken(case.settings)
    rows = [p.shape[0] for p in start(name, x, y, settings, device).parameters]
    formulation = {case.p_x: "primal", case.n_x: "dual"}[rows[0]]
    parameters = informative_parameters(formulation, x, y, rows, settings)
    run = start(name, x, y, settings, device, parameters=parameters)
    problem = (formulation, x, y, *parameters, settings)
    if variant(name).exact:
        yield from from_reference(run, problem)
    else:
        yield from on_average(name, problem, device)
    if not variant(name).exact and device != "cpu":  # the same estimate as there
        own = start(name, x, y, settings, "cpu", parameters=parameters)
        yield from _of_gradients(run, own.gradients(), [2 * most for most in tolerances(*problem)["gradients"]])
    for view, e, right in zip("xy", run.embeddings(), objective.reference_embeddings(*problem[:-1]), strict=True):
        off = float((e.cpu() - right).norm())
        yield Deviation(f"embedding of {view}", off, EMBEDDING_TOLERANCE * float(right.norm()))


def from_reference(run: Run, problem: Problem) -> Iterator[Deviation]:
    """Yield those of a run's terms and gradients from the reference's for the problem."""
    settings, found, allowed = problem[-1], run.loss(), tolerances(*problem)
    expected = reference_loss(*problem)
    for term in ("mmd", "pen_x", "pen_y", "dis_x", "dis_y"):
        yield Deviation(term, abs(getattr(found, term) - getattr(expected, term)), allowed[term])
    total = found.mmd + settings.lambda1 * (found.pen_x + found.pen_y) + settings.lambda2 * (found.dis_x + found.dis_y)
    yield Deviation("total, of its terms,", abs(found.total - total), 1e-12 * max(1.0, abs(total)))
    yield from _of_gradients(run, reference_gradients(*problem), allowed["gradients"])


def on_average(name: str, problem: Problem, device: str) -> Iterator[Deviation]:
    """Yield those of an approximation's terms and gradients from the reference's, over seeds and orders of cells."""
    expected, allowed, known = reference_loss(*problem), tolerances(*problem), variant(name)
    drawn = [_drawn(name, problem, device, seed) for seed in range(DRAWS)]
    for term in ("mmd", "pen_x", "pen_y", "dis_x", "dis_y"):
        off = torch.tensor([[getattr(loss, term) - getattr(expected, term)] for loss, _ in drawn], dtype=torch.float64)
        size = 1.0 if term == "mmd" else allowed[term] / NORM_TOLERANCE
        yield from _of_estimates(term, off, size, allowed[term], known)
    rights = [right.double().flatten() for right in reference_gradients(*problem)]
    for i, (view, right, most) in enumerate(zip("xy", rights, allowed["gradients"], strict=True)):
        found = torch.stack([gradients[i].flatten() for _, gradients in drawn])
        yield from _of_estimates(f"gradient of {view}", found - right, most / GRADIENT_TOLERANCE, most, known)
        angle = 1 - float(torch.nn.functional.cosine_similarity(found.mean(0), right, dim=0))
        yield Deviation(f"direction of the gradient of {view}, on average,", angle, known.tolerance)


def _drawn(name: str, problem: Problem, device: str, seed: int) -> tuple[LossTerms, list[torch.Tensor]]:
    """Terms, and gradients in the problem's order, of a run whose cells have the order that the seed gives."""
    formulation, x, y, *thetas, settings = problem
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(view), generator=generator) for view in (x, y)]
    parameters = [theta[order] if formulation == "dual" else theta for theta, order in zip(thetas, orders, strict=True)]
    run = start(name, x[orders[0]], y[orders[1]], settings, device, seed, parameters)
    gradients = [gradient.cpu().double() for gradient in run.gradients()]
    if formulation == "dual":
        gradients = [g[torch.argsort(order)] for g, order in zip(gradients, orders, strict=True)]
    return run.loss(), gradients


def _of_estimates(what: str, off: torch.Tensor, size: float, rounding: float, known: Variant) -> Iterator[Deviation]:
    """Of estimates whose differences from what is right are the rows of `off`, as parts of `size`."""
    error = float((off.var(0).sum() / len(off)).sqrt())
    most = known.bias * size + STANDARD_ERRORS * error + rounding
    yield Deviation(f"{what}, on average,", float(off.mean(0).norm()), most)
    single = float(off.square().sum(1).mean().sqrt())
    yield Deviation(f"{what}, in one estimate,", single, known.tolerance * size + rounding)


def _of_gradients(run: Run, expected: Sequence[torch.Tensor], allowed: Sequence[float]) -> Iterator[Deviation]:
    for view, gradient, right, most in zip("xy", run.gradients(), expected, allowed, strict=True):
        if gradient.shape != right.shape:
            raise ValueError(f"the gradient of {view} is {tuple(gradient.shape)}, its parameters {tuple(right.shape)}")
        yield Deviation(f"gradient of {view}", float((gradient.cpu() - right).norm()), most)


def informative_parameters(
    formulation: str, x: torch.Tensor, y: torch.Tensor, rows: Sequence[int], settings: Settings
) -> tuple[torch.Tensor, ...]:
    """Draw parameters whose embeddings have squared norms of about sigma, where kernel values are neither 0 nor 1."""
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(row, settings.n_components, generator=generator) for row in rows]
    if torch.equal(x + 0.01, y):
        raw[1] = raw[0]
    embeddings = objective.reference_embeddings(formulation, x, y, *raw)
    return tuple(
        theta * float((settings.sigma * len(e)) ** 0.5 / e.norm()) for theta, e in zip(raw, embeddings, strict=True)
    )


def tolerances(
    formulation: str,
    x: torch.Tensor,
    y: torch.Tensor,
    theta_x: torch.Tensor,
    theta_y: torch.Tensor,
    settings: Settings,
) -> dict[str, Any]:
    """Return the absolute tolerance of each term and of each gradient's norm, see the module's docstring."""
    thetas = [theta.double().requires_grad_() for theta in (theta_x, theta_y)]
    views = [view.double() for view in (x, y)]
    each = [objective._VIEWS[formulation](view, theta) for view, theta in zip(views, thetas, strict=True)]
    means = objective.gaussian_means(each[0][0], each[1][0], settings)
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


def trained(name: str, device: str) -> tuple[float, float, Deviation]:
    """Return the loss before 30 epochs, that of float64 Adam on the reference after them, and how far a run is off."""
    settings = variant(name).taken(Settings(lambda1=0.1, lambda2=0.1, learning_rate=1e-3, n_components=2))
    x, y, _ = simulate("branch", 60, 15, p_y=15 if name in ONE_P else 12)
    run = start(name, x, y, settings, device)
    formulation = formulation_of(run, x)
    parameters = [p.detach().cpu().double().clone().requires_grad_() for p in run.parameters]
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, amsgrad=getattr(run, "amsgrad", False))
    before = reference_loss(formulation, x, y, *parameters, settings).total
    for _ in range(TRAINING_EPOCHS):
        run.step()
        gradients = reference_gradients(formulation, x, y, *parameters, settings)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
    if run.epoch != TRAINING_EPOCHS:
        raise ValueError(f"the run counts {run.epoch} epochs after {TRAINING_EPOCHS}")
    expected = reference_loss(formulation, x, y, *parameters, settings).total
    allowed, found = TRAINING_TOLERANCE * abs(expected), run.loss().total
    if not variant(name).exact:
        own = (parameter.detach().cpu().double() for parameter in run.parameters)
        found = reference_loss(formulation, x, y, *own, settings).total
        allowed += variant(name).tolerance * abs(before - expected)
    return before, expected, Deviation(f"loss after {TRAINING_EPOCHS} epochs", abs(found - expected), allowed)


def formulation_of(run: Run, x: torch.Tensor) -> str:
    """Tell 'primal' or 'dual' from the rows of the parameters."""
    rows = {x.shape[1]: "primal", x.shape[0]: "dual"}
    return rows[run.parameters[0].shape[0]]
