"""What to take for a problem, for `python -m benchmarks advise`: from the cells measured here and the models."""

from __future__ import annotations

import torch

import mmdma_core
from benchmarks import memory, records
from benchmarks.plan import duration, machine_memory
from benchmarks.study import Study
from mmdma_core import advice


def describe(study: Study, n: int, p: int, gpu_gib: float | None = None) -> str:
    """Which variant, about how long for the study's epochs, how much memory, and what the advice rests on.

    gpu_gib  memory of a GPU that need not be here: then nothing is asked of this machine, and only cells that were
             measured on a GPU count

    Raises ValueError for an n or p that is too small, MissingDependency if no variant is left.
    """
    if n < 2 or p < 1:
        raise ValueError(f"--n must be at least 2 and --p at least 1, got {n} and {p}")
    kind = study.device if gpu_gib is None else "cuda"
    known = [record for record in records.read_all(study.root) if record.status == "ok" and record.device == kind]
    measured = [record.measured for record in known]
    limit = machine_memory(kind) if gpu_gib is None else gpu_gib * memory.GIB
    device = torch.device(kind) if gpu_gib is None else None
    d = study.settings.n_components
    choice = advice.choose(n, p, d, device, limit, measured=measured)
    lines = [
        f"n = {n:,} cells, p = {p:,} features, d = {d}, {limit / memory.GIB:.3g} GiB of {kind} memory; "
        f"{len(measured)} measured cells in {study.root}",
        f"take {choice.variant}: {_words(study, choice.estimate)}{_needs(choice.variant, n, p, d)}",
        f"this rests on {choice.estimate.basis}",
    ]
    others = {
        name: advice.estimate(name, n, p, d, measured)
        for name in mmdma_core.variants()
        if mmdma_core.variant(name).cost_model and name != choice.variant
    }
    for name in sorted(others, key=lambda name: others[name].epoch_s):
        reason = choice.passed_over.get(name) or advice.why_not(name, n, p, d, device, limit)
        lines.append(f"  {name:<24} {_words(study, others[name])}{f'; {reason}' if reason else ''}")
    return "\n".join(lines)


def _words(study: Study, estimate: advice.Estimate) -> str:
    seconds = study.epochs * estimate.epoch_s
    low, high = seconds / estimate.factor, seconds * estimate.factor
    return f"about {duration(seconds)} for {study.epochs} epochs ({duration(low)} to {duration(high)})"


def _needs(name: str, n: int, p: int, d: int) -> str:
    model = mmdma_core.variant(name).memory_model
    return f", {model(n, p, d) / memory.GIB:.2g} GiB with the data" if model else ""
