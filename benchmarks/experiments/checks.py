"""Checks of a variant, each in a child of the guard: what it lacks on the device, whether it is right, KeOps itself.

What a check found is a record, written as it ends: a crash or a wrong gradient ends that check alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import mmdma_core
from benchmarks.experiments import correctness
from benchmarks.experiments.correctness import CASES, Deviation
from benchmarks.measuring import guard, records
from benchmarks.measuring.fingerprint import fingerprint_of
from benchmarks.measuring.measurement import Measurement, Report, Work
from benchmarks.measuring.records import Record
from benchmarks.study import Study
from mmdma_core import MissingDependency, kernels

_SHOWN = 3  # deviations of a variant in words; the record has all of them


@dataclass(frozen=True)
class Check(Measurement):
    """What is asked of a check: `kind` is its work, `cases` how many of the problems it takes."""

    kind: str = ""
    cases: int = 0


def check(study: Study, kind: str, variant: str, timeout_s: float, cases: int = len(CASES), n: int = 0) -> Check:
    """A check of a variant on the study's device; n, where it is 0, and p are those of the first problem."""
    first = CASES[0]
    asked = replace(study, epochs=1, cell_timeout_s=timeout_s).measurement(variant, n or first.n_x, first.p_x)
    registered = mmdma_core.variant(variant)
    allowed = registered.tolerance, registered.bias
    source = asked.source + fingerprint_of(KINDS[kind], allowed, module=__name__)  # with it that of the problems
    return Check(**vars(asked) | {"source": source, "kind": kind, "cases": cases})


def measure(asked: Check, path: Path, who: dict[str, Any], left_s: float) -> Record:
    """Do the check in a child, and leave its record at the path; skipped, if the time left has ended it."""
    record = guard.measure_within(asked, who, left_s, KINDS[asked.kind])
    records.write(record, path)
    return record


def lacks(asked: Check, report: Report) -> None:
    """The work of asking what the variant lacks on the device, which may import KeOps, Triton or TensorFlow."""
    missing = mmdma_core.variant(asked.variant).missing(torch.device(asked.device))
    if missing:
        raise MissingDependency(missing)
    _done(report, {})


def runs_keops(asked: Check, report: Report) -> None:
    """The work of asking KeOps for a sum on the device."""
    why_not = kernels.keops_works_on(torch.device(asked.device))
    if why_not:
        raise MissingDependency(why_not)
    _done(report, {})


def is_right(asked: Check, report: Report) -> None:
    """The work of comparing the variant with float64, problem by problem; what is wrong goes into `deviations`."""
    lacks(asked, lambda facts: None)
    wrong, ratios = [], {}
    begin = time.perf_counter()
    for name, found in _problems(asked):
        report({"stage": f"the problem '{name}'"})
        for deviation in found:
            ratio = deviation.off / deviation.allowed
            if not ratio <= ratios.get(name, 0.0) and math.isfinite(ratio):
                ratios[name] = ratio
            if not deviation.within:
                wrong.append(f"{deviation} ({name})")
        report({"metrics": ratios})
    _done(report, ratios, time.perf_counter() - begin)
    if wrong:
        report({"status": "error", "detail": "\n".join(["wrong", *_first(wrong)]), "deviations": wrong})


def _first(wrong: list[str]) -> list[str]:
    return [*wrong[:_SHOWN], *([f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])]


def _problems(asked: Check) -> Iterator[tuple[str, Iterator[Deviation]]]:
    for case in CASES[: asked.cases]:
        yield case.name, correctness.deviations(asked.variant, case, asked.device)
    yield "training", _training(asked)


def _training(asked: Check) -> Iterator[Deviation]:
    yield correctness.trained(asked.variant, asked.device)[-1]


def _done(report: Report, ratios: dict[str, float], seconds: float = 0.0) -> None:
    """The metrics of a check are its largest deviations over what is allowed, at most 1 where all is right."""
    report({"metrics": ratios, "prepare_s": 0.0, "epoch_s": [seconds], "status": "ok"})


def times_kernels(asked: Check, report: Report) -> None:
    """The work of timing the pass over the pairs of n and n points: each tile, compact blocks and wide ones apart.

    Its metrics are milliseconds, and whether products of float16 matrices truncate (1) or round (0).
    """
    if asked.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # which times nothing of a GPU, but runs
    lacks(asked, lambda facts: None)
    try:
        from benchmarks import roofline
        from mmdma_core.fused import pairs_cuda
    except ImportError as error:
        raise MissingDependency(f"the kernels need Triton ({error}): pip install triton") from error

    found: dict[str, float] = {"products truncate": float(roofline.products_truncate(asked.device))}
    for tile in pairs_cuda.candidates(asked.settings.n_components):
        name = f"tile of {tile.M} rows, {tile.N} columns, {tile.num_warps} warps"
        report({"stage": name})
        with suppress(pairs_cuda.OutOfResources):  # a tile that this GPU cannot hold
            found[name] = pairs_cuda.milliseconds(
                asked.n, asked.settings.n_components, tile, torch.device(asked.device)
            )
        report({"metrics": found})
    report({"stage": "compact and wide blocks apart"})
    apart = roofline.apart(asked.n, asked.settings.n_components, asked.device)
    _done(report, found | {f"{kind} blocks": 1000 * seconds for kind, seconds in apart.items()})


KINDS: dict[str, Work] = {
    "lacks": lacks,
    "keops": runs_keops,
    "correctness": is_right,
    "kernels": times_kernels,
}


def sentence(record: Record) -> str:
    """A record that is not ok in one line: what is wrong, or the end of what was said."""
    if record.deviations:
        return f"{record.variant} is wrong: {'; '.join(_first(record.deviations))}"
    lines = [line.strip() for line in record.detail.splitlines() if line.strip()]
    said = list(dict.fromkeys(lines[:1] + lines[-1:]))
    return f"{record.variant}: {record.status.replace('_', ' ')}: {': '.join(said)}"
