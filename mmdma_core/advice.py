"""Which variant to take for a problem, and about how long an epoch takes: from models of cost, and measurements.

An epoch of a variant is estimated from its nearest measurement, times the ratio of the costs (mmdma_core.models).
Without a measurement of its own it is the cost itself, at the speed that the measurements of other variants show for
the machine; without any, at nominal rates, which is enough to rank. The costs are weighed with `rates`: the nominal
ones, or those of a machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal, NamedTuple

import torch

from mmdma_core import host
from mmdma_core.compositions import variant, variants
from mmdma_core.errors import MissingDependency, Unsupported
from mmdma_core.models import NOMINAL, Rates, in_words

_FACTOR_OF_OTHERS = 3.0  # 9 of 10 of the laptop study's are nearer, if predicted from the other variants
_FACTOR_OF_NOMINAL_RATES = 10.0  # and at nominal rates, on a machine that nothing is known of
_LEAST_FACTOR = 1.2  # machines are seldom steadier
PATIENCE_S = 600.0  # that a whole fit by an exact variant may be predicted to take
_GPU_SPEED = 100.0  # assumed: a GPU beside the nominal rates, where nothing is measured

Form = Literal["dense", "sparse", "kernel"]  # of both views
LINEAR_IN_N: dict[Form, str] = {"dense": "primal-fourier", "sparse": "primal-fourier", "kernel": "dual-fourier"}


class Measured(NamedTuple):
    """A measurement: seconds per epoch of a variant at n, p and d."""

    variant: str
    n: int
    p: int
    d: int
    epoch_s: float


@dataclass(frozen=True)
class Estimate:
    """Seconds per epoch, within about times or divided by `factor`, and what that rests on, in words."""

    epoch_s: float
    factor: float
    basis: str


@dataclass(frozen=True)
class Choice:
    """A variant, its estimated epoch, the bytes that it needs (None: no model), and why.

    reason       in words
    passed_over  why others were passed over
    """

    variant: str
    estimate: Estimate
    needs_bytes: int | None
    reason: str
    passed_over: dict[str, str]

    def __str__(self) -> str:
        memory = "" if self.needs_bytes is None else f"; about {in_words(self.needs_bytes)}"
        return f"{self.variant}: {self.reason}{memory}"


@dataclass(frozen=True)
class Problem:
    """What is to be fitted, and where.

    n, p, d       cells and features of each view, components
    device        where it runs; None: on a GPU of another machine, so that nothing is asked of this one
    memory_bytes  what each rank may take; None: what is free
    form          of both views
    ranks         processes that share the cells: then of the variants that can
    """

    n: int
    p: int
    d: int
    device: torch.device | None
    memory_bytes: float | None = None
    form: Form = "dense"
    ranks: int = 1

    def may_take(self) -> float:
        """Return the bytes that each rank may take; by default of a GPU of its own, of a host together."""
        if self.memory_bytes is not None:
            return self.memory_bytes
        on_gpu = self.device.type == "cuda"
        return torch.cuda.mem_get_info(self.device)[0] if on_gpu else host.free_bytes() // self.ranks

    def needs_bytes(self, name: str) -> int | None:
        """Return what each rank needs by the model, None without; of sparse views and kernels for one feature."""
        p = self.p if self.form == "dense" else 1
        kind = "cuda" if self.device is None else self.device.type
        return variant(name).needs_bytes(self.n, p, self.d, self.ranks, kind)

    def obstacle(self, name: str) -> str | None:
        """Return why a variant cannot treat it here, in words, or None."""
        known = variant(name)
        if self.form not in known.accepts:
            return f"takes no {self.form} views"
        if self.ranks > 1 and not known.several_ranks:
            return "runs in one process"
        needs = self.needs_bytes(name)
        if needs is not None and needs > self.may_take():
            return f"needs {in_words(needs)} of {in_words(self.may_take())}"
        try:
            return known.missing(self.device) if self.device is not None else None
        except Unsupported as error:
            return str(error)


def choose_for_fit(problem: Problem, epochs: int, measured: Sequence[Measured] = ()) -> Choice:
    """Return what `choose` takes, if that is predicted to end within PATIENCE_S, else the variant linear in n.

    epochs  of all starts together

    Raises MissingDependency if no variant is left.
    """
    linear = LINEAR_IN_N[problem.form]
    able = problem.obstacle(linear) is None
    try:
        exact = choose(problem, measured)
    except MissingDependency as error:
        if not able:
            raise
        why = str(error)
    else:
        speed = _GPU_SPEED if problem.device.type == "cuda" and not measured else 1.0
        minutes = epochs * exact.estimate.epoch_s / speed / problem.ranks / 60
        if not able or minutes <= PATIENCE_S / 60:
            return exact
        why = (
            f"{exact.variant}, the fastest exact variant, is predicted to take {minutes:,.0f} min for {epochs:,} "
            f"epochs (by {exact.estimate.basis}); variant={exact.variant!r} insists on it"
        )
    about = estimate(linear, problem.n, problem.p, problem.d, measured)
    return Choice(linear, about, _told_bytes(problem, linear), f"linear in n. {why}", {})


def choose(problem: Problem, measured: Sequence[Measured] = (), rates: Rates = NOMINAL) -> Choice:
    """Return the exact variant with the shortest estimated epoch, of those that run and fit by their models.

    measured  on the machine in question
    rates     of that machine

    Raises MissingDependency if no variant is left, with the reason for each.
    """
    size = problem.n, problem.p, problem.d
    estimates = {name: estimate(name, *size, measured, rates) for name in variants() if variant(name).cost_model}
    passed_over = {}
    for name in sorted(estimates, key=lambda name: estimates[name].epoch_s):
        reason = why_not(name, problem)
        if reason is None:
            why = f"the fastest exact variant that runs here and fits, by {estimates[name].basis}"
            return Choice(name, estimates[name], _told_bytes(problem, name), why, passed_over)
        passed_over[name] = reason
    where = f"n = {problem.n}, p = {problem.p} on {problem.device}"
    reasons = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
    raise MissingDependency(f"no exact variant is left for {where}: {reasons}")


def why_not(name: str, problem: Problem) -> str | None:
    """Return the reason to pass over a variant, in words, or None."""
    known = variant(name)
    kind = known.remark or (f"{known.estimator} MMD alone" if known.estimator else "")
    return "; ".join(filter(None, (problem.obstacle(name), kind))) or None


def _told_bytes(problem: Problem, name: str) -> int | None:
    """Return what a variant needs, where the model knows: of dense views."""
    return problem.needs_bytes(name) if problem.form == "dense" else None


def estimate(name: str, n: int, p: int, d: int, measured: Sequence[Measured] = (), rates: Rates = NOMINAL) -> Estimate:
    """Return about how long an epoch of the variant takes; see the module's docstring.

    The factor is how far this rule is off when it predicts each measurement of the variant from its nearest other one
    (9 of 10 are nearer). Raises ValueError for a variant that states no cost.
    """
    if variant(name).cost_model is None:
        raise ValueError(f"variant {name!r} states no cost")
    own = [one for one in measured if one.variant == name]
    speed = machine_speed(measured, rates)
    seconds = epoch_seconds(name, n, p, d, own, speed, rates)
    if own:
        near = _nearest(own, n, p)
        if (near.n, near.p, near.d) == (n, p, d):
            return Estimate(seconds, _LEAST_FACTOR, f"its measurement at n = {n}, p = {p}")
        factor = _prediction_factor(own, rates)
        return Estimate(seconds, factor, f"its nearest measurement, n = {near.n}, p = {near.p}")
    if speed is not None:
        return Estimate(seconds, _FACTOR_OF_OTHERS, "its cost, at the speed of the other variants measured")
    if rates != NOMINAL:
        return Estimate(seconds, _FACTOR_OF_OTHERS, "its cost, at the rates of a machine like it")
    return Estimate(seconds, _FACTOR_OF_NOMINAL_RATES, "its cost, at nominal rates: nothing is measured")


def epoch_seconds(
    name: str, n: int, p: int, d: int, own: Sequence[Measured], speed: float | None, rates: Rates = NOMINAL
) -> float:
    """Return the seconds of `estimate` alone, from the variant's own measurements, else from the machine's speed."""
    if own:
        return _scaled_seconds(_nearest(own, n, p), n, p, d, rates)
    return _seconds(name, n, p, d, rates) * (speed or 1.0)


def machine_speed(measured: Sequence[Measured], rates: Rates = NOMINAL) -> float | None:
    """Return the median of measured seconds over those at `rates`, of variants that state a cost; None without any."""
    costed = {name for name in variants() if variant(name).cost_model}
    ratios = [one.epoch_s / _seconds(*one[:4], rates) for one in measured if one.variant in costed]
    return median(ratios) if ratios else None


def _seconds(name: str, n: int, p: int, d: int, rates: Rates) -> float:
    return variant(name).cost_model(n, p, d).seconds(rates)


def _nearest(measured: Sequence[Measured], n: int, p: int) -> Measured:
    return min(measured, key=lambda one: abs(math.log(one.n / n)) + abs(math.log(one.p / p)))


def _scaled_seconds(one: Measured, n: int, p: int, d: int, rates: Rates) -> float:
    return one.epoch_s * _seconds(one.variant, n, p, d, rates) / _seconds(*one[:4], rates)


def _prediction_factor(own: Sequence[Measured], rates: Rates) -> float:
    """Return the factor within which 9 of 10 measurements of a variant are predicted from their nearest other one."""
    ratios = []
    for one in own:
        others = [other for other in own if (other.n, other.p) != (one.n, one.p)]
        if others:
            predicted = _scaled_seconds(_nearest(others, one.n, one.p), one.n, one.p, one.d, rates)
            ratios.append(abs(math.log(predicted / one.epoch_s)))
    if len(own) < 3 or len(ratios) < 2:
        return _FACTOR_OF_OTHERS
    return max(_LEAST_FACTOR, math.exp(quantiles(ratios, n=10, method="inclusive")[-1]))
