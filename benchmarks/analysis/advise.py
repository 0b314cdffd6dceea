"""What to take for a problem, for `python -m benchmarks advise`: from what was measured here and the models."""

from __future__ import annotations

import torch

import mmdma_core
from benchmarks.analysis import predict
from benchmarks.analysis.table import measurements, one_machine, to_frame
from benchmarks.measuring import memory, records
from benchmarks.plan import duration, elsewhere, machine_memory
from benchmarks.study import Study
from mmdma_core import advice
from mmdma_core.models import NOMINAL, Rates, in_words

_QUALITY = (
    "its starts end within 1 % of the exact loss and 0.01 in FOSCTTM of the exact ones on SNARE-seq and branch data "
    "(tests/test_fourier_fits.py)"
)


def describe(
    study: Study, n: int, p: int, gpu_gib: float | None = None, devices: int = 1, like: str = predict.V100
) -> str:
    """Say which variant, about how long for the study's epochs, how much memory, and what the advice rests on.

    A variant without a model of cost is never taken, and stands below the others with how often it was measured.

    gpu_gib  memory of a GPU that need not be here: then nothing is asked of this machine, and only what was measured
             on a GPU counts
    like     the card whose rates a GPU is taken to have, see benchmarks.analysis.predict.card
    devices  GPUs, or processes, that share the cells: memory and time of each by the models

    Raises ValueError for an n or p that is too small, MissingDependency if no variant is left.
    """
    if n < 2 or p < 1 or devices < 1:
        raise ValueError(f"--n must be at least 2, --p and --devices at least 1, got {n}, {p} and {devices}")
    kind = study.device if gpu_gib is None else "cuda"
    d = study.settings.n_components
    known, where, rates = _known(study, kind, like)
    limit = _memory_here(study) if gpu_gib is None else gpu_gib * memory.GIB
    limit /= devices if kind == "cpu" else 1
    problem = advice.Problem(n, p, d, torch.device(kind) if gpu_gib is None else None, limit, ranks=devices)
    choice = advice.choose(problem, known, rates)
    costed = [name for name in mmdma_core.variants() if mmdma_core.variant(name).cost_model]
    estimates = {name: advice.estimate(name, n, p, d, known, rates) for name in costed}
    times = {name: _time(study, devices, name, estimate) for name, estimate in estimates.items()}
    needs = "" if choice.needs_bytes is None else f", {in_words(choice.needs_bytes)} with the data"
    linear = advice.LINEAR_IN_N["dense"]
    unfit = problem.obstacle(linear)
    shared = f" on each of {devices} devices" if devices > 1 else ""
    lines = [
        f"n = {n:,} cells, p = {p:,} features, d = {d}, {in_words(limit)} of {kind} memory{shared}; "
        f"{measurements(len(known))} {where}",
        f"take {choice.variant}: {times[choice.variant]}{needs}",
        f"this rests on {choice.estimate.basis}",
        f"or, approximate, {linear}: {f'{unfit}; ' if unfit else ''}{times[linear]}; {_QUALITY}",
    ]
    other = elsewhere(study) if gpu_gib is None else ""
    lines += [f"more of them {other}"] * bool(other)
    rest = [name for name in mmdma_core.variants() if name not in estimates]
    for name in (*sorted(costed, key=lambda name: estimates[name].epoch_s), *rest):
        if name != choice.variant:
            count = sum(one.variant == name for one in known)
            reason = choice.passed_over.get(name) or advice.why_not(name, problem)
            words = times.get(name, f"no model: {measurements(count)} here")
            lines.append(f"  {name:<24} {words}{f'; {reason}' if reason else ''}")
    return "\n".join(lines)


def _memory_here(study: Study) -> float:
    """Return the bytes that a problem may take: what the machine has, and no more than the study's limit."""
    asked = study.gpu_gib if study.device == "cuda" else study.host_gib
    there = machine_memory(study.device)
    return there if asked is None else min(there, asked * memory.GIB)


def _time(study: Study, devices: int, name: str, estimate: advice.Estimate) -> str:
    """Say how long; several devices are taken to do a part of the work each, and to exchange in no time."""
    seconds = study.epochs * estimate.epoch_s / (devices if mmdma_core.variant(name).several_ranks else 1)
    low, high = seconds / estimate.factor, seconds * estimate.factor
    return f"about {duration(seconds)} for {study.epochs} epochs ({duration(low)} to {duration(high)})"


def _known(study: Study, kind: str, like: str) -> tuple[list[advice.Measured], str, Rates]:
    """Return what one machine measured, where that is from, and its rates; of a GPU without any those of a `like`."""
    if kind != "cuda" and like != predict.V100:
        raise ValueError("--like is about a GPU: give --gpu-memory-gib, too")
    own = [record for record in records.read_all(study.root) if record.status == "ok" and record.device == kind]
    table, left_out = one_machine(to_frame(own)) if own else (None, [])
    known = predict.measured(table) if own else []
    where = "; left out: ".join([f"in {study.root}", *left_out])
    if kind != "cuda":
        return known, where, NOMINAL
    card = predict.card(like)
    if known:
        return known, where, predict.calibrate(known, card.rates())
    return card.known, f"of {card.name}, since {study.root} has none of a GPU", card.rates()
