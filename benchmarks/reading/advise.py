"""What to take for a problem, for `python -m benchmarks advise`: from the cells measured here and the models."""

from __future__ import annotations

from functools import partial

import torch

import mmdma_core
from benchmarks.measuring import memory, records
from benchmarks.paper import published
from benchmarks.reading import selection
from benchmarks.reading.table import to_frame
from benchmarks.study.plan import duration, machine_memory
from benchmarks.study.study import Study
from mmdma_core.families import advice
from mmdma_core.models.memory import in_words

_QUALITY = (
    "its starts end within 1 % of the exact loss and 0.01 in FOSCTTM of their exact twins on SNARE-seq and branch data "
    "(tests/test_fourier_fits.py)"
)


def describe(study: Study, n: int, p: int, gpu_gib: float | None = None, devices: int = 1) -> str:
    """Which variant, about how long for the study's epochs, how much memory, and what the advice rests on.

    gpu_gib  memory of a GPU that need not be here: then nothing is asked of this machine, and only cells that were
             measured on a GPU count

    devices  GPUs, or processes, that share the cells: memory and time of each by the models

    Raises ValueError for an n or p that is too small, MissingDependency if no variant is left.
    """
    if n < 2 or p < 1 or devices < 1:
        raise ValueError(f"--n must be at least 2, --p and --devices at least 1, got {n}, {p} and {devices}")
    kind = study.device if gpu_gib is None else "cuda"
    d = study.settings.n_components
    measured, where = _measured(study, kind)
    limit = machine_memory(kind) if gpu_gib is None else gpu_gib * memory.GIB
    device = torch.device(kind) if gpu_gib is None else None
    if kind == "cpu":
        limit /= devices
    choice = advice.choose(n, p, d, device, limit, measured=measured, ranks=devices)
    linear = advice.LINEAR_IN_N["dense"]
    shared = f" on each of {devices} devices" if devices > 1 else ""
    words = partial(_words, study, devices)
    lines = [
        f"n = {n:,} cells, p = {p:,} features, d = {d}, {in_words(limit)} of {kind} memory{shared}; "
        f"{len(measured)} measured cells {where}",
        f"take {choice.variant}: {words(choice.estimate, choice.variant)}{_needs(choice)}",
        f"this rests on {choice.estimate.basis}",
        f"or, approximate, {linear}: {words(advice.estimate(linear, n, p, d, measured), linear)}; {_QUALITY}",
    ]
    others = {
        name: advice.estimate(name, n, p, d, measured)
        for name in mmdma_core.variants()
        if mmdma_core.variant(name).cost_model and name != choice.variant
    }
    for name in sorted(others, key=lambda name: others[name].epoch_s):
        reason = choice.passed_over.get(name) or advice.why_not(name, n, p, d, device, limit, ranks=devices)
        lines.append(f"  {name:<24} {words(others[name], name)}{f'; {reason}' if reason else ''}")
    return "\n".join(lines)


def _words(study: Study, devices: int, estimate: advice.Estimate, name: str) -> str:
    """Of several devices each is taken to do its part of the work, and what they tell each other to take no time."""
    seconds = study.epochs * estimate.epoch_s / (devices if mmdma_core.variant(name).several_ranks else 1)
    low, high = seconds / estimate.factor, seconds * estimate.factor
    return f"about {duration(seconds)} for {study.epochs} epochs ({duration(low)} to {duration(high)})"


def _needs(choice: advice.Choice) -> str:
    return "" if choice.needs_bytes is None else f", {in_words(choice.needs_bytes)} with the data"


def _measured(study: Study, kind: str) -> tuple[list[advice.Measured], str]:
    """The ok cells of one machine; those of the published V100 where a GPU is asked for and none is measured."""
    known = [record for record in records.read_all(study.root) if record.status == "ok" and record.device == kind]
    if known:
        table, left_out = selection.one_machine(to_frame(known))
        said = "".join(f"; left out: {sentence}" for sentence in left_out)
        columns = zip(*(table[name] for name in ("variant", "n", "p", "d", "median_epoch_s")), strict=True)
        return [advice.Measured(*cell) for cell in columns], f"in {study.root}{said}"
    if kind == "cuda":
        read = published.runtimes().dropna(subset=["runtime_s"])
        cells = [advice.Measured(c.variant, c.n, c.p, published.D, c.runtime_s / 500) for c in read.itertuples()]
        return cells, f"of the published V100, since {study.root} has none of a GPU"
    return [], f"in {study.root}"
