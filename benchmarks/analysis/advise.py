"""What to take for a problem, for `python -m benchmarks advise`: from the cells measured here and the models."""

from __future__ import annotations

from functools import partial

import torch

import mmdma_core
from benchmarks.analysis import predict
from benchmarks.analysis.table import one_machine, to_frame
from benchmarks.measuring import memory, records
from benchmarks.plan import duration, elsewhere, machine_memory
from benchmarks.study import Study
from mmdma_core import advice
from mmdma_core.models import NOMINAL, Rates, in_words

_QUALITY = (
    "its starts end within 1 % of the exact loss and 0.01 in FOSCTTM of their exact twins on SNARE-seq and branch data "
    "(tests/test_fourier_fits.py)"
)


def describe(
    study: Study, n: int, p: int, gpu_gib: float | None = None, devices: int = 1, like: str = predict.V100
) -> str:
    """Which variant, about how long for the study's epochs, how much memory, and what the advice rests on.

    A variant without a model of cost is never taken, and stands below the others with the cells that were measured.

    gpu_gib  memory of a GPU that need not be here: then nothing is asked of this machine, and only cells that were
             measured on a GPU count
    like     the card whose rates a GPU is taken to have, see benchmarks.analysis.predict.card

    devices  GPUs, or processes, that share the cells: memory and time of each by the models

    Raises ValueError for an n or p that is too small, MissingDependency if no variant is left.
    """
    if n < 2 or p < 1 or devices < 1:
        raise ValueError(f"--n must be at least 2, --p and --devices at least 1, got {n}, {p} and {devices}")
    kind = study.device if gpu_gib is None else "cuda"
    d = study.settings.n_components
    measured, where, rates = _known(study, kind, like)
    limit = _memory_here(study) if gpu_gib is None else gpu_gib * memory.GIB
    device = torch.device(kind) if gpu_gib is None else None
    if kind == "cpu":
        limit /= devices
    choice = advice.choose(n, p, d, device, limit, measured=measured, rates=rates, ranks=devices)
    linear = advice.LINEAR_IN_N["dense"]
    shared = f" on each of {devices} devices" if devices > 1 else ""
    words = partial(_words, study, devices)

    def lacks(name: str) -> str:
        reason = choice.passed_over.get(name) or advice.why_not(name, n, p, d, device, limit, ranks=devices)
        return f"; {reason}" if reason else ""

    unfit = lacks(linear).removeprefix("; ").removesuffix("approximate").removesuffix("; ")
    without = [name for name in mmdma_core.variants() if mmdma_core.variant(name).cost_model is None]
    lines = [
        f"n = {n:,} cells, p = {p:,} features, d = {d}, {in_words(limit)} of {kind} memory{shared}; "
        f"{len(measured)} measured cells {where}",
        f"take {choice.variant}: {words(choice.estimate, choice.variant)}{_needs(choice)}",
        f"this rests on {choice.estimate.basis}",
        f"or, approximate, {linear}: {f'{unfit}; ' * bool(unfit)}"
        f"{words(advice.estimate(linear, n, p, d, measured, rates), linear)}; {_QUALITY}",
    ]
    other = elsewhere(study) if gpu_gib is None else ""
    lines += [f"more cells {other}"] * bool(other)
    others = {
        name: advice.estimate(name, n, p, d, measured, rates)
        for name in mmdma_core.variants()
        if mmdma_core.variant(name).cost_model and name != choice.variant
    }
    for name in sorted(others, key=lambda name: others[name].epoch_s):
        lines.append(f"  {name:<24} {words(others[name], name)}{lacks(name)}")
    for name in without:
        count = sum(cell.variant == name for cell in measured)
        lines.append(f"  {name:<24} no model: {count} cell{'s' * (count != 1)} measured here{lacks(name)}")
    return "\n".join(lines)


def _memory_here(study: Study) -> float:
    """Bytes that a problem may take: what the machine has, and no more than the study's limit."""
    asked = study.gpu_gib if study.device == "cuda" else study.host_gib
    there = machine_memory(study.device)
    return there if asked is None else min(there, asked * memory.GIB)


def _words(study: Study, devices: int, estimate: advice.Estimate, name: str) -> str:
    """Of several devices each is taken to do its part of the work, and what they tell each other to take no time."""
    seconds = study.epochs * estimate.epoch_s / (devices if mmdma_core.variant(name).several_ranks else 1)
    low, high = seconds / estimate.factor, seconds * estimate.factor
    return f"about {duration(seconds)} for {study.epochs} epochs ({duration(low)} to {duration(high)})"


def _needs(choice: advice.Choice) -> str:
    return "" if choice.needs_bytes is None else f", {in_words(choice.needs_bytes)} with the data"


def _known(study: Study, kind: str, like: str) -> tuple[list[advice.Measured], str, Rates]:
    """The ok cells of one machine, where they are from, and its rates; a GPU of which none is measured is a `like`."""
    if kind != "cuda" and like != predict.V100:
        raise ValueError("--like is about a GPU: give --gpu-memory-gib, too")
    cells, said = _measured(study, kind)
    if kind != "cuda":
        return cells, f"in {study.root}{said}", NOMINAL
    card = predict.card(like)
    if cells:
        return cells, f"in {study.root}{said}", predict.calibrate(cells, card.rates())
    return card.known, f"of {card.name}, since {study.root} has none of a GPU", card.rates()


def _measured(study: Study, kind: str) -> tuple[list[advice.Measured], str]:
    """The ok cells of one machine, and which others are left out."""
    known = [record for record in records.read_all(study.root) if record.status == "ok" and record.device == kind]
    if not known:
        return [], ""
    table, left_out = one_machine(to_frame(known))
    return predict.measured(table), "".join(f"; left out: {sentence}" for sentence in left_out)
